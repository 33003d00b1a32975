"""The values that the steps of an attempt hand to each other, and what they ask of a worker."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from runner.types import Outcome

if TYPE_CHECKING:
    import asyncio

    from runner.broker import Claimed, Settlement
    from runner.codec import Codec, JobRecord
    from runner.events import Bus
    from runner.execution.context import Context
    from runner.middleware import Execute
    from runner.tasks import Task
    from runner.writer import JobCommits, ReadPool


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


class Host(Protocol):
    """What an attempt needs of its worker; arq's names, read when they are needed."""

    name: str
    events: Bus
    functions: dict[str, Any]
    queue_name: str
    ctx: dict[Any, Any]
    codec: Codec
    reads: ReadPool | None
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
    def settler(self) -> Settles:
        """Where attempts end."""
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

    @property
    def is_cron(self) -> bool:
        """Whether a schedule made it: arq keeps its in-progress key for a while."""
        return hasattr(self.function, "next_run")

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
        delay_s: until the next try; None: the job takes its old place in the queue.
    """

    outcome: Outcome
    result: Any = None
    delay_s: float | None = None
    extra: Any = None


AGAIN = frozenset({Outcome.RETRIED, Outcome.SNOOZED, Outcome.HANDED_BACK})
"""Endings that are followed by another attempt."""

GIVEN_BACK = frozenset({Outcome.SNOOZED, Outcome.HANDED_BACK})
"""Endings that cost no try."""

NO_LETTER = frozenset({Outcome.SUCCEEDED, Outcome.ABORTED, Outcome.LOST_LEASE, *AGAIN})
"""Endings that leave no dead letter."""


def now_ms() -> int:
    """Return the Unix time in whole milliseconds."""
    return time.time_ns() // 1_000_000


def max_tries_of(host: Host, attempt: Attempt) -> int:
    """Return how often this job may be tried."""
    declared = attempt.function.max_tries if attempt.function else None
    return host.max_tries if declared is None else declared


def timeout_of(host: Host, attempt: Attempt) -> float | None:
    """Return the seconds this attempt may take; None means without end."""
    declared = attempt.function.timeout_s if attempt.function else None
    timeout: float | None = host.job_timeout_s if declared is None else declared
    return timeout


def delay_after_refusal(host: Host, attempt: Attempt) -> float | None:
    """Return the seconds until a job is tried again whose unit was refused, None to give it up."""
    if attempt.task is None or not host.retry_jobs:
        return None
    options = attempt.task.task_options
    if options.on_write_error != "retry" or attempt.number >= max_tries_of(host, attempt):
        return None
    return options.policy.delay(attempt=attempt.number, random=random.random())  # noqa: S311  jitter
