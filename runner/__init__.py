"""arq-runner: an asyncio-native distributed task runner on arq.

Services ``await`` an enqueue into Redis, ``arq settings.WorkerSettings`` runs the workers,
and one batching writer carries every database write, exactly once, over one connection.

    from runner import Context, WorkerSettings, connect, task
"""

from arq import func
from arq.connections import RedisSettings
from arq.jobs import JobStatus, ResultNotFound

from runner import errors
from runner.client import Client
from runner.connection import connect
from runner.database import Answer, Database, DirectUnit, database
from runner.dependencies import Depends
from runner.errors import (
    Cancel,
    DuplicateJob,
    JobReplaced,
    ResultTooLarge,
    Retry,
    RunnerError,
    Snooze,
    UnitChanged,
    WriteRejected,
)
from runner.execution import Context
from runner.job import Job
from runner.middleware import (
    EnqueueCall,
    JobCall,
    JobTiming,
    Middleware,
    Propagation,
    Sentry,
    Timing,
)
from runner.parts import Part
from runner.retry import Backoff, RetryPolicy
from runner.schedule import Schedule, ScheduleInfo, cron, every, perpetual
from runner.settings import WorkerSettings
from runner.signing import SignedCodec
from runner.tasks import Call, Task, task
from runner.types import Committed, DeadLetter, Outcome, QueueStats, WriterStatus
from runner.unique import Debounce, Throttle, Unique
from runner.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Backoff",
    "Call",
    "Cancel",
    "Client",
    "Committed",
    "Context",
    "Database",
    "DeadLetter",
    "Debounce",
    "Depends",
    "DirectUnit",
    "DuplicateJob",
    "EnqueueCall",
    "Job",
    "JobCall",
    "JobReplaced",
    "JobStatus",
    "JobTiming",
    "Middleware",
    "Outcome",
    "Part",
    "Propagation",
    "QueueStats",
    "RedisSettings",
    "ResultNotFound",
    "ResultTooLarge",
    "Retry",
    "RetryPolicy",
    "RunnerError",
    "Schedule",
    "ScheduleInfo",
    "Sentry",
    "SignedCodec",
    "Snooze",
    "Task",
    "Throttle",
    "Timing",
    "Unique",
    "UnitChanged",
    "Worker",
    "WorkerSettings",
    "WriteRejected",
    "WriterStatus",
    "connect",
    "cron",
    "database",
    "errors",
    "every",
    "func",
    "perpetual",
    "task",
]
