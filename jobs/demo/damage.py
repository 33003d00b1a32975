"""Damage copies of real lines, each in one field, to see that each is refused by name."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from jobs.flights import Flight

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FILE_ROWS = 336_776
"""Damaged lines get the numbers after the last line of the file."""

KINDS: tuple[tuple[str, str], ...] = (
    ("month", "13"),
    ("sched_dep_time", "2517"),
    ("distance", "-733"),
    ("origin", "XXX"),
    ("carrier", "Q"),
    ("dep_delay", "999999"),
    ("time_hour", "NA"),
    ("flight", "12a4"),
    ("dest", ""),
    ("tailnum", "N 12"),
    ("day", "0"),
    ("arr_delay", "late"),
)


class Damaged(NamedTuple):
    """A line with one bad field, and the airline whose service sends it."""

    carrier: str
    flight: Flight
    field: str


def damage(flights: Sequence[Flight], count: int, seed: int) -> list[Damaged]:
    """Return `count` damaged copies of lines chosen by chance, of all kinds in turn."""
    chance = random.Random(seed)  # noqa: S311  not for secrets
    return [
        _damaged(chance.choice(flights), FILE_ROWS + 1 + index, *KINDS[index % len(KINDS)])
        for index in range(count)
    ]


def mix(
    groups: Mapping[str, Sequence[Flight]],
    damaged: Iterable[Damaged],
    seed: int,
) -> dict[str, list[Flight]]:
    """Return the groups with the damaged lines put in at places chosen by chance."""
    chance = random.Random(seed)  # noqa: S311  not for secrets
    mixed = {carrier: list(flights) for carrier, flights in groups.items()}
    for line in damaged:
        group = mixed[line.carrier]
        group.insert(chance.randint(0, len(group)), line.flight)
    return mixed


def _damaged(flight: Flight, row: int, field: str, value: str) -> Damaged:
    fields = replace(flight.fields, **{field: value})
    return Damaged(flight.fields.carrier, Flight(row, fields), field)
