"""When schedules are due: fields, intervals, and real zones where the clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from runner import every, perpetual
from runner.errors import ScheduleError
from runner.schedule import Cron, Every, Perpetual
from runner.schedule.triggers import read
from runner.schedule.zones import name_of, zone

if TYPE_CHECKING:
    from collections.abc import Iterator

MINUTE = timedelta(minutes=1)


def ms(text: str) -> int:
    """Return the Unix time of an ISO time with an offset."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def dues(trigger: Any, start: str, count: int, where: str = "UTC") -> list[str]:
    """Return the first due times after one, as local times with their offset."""
    at, found = ms(start), []
    for _ in range(count):
        at = trigger.after(at)
        found.append(datetime.fromtimestamp(at / 1000, ZoneInfo(where)).isoformat())
    return found


BERLIN = "Europe/Berlin"  # 2026-03-29 02:00 → 03:00, 2026-10-25 03:00 → 02:00


@pytest.mark.parametrize(
    ("expression", "where", "start", "expected"),
    [
        # The hour that does not exist: a fixed time in it runs once, right after it.
        (
            "30 2 * * *",
            BERLIN,
            "2026-03-27T12:00+01:00",
            ["2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"],
        ),
        (
            "0,20,40 2 * * *",
            BERLIN,
            "2026-03-28T02:40+01:00",
            ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"],
        ),
        (
            "15 30 2 * * *",
            BERLIN,
            "2026-03-28T12:00+01:00",
            ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:15+02:00"],
        ),
        # One that is due at the end of the gap anyway does not run twice.
        (
            "0 2,3 * * *",
            BERLIN,
            "2026-03-28T12:00+01:00",
            ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"],
        ),
        (
            "30 2 * * *",
            "America/New_York",
            "2026-03-07T12:00-05:00",
            ["2026-03-08T03:00:00-04:00", "2026-03-09T02:30:00-04:00"],
        ),
        # Half an hour only, at Lord Howe.
        (
            "15 2 * * *",
            "Australia/Lord_Howe",
            "2026-10-03T12:00+10:30",
            ["2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"],
        ),
        # Midnight itself is left out.
        (
            "0 0 * * *",
            "America/Sao_Paulo",
            "2018-11-03T12:00-03:00",
            ["2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00"],
        ),
        # A whole day was left out in Samoa: that is no daylight saving, nothing is made up for.
        (
            "0 12 * * *",
            "Pacific/Apia",
            "2011-12-29T00:00-10:00",
            ["2011-12-29T12:00:00-10:00", "2011-12-31T12:00:00+14:00"],
        ),
        # The hour that comes twice: a fixed time in it runs once, the first time.
        (
            "30 2 * * *",
            BERLIN,
            "2026-10-24T12:00+02:00",
            ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
        ),
        (
            "0,30 1-3 * * *",
            BERLIN,
            "2026-10-25T01:00+02:00",
            [
                "2026-10-25T01:30:00+02:00",
                "2026-10-25T02:00:00+02:00",
                "2026-10-25T02:30:00+02:00",
                "2026-10-25T03:00:00+01:00",
            ],
        ),
        (
            "0 30 2 * * *",
            BERLIN,
            "2026-10-25T02:30+02:00",
            ["2026-10-26T02:30:00+01:00"],
        ),
        # Repeated times follow elapsed time.
        (
            "*/30 * * * *",
            BERLIN,
            "2026-03-29T01:15+01:00",
            ["2026-03-29T01:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"],
        ),
        (
            "0 * * * *",
            BERLIN,
            "2026-10-25T01:30+02:00",
            ["2026-10-25T02:00:00+02:00", "2026-10-25T02:00:00+01:00", "2026-10-25T03:00:00+01:00"],
        ),
        (
            "*/20 2 * * *",
            BERLIN,
            "2026-03-28T02:40+01:00",
            ["2026-03-30T02:00:00+02:00"],
        ),
        (
            "0 * * * *",
            "Australia/Lord_Howe",
            "2026-04-05T01:30+11:00",
            ["2026-04-05T02:00:00+10:30", "2026-04-05T03:00:00+10:30"],
        ),
        # No changes at all.
        (
            "0 1 * * *",
            "Asia/Ho_Chi_Minh",
            "2026-03-28T12:00+07:00",
            ["2026-03-29T01:00:00+07:00", "2026-03-30T01:00:00+07:00"],
        ),
        # A time that exists once in years, in an hour that comes twice.
        (
            "*/30 2 25 10 */7",
            BERLIN,
            "2021-01-01T00:00+01:00",
            ["2026-10-25T02:00:00+02:00", "2026-10-25T02:30:00+02:00", "2026-10-25T02:00:00+01:00"],
        ),
    ],
)
def test_due_times_where_the_clocks_change(
    expression: str, where: str, start: str, expected: list[str]
) -> None:
    assert dues(Cron(expression, where), start, len(expected), where) == expected


CHANGES = [
    ("Europe/Berlin", "2026-03-28"),
    ("Europe/Berlin", "2026-10-24"),
    ("America/New_York", "2026-03-07"),
    ("America/New_York", "2026-10-31"),
    ("Australia/Lord_Howe", "2026-04-04"),
    ("Australia/Lord_Howe", "2026-10-03"),
    ("America/St_Johns", "2010-03-13"),  # at 00:01
    ("America/St_Johns", "2010-11-06"),
    ("Africa/Casablanca", "2026-02-14"),
    ("Antarctica/Troll", "2026-03-28"),  # by two hours
    ("Antarctica/Troll", "2026-10-24"),
    ("Pacific/Apia", "2011-12-29"),
]


@pytest.mark.parametrize(("where", "day"), CHANGES)
@pytest.mark.parametrize(
    "expression",
    [
        *("*/10 * * * *", "0 * * * *", "*/10 2 * * *", "30 */2 * * *", "*/15 1-3 * * *"),
        *("5 0 * * *", "30 2 * * *", "0,30 1-3 * * *", "0 12 * * *"),
    ],
)
def test_due_times_are_those_that_clocks_show(expression: str, where: str, day: str) -> None:
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(where))
    first = round(start.timestamp())
    found, at = [], first * 1000 - 1
    trigger = Cron(expression, where)
    while (following := trigger.after(at)) is not None and following < (first + 259_200) * 1000:
        found.append(following // 1000)
        at = following
    repeated = any(field.startswith("*") for field in expression.split()[:2])
    shown = list(clock(first, 259_200, ZoneInfo(where)))
    expected = by_elapsed_time(expression, shown) if repeated else by_wall(expression, shown)
    assert found == expected


def clock(first: int, length: int, where: ZoneInfo) -> Iterator[tuple[int, datetime]]:
    """Yield what a clock shows, minute by minute."""
    for second in range(first, first + length, 60):
        yield second, datetime.fromtimestamp(second, where).replace(tzinfo=None)


def fits(expression: str, local: datetime) -> bool:
    return next(CronSim(expression, local - timedelta(seconds=1))) == local


def by_elapsed_time(expression: str, shown: list[tuple[int, datetime]]) -> list[int]:
    return [second for second, local in shown if fits(expression, local)]


def by_wall(expression: str, shown: list[tuple[int, datetime]]) -> list[int]:
    """Look at each time of the wall clock once; those left out count at the end of the gap."""
    found, seen, before = [], set(), shown[0][1] - MINUTE
    for second, local in shown:
        times = [local] if local not in seen else []
        if MINUTE < local - before < timedelta(hours=3):
            missing = (local - before) // MINUTE
            times += [before + MINUTE * step for step in range(1, missing)]
        if any(fits(expression, time) for time in times):
            found.append(second)
        seen.add(local)
        before = local
    return found


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        ("*/15 * * * * *", "2026-01-01T00:00:50+00:00", "2026-01-01T00:01:00+00:00"),
        ("5,10 0 12 * * MON", "2026-01-01T00:00+00:00", "2026-01-05T12:00:05+00:00"),
        ("0 9 * * MON-FRI", "2026-01-02T09:00+00:00", "2026-01-05T09:00:00+00:00"),
        ("0 0 13 * FRI", "2026-01-01T12:00+00:00", "2026-01-02T00:00:00+00:00"),
        ("0 0 L * *", "2026-02-01T00:00+00:00", "2026-02-28T00:00:00+00:00"),
        ("0 0 * * MON#2", "2026-02-01T00:00+00:00", "2026-02-09T00:00:00+00:00"),
        ("0 0 29 2 *", "2026-02-01T00:00+00:00", "2028-02-29T00:00:00+00:00"),
        ("@daily", "2026-02-01T00:00+00:00", "2026-02-02T00:00:00+00:00"),
        ("@Hourly", "2026-02-01T00:00+00:00", "2026-02-01T01:00:00+00:00"),
    ],
)
def test_expression_of_five_or_six_fields(expression: str, start: str, expected: str) -> None:
    assert dues(Cron(expression), start, 1) == [expected]


def test_next_due_time_is_later_by_whatever_little() -> None:
    trigger = Cron("* * * * * *")
    assert [trigger.after(at) for at in (999, 1000, 1001, 1999)] == [1000, 2000, 2000, 2000]
    late = Cron("* * * * * *", delay_ms=123)
    assert [late.after(at) for at in (122, 123, 1122, 1123)] == [123, 1123, 1123, 2123]


def test_both_days_must_fit_when_asked_for() -> None:
    trigger = Cron("0 0 13 * 5", both_days=True)
    assert dues(trigger, "2026-01-01T00:00+00:00", 1) == ["2026-02-13T00:00:00+00:00"]


def test_interval_counts_from_1970_whoever_asks() -> None:
    assert [every(0.25).after(at) for at in (0, 249, 250, 1_000_001)] == [250, 250, 500, 1_000_250]
    assert every(hours=6).after(ms("2026-01-01T05:00+00:00")) == ms("2026-01-01T06:00+00:00")
    assert every(minutes=1.5) == Every(90_000)


def test_perpetual_trigger_has_a_next_time_only_when_told() -> None:
    assert perpetual().after(5) is None
    assert perpetual(otherwise=timedelta(seconds=1)).after(5) == 1005


@pytest.mark.parametrize("trigger", [Cron("5 4 * * *", "+05:30", 7, True), every(3), perpetual()])
def test_trigger_is_read_as_it_was_written(trigger: Any) -> None:
    assert read(trigger.fields()) == trigger


@pytest.mark.parametrize("fields", [[], ["cron"], ["every", "1"], ["later", 1], ["every", 1]])
def test_fields_that_are_no_trigger_are_refused(fields: list[Any]) -> None:
    with pytest.raises(ScheduleError):
        read(fields)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cron("* * * *"), "wrong number of fields"),
        (lambda: Cron("61 * * * *"), "bad minute"),
        (lambda: Cron("61 * * * * *"), "bad second"),
        (lambda: Cron("0 0 30 2 *"), "bad day-of-month"),
        (lambda: Cron("* * */20 * 1L"), "is never due"),
        (lambda: Cron("0 0 * * *", "Europe/Zurish"), "did you mean 'Europe/Zurich'"),
        (lambda: Cron("0 0 * * *", "../etc/passwd"), "there is no time zone"),
        (lambda: Cron("0 0 * * *", "+25:00"), "there is no time zone"),
        (lambda: every(0.09), "0.1 s at least and ten years at most, not 0.09"),
        (lambda: every(float("nan")), "a number of seconds"),
        (lambda: perpetual(otherwise=0), "0.1 s at least"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        make()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (UTC, "UTC"),
        (ZoneInfo("Asia/Ho_Chi_Minh"), "Asia/Ho_Chi_Minh"),
        (timezone(timedelta(hours=-3, minutes=-30)), "-03:30"),
        (timezone(timedelta(hours=5, minutes=30)), "+05:30"),
    ],
)
def test_zone_has_a_name_under_which_it_is_found(given: Any, name: str) -> None:
    assert name_of(given) == name
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert moment.astimezone(zone(name)).isoformat() == moment.astimezone(given).isoformat()


def test_zone_of_this_machine_is_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", ":America/St_Johns")
    assert name_of(None) == "America/St_Johns"
    monkeypatch.setenv("TZ", "nonsense")
    zone(name_of(None))


def test_perpetual_and_interval_say_what_they_are() -> None:
    shown = [str(trigger) for trigger in (every(0.25), Perpetual(), Perpetual(1500))]
    assert shown == ["every 0.25 s", "as its task decides", "as its task decides, or after 1.5 s"]
