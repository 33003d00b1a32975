"""How much waits in queues, and for how long: what autoscalers and people want to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner import keys
from runner.scripts import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLoad:
    """What waits in a queue.

    Attributes:
        due: jobs that could run now, if a worker were free.
        later: jobs whose time has not come, and those that wait for the writer.
        running: jobs that a worker of ours holds, and those that wait for another try after
            their worker was lost.
        lag_s: for how many seconds the oldest of the due ones has waited; 0 where none is.
        is_paused: nobody claims from it, until it is resumed.
        crashed: leases that were lost since its counters were made: a worker was killed, or was
            stopped or blocked for too long.
    """

    queue: str
    due: int
    later: int
    running: int
    lag_s: float
    is_paused: bool = False
    crashed: int = 0


async def queue_loads(redis: Redis, queues: Sequence[str]) -> list[QueueLoad]:
    """Read the load of some queues, in one round trip."""
    if not queues:
        return []
    places = [key for queue in queues for key in (queue, keys.held(queue))]
    found = await load("queue_load").call(redis, keys=places, args=[])
    return [
        QueueLoad(
            queue=queue,
            due=due,
            later=max(total - due - held, 0),
            running=held,
            lag_s=max(lag_ms, 0) / 1000,
            is_paused=bool(is_paused),
            crashed=crashed,
        )
        for queue, (total, due, held, lag_ms, is_paused, crashed) in zip(queues, found, strict=True)
    ]


__all__ = ["QueueLoad", "queue_loads"]
