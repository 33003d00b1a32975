"""Note what the operations of a unit do while they are applied, as `tally` reads it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from runner.writer.failures import BadValue
from runner.writer.tally import certain_counts
from runner.writer.values import encode_plain, tagged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Record

    from runner.writer.entries import Unit

__all__ = ["Tally"]

_TEXTUAL = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)


class Tally:
    """What the operations of one unit that asks did, as they are applied."""

    def __init__(self, unit: Unit) -> None:
        assert unit.asks is not None
        self.entry = unit.entry
        self._asks = unit.asks
        self._counts = certain_counts(unit)
        self._added: set[int] = set()
        self._rows: dict[int, list[Any]] = {}
        self._row_count = 0
        self._size = 0

    def add(self, place: int, tag: str, rows: Sequence[Record] | None) -> None:
        """Note one row of the operation at this place: the command's tag, and what came back.

        Raises:
            BadValue: a value that came back has no form in which it can travel.
        """
        number = tag.rpartition(" ")[2]
        if number.isdigit():
            before = self._counts[place] if place in self._added else 0
            self._counts[place] = (before or 0) + int(number)
            self._added.add(place)
        if rows is not None:
            self._keep(self._rows.setdefault(place, [[]]), rows)

    def encode(self) -> bytes:
        """Return it as the bytes that travel."""
        excess = None if self._fits() else (self._row_count, self._size)
        return encode_plain((self._counts, {} if excess else self._rows, excess))

    def _keep(self, kept: list[Any], rows: Sequence[Record]) -> None:
        if rows:
            kept[0] = list(rows[0].keys())
        for row in rows:
            values = encode_plain([_portable(name, row[at]) for at, name in enumerate(kept[0])])
            self._row_count += 1
            self._size += len(values)
            if self._fits():
                kept.append(msgspec.Raw(values))

    def _fits(self) -> bool:
        return self._row_count <= self._asks.rows and self._size <= self._asks.size


def _portable(name: str, value: Any) -> Any:
    """Return a value of asyncpg in a form that travels; raise `BadValue` when it has none."""
    if isinstance(value, asyncpg.Record):
        return {key: _portable(name, item) for key, item in value.items()}
    if type(value) is list:
        return [_portable(name, item) for item in value]
    if isinstance(value, _TEXTUAL):
        return str(value)
    try:
        return tagged(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise BadValue(
            f"the column {name!r} cannot be given back: {exc}; cast it to text, as in "
            f"execute('… RETURNING {name}::text', returning=True)"
        ) from exc
