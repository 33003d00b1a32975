"""How long nobody writes when the writer's leader dies, stops or is cut off.

``python -m tests.benchmarks.takeover [ROUNDS]``: from the harm to the commit of a unit that was
submitted right behind it. The leader is a process of its own, the standby another candidate;
both with the default term. One server of each kind, fsync on.
"""

from __future__ import annotations

import asyncio
import statistics
import sys

import asyncpg
from redis.asyncio import Redis

from runner import embedded
from tests.servers import with_path
from tests.takeovers import SCHEMA, WAYS, Way, stage


async def measure(servers: embedded.Servers, way: Way, number: int) -> float:
    """Measure once, with a database of its own in both stores."""
    name = f"takeover_{number}"
    admin = await asyncpg.connect(servers.database_url)
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    database_url = with_path(servers.database_url, name)
    database = await asyncpg.connect(database_url)
    await database.execute(SCHEMA)
    await database.close()
    async with Redis.from_url(servers.redis_url) as redis:
        await redis.flushall()
    async with stage(servers.redis_url, database_url) as s:
        return await s.take_over(way)


async def main(rounds: int) -> None:
    """Print medians and ranges."""
    figures: dict[Way, list[float]] = {way: [] for way in WAYS}
    async with embedded.servers() as servers:
        for number in range(rounds):
            for place, way in enumerate(WAYS):
                took_s = await measure(servers, way, number * len(WAYS) + place)
                figures[way].append(took_s)
    sys.stdout.write("| leader | median, s | lowest | highest |\n|---|---|---|---|\n")
    for way, values in figures.items():
        cells = (statistics.median(values), min(values), max(values))
        sys.stdout.write(f"| {way} | {' | '.join(f'{cell:.2f}' for cell in cells)} |\n")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
