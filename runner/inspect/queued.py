"""A job in a queue as it is shown, and which jobs are meant."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.errors import ArgumentsError
from runner.letters.filters import Arguments, fit_arguments, name_of, task_of
from runner.tasks import Task, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta

    from runner.types import AttemptError


class JobState(enum.Enum):
    """What a job in a queue waits for."""

    QUEUED = "queued"
    """It is due: the next free worker takes it."""
    DEFERRED = "deferred"
    """Its time has not come."""
    RETRYING = "retrying"
    """It failed or lost its worker before, and waits for its next try."""
    RUNNING = "running"
    COMMITTING = "committing"
    """It has ended, and its writes wait for the writer."""
    PARKED = "parked"
    """A limit holds it back until somebody makes room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs of a queue are meant: those that fit all that is given; nothing given: all.

    Attributes:
        task: a task, or its name.
        states: what they wait for; empty: whatever it is.
        older: enqueued at least so many seconds ago.
        newer: enqueued at most so many seconds ago.
        arguments: values that arguments must have. By name they are found where they were given
            by name, and where the task is known also where they were given by place.
        known: tasks whose parameters are known, beside `task`.

    Example:
        >>> JobFilter(task="send_mail", states={JobState.RETRYING}, older=3600)
    """

    task: Task[..., Any] | str | None = None
    states: Iterable[JobState | str] = ()
    older: float | timedelta | None = None
    newer: float | timedelta | None = None
    arguments: Arguments | None = None
    known: Iterable[Task[..., Any]] = ()

    def __post_init__(self) -> None:
        given = (self.states,) if isinstance(self.states, str | JobState) else self.states
        try:
            states = frozenset(JobState(state) for state in given)
        except ValueError as exc:
            known = ", ".join(state.value for state in JobState)
            raise ArgumentsError(f"{exc}; states are {known}") from None
        object.__setattr__(self, "states", states)

    @property
    def needs_payload(self) -> bool:
        """Whether more than the state decides."""
        ages = self.older is not None or self.newer is not None
        return ages or self.task is not None or bool(self.arguments)

    @property
    def sorts_out(self) -> bool:
        """Whether some of what Redis finds may not be meant after all."""
        ages = self.older is not None or self.newer is not None
        return ages or bool(self.states) or bool(self.arguments)

    def fits(self, job: JobInfo, now_ms: int) -> bool:
        """Tell whether a job is meant."""
        if self.states and job.state not in self.states:
            return False
        if self.task is not None and job.task != name_of(self.task):
            return False
        if not self._fits_age(job.enqueued, now_ms):
            return False
        if not self.arguments:
            return True
        task = task_of(job.task, self.task, self.known)
        return fit_arguments(self.arguments, task, job.args, job.kwargs)

    def _fits_age(self, enqueued: datetime | None, now_ms: int) -> bool:
        if self.older is None and self.newer is None:
            return True
        if enqueued is None:
            return False
        age_s = now_ms / 1000 - enqueued.timestamp()
        is_old = self.older is None or age_s >= seconds(self.older)
        return is_old and (self.newer is None or age_s <= seconds(self.newer))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """A job in a queue.

    Attributes:
        job_id: its id.
        queue: the queue.
        task: its task's name, "" when it cannot be read; `error` says why.
        args: positional arguments, as plain data.
        kwargs: keyword arguments, as plain data.
        state: what it waits for.
        attempt: the number of the attempt that runs, or is next.
        crashes: how often it has lost its worker.
        due: when it may run; of a running job when its lease ends; None for no known time.
        enqueued: when it was enqueued, None when that cannot be read.
        worker: the name of the worker that runs it, where that is one of ours.
        errors: what went wrong before, the oldest first; read by `QueuedJobs.show` alone.
    """

    job_id: str
    queue: str
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: JobState
    attempt: int
    crashes: int
    due: datetime | None
    enqueued: datetime | None
    worker: str
    error: str = ""
    errors: tuple[AttemptError, ...] = ()


__all__ = ["JobFilter", "JobInfo", "JobState"]
