"""What the book of a queue's schedules gives, and takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

    from runner.schedule.schedule import Schedule

Kind: TypeAlias = Literal["due", "postpone", "startup", "now"]


@dataclass(frozen=True, slots=True)
class DueSchedule:
    """A schedule whose due time has come.

    Attributes:
        schedule: None when it cannot be read; `error` says why.
        due_ms: the oldest due time that nobody has run.
        last_job: the id of the job before, or "".
    """

    name: str
    schedule: Schedule | None
    due_ms: int
    last_job: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the book brought back.

    Attributes:
        now_ms: Redis's time.
        again_ms: when to look again, None when nothing will be due.
        due: what this worker is to see to; empty while another one does.
    """

    now_ms: int
    again_ms: int | None
    due: list[DueSchedule]


@dataclass(frozen=True, slots=True)
class Offer:
    """Runs of one schedule, which count if nobody else was first.

    Attributes:
        schedule: what to run, None to postpone one that cannot be read.
        due_ms: the runs' due times, none to skip them.
        expected_ms: the due time that the schedule still must have.
        next_ms: its due time afterwards, None for none.
        now_ms: Redis's time of a moment ago.
    """

    kind: Kind
    name: str
    schedule: Schedule | None
    due_ms: tuple[int, ...]
    expected_ms: int
    next_ms: int | None
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleInfo:
    """A schedule and its state, as `client.schedules` shows them.

    Attributes:
        name: its name.
        source: "settings" or "api".
        schedule: its rules, None when this client cannot read them; `error` says why.
        paused: it makes no runs until it is resumed.
        next_due: when it is due next, None when it is paused or has ended.
        last_due: the last due time that was seen to.
        last_job_id: the id of its latest job, or "".
        runs: jobs it has made.
        skipped: runs left out because the one before had not ended.
    """

    name: str
    source: str
    schedule: Schedule | None
    paused: bool
    next_due: datetime | None
    last_due: datetime | None
    last_job_id: str
    runs: int
    skipped: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the live workers of a queue know.

    Attributes:
        digests: a name for each kind of worker among them.
        tasks: the tasks they run.
        schedules: the schedules in their settings.
        complete: nothing of it is missing.
    """

    digests: frozenset[str]
    tasks: frozenset[str]
    schedules: frozenset[str]
    complete: bool


__all__ = ["DueSchedule", "Fleet", "Kind", "Look", "Offer", "ScheduleInfo"]
