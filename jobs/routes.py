"""Rank the routes of a year by their delays: a flow of months, days, and one ranking.

    days of January, a chunk at a time ─┐
    …                                   ├─▶ the sums of January ─┐
    …                                  ─┘                        ├─▶ the ranking of the year
    days of December …                  ───▶ the sums of December ┘

One query does the same (`departures.worst_routes`): this is the shape of work that is too large for
one, and the demo checks that both say the same.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from fractions import Fraction
from typing import Final

from jobs.departures import Route
from runner import Context, chord, group, task
from runner.types import Part

__all__ = ["delays_of_days", "rank_routes", "ranking_of_year", "sum_delays"]

DAYS_AT_ONCE: Final = 10
MONTHS: Final = 12

DELAYS_OF_DAYS: Final = """\
SELECT origin, dest, count(*) AS flights, sum(departure_delay) AS delay_minutes
  FROM departures
 WHERE departure_delay IS NOT NULL AND day = ANY($1::date[])
 GROUP BY origin, dest
"""


@task(retries=5, timeout=60, writes=False)
async def delays_of_days(ctx: Context, days: list[date]) -> list[Route]:
    """Return what left on some days, route by route.

    Args:
        ctx: of the job.
        days: New York time.
    """
    rows = await ctx.db.fetch(DELAYS_OF_DAYS, days)
    return [
        Route(
            origin=row["origin"],
            dest=row["dest"],
            flights=row["flights"],
            delay_minutes=row["delay_minutes"],
        )
        for row in rows
    ]


@task(retries=5, timeout=60, writes=False)
async def sum_delays(_ctx: Context, parts: Sequence[list[Route]]) -> list[Route]:
    """Add the parts of a month up, route by route."""
    return _summed(parts)


@task(retries=5, timeout=60, writes=False)
async def rank_routes(
    _ctx: Context, months: Sequence[list[Route]], limit: int = 10, at_least: int = 10
) -> list[Route]:
    """Return the routes of the year with the longest mean departure delay, the worst first.

    Args:
        _ctx: of the job.
        months: the sums of each month.
        limit: how many routes.
        at_least: leave out routes with fewer flights that left.
    """
    routes = [route for route in _summed(months) if route.flights >= at_least]
    return sorted(routes, key=_worst_first)[:limit]


def ranking_of_year(year: int, *, limit: int = 10, at_least: int = 10) -> Part[list[Route]]:
    """Return the flow: months as a group, their days in chunks, and a chord that ranks."""
    months = [
        chord(delays_of_days.chunks(_days(year, month), DAYS_AT_ONCE), sum_delays.s())
        for month in range(1, MONTHS + 1)
    ]
    return chord(group(months), rank_routes.s(limit=limit, at_least=at_least))


def _days(year: int, month: int) -> list[date]:
    day = date(year, month, 1)
    days = []
    while day.month == month:
        days.append(day)
        day += timedelta(days=1)
    return days


def _summed(parts: Sequence[list[Route]]) -> list[Route]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for route in (route for part in parts for route in part):
        flights, minutes = sums.get((route.origin, route.dest), (0, 0))
        sums[route.origin, route.dest] = flights + route.flights, minutes + route.delay_minutes
    return [Route(*airports, *delays) for airports, delays in sums.items()]


def _worst_first(route: Route) -> tuple[Fraction, str, str]:
    # As exact as the file: a float would change places that are close.
    return -Fraction(route.delay_minutes, route.flights), route.origin, route.dest
