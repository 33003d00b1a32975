"""Every error that users can meet, in one tree.

    RunnerError
    ├── SettingsError             a setting is unknown, mistyped or contradicts another
    │   └── LimitError            what is said of a limit makes no sense
    │       └── LimitNotFound     there is no limit of that name
    ├── PartFailed                a part of the worker did not start in time
    ├── TaskError
    │   ├── TaskNotFound          no task of that name in this worker
    │   └── ArgumentsError        the arguments do not fit the task
    ├── CodecError
    │   ├── EncodeError           a value cannot travel
    │   └── DecodeError           bytes that nobody should trust
    ├── RedisUnavailable          Redis is away, or did not answer in time
    ├── EnqueueError
    │   ├── PayloadTooLarge       a job is larger than `max_payload_bytes`
    │   ├── QueueFull             a bounded queue has no room
    │   ├── DuplicateJob          a unique job is there already, and a second is refused
    │   └── RedisOutOfMemory      Redis holds its `maxmemory`
    ├── ScheduleError             a schedule makes no sense
    │   ├── ScheduleNotFound      there is no schedule of that name
    │   └── ScheduleConflict      the name belongs to another, or to settings.py
    ├── FlowError                 a flow cannot do what is asked
    │   ├── FlowRefused           its definition makes no sense; nothing was started
    │   ├── FlowNotFound          there is no flow of that id, or no more
    │   └── FlowFailed            it ended without success
    ├── LetterError               a dead letter cannot be requeued as asked
    │   └── LetterNotFound        there is no dead letter of that id
    ├── JobNotFound               there is no job of that id in the queue
    ├── JobFailed                 the job ended without a result
    │   ├── JobCancelled          somebody took the job out of its queue before it ran
    │   ├── RemoteError           the task raised; carries the remote traceback
    │   ├── JobReplaced           another job took its place while it waited
    │   ├── JobExpired            the job's time to start, or its payload, ran out
    │   ├── TooManyTries          `max_tries` was used up
    │   ├── TooManyCrashes        the job took too many workers with it
    │   ├── ProcessDied           the process that ran the job died
    │   └── WriteRejected         Postgres refused the job's unit of writes
    ├── WriterError
    │   ├── UnitError             an operation cannot be written down
    │   │   └── UnitChanged       a unit was submitted before, with other writes
    │   ├── LeaseLost             the job runs elsewhere: what it commits here is not taken
    │   ├── AttemptOver           the job has ended, and its function goes on and writes
    │   ├── CommitTimeout         a unit was not committed in time; a TimeoutError too
    │   ├── ResultTooLarge        a unit is committed, but its rows are too many to bring back
    │   ├── WriterBacklogFull     too much waits for the writer; nothing was submitted
    │   ├── WriterUnavailable     no database is configured, or it cannot be the writer's
    │   └── StoreWentBack         Redis or Postgres lost what the other still knows
    ├── LimitUnavailable          Redis refused to decide whether a job may run
    └── ScriptError               a call does not fit a Lua script's contract

A job that overran its hard time limit raises Python's own `TimeoutError`, as in arq.
A job that let its soft time limit escape does, too.
Control flow stands apart, because it is no failure: `Retry`, `Snooze`, `Cancel`, `SoftTimeLimit`.
"""

from __future__ import annotations

import asyncio
import difflib
from typing import TYPE_CHECKING

from arq.jobs import DeserializationError, SerializationError
from arq.worker import JobExecutionFailed, Retry

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

__all__ = [
    "ArgumentsError",
    "AttemptOver",
    "Cancel",
    "CodecError",
    "CommitTimeout",
    "DecodeError",
    "DuplicateJob",
    "EncodeError",
    "EnqueueError",
    "FlowError",
    "FlowFailed",
    "FlowNotFound",
    "FlowRefused",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobNotFound",
    "JobReplaced",
    "LeaseLost",
    "LetterError",
    "LetterNotFound",
    "LimitError",
    "LimitNotFound",
    "LimitUnavailable",
    "PartFailed",
    "PayloadTooLarge",
    "ProcessDied",
    "QueueFull",
    "RedisOutOfMemory",
    "RedisUnavailable",
    "RemoteError",
    "ResultTooLarge",
    "Retry",
    "RunnerError",
    "ScheduleConflict",
    "ScheduleError",
    "ScheduleNotFound",
    "ScriptError",
    "SettingsError",
    "Snooze",
    "SoftTimeLimit",
    "StoreWentBack",
    "TaskError",
    "TaskNotFound",
    "TooManyCrashes",
    "TooManyTries",
    "UnitChanged",
    "UnitError",
    "WriteRejected",
    "WriterBacklogFull",
    "WriterError",
    "WriterUnavailable",
]


class RunnerError(Exception):
    """The base of every error of this package."""


class SettingsError(RunnerError):
    """Raised when a setting is unknown, has the wrong type, or contradicts another."""


class PartFailed(RunnerError):
    """Raised when a part of the worker did not start in time; what had started is stopped."""


class TaskError(RunnerError):
    """Raised when a task cannot be called as asked."""


class ArqCompatible(JobExecutionFailed):
    """A failure that stock arq raises as `JobExecutionFailed`, and that is pickled as one.

    So a stock client that reads a pickled result needs none of our modules.
    """

    def __reduce__(self) -> tuple[type[JobExecutionFailed], tuple[object, ...]]:
        return (JobExecutionFailed, self.args)

    __hash__ = JobExecutionFailed.__hash__


class TaskNotFound(TaskError, ArqCompatible):
    """Raised when a job names a task that the worker does not know."""


class ArgumentsError(TaskError):
    """Raised at the caller when arguments do not fit the task's signature.

    Attributes:
        parameter: the parameter's name, "" when the number of arguments is wrong.
        expected: its annotation.
        given: the class of the argument.
    """

    def __init__(
        self,
        message: str = "",
        *,
        parameter: str = "",
        expected: str = "",
        given: str = "",
    ) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.expected = expected
        self.given = given


class CodecError(RunnerError):
    """Raised when a value cannot be written as bytes, or bytes cannot be read."""


class EncodeError(CodecError, SerializationError):
    """Raised when a value has no safe form in which it could travel."""


class DecodeError(CodecError, DeserializationError):
    """Raised when bytes are truncated, altered, or not of the configured codec."""


class RedisUnavailable(RunnerError):
    """Raised when Redis cannot be reached, takes no calls, or did not answer in time.

    Its cause is the error of redis-py.

    Attributes:
        may_have_run: the call was on its way, so what it did is unknown. To enqueue again is
            safe with ``key=job_id``: a job that waits, runs, or has a result is not doubled.
        job_id: the job that was to be enqueued, "" when it was not one job.
    """

    def __init__(self, message: str = "", *, may_have_run: bool = False, job_id: str = "") -> None:
        super().__init__(message)
        self.may_have_run = may_have_run
        self.job_id = job_id


class EnqueueError(RunnerError):
    """Raised when a job could not be put into the queue.

    Attributes:
        queued: after `enqueue_many`, the ids of those of its jobs that are in their queues.
        refused: the positions of the calls that are not, counted from 0.
    """

    def __init__(
        self,
        message: str = "",
        *,
        queued: tuple[str, ...] = (),
        refused: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message)
        self.queued = queued
        self.refused = refused


class PayloadTooLarge(EnqueueError):
    """Raised when an encoded job exceeds `max_payload_bytes`."""


class QueueFull(EnqueueError):
    """Raised when a bounded queue has no room, and had none for as long as the caller waits.

    Attributes:
        queue: the queue's name.
        max_length: how many jobs it may hold, those that run or are deferred among them.
    """

    def __init__(
        self,
        message: str = "",
        *,
        queue: str = "",
        max_length: int = 0,
        queued: tuple[str, ...] = (),
        refused: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message, queued=queued, refused=refused)
        self.queue = queue
        self.max_length = max_length


class DuplicateJob(EnqueueError):
    """Raised when a job is there that the new one may not stand beside; nothing was enqueued.

    Attributes:
        job_id: the job that is there: ``client.job(error.job_id)`` waits for it.
        running: it has been claimed, so that it cannot be replaced any more.
    """

    def __init__(
        self,
        message: str = "",
        *,
        job_id: str = "",
        running: bool = False,
        queued: tuple[str, ...] = (),
        refused: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message, queued=queued, refused=refused)
        self.job_id = job_id
        self.running = running


class RedisOutOfMemory(EnqueueError):
    """Raised when Redis holds its `maxmemory` and evicts nothing; the job is not queued."""


class ScheduleError(RunnerError):
    """Raised when a schedule makes no sense, such as an expression that cannot be read."""


class ScheduleNotFound(ScheduleError):
    """Raised when there is no schedule of that name.

    Attributes:
        name: the name.
    """

    def __init__(self, message: str = "", *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class ScheduleConflict(ScheduleError):
    """Raised when a schedule's name is taken, or the schedule is not the caller's to change.

    Attributes:
        name: the name.
        source: where the schedule of that name comes from: "settings" or "api".
    """

    def __init__(self, message: str = "", *, name: str = "", source: str = "") -> None:
        super().__init__(message)
        self.name = name
        self.source = source


class LetterError(RunnerError):
    """Raised when a dead letter cannot be requeued as asked; the letter stays.

    Attributes:
        job_id: whose letter it is.
    """

    def __init__(self, message: str = "", *, job_id: str = "") -> None:
        super().__init__(message)
        self.job_id = job_id


class LetterNotFound(LetterError):
    """Raised when there is no dead letter of that id, or there is none any more."""


class JobNotFound(RunnerError):
    """Raised when there is no job of that id in the queue.

    Attributes:
        job_id: the id.
    """

    def __init__(self, message: str = "", *, job_id: str = "") -> None:
        super().__init__(message)
        self.job_id = job_id


class FlowError(RunnerError):
    """Raised when a flow cannot do what it is asked for."""


class FlowRefused(FlowError):
    """Raised when the definition of a flow makes no sense; nothing of it was started.

    Attributes:
        path: the names of the nodes concerned, from the one that waits to the one it waits for.
    """

    def __init__(self, message: str = "", *, path: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.path = path


class FlowNotFound(FlowError):
    """Raised when there is no flow of that id: there never was, or it is kept no more.

    Attributes:
        flow_id: the id.
    """

    def __init__(self, message: str = "", *, flow_id: str = "") -> None:
        super().__init__(message)
        self.flow_id = flow_id


class FlowFailed(FlowError):
    """Raised in the place of the result of a flow that failed, was cancelled, or took too long.

    Its cause is the error of the first of the nodes that failed, where that is known.

    Attributes:
        flow_id: the flow.
        state: "failed", "cancelled" or "expired".
        failed: the names of nodes that failed, a hundred at most.
    """

    def __init__(
        self,
        message: str = "",
        *,
        flow_id: str = "",
        state: str = "failed",
        failed: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.flow_id = flow_id
        self.state = state
        self.failed = failed


class JobFailed(RunnerError):
    """Raised when a job ended without a result."""


class RemoteError(JobFailed):
    """Raised in the place of an exception that a task raised in a worker.

    Attributes:
        type_name: the qualified name of the remote exception's class.
        remote_traceback: the traceback as text, as the worker saw it.
    """

    def __init__(self, type_name: str, message: str, remote_traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message
        self.remote_traceback = remote_traceback

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str, str]]:
        return (type(self), (self.type_name, self.message, self.remote_traceback))


class JobCancelled(JobFailed, ArqCompatible):
    """Raised at those who wait for a job that was taken out of its queue before it ran."""


class JobReplaced(JobFailed):
    """Raised at who waits for a job whose place another took while it waited: it is gone.

    Attributes:
        job_id: the job that took it: ``client.job(error.job_id)`` waits for that one.
    """

    def __init__(self, message: str = "", *, job_id: str = "") -> None:
        super().__init__(message)
        self.job_id = job_id


class JobExpired(JobFailed, ArqCompatible):
    """Raised when a job could not start before its `expires`, or its payload is gone."""


class TooManyTries(JobFailed, ArqCompatible):
    """Raised when a job was tried `max_tries` times without success."""


class TooManyCrashes(JobFailed, ArqCompatible):
    """Raised when a job lost its worker `max_crashes` times: it is not run again."""


class ProcessDied(JobFailed, ArqCompatible):
    """Raised in the place of a job's end when the process that ran the job died.

    Another try has a new process. The jobs beside it have processes of their own.

    Attributes:
        exit_status: what it ended with; None when a signal ended it.
        signal: the number of the signal, 9 (SIGKILL) where memory ran out; None without one.
    """

    def __init__(
        self,
        message: str = "",
        *,
        exit_status: int | None = None,
        signal: int | None = None,
    ) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.signal = signal


class WriteRejected(JobFailed):
    """Raised when Postgres refused a unit of writes; nothing of the unit was kept.

    Attributes:
        sqlstate: the five-letter SQLSTATE, or "" when the value never reached Postgres.
        table: the table concerned, when known.
        constraint: the constraint that was violated, when there is one.
        detail: the server's DETAIL line.
        statement: the statement, or the operation that stood for it.
        parameters: the classes and sizes of its parameters, never their values, as in
            ``("int", "str(12)", "None")``; empty when the statement is not known for certain.
    """

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str = "",
        table: str = "",
        constraint: str = "",
        detail: str = "",
        statement: str = "",
        parameters: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate
        self.table = table
        self.constraint = constraint
        self.detail = detail
        self.statement = statement
        self.parameters = parameters


class WriterError(RunnerError):
    """Raised when a write could not be submitted or the writer cannot work."""


class UnitError(WriterError):
    """Raised at the call when an operation cannot be written down as it is."""


class LeaseLost(WriterError):
    """Raised by a commit in a job whose lease is over: another worker has the job now."""


class AttemptOver(WriterError):
    """Raised by ``ctx.db`` in a function that goes on although its job has ended without it.

    So it is with one that does not heed its time limit, or its abort: what it writes then
    belongs to nothing that could commit.
    """


class UnitChanged(UnitError):
    """Raised when a unit was submitted before with other writes, which stand.

    So it is when a job that runs again commits something else than its earlier attempt did, and
    when a unit's id was used a short while ago.

    Attributes:
        sequence: which of the job's commits it is, counted from 1; 0 outside a job.
        entry: the entry in the stream that the earlier unit has.
    """

    def __init__(self, message: str, *, sequence: int = 0, entry: str = "") -> None:
        super().__init__(message)
        self.sequence = sequence
        self.entry = entry


class ResultTooLarge(WriterError):
    """Raised when rows were too many to bring back; what wrote them is committed and stands.

    Attributes:
        entry: the unit's entry in the stream.
        counts: for each call the rows that it wrote, as in `Committed`.
        row_count: how many rows there were.
        size: their bytes.
    """

    def __init__(
        self,
        message: str,
        *,
        entry: str = "",
        counts: tuple[int | None, ...] = (),
        row_count: int = 0,
        size: int = 0,
    ) -> None:
        super().__init__(message)
        self.entry = entry
        self.counts = counts
        self.row_count = row_count
        self.size = size


class CommitTimeout(WriterError, TimeoutError):
    """Raised when a unit was not committed in time. It may still be, soon or late.

    Attributes:
        unit: the unit's id: submitted again under it, with the same writes, it is applied
            once, and gives the same answer. "" when the unit has none of its own.
    """

    def __init__(self, message: str = "", *, unit: str = "") -> None:
        super().__init__(message)
        self.unit = unit


class WriterBacklogFull(WriterError):
    """Raised when too much waits for the writer, and did so as long as the caller may wait.

    Nothing of the unit was submitted.

    Attributes:
        unit: the unit's id.
    """

    def __init__(self, message: str = "", *, unit: str = "") -> None:
        super().__init__(message)
        self.unit = unit


class WriterUnavailable(WriterError):
    """Raised when there is no database to write to, or the writer did not answer in time."""


class StoreWentBack(WriterError):
    """Raised when Redis or Postgres has lost what the other store still knows."""


class LimitError(SettingsError):
    """Raised when a limit makes no sense, such as a rate that cannot be read."""


class LimitNotFound(LimitError):
    """Raised when there is no limit of that name.

    Attributes:
        name: the name.
    """

    def __init__(self, message: str = "", *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class LimitUnavailable(RunnerError):
    """Raised in a worker when Redis refused to decide whether a job may run; it is asked again."""


class ScriptError(RunnerError):
    """Raised when a call does not fit the contract at the head of a Lua script."""


class Snooze(Exception):
    """Raise in a task to run it again later without spending a try.

    Args:
        defer: seconds or a timedelta until the next run.
    """

    def __init__(self, defer: float | timedelta) -> None:
        super().__init__(defer)
        self.defer = defer


class Cancel(Exception):
    """Raise in a task to end it for good, without a retry.

    Args:
        reason: kept in the result and in the dead letters.
    """

    def __init__(self, reason: str = "cancelled by the task") -> None:
        super().__init__(reason)
        self.reason = reason


class SoftTimeLimit(asyncio.CancelledError):
    """Raised inside a job at its soft time limit: to tidy up, and to end before the hard one.

    It is a cancellation: ``except Exception`` does not stop it, and what the job awaits is
    given up as at any cancellation. It comes once, and it may come at any line of a function
    that runs in a thread or in a process.

    Example:
        >>> @task(timeout=60, soft_timeout=50)
        ... async def export(ctx: Context, path: str) -> str:
        ...     try:
        ...         return await write(path)
        ...     except SoftTimeLimit:
        ...         return await write_the_rest_later(path)
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {near[0]!r}?" if near else ""
