"""How much may wait for the writer, and the account of what does.

Scripts that add units count them (`backlog.lua`), and settling takes them off again. The account
is a sum of differences, so it is put right where the truth is at hand: by a new leader, which
reads all that waits anyway, and whenever nothing waits (`writer_trim.lua`).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import OutOfMemoryError, ResponseError

from runner import keys
from runner.writer.status import ZERO, exceeds, note_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from runner.writer.entries import Unit

__all__ = ["BOUND_BYTES", "BOUND_ENTRIES", "Bounds", "Recount"]

BOUND_ENTRIES = 1_000_000
BOUND_BYTES = 64 * 1024 * 1024
PART_OF_MEMORY = 4
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait: beyond half of it workers claim no jobs, beyond it no unit is taken.

    Jobs that have finished are never refused: their units may go beyond.

    Attributes:
        entries: units.
        size: bytes of them; None: 64 MB, or a quarter of Redis's maxmemory if that is less.
    """

    entries: int = BOUND_ENTRIES
    size: int | None = None

    async def announce(self, redis: Redis) -> None:
        """Let every worker and service know them."""
        size = self.size
        if size is None:
            memory = await _maxmemory(redis)
            size = min(BOUND_BYTES, memory // PART_OF_MEMORY) if memory else BOUND_BYTES
        await note_facts(redis, bound=self.entries, bound_bytes=size)


async def _maxmemory(redis: Redis) -> int:
    with contextlib.suppress(ResponseError):  # CONFIG is not for everybody
        return int((await redis.config_get("maxmemory")).get("maxmemory", 0))
    return 0


class Recount:
    """Puts the account right by what a new leader reads.

    At the beginning, what waits are the entries after the last answered up to the last of the
    stream, and the account says something of them: the difference is added once all of these
    have been read. Whatever is added or settled meanwhile changes the account by as much as the
    truth.
    """

    def __init__(self, redis: Redis, answered: str) -> None:
        self._redis = redis
        self._answered = answered
        self._until = ""
        self._entries = 0
        self._size = 0
        self._open = False

    async def begin(self) -> None:
        """Note where the account stands, and up to which entry."""
        async with asyncio.timeout(TIMEOUT_S), self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(keys.WRITER, ["backlog", "backlog_bytes"])
            pipe.xrevrange(keys.UNITS, count=1)
            (entries, size), last = await pipe.execute()
        self._entries, self._size = -int(entries or 0), -int(size or 0)
        self._until = last[0][0].decode() if last else ZERO
        self._open = True
        if not exceeds(self._until, self._answered):
            await self._correct()

    async def note(self, units: Sequence[Unit]) -> None:
        """Count what was read; correct the account when all of it was."""
        if not self._open:
            return
        for unit in units:
            if exceeds(unit.entry, self._answered) and not exceeds(unit.entry, self._until):
                self._entries += bool(unit.key)
                self._size += unit.size
        if not exceeds(self._until, units[-1].entry):
            await self._correct()

    async def _correct(self) -> None:
        self._open = False
        if not (self._entries or self._size):
            return
        # A full Redis refuses it: then the account stays as it is until nothing waits.
        async with asyncio.timeout(TIMEOUT_S), self._redis.pipeline(transaction=False) as pipe:
            pipe.hincrby(keys.WRITER, "backlog", self._entries)
            pipe.hincrby(keys.WRITER, "backlog_bytes", self._size)
            with contextlib.suppress(OutOfMemoryError):
                await pipe.execute()
