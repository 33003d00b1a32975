"""Compare every row of the database with sums made from the file, here, in plain Python.

The sums are made from the text of the file and share no code with the job: a mistake in the
job's reading of a line would show as a difference.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from fractions import Fraction
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from jobs.departures import Route
from jobs.flights import MISSING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import asyncpg

    from jobs.demo.damage import Damaged
    from jobs.flights import Flight, FlightRow
    from runner.types import DeadLetter

Key = tuple[Any, ...]
Row = tuple[Any, ...]

LATE = 15  # minutes; said again here on purpose, see above
AT_ONCE = 20_000
PARTS = ("flights", "cancelled", "late", "delay_minutes", "miles", "air_minutes")

_DEPARTURE = (
    *("scheduled_at", "day", "carrier", "flight", "tail", "origin", "dest", "miles"),
    *("departure_delay", "arrival_delay", "air_minutes"),
)
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "departures": (("id",), _DEPARTURE),
    "airlines": (("carrier",), ("flights", "cancelled", "late", "delay_minutes", "miles")),
    "airport_hours": (("origin", "hour"), ("flights", "cancelled", "late", "delay_minutes")),
    "aeroplanes": (("tail",), ("flights", "cancelled", "miles", "air_minutes")),
    "delay_report": (("day",), ("flights", "cancelled", "late", "delay_minutes")),
}
"""Of each table the columns that name a row, and the columns that are compared."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is not what the file says."""

    table: str
    key: str
    column: str
    expected: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.table} {self.key}: {self.column} is {self.found}, not {self.expected}"


@dataclass(slots=True)
class Expected:
    """What the database has to hold: for each table the rows by their keys."""

    tables: dict[str, dict[Key, Row]] = field(default_factory=dict)
    delays: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)


def expect(flights: Iterable[Flight]) -> Expected:
    """Sum the lines of the file up."""
    rows: dict[Key, Row] = {}
    sums: dict[str, defaultdict[Key, list[int]]] = {
        name: defaultdict(lambda: [0] * len(PARTS)) for name in TABLES if name != "departures"
    }
    routes: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for row, line in flights:
        rows[(row,)] = _departure(line)
        parts = _parts(line)
        for name, key in _keys(line):
            total = sums[name][key]
            for index, part in enumerate(parts):
                total[index] += part
        if line.dep_delay != MISSING:
            routes[line.origin, line.dest].append(int(line.dep_delay))
    return Expected(
        tables={"departures": rows} | {name: _rows(name, groups) for name, groups in sums.items()},
        delays={route: (len(delays), sum(delays)) for route, delays in routes.items()},
    )


def _keys(line: FlightRow) -> Iterator[tuple[str, Key]]:
    """Yield the rows of totals that a line belongs to."""
    yield "airlines", (line.carrier,)
    yield "airport_hours", (line.origin, datetime.fromisoformat(line.time_hour))
    yield "delay_report", (_day(line),)
    if line.tailnum != MISSING:
        yield "aeroplanes", (line.tailnum,)


def _rows(table: str, groups: Mapping[Key, list[int]]) -> dict[Key, Row]:
    pick = [PARTS.index(column) for column in TABLES[table][1]]
    return {key: tuple(total[index] for index in pick) for key, total in groups.items()}


def _departure(line: FlightRow) -> Row:
    hour = datetime.fromisoformat(line.time_hour)
    return (
        hour + timedelta(minutes=int(line.sched_dep_time) % 100),
        _day(line),
        line.carrier,
        int(line.flight),
        None if line.tailnum == MISSING else line.tailnum,
        line.origin,
        line.dest,
        int(line.distance),
        _minutes(line.dep_delay),
        _minutes(line.arr_delay),
        _minutes(line.air_time),
    )


def _parts(line: FlightRow) -> tuple[int, ...]:
    """Return what a line adds to each of `PARTS`."""
    left = line.dep_time != MISSING
    delay = int(line.dep_delay) if left else 0
    return (
        1,
        int(not left),
        int(delay > LATE),
        delay,
        int(line.distance) if left else 0,
        _minutes(line.air_time) or 0,
    )


def _day(line: FlightRow) -> date:
    return date(int(line.year), int(line.month), int(line.day))


def _minutes(text: str) -> int | None:
    return None if text == MISSING else int(text)


async def differences(
    connection: asyncpg.Connection[asyncpg.Record],
    expected: Expected,
    tables: Sequence[str] = tuple(TABLES),
) -> list[Difference]:
    """Compare every row of the tables; rows too many and rows missing are differences too."""
    found: list[Difference] = []
    for table in tables:
        found += await _compare_table(connection, table, expected.tables[table])
    return found


async def _compare_table(
    connection: asyncpg.Connection[asyncpg.Record],
    table: str,
    expected: Mapping[Key, Row],
) -> list[Difference]:
    names, columns = TABLES[table]
    sql = f"SELECT {', '.join(names + columns)} FROM {table}"  # noqa: S608  names of ours
    left = dict(expected)
    found: list[Difference] = []
    async with connection.transaction(readonly=True):
        cursor = await connection.cursor(sql)
        while records := await cursor.fetch(AT_ONCE):
            for record in records:
                values = tuple(record)
                key, row = values[: len(names)], values[len(names) :]
                if (wanted := left.pop(key, None)) != row:
                    found += _compare_row(table, key, wanted, row)
    return found + [Difference(table, _text(key), "the row", "there", "missing") for key in left]


def _compare_row(table: str, key: Key, wanted: Row | None, row: Row) -> list[Difference]:
    if wanted is None:
        if table == "airlines" and not any(row):  # it has a row from the start, with no flights
            return []
        return [Difference(table, _text(key), "the row", "absent", "there")]
    pairs = zip(TABLES[table][1], wanted, row, strict=True)
    return [Difference(table, _text(key), name, a, b) for name, a, b in pairs if a != b]


def _text(key: Key) -> str:
    return " ".join(
        f"{part:%Y-%m-%d %H:%M}Z" if isinstance(part, datetime) else str(part) for part in key
    )


def wrong_letters(letters: Iterable[DeadLetter], damaged: Iterable[Damaged]) -> list[Difference]:
    """Compare the dead letters with the damaged lines: each refused by row and field."""
    errors = {_row_of(letter): letter.error for letter in letters}
    found: list[Difference] = []
    for line in damaged:
        start = f"row {line.flight.row}: {line.field} "
        error = errors.pop(line.flight.row, "absent")
        if not error.startswith(start):
            found.append(Difference("dead letters", str(line.flight.row), "error", start, error))
    return found + [
        Difference("dead letters", str(row), "the letter", "absent", error)
        for row, error in errors.items()
    ]


def _row_of(letter: DeadLetter) -> object:
    return letter.args[0] if letter.args else letter.task


def wrong_routes(
    routes: Sequence[Route],
    expected: Expected,
    *,
    limit: int,
    at_least: int,
) -> list[Difference]:
    """Compare the worst routes with those of the file, in order."""
    ranking = sorted(
        (-Fraction(delay, flights), origin, dest, flights, delay)
        for (origin, dest), (flights, delay) in expected.delays.items()
        if flights >= at_least
    )
    wanted = [
        Route(origin, dest, flights, delay) for _, origin, dest, flights, delay in ranking[:limit]
    ]
    pairs = enumerate(zip_longest(wanted, routes), start=1)
    return [
        Difference("worst routes", f"no. {place}", "the route", right, found)
        for place, (right, found) in pairs
        if right != found
    ]
