"""Which due times are run: on time, late, and after a downtime."""

from __future__ import annotations

from typing import Any

import pytest

from runner import every, perpetual
from runner.schedule import Cron
from runner.schedule.missed import MAX_RUNS, Runs, runs_of

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
HOURLY = Cron("0 * * * *")
TICKS = every(0.1)


def runs(trigger: Any, due: int, now: int, **rules: Any) -> Runs:
    given = {"grace_ms": None, "catch_up": "skip", "most": 100, **rules}
    return runs_of(trigger, due_ms=due, now_ms=now, **given)


@pytest.mark.parametrize(
    ("trigger", "due", "now", "rules", "expected"),
    [
        # On time, and a moment late.
        (HOURLY, HOUR, HOUR, {}, Runs((HOUR,), 2 * HOUR)),
        (HOURLY, HOUR, HOUR + MINUTE, {}, Runs((HOUR,), 2 * HOUR)),
        (TICKS, 100, 100, {}, Runs((100,), 200)),
        # A worker that was busy or killed for a moment misses nothing.
        (TICKS, 100, 499, {}, Runs((100, 200, 300, 400), 500)),
        (TICKS, 100, 2100, {}, Runs(tuple(range(100, 2101, 100)), 2200)),
        # Longer ago than the grace: missed.
        (HOURLY, HOUR, HOUR + MINUTE + 1, {}, Runs((), 2 * HOUR)),
        (HOURLY, HOUR, HOUR + 1, {"grace_ms": 0}, Runs((), 2 * HOUR)),
        (HOURLY, HOUR, HOUR + 1, {"grace_ms": 1}, Runs((HOUR,), 2 * HOUR)),
        (HOURLY, HOUR, 9 * HOUR + 1000, {}, Runs((9 * HOUR,), 10 * HOUR)),
        (TICKS, 100, 10_000, {"grace_ms": 150}, Runs((9900, 10_000), 10_100)),
        # One run for all that were missed, beside those on time.
        (HOURLY, HOUR, 9 * HOUR + 2 * MINUTE, {"catch_up": "once"}, Runs((9 * HOUR,), 10 * HOUR)),
        (
            HOURLY,
            HOUR,
            9 * HOUR + 1000,
            {"catch_up": "once"},
            Runs((8 * HOUR, 9 * HOUR), 10 * HOUR),
        ),
        (HOURLY, HOUR, HOUR + 2 * MINUTE, {"catch_up": "once"}, Runs((HOUR,), 2 * HOUR)),
        # All of them, or the last so many.
        (
            HOURLY,
            HOUR,
            4 * HOUR + 2 * MINUTE,
            {"catch_up": "all"},
            Runs((HOUR, 2 * HOUR, 3 * HOUR, 4 * HOUR), 5 * HOUR),
        ),
        (
            HOURLY,
            HOUR,
            4 * HOUR + 2 * MINUTE,
            {"catch_up": "all", "most": 2},
            Runs((3 * HOUR, 4 * HOUR), 5 * HOUR),
        ),
        # A task that decides runs once, however late, and counts from now.
        (perpetual(), 100, DAY, {}, Runs((100,), None)),
        (perpetual(otherwise=1), 100, DAY, {}, Runs((100,), DAY + 1000)),
    ],
)
def test_due_times_that_are_run(
    trigger: Any, due: int, now: int, rules: dict[str, Any], expected: Runs
) -> None:
    assert runs(trigger, due, now, **rules) == expected


def test_long_downtime_of_a_quick_schedule_is_answered_at_once() -> None:
    year = 365 * DAY
    found = runs(TICKS, 100, 100 + year, catch_up="all", most=3, grace_ms=0)
    assert found == Runs((year - 200, year - 100, year, year + 100), year + 200)


def test_last_times_of_an_uneven_schedule_are_found() -> None:
    weekdays = Cron("0 9 * * MON-FRI")
    due = weekdays.after(0)
    assert due is not None
    found = runs(weekdays, due, due + 100 * DAY, catch_up="all", most=7, grace_ms=0)
    expected = [due]
    while (at := weekdays.after(expected[-1])) is not None and at <= due + 100 * DAY:
        expected.append(at)
    assert found.due_ms == tuple(expected[-7:])


def test_many_runs_are_made_in_parts_and_none_is_left_out() -> None:
    due = 100
    made: list[int] = []
    while due <= 60_000:
        found = runs(TICKS, due, 60_000, catch_up="all", most=1000)
        assert len(found.due_ms) <= MAX_RUNS
        made += found.due_ms
        assert found.next_ms is not None
        due = found.next_ms
    assert made == list(range(100, 60_001, 100))
