"""Write the SQL of a shape: for one row, and as a branch over arrays of many rows."""

from __future__ import annotations

import datetime as dt
import json
import re
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from asyncpg import Range

from runner.writer.failures import BadValue
from runner.writer.plan import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncpg import Type

    from runner.writer.facts import ColumnFacts, TableFacts
    from runner.writer.plan import Profile, Row
    from runner.writer.units import Shape

__all__ = ["Statements", "may_linger", "quoted", "quoted_table", "raw_row", "single_sql"]

# Before these names a parenthesis opens no function that could change the session.
_HARMLESS_NAMES = (
    "abs age all and any array array_agg array_append array_length array_remove as avg between by "
    "case cast ceil ceiling char clock_timestamp coalesce concat conflict count date_part "
    "date_trunc decimal distinct else except exists extract filter floor from gen_random_uuid "
    "greatest group having in insert intersect interval json_agg json_build_object jsonb_agg "
    "jsonb_array_elements jsonb_build_array jsonb_build_object jsonb_set lateral least left length "
    "like limit lower materialized max md5 min mod nextval not now nullif numeric offset on only "
    "or over overlay pg_notify position power random returning right round row row_number select "
    "set some string_agg substr substring sum then time timestamp timestamptz to_char to_json "
    "to_jsonb to_timestamp trim union unnest upper using values varchar when where with"
)
_HARMLESS = frozenset(_HARMLESS_NAMES.split())
_SKIPPED = re.compile(r"--[^\n]*|/\*.*?\*/|'[^']*'", re.DOTALL)
_TEMPORARY = re.compile(
    r"\binto\s+(?:local\s+|global\s+)?temp(?:orary)?\b|\bpg_temp", re.IGNORECASE
)
_TRICKY = re.compile(r"\\|\$[a-z_]*\$", re.IGNORECASE)
_OPENED = re.compile(r"(\binto\s+)?([\w$\".]+)\s*\(", re.IGNORECASE)

_ZONED = frozenset({"timestamptz", "tstzrange", "tstzmultirange"})
# asyncpg gives and takes them for infinity, in any zone.
_INFINITE = (dt.datetime.max, dt.datetime.min)  # noqa: DTZ901  that is what they are


@dataclass(slots=True)
class Statements:
    """A shape as statements.

    Attributes:
        profile: the shape, and how far it reaches.
        single: the statement for one row.
        types: the types of its parameters, as Postgres told them: without lengths.
        columns: the columns of its parameters.
        flush: what to run behind a unit with such an operation, so that constraints are looked at
            that Postgres defers to the end of the transaction; "" for nothing.
        is_plain: rows can be given as arrays, one for each column.
        counts: the number of rows that it touches must be the number of rows given.
        tells: what it did is known only from its answer, so whoever asks has it run alone.
        lingers: it may leave something in the session that what comes behind it would meet.
        converts: what has to be done to values before asyncpg takes them, by slot.
    """

    profile: Profile
    single: str
    types: tuple[Type, ...]
    columns: tuple[ColumnFacts, ...]
    flush: str = ""
    is_plain: bool = field(init=False)
    counts: bool = field(init=False)
    tells: bool = field(init=False)
    lingers: bool = field(init=False)
    converts: tuple[tuple[int, Callable[[Any], Any]], ...] = field(init=False)

    def __post_init__(self) -> None:
        shape = self.profile.shape
        self.counts = shape.kind == "add" and shape.missing == "reject"
        # By another key than the primary one, an addition may touch many rows: not one for one.
        self.is_plain = all(c.is_plain for c in self.columns) and not (
            shape.kind == "execute" or (self.counts and self.profile.scope is not Scope.KEY)
        )
        is_certain = shape.touches_one_row and not getattr(self.profile.facts, "is_alone", True)
        self.tells = shape.returning is not None or not is_certain
        self.lingers = shape.kind == "execute" and may_linger(shape.table)
        found = [(slot, _converter(column)) for slot, column in enumerate(self.columns)]
        self.converts = tuple((slot, convert) for slot, convert in found if convert)

    def row(self, row: Row) -> Row:
        """Return the values of one row as asyncpg takes them; raise `BadValue`."""
        if not self.converts:
            return row
        row = row.copy()
        for slot, convert in self.converts:
            row[slot] = convert(row[slot])
        return row

    def arrays(self, rows: Sequence[Row]) -> list[Any]:
        """Return the values of rows, an array for each column; raise `BadValue`."""
        arrays: list[Any] = list(zip(*rows, strict=True))
        for slot, convert in self.converts:
            arrays[slot] = [convert(value) for value in arrays[slot]]
        return arrays

    def branch(self, number: int, first: int, *, gives_key: bool = False) -> str:
        """Return the part of a WITH that takes arrays ``$first…``; it may give keys back."""
        assert self.profile.facts is not None
        arrays = ", ".join(
            f"${first + slot}::{_array_type(kind)}" for slot, kind in enumerate(self.types)
        )
        names = ", ".join(f"p{slot}" for slot in range(len(self.types)))
        body = _branch_body(
            self.profile.shape, self.profile.facts, f"unnest({arrays}) AS x({names})"
        )
        back = " RETURNING 1" if self.counts else ""
        if gives_key:
            back = f" RETURNING t.{quoted(self.profile.facts.primary_key[0])} AS key"
        return f"b{number} AS ({body}{back})"


def raw_row(types: Sequence[Type], row: Row) -> Row:
    """Return the arguments of raw SQL as asyncpg takes them; raise `BadValue`."""
    converted = row.copy()
    for slot, (kind, value) in enumerate(zip(types, row, strict=False)):
        if kind.name in ("json", "jsonb"):
            converted[slot] = _as_json(value)
        elif _is_zoned(kind.name):
            converted[slot] = _as_aware(value)
    return converted


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def quoted_table(facts: TableFacts) -> str:
    """Return the name of a table with its schema, so that nothing can stand before it."""
    return f"{quoted(facts.schema)}.{quoted(facts.name)}"


def single_sql(shape: Shape, facts: TableFacts) -> str:
    """Return the statement that does one operation, and gives back what is asked of its row."""
    return _single_body(shape, facts) + _returning(shape)


def _returning(shape: Shape) -> str:
    if shape.returning is None:
        return ""
    if shape.returning is True:
        return " RETURNING t.*"
    return " RETURNING " + ", ".join(f"t.{quoted(name)}" for name in shape.returning)


def _single_body(shape: Shape, facts: TableFacts) -> str:
    table = quoted_table(facts)
    places = [f"${n}" for n in range(1, len(shape.columns) + 1)]
    match shape.kind:
        case "insert" | "upsert":
            return f"{_insert(shape, table)} VALUES ({', '.join(places)}){_on_conflict(shape)}"
        case "add" if shape.missing == "insert":
            return f"{_insert(shape, table)} VALUES ({', '.join(places)}){_on_conflict(shape)}"
        case "delete":
            return f"DELETE FROM {table} AS t WHERE {_where(shape, places)}"  # noqa: S608  quoted
        case _:
            sets = _sets(shape, places)
            return f"UPDATE {table} AS t SET {sets} WHERE {_where(shape, places)}"  # noqa: S608  quoted


def _branch_body(shape: Shape, facts: TableFacts, source: str) -> str:
    table = quoted_table(facts)
    places = [f"x.p{slot}" for slot in range(len(shape.columns))]
    match shape.kind:
        case "insert" | "upsert":
            return f"{_insert(shape, table)} SELECT * FROM {source}{_on_conflict(shape)}"  # noqa: S608  quoted
        case "add" if shape.missing == "insert":
            return f"{_insert(shape, table)} SELECT * FROM {source}{_on_conflict(shape)}"  # noqa: S608  quoted
        case "delete":
            where = _where(shape, places)
            return f"DELETE FROM {table} AS t USING {source} WHERE {where}"  # noqa: S608  quoted
        case _:
            sets, where = _sets(shape, places), _where(shape, places)
            return f"UPDATE {table} AS t SET {sets} FROM {source} WHERE {where}"  # noqa: S608  quoted


def _insert(shape: Shape, table: str) -> str:
    return f"INSERT INTO {table} AS t ({', '.join(map(quoted, shape.columns))})"


def _on_conflict(shape: Shape) -> str:
    if shape.kind == "insert":
        return ""
    key = ", ".join(map(quoted, shape.key))
    if shape.kind == "add":
        sets = ", ".join(_sum(name, f"excluded.{name}") for name in _deltas(shape))
    else:
        sets = ", ".join(f"{c} = excluded.{c}" for c in map(quoted, shape.overwritten))
    return f" ON CONFLICT ({key}) DO " + (f"UPDATE SET {sets}" if sets else "NOTHING")


def _deltas(shape: Shape) -> list[str]:
    return [quoted(name) for name in shape.columns[len(shape.key) :]]


def _sets(shape: Shape, places: list[str]) -> str:
    values = places[len(shape.key) :]
    pairs = zip(_deltas(shape), values, strict=True)
    if shape.kind == "add":
        return ", ".join(_sum(name, value) for name, value in pairs)
    return ", ".join(f"{name} = {value}" for name, value in pairs)


def _sum(name: str, value: str) -> str:
    """Add to a column; NULL counts as nothing, or an addition would be lost in silence."""
    return f"{name} = coalesce(t.{name} + {value}, {value})"


def _where(shape: Shape, places: list[str]) -> str:
    pairs = zip(shape.key, places, strict=False)
    return " AND ".join(f"t.{quoted(name)} = {place}" for name, place in pairs)


def _array_type(kind: Type) -> str:
    # Never with a length: a cast to varchar(3)[] would cut values in silence.
    return f"{quoted(kind.schema)}.{quoted(kind.name)}[]"


def _converter(column: ColumnFacts) -> Callable[[Any], Any] | None:
    if column.is_json:
        return _as_json
    if _is_zoned(column.base):
        return _as_aware
    return None


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise BadValue(f"cannot be written as JSON: {exc}") from exc


def _plain(value: Any) -> Any:
    match value:
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case dt.timedelta():
            return value.total_seconds()
        case Decimal() | uuid.UUID():
            return str(value)
        case bytes():
            raise TypeError("bytes are no JSON; write them as text, in base64 for instance")
        case _:
            raise TypeError(f"a {type(value).__qualname__} is no JSON")


def _is_zoned(name: str) -> bool:
    """Say whether values of this type, or of the elements of this array, are times in a zone."""
    return name.removeprefix("_").removesuffix("[]") in _ZONED


def _as_aware(value: Any) -> Any:
    """Return a time, or what holds times, when it means the same wherever the writer runs."""
    match value:
        case dt.datetime():
            if value.tzinfo is None and value not in _INFINITE:
                raise BadValue(
                    f"{value.isoformat()} has no time zone, and its column is a timestamp with "
                    f"time zone: give an aware datetime, as in datetime.now(UTC)"
                )
        case dt.date():
            raise BadValue(
                f"{value.isoformat()} is a date, and its column is a timestamp with time zone: "
                f"give an aware datetime, as its midnight is another one in each zone"
            )
        case list() | tuple():
            for item in value:
                _as_aware(item)
        case Range():
            _as_aware((value.lower, value.upper))
    return value


def may_linger(sql: str) -> bool:
    """Say whether raw SQL may leave something in the session for the next statement to meet.

    By the verbs that it may begin with, it can do so only in a function, as ``set_config`` does, or
    as a SELECT into a temporary table.
    """
    if _TRICKY.search(sql):
        return True  # text that is hard to tell from code
    code = _SKIPPED.sub(" ", sql)
    if _TEMPORARY.search(code):
        return True
    return any(not into and name.lower() not in _HARMLESS for into, name in _OPENED.findall(code))
