"""Read the stream ahead of the commits, as far as a bound of operations and bytes."""

from __future__ import annotations

import asyncio
import collections
import time
from typing import TYPE_CHECKING, Any

from runner import keys
from runner.scripts import load
from runner.writer.entries import Unit, read_entry
from runner.writer.status import ZERO, exceeds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from redis.asyncio import Redis

__all__ = ["Buffer", "Reader", "Tail", "entries_between", "next_count"]

OPERATIONS_AT_ONCE = 2_000
BYTES_AT_ONCE = 4_000_000
READ_AT_MOST = 500
BLOCK_MS = 500
REPLY_TIMEOUT_S = 10.0
TAIL_MS = 10 * 60 * 1000
TAIL_ENTRIES = 100_000


class Buffer:
    """Units that were read and are not being applied yet; a batch grows here under load."""

    def __init__(self) -> None:
        self._units: collections.deque[Unit] = collections.deque()
        self._operations = 0
        self._bytes = 0
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    async def put(self, units: list[Unit]) -> None:
        """Add units; wait first while two batches lie here."""
        while self._operations > 2 * OPERATIONS_AT_ONCE or self._bytes > 2 * BYTES_AT_ONCE:
            self._drained.clear()
            await self._drained.wait()
        for unit in units:
            self._operations += _weight(unit)
            self._bytes += unit.size
        self._units.extend(units)
        self._filled.set()

    async def take(self, at_most: int = OPERATIONS_AT_ONCE) -> list[Unit]:
        """Return what is there, up to the size of a batch; wait only when nothing is."""
        while not self._units:
            self._filled.clear()
            await self._filled.wait()
        taken: list[Unit] = []
        operations = size = 0
        while (
            self._units
            and len(taken) < at_most
            and operations < OPERATIONS_AT_ONCE
            and size < BYTES_AT_ONCE
        ):
            unit = self._units.popleft()
            taken.append(unit)
            operations += _weight(unit)
            size += unit.size
        self._operations -= operations
        self._bytes -= size
        self._drained.set()
        return taken


def _weight(unit: Unit) -> int:
    return unit.count or 1


class Reader:
    """Reads the stream from a position on. Only the writer reads it, so it needs no group."""

    def __init__(self, redis: Redis, position: str) -> None:
        self._redis = redis
        self._cursor = position
        self._count = 50

    async def read(self) -> list[Unit]:
        """Return the next units, in order; wait for them a little while."""
        # The wait has its own end in Redis; the timeout is for a network that is cut.
        async with asyncio.timeout(BLOCK_MS / 1000 + REPLY_TIMEOUT_S):
            reply: Any = await self._redis.xread(
                {keys.UNITS: self._cursor}, count=self._count, block=BLOCK_MS
            )
        if not reply:
            return []
        units = [read_entry(entry.decode(), fields) for entry, fields in reply[0][1]]
        self._cursor = units[-1].entry
        self._count = next_count(units)
        return units


def next_count(units: list[Unit]) -> int:
    """Return how many entries to ask for, by what the last ones weighed: a read has no bound."""
    mean_bytes = sum(unit.size for unit in units) / len(units)
    mean_operations = sum(unit.count for unit in units) / len(units)
    by_bytes = BYTES_AT_ONCE / max(mean_bytes, 1)
    by_operations = OPERATIONS_AT_ONCE / max(mean_operations, 1)
    return max(1, min(READ_AT_MOST, int(by_bytes), int(by_operations)))


async def entries_between(redis: Redis, after: str, until: str) -> AsyncIterator[list[Unit]]:
    """Yield the units after one entry, up to and with another, some at a time."""
    cursor = after
    while exceeds(until, cursor):
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            reply: Any = await redis.xrange(keys.UNITS, f"({cursor}", until, count=READ_AT_MOST)
        if not reply:
            return
        units = [read_entry(entry.decode(), fields) for entry, fields in reply]
        cursor = units[-1].entry
        yield units


class Tail:
    """What is kept of the stream behind the position, for a store that goes back.

    Bounded in time, and in entries as far as this leader has seen them: it notes where its
    batches ended, so that no entry has to be counted in Redis.
    """

    def __init__(self) -> None:
        self._ends: collections.deque[tuple[int, str]] = collections.deque()
        self._entries = 0
        self._oldest = ZERO

    def note(self, units: Sequence[Unit]) -> None:
        """Note units that were answered, in order."""
        self._entries += len(units)
        self._ends.append((self._entries, units[-1].entry))
        while self._entries - self._ends[0][0] >= TAIL_ENTRIES:
            self._oldest = self._ends.popleft()[1]

    async def trim(self, redis: Redis, answered: str) -> None:
        """Drop what is older than the tail; never the entry at ``answered``, nor any after it."""
        by_time = f"{int(time.time() * 1000) - TAIL_MS}-0"
        oldest = by_time if exceeds(by_time, self._oldest) else self._oldest
        oldest = answered if exceeds(oldest, answered) else oldest
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            await load("writer_trim").call(redis, keys=[keys.UNITS, keys.WRITER], args=[oldest])
