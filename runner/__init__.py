"""arq-runner: an asyncio-native distributed task runner on arq.

Services ``await`` an enqueue into Redis, ``arq settings.WorkerSettings`` runs the workers,
and one batching writer carries every database write, exactly once, over one connection.

    from runner import Context, WorkerSettings, connect, task
"""

from arq import cron, func
from arq.connections import RedisSettings
from arq.jobs import JobStatus, ResultNotFound

from runner import errors, events
from runner.client import Client, connect
from runner.errors import Cancel, Retry, RunnerError, Snooze
from runner.execution import Context
from runner.job import Job
from runner.retry import Backoff, RetryPolicy
from runner.settings import WorkerSettings
from runner.signing import SignedCodec
from runner.tasks import Call, Task, task
from runner.types import DeadLetter, Outcome, QueueStats, WriterStatus
from runner.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "Backoff",
    "Call",
    "Cancel",
    "Client",
    "Context",
    "DeadLetter",
    "Job",
    "JobStatus",
    "Outcome",
    "QueueStats",
    "RedisSettings",
    "ResultNotFound",
    "Retry",
    "RetryPolicy",
    "RunnerError",
    "SignedCodec",
    "Snooze",
    "Task",
    "Worker",
    "WorkerSettings",
    "WriterStatus",
    "connect",
    "cron",
    "errors",
    "events",
    "func",
    "task",
]
