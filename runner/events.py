"""What happens in a worker, told to whoever subscribes: metrics, history, alarms.

================  ===============================================================
event             when
================  ===============================================================
`WorkerStarted`   a worker has connected, and claims from now on
`JobStarted`      the function of a job is about to be called
`LeaseLost`       Redis said that somebody else has a job which runs here; its task
                  is cancelled, and a `JobEnded` with ``lost_lease`` follows
`JobEnded`        Redis confirmed how an attempt ended; once for each claimed job,
                  also for those that never started
`JobStuck`        a job ended without its function, which goes on: it did not heed its
                  cancellation, or runs in a thread, which nobody can stop
`UnitRefused`     the writer, elected in this worker, refused the writes of a job or of a
                  service; everything else was committed
`WorkerStopped`   a worker has closed, its last jobs are settled
`WorkerRecycled`  a limit of its process is reached: it is to be replaced
`ProcessVitals`   every `vitals_interval`: what the process holds
`LoopBlocked`     the event loop stands still, and why; while it does
`LoopFreed`       it turns again
`JobOverdue`      a job runs far beyond the usual time of its task
`TasksLeft`       a job has ended, and asyncio tasks of its go on
`ResourceLeft`    a socket or a connection was destroyed without being closed
`PartEvent`       the base of events of your own, which a part emits
================  ===============================================================

A callback is a plain function, called in the worker's loop: it should be quick, and hand
longer work to a task or a thread of its own. `LoopBlocked` alone comes from another thread,
because the loop stands; `ResourceLeft` from wherever the thing was destroyed. An exception in a
callback is logged, and harms nothing; only those that end a program go up.
Where nobody subscribes, an event costs one look at a flag and is not made. Making events costs
a busy worker much of its time, so what counts every job is given each end as the worker has it
(`runner.bus`), and makes no event.

A job that was claimed ends with exactly one `JobEnded`, unless the process dies or a second
signal gives it up: then the job's next claim tells, by its `crashes`.

Events are msgspec Structs, which are made in a fraction of the time of a frozen dataclass, and do
not change: ``msgspec.structs.asdict(event)`` gives the fields.

Times are Unix times in milliseconds by the worker's own clock; `due_ms` is the job's place in
the queue, by the clock of Redis or of whoever deferred it.

Example:
    >>> def count(event: Event) -> None:
    ...     if isinstance(event, JobEnded):
    ...         ENDED.labels(event.task, event.outcome.value).inc()
    >>> class WorkerSettings(runner.WorkerSettings):
    ...     subscribers = [count]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import Struct

from runner.errors import WriteRejected
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable


class WorkerStarted(Struct, frozen=True, kw_only=True):
    """A worker claims from now on.

    Attributes:
        worker: its name: host, process id and a part of its own.
        queues: what it reads, the most urgent first.
        functions: the names of what it can run.
        max_jobs: how many at once.
        burst: it ends when its queues are empty.
    """

    worker: str
    at_ms: int
    queues: tuple[str, ...]
    functions: tuple[str, ...]
    max_jobs: int
    burst: bool


class WorkerStopped(Struct, frozen=True, kw_only=True):
    """A worker has closed. The counts are arq's, since the worker was made."""

    worker: str
    at_ms: int
    jobs_complete: int
    jobs_failed: int
    jobs_retried: int


class JobStarted(Struct, frozen=True, kw_only=True):
    """The function of a job is about to be called.

    Attributes:
        attempt: the number of this try, counted from 1.
        crashes: leases of this job that were lost before.
        enqueued_ms: when it was enqueued.
        due_ms: when it was to run; what lies between and `started_ms` is the queue's delay.
        started_ms: when this worker had it.
    """

    worker: str
    queue: str
    job_id: str
    task: str
    attempt: int
    crashes: int
    enqueued_ms: int
    due_ms: float
    started_ms: int


class JobEnded(Struct, frozen=True, kw_only=True):
    """How an attempt ended, as Redis confirmed it.

    Attributes:
        task: the task's name, "<unknown>" when the payload could not be read.
        attempt: the number of this try, counted from 1.
        crashes: leases of this job that were lost before.
        outcome: what became of it. ``lost_lease`` when Redis did not take its end, whatever
            the function had done.
        is_final: no further attempt will follow.
        ran: the function was called, or its start hook; `JobStarted` precedes a call.
        committing: it succeeded, and wrote: its result is there when the writer has committed.
        has_letter: it is among the dead letters.
        delay_s: until the next try; None: the job took its old place, is parked, or over.
        enqueued_ms: when it was enqueued; 0 when the payload could not be read.
        due_ms: when it was to run.
        started_ms: when this worker had it.
        ended_ms: when its function had ended; Redis's confirmation comes later.
        error_type: the qualified name of the exception's class, or "".
        error: the exception's message, or "".
        exception: the exception itself, with its traceback: of a failure, and also of what
            will be tried again.
        limit: the limit that delayed or parked it, "" for a paused task.
    """

    worker: str
    queue: str
    job_id: str
    task: str
    attempt: int
    crashes: int
    outcome: Outcome
    is_final: bool
    ran: bool
    committing: bool
    has_letter: bool
    delay_s: float | None
    enqueued_ms: int
    due_ms: float
    started_ms: int
    ended_ms: int
    error_type: str
    error: str
    exception: BaseException | None
    limit: str = ""


class LeaseLost(Struct, frozen=True, kw_only=True):
    """Somebody else has a job that runs here: this process was stopped, or blocked, too long."""

    worker: str
    queue: str
    job_id: str
    task: str
    attempt: int
    at_ms: int


class JobStuck(Struct, frozen=True, kw_only=True):
    """A job has ended, by its time limit for example, while its function goes on.

    Attributes:
        executor: "loop" or "thread".
        where: the line at which it is, as "file:line in function", or "".
        stack: the whole stack as text.
    """

    worker: str
    queue: str
    job_id: str
    task: str
    attempt: int
    executor: str
    where: str
    stack: str
    at_ms: int


class UnitRefused(Struct, frozen=True, kw_only=True):
    """The writer, elected in this worker, refused a unit: its writes were not kept.

    Only subscribers of the worker that leads hear of it; after a takeover perhaps not, or twice.

    Attributes:
        entry: the unit's place in the stream.
        job_id: whose writes they were, "" for a service's.
        error: why, with SQLSTATE, constraint, table and statement, and no values.
    """

    worker: str
    at_ms: int
    entry: str
    job_id: str
    error: WriteRejected


class ResourceLeft(Struct, frozen=True, kw_only=True):
    """A socket or a connection was destroyed without being closed.

    Attributes:
        job_id: the job in whose context it was; "" where that is not known: the garbage collector
            found it, or the traceback of a failed job had held it.
        task: the name of its task, or "".
        attempt: the number of its try, or 0.
        what: what Python says of it.
    """

    worker: str
    job_id: str
    task: str
    attempt: int
    what: str
    at_ms: int


class WorkerRecycled(Struct, frozen=True, kw_only=True):
    """A limit of this process is reached, and a new one is to take its place.

    Attributes:
        why: which limit, in words.
        at_once: its jobs were handed back: the hard limit of memory.
    """

    worker: str
    at_ms: int
    why: str
    at_once: bool


class ProcessVitals(Struct, frozen=True, kw_only=True):
    """What a worker's process holds; what grows from one to the next is a leak.

    Attributes:
        rss: resident memory in bytes; where there is no /proc, the most it ever was.
        threads: those of Python, and those of libraries.
        files: open file descriptors: files, sockets, pipes.
        tasks: the asyncio tasks of the loop, the worker's own among them.
        jobs: attempts that have ended.
        age_s: seconds since the worker began.
    """

    worker: str
    at_ms: int
    rss: int
    threads: int
    files: int
    tasks: int
    jobs: int
    age_s: float


class LoopBlocked(Struct, frozen=True, kw_only=True):
    """Something keeps the event loop from turning, at this moment. From another thread.

    Of what holds the GIL it is told when that lets go: until then no other thread runs.

    Attributes:
        job_id: the job whose code does, or an asyncio task that it made; "" when it is no job's.
        task: the name of its task, or "".
        attempt: the number of its try, or 0.
        blocked_s: for how long by now.
        stack: what runs, as in a traceback: the innermost call last.
    """

    worker: str
    job_id: str
    task: str
    attempt: int
    blocked_s: float
    stack: str
    at_ms: int


class LoopFreed(Struct, frozen=True, kw_only=True):
    """The event loop turns again, after so many seconds; follows each `LoopBlocked`."""

    worker: str
    blocked_s: float
    at_ms: int


class JobOverdue(Struct, frozen=True, kw_only=True):
    """A job runs far beyond the usual time of its task; once for each attempt.

    Attributes:
        running_s: for how long by now.
        usual_s: what 95 of the last 100 of this task did not exceed in this process.
        where: the line at which it is, as "file:line in function"; "" of one in a process.
        stack: the whole stack as text.
    """

    worker: str
    queue: str
    job_id: str
    task: str
    attempt: int
    running_s: float
    usual_s: float
    where: str
    stack: str
    at_ms: int


class TasksLeft(Struct, frozen=True, kw_only=True):
    """A job has ended, and asyncio tasks that it made go on.

    Attributes:
        count: how many.
        tasks: the first ten: name, coroutine, and the line at which it waits.
        cancelled: they were cancelled.
    """

    worker: str
    queue: str
    job_id: str
    task: str
    attempt: int
    count: int
    tasks: tuple[str, ...]
    cancelled: bool
    at_ms: int


class PartEvent(Struct, frozen=True, kw_only=True):
    """The base of events of your own: a part emits them by ``worker.events.emit``.

    Example:
        >>> class CacheFilled(PartEvent, frozen=True, kw_only=True):
        ...     entries: int
        >>> worker.events.emit(CacheFilled(worker=worker.name, at_ms=now, entries=7))
    """

    worker: str
    at_ms: int


Event: TypeAlias = (
    WorkerStarted
    | WorkerStopped
    | JobStarted
    | JobEnded
    | JobStuck
    | LeaseLost
    | UnitRefused
    | WorkerRecycled
    | ProcessVitals
    | LoopBlocked
    | LoopFreed
    | JobOverdue
    | TasksLeft
    | ResourceLeft
    | PartEvent
)
Subscriber: TypeAlias = "Callable[[Event], Any]"


__all__ = [
    "Event",
    "JobEnded",
    "JobOverdue",
    "JobStarted",
    "JobStuck",
    "LeaseLost",
    "LoopBlocked",
    "LoopFreed",
    "PartEvent",
    "ProcessVitals",
    "ResourceLeft",
    "Subscriber",
    "TasksLeft",
    "UnitRefused",
    "WorkerRecycled",
    "WorkerStarted",
    "WorkerStopped",
]
