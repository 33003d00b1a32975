"""What schedules cost a worker: ``python -m tests.benchmarks.schedules``.

One worker runs beside a Valkey of its own, and the processor time of both is read from /proc:
with no schedules, with 5,000 that are not due, and with 5,000 of which 83 a second are due.
Figures are processor time a minute, so that a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import runner
from runner import cron, embedded, keys
from tests.benchmarks.processes import Process, cpu_s, memory_mb

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner import Schedule

ROOT = Path(__file__).resolve().parents[2]
SETTLE_S = 5.0


@runner.task(name="noop", keep_result=0)
async def noop(_ctx: runner.Context) -> None:
    """Do nothing: the schedules are what is measured."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one case cost."""

    name: str
    worker_s: float
    server_s: float
    memory_mb: float
    runs: int


def serve(url: str) -> None:
    """Be the worker."""
    runner.Worker(
        [noop],
        redis_settings=runner.RedisSettings.from_dsn(url),
        codec="msgpack",
        history=True,
        max_jobs=100,
        use_uvloop=True,
    ).run()


def idle(number: int) -> Schedule:
    """Return a schedule that is due once a year, each at a time of its own."""
    expression = f"{number % 60} {number // 60 % 24} {number % 28 + 1} {number % 12 + 1} *"
    return cron(noop, expression, name=f"idle-{number}", timezone="Europe/Zurich")


def busy(number: int) -> Schedule:
    """Return one that is due once a minute, spread over its seconds."""
    return cron(noop, f"{number % 60} * * * * *", name=f"busy-{number}")


async def measure(
    name: str,
    url: str,
    server_pid: int,
    make: Callable[[int], Schedule] | None,
    arguments: Any,
) -> Figures:
    """Measure one case."""
    async with runner.connect(url) as client:
        await client.flushdb()
        if make is not None:
            book = client.schedules._book
            began = time.process_time()
            await book.put("add", [make(number) for number in range(arguments.count)])
            took_s = time.process_time() - began
            say(f"{name}: {arguments.count:,} schedules written in {took_s:.2f} s of CPU")
        with TemporaryDirectory() as folder:
            worker = Process(
                [sys.executable, "-m", "tests.benchmarks.schedules", "--serve", url],
                folder=ROOT,
                environment={"PATH": "/usr/bin:/bin"},
                log=Path(folder) / "worker.log",
            )
            with worker:
                while not await client.exists(keys.fleet(keys.DEFAULT_QUEUE)):
                    worker.check()
                    await asyncio.sleep(0.1)
                await asyncio.sleep(SETTLE_S)
                before = cpu_s(worker.pid), cpu_s(server_pid), await made(client)
                await asyncio.sleep(arguments.seconds)
                after = cpu_s(worker.pid), cpu_s(server_pid), await made(client)
                a_minute = 60 / arguments.seconds
                return Figures(
                    name,
                    (after[0] - before[0]) * a_minute,
                    (after[1] - before[1]) * a_minute,
                    memory_mb(worker.pid),
                    round((after[2] - before[2]) * a_minute),
                )


async def made(client: runner.Client) -> int:
    """Return how many jobs have run."""
    return (await client.queue_stats()).succeeded


async def compare(arguments: Any) -> list[Figures]:
    """Measure all cases on one server."""
    servers = await asyncio.to_thread(embedded.start, postgres=False)
    try:
        url = servers.redis_url
        async with runner.connect(url) as client:
            pid = (await client.info("server"))["process_id"]
        cases = (("no schedules", None), ("idle", idle), ("83 due a second", busy))
        return [await measure(name, url, pid, make, arguments) for name, make in cases]
    finally:
        await asyncio.to_thread(servers.stop)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    say(f"{'case':16} {'worker s/min':>12} {'server s/min':>12} {'MB':>6} {'runs/min':>9}")
    for row in asyncio.run(compare(arguments)):
        costs = f"{row.worker_s:12.2f} {row.server_s:12.2f} {row.memory_mb:6.0f} {row.runs:9,}"
        say(f"{row.name:16} {costs}")


def say(line: str) -> None:
    """Write a line for the person who waits for it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
