"""Queues and tasks that rest: what ``client.pause`` and ``client.resume`` do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner import keys
from runner.errors import LimitError
from runner.scripts import load

if TYPE_CHECKING:
    from redis.asyncio import Redis


@dataclass(frozen=True, slots=True)
class Paused:
    """What rests at the moment, by name."""

    queues: tuple[str, ...]
    tasks: tuple[str, ...]


class Pauses:
    """Pause and resume queues and tasks, at once in all workers.

    From a paused queue nothing is claimed. Jobs of a paused task are parked when they are claimed,
    and come back in order when it is resumed. What runs goes on, and is settled.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def change(self, *, queue: str | None, task: str | None, paused: bool) -> bool:
        """Pause or resume one of the two; return whether that changed something."""
        if (queue is None) == (task is None) or "" in (queue, task):
            raise LimitError("give either queue= or task=, and a name")
        if queue is not None:
            return await self._change_queue(queue, paused=paused)
        assert task is not None
        return await self._change_task(task, paused=paused)

    async def paused(self) -> Paused:
        """Return what rests."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.smembers(keys.PAUSED_QUEUES)
            pipe.smembers(keys.PAUSED_TASKS)
            queues, tasks = await pipe.execute()
        return Paused(
            tuple(sorted(raw.decode() for raw in queues)),
            tuple(sorted(raw.decode() for raw in tasks)),
        )

    async def _change_queue(self, queue: str, *, paused: bool) -> bool:
        before = await load("pause_queue").call(
            self._redis,
            keys=[
                queue,
                keys.paused(queue),
                keys.PAUSED_QUEUES,
                keys.idle(queue),
                keys.wake(queue),
            ],
            args=[int(paused)],
        )
        return bool(before) != paused

    async def _change_task(self, task: str, *, paused: bool) -> bool:
        script, changed = load("pause_task"), False
        while True:
            before, looked = await script.call(
                self._redis, keys=[keys.PAUSED_TASKS, keys.GATED], args=[task, int(paused)]
            )
            changed = changed or bool(before) != paused
            if paused or not looked:
                return changed
