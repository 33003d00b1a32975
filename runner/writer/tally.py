"""Read what the operations of a unit did, for whoever asked: row counts, and rows.

It travels as ``[counts, rows, excess]``: a count for each operation, None where it is not
known; by the place of an operation its rows, names first; and when there were more rows than
the unit may bring back, how many, and of how many bytes, in their place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from runner.errors import DecodeError, ResultTooLarge
from runner.types import Committed
from runner.writer.units import parse_shape
from runner.writer.values import encode_plain, read_extension

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.writer.entries import Unit

__all__ = ["certain_counts", "certain_tally", "read_tally"]

_Rows = dict[int, list[Any]]
_Tally = tuple[list[int | None], _Rows, tuple[int, int] | None]


def certain_tally(unit: Unit) -> bytes:
    """Return what is known of a unit's operations without having asked Postgres."""
    return encode_plain((certain_counts(unit), {}, None))


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


def certain_counts(unit: Unit) -> list[int | None]:
    """Return for each operation the rows that it must have written, None where that varies."""
    counts: list[int | None] = []
    for text, values in unit.operations:
        shape = parse_shape(text)
        counts.append(len(values) // len(shape.columns) if shape.touches_one_row else None)
    return counts


def _dicts(kept: list[Any]) -> list[dict[str, Any]]:
    names, *rows = kept
    return [dict(zip(names, row, strict=True)) for row in rows]


_DECODER = msgspec.msgpack.Decoder(_Tally, ext_hook=read_extension)
