"""What a job knows as ``ctx.db``: writes that are collected, and reads of its own."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import asyncpg

from runner.errors import WriterUnavailable
from runner.writer.units import UnitBuilder

if TYPE_CHECKING:
    from asyncpg import Pool, Record

__all__ = ["JobDatabase", "ReadPool"]

logger = logging.getLogger("runner.writer")

CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 5.0


class ReadPool:
    """A few read-only connections that all jobs of a worker share; opened at the first read."""

    def __init__(self, database_url: str, *, max_size: int = 2) -> None:
        self._database_url = database_url
        self._max_size = max_size
        self._pool: Pool | None = None
        self._opening = asyncio.Lock()

    async def pool(self) -> Pool:
        """Return the open pool.

        Raises:
            WriterUnavailable: the database does not answer.
        """
        async with self._opening:
            if self._pool is None:
                self._pool = await self._open()
            return self._pool

    async def close(self) -> None:
        """Close the connections; the next read opens them again."""
        async with self._opening:
            pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await asyncio.wait_for(pool.close(), CLOSE_TIMEOUT_S)
        except TimeoutError:
            logger.warning("a read was still running at the end of the worker: terminated")
            pool.terminate()

    async def _open(self) -> Pool:
        try:
            # With no connection to open, this does not wait for the database yet.
            return await asyncpg.create_pool(
                self._database_url,
                min_size=0,
                max_size=self._max_size,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                server_settings={
                    "application_name": "arq-runner reads",
                    "default_transaction_read_only": "on",
                },
            )
        except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            raise WriterUnavailable(f"cannot read from the database: {exc}") from exc


class JobDatabase(UnitBuilder):
    """The database as a job sees it: collect writes, read at once.

    Reads see what is committed, so never the writes of the job itself::

        order = await ctx.db.fetchrow("SELECT * FROM orders WHERE id = $1", order_id)
        ctx.db.update("orders", key={"id": order_id}, state="paid")
    """

    def __init__(self, reads: ReadPool | None = None) -> None:
        super().__init__()
        self._reads = reads

    async def fetch(self, sql: str, /, *args: Any) -> list[Record]:
        """Return all rows of a query."""
        pool = await self._pool()
        return await pool.fetch(sql, *args)

    async def fetchrow(self, sql: str, /, *args: Any) -> Record | None:
        """Return the first row of a query, or None."""
        pool = await self._pool()
        return await pool.fetchrow(sql, *args)

    async def fetchval(self, sql: str, /, *args: Any) -> Any:
        """Return the first value of the first row, or None."""
        pool = await self._pool()
        return await pool.fetchval(sql, *args)

    async def _pool(self) -> Pool:
        if self._reads is None:
            raise WriterUnavailable(
                "there is no database to read from: give WorkerSettings a database_url",
            )
        return await self._reads.pool()
