"""Sixteen services, one for each airline, that enqueue their departures in time order."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import runner
from jobs.departures import record_departure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobs.flights import Flight
    from runner import Client

CHUNK = 500
"""Departures in one round trip."""

MOST_QUEUED = 20_000
"""The services pause while more jobs than this are queued, so that Redis does not hold a year."""

LOOK_AGAIN_S = 0.05


@dataclass(slots=True, kw_only=True)
class Gate:
    """Lets services enqueue while the queue is short.

    Attributes:
        client: asks how long the queue is.
        most: how many jobs may be queued.
    """

    client: Client
    most: int = MOST_QUEUED
    _room: int = 0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def portion(self) -> int:
        """How many jobs a service should ask for at a time."""
        return max(1, min(CHUNK, self.most // 4))

    async def take(self, count: int) -> None:
        """Wait until so many jobs may be enqueued; first come, first served."""
        async with self._lock:
            while self._room < count:
                self._room = self.most - (await self.client.queue_stats()).queued
                if self._room < count:
                    await asyncio.sleep(LOOK_AGAIN_S)
            self._room -= count


@dataclass(slots=True, kw_only=True)
class Services:
    """The sixteen services.

    Attributes:
        redis_url: where they enqueue.
        flights: the departures of each airline, in time order.
        enqueued: how many of them are enqueued, by airline.
    """

    redis_url: str
    flights: Mapping[str, Sequence[Flight]]
    enqueued: Counter[str] = field(default_factory=Counter)

    async def run(self, gate: Gate) -> None:
        """Enqueue everything; return when the last departure is in the queue."""
        async with asyncio.TaskGroup() as group:
            for carrier, flights in self.flights.items():
                group.create_task(self._serve(carrier, flights, gate), name=f"service {carrier}")

    async def _serve(self, carrier: str, flights: Sequence[Flight], gate: Gate) -> None:
        async with runner.connect(self.redis_url) as client:
            for start in range(0, len(flights), gate.portion):
                chunk = flights[start : start + gate.portion]
                await gate.take(len(chunk))
                await client.enqueue_many(
                    [record_departure.call(row, fields) for row, fields in chunk],
                )
                self.enqueued[carrier] += len(chunk)
