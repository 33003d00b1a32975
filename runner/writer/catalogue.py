"""Learn about tables on first use, and make the statements of each shape.

Facts and statements are kept for a minute, and forgotten at once when Postgres says that they
are stale: a migration may have changed the tables under the writer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import asyncpg

from runner.errors import DecodeError, UnitError, WriteRejected, did_you_mean
from runner.writer.facts import ColumnFacts, TableFacts, version_sql
from runner.writer.failures import TIMED_OUT, is_about_data, rejection
from runner.writer.profiles import Scope, profile_of
from runner.writer.queries import query
from runner.writer.statements import Statements, quoted, single_sql
from runner.writer.units import check_verb, parse_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from asyncpg import Connection, Record

    from runner.writer.entries import Unit
    from runner.writer.profiles import Profile
    from runner.writer.units import Shape

__all__ = ["Catalogue", "Known"]

FRESH_S = 60.0
SHAPES_AT_MOST = 2_000
NUMERIC_HEADER = 4
_VERSION = f"SELECT {version_sql('$1::oid[]', '$2::oid[]')}"
JOB_LOG = "job_log"
"""The one table of the writer's schema that units may write to."""

Known = dict[str, Statements]


class Catalogue:
    """The tables and shapes that this connection has met."""

    def __init__(self, connection: Connection[Record]) -> None:
        self._connection = connection
        self._tables: dict[str, TableFacts] = {}
        self._shapes: Known = {}
        self._flush: str | None = None
        self._learnt_at = time.monotonic()

    async def know(self, texts: Iterable[str]) -> tuple[Known, dict[str, WriteRejected]]:
        """Return the statements of these shapes, and why some can never work.

        Raises:
            asyncpg.PostgresError: of a class that says nothing about the shapes.
        """
        if self._is_old():
            self._forget()
        refused: dict[str, WriteRejected] = {}
        for text in texts:
            if text in self._shapes:
                continue
            try:
                self._shapes[text] = await self._learn(text)
            except WriteRejected as exc:
                refused[text] = exc
        return self._shapes, refused

    def known(self, units: Iterable[Unit]) -> Known | None:
        """Return the statements if every shape of these units is known, without asking."""
        if self._is_old():
            return None
        shapes = self._shapes
        for unit in units:
            if unit.problem:
                return None
            for text, _ in unit.operations:
                if text not in shapes:
                    return None
        return shapes

    async def reload(self) -> None:
        """Forget everything, asyncpg's own knowledge of types included."""
        self._forget()
        await self._connection.reload_schema_state()

    def _is_old(self) -> bool:
        age_s = time.monotonic() - self._learnt_at
        return age_s > FRESH_S or len(self._shapes) > SHAPES_AT_MOST

    def _forget(self) -> None:
        self._tables.clear()
        self._shapes = {}
        self._flush = None
        self._learnt_at = time.monotonic()

    async def _learn(self, text: str) -> Statements:
        try:
            shape = parse_shape(text)
            if shape.kind == "execute":
                check_verb(shape.table)
        except (DecodeError, UnitError) as exc:
            raise WriteRejected(str(exc), statement=text[:200]) from exc
        if shape.kind == "execute":
            profile = profile_of(text, shape, None)
            return Statements(profile, shape.table, (), (), await self._flush_for(profile))
        if shape.table in self._tables:
            try:
                return await self._make(text, shape, self._tables[shape.table])
            except WriteRejected:
                pass  # the table may have changed since it was looked at
        facts = self._tables[shape.table] = await self._load(shape.table)
        return await self._make(text, shape, facts)

    async def _make(self, text: str, shape: Shape, facts: TableFacts) -> Statements:
        _check_columns(shape, facts)
        sql = single_sql(shape, facts)
        return await self._describe(profile_of(text, shape, facts), facts, sql)

    async def _describe(self, profile: Profile, facts: TableFacts, sql: str) -> Statements:
        """Ask Postgres for the types of the parameters, which carry no lengths."""
        try:
            prepared = await self._connection.prepare(sql)
        except asyncpg.PostgresError as exc:
            if is_about_data(exc) and exc.sqlstate != TIMED_OUT:
                raise rejection(exc, sql) from exc
            raise  # what takes long is the wait for a lock on the table
        columns = [facts.columns[name] for name in profile.shape.columns]
        types = tuple(prepared.get_parameters())
        flush = await self._flush_for(profile)
        return Statements(profile, sql, types, tuple(columns), flush)

    async def _flush_for(self, profile: Profile) -> str:
        """Return what makes Postgres look at deferred constraints, where the shape may need it.

        Deferred foreign keys need it not: to look at them late is the one relaxation.
        """
        if profile.scope is not Scope.ALL and not (profile.facts and profile.facts.is_deferred):
            return ""
        if self._flush is None:
            rows = await self._connection.fetch(query("deferred"))
            names = ", ".join(f"{quoted(row['schema'])}.{quoted(row['name'])}" for row in rows)
            self._flush = names and (
                f"SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS {names} DEFERRED"
            )
        return self._flush

    async def _load(self, table: str) -> TableFacts:
        schema, dot, name = table.rpartition(".")
        row = await self._connection.fetchrow(query("table"), schema if dot else None, name)
        if row is None or (row["schema"] == "runner" and name != JOB_LOG):
            raise await self._no_such_table(table)
        oid = row["oid"]
        # Before the facts: what changes while they are read shows with the first batch.
        version = await self._connection.fetchval(_VERSION, [oid], row["partitions"])
        columns = await self._connection.fetch(query("columns"), oid)
        indexes = await self._connection.fetch(query("indexes"), oid)
        checked = await self._connection.fetch(query("checked"), oid)
        references = await self._connection.fetch(query("references"), oid)
        return TableFacts(
            oid=oid,
            partitions=tuple(row["partitions"]),
            version=version,
            schema=row["schema"],
            name=row["name"],
            columns={column["name"]: _column(column) for column in columns},
            primary_key=_primary_key(indexes, columns),
            unique_columns=_unique_columns(indexes, columns),
            checked=frozenset(found["attname"] for found in checked).union(
                column["name"] for column in columns if column["is_domain"]
            ),
            is_alone=row["is_alone"],
            is_deferred=row["is_deferred"],
            acts_on_delete=row["acts_on_delete"],
            acts_on_update=row["acts_on_update"],
            references=tuple((frozenset(key["columns"]), key["parent"]) for key in references),
            referenced_by=tuple(row["referenced_by"]),
        )

    async def _no_such_table(self, table: str) -> WriteRejected:
        rows = await self._connection.fetch(query("table_names"))
        hint = did_you_mean(table, [row[0] for row in rows])
        return WriteRejected(
            f"there is no table {table!r} to write to{hint}", sqlstate="42P01", table=table
        )


def _check_columns(shape: Shape, facts: TableFacts) -> None:
    asked = shape.returning if isinstance(shape.returning, tuple) else ()
    for name in (*shape.columns, *asked):
        if name not in facts.columns:
            raise WriteRejected(
                f"table {shape.table!r} has no column {name!r}{did_you_mean(name, facts.columns)}",
                sqlstate="42703",
                table=shape.table,
            )


def _column(row: Record) -> ColumnFacts:
    base, typmod = row["base"], row["typmod"]
    length = typmod - NUMERIC_HEADER if base == "varchar" and typmod >= 0 else None
    return ColumnFacts(
        base=base,
        kind=row["kind"],
        is_array=row["is_array"],
        is_domain=row["is_domain"],
        bounded=typmod >= 0 and length is None,
        length=length,
        deterministic=row["deterministic"],
        scale=_scale(typmod) if base == "numeric" and typmod >= 0 else None,
        numbered=row["is_numbered"],
    )


def _scale(typmod: int) -> int:
    """Return the scale that a numeric's type modifier holds in its low eleven bits, signed."""
    return (((typmod - NUMERIC_HEADER) & 0x7FF) ^ 1024) - 1024


def _primary_key(indexes: Sequence[Record], columns: Sequence[Record]) -> tuple[str, ...]:
    """Return the columns of the primary key; () for one that changes when others do."""
    key = next((tuple(index["columns"]) for index in indexes if index["is_primary"]), ())
    generated = {column["name"] for column in columns if column["is_generated"]}
    return key if generated.isdisjoint(key) else ()


def _unique_columns(indexes: Sequence[Record], columns: Sequence[Record]) -> frozenset[str]:
    others = [index for index in indexes if not index["is_primary"]]
    found: set[Any] = {name for index in others for name in index["columns"]}
    generated = {column["name"] for column in columns if column["is_generated"]}
    covered = {name for index in indexes for name in index["columns"]}
    if any(index["is_complex"] for index in others) or not covered.isdisjoint(generated):
        # An expression, a predicate or a generated column may look at any column.
        found = {column["name"] for column in columns}
    return frozenset(found)
