"""Record departures, keep totals of them, and report on delays.

One departure is one unit of writes: a row of its own, and three totals that grow by it, two
of which may have to be made first. The airline's total is one of sixteen rows that every
departure of the year touches; written directly by many services, these rows are where
transactions wait for each other (`python -m jobs.demo --direct` shows it).

`schema.sql` beside this file makes the tables.
"""

from datetime import date
from pathlib import Path
from typing import Final

import msgspec

from jobs.flights import FlightRow
from jobs.validation import BadRow, Departure, validate
from runner import Cancel, Context, RetryPolicy, Unique, task

__all__ = [
    "BadRow",
    "Departure",
    "Route",
    "record_departure",
    "refresh_delay_report",
    "schema",
    "validate",
    "worst_routes",
]

REFRESH_REPORT: Final = """\
INSERT INTO delay_report AS report (day, flights, cancelled, late, delay_minutes)
SELECT (hour AT TIME ZONE 'America/New_York')::date,
       sum(flights), sum(cancelled), sum(late), sum(delay_minutes)
  FROM airport_hours
 WHERE $1::date IS NULL OR (hour AT TIME ZONE 'America/New_York')::date = $1
 GROUP BY 1
    ON CONFLICT (day) DO UPDATE
   SET flights = excluded.flights, cancelled = excluded.cancelled, late = excluded.late,
       delay_minutes = excluded.delay_minutes, refreshed_at = now()
 WHERE (report.flights, report.cancelled, report.late, report.delay_minutes)
       IS DISTINCT FROM
       (excluded.flights, excluded.cancelled, excluded.late, excluded.delay_minutes)
"""

WORST_ROUTES: Final = """\
SELECT origin, dest, count(*) AS flights, sum(departure_delay) AS delay_minutes
  FROM departures
 WHERE departure_delay IS NOT NULL
 GROUP BY origin, dest
HAVING count(*) >= $2
 ORDER BY avg(departure_delay) DESC, origin, dest
 LIMIT $1
"""


class Route(msgspec.Struct, frozen=True):
    """A pair of airports and the delays between them.

    Attributes:
        origin: where the flights left from.
        dest: where they were bound for.
        flights: how many left.
        delay_minutes: the sum of their departure delays.
    """

    origin: str
    dest: str
    flights: int
    delay_minutes: int

    @property
    def mean_delay(self) -> float:
        """The mean departure delay in minutes."""
        return self.delay_minutes / self.flights


def schema() -> str:
    """Return the SQL that makes the tables; it is safe to run again."""
    return Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")


@task(retries=5, timeout=30, keep_result=0)
async def record_departure(ctx: Context, row: int, fields: FlightRow) -> None:
    """Write one departure and add it to the totals, all or nothing, once.

    Args:
        ctx: of the job.
        row: the number of the line in the file; the departure's id.
        fields: the line.

    Raises:
        Cancel: the line is bad. It would be as bad the next time, so the job ends here, in
            the dead letters, with the row and the field in its reason.
    """
    try:
        departure = validate(row, fields)
    except BadRow as bad:
        raise Cancel(str(bad)) from bad
    _write(ctx, departure)


def _write(ctx: Context, flown: Departure) -> None:
    ctx.db.insert(
        "departures",
        id=flown.row,
        scheduled_at=flown.scheduled_at,
        day=flown.day,
        carrier=flown.carrier,
        flight=flown.flight,
        tail=flown.tail,
        origin=flown.origin,
        dest=flown.dest,
        miles=flown.miles,
        departure_delay=flown.departure_delay,
        arrival_delay=flown.arrival_delay,
        air_minutes=flown.air_minutes,
    )
    cancelled, late = int(flown.cancelled), int(flown.late)
    delay = flown.departure_delay or 0
    miles = 0 if flown.cancelled else flown.miles
    ctx.db.add(
        "airlines",
        key={"carrier": flown.carrier},
        flights=1,
        cancelled=cancelled,
        late=late,
        delay_minutes=delay,
        miles=miles,
    )
    ctx.db.add(
        "airport_hours",
        key={"origin": flown.origin, "hour": flown.hour},
        missing="insert",
        flights=1,
        cancelled=cancelled,
        late=late,
        delay_minutes=delay,
    )
    if flown.tail is not None:
        ctx.db.add(
            "aeroplanes",
            key={"tail": flown.tail},
            missing="insert",
            flights=1,
            cancelled=cancelled,
            miles=miles,
            air_minutes=flown.air_minutes or 0,
        )


# One that waits will see whatever was written before it starts: a second would do the same again.
@task(
    timeout=60,
    backoff=RetryPolicy(retries=5, base=5, cap=120, retry_on_timeout=True),
    unique=Unique(until="start"),
)
async def refresh_delay_report(ctx: Context, day: date | None = None) -> None:
    """Bring the daily delay report up to date; running it again changes nothing.

    The report is made from the totals of the airport-hours, some twenty thousand rows for a
    year, and not from the departures: the statement runs on the writer's one connection, and
    whatever takes long there keeps everybody waiting.

    Args:
        ctx: of the job.
        day: only this day (New York time); None for every day that has departures.
    """
    ctx.db.execute(REFRESH_REPORT, day)


# It reads the whole table: two of them at once are enough for one database, whoever asks.
@task(timeout=60, keep_result=600, max_running=2)
async def worst_routes(ctx: Context, limit: int = 10, at_least: int = 10) -> list[Route]:
    """Return the routes with the longest mean departure delay, the worst first.

    Args:
        ctx: of the job.
        limit: how many routes.
        at_least: leave out routes with fewer flights that left.
    """
    rows = await ctx.db.fetch(WORST_ROUTES, limit, at_least)
    return [
        Route(
            origin=row["origin"],
            dest=row["dest"],
            flights=row["flights"],
            delay_minutes=row["delay_minutes"],
        )
        for row in rows
    ]
