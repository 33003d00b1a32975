"""What a job knows as ``ctx.db``: writes that are collected, and reads of its own."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NoReturn, cast

import asyncpg

from runner.errors import (
    AttemptOver,
    CommitTimeout,
    LeaseLost,
    UnitChanged,
    UnitError,
    WriteRejected,
    WriterUnavailable,
)
from runner.tasks import seconds
from runner.types import Committed
from runner.writer.hosts import first_of
from runner.writer.tally import read_tally
from runner.writer.units import UnitBuilder

if TYPE_CHECKING:
    from datetime import timedelta

    from asyncpg import Connection, Pool, Record

    from runner.writer.commits import JobCommits

__all__ = ["JobDatabase", "ReadPool"]

logger = logging.getLogger("runner.writer")

CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 5.0
ROWS_AT_MOST = 1_000
ROWS_BYTES = 1_000_000
UNIT_BYTES = 64 * 1024 * 1024
"""What a job may write in one unit: Redis takes no more than 512 MB at a time, and holds still."""


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

    async def read(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """Return the rows of a query of ours.

        Raises:
            WriterUnavailable: the database does not answer, or says no.
        """
        pool = await self.pool()
        try:
            return [dict(row) for row in await pool.fetch(sql, *values)]
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            raise WriterUnavailable(f"cannot read from the database: {exc!r}") from exc

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
                connect=cast("Any", _connect),
                command_timeout=COMMAND_TIMEOUT_S,
                server_settings={
                    "application_name": "arq-runner reads",
                    "default_transaction_read_only": "on",
                },
            )
        except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            raise WriterUnavailable(f"cannot read from the database: {exc}") from exc


async def _connect(database_url: str, **options: Any) -> Connection[Record]:
    """Open a connection of the pool."""

    async def connect(url: str, timeout_s: float) -> Connection[Record]:
        return await asyncpg.connect(url, timeout=timeout_s, **options)

    return await first_of(database_url, connect, timeout_s=CONNECT_TIMEOUT_S)


class _Ended(list[bytes]):
    """The operations of a job that has ended: takes none, so that the others pay no look."""

    def append(self, _operation: bytes) -> NoReturn:
        raise AttemptOver(_OVER)

    def extend(self, _operations: object) -> NoReturn:
        raise AttemptOver(_OVER)


_OVER = (
    "this job has ended, at its time limit or by an abort, while its function goes on: nothing "
    "that it writes can be committed. Let it end at a cancellation"
)


class JobDatabase(UnitBuilder):
    """The database as a job sees it: collect writes, read at once.

    What is collected is submitted with the job's completion, or by `commit` before it. Reads see
    what is committed, so never the writes of the job that are not::

        order = await ctx.db.fetchrow("SELECT * FROM orders WHERE id = $1", order_id)
        ctx.db.update("orders", key={"id": order_id}, state="paid")
    """

    def __init__(self, reads: ReadPool | None = None, commits: JobCommits | None = None) -> None:
        super().__init__()
        self._reads = reads
        self._commits = commits
        self._number = 0
        self._unsure = 0
        self.refused: WriteRejected | None = None
        """The refusal that `commit` raised last."""

    def end(self) -> None:
        """Forget what was collected, and raise `AttemptOver` for what comes."""
        self.clear()
        self._parts = _Ended()

    async def commit(
        self,
        *,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109  what it ends goes on elsewhere
        max_rows: int = ROWS_AT_MOST,
        max_bytes: int = ROWS_BYTES,
    ) -> Committed:
        """Submit what has been collected, and return when it is committed.

        What the job writes from then on is a unit of its own. A commit stands, whatever becomes
        of the job: when the job runs again, its n-th commit is found to be there already, and
        gives the same answer without writing twice. So a job that commits is a line of steps, and
        must write the same in every attempt up to its last commit::

            ctx.db.insert("orders", customer=customer, returning=["id"])
            order_id = (await ctx.db.commit()).rows[0][0]["id"]

        With nothing collected it returns at once. When it is cancelled, as by the job's time
        limit or an abort, the unit may be on its way all the same.

        Args:
            timeout: seconds to wait for the commit; None waits as long as the job may run.
            max_rows: how many rows ``returning`` may bring back in all.
            max_bytes: how many bytes these may have.

        Returns:
            For each call since the last commit what it did, in order.

        Raises:
            UnitError: the writes are too many for one unit; nothing was submitted.
            WriteRejected: Postgres refused the unit; nothing of it was kept. A job may catch
                this and go on: its next commit is a new unit.
            UnitChanged: the job ran before, and committed something else at this place.
            ResultTooLarge: the rows were too many; the unit is committed.
            CommitTimeout: there was no answer in time. The unit is on its way all the same;
                should it be refused later, only the writer's log tells.
            StoreWentBack: Redis lost the unit before it was applied, or what it did.
            LeaseLost: the job runs elsewhere.
            AttemptOver: the job has ended without this function.
        """
        if isinstance(self._parts, _Ended):
            raise AttemptOver(_OVER)
        self.check_submitted()
        if not len(self):
            return Committed()
        if self._commits is None:
            raise WriterUnavailable("there is no worker here that could commit: nothing was sent")
        operations, calls = self.encode(), self.calls
        self.clear()
        self._number = self._unsure = self._number + 1
        entry = ""
        try:
            async with asyncio.timeout(seconds(timeout)):
                submitted = await self._commits.submit(
                    self._number, operations, max_rows=max_rows, max_bytes=max_bytes
                )
                self._unsure, entry = 0, submitted.entry
                answer = await self._commits.answer(submitted)
        except TimeoutError as exc:
            where = f"it is on its way, as the entry {entry}" if entry else "it may be on its way"
            raise CommitTimeout(
                f"no answer to commit number {self._number} within {seconds(timeout)} s; {where}"
            ) from exc
        except (UnitChanged, LeaseLost):
            self._unsure = 0
            raise
        except WriteRejected as exc:
            self.refused = exc
            raise
        return read_tally(answer, entry, calls)

    def encode(self) -> bytes:
        """Return the operations as the bytes that travel.

        Raises:
            UnitError: they are too many to travel at a time.
        """
        operations = super().encode()
        if len(operations) > UNIT_BYTES:
            raise UnitError(
                f"the writes take {len(operations):,} bytes, more than the {UNIT_BYTES:,} that one "
                f"unit may have: `await ctx.db.commit()` in between, or write in several jobs"
            )
        return operations

    def check_submitted(self) -> None:
        """Raise `WriterUnavailable` when nobody knows whether a commit reached Redis."""
        if self._unsure:
            raise WriterUnavailable(
                f"commit number {self._unsure} was given up before Redis had taken it: what the "
                f"job does behind it cannot stand without it. Run the job again"
            )

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
