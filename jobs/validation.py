"""Turn a line of the file into a departure, or say exactly what is wrong with it.

Nothing here does I/O: the same line gives the same departure or the same error, so a bad
line is never worth a second try.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

from jobs.flights import MISSING

if TYPE_CHECKING:
    from jobs.flights import FlightRow

AIRLINES = frozenset(
    {"9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL"}
    | {"HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"},
)
"""The sixteen airlines of the file; `schema.sql` has a row for each."""

ORIGINS = frozenset({"EWR", "JFK", "LGA"})
LATE_MINUTES = 15
"""A departure counts as late when it left more than so many minutes after its time."""

YEARS = (1987, 2100)  # the Bureau's records begin in October 1987
DELAY_MINUTES = (-180, 2880)  # a flight two days late is recorded under another day
AIR_MINUTES = (1, 1440)
MILES = (1, 10_000)
FLIGHT_NUMBERS = (1, 9999)
TIME_ZONE_HOURS = timedelta(hours=14)  # local days and UTC hours differ by no more

_WHOLE = re.compile(r"-?[0-9]{1,9}")
_CARRIER = re.compile(r"[A-Z0-9]{2}")
_AIRPORT = re.compile(r"[A-Z]{3}")
_TAIL = re.compile(r"[A-Z0-9]{2,6}")
_HOUR = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:00:00Z")


class BadRow(ValueError):  # noqa: N818  the name says what happened
    """Raised when a line of the file has a missing or an absurd field.

    Attributes:
        row: the number of the line.
        field: the name of the column.
        problem: what is wrong with it.
    """

    def __init__(self, row: int, field: str, problem: str) -> None:
        super().__init__(f"row {row}: {field} {problem}")
        self.row = row
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A departure that makes sense.

    Attributes:
        row: the number of its line in the file.
        scheduled_at: when it should have left, UTC.
        hour: the hour of that.
        day: the day of that in New York.
        carrier: the airline.
        flight: the flight's number.
        tail: the aeroplane, None when it is not known.
        origin: the airport it left from.
        dest: the airport it was bound for.
        miles: the distance between the two.
        departure_delay: minutes, None when it was cancelled.
        arrival_delay: minutes, None when it was cancelled or landed elsewhere.
        air_minutes: time in the air, None when it is not known.
    """

    row: int
    scheduled_at: datetime
    hour: datetime
    day: date
    carrier: str
    flight: int
    tail: str | None
    origin: str
    dest: str
    miles: int
    departure_delay: int | None
    arrival_delay: int | None
    air_minutes: int | None

    @property
    def cancelled(self) -> bool:
        """Whether it never left."""
        return self.departure_delay is None

    @property
    def late(self) -> bool:
        """Whether it left late."""
        return self.departure_delay is not None and self.departure_delay > LATE_MINUTES


def validate(row: int, fields: FlightRow) -> Departure:
    """Return the departure that the line describes.

    Raises:
        BadRow: a field is missing or absurd; the first one found is named.
    """
    line = _Line(row)
    day = line.day(fields)
    hour = line.hour(fields, day)
    delay = line.departure_delay(fields)
    return Departure(
        row=row,
        scheduled_at=hour + timedelta(minutes=line.clock("sched_dep_time", fields.sched_dep_time)),
        hour=hour,
        day=day,
        carrier=line.carrier(fields.carrier),
        flight=line.whole("flight", fields.flight, FLIGHT_NUMBERS),
        tail=line.tail(fields.tailnum),
        origin=line.origin(fields.origin),
        dest=line.dest(fields),
        miles=line.whole("distance", fields.distance, MILES),
        departure_delay=delay,
        arrival_delay=line.whole_or_none("arr_delay", fields.arr_delay, DELAY_MINUTES),
        air_minutes=line.whole_or_none("air_time", fields.air_time, AIR_MINUTES),
    )


class _Line:
    """The checks, each knowing which line it is about."""

    __slots__ = ("row",)

    def __init__(self, row: int) -> None:
        self.row = row

    def bad(self, field: str, problem: str) -> NoReturn:
        raise BadRow(self.row, field, problem)

    def present(self, field: str, text: str) -> str:
        if text in ("", MISSING):
            self.bad(field, "is missing")
        return text

    def whole(self, field: str, text: str, bounds: tuple[int, int]) -> int:
        if _WHOLE.fullmatch(self.present(field, text)) is None:
            self.bad(field, f"is not a whole number: {text!r}")
        value = int(text)
        if not bounds[0] <= value <= bounds[1]:
            self.bad(field, f"is {value}, which is not within {bounds[0]} to {bounds[1]}")
        return value

    def whole_or_none(self, field: str, text: str, bounds: tuple[int, int]) -> int | None:
        return None if text in ("", MISSING) else self.whole(field, text, bounds)

    def day(self, fields: FlightRow) -> date:
        year = self.whole("year", fields.year, YEARS)
        month = self.whole("month", fields.month, (1, 12))
        day = self.whole("day", fields.day, (1, 31))
        try:
            return date(year, month, day)
        except ValueError:
            self.bad("day", f"is {day}, which {year}-{month:02d} does not have")

    def hour(self, fields: FlightRow, day: date) -> datetime:
        text = self.present("time_hour", fields.time_hour)
        if _HOUR.fullmatch(text) is None:
            self.bad("time_hour", f"is not an hour in UTC: {text!r}")
        try:
            hour = datetime.fromisoformat(text)
        except ValueError as exc:
            self.bad("time_hour", f"is not an hour in UTC: {text!r} ({exc})")
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        if not midnight <= hour + TIME_ZONE_HOURS <= midnight + 2 * TIME_ZONE_HOURS + _A_DAY:
            self.bad("time_hour", f"is {text}, which is no hour of {day}")
        return hour

    def clock(self, field: str, text: str) -> int:
        """Return the minutes past the hour of a local HMM or HHMM."""
        hour, minute = divmod(self.whole(field, text, (0, 2400)), 100)
        if minute >= 60 or (hour == 24 and minute):  # noqa: PLR2004  a clock
            self.bad(field, f"is no time of day: {text!r}")
        return minute

    def departure_delay(self, fields: FlightRow) -> int | None:
        delay = self.whole_or_none("dep_delay", fields.dep_delay, DELAY_MINUTES)
        if fields.dep_time in ("", MISSING):
            if delay is not None:
                self.bad("dep_time", f"is missing, and yet dep_delay is {delay}")
            return None
        self.clock("dep_time", fields.dep_time)
        if delay is None:
            self.bad("dep_delay", f"is missing, and yet dep_time is {fields.dep_time!r}")
        return delay

    def carrier(self, text: str) -> str:
        if _CARRIER.fullmatch(self.present("carrier", text)) is None:
            self.bad("carrier", f"is not two capital letters or digits: {text!r}")
        if text not in AIRLINES:
            self.bad("carrier", f"is no airline that is known here: {text!r}")
        return text

    def tail(self, text: str) -> str | None:
        if text in ("", MISSING):
            return None
        if _TAIL.fullmatch(text) is None:
            self.bad("tailnum", f"is no tail number: {text!r}")
        return text

    def origin(self, text: str) -> str:
        if self.present("origin", text) not in ORIGINS:
            self.bad("origin", f"is none of {', '.join(sorted(ORIGINS))}: {text!r}")
        return text

    def dest(self, fields: FlightRow) -> str:
        text = self.present("dest", fields.dest)
        if _AIRPORT.fullmatch(text) is None:
            self.bad("dest", f"is no airport code of three letters: {text!r}")
        if text == fields.origin:
            self.bad("dest", f"is where the flight left from: {text!r}")
        return text


_A_DAY = timedelta(days=1)
