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
from runner.composition import chain, chord, group, node
from runner.connection import connect
from runner.database import Answer, Database, DirectUnit, database
from runner.declare import task
from runner.dependencies import Depends
from runner.errors import (
    Cancel,
    DuplicateJob,
    JobReplaced,
    ProcessDied,
    ResultTooLarge,
    Retry,
    RunnerError,
    Snooze,
    SoftTimeLimit,
    UnitChanged,
    WriteRejected,
)
from runner.execution import Context
from runner.inspect import JobFilter, JobInfo, JobState
from runner.job import Job
from runner.joblog import JobLog, LoggedJob
from runner.letters import LetterFilter
from runner.limits import LimitInfo, RateLimit, RunningLimit
from runner.many import ManyContext
from runner.middleware import (
    EnqueueCall,
    FlowCall,
    JobCall,
    JobTiming,
    Middleware,
    Propagation,
    Sentry,
    Timing,
)
from runner.parts import Part
from runner.retry import Backoff, RetryPolicy, Rule, give_up, on
from runner.schedule import Schedule, ScheduleInfo, cron, every, perpetual
from runner.settings import WorkerSettings
from runner.signing import SignedCodec
from runner.tasks import Call, SyncTask, Task
from runner.types import AttemptError, Committed, DeadLetter, Outcome, QueueStats, WriterStatus
from runner.unique import Debounce, Throttle, Unique
from runner.worker import Worker
from runner.workflow import Batch, Flow, FlowState, FlowStatus, NodeInfo, NodeState, Run

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AttemptError",
    "Backoff",
    "Batch",
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
    "Flow",
    "FlowCall",
    "FlowState",
    "FlowStatus",
    "Job",
    "JobCall",
    "JobFilter",
    "JobInfo",
    "JobLog",
    "JobReplaced",
    "JobState",
    "JobStatus",
    "JobTiming",
    "LetterFilter",
    "LimitInfo",
    "LoggedJob",
    "ManyContext",
    "Middleware",
    "NodeInfo",
    "NodeState",
    "Outcome",
    "Part",
    "ProcessDied",
    "Propagation",
    "QueueStats",
    "RateLimit",
    "RedisSettings",
    "ResultNotFound",
    "ResultTooLarge",
    "Retry",
    "RetryPolicy",
    "Rule",
    "Run",
    "RunnerError",
    "RunningLimit",
    "Schedule",
    "ScheduleInfo",
    "Sentry",
    "SignedCodec",
    "Snooze",
    "SoftTimeLimit",
    "SyncTask",
    "Task",
    "Throttle",
    "Timing",
    "Unique",
    "UnitChanged",
    "Worker",
    "WorkerSettings",
    "WriteRejected",
    "WriterStatus",
    "chain",
    "chord",
    "connect",
    "cron",
    "database",
    "errors",
    "every",
    "func",
    "give_up",
    "group",
    "node",
    "on",
    "perpetual",
    "task",
]
