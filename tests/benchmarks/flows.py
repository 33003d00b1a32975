"""What flows cost: ``python -m tests.benchmarks.flows``.

One worker runs beside a Valkey of its own. Four things are measured: a chord against as many plain
jobs, at two widths; a chain, step by step; and the start of a wide flow. Beside the wall clock
stands the processor time of worker and server, from /proc, which a busy machine changes little.
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
from runner import chain, chord, embedded
from tests.benchmarks.processes import Process, cpu_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = Path(__file__).resolve().parents[2]
CONCURRENCY = 100


@runner.task(name="noop")
async def noop(_ctx: runner.Context, number: int) -> int:
    """Do nothing."""
    return number


@runner.task(name="count")
async def count(_ctx: runner.Context, numbers: list[int]) -> int:
    """Count what the members of a chord returned."""
    return len(numbers)


@runner.task(name="step")
async def step(_ctx: runner.Context, number: int) -> int:
    """Count on."""
    return number + 1


@dataclass(frozen=True, slots=True)
class Figures:
    """What one case cost, for all its jobs."""

    name: str
    jobs: int
    wall_s: float
    worker_s: float
    server_s: float

    def line(self) -> str:
        """Show it, and what a job costs."""
        cpu_us = (self.worker_s + self.server_s) / self.jobs * 1e6
        return (
            f"{self.name:24} {self.jobs:7,} {self.wall_s:8.3f} {self.jobs / self.wall_s:10,.0f} "
            f"{self.worker_s:9.2f} {self.server_s:9.2f} {cpu_us:10.1f}"
        )


def serve(url: str) -> None:
    """Be the worker."""
    runner.Worker(
        [noop, count, step],
        redis_settings=runner.RedisSettings.from_dsn(url),
        codec="msgpack",
        history=True,
        max_jobs=CONCURRENCY,
        log_results=False,
        use_uvloop=True,
    ).run()


class Stage:
    """A server, and a worker that starts when its work is there."""

    def __init__(self, url: str, server_pid: int, client: runner.Client) -> None:
        self.url = url
        self.server_pid = server_pid
        self.client = client

    async def drain(
        self, name: str, jobs: int, fill: Callable[[], Awaitable[Callable[[], Awaitable[Any]]]]
    ) -> Figures:
        """Fill the queue, start a worker, and measure until what `fill` returned is through."""
        await self.client.flushdb()
        is_through = await fill()
        with TemporaryDirectory() as folder:
            worker = Process(
                [sys.executable, "-m", "tests.benchmarks.flows", "--serve", self.url],
                folder=ROOT,
                environment={"PATH": "/usr/bin:/bin"},
                log=Path(folder) / "worker.log",
            )
            with worker:
                while not await self._has_begun():
                    worker.check()
                    await asyncio.sleep(0.001)
                began, server_s, worker_s = time.perf_counter(), self._server_s(), cpu_s(worker.pid)
                await is_through()
                return Figures(
                    name,
                    jobs,
                    time.perf_counter() - began,
                    cpu_s(worker.pid) - worker_s,
                    self._server_s() - server_s,
                )

    async def _has_begun(self) -> bool:
        return (await self.client.queue_stats()).succeeded > 0

    def _server_s(self) -> float:
        return cpu_s(self.server_pid)

    async def plain(self, jobs: int) -> Figures:
        """Drain plain jobs."""

        async def fill() -> Callable[[], Awaitable[Any]]:
            await self.client.enqueue_many([noop.call(number) for number in range(jobs)])

            async def is_through() -> None:
                while (await self.client.queue_stats()).succeeded < jobs:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)

            return is_through

        return await self.drain("plain jobs", jobs, fill)

    async def chord(self, members: int, chords: int = 1) -> Figures:
        """Run so many chords of so many members."""

        async def fill() -> Callable[[], Awaitable[Any]]:
            parts = [chord(noop.map(range(members)), count.s()) for _ in range(chords)]
            runs = [await self.client.start(part) for part in parts]

            async def is_through() -> None:
                results = await asyncio.gather(*(run.result(timeout=600) for run in runs))
                assert results == [members] * chords

            return is_through

        name = f"chord of {members:,}" if chords == 1 else f"{chords} chords of {members:,}"
        return await self.drain(name, (members + 1) * chords, fill)

    async def chain(self, steps: int) -> Figures:
        """Run so many steps one after the other."""

        async def fill() -> Callable[[], Awaitable[Any]]:
            run = await self.client.start(chain(step.call(0), *[step.s()] * (steps - 1)))

            async def is_through() -> None:
                assert await run.result(timeout=600) == steps

            return is_through

        return await self.drain(f"chain of {steps:,}", steps, fill)

    async def start(self, nodes: int) -> Figures:
        """Start a flow without a worker; the processor time is the client's own."""
        await self.client.flushdb()
        flow = chord(noop.map(range(nodes)), count.s())
        server: Any = self.client  # its methods have no types
        await server.slowlog_reset()
        server_s, began, mine = self._server_s(), time.perf_counter(), time.process_time()
        await self.client.start(flow)
        wall_s, mine = time.perf_counter() - began, time.process_time() - mine
        slow = [entry["duration"] for entry in await server.slowlog_get(100)]
        name = f"start of {nodes:,}"
        say(f"{name}: the longest call held the server for {max(slow, default=0) / 1000:.1f} ms")
        return Figures(name, nodes, wall_s, mine, self._server_s() - server_s)


async def measure(arguments: Any) -> None:
    """Measure all cases on one server."""
    servers = await asyncio.to_thread(embedded.start, postgres=False)
    try:
        async with runner.connect(servers.redis_url) as client:
            pid = (await client.info("server"))["process_id"]
            stage = Stage(servers.redis_url, pid, client)
            wide, narrow = arguments.members, max(arguments.members // 10, 1)
            head = ("jobs", "wall s", "jobs/s", "worker s", "server s", "CPU us/job")
            say(
                f"{'case':24} {head[0]:>7} {head[1]:>8} {head[2]:>10} "
                f"{head[3]:>9} {head[4]:>9} {head[5]:>10}"
            )
            for _ in range(arguments.rounds):
                for case in (
                    stage.plain(wide),
                    stage.chord(wide),
                    stage.chord(narrow, 10),
                    stage.chain(arguments.steps),
                    stage.start(wide),
                ):
                    say((await case).line())
    finally:
        await asyncio.to_thread(servers.stop)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    asyncio.run(measure(arguments))


def say(line: str) -> None:
    """Write a line for the person who waits for it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
