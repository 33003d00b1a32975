"""What Redis and Postgres say during a run, sampled twice a second.

Postgres is asked over one connection of the demo's own, which is left out of the count of
connections: everything else that is connected to the server is counted by its name.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncpg

    from runner import Client
    from runner.types import QueueStats, WriterStatus

MONITOR: Final = "demo-monitor"
"""The application name of the connection that watches."""

EVERY_S = 0.5
RATE_OVER_S = 3.0

_COMMITTED: Final = "SELECT carrier, flights FROM airlines"
_CONNECTIONS: Final = """\
SELECT coalesce(nullif(application_name, ''), '(no name)') AS name, pid
  FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_DEADLOCKS: Final = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The state at one moment.

    Attributes:
        at_s: seconds since the run began.
        committed: departures committed, by airline.
        queue: what Redis says of the queue.
        writer: what the writer last said of itself.
    """

    at_s: float
    committed: dict[str, int]
    queue: QueueStats
    writer: WriterStatus

    @property
    def departures(self) -> int:
        """How many departures are committed."""
        return sum(self.committed.values())

    @property
    def progress(self) -> tuple[int, ...]:
        """Numbers of which at least one changes while anything goes on."""
        return self.departures, self.queue.queued, self.queue.dead, self.writer.units


@dataclass(slots=True)
class Connections:
    """The connections to Postgres that were seen, by application name.

    Attributes:
        peak: the most at one moment, by name.
        most: the most at one moment, all together.
        now: how many there were when last looked at.
    """

    peak: Counter[str] = field(default_factory=Counter)
    most: int = 0
    now: int = 0
    _pids: set[tuple[str, int]] = field(default_factory=set)

    @property
    def opened(self) -> Counter[str]:
        """How many different ones were seen, by name."""
        return Counter(name for name, _ in self._pids)

    async def sample(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """Count what is connected now, without the connection that asks."""
        seen = {(row["name"], row["pid"]) for row in await connection.fetch(_CONNECTIONS)}
        self._pids |= seen
        self.peak |= Counter(name for name, _ in seen)
        self.now = len(seen)
        self.most = max(self.most, self.now)


@dataclass(slots=True, kw_only=True)
class Watch:
    """Samples of a run, the latest last.

    Attributes:
        client: asks Redis.
        connection: asks Postgres.
        samples: what was seen.
        connections: the connections that were seen.
        began: when the run began, by the monotonic clock.
    """

    client: Client
    connection: asyncpg.Connection[asyncpg.Record]
    samples: list[Sample] = field(default_factory=list)
    connections: Connections = field(default_factory=Connections)
    began: float = field(default_factory=time.monotonic)
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def last(self) -> Sample:
        """The latest sample; take one before you ask."""
        return self.samples[-1]

    async def keep_sampling(self) -> None:
        """Sample until cancelled."""
        while True:
            await self.sample()
            await asyncio.sleep(EVERY_S)

    async def sample(self) -> Sample:
        """Take one sample now."""
        async with self._asking:
            queue, writer = await asyncio.gather(
                self.client.queue_stats(),
                self.client.writer_status(),
            )
            rows = await self.connection.fetch(_COMMITTED)
            await self.connections.sample(self.connection)
            sample = Sample(
                at_s=time.monotonic() - self.began,
                committed={row["carrier"]: row["flights"] for row in rows},
                queue=queue,
                writer=writer,
            )
            self.samples.append(sample)
            return sample

    async def deadlocks(self) -> int:
        """Return how many deadlocks there were; one question at a time goes to Postgres."""
        async with self._asking:
            return await deadlocks(self.connection)

    def rate(self) -> float:
        """Return departures committed a second, over the last few seconds."""
        last = self.samples[-1]
        recent = [sample for sample in self.samples if sample.at_s >= last.at_s - RATE_OVER_S]
        seconds = last.at_s - recent[0].at_s
        return (last.departures - recent[0].departures) / seconds if seconds else 0.0


async def deadlocks(connection: asyncpg.Connection[asyncpg.Record]) -> int:
    """Return how many deadlocks Postgres has had to break in this database."""
    count: int = await connection.fetchval(_DEADLOCKS)
    return count
