"""Write down the operations of a unit, compactly, and read them back.

An operation travels as ``[shape, values]``. The shape is a JSON text that holds everything
but the values, so that equal operations share one string and the writer parses it once::

    ["insert", "orders", ["id", "total"]]
    ["upsert", "orders", ["id", "total"], ["id"], ["total"]]     columns, key, overwritten
    ["add", "stock", ["sku", "qty"], 1, "reject"]                the first 1 are the key
    ["update", "orders", ["id", "state"], 1]
    ["delete", "orders", ["id"]]
    ["execute", "UPDATE shops SET seen = now() WHERE id = $1"]

Several rows of one shape lie behind each other in ``values``.
"""

from __future__ import annotations

import datetime as dt
import enum
import functools
import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NoReturn, TypeAlias, cast

import msgspec

from runner.errors import DecodeError, UnitError, did_you_mean

__all__ = ["Missing", "Operation", "Shape", "UnitBuilder", "decode_operations", "parse_shape"]

Missing: TypeAlias = Literal["reject", "insert", "ignore"]
Operation: TypeAlias = tuple[str, list[Any]]
Kind: TypeAlias = Literal["insert", "upsert", "add", "update", "delete", "execute"]

VERBS = (*("INSERT", "UPDATE", "DELETE", "MERGE", "SELECT", "WITH", "VALUES", "CALL", "TRUNCATE"),)
"""What raw SQL may begin with: nothing that ends a transaction or changes the session."""

_MISSING = ("reject", "insert", "ignore")
_KINDS = ("insert", "upsert", "add", "update", "delete", "execute")
_LEAD = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/)*([A-Za-z]*)", re.DOTALL)
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_SUMMED = (int, float, Decimal, dt.timedelta)
_LIFETIME_SHAPES = 4096

# Extension types of msgpack for what msgspec would flatten to text. An aware datetime has
# a type in msgpack itself.
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = range(1, 7)


@dataclass(frozen=True, slots=True)
class Shape:
    """What operations that may share a statement have in common.

    Attributes:
        kind: the kind of operation.
        table: the table as the user named it, or the text of raw SQL.
        columns: the columns that values are given for, in the order of the values.
        key: the columns that find the row: the first of ``columns``, but for an upsert.
        overwritten: the columns that an upsert overwrites.
        missing: what an ``add`` does when there is no such row.
    """

    kind: Kind
    table: str
    columns: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    overwritten: tuple[str, ...] = ()
    missing: Missing = "reject"


class UnitBuilder:
    """Collect writes that will commit together, exactly once, or not at all.

    Nothing is sent by these calls: in a job the writes travel with its completion, so that
    an attempt that fails leaves none. They are applied in the order of the calls::

        ctx.db.insert("orders", id=order_id, total=Decimal("9.90"))
        ctx.db.add("stock", key={"sku": sku}, qty=-1)
        ctx.db.execute("UPDATE shops SET seen = now() WHERE id = $1", shop)
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._count = 0

    def __len__(self) -> int:
        """Return how many operations were collected; each row counts."""
        return self._count

    def insert(self, table: str, /, **row: Any) -> None:
        """Insert one row; columns that are not named take their defaults."""
        self._append(_insert_head(table, tuple(row)), table, tuple(row), row.values())

    def insert_many(self, table: str, rows: Iterable[Mapping[str, Any]], /) -> None:
        """Insert rows, in order; rows may differ in the columns they name."""
        # All rows are checked before the first is kept: a call that raises changes nothing.
        checked: list[tuple[bytes, bytes]] = []
        for row in rows:
            columns = tuple(row)
            head = _insert_head(table, columns)
            checked.append((head, _pack(table, columns, row.values())))
        self._parts.extend(head + values for head, values in checked)
        self._count += len(checked)

    def upsert(
        self,
        table: str,
        row: Mapping[str, Any],
        /,
        *,
        key: Sequence[str] = ("id",),
        update: Sequence[str] | None = None,
    ) -> None:
        """Insert a row, or overwrite columns of the row that has this key.

        Args:
            table: the table, or ``schema.table``.
            row: values by column.
            key: columns that a unique index covers.
            update: the columns to overwrite; None is all but the key; an empty list
                leaves a row that is there as it is.
        """
        columns = tuple(row)
        overwritten = None if update is None else _names(table, "update", update)
        head = _upsert_head(table, columns, _names(table, "key", key), overwritten)
        self._append(head, table, columns, row.values())

    def add(
        self,
        table: str,
        /,
        *,
        key: Mapping[str, Any],
        missing: Missing = "reject",
        **deltas: float | Decimal | dt.timedelta,
    ) -> None:
        """Add to columns of the row with this key: a counter. NULL counts as nothing.

        Additions to one row in one batch become a single update of their sum.

        Args:
            table: the table, or ``schema.table``.
            key: the row, by column; a unique index must cover it for ``missing="insert"``.
            missing: when there is no such row, ``"reject"`` the unit, ``"insert"`` the row
                with the deltas as its values, or ``"ignore"`` the addition.
            **deltas: what to add, by column.
        """
        columns = (*key, *deltas)
        head = _add_head(table, columns, len(key), missing)
        for column, delta in deltas.items():
            if type(delta) is not int and (
                isinstance(delta, bool) or not isinstance(delta, _SUMMED)
            ):
                raise UnitError(f"{table}.{column}: cannot add {delta!r}; add a number")
        _check_key(table, key)
        self._append(head, table, columns, (*key.values(), *deltas.values()))

    def update(self, table: str, /, *, key: Mapping[str, Any], **values: Any) -> None:
        """Set columns of the rows with this key; no such row is no error, as in SQL."""
        columns = (*key, *values)
        head = _update_head(table, columns, len(key))
        _check_key(table, key)
        self._append(head, table, columns, (*key.values(), *values.values()))

    def delete(self, table: str, /, *, key: Mapping[str, Any]) -> None:
        """Delete the rows with this key; no such row is no error, as in SQL."""
        columns = tuple(key)
        head = _delete_head(table, columns)
        _check_key(table, key)
        self._append(head, table, columns, key.values())

    def execute(self, sql: str, /, *args: Any) -> None:
        """Run one SQL statement with its arguments ``$1, $2…``, in order with the rest.

        It is slower than the other operations, because it cannot share a statement.
        """
        check_verb(sql)
        head = b"\x92" + _pack_text(_json(("execute", sql)))
        self._append(head, "execute", tuple(f"${n}" for n in range(1, len(args) + 1)), args)

    def encode(self) -> bytes:
        """Return the operations as the bytes that travel."""
        return _ENCODER.encode([msgspec.Raw(part) for part in self._parts])

    def clear(self) -> None:
        """Forget what was collected."""
        self._parts.clear()
        self._count = 0

    def _append(
        self, head: bytes, table: str, columns: tuple[str, ...], values: Iterable[Any]
    ) -> None:
        self._parts.append(head + _pack(table, columns, values))
        self._count += 1


def decode_operations(data: bytes) -> list[Operation]:
    """Read the operations of a unit; raise `DecodeError` for bytes of anything else."""
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, RecursionError) as exc:
        raise DecodeError(f"not the operations of a unit: {exc}") from exc


def parse_shape(text: str) -> Shape:
    """Read a shape; raise `DecodeError` when it is none."""
    try:
        kind, table, *rest = msgspec.json.decode(text, type=list[Any])
        match kind, rest:
            case "execute", []:
                return Shape(kind, table)
            case "insert", [columns]:
                return Shape(kind, table, _texts(columns))
            case "upsert", [columns, key, overwritten]:
                return Shape(kind, table, _texts(columns), _texts(key), _texts(overwritten))
            case "add", [columns, int(width), missing] if missing in _MISSING:
                names = _texts(columns)
                return Shape(kind, table, names, names[:width], missing=missing)
            case "update", [columns, int(width)]:
                names = _texts(columns)
                return Shape(kind, table, names, names[:width])
            case "delete", [columns]:
                names = _texts(columns)
                return Shape(kind, table, names, names)
    except (msgspec.MsgspecError, ValueError, TypeError) as exc:
        raise DecodeError(f"not the shape of an operation: {text[:200]!r}") from exc
    raise DecodeError(f"not the shape of an operation: {text[:200]!r}")


def check_verb(sql: str) -> None:
    """Raise `UnitError` unless the statement begins with a verb that the writer may run."""
    found = _LEAD.match(sql)
    verb = found[1].upper() if found else ""
    if verb not in VERBS:
        raise UnitError(
            f"cannot execute {sql.strip()[:60]!r}: a statement in a unit begins with one of "
            f"{', '.join(VERBS)}; the writer holds the transaction and the session",
        )


def _texts(names: list[Any]) -> tuple[str, ...]:
    if not all(type(name) is str for name in names):
        raise TypeError("names are text")
    return tuple(names)


# The heads: everything of an operation but its values, checked and encoded once.


@functools.lru_cache(_LIFETIME_SHAPES)
def _insert_head(table: str, columns: tuple[str, ...]) -> bytes:
    _check_columns(table, "insert", columns)
    return _head("insert", table, columns)


@functools.lru_cache(_LIFETIME_SHAPES)
def _upsert_head(
    table: str,
    columns: tuple[str, ...],
    key: tuple[str, ...],
    overwritten: tuple[str, ...] | None,
) -> bytes:
    _check_columns(table, "upsert", columns)
    if not key:
        raise UnitError(f"upsert into {table!r}: the key is empty; name its columns")
    for column in (*key, *(overwritten or ())):
        if column not in columns:
            raise UnitError(
                f"upsert into {table!r}: the row has no {column!r}{did_you_mean(column, columns)}"
            )
    if overwritten is None:
        overwritten = tuple(column for column in columns if column not in key)
    return _head("upsert", table, columns, key, overwritten)


@functools.lru_cache(_LIFETIME_SHAPES)
def _add_head(table: str, columns: tuple[str, ...], width: int, missing: str) -> bytes:
    if missing not in _MISSING:
        raise UnitError(
            f"add to {table!r}: missing={missing!r}{did_you_mean(missing, _MISSING)}; "
            f"it is one of {', '.join(_MISSING)}",
        )
    if width == len(columns):
        raise UnitError(f"add to {table!r}: nothing to add; name columns, as in qty=-1")
    _check_keyed(table, "add to", columns, width)
    return _head("add", table, columns, width, missing)


@functools.lru_cache(_LIFETIME_SHAPES)
def _update_head(table: str, columns: tuple[str, ...], width: int) -> bytes:
    if width == len(columns):
        raise UnitError(f"update of {table!r}: nothing to set; name columns, as in state='paid'")
    if width == 0:
        raise UnitError(f"update of {table!r}: the key is empty; it would change every row")
    for column in columns:
        _check_name(table, column)
    # A column both in the key and among the values is one that the update changes.
    return _head("update", table, columns, width)


@functools.lru_cache(_LIFETIME_SHAPES)
def _delete_head(table: str, columns: tuple[str, ...]) -> bytes:
    _check_keyed(table, "delete from", columns, len(columns))
    return _head("delete", table, columns)


def _head(kind: Kind, table: str, *rest: Any) -> bytes:
    _check_name("table", table)
    return b"\x92" + _pack_text(_json((kind, table, *rest)))


def _json(shape: Sequence[Any]) -> str:
    try:
        return msgspec.json.encode(shape).decode()
    except (TypeError, ValueError) as exc:  # a lone surrogate, or no text at all
        raise UnitError(f"cannot write down {shape!r}: {exc}") from exc


def _pack_text(text: str) -> bytes:
    return _ENCODER.encode(text)


def _names(table: str, what: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise UnitError(f"{table}: {what}={names!r} is text; give a list of columns, [{names!r}]")
    return tuple(names)


def _check_columns(table: str, verb: str, columns: tuple[str, ...]) -> None:
    if not columns:
        raise UnitError(f"{verb} into {table!r}: no columns; name at least one")
    for column in columns:
        _check_name(table, column)


def _check_keyed(table: str, verb: str, columns: tuple[str, ...], width: int) -> None:
    if width == 0:
        raise UnitError(f"{verb} {table!r}: the key is empty; name the row, as in key={{'id': 1}}")
    if len(set(columns)) != len(columns):
        raise UnitError(f"{verb} {table!r}: a column is both in the key and among the values")
    for column in columns:
        _check_name(table, column)


def _check_name(owner: str, name: Any) -> None:
    if not isinstance(name, str) or not name or "\0" in name:
        raise UnitError(f"{owner}: {name!r} cannot be a name in the database")


def _check_key(table: str, key: Mapping[str, Any]) -> None:
    for column, value in key.items():
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise UnitError(
                f"{table}.{column}: {value!r} in a key equals nothing; use execute with IS NULL"
            )


# The values.


def _pack(table: str, columns: tuple[str, ...], values: Iterable[Any]) -> bytes:
    """Encode the values of one row; what fails is found and named."""
    row = list(values)
    try:
        return _ENCODER.encode([v if type(v) in _PLAIN else _tagged(v) for v in row])
    except (TypeError, ValueError, OverflowError, ArithmeticError, RecursionError):
        _blame(table, columns, row)


def _blame(table: str, columns: tuple[str, ...], row: list[Any]) -> NoReturn:
    for column, value in zip(columns, row, strict=True):
        try:
            _ENCODER.encode(_tagged(value))
        except OverflowError as exc:
            raise UnitError(
                f"{table}.{column}: {str(value)[:40]} does not fit into 64 bits; use a Decimal"
            ) from exc
        except (TypeError, ValueError, ArithmeticError, RecursionError) as exc:
            raise UnitError(f"{table}.{column}: {exc}") from exc
    raise UnitError(f"{table}: the row cannot be encoded")


def _tagged(value: Any) -> Any:
    """Return the value in a form from which exactly its type comes back."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    tag = _TAGS.get(kind)
    if tag is not None:
        return tag(value)
    if isinstance(value, enum.Enum):
        return _tagged(value.value)
    if isinstance(value, Mapping):
        return {_dict_key(name): _tagged(item) for name, item in value.items()}
    for base in (bool, int, float, str, bytes, dt.datetime, *_TAGS):
        if isinstance(value, base):
            # A subclass, such as a str of some library: its plain value is what is stored.
            return _TAGS[base](value) if base in _TAGS else cast(Any, base)(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    raise TypeError(f"a {kind.__qualname__} cannot travel to the database; give plain data")


def _dict_key(name: Any) -> str | int:
    if isinstance(name, enum.Enum):
        name = name.value
    if type(name) not in (str, int):
        raise TypeError(f"{name!r} cannot be a name in JSON; use text")
    return cast("str | int", name)


def _tag_datetime(value: dt.datetime) -> Any:
    if value.tzinfo is None:
        return msgspec.msgpack.Ext(_DATETIME, value.isoformat().encode())
    return value.astimezone(dt.UTC)


def _tag_timedelta(value: dt.timedelta) -> Any:
    text = f"{value.days} {value.seconds} {value.microseconds}"
    return msgspec.msgpack.Ext(_TIMEDELTA, text.encode())


_TAGS: dict[type, Any] = {
    list: lambda value: [_tagged(item) for item in value],
    tuple: lambda value: [_tagged(item) for item in value],
    dict: lambda value: {_dict_key(name): _tagged(item) for name, item in value.items()},
    dt.datetime: _tag_datetime,
    dt.date: lambda value: msgspec.msgpack.Ext(_DATE, value.isoformat().encode()),
    dt.time: lambda value: msgspec.msgpack.Ext(_TIME, value.isoformat().encode()),
    dt.timedelta: _tag_timedelta,
    Decimal: lambda value: msgspec.msgpack.Ext(_DECIMAL, str(value).encode()),
    uuid.UUID: lambda value: msgspec.msgpack.Ext(_UUID, value.bytes),
}


def _read_timedelta(data: memoryview) -> dt.timedelta:
    days, seconds, microseconds = bytes(data).split()
    return dt.timedelta(int(days), int(seconds), int(microseconds))


_READERS: dict[int, Any] = {
    _DATETIME: lambda data: dt.datetime.fromisoformat(str(data, "ascii")),
    _DATE: lambda data: dt.date.fromisoformat(str(data, "ascii")),
    _TIME: lambda data: dt.time.fromisoformat(str(data, "ascii")),
    _TIMEDELTA: _read_timedelta,
    _DECIMAL: lambda data: Decimal(str(data, "ascii")),
    _UUID: lambda data: uuid.UUID(bytes=bytes(data)),
}


def _read_extension(code: int, data: memoryview) -> Any:
    reader = _READERS.get(code)
    if reader is None:
        raise ValueError(f"unknown extension type {code}")
    return reader(data)


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[tuple[str, list[Any]]], ext_hook=_read_extension)
