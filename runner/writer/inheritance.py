"""Take over what the leaders before have left: answer what is committed, and lose nothing.

Every entry up to the position is committed, or it was refused. Those after ``answered`` may not
have been answered, and are settled here. Only a Redis that lost its last writes can hold others:
entries which it gave ids below the position, because its clock is late or its ids began again.
Nobody would ever read them, so they are appended again, behind the position.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner import keys
from runner.scripts import load
from runner.writer.entries import decode_rejection
from runner.writer.queries import query
from runner.writer.status import ZERO, entry_ms, exceeds, note_facts, split_id
from runner.writer.stream import entries_between

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record
    from redis.asyncio import Redis

    from runner.writer.apply import Office
    from runner.writer.entries import Unit
    from runner.writer.settle import Settler

__all__ = ["LEDGER_KEPT_S", "Inheritance"]

logger = logging.getLogger("runner.writer")

LEDGER_KEPT_S = 600.0
MOVED_AT_ONCE = 100
MOVED_MS = 3_600_000


@dataclass(slots=True)
class Inheritance:
    """What lies up to the position when a term begins.

    Attributes:
        redis: where the stream is.
        connection: the session that holds the office.
        office: the office, with what was found when it was taken.
        settler: answers what is committed.
    """

    redis: Redis
    connection: Connection[Record]
    office: Office
    settler: Settler

    async def accept(self) -> None:
        """Append again what was never applied, then answer all that was; safe to repeat.

        In this order: ``answered`` passes nothing that is still to be moved.
        """
        if self.office.redis_lost or await self._is_foreign():
            await self._put_above()
            await self._bring_back()
        await self._answer()

    async def _answer(self) -> None:
        async for units in entries_between(self.redis, self.settler.answered, self.office.position):
            entries = [unit.entry for unit in units]
            rows = await self.connection.fetch(query("rejected"), entries)
            refused = {row["entry"]: decode_rejection(row["facts"]) for row in rows}
            rows = await self.connection.fetch(query("answers"), entries)
            answers = {row["entry"]: row["answer"] for row in rows}
            await self.settler.settle(units, refused, answers)

    async def _is_foreign(self) -> bool:
        """Say whether there are entries up to the position that were not applied.

        Looks at those that are not answered and at the one at the position: the id may be the
        same, given twice, and the unit another.
        """
        position, after = self.office.position, self.settler.answered
        if position == ZERO:
            return False
        if not exceeds(position, after):
            after = _before(position)
        async for units in entries_between(self.redis, after, position):
            if await self._stranded(units):
                logger.error(
                    "Redis lost units: up to %s, where the writer is, it holds units that were "
                    "never applied",
                    position,
                )
                return True
        return False

    async def _put_above(self) -> None:
        """See that no entry gets an id at or below the position, where nobody would read it."""
        ms, sequence = split_id(self.office.position)
        await load("writer_above").call(
            self.redis, keys=[keys.UNITS], args=[f"{ms}-{sequence + 1}"]
        )

    async def _bring_back(self) -> None:
        position, kept = self.office.position, 0
        stranded: list[Unit] = []
        async for units in entries_between(self.redis, ZERO, position):
            found = await self._stranded(units)
            stranded.extend(found)
            kept += len(units) - len(found)
        if stranded:
            # Those behind the position follow, so that the order stays as it is.
            last = await self.redis.xrevrange(keys.UNITS, count=1)
            async for units in entries_between(self.redis, position, last[0][0].decode()):
                stranded.extend(unit for unit in units if not _is_marker(unit))
            await self._move(stranded)
            logger.error(
                "appended %d units again that Redis held at or around the position %s; none of "
                "them had been applied",
                *(len(stranded), position),
            )
        # Both counts went back with Redis: what is done is what does not wait.
        info: dict[str, Any] = await self.redis.xinfo_stream(keys.UNITS)
        done = int(info.get("entries-added", 0)) - (int(info["length"]) - kept)
        await note_facts(self.redis, done=done)

    async def _stranded(self, units: Sequence[Unit]) -> list[Unit]:
        """Return those that were neither applied nor refused, and that somebody waits for."""
        oldest = (time.time() - self.office.ledger_age_s - LEDGER_KEPT_S) * 1000
        recent = [u for u in units if not _is_marker(u) and entry_ms(u.entry) >= oldest]
        if not recent:
            return []
        applied = await self.connection.fetch(query("applied"), [u.key for u in recent if u.key])
        refused = await self.connection.fetch(query("rejected"), [u.entry for u in recent])
        known = {row["unit"] for row in applied} | {row["entry"] for row in refused}
        unknown = [u for u in recent if u.key not in known and u.entry not in known]
        return await self._awaited(unknown)

    async def _awaited(self, units: Sequence[Unit]) -> list[Unit]:
        """Return those whose job's marker names them; without a job, those after ``answered``."""
        ids = [unit.job.job_id for unit in units if unit.job]
        values = await self.redis.mget([keys.in_progress(job_id) for job_id in ids]) if ids else []
        markers = dict(zip(ids, values, strict=True))
        return [
            unit
            for unit in units
            if (
                markers[unit.job.job_id] == f"{keys.COMMITTING}{unit.entry}".encode()
                if unit.job
                else exceeds(unit.entry, self.settler.answered)
            )
        ]

    async def _move(self, units: Sequence[Unit]) -> None:
        for at in range(0, len(units), MOVED_AT_ONCE):
            part = units[at : at + MOVED_AT_ONCE]
            pairs = ((unit.entry, unit.job.job_id if unit.job else "") for unit in part)
            await load("writer_move").call(
                self.redis,
                keys=[keys.UNITS],
                args=[MOVED_MS, *(value for pair in pairs for value in pair)],
            )


def _is_marker(unit: Unit) -> bool:
    return not unit.key and not unit.problem


def _before(entry: str) -> str:
    ms, sequence = split_id(entry)
    return f"{ms}-{sequence - 1}" if sequence else f"{ms - 1}-{2**64 - 1}"
