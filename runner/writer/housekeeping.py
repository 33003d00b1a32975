"""What the leader throws away in bounded steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.writer.queries import query

if TYPE_CHECKING:
    from asyncpg import Connection, Record

__all__ = ["forget"]

PAGE = 1_000
"""Rows that one statement deletes: about ten milliseconds, for which nothing is committed."""
PAGES_AT_ONCE = 10


async def forget(connection: Connection[Record], keep_ms: int) -> int:
    """Delete rows of the job log that are older, the oldest first; return how many.

    The rest goes the next time: a log that was kept for ever may have many.
    """
    deleted = 0
    for _ in range(PAGES_AT_ONCE):
        said = await connection.execute(query("forget_job_log"), keep_ms / 1000, PAGE)
        count = int(said.rpartition(" ")[2])
        deleted += count
        if count < PAGE:
            break
    return deleted
