"""One leader's term: read → plan ahead → commit → settle, each stage a task.

While Postgres commits one batch, the next is read, decoded and planned, and the last is
settled. A batch is taken from the buffer only when the one before it is on its way, so that
it grows by itself under load.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from asyncpg import LockNotAvailableError, PostgresError
from redis.exceptions import RedisError

from runner.errors import WriteRejected
from runner.writer.backlog import Recount
from runner.writer.batch import Batch, Batches, Refusals
from runner.writer.failures import Fenced
from runner.writer.housekeeping import forget
from runner.writer.inheritance import LEDGER_KEPT_S, Inheritance
from runner.writer.office import check_held, note_loss
from runner.writer.queries import query
from runner.writer.settle import Settler
from runner.writer.stream import OPERATIONS_AT_ONCE, Buffer, Reader, Tail
from runner.writer.told import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record
    from redis.asyncio import Redis

    from runner.codec import Codec
    from runner.types import Retention
    from runner.writer.entries import Unit
    from runner.writer.office import Office
    from runner.writer.pulse import Pulse
    from runner.writer.told import Told

__all__ = ["Term"]

logger = logging.getLogger("runner.writer")

PING_S = 2.0
TRIM_S = 5.0
HOUSE_S = 10.0
SWAP_AGAIN_S = 10.0
SETTLE_TIMEOUT_S = 10.0
UNSETTLED_AT_MOST = 8
LOSSES_UNTIL_CAREFUL = 3
LOSSES_UNTIL_REFUSED = 5
CAREFUL_UNITS = 1_000
COUNT_SETTLED_AT_ONCE = 1_000
LOGGED_AT_ONCE = 10

_Settling = tuple["Sequence[Unit]", Refusals, dict[str, bytes]]


class Term:
    """Applies the stream over one connection until it is told to end, or something fails."""

    def __init__(
        self,
        *,
        redis: Redis,
        connection: Connection[Record],
        office: Office,
        codec: Codec,
        name: str,
        pulse: Pulse,
        retention: Retention,
        told: Sequence[Told] = (),
    ) -> None:
        self._pulse = pulse
        self._told = told
        self._retention = retention
        self._redis = redis
        self._connection = connection
        self._office = office
        self._batches = Batches(connection, office)
        self._settler = Settler(redis, codec, name, office.answered, retention)
        self._buffer = Buffer()
        self._planned: asyncio.Queue[Batch | None] = asyncio.Queue()
        self._wanted = asyncio.Event()
        self._unsettled: asyncio.Queue[_Settling | None] = asyncio.Queue(UNSETTLED_AT_MOST)
        self._tail = Tail()
        self._began_at = office.position
        # After sessions lost at one position: units one by one, to find the one that does it.
        self._careful = CAREFUL_UNITS if office.losses >= LOSSES_UNTIL_CAREFUL else 0
        self._swap_at = time.monotonic() - office.ledger_age_s + LEDGER_KEPT_S
        self._housed_at = time.monotonic()

    async def run(self, stopping: asyncio.Event) -> None:
        """Apply units until ``stopping``; then finish the batch under way, settle, and return.

        Raises:
            ExceptionGroup: what ended the term. Nothing is lost: the position row says how far
                it came, and the next term goes on from there.
        """
        inheritance = Inheritance(self._redis, self._connection, self._office, self._settler)
        await inheritance.accept()
        async with asyncio.TaskGroup() as group:
            ahead = [
                group.create_task(self._pulse.watch(), name="writer pulse"),
                group.create_task(self._read(), name="writer read"),
                group.create_task(self._plan(), name="writer plan"),
                group.create_task(self._trim(), name="writer trim"),
            ]
            group.create_task(self._commit(), name="writer commit")
            group.create_task(self._settle(), name="writer settle")
            await stopping.wait()
            for task in ahead:
                task.cancel()
            self._planned.put_nowait(None)

    async def _read(self) -> None:
        recount = Recount(self._redis, self._settler.answered)
        await recount.begin()
        reader = Reader(self._redis, self._office.position)
        while True:
            units = await reader.read()
            if units:
                await recount.note(units)
                await self._buffer.put(units)

    async def _plan(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            units = await self._buffer.take(1 if self._careful else OPERATIONS_AT_ONCE)
            self._planned.put_nowait(self._batches.plan_ahead(units))

    async def _commit(self) -> None:
        self._wanted.set()
        while True:
            try:
                async with asyncio.timeout(PING_S):
                    batch = await self._planned.get()
            except TimeoutError:
                await self._keep_house()
                continue
            if batch is None:
                break
            self._wanted.set()
            began_ns = time.time_ns()
            refused = await self._apply(batch)
            tell(self._told, batch.units, refused, began_ns)
            _log_refused(batch.units, refused)
            answers = self._batches.take_answers()
            await self._unsettled.put((batch.units, refused, answers))
            if time.monotonic() - self._housed_at > HOUSE_S or self._swap_is_due():
                await self._keep_house()
        await self._unsettled.put(None)

    async def _apply(self, batch: Batch) -> Refusals:
        losses, self._office.losses = self._office.losses, 0
        if self._careful:
            self._careful -= 1
            if losses >= LOSSES_UNTIL_REFUSED:
                why = WriteRejected(
                    f"the writer lost its session, or failed itself, {losses} times at this unit"
                )
                return await self._batches.refuse(batch.units[0], why)
        try:
            with self._pulse.asking():
                return await self._batches.apply(batch)
        except BaseException as exc:
            if self._connection.is_closed() or _is_own_fault(exc):
                # A unit that takes the session with it must not stand in the way for ever, nor
                # one at which this very code fails.
                self._office.losses = losses if self._office.position == self._began_at else 0
                await note_loss(self._redis, self._office)
            raise

    async def _keep_house(self) -> None:
        """Show that the session lives; forget what was told; swap the ledgers.

        A refusal or an answer is told within a minute, or the term is over and the next begins
        with it. It is kept a little longer, for a Redis that forgets what it was told.
        """
        self._housed_at = time.monotonic()
        with self._pulse.asking():
            await self._connection.execute(query("forget_told"))
            if self._retention.job_log_ms:
                await forget(self._connection, self._retention.job_log_ms)
        if self._swap_is_due():
            await self._swap_ledger()

    def _swap_is_due(self) -> bool:
        return time.monotonic() > self._swap_at

    async def _swap_ledger(self) -> None:
        """Empty the older ledger and use it: the other keeps the last ten minutes.

        Whoever reads the older one, as pg_dump does for as long as it runs, is not waited for,
        because nothing could be committed meanwhile. The ledger in use grows until then.
        """
        other = 3 - self._office.ledger
        try:
            async with self._connection.transaction():
                await self._connection.execute(
                    f"LOCK TABLE runner.ledger_{other} IN ACCESS EXCLUSIVE MODE NOWAIT"
                )
                swapped = await self._connection.fetchval(
                    query("swap_ledger"), self._office.epoch, other
                )
                if swapped is not None:
                    await self._connection.execute(f"TRUNCATE runner.ledger_{other}")
        except LockNotAvailableError:
            logger.info("runner.ledger_%d is being read: it is emptied later", other)
            self._swap_at = time.monotonic() + SWAP_AGAIN_S
            return
        if swapped is not None:
            self._office.ledger = other
        self._swap_at = time.monotonic() + LEDGER_KEPT_S

    async def _settle(self) -> None:
        while True:
            done = await self._unsettled.get()
            if done is None:
                return
            units, refused, answers = list(done[0]), dict(done[1]), dict(done[2])
            batches, is_last = 1, False
            with contextlib.suppress(asyncio.QueueEmpty):
                while len(units) < COUNT_SETTLED_AT_ONCE and not is_last:
                    more = self._unsettled.get_nowait()
                    if more is None:
                        is_last = True
                    else:
                        units.extend(more[0])
                        refused.update(more[1])
                        answers.update(more[2])
                        batches += 1
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await self._settler.settle(units, refused, answers, batches=batches)
            self._tail.note(units)
            if is_last:
                return

    async def _trim(self) -> None:
        while True:
            await asyncio.sleep(TRIM_S)
            await check_held(self._redis, self._office.position)
            await self._tail.trim(self._redis, self._settler.answered)


def _is_own_fault(exc: BaseException) -> bool:
    """Say whether this code failed: no server, no network, and no other term was the reason."""
    theirs = (Fenced, RedisError, OSError, TimeoutError, PostgresError)
    return isinstance(exc, Exception) and not isinstance(exc, theirs)


def _log_refused(units: Sequence[Unit], refused: Refusals) -> None:
    """Let an operator know, who hears of a service's unit from nobody else."""
    bad = [unit for unit in units if unit.entry in refused] if refused else []
    for unit in bad[:LOGGED_AT_ONCE]:
        whose = unit.job or unit.commit
        logger.warning(
            "refused the unit %s of %s: %s",
            *(unit.entry, f"job {whose.job_id}" if whose else "a service", refused[unit.entry]),
        )
    if len(bad) > LOGGED_AT_ONCE:
        logger.warning("refused %d units more of this batch", len(bad) - LOGGED_AT_ONCE)
