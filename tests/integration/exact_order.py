"""Units that depend on each other, and what they must do: one at a time, in plain SQL.

Nothing here knows of the product's planner, statements or errors. `run_exactly` is the judge: each
unit in a transaction of its own, each operation a statement of its own.

The one difference that is allowed is the documented one: foreign keys are looked at when a
statement that does many operations ends. So a unit that the judge would refuse, because a row that
it refers to is not there, may have been accepted; the judge then goes on with that unit applied,
its foreign keys deferred, and all else about it must pass.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg

if TYPE_CHECKING:
    from asyncpg import Connection, Record

    from runner.writer import UnitBuilder

SCHEMA = Path(__file__).with_suffix(".sql").read_text()
FOREIGN_KEY = "23503"

Row: TypeAlias = Mapping[str, Any]
Verdicts: TypeAlias = "list[bool]"
Rows: TypeAlias = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Table:
    """What operations are made of: values for each column; the first columns are the key."""

    columns: Mapping[str, Sequence[Any]]
    key: tuple[str, ...] = ("id",)
    other_keys: tuple[tuple[str, ...], ...] = ()
    summed: Mapping[str, Sequence[Any]] = field(default_factory=lambda: {"n": (1, 2, -1, -3)})
    hidden: tuple[str, ...] = ()
    """Columns that the database numbers: numbers may be left out, also one at a time."""


KEYS = (0, 1, 2)
SMALL = (1, 2, 3, 4, 5, 6, -1, 0)
WORDS = ("a", "b", "c", None)
# An UPDATE by a value that is too long fails without a row to update, if Postgres makes a custom
# plan for it, and passes if it makes a generic one.
NOT_MOVED = ("by_name",)
NO_SUMS: Mapping[str, Sequence[Any]] = {}

TABLES: Mapping[str, Table] = {
    "parent": Table(
        {"id": KEYS, "email": WORDS, "n": SMALL, "s": ("x", "y", None)}, other_keys=(("email",),)
    ),
    "child": Table({"id": KEYS, "parent": (*KEYS, None), "n": SMALL}, other_keys=(("parent",),)),
    "late_child": Table({"id": KEYS, "parent": KEYS}, summed={"parent": (1, -1)}),
    "by_email": Table({"id": KEYS, "email": WORDS, "tags": ([1], [])}, summed=NO_SUMS),
    "boss": Table({"id": KEYS, "n": SMALL}),
    "owned": Table({"id": KEYS, "boss": KEYS, "n": SMALL}),
    "linked": Table({"id": KEYS, "boss": KEYS, "n": SMALL}),
    "chief": Table({"id": KEYS, "n": SMALL}),
    "kept": Table({"id": KEYS, "chief": KEYS}, summed={"chief": (1, -1)}),
    "tree": Table({"id": KEYS, "up": (*KEYS, None), "n": SMALL}),
    "stock": Table(
        {"sku": ("a", "b"), "n": SMALL, "x": (Decimal("0.5"), 1, 2, None, 5, 3)},
        key=("sku",),
        summed={"n": (1, 2, -1, -2), "x": (1, 2, Decimal("0.5"), Decimal(-1))},
    ),
    "share": Table({"id": KEYS, "n": (1, 2, 0)}, summed={"n": (1, -1, 2, -2)}),
    "small": Table(
        {"id": KEYS, "n": (1, 32766), "f": (0.1, 1e300), "d": (Decimal("0.25"), 999)},
        summed={
            "n": (1, 30000, -30000, -1),
            "f": (0.1, 0.2, 1e16, -1e16),
            "d": (Decimal("0.05"), Decimal("0.1"), 900, -900),
            "big": (2, 1, -1, -5),
        },
    ),
    "partial": Table({"id": KEYS, "n": SMALL, "s": WORDS}),
    "numbered": Table({"s": WORDS, "n": SMALL}, key=("s",), other_keys=(("n",),), hidden=("id",)),
    "fixed": Table({"id": KEYS, "n": SMALL}),
    "twins": Table({"a": (0, 1), "b": ("x", "y"), "n": SMALL}, key=("b", "a")),
    "from_a": Table({"a": KEYS, "n": SMALL}, key=("a",), other_keys=(("g",),)),
    "keyless": Table({"a": KEYS, "n": SMALL}, key=("a",)),
    "by_word": Table({"word": ("a", "A", "b"), "n": SMALL}, key=("word",)),
    "by_span": Table(
        {"span": (timedelta(days=1), timedelta(hours=24), timedelta(days=30)), "n": SMALL},
        key=("span",),
    ),
    "by_char": Table({"c": ("a", "a ", "b"), "n": SMALL}, key=("c",)),
    "by_name": Table({"name": ("a", "b", "ab", "ab ", "abc"), "n": SMALL}, key=("name",)),
    "by_float": Table({"f": (0.0, -0.0, 1, 1.0), "n": SMALL}, key=("f",)),
    "by_sound": Table({"s": ("a", "A", "b"), "n": SMALL}, key=("s",)),
    "room": Table(
        {
            "id": KEYS,
            "place": (1, 2),
            "during": ([1, 3], [2, 5], [5, 6], None),
        },
        summed={"place": (1, -1)},
    ),
    "seat": Table({"id": KEYS, "place": KEYS, "n": SMALL}, other_keys=(("place",),)),
    "bench": Table({"id": KEYS, "place": KEYS, "n": SMALL}, other_keys=(("place",),)),
    "audited": Table({"id": KEYS, "n": SMALL}),
    "counted": Table({"id": KEYS, "n": SMALL}),
    "balanced": Table({"id": KEYS, "n": SMALL}),
    "limited": Table({"id": (*KEYS, 3), "n": (1, 2)}),
    "total": Table({"id": KEYS, "n": SMALL}),
    "positive": Table({"id": KEYS, "n": SMALL}),
}

FAMILIES: Sequence[tuple[str, ...]] = (
    ("parent", "child", "late_child"),
    ("parent", "by_email"),
    ("parent",),
    ("boss", "owned", "linked"),
    ("chief", "kept"),
    ("tree",),
    ("stock",),
    ("share", "small"),
    ("small",),
    ("partial",),
    ("numbered", "fixed"),
    ("twins", "from_a"),
    ("keyless", "twins"),
    ("by_word", "by_span"),
    ("by_char", "by_name"),
    ("by_float", "by_sound"),
    ("room",),
    ("seat", "bench"),
    ("seat", "stock"),
    ("audited", "total"),
    ("counted", "stock"),
    ("balanced", "parent"),
    ("limited", "parent"),
    ("total", "positive"),
    ("parent", "stock", "twins"),
)

RAW: Mapping[str, Sequence[tuple[str, tuple[Any, ...]]]] = {
    "parent": (
        ("UPDATE parent SET n = n * $1 WHERE id >= $2", (2, 1)),
        ("DELETE FROM parent WHERE email = $1", ("a",)),
        ("INSERT INTO parent (id, email) SELECT max(id) + 1, $1 FROM parent", ("c",)),
    ),
    "child": (("INSERT INTO child SELECT id, id, n FROM parent WHERE id = $1", (1,)),),
    "stock": (("UPDATE stock SET n = 3 - n WHERE sku = $1", ("a",)),),
    "seat": (("UPDATE seat SET place = $1 - place", (2,)),),
    "boss": (("DELETE FROM boss WHERE id < $1", (2,)),),
    "tree": (("UPDATE tree SET up = NULL WHERE up = $1", (1,)),),
    "balanced": (("UPDATE balanced SET n = -n WHERE id = $1", (1,)),),
    "counted": (("TRUNCATE counted", ()),),
}

FOREIGN_KEYS = (
    ("child", "parent", "parent", "id"),
    ("late_child", "parent", "parent", "id"),
    ("by_email", "email", "parent", "email"),
    ("owned", "boss", "boss", "id"),
    ("linked", "boss", "boss", "id"),
    ("kept", "chief", "chief", "id"),
    ("tree", "up", "tree", "id"),
)
DEFERRED = "seat_place_key, check_balance"
ORPHANS = " UNION ALL ".join(
    f"SELECT '{table}.{column}', c.id, c.{column}::text FROM {table} c WHERE c.{column} IS NOT NULL"
    f" AND NOT EXISTS (SELECT FROM {other} p WHERE p.{target} = c.{column})"
    for table, column, other, target in FOREIGN_KEYS
)


@dataclass(frozen=True, slots=True)
class Op:
    """One call of a unit's, with what it was given."""

    kind: str
    table: str
    row: Row = field(default_factory=dict)
    key: tuple[str, ...] = ()
    option: Any = None
    rows: tuple[Row, ...] = ()

    def give(self, unit: UnitBuilder) -> None:
        """Call the product."""
        key = {name: self.row[name] for name in self.key}
        rest = {name: value for name, value in self.row.items() if name not in self.key}
        match self.kind:
            case "insert":
                unit.insert(self.table, **self.row)
            case "insert_many":
                unit.insert_many(self.table, self.rows)
            case "upsert":
                unit.upsert(self.table, self.row, key=self.key, update=self.option)
            case "add":
                unit.add(self.table, key=key, missing=self.option, **rest)
            case "update":
                unit.update(self.table, key=key, **rest)
            case "move":  # the key itself changes
                unit.update(self.table, key=key, **self.option)
            case "delete":
                unit.delete(self.table, key=key)
            case _:
                unit.execute(self.table, *self.option)

    def statements(self) -> list[Statement]:  # noqa: PLR0911  one for each kind
        """Write down in SQL what the call means."""
        names = tuple(self.row)
        match self.kind:
            case "insert":
                return [_insert(self.table, self.row)]
            case "insert_many":
                return [_insert(self.table, row) for row in self.rows]
            case "upsert":
                sql, values, _ = _insert(self.table, self.row)
                chosen = [n for n in names if n not in self.key]
                chosen = chosen if self.option is None else list(self.option)
                sets = ", ".join(f"{name} = EXCLUDED.{name}" for name in chosen)
                action = f"UPDATE SET {sets}" if sets else "NOTHING"
                return [(f"{sql} ON CONFLICT ({', '.join(self.key)}) DO {action}", values, False)]
            case "add" if self.option == "insert":
                sql, values, _ = _insert(self.table, self.row)
                sets = ", ".join(
                    f"{n} = coalesce({self.table}.{n} + EXCLUDED.{n}, EXCLUDED.{n})"
                    for n in names
                    if n not in self.key
                )
                return [
                    (
                        f"{sql} ON CONFLICT ({', '.join(self.key)}) DO UPDATE SET {sets}",
                        values,
                        False,
                    )
                ]
            case "add":
                sets = ", ".join(
                    f"{n} = CASE WHEN {n} IS NULL THEN ${at} ELSE {n} + ${at} END"
                    for at, n in enumerate(names, start=1)
                    if n not in self.key
                )
                sql = f"UPDATE {self.table} SET {sets} WHERE {_where(names, self.key)}"
                return [(sql, tuple(self.row.values()), self.option == "reject")]
            case "update":
                sets = ", ".join(
                    f"{n} = ${at}" for at, n in enumerate(names, start=1) if n not in self.key
                )
                sql = f"UPDATE {self.table} SET {sets} WHERE {_where(names, self.key)}"
                return [(sql, tuple(self.row.values()), False)]
            case "move":
                first = len(names) + 1
                sets = ", ".join(f"{n} = ${at}" for at, n in enumerate(self.option, start=first))
                sql = f"UPDATE {self.table} SET {sets} WHERE {_where(names, self.key)}"
                return [(sql, (*self.row.values(), *self.option.values()), False)]
            case "delete":
                sql = f"DELETE FROM {self.table} WHERE {_where(names, self.key)}"
                return [(sql, tuple(self.row.values()), False)]
            case _:
                return [(self.table, self.option, False)]


Statement: TypeAlias = tuple[str, tuple[Any, ...], bool]
"""SQL, its arguments, and whether it has to touch a row."""


def _insert(table: str, row: Row) -> Statement:
    places = ", ".join(f"${at}" for at in range(1, len(row) + 1))
    return (f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", tuple(row.values()), False)


def _where(names: Sequence[str], key: Sequence[str]) -> str:
    return " AND ".join(f"{name} = ${names.index(name) + 1}" for name in key)


def operations_of(family: Sequence[str], number: float = 160) -> list[Op]:
    """Return operations on these tables, always the same; the simpler ones first."""
    chance = random.Random(" ".join(family))
    found: dict[str, Op] = {}
    while len(found) < number:
        op = _operation(chance, chance.choice(family))
        found[repr(op)] = op
        number -= 0.2  # where there are not so many
    return sorted(found.values(), key=lambda op: (len(repr(op)), repr(op)))


def _operation(chance: random.Random, name: str) -> Op:  # noqa: PLR0911  one for each kind
    table = TABLES[name]
    row = {column: chance.choice(values) for column, values in table.columns.items()}
    by_key = (
        table.key
        if not table.other_keys or chance.random() < 0.75
        else (chance.choice(table.other_keys))
    )
    key = {column: _key_value(chance, table, column) for column in by_key}
    weights = {
        "insert": 5, "insert_many": 2, "upsert": 4, "add": 5, "update": 4, "move": 1, "delete": 4,
        "execute": 1,
    }  # fmt: skip
    kind = chance.choices(list(weights), list(weights.values()))[0]
    rest = [column for column in row if column not in by_key]
    match kind:
        case "insert":
            left_out = chance.choice((None, None, *row)) if len(row) > 1 else None
            return Op(kind, name, {c: v for c, v in row.items() if c != left_out})
        case "insert_many":
            return Op(kind, name, rows=tuple(
                {c: chance.choice(v) for c, v in table.columns.items() if chance.random() < 0.8}
                or row
                for _ in range(2)
            ))  # fmt: skip
        case "upsert" if set(by_key) <= set(row):
            update = chance.choice((None, [], rest[:1], rest[-1:]))
            return Op(kind, name, {**row, **key}, by_key, update)
        case "add" if table.summed:
            chosen = chance.choice([c for c in table.summed if c not in by_key] or [""])
            if not chosen:
                return Op("insert", name, row)
            missing = chance.choice(("reject", "insert", "ignore"))
            return Op(
                kind, name, {**key, chosen: chance.choice(table.summed[chosen])}, by_key, missing
            )
        case "update" if rest:
            column = chance.choice(rest)
            return Op(kind, name, {**key, column: row[column]}, by_key)
        case "move" if set(by_key) <= set(row) and name not in NOT_MOVED:
            changed = {column: _key_value(chance, table, column) for column in by_key}
            return Op(kind, name, key, by_key, changed)
        case "delete":
            return Op(kind, name, key, by_key)
        case "execute" if name in RAW:
            sql, args = chance.choice(RAW[name])
            return Op(kind, sql, option=args)
        case _:
            return Op("insert", name, row)


def _key_value(chance: random.Random, table: Table, column: str) -> Any:
    values = [v for v in table.columns.get(column, KEYS) if v is not None]
    return chance.choice(values)


async def rows_of(connection: Connection[Record]) -> Rows:
    """Return the rows of all tables, without what the database numbers."""
    found: Rows = {}
    for name, table in TABLES.items():
        hidden = ("at", "id") if name == "log" else table.hidden
        records = await connection.fetch(f"SELECT * FROM {name}")
        found[name] = sorted(
            (tuple((k, v) for k, v in record.items() if k not in hidden) for record in records),
            key=repr,
        )
    log = await connection.fetch("SELECT what FROM log ORDER BY at")
    found["log"] = [tuple(record) for record in log]
    return found


async def empty(connection: Connection[Record]) -> None:
    """Delete all rows, without a trigger or an action of a foreign key."""
    names = [name for name in TABLES if name != "positive"]
    await connection.execute(
        "SET session_replication_role = replica;"
        + ";".join(f"DELETE FROM {name}" for name in (*names, "log"))
        + ";RESET session_replication_role"
    )


class Refused(Exception):  # noqa: N818
    """An operation that fails, and why."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


async def run_exactly(
    connection: Connection[Record], units: Sequence[Sequence[Op]], accepted: Sequence[bool]
) -> tuple[Verdicts, int]:
    """Run units one at a time; return which of them pass, and how many only by the relaxation.

    Only where a unit that was accepted fails by a foreign key does the judge look at what was
    accepted; from there on it runs the units in one transaction with foreign keys deferred.
    """
    verdicts: Verdicts = []
    for at, unit in enumerate(units):
        try:
            async with connection.transaction():
                await _run_unit(connection, unit)
        except Refused as refused:
            if refused.sqlstate == FOREIGN_KEY and accepted[at]:
                rest, relaxed = await _run_relaxed(connection, units[at:], accepted[at:])
                return verdicts + rest, relaxed
            verdicts.append(False)
        except asyncpg.PostgresError as error:  # at its commit
            if error.sqlstate == FOREIGN_KEY and accepted[at]:
                rest, relaxed = await _run_relaxed(connection, units[at:], accepted[at:])
                return verdicts + rest, relaxed
            verdicts.append(False)
        else:
            verdicts.append(True)
    return verdicts, 0


async def _run_relaxed(
    connection: Connection[Record], units: Sequence[Sequence[Op]], accepted: Sequence[bool]
) -> tuple[Verdicts, int]:
    verdicts: Verdicts = []
    relaxed = 0
    async with connection.transaction():
        await connection.execute("SET CONSTRAINTS ALL DEFERRED")
        await connection.execute("SET CONSTRAINTS bench_pkey, bench_place_key IMMEDIATE")
        for unit, was_accepted in zip(units, accepted, strict=True):
            before = await _orphans(connection)
            try:
                async with connection.transaction():
                    breaks = await _run_unit(connection, unit, before)
                    await connection.execute(
                        f"SET CONSTRAINTS {DEFERRED} IMMEDIATE;SET CONSTRAINTS {DEFERRED} DEFERRED"
                    )
                    if breaks and not was_accepted:
                        raise Refused(FOREIGN_KEY)  # noqa: TRY301  rolls the unit back
                    relaxed += breaks
            except (Refused, asyncpg.PostgresError):
                verdicts.append(False)
            else:
                verdicts.append(True)
    return verdicts, relaxed


async def _run_unit(
    connection: Connection[Record], unit: Sequence[Op], orphans: set[Any] | None = None
) -> bool:
    """Run the statements of a unit; return whether one of them left an orphan of its own."""
    breaks = False
    for op in unit:
        for sql, args, must_touch in op.statements():
            try:
                status = await _execute(connection, sql, args)
            except asyncpg.PostgresError as error:
                raise Refused(error.sqlstate or "") from error
            except (asyncpg.InterfaceError, ValueError, TypeError) as error:
                raise Refused("") from error
            if must_touch and status == "UPDATE 0":
                raise Refused("missing")
            if orphans is not None:
                now = await _orphans(connection)
                breaks = breaks or not now <= orphans
                orphans = now
    return breaks


async def _execute(connection: Connection[Record], sql: str, args: tuple[Any, ...]) -> str:
    prepared = await connection.prepare(sql)
    await prepared.fetch(*args)
    return str(prepared.get_statusmsg())


async def _orphans(connection: Connection[Record]) -> set[Any]:
    return {tuple(record) for record in await connection.fetch(ORPHANS)}
