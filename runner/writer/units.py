"""Write down the operations of a unit, compactly, and read them back.

An operation travels as ``[shape, values]``. The shape is a JSON text that holds everything
but the values, so that equal operations share one string and the writer parses it once::

    ["insert", "orders", ["id", "total"]]
    ["upsert", "orders", ["id", "total"], ["id"], ["total"]]     columns, key, overwritten
    ["add", "stock", ["sku", "qty"], 1, "reject"]                the first 1 are the key
    ["update", "orders", ["id", "state"], 1]
    ["delete", "orders", ["id"]]
    ["execute", "UPDATE shops SET seen = now() WHERE id = $1"]

An operation whose rows are wanted has one part more, ``{"returning": ["id"]}``, or ``true``
in place of the columns for all of them. Several rows of one shape lie behind each other in
``values``.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal, NoReturn, TypeAlias

import msgspec

from runner.errors import DecodeError, UnitError, did_you_mean
from runner.writer.values import PLAIN, encode_plain, read_extension, tagged

__all__ = ["Missing", "Operation", "Shape", "UnitBuilder", "decode_operations", "parse_shape"]

Missing: TypeAlias = Literal["reject", "insert", "ignore"]
Operation: TypeAlias = tuple[str, list[Any]]
Returning: TypeAlias = bool | Sequence[str]
Kind: TypeAlias = Literal["insert", "upsert", "add", "update", "delete", "execute"]

VERBS = (*("INSERT", "UPDATE", "DELETE", "MERGE", "SELECT", "WITH", "VALUES", "CALL", "TRUNCATE"),)
"""What raw SQL may begin with: nothing that ends a transaction or changes the session."""

_MISSING = ("reject", "insert", "ignore")
_KINDS = ("insert", "upsert", "add", "update", "delete", "execute")
_LEAD = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/)*([A-Za-z]*)", re.DOTALL)
_SUMMED = (int, float, Decimal, dt.timedelta)
_LIFETIME_SHAPES = 4096
NAME_CHARS = 200
"""Of a table with its schema, or of a column: more than Postgres has room for."""
_RETURNING_ALL = ({"returning": True},)
_Asked: TypeAlias = tuple[str, ...] | bool


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
        returning: the columns that come back of each row, True for all of them, None for
            no rows. Of raw SQL, whether the rows of the statement come back.
    """

    kind: Kind
    table: str
    columns: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    overwritten: tuple[str, ...] = ()
    missing: Missing = "reject"
    returning: tuple[str, ...] | Literal[True] | None = None

    @property
    def touches_one_row(self) -> bool:
        """Whether each row given is one row written, or the unit is refused.

        A trigger, a rule or a policy of the table may still prevent it.
        """
        match self.kind:
            case "insert":
                return True
            case "upsert":
                return bool(self.overwritten)
            case "add":
                return self.missing != "ignore"
            case _:
                return False


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
        self._calls: list[int] = []
        self._wants_rows = False

    def __len__(self) -> int:
        """Return how many operations were collected; each row counts."""
        return len(self._parts)

    @property
    def calls(self) -> tuple[int, ...]:
        """How many operations each call made: more than one only for `insert_many`."""
        return tuple(self._calls)

    @property
    def wants_rows(self) -> bool:
        """Whether a call asked for rows by ``returning``."""
        return self._wants_rows

    def insert(self, table: str, /, *, returning: Returning = False, **row: Any) -> None:
        """Insert one row; columns that are not named take their defaults."""
        asked = _asked(table, returning)
        head = _insert_head(table, tuple(row), asked)
        self._append(head, table, tuple(row), row.values(), asked=asked)

    def insert_many(
        self,
        table: str,
        rows: Iterable[Mapping[str, Any]],
        /,
        *,
        returning: Returning = False,
    ) -> None:
        """Insert rows, in order; rows may differ in the columns they name."""
        asked = _asked(table, returning)
        # All rows are checked before the first is kept: a call that raises changes nothing.
        checked: list[tuple[bytes, bytes]] = []
        for row in rows:
            columns = tuple(row)
            head = _insert_head(table, columns, asked)
            checked.append((head, _pack(table, columns, row.values())))
        self._parts.extend(head + values for head, values in checked)
        self._calls.append(len(checked))
        self._wants_rows = self._wants_rows or bool(asked)

    def upsert(
        self,
        table: str,
        row: Mapping[str, Any],
        /,
        *,
        key: Sequence[str] = ("id",),
        update: Sequence[str] | None = None,
        returning: Returning = False,
    ) -> None:
        """Insert a row, or overwrite columns of the row that has this key.

        Args:
            table: the table, or ``schema.table``.
            row: values by column.
            key: columns that a unique index covers.
            update: the columns to overwrite; None is all but the key; an empty list
                leaves a row that is there as it is.
            returning: the columns of the row to give back, or True for all.
        """
        columns = tuple(row)
        overwritten = None if update is None else _names(table, "update", update)
        asked = _asked(table, returning)
        head = _upsert_head(table, columns, _names(table, "key", key), overwritten, asked)
        self._append(head, table, columns, row.values(), asked=asked)

    def add(
        self,
        table: str,
        /,
        *,
        key: Mapping[str, Any],
        missing: Missing = "reject",
        returning: Returning = False,
        **deltas: float | Decimal | dt.timedelta,
    ) -> None:
        """Add to columns of the row with this key: a counter. NULL counts as nothing.

        Additions to one row in one batch become a single update of their sum.

        Args:
            table: the table, or ``schema.table``.
            key: the row, by column; a unique index must cover it for ``missing="insert"``.
            missing: when there is no such row, ``"reject"`` the unit, ``"insert"`` the row
                with the deltas as its values, or ``"ignore"`` the addition.
            returning: the columns of the row to give back, or True for all; such an addition
                stays one of its own.
            **deltas: what to add, by column.
        """
        columns = (*key, *deltas)
        asked = _asked(table, returning)
        head = _add_head(table, columns, len(key), missing, asked)
        for column, delta in deltas.items():
            if type(delta) is not int and (
                isinstance(delta, bool) or not isinstance(delta, _SUMMED)
            ):
                raise UnitError(f"{table}.{column}: cannot add {delta!r}; add a number")
        _check_key(table, key)
        self._append(head, table, columns, (*key.values(), *deltas.values()), asked=asked)

    def update(
        self, table: str, /, *, key: Mapping[str, Any], returning: Returning = False, **values: Any
    ) -> None:
        """Set columns of the rows with this key; no such row is no error, as in SQL."""
        columns = (*key, *values)
        asked = _asked(table, returning)
        head = _update_head(table, columns, len(key), asked)
        _check_key(table, key)
        self._append(head, table, columns, (*key.values(), *values.values()), asked=asked)

    def delete(
        self, table: str, /, *, key: Mapping[str, Any], returning: Returning = False
    ) -> None:
        """Delete the rows with this key; no such row is no error, as in SQL."""
        columns = tuple(key)
        asked = _asked(table, returning)
        head = _delete_head(table, columns, asked)
        _check_key(table, key)
        self._append(head, table, columns, key.values(), asked=asked)

    def execute(self, sql: str, /, *args: Any, returning: bool = False) -> None:
        """Run one SQL statement with its arguments ``$1, $2…``, in order with the rest.

        It is slower than the other operations, because it cannot share a statement. With
        ``returning`` the rows of the statement come back, of a SELECT or a RETURNING.
        """
        check_verb(sql)
        if "\0" in sql:
            raise UnitError("execute: a NUL in the statement; give it as an argument, as bytes")
        if type(returning) is not bool:
            raise UnitError(f"execute: returning={returning!r}; name the columns in the SQL")
        rest = _RETURNING_ALL if returning else ()
        head = b"\x92" + _pack_text(_json(("execute", sql, *rest)))
        places = tuple(f"${n}" for n in range(1, len(args) + 1))
        self._append(head, "execute", places, args, asked=returning)

    def encode(self) -> bytes:
        """Return the operations as the bytes that travel."""
        return encode_plain([msgspec.Raw(part) for part in self._parts])

    def clear(self) -> None:
        """Forget what was collected."""
        self._parts.clear()
        self._calls.clear()
        self._wants_rows = False

    def _append(
        self,
        head: bytes,
        table: str,
        columns: tuple[str, ...],
        values: Iterable[Any],
        *,
        asked: _Asked,
    ) -> None:
        self._parts.append(head + _pack(table, columns, values))
        self._calls.append(1)
        if asked:
            self._wants_rows = True


def decode_operations(data: bytes) -> list[Operation]:
    """Read the operations of a unit; raise `DecodeError` for bytes of anything else."""
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, RecursionError) as exc:
        raise DecodeError(f"not the operations of a unit: {exc}") from exc


def parse_shape(text: str) -> Shape:
    """Read a shape; raise `DecodeError` when it is none."""
    try:
        parts = msgspec.json.decode(text, type=list[Any])
        asked: tuple[str, ...] | Literal[True] | None = None
        if isinstance(parts[-1], dict):
            wanted = parts.pop()["returning"]
            asked = True if wanted is True else _texts(wanted)
        shape = _read_shape(*parts)
        if shape is not None:
            return shape if asked is None else replace(shape, returning=asked)
    except (msgspec.MsgspecError, ValueError, TypeError, LookupError, RecursionError) as exc:
        raise DecodeError(f"not the shape of an operation: {text[:200]!r}") from exc
    raise DecodeError(f"not the shape of an operation: {text[:200]!r}")


def _read_shape(  # noqa: PLR0911  a table of kinds
    kind: Any, table: Any, *rest: Any
) -> Shape | None:
    if type(table) is not str or "\0" in table:
        return None
    if kind != "execute" and len(table) > NAME_CHARS:
        return None
    match kind, rest:
        case "execute", ():
            return Shape(kind, table)
        case "insert", (columns,):
            return Shape(kind, table, _texts(columns))
        case "upsert", (columns, key, overwritten):
            return Shape(kind, table, _texts(columns), _texts(key), _texts(overwritten))
        case "add", (columns, int(width), missing) if missing in _MISSING:
            names = _texts(columns)
            return Shape(kind, table, names, names[:width], missing=missing)
        case "update", (columns, int(width)):
            names = _texts(columns)
            return Shape(kind, table, names, names[:width])
        case "delete", (columns,):
            names = _texts(columns)
            return Shape(kind, table, names, names)
    return None


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
    if not all(type(name) is str and len(name) <= NAME_CHARS for name in names):
        raise TypeError("names are text, and not endless")
    return tuple(names)


def _asked(table: str, returning: Returning) -> _Asked:
    """Return what of the rows is wanted: columns, True for all, or False."""
    asked = returning if isinstance(returning, bool) else _names(table, "returning", returning)
    if asked == ():
        raise UnitError(f"{table}: returning=[] names no column; leave it out")
    return asked


# The heads: everything of an operation but its values, checked and encoded once.


@functools.lru_cache(_LIFETIME_SHAPES)
def _insert_head(table: str, columns: tuple[str, ...], asked: _Asked) -> bytes:
    _check_columns(table, "insert", columns)
    return _head("insert", table, asked, columns)


@functools.lru_cache(_LIFETIME_SHAPES)
def _upsert_head(
    table: str,
    columns: tuple[str, ...],
    key: tuple[str, ...],
    overwritten: tuple[str, ...] | None,
    asked: _Asked,
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
    return _head("upsert", table, asked, columns, key, overwritten)


@functools.lru_cache(_LIFETIME_SHAPES)
def _add_head(
    table: str, columns: tuple[str, ...], width: int, missing: str, asked: _Asked
) -> bytes:
    if missing not in _MISSING:
        raise UnitError(
            f"add to {table!r}: missing={missing!r}{did_you_mean(missing, _MISSING)}; "
            f"it is one of {', '.join(_MISSING)}",
        )
    if width == len(columns):
        raise UnitError(f"add to {table!r}: nothing to add; name columns, as in qty=-1")
    _check_keyed(table, "add to", columns, width)
    return _head("add", table, asked, columns, width, missing)


@functools.lru_cache(_LIFETIME_SHAPES)
def _update_head(table: str, columns: tuple[str, ...], width: int, asked: _Asked) -> bytes:
    if width == len(columns):
        raise UnitError(f"update of {table!r}: nothing to set; name columns, as in state='paid'")
    if width == 0:
        raise UnitError(f"update of {table!r}: the key is empty; it would change every row")
    for column in columns:
        _check_name(table, column)
    # A column both in the key and among the values is one that the update changes.
    return _head("update", table, asked, columns, width)


@functools.lru_cache(_LIFETIME_SHAPES)
def _delete_head(table: str, columns: tuple[str, ...], asked: _Asked) -> bytes:
    _check_keyed(table, "delete from", columns, len(columns))
    return _head("delete", table, asked, columns)


def _head(kind: Kind, table: str, asked: _Asked, *rest: Any) -> bytes:
    _check_name("table", table)
    if asked is not False:
        for column in asked if asked is not True else ():
            _check_name(table, column)
        rest = (*rest, {"returning": asked})
    return b"\x92" + _pack_text(_json((kind, table, *rest)))


def _json(shape: Sequence[Any]) -> str:
    try:
        return msgspec.json.encode(shape).decode()
    except (TypeError, ValueError) as exc:  # a lone surrogate, or no text at all
        raise UnitError(f"cannot write down {shape!r}: {exc}") from exc


def _pack_text(text: str) -> bytes:
    return encode_plain(text)


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
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS or "\0" in name:
        raise UnitError(
            f"{owner[:NAME_CHARS]}: {str(name)[:40]!r} cannot be a name in the database"
        )


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
        return encode_plain([v if type(v) in PLAIN else tagged(v) for v in row])
    except (TypeError, ValueError, OverflowError, ArithmeticError, RecursionError):
        _blame(table, columns, row)


def _blame(table: str, columns: tuple[str, ...], row: list[Any]) -> NoReturn:
    for column, value in zip(columns, row, strict=True):
        try:
            encode_plain(tagged(value))
        except OverflowError as exc:
            raise UnitError(
                f"{table}.{column}: {str(value)[:40]} does not fit into 64 bits; use a Decimal"
            ) from exc
        except (TypeError, ValueError, ArithmeticError, RecursionError) as exc:
            raise UnitError(f"{table}.{column}: {exc}") from exc
    raise UnitError(f"{table}: the row cannot be encoded")


_DECODER = msgspec.msgpack.Decoder(list[tuple[str, list[Any]]], ext_hook=read_extension)
