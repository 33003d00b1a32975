"""The small records and enums that the modules hand to each other."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

import msgspec

R_co = TypeVar("R_co", covariant=True)

Tree: TypeAlias = "str | tuple[Tree, ...] | dict[str, Tree]"
"""The name of a node, or names nested as the results of a group, or of a flow, are."""


UNKNOWN = "<unknown>"
"""In the place of a task's name, where a job's payload was not there or could not be read."""


class Outcome(enum.Enum):
    """What became of one attempt. Decided in one place (`execution.classify`)."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRIED = "retried"
    SNOOZED = "snoozed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    ABORTED = "aborted"
    EXPIRED = "expired"
    UNKNOWN_TASK = "unknown_task"
    UNDECODABLE = "undecodable"
    TOO_MANY_TRIES = "too_many_tries"
    TOO_MANY_CRASHES = "too_many_crashes"
    LOST_LEASE = "lost_lease"
    HANDED_BACK = "handed_back"
    DELAYED = "delayed"
    PARKED = "parked"


class AttemptError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one attempt of a job went wrong.

    Attributes:
        attempt: its number, counted from 1.
        outcome: the value of its `Outcome`, or "crashed" when its worker was lost.
        error_type: the qualified name of the exception's class, "" for a crash.
        error: the exception's message.
        traceback: the traceback as text, or ""; of a long one the middle is left out.
        started_ms: when it began, Unix time in milliseconds; 0 when nobody knows.
        ended_ms: when it ended; of a crash, when it was noticed.
        worker: the name of the worker that had it.
        enqueued_ms: when the job was enqueued: a job that was requeued has several lives.
    """

    attempt: int = 0
    outcome: str = ""
    error_type: str = ""
    error: str = ""
    traceback: str = ""
    started_ms: int = 0
    ended_ms: int = 0
    worker: str = ""
    enqueued_ms: int = 0


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A job that ended for good without success.

    Attributes:
        job_id: the job's id.
        queue: the queue it came from.
        task: the task's name, or "<unknown>" when the payload could not be read.
        args: positional arguments, as plain data.
        kwargs: keyword arguments, as plain data.
        attempt: the number of the last attempt, counted from 1.
        outcome: the value of the `Outcome` that ended it.
        error_type: the qualified name of the exception's class.
        error: the exception's message.
        traceback: the remote traceback as text, or "".
        enqueued_ms: when it was enqueued, Unix time in milliseconds.
        died_ms: when it ended, Unix time in milliseconds.
        payload: the job's bytes as they were enqueued, for a requeue.
        started_ms: when the last attempt began; 0 in letters of older versions.
        worker: the name of the worker that ended it.
        requeued: how often the job had been dead before.
        errors: what went wrong before the last attempt, the oldest first, also in earlier lives:
            the first, and the last twenty. Read by ``client.dead.show`` alone.
    """

    job_id: str
    queue: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    attempt: int
    outcome: str
    error_type: str
    error: str
    traceback: str
    enqueued_ms: int
    died_ms: int
    payload: bytes = b""
    started_ms: int = 0
    worker: str = ""
    requeued: int = 0
    errors: tuple[AttemptError, ...] = ()


@dataclass(frozen=True, slots=True)
class Retention:
    """How long dead letters are kept, and how many.

    Attributes:
        keep_ms: a letter's lifetime.
        most: how many letters a queue has at most; the oldest go first.
        job_log_ms: how long the writer keeps rows of the job log; 0: it leaves them alone.
        history_jobs: how many jobs that ended each queue remembers; 0: the writer leaves the
            history alone.
    """

    keep_ms: int = 30 * 24 * 3600 * 1000
    most: int = 100_000
    job_log_ms: int = 0
    history_jobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """Counts of one queue, from Redis.

    Attributes:
        queued: jobs that wait, are deferred or run (the size of the queue's set).
        running: jobs that a worker of ours holds.
        succeeded: jobs that ended well since the counters were made.
        failed: jobs that ended for good without success.
        retried: attempts that will be followed by another.
        crashed: leases that were lost: a worker was killed, stopped, or blocked too long.
        dead: letters in the dead-letter store.
        parked: jobs of `queued` that wait for a slot of a limit, or for a paused task.
    """

    queued: int
    running: int
    succeeded: int
    failed: int
    retried: int
    crashed: int
    dead: int
    parked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterStatus:
    """The state of the writer, as it last told Redis.

    Attributes:
        leader: the name of the elected candidate, or "" when there is none.
        position: the id of the last stream entry committed, "0-0" before the first.
        backlog: entries behind the position.
        backlog_bytes: the bytes of their contents.
        lag_s: age in seconds of the oldest entry that is not committed; 0 when there is none.
        units: units committed.
        operations: operations committed.
        batches: transactions that committed units.
        rejected: units that Postgres refused.
        errors: times that an error ended a term, or kept a candidate from one: Postgres was away, a
            session was lost. To be voted out is none.
    """

    leader: str
    position: str
    backlog: int
    backlog_bytes: int
    lag_s: float
    units: int
    operations: int
    batches: int
    rejected: int
    errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a unit of writes did, now that it is committed.

    Attributes:
        entry: the id of its entry in the stream, or "" for a unit without writes.
        counts: for each call the rows that it wrote; None where that is not known: of a
            statement that does not count, or when a store lost the answer, but not the writes.
        rows: for each call that asked with ``returning`` its rows, in order; else None.
    """

    entry: str = ""
    counts: tuple[int | None, ...] = ()
    rows: tuple[list[dict[str, Any]] | None, ...] = ()


class Part(Generic[R_co]):
    """What a flow is made of, and has a result: a call, a chain, a group, a chord."""

    __slots__ = ()


class Reference:
    """Stands among the arguments of a call for the result of another node.

    No dataclass: those travel, and this does not.

    Attributes:
        nodes: whose result it is; "" of the step before in a chain.
        flow: the flow of that node, None for the step before.
    """

    __slots__ = ("flow", "nodes")

    def __init__(self, nodes: Tree, flow: object = None) -> None:
        self.nodes = nodes
        self.flow = flow

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "the result of another step travels in a flow only: start it by client.start(...)"
        )


PREVIOUS = Reference("")
"""The result of the step before."""
