"""The values that the steps of an attempt hand to each other, and what they ask of a worker."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from runner.errors import WriteRejected
from runner.retry import Decision, Verdict, decide
from runner.types import Outcome
from runner.workflow import RETRIES, TIMEOUT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType

    from runner.broker import Claimed, Settlement
    from runner.bus import Bus
    from runner.codec import Codec, JobRecord
    from runner.execution.context import Context
    from runner.execution.limits import Limits
    from runner.limits import Gate, Limited
    from runner.middleware import Execute
    from runner.progress import ProgressBoard
    from runner.tasks import Task
    from runner.writer import JobCommits, ReadPool

    Frames = list[tuple[FrameType, int]]


class Function(Protocol):
    """What arq knows of a function or a cron attempt."""

    name: str
    coroutine: Any
    timeout_s: float | None
    keep_result_s: float | None
    keep_result_forever: bool | None
    max_tries: int | None


class Settles(Protocol):
    """What writes the end of an attempt down."""

    async def settle(self, settlement: Settlement, attempt: Attempt, ending: Ending, /) -> int:
        """Settle an attempt; return 1, or 0 when somebody else has the job by now."""
        ...

    def pass_in(self, settlement: Settlement, attempt: Attempt, ending: Ending, /) -> None:
        """Do the same where nothing follows, so that nobody waits for it."""
        ...

    def report(self, attempt: Attempt, ending: Ending, settled: Settlement | None, /) -> None:
        """Tell subscribers how an attempt ended."""
        ...


class Elsewhere(Protocol):
    """What runs functions outside of the event loop."""

    async def run(
        self,
        attempt: Attempt,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        starts: Callable[[], float | None],
        /,
    ) -> Any:
        """Return what the attempt's function returns, and leave its writes in the attempt.

        Args:
            attempt: the attempt.
            args: the arguments behind the context.
            kwargs: the same, by name.
            starts: called right before the function is; returns the seconds it may take.
        """
        ...


class Host(Protocol):
    """What an attempt needs of its worker; arq's names, read when they are needed."""

    name: str
    events: Bus
    functions: dict[str, Any]
    queue_name: str
    ctx: dict[Any, Any]
    codec: Codec
    reads: ReadPool | None
    progress: ProgressBoard
    history: bool
    stopping: bool
    job_timeout_s: Any
    keep_result_s: Any
    keep_result_forever: bool
    max_tries: int
    max_crashes: int
    retry_jobs: bool
    log_results: bool
    aborting_tasks: set[str]
    job_tasks: dict[str, asyncio.Task[Any]]
    around: Execute | None
    on_job_start: Any
    on_job_end: Any
    after_job_end: Any
    jobs_complete: int
    jobs_failed: int
    jobs_retried: int
    job_counter: int

    @property
    def cancel_grace_s(self) -> float:
        """How long a function has to end once it is cancelled, in seconds."""
        ...

    @property
    def gate(self) -> Gate:
        """Where limited tasks ask whether they may run."""
        ...

    @property
    def settler(self) -> Settles:
        """Where attempts end."""
        ...

    @property
    def executors(self) -> Elsewhere:
        """Where functions run that are not for the event loop."""
        ...

    def abandon(self, attempt: Attempt, frames: Frames) -> None:
        """Go on without the function of an attempt, which does not heed its cancellation."""
        ...

    def commits_of(self, attempt: Attempt) -> JobCommits:
        """Return what the attempt commits with before its end."""
        ...

    def limit_lease(self, attempt: Attempt, timeout_s: float) -> None:
        """Stop renewing the lease some time after the job's time limit."""
        ...

    def leases_are_overdue(self) -> bool:
        """Say whether leases were not renewed in time, as after SIGSTOP."""
        ...

    async def remember_try(self, claimed: Claimed, attempt: int) -> None:
        """Set the count of tries to what the enqueuer asked for, and hold the job by it."""
        ...


@dataclass(slots=True)
class Attempt:
    """One claimed job as it passes through the steps.

    Attributes:
        task: the declared task, None for a plain function.
        is_over: it was decided how it ended; what follows are hooks and the settlement.
        released: its slot is free again.
        passed_in: its settlement is under way, and nobody waits for it.
        limits: its clocks, while its function waits in the event loop, or runs in a thread.
        softened: its function was told of its soft time limit.
        goes_on: its function goes on, though the attempt has ended.
        is_abandoned: it is settled by another task than its own.
        is_discarded: no further line of its function is to run.
        is_left: it is not settled, and its lease goes on: its function runs in a thread.
        limited: its limits, None when it has none.
        given: its arguments with the results of other nodes among them, where it takes some.
        has_begun: an attempt of it has ended to wait for a flow, and spent no try.
    """

    claimed: Claimed
    started_ms: int
    record: JobRecord
    number: int = 0
    ended_ms: int = 0
    function: Function | None = None
    task: Task[..., Any] | None = None
    context: Context | None = None
    unit: bytes = b""
    lost_lease: bool = False
    timed_out: bool = False
    is_over: bool = False
    released: bool = False
    passed_in: bool = False
    limits: Limits | None = None
    softened: bool = False
    goes_on: bool = False
    is_abandoned: bool = False
    is_discarded: bool = False
    is_left: bool = False
    limited: Limited | None = None
    given: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    has_begun: bool = False

    @property
    def is_cron(self) -> bool:
        """Whether a schedule made it: arq keeps its in-progress key for a while."""
        return hasattr(self.function, "next_run")

    @property
    def traceparent(self) -> str:
        """What ties other spans to that of this attempt, "" where nothing traces."""
        return "" if self.context is None else self.context.traceparent

    @property
    def slots(self) -> bytes:
        """What it gives up when it ends: the slots of its limits."""
        return b"" if self.limited is None else self.limited.slots

    @property
    def ref(self) -> str:
        """How log lines name the job, as arq does."""
        if self.is_cron:
            return self.record.task
        return f"{self.claimed.job_id}:{self.record.task}"


class Ending(msgspec.Struct, frozen=True, eq=False):
    """What became of one attempt.

    Attributes:
        result: the value, or the exception.
        delay_s: until the next try; None: the job takes its old place in the queue, or is parked.
        limit: the limit that refused it.
    """

    outcome: Outcome
    result: Any = None
    delay_s: float | None = None
    extra: Any = None
    limit: str = ""


LIMITED = frozenset({Outcome.DELAYED, Outcome.PARKED})
"""Endings before the start, already acted on by the script that refused the attempt."""

AGAIN = frozenset({Outcome.RETRIED, Outcome.SNOOZED, Outcome.HANDED_BACK, *LIMITED})
"""Endings that are followed by another attempt."""

GIVEN_BACK = frozenset({Outcome.SNOOZED, Outcome.HANDED_BACK, *LIMITED})
"""Endings that cost no try."""

NO_LETTER = frozenset({Outcome.SUCCEEDED, Outcome.ABORTED, Outcome.LOST_LEASE, *AGAIN})
"""Endings that leave no dead letter."""


def now_ms() -> int:
    """Return the Unix time in whole milliseconds."""
    return time.time_ns() // 1_000_000


def max_tries_of(host: Host, attempt: Attempt) -> int:
    """Return how often this job may be tried."""
    options = attempt.record.options
    if options and (retries := options.get(RETRIES)) is not None:
        return int(retries) + 1
    declared = attempt.function.max_tries if attempt.function else None
    return host.max_tries if declared is None else declared


def timeout_of(host: Host, attempt: Attempt) -> float | None:
    """Return the seconds this attempt may take; None means without end."""
    options = attempt.record.options
    declared = options.get(TIMEOUT) if options else None
    if declared is None and attempt.function is not None:
        declared = attempt.function.timeout_s
    timeout: float | None = host.job_timeout_s if declared is None else declared
    return timeout


def decision_on_refusal(host: Host, attempt: Attempt, exc: BaseException | None = None) -> Decision:
    """Decide what follows when Postgres refuses the unit of a job.

    Args:
        host: the worker.
        attempt: the attempt whose unit it is.
        exc: the refusal, None before it is known: its class alone decides then.
    """
    options = attempt.task.task_options if attempt.task else None
    if options is None or not host.retry_jobs or options.on_write_error != "retry":
        return Decision(Verdict.GIVE_UP)
    policy = options.policy
    max_tries = max_tries_of(host, attempt)
    if policy.retries is None:
        policy = replace(policy, retries=max_tries - 1)
    return decide(
        WriteRejected("") if exc is None else exc,
        attempt=attempt.number,
        policy=policy,
        max_tries=max_tries,
        random=random.random(),  # noqa: S311  jitter
    )
