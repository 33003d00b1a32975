"""When a schedule is due: a cron expression, an interval, or as its task decides.

A trigger is a pure value: `after(ms)` returns the next due time, so that every worker finds the
same ones. Times are Unix times in whole milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from cronsim import CronSim, CronSimError

from runner.errors import ScheduleError
from runner.schedule.zones import change_between, offset_at, zone
from runner.tasks import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

LEAST_INTERVAL_MS = 100
MOST_INTERVAL_MS = 10 * 366 * 24 * 3_600_000
NEAR_S = 2 * 86_400
"""A time in which the clocks change once at most, and by less."""
LARGEST_GAP_S = 3 * 3600
"""Clocks put forward by as much or more are a new time, not daylight saving: nothing runs late."""

FIVE_FIELDS = 5
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  local time without a zone is counted from it
_SHORTHANDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


@dataclass(frozen=True, slots=True)
class Cron:
    """The times of a cron expression in a time zone, by the rules of Vixie's cron.

    Five fields are minute, hour, day of month, month and day of week; with six, the first is
    the second. ``*``, lists, ranges, steps, names (``MON``, ``JAN``), ``L`` (last day),
    ``5L`` (last Friday), ``MON#2`` (second Monday) and shorthands such as ``@daily`` are known.
    Where both days are given, either of them will do.

    Where clocks are put forward or back:

    - **Fixed times** (no field from second to hour begins with ``*``) follow the wall clock. A
      time in the hour that does not exist runs once, right after that hour; several in it run
      once together. A time in the hour that comes twice runs once, the first time.
    - **Repeated times** (one of these fields begins with ``*``) follow elapsed time: nothing
      in the hour that does not exist, and both passes of the hour that comes twice.

    Attributes:
        expression: the fields.
        timezone: a name such as "Europe/Zurich", or an offset such as "+05:30".
        delay_ms: how much later than the full second; arq's crons are due at .123 s.
        both_days: day of month and day of week must both fit, as in arq's keyword form.
    """

    expression: str
    timezone: str = "UTC"
    delay_ms: int = 0
    both_days: bool = False

    def __post_init__(self) -> None:
        zone(self.timezone)
        try:
            found = next(self._local_times(_EPOCH.replace(year=2024)), None)
        except CronSimError as exc:
            raise ScheduleError(
                f"cannot read the cron expression {self.expression!r}: {str(exc).lower()}; "
                "five fields are minute, hour, day of month, month, day of week, and a sixth "
                "in front is the second",
            ) from None
        if found is None:
            raise ScheduleError(f"the cron expression {self.expression!r} is never due")

    def __str__(self) -> str:
        return self.expression

    def after(self, ms: int) -> int | None:
        """Return the first due time later than this one, None when there is none."""
        second = (ms - self.delay_ms) // 1000
        where = zone(self.timezone)
        if where is UTC:
            found = next(self._seconds(second, 0), None)
        elif self._is_repeated:
            found = self._by_elapsed_time(second, where)
        else:
            found = self._by_the_wall_clock(second, where)
        return None if found is None else found * 1000 + self.delay_ms

    def fields(self) -> list[Any]:
        """Return what `read` makes the trigger of."""
        return ["cron", self.expression, self.timezone, self.delay_ms, self.both_days]

    @property
    def _fields(self) -> list[str]:
        text = _SHORTHANDS.get(self.expression.strip().lower(), self.expression)
        parts = text.split()
        return ["0", *parts] if len(parts) == FIVE_FIELDS else parts

    @property
    def _is_repeated(self) -> bool:
        return any(field.startswith("*") for field in self._fields[:3])

    def _local_times(self, start: datetime) -> Iterator[datetime]:
        """Yield the local times after one, without a zone."""
        # The library counts in local time without a zone here: its own rule for changes of
        # the clocks knows five fields only.
        times = CronSim(" ".join(self._fields), start)
        if self.both_days:
            times.day_and = True
        return iter(times)

    def _seconds(self, second: int, offset: int) -> Iterator[int]:
        """Yield the due Unix times after one, as if the offset never changed."""
        start = _EPOCH + timedelta(seconds=second + offset)
        for local in self._local_times(start):
            yield _count(local) - offset

    def _by_elapsed_time(self, second: int, where: tzinfo) -> int | None:
        offset = offset_at(second, where)
        while True:
            found = next(self._seconds(second, offset), None)
            if found is None:
                return None
            near = min(found, second + NEAR_S)
            if offset_at(near, where) != offset:
                change = change_between(second, near, where, offset=offset)
                second, offset = change - 1, offset_at(change, where)
            elif near == found:
                return found
            else:
                # Nothing is due until then; the last days are looked at with their own offset.
                second = found - NEAR_S
                offset = offset_at(second, where)

    def _by_the_wall_clock(self, second: int, where: tzinfo) -> int | None:
        local = _EPOCH + timedelta(seconds=second + offset_at(second, where))
        for candidate in self._local_times(local):
            found = _first_instant(candidate, where)
            if found is not None and found > second:
                return found
        return None


@dataclass(frozen=True, slots=True)
class Every:
    """Times that follow each other at a fixed interval, counted from 1970; see `every`."""

    interval_ms: int

    def __post_init__(self) -> None:
        _check_length("an interval", self.interval_ms)

    def __str__(self) -> str:
        return f"every {self.interval_ms / 1000:g} s"

    def after(self, ms: int) -> int | None:
        """Return the first due time later than this one."""
        return (ms // self.interval_ms + 1) * self.interval_ms

    def fields(self) -> list[Any]:
        """Return what `read` makes the trigger of."""
        return ["every", self.interval_ms]


@dataclass(frozen=True, slots=True)
class Perpetual:
    """Times that the task decides on, each in the run before: see `runner.schedule.perpetual`.

    Attributes:
        otherwise_ms: how long after a due time the next one is when the task does not say;
            None: it must.
    """

    otherwise_ms: int | None = None

    def __post_init__(self) -> None:
        if self.otherwise_ms is not None:
            _check_length("otherwise", self.otherwise_ms)

    def __str__(self) -> str:
        if self.otherwise_ms is None:
            return "as its task decides"
        return f"as its task decides, or after {self.otherwise_ms / 1000:g} s"

    def after(self, ms: int) -> int | None:
        """Return the next due time when the task does not decide."""
        return None if self.otherwise_ms is None else ms + self.otherwise_ms

    def fields(self) -> list[Any]:
        """Return what `read` makes the trigger of."""
        return ["perpetual", self.otherwise_ms]


Trigger: TypeAlias = "Cron | Every | Perpetual"


def every(seconds: float = 0, *, minutes: float = 0, hours: float = 0) -> Every:
    """Return an interval of at least 0.1 s.

    Due times are multiples of it since 1970, so all workers agree on them: ``every(hours=6)``
    is due at 0, 6, 12 and 18 o'clock UTC.

    Example:
        >>> cron_jobs = [cron(poll_sensor, every(0.25)), cron(clean_up, every(hours=6))]
        >>> [str(job.trigger) for job in cron_jobs]
        ['every 0.25 s', 'every 21600 s']

    Raises:
        ScheduleError: it is shorter than 0.1 s, or no number.
    """
    return Every(_milliseconds(seconds + minutes * 60 + hours * 3600, "an interval"))


def perpetual(*, otherwise: float | timedelta | None = None) -> Perpetual:
    """Return the trigger of a task that decides its own next run, by `Context.reschedule`.

    Its first run is due when the schedule is made. A run whose worker is killed runs again,
    and decides then. After a run that ends without a decision, also by an error, the next
    one is due `otherwise` seconds after it began; without that, it was the last. A run waits
    until the one before has ended.

    Example:
        >>> @task
        ... async def crawl(ctx: Context, site: str) -> None:
        ...     found = await look(site)
        ...     await ctx.reschedule(5 if found else 300)  # None would end it
        >>> cron_jobs = [cron(crawl, perpetual(otherwise=600), args=("example.org",))]
        >>> str(cron_jobs[0].trigger)
        'as its task decides, or after 600 s'

    Raises:
        ScheduleError: `otherwise` is shorter than 0.1 s.
    """
    if otherwise is None:
        return Perpetual()
    return Perpetual(_milliseconds(seconds(otherwise), "otherwise"))


def read(fields: list[Any]) -> Trigger:
    """Return the trigger of what its `fields` returned; raise `ScheduleError`."""
    match fields:
        case ["cron", str(expression), str(where), int(delay_ms), bool(both_days)]:
            return Cron(expression, where, delay_ms, both_days)
        case ["every", int(interval_ms)]:
            return Every(interval_ms)
        case ["perpetual", (int() | None) as otherwise_ms]:
            return Perpetual(otherwise_ms)
    raise ScheduleError(f"no trigger: {fields!r}")


def _check_length(name: str, length_ms: int) -> None:
    if not LEAST_INTERVAL_MS <= length_ms <= MOST_INTERVAL_MS:
        limits = f"{LEAST_INTERVAL_MS / 1000} s at least and ten years at most"
        raise ScheduleError(f"{name} takes {limits}, not {length_ms / 1000:g} s")


def _milliseconds(given: Any, name: str) -> int:
    if not isinstance(given, int | float) or not math.isfinite(given):
        raise ScheduleError(f"{name} takes a number of seconds, not {given!r}")
    return round(given * 1000)


def _count(local: datetime) -> int:
    """Return the seconds since 1970 of a local time, as if it were UTC."""
    return round((local - _EPOCH).total_seconds())


def _first_instant(local: datetime, where: tzinfo) -> int | None:
    """Return the Unix time at which clocks show a local time first.

    Of a time that they leave out it is the end of the gap, None when that is hours away.
    """
    count = _count(local)
    early, late = (count - _offset_of(local.replace(fold=fold, tzinfo=where)) for fold in (1, 0))
    if early >= late:  # shown once; or twice, and then fold=0 is the first time
        return late
    if late - early >= LARGEST_GAP_S:
        return None
    return change_between(early, late, where, offset=offset_at(early, where))


def _offset_of(moment: datetime) -> int:
    ahead = moment.utcoffset()
    assert ahead is not None  # the datetime has a zone
    return int(ahead.total_seconds())
