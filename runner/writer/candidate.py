"""A candidate for the office of writer: stands for election, and writes while it leads.

::

    standing ──elected──▶ connecting ──lock──▶ leading
        ▲                                         │
        └── fenced, a lost connection, stop ◀─────┘

It runs inside every worker, or alone. While another leads it costs one small call to Redis a
few times a second, and no connection to Postgres.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import RedisError

from runner import keys
from runner.errors import StoreWentBack, WriterUnavailable
from runner.types import Retention
from runner.writer.backlog import Bounds
from runner.writer.election import Election, NotElected
from runner.writer.failures import SESSION_ENDED, Fenced
from runner.writer.guards import STATEMENT_TIMEOUT_S
from runner.writer.office import check_eviction, check_pair, take_office
from runner.writer.pulse import Pulse
from runner.writer.queries import migrate
from runner.writer.session import close, connect, wait_for_lock
from runner.writer.status import writer_status
from runner.writer.term import Term

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record
    from redis.asyncio import Redis

    from runner.codec import Codec
    from runner.types import WriterStatus
    from runner.writer.told import Told

__all__ = ["Candidate"]

logger = logging.getLogger("runner.writer")

POLLS_A_TERM = 5
SOONEST_BACKOFF_S = 0.1
LATEST_BACKOFF_S = 5.0
STOP_TIMEOUT_S = 5.0
NOTE_TIMEOUT_S = 1.0

# What servers and networks do; the next term goes on where this one ended.
_SERVERS = (*SESSION_ENDED, RedisError)


class Candidate:
    """Stands for election until it is stopped, and is the writer while it leads.

    Args:
        redis: a client that does not decode replies.
        database_url: leads to Postgres itself, with no pooler in between.
        codec: what jobs and results are written in.
        name: what it is called in the status; by default host, process and a random part.
        term_s: a leader that does not answer for this long may be replaced.
        bounds: how much may wait for the writer while this one leads.
        retention: how long the dead letters of refused units are kept, and how many; and how
            long the job log is.
        statement_timeout_s: how long one statement may take where Postgres sets no bound.
        told: plain functions that hear of each batch, see `runner.writer.told`.
    """

    def __init__(
        self,
        *,
        redis: Redis,
        database_url: str,
        codec: Codec,
        name: str | None = None,
        term_s: float = 1.0,
        bounds: Bounds | None = None,
        retention: Retention | None = None,
        statement_timeout_s: float = STATEMENT_TIMEOUT_S,
        told: Sequence[Told] = (),
    ) -> None:
        self._redis = redis
        self._database_url = database_url
        self._codec = codec
        self.name = name or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._election = Election(redis, self.name, term_s)
        self._term_s = term_s
        self._bounds = bounds or Bounds()
        self._retention = retention or Retention()
        self._statement_timeout_s = statement_timeout_s
        self._told = told
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._backoff_s = SOONEST_BACKOFF_S
        self._led = False
        self.leading = False

    async def start(self) -> None:
        """Begin to stand for election; a candidate that stands already goes on."""
        if self._task is None:
            self._stopping.clear()
            self._task = asyncio.create_task(self._run(), name=f"writer {self.name}")

    async def stop(self) -> None:
        """Finish the batch under way and resign, so that another takes over at once."""
        task, self._task = self._task, None
        if task is None:
            return
        self._stopping.set()
        if not self.leading:
            task.cancel()
        # Cancelled also when it takes too long: the position row knows how far it came.
        _, late = await asyncio.wait([task], timeout=STOP_TIMEOUT_S)
        if late:
            logger.warning("the writer did not finish its batch in time: given up")
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def status(self) -> WriterStatus:
        """Return the writer's state, whoever leads."""
        return await writer_status(self._redis)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if await self._election.stand():
                    await self._hold_office()
                    continue
                self._backoff_s = SOONEST_BACKOFF_S
            except Exception as exc:  # noqa: BLE001  whatever ended the term, another one follows
                await self._note(exc)
                # Who could not begin lets the others try first.
                first = 0.0 if self._led else self._term_s * 2 / POLLS_A_TERM
                await self._pause(max(self._backoff_s, first))
                self._backoff_s = min(self._backoff_s * 2, LATEST_BACKOFF_S)
            else:
                # Candidates that started together shall not ask together for ever.
                await self._pause(self._term_s / POLLS_A_TERM * random.uniform(0.8, 1.2))  # noqa: S311  no secret

    async def _pause(self, delay_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()

    async def _hold_office(self) -> None:
        self._led = False
        try:
            async with asyncio.TaskGroup() as group:
                heartbeat = group.create_task(self._election.keep(), name="writer heartbeat")
                await self._lead(group)
                heartbeat.cancel()
        finally:
            self.leading = False
            await self._election.resign()

    async def _lead(self, group: asyncio.TaskGroup) -> None:
        await check_eviction(self._redis)
        connection = await self._connect(group)
        try:
            await check_pair(connection, self._redis)
            await wait_for_lock(
                connection, patience_s=self._term_s / 2, is_elected=self._election.is_current
            )
            await self._write(connection)
        finally:
            self.leading = False
            await close(connection)

    async def _connect(self, group: asyncio.TaskGroup) -> Connection[Record]:
        """Connect to Postgres; let others stand when that takes long."""
        doubting = group.create_task(self._doubt_later(), name="writer doubt")
        try:
            return await connect(self._database_url, statement_timeout_s=self._statement_timeout_s)
        finally:
            doubting.cancel()
            self._election.trust()

    async def _doubt_later(self) -> None:
        await asyncio.sleep(self._term_s * 3 / 4)
        await self._election.doubt("connecting to Postgres takes long")

    async def _write(self, connection: Connection[Record]) -> None:
        await migrate(connection)
        office = await take_office(connection, self._redis, self.name)
        pulse = Pulse(connection, self._election)
        await self._bounds.announce(self._redis)
        term = Term(
            redis=self._redis,
            connection=connection,
            office=office,
            codec=self._codec,
            name=self.name,
            pulse=pulse,
            retention=self._retention,
            told=self._told,
        )
        logger.info("%s is the writer: term %d, from %s", self.name, office.epoch, office.position)
        self.leading = self._led = True
        self._backoff_s = SOONEST_BACKOFF_S
        await term.run(self._stopping)
        logger.info("%s resigns as the writer, at %s", self.name, office.position)

    async def _note(self, exc: BaseException) -> None:
        """Log why a term ended, or did not begin; count it, unless another one leads."""
        causes = _causes(exc)
        if any(isinstance(cause, NotElected | Fenced) for cause in causes):
            logger.info("%s is no longer the writer: %s", self.name, causes[0])
            return
        if any(isinstance(cause, StoreWentBack | WriterUnavailable) for cause in causes):
            logger.error("the writer cannot work: %s", causes[0])
        elif all(isinstance(cause, _SERVERS) for cause in causes):
            logger.warning("the writer's term ended: %r", causes[0])
        else:
            logger.error("the writer's term ended by a fault of its own", exc_info=causes[0])
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(NOTE_TIMEOUT_S):
                await cast(Any, self._redis.hincrby(keys.WRITER, "errors", 1))


def _causes(exc: BaseException) -> list[BaseException]:
    """Return what task groups have wrapped, in the order in which it happened."""
    if isinstance(exc, BaseExceptionGroup):
        return [cause for inner in exc.exceptions for cause in _causes(inner)]
    return [exc]
