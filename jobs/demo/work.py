"""What a run has to do: the departures, and the bad lines among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.demo.check import expect
from jobs.demo.damage import damage, mix
from jobs.flights import by_carrier, load_airlines, load_flights

if TYPE_CHECKING:
    from jobs.demo.check import Expected
    from jobs.demo.damage import Damaged
    from jobs.demo.options import Options
    from jobs.flights import Flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The lines of a run.

    Attributes:
        flights: the departures, in time order.
        damaged: the bad lines.
        mixed: both, by the airline whose service sends them.
        names: the airlines and their names.
        expected: what the database has to hold in the end.
    """

    flights: list[Flight]
    damaged: list[Damaged]
    mixed: dict[str, list[Flight]]
    names: dict[str, str]
    expected: Expected

    @property
    def lines(self) -> int:
        """How many lines are sent, good and bad."""
        return len(self.flights) + len(self.damaged)

    @property
    def totals(self) -> dict[str, int]:
        """How many departures each airline has, without the bad lines."""
        return {carrier: len(flights) for carrier, flights in by_carrier(self.flights).items()}


def load(options: Options) -> Work:
    """Read the file, add it up, and damage some lines."""
    flights = load_flights(options.rows)
    damaged = damage(flights, options.bad, options.seed)
    return Work(
        flights=flights,
        damaged=damaged,
        mixed=mix(by_carrier(flights), damaged, options.seed),
        names=load_airlines(),
        expected=expect(flights),
    )
