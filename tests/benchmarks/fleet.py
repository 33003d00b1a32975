"""What a rolling restart and recycling cost under load: ``python -m tests.benchmarks.fleet``.

A producer enqueues at a steady rate; every job notes when it began. The gap is the longest time in
which no job began anywhere in the fleet: at rest, during two rolling restarts, and while processes
are recycled. Each job must have run once, and none may have been retried or handed back. Then jobs
that use a processor for 2 ms are drained by one process and by two.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runner
from runner import embedded
from tests.fleet import Fleet, fleet
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PROCESSES = 2
REST_S = 5.0
CPU_JOBS = 4000


async def produce(client: Any, jobs: list[Any], pause_s: float, stop: asyncio.Event) -> None:
    while not stop.is_set():
        jobs.append(await client.enqueue("quick", 0.01))
        await asyncio.sleep(pause_s)


async def measure(
    name: str, url: str, pause_s: float, more: str, work: Callable[[Fleet], Awaitable[None]]
) -> None:
    """Load a fleet while `work` does something to it, and print what became of the jobs."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            runner.connect(url) as client,
            fleet(Path(folder), url, "--processes", str(PROCESSES), more=more) as running,
        ):
            await client.flushdb()
            await running.ready()
            jobs: list[Any] = []
            stop = asyncio.Event()
            producer = asyncio.create_task(produce(client, jobs, pause_s, stop))
            await work(running)
            stop.set()
            await producer
            for job in jobs:
                await job.result(timeout=60)
            await report(name, client, jobs)
            await running.end()


async def report(name: str, client: Any, jobs: list[Any]) -> None:
    runs = [await client.lrange(f"runs:{job.job_id}", 0, -1) for job in jobs]
    stats = await client.queue_stats()
    began = sorted(float(run.split()[1]) for one in runs for run in one)
    pids = {run.split()[0] for one in runs for run in one}
    gaps = sorted(later - sooner for sooner, later in pairwise(began))
    sys.stdout.write(
        f"{name:>10}: {len(jobs)} jobs at {len(jobs) / (began[-1] - began[0]):.0f}/s in "
        f"{len(pids)} processes, longest gap {gaps[-1] * 1000:.0f} ms (99.9 %: "
        f"{gaps[int(len(gaps) * 0.999)] * 1000:.0f} ms), run more than once "
        f"{sum(len(one) != 1 for one in runs)}, retried {stats.retried}, crashed {stats.crashed}\n"
    )


async def rest(_running: Fleet) -> None:
    await asyncio.sleep(REST_S)


async def roll(running: Fleet) -> None:
    for times in (2, 3):
        running.process.send_signal(signal.SIGHUP)
        await running.ready(times)
        await asyncio.sleep(1)


async def recycle(running: Fleet) -> None:
    await wait_until(
        lambda: running.says("has left", 4), description="four are replaced", timeout_s=60
    )


@runner.task
async def burn(_ctx: runner.Context, _milliseconds: float) -> None:
    """Stand for the task of this name in the fleet."""


async def is_empty(client: Any) -> bool:
    return not await client.zcard("arq:queue")


async def drain(url: str, processes: int) -> float:
    """Return how many jobs a second so many processes run, when each takes 2 ms of a processor."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            runner.connect(url) as client,
            fleet(
                Path(folder), url, "--processes", str(processes), more="max_jobs = 20"
            ) as running,
        ):
            await running.ready()
            began = time.perf_counter()
            await client.enqueue_many([burn.call(2) for _ in range(CPU_JOBS)])
            await wait_until(partial(is_empty, client), description="all have run", timeout_s=120)
            took_s = time.perf_counter() - began
            await running.end()
    return CPU_JOBS / took_s


async def compare(url: str) -> None:
    one, two = await drain(url, 1), await drain(url, 2)
    sys.stdout.write(f" processes: one {one:.0f}/s, two {two:.0f}/s: {two / one:.2f} times\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0, help="jobs a second")
    pause_s = 1 / parser.parse_args().rate
    with embedded.start(postgres=False, fsync=False) as servers:
        url = servers.redis_url
        asyncio.run(measure("at rest", url, pause_s, "", rest))
        asyncio.run(measure("rolling", url, pause_s, "", roll))
        asyncio.run(measure("recycling", url, pause_s, "max_jobs_per_process = 400", recycle))
        asyncio.run(compare(url))


if __name__ == "__main__":
    main()
