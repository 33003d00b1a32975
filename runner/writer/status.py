"""Tell the state of the writer from what it keeps in Redis."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from runner import keys
from runner.scripts import load
from runner.types import WriterStatus

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["ZERO", "entry_ms", "exceeds", "note_facts", "split_id", "writer_status"]

ZERO = "0-0"


def split_id(entry: str) -> tuple[int, int]:
    """Return the two numbers of an entry's id, so that ids can be compared."""
    ms, _, sequence = entry.partition("-")
    return int(ms), int(sequence or 0)


def exceeds(left: str, right: str) -> bool:
    """Say whether the entry ``left`` came after ``right``."""
    return split_id(left) > split_id(right)


def entry_ms(entry: str) -> int:
    """Return when an entry was added, Unix time in milliseconds on Redis's clock."""
    return split_id(entry)[0]


async def note_facts(redis: Redis, **facts: str | int) -> None:
    """Keep facts about the writer, also in a Redis that has no memory left."""
    args = [value for fact in facts.items() for value in fact]
    await load("writer_note").call(redis, keys=[keys.WRITER], args=args)


async def writer_status(redis: Redis) -> WriterStatus:
    """Return the writer's state; cheap enough to ask every second."""
    facts = {_text(k): _text(v) for k, v in (await cast(Any, redis.hgetall(keys.WRITER))).items()}
    leader = await redis.get(keys.LEADER)
    position = facts.get("position", ZERO)
    backlog, oldest = await _behind(redis, position, int(facts.get("done", 0)))
    return WriterStatus(
        leader=facts.get("leader", "") if leader else "",
        position=position,
        backlog=backlog,
        backlog_bytes=max(0, int(facts.get("backlog_bytes", 0))) if backlog else 0,
        lag_s=max(0.0, time.time() - entry_ms(oldest) / 1000) if oldest else 0.0,
        units=int(facts.get("units", 0)),
        operations=int(facts.get("operations", 0)),
        batches=int(facts.get("batches", 0)),
        rejected=int(facts.get("rejected", 0)),
        errors=int(facts.get("errors", 0)),
    )


async def _behind(redis: Redis, position: str, done: int) -> tuple[int, str]:
    """Count the entries after the position, and return the id of the first.

    The writer keeps the number of entries it has ever answered; the stream knows how many
    were ever added. So nothing has to be counted one by one.
    """
    first = await redis.xrange(keys.UNITS, f"({position}", "+", count=1)
    if not first:
        return 0, ""
    info: dict[str, Any] = await redis.xinfo_stream(keys.UNITS)
    added = int(info.get("entries-added", 0))
    backlog = max(1, min(int(info["length"]), added - done))
    return backlog, _text(first[0][0])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
