"""The main job: what a line of the file must be, and what one departure writes."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from jobs import departures
from jobs.departures import (
    BadRow,
    Route,
    record_departure,
    refresh_delay_report,
    validate,
    worst_routes,
)
from jobs.flights import FlightRow, load_airlines
from jobs.validation import AIRLINES
from runner import Cancel, Context
from runner.writer.units import decode_operations, parse_shape

LINE = FlightRow(
    year="2013",
    month="1",
    day="1",
    dep_time="533",
    sched_dep_time="529",
    dep_delay="4",
    arr_delay="20",
    carrier="UA",
    flight="1714",
    tailnum="N24211",
    origin="LGA",
    dest="IAH",
    air_time="227",
    distance="1416",
    time_hour="2013-01-01T10:00:00Z",
)
CANCELLED = {"dep_time": "NA", "dep_delay": "NA", "arr_delay": "NA", "air_time": "NA"}

BAD: list[tuple[dict[str, str], str]] = [
    ({"year": "NA"}, "row 7: year is missing"),
    ({"year": "213"}, "row 7: year is 213, which is not within 1987 to 2100"),
    ({"month": "13"}, "row 7: month is 13, which is not within 1 to 12"),
    ({"month": "may"}, "row 7: month is not a whole number: 'may'"),
    ({"day": "0"}, "row 7: day is 0, which is not within 1 to 31"),
    ({"month": "2", "day": "30"}, "row 7: day is 30, which 2013-02 does not have"),
    ({"sched_dep_time": ""}, "row 7: sched_dep_time is missing"),
    ({"sched_dep_time": "2517"}, "row 7: sched_dep_time is 2517, which is not within 0 to 2400"),
    ({"sched_dep_time": "560"}, "row 7: sched_dep_time is no time of day: '560'"),
    ({"dep_time": "1275"}, "row 7: dep_time is no time of day: '1275'"),
    ({"dep_time": "NA"}, "row 7: dep_time is missing, and yet dep_delay is 4"),
    ({"dep_delay": "NA"}, "row 7: dep_delay is missing, and yet dep_time is '533'"),
    ({"dep_delay": "999999"}, "row 7: dep_delay is 999999, which is not within -180 to 2880"),
    ({"dep_delay": "4.5"}, "row 7: dep_delay is not a whole number: '4.5'"),
    ({"arr_delay": "late"}, "row 7: arr_delay is not a whole number: 'late'"),
    ({"carrier": "NA"}, "row 7: carrier is missing"),
    ({"carrier": "Q"}, "row 7: carrier is not two capital letters or digits: 'Q'"),
    ({"carrier": "ZZ"}, "row 7: carrier is no airline that is known here: 'ZZ'"),
    ({"flight": "0"}, "row 7: flight is 0, which is not within 1 to 9999"),
    ({"flight": "٣"}, "row 7: flight is not a whole number: '٣'"),
    ({"flight": "9" * 30}, f"row 7: flight is not a whole number: '{'9' * 30}'"),
    ({"tailnum": "N 12"}, "row 7: tailnum is no tail number: 'N 12'"),
    ({"origin": "XXX"}, "row 7: origin is none of EWR, JFK, LGA: 'XXX'"),
    ({"dest": "Paris"}, "row 7: dest is no airport code of three letters: 'Paris'"),
    ({"dest": "LGA"}, "row 7: dest is where the flight left from: 'LGA'"),
    ({"air_time": "0"}, "row 7: air_time is 0, which is not within 1 to 1440"),
    ({"distance": "-733"}, "row 7: distance is -733, which is not within 1 to 10000"),
    ({"time_hour": "NA"}, "row 7: time_hour is missing"),
    ({"time_hour": "10:00"}, "row 7: time_hour is not an hour in UTC: '10:00'"),
    (
        {"time_hour": "2013-01-01T25:00:00Z"},
        "row 7: time_hour is not an hour in UTC: '2013-01-01T25:00:00Z' (hour must be in 0..23)",
    ),
    (
        {"time_hour": "2013-06-01T10:00:00Z"},
        "row 7: time_hour is 2013-06-01T10:00:00Z, which is no hour of 2013-01-01",
    ),
]


def written(ctx: Context) -> list[tuple[str, dict[str, Any]]]:
    """Return the table and the values of each write, in order."""
    shapes = [(parse_shape(text), values) for text, values in decode_operations(ctx.db.encode())]
    return [
        (
            f"{shape.kind} {shape.table} {shape.missing}".removesuffix(" reject"),
            dict(zip(shape.columns, values, strict=True)),
        )
        for shape, values in shapes
    ]


def test_a_good_line_becomes_a_departure() -> None:
    departure = validate(7, LINE)
    assert departure.scheduled_at == datetime(2013, 1, 1, 10, 29, tzinfo=UTC)
    assert departure.hour == datetime(2013, 1, 1, 10, tzinfo=UTC)
    assert departure.day == date(2013, 1, 1)
    assert (departure.row, departure.carrier, departure.flight) == (7, "UA", 1714)
    assert (departure.departure_delay, departure.arrival_delay) == (4, 20)
    assert not departure.cancelled
    assert not departure.late


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_line_names_its_row_and_its_field(change: dict[str, str], message: str) -> None:
    with pytest.raises(BadRow) as caught:
        validate(7, replace(LINE, **change))
    assert str(caught.value).startswith(message)
    assert caught.value.row == 7
    assert caught.value.field in change


@pytest.mark.parametrize("missing", ["NA", ""])
def test_what_may_be_missing_may_be_missing(missing: str) -> None:
    gone = replace(LINE, tailnum=missing, arr_delay=missing, air_time=missing)
    departure = validate(7, gone)
    assert (departure.tail, departure.arrival_delay, departure.air_minutes) == (None, None, None)


def test_midnight_may_be_written_as_2400() -> None:
    assert validate(7, replace(LINE, dep_time="2400")).departure_delay == 4


@pytest.mark.parametrize(("delay", "late"), [("-43", False), ("15", False), ("16", True)])
def test_late_is_more_than_fifteen_minutes(delay: str, late: bool) -> None:
    assert validate(7, replace(LINE, dep_delay=delay)).late is late


def test_a_flight_without_a_departure_time_is_cancelled() -> None:
    departure = validate(7, replace(LINE, **CANCELLED))
    assert departure.cancelled
    assert not departure.late


def test_the_airlines_are_those_of_the_file_and_of_the_schema() -> None:
    names = load_airlines()
    assert set(names) == AIRLINES
    for carrier, name in names.items():
        assert f"('{carrier}', '{name}')" in departures.schema()


async def test_a_departure_writes_itself_and_three_totals() -> None:
    ctx = Context({})
    await record_departure(ctx, 7, replace(LINE, dep_delay="20"))
    tables = written(ctx)
    assert [table for table, _ in tables] == [
        "insert departures",
        "add airlines",
        "add airport_hours insert",
        "add aeroplanes insert",
    ]
    row, airline, hour, aeroplane = (values for _, values in tables)
    assert (row["id"], row["tail"], row["departure_delay"]) == (7, "N24211", 20)
    totals = {"flights": 1, "cancelled": 0, "late": 1, "delay_minutes": 20}
    assert airline == {"carrier": "UA", "miles": 1416, **totals}
    assert hour == {"origin": "LGA", "hour": datetime(2013, 1, 1, 10, tzinfo=UTC), **totals}
    assert aeroplane == {
        "tail": "N24211",
        "flights": 1,
        "cancelled": 0,
        "miles": 1416,
        "air_minutes": 227,
    }


async def test_a_cancelled_departure_flies_no_miles() -> None:
    ctx = Context({})
    await record_departure(ctx, 7, replace(LINE, **CANCELLED))
    for table, values in written(ctx)[1:]:
        assert values["cancelled"] == 1, table
        assert values.get("miles", 0) == 0, table
        assert values.get("delay_minutes", 0) == 0, table


async def test_a_departure_without_a_tail_number_leaves_the_aeroplanes_alone() -> None:
    ctx = Context({})
    await record_departure(ctx, 7, replace(LINE, tailnum="NA"))
    assert [table for table, _ in written(ctx)][1:] == ["add airlines", "add airport_hours insert"]


async def test_a_bad_line_ends_its_job_for_good_and_writes_nothing() -> None:
    ctx = Context({})
    with pytest.raises(Cancel, match="row 7: month is 13"):
        await record_departure(ctx, 7, replace(LINE, month="13"))
    assert len(ctx.db) == 0


async def test_the_report_is_one_statement() -> None:
    ctx = Context({})
    await refresh_delay_report(ctx, date(2013, 2, 8))
    ((text, values),) = decode_operations(ctx.db.encode())
    assert parse_shape(text).kind == "execute"
    assert values == [date(2013, 2, 8)]


async def test_the_worst_routes_are_read_and_typed() -> None:
    class Reads:
        async def fetch(self, sql: str, *args: Any) -> list[dict[str, Any]]:
            assert "LIMIT $1" in sql
            assert args == (1, 10)
            return [{"origin": "EWR", "dest": "TYS", "flights": 300, "delay_minutes": 12_000}]

    class Holder:
        db = Reads()

    (route,) = await worst_routes(Holder(), 1)
    assert route == Route(origin="EWR", dest="TYS", flights=300, delay_minutes=12_000)
    assert route.mean_delay == 40.0
