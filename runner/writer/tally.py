"""Note what the operations of a unit did, for whoever asked: row counts, and rows.

It travels as ``[counts, rows, excess]``: a count for each operation, None where it is not
known; by the place of an operation its rows, names first; and when there were more rows than
the unit may bring back, how many, and of how many bytes, in their place.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from runner.errors import DecodeError, ResultTooLarge
from runner.types import Committed
from runner.writer.failures import BadValue
from runner.writer.units import parse_shape
from runner.writer.values import encode_plain, read_extension, tagged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Record

    from runner.writer.entries import Unit

__all__ = ["Tally", "certain_tally", "read_tally"]

_TEXTUAL = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)

_Rows = dict[int, list[Any]]
_Tally = tuple[list[int | None], _Rows, tuple[int, int] | None]


class Tally:
    """What the operations of one unit that asks did, as they are applied."""

    def __init__(self, unit: Unit) -> None:
        assert unit.asks is not None
        self.entry = unit.entry
        self._asks = unit.asks
        self._counts = _certain_counts(unit)
        self._added: set[int] = set()
        self._rows: _Rows = {}
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


def certain_tally(unit: Unit) -> bytes:
    """Return what is known of a unit's operations without having asked Postgres."""
    return encode_plain((_certain_counts(unit), {}, None))


def read_tally(data: bytes, entry: str, calls: Sequence[int] | None = None) -> Committed:
    """Read what a unit did, by the calls that made it.

    Args:
        data: an encoded tally.
        entry: the unit's entry.
        calls: how many operations each call made; None: each one.

    Raises:
        ResultTooLarge: the unit is committed, but its rows were too many to bring back.
        DecodeError: the bytes are no tally.
    """
    counts, rows, excess = _decoded(data)
    by_call: list[int | None] = []
    rows_by_call: list[list[dict[str, Any]] | None] = []
    first = 0
    for made in [1] * len(counts) if calls is None else calls:
        places = range(first, first + made)
        first += made
        some = [counts[place] if place < len(counts) else None for place in places]
        by_call.append(None if None in some else sum(count or 0 for count in some))
        asked = [row for place in places if place in rows for row in _dicts(rows[place])]
        rows_by_call.append(asked if asked or not made or first - 1 in rows else None)
    committed = Committed(entry=entry, counts=tuple(by_call), rows=tuple(rows_by_call))
    if excess is not None:
        raise ResultTooLarge(
            f"the unit {entry} is committed, but its {excess[0]} rows of {excess[1]} bytes are "
            f"more than may come back: ask for fewer columns, or read them afterwards",
            entry=entry,
            counts=committed.counts,
            row_count=excess[0],
            size=excess[1],
        )
    return committed


def _decoded(data: bytes) -> _Tally:
    try:
        tally: _Tally = _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError) as exc:
        raise DecodeError(f"not what a unit did: {exc}") from exc
    return tally


def _certain_counts(unit: Unit) -> list[int | None]:
    counts: list[int | None] = []
    for text, values in unit.operations:
        shape = parse_shape(text)
        counts.append(len(values) // len(shape.columns) if shape.touches_one_row else None)
    return counts


def _dicts(kept: list[Any]) -> list[dict[str, Any]]:
    names, *rows = kept
    return [dict(zip(names, row, strict=True)) for row in rows]


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


_DECODER = msgspec.msgpack.Decoder(_Tally, ext_hook=read_extension)
