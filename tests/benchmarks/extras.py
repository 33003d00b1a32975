"""What extras cost a no-op job: CPU of the worker, and of Redis, with each against without.

``python -m tests.benchmarks.extras [rounds] [jobs] [variants…]``: each round drains the same number
of jobs in a fresh process, once for each variant, in turn. Before it counts, the process drains a
few jobs of another queue, and freezes what is loaded, as a worker's process does: that is no cost
of a job. A drain of one queue waits for Redis as much as for the worker, so both costs are shown:
the jobs of a second, and the CPU of the worker for each.

Monitoring: "events" (one subscriber), "monitor", "all". What a worker has and its jobs do not use:
"unused" (a part that rests, a middleware that stands around enqueueing alone, another task with a
dependency). In use: "blocked" (the detector of blocked loops), "middleware", "dependency".
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import uvloop
from arq.constants import default_queue_name
from redis.asyncio import Redis

import runner
from runner import Depends, Middleware, Part, RedisSettings, Worker, embedded, task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runner.middleware import EnqueueCall, JobCall

ROUNDS, JOBS, WARM = 5, 50_000, 500


@task
async def nothing(ctx: runner.Context) -> None:
    """Do nothing."""


def number() -> int:
    """Provide a value."""
    return 7


@task
async def provided(ctx: runner.Context, value: int = Depends(number)) -> None:
    """Do nothing with what is provided."""


class Rests(Part):
    """A part that does nothing."""


class Elsewhere(Middleware):
    """Stands around enqueueing, and not around jobs."""

    async def enqueue(
        self, call: EnqueueCall, proceed: Callable[[EnqueueCall], Awaitable[Any]]
    ) -> Any:
        """Pass on."""
        return await proceed(call)


class PassesOn(Middleware):
    """Stands around jobs."""

    async def execute(self, job: JobCall, proceed: Callable[[JobCall], Awaitable[Any]]) -> Any:
        """Pass on."""
        return await proceed(job)


VARIANTS: dict[str, dict[str, Any]] = {
    "off": {},
    "events": {"subscribers": [lambda _event: None]},
    "monitor": {"monitor": True},
    "all": {"monitor": True, "health_port": 0},
    "unused": {
        "parts": [Rests()],
        "middleware": [Elsewhere()],
        "functions": [nothing, provided],
    },
    "blocked": {"blocked_after": 1},
    "middleware": {"middleware": [PassesOn()]},
    "dependency": {"functions": [provided]},
}


async def fill(url: str, variant: str, jobs: int) -> None:
    """Enqueue the jobs of one drain."""
    run = provided if variant == "dependency" else nothing
    async with runner.connect(url) as client:
        await client.flushdb()
        await client.enqueue_many([run.options(queue="warm").call() for _ in range(WARM)])
        for _ in range(jobs // 5_000):
            await client.enqueue_many([run.call() for _ in range(5_000)])


async def drain(url: str, variant: str, queue: str) -> tuple[float, float]:
    """Run a burst worker; return its CPU and wall seconds."""
    worker = Worker(
        redis_settings=RedisSettings.from_dsn(url),
        queue_name=queue,
        burst=True,
        history=True,
        codec="msgpack",
        max_jobs=500,
        keep_result=0,
        handle_signals=False,
        use_uvloop=True,
        **{"functions": [nothing], **VARIANTS[variant]},
    )
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    await worker.async_run()
    await worker.close()
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, time.perf_counter() - began


async def warm_and_drain(url: str, variant: str) -> tuple[float, float]:
    """Drain the few jobs, then the many; return what those took."""
    await drain(url, variant, "warm")
    gc.collect()
    gc.freeze()  # as a worker's process does
    return await drain(url, variant, default_queue_name)


async def server_us(url: str) -> float:
    """Return the microseconds that Redis has spent in commands since they were last reset."""
    redis = Redis.from_url(url)
    try:
        stats = await redis.info("commandstats")
        return float(sum(stat["usec"] for stat in stats.values() if isinstance(stat, dict)))
    finally:
        await redis.aclose()


async def reset(url: str) -> None:
    """Begin to count anew."""
    redis = Redis.from_url(url)
    try:
        await redis.config_resetstat()
    finally:
        await redis.aclose()


def measure(url: str, variant: str, jobs: int) -> tuple[float, float, float]:
    """Drain in a process of its own; return µs of CPU, server and wall for each job."""
    asyncio.run(fill(url, variant, jobs))
    asyncio.run(reset(url))
    command = [sys.executable, "-m", "tests.benchmarks.extras", "--drain", url, variant]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    cpu_s, wall_s = json.loads(said)
    return cpu_s * 1e6 / jobs, asyncio.run(server_us(url)) / jobs, wall_s * 1e6 / jobs


def main(rounds: int, jobs: int, names: list[str]) -> None:
    """Print the medians."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    with embedded.start() as servers:
        for _ in range(rounds):
            for name in names:
                found[name].append(measure(servers.redis_url, name, jobs))
    first = found[names[0]]
    for name, rows in found.items():
        cpu, server, wall = (statistics.median(column) for column in zip(*rows, strict=True))
        # Each round beside that of the first side: the machine is not the same all the time.
        more_cpu, more_wall = (
            statistics.median(row[at] / base[at] for row, base in zip(rows, first, strict=True)) - 1
            for at in (0, 2)
        )
        print(  # noqa: T201  its report
            f"{name:>10}  {1e6 / wall:7,.0f} jobs/s ({1 / (1 + more_wall) - 1:+.1%}); "
            f"worker {cpu:5.2f} µs of CPU a job ({more_cpu:+.1%}), Redis {server:5.2f} µs"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--drain"]:
        print(json.dumps(uvloop.run(warm_and_drain(*sys.argv[2:4]))))  # noqa: T201  to its parent
    else:
        given = sys.argv[1:]
        main(
            int(given[0]) if given else ROUNDS,
            int(given[1]) if given[1:] else JOBS,
            given[2:] or list(VARIANTS),
        )
