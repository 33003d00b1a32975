"""Load the writer's named SQL, and bring its own tables up to date."""

from __future__ import annotations

import functools
import re
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncpg import Connection, Record

__all__ = ["migrate", "migrations", "query"]

_NAME = re.compile(r"^-- name: *(\w+)\n", re.MULTILINE)


def query(name: str) -> str:
    """Return the query of that name in ``sql/queries.sql``."""
    return _queries()[name]


@functools.cache
def migrations() -> tuple[tuple[int, str], ...]:
    """Return the migrations in order: number and text."""
    folder = resources.files("runner").joinpath("sql", "migrations")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return tuple((int(file.name.split("_")[0]), file.read_text("utf-8")) for file in files)


async def migrate(connection: Connection[Record]) -> None:
    """Apply the migrations that are missing; two starters at once wait for each other.

    Where none is missing, no right to create anything is needed.
    """
    if await connection.fetchval(query("has_migrations")) and not await _missing(connection):
        return
    async with connection.transaction():
        await connection.execute(query("migrations_lock"))
        await connection.execute(query("migrations_table"))
        for number, sql in await _missing(connection):
            await connection.execute("INSERT INTO runner.migrations (number) VALUES ($1)", number)
            await connection.execute(sql)


async def _missing(connection: Connection[Record]) -> list[tuple[int, str]]:
    rows = await connection.fetch("SELECT number FROM runner.migrations")
    applied = {row["number"] for row in rows}
    return [(number, sql) for number, sql in migrations() if number not in applied]


@functools.cache
def _queries() -> dict[str, str]:
    text = resources.files("runner").joinpath("sql", "queries.sql").read_text("utf-8")
    _, *parts = _NAME.split(text)
    return {name: sql.strip() for name, sql in zip(parts[::2], parts[1::2], strict=True)}
