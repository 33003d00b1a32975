"""The callers' own process: ``python -m tests.benchmarks.writer.callers WISH ANSWER``.

A wish is what `Wish` holds, as JSON; the figures go to the file ANSWER, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
import uvloop

import runner
from tests.benchmarks.writer.settings import write, write_plainly
from tests.benchmarks.writer.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

Figures: TypeAlias = dict[str, float]
Write: TypeAlias = "Callable[[int, int], Awaitable[Any]]"

RESULT_TIMEOUT_S = 120
ENQUEUE_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to do.

    Attributes:
        what: "load", "bad" or "jobs".
        pool: connections of the callers' own; 0: ours.
        workload: of a load, what is written.
        callers: of a load, how many wait at once; of the others, how many writes there are.
        seconds: of a load, for how long it is measured, after a fifth more to warm up.
        bad: how many of the writes must be refused.
    """

    what: str
    pool: int
    workload: str = "inserts"
    callers: int = 1
    seconds: float = 1
    bad: int = 0


@dataclass(slots=True)
class Load:
    """Callers that write one thing after another, and what they saw."""

    write: Write
    measures_from: float = 0
    until: float = 0
    total: int = 0
    answered: int = 0

    async def run(self, callers: int, seconds: float) -> Figures:
        started = time.perf_counter()
        self.measures_from = started + seconds / 5
        self.until = self.measures_from + seconds
        seen: list[float] = []
        cpu = await self._cpu_from_then(callers, seen)
        self.total = len(seen)
        marks = (
            statistics.quantiles(seen, n=100, method="inclusive") if len(seen) > 1 else seen * 99
        )
        return {
            "rate": len(seen) / seconds,
            "p50": marks[49] * 1000,
            "p99": marks[98] * 1000,
            "answered": self.answered,
            "callers_cpu": cpu / max(len(seen), 1) * 1e6,
        }

    async def _cpu_from_then(self, callers: int, seen: list[float]) -> float:
        async with asyncio.TaskGroup() as group:
            for caller in range(callers):
                group.create_task(self._call(caller, seen), name=f"caller {caller}")
            await asyncio.sleep(self.measures_from - time.perf_counter())
            before = time.process_time()
            await asyncio.sleep(self.until - time.perf_counter())
            return time.process_time() - before

    async def _call(self, caller: int, seen: list[float]) -> None:
        number = 0
        while (began := time.perf_counter()) < self.until:
            await self.write(caller, number)
            ended = time.perf_counter()
            number += 1
            self.answered += 1
            if self.measures_from <= ended <= self.until:
                seen.append(ended - began)


@contextlib.asynccontextmanager
async def opened(pool: int) -> AsyncIterator[Any]:
    """Open ours, or a pool."""
    if not pool:
        async with runner.database(os.environ["BENCH_REDIS_URL"], timeout=RESULT_TIMEOUT_S) as db:
            yield db
        return
    url = os.environ["BENCH_DATABASE_URL"]
    async with asyncpg.create_pool(url, min_size=pool, max_size=pool) as connections:
        yield connections


async def load(wish: Wish) -> Figures:
    """Let callers write for a while."""
    workload = WORKLOADS[wish.workload]
    async with opened(wish.pool) as door:
        one: Any = workload.plain if wish.pool else workload.ours
        figures = await Load(lambda caller, number: one(door, caller, number)).run(
            wish.callers, wish.seconds
        )
    figures["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


async def bad(wish: Wish) -> Figures:
    """Submit many units at once, some of them bad; measure until the last good one is answered."""
    every = wish.callers // wish.bad if wish.bad else wish.callers + 1
    is_bad = [wish.bad > 0 and number % every == every - 1 for number in range(wish.callers)]
    ended: list[float] = []
    refused = 0
    async with opened(wish.pool) as door:

        async def one(value: int) -> None:
            nonlocal refused
            try:
                if wish.pool:
                    await door.execute("INSERT INTO done (number) VALUES ($1)", value)
                else:
                    await door.insert("done", number=value)
            except (asyncpg.UniqueViolationError, runner.errors.WriteRejected):
                refused += 1
            else:
                ended.append(time.perf_counter())

        await one(-1)  # the row that the bad ones meet, and the statement's first time
        ended.clear()
        began = time.perf_counter()
        await asyncio.gather(*(one(-1 if bad_one else n) for n, bad_one in enumerate(is_bad)))
    if refused != sum(is_bad):
        raise AssertionError(f"{refused} were refused, not {sum(is_bad)}")
    return {"ms": (max(ended) - began) * 1000}


async def jobs(wish: Wish) -> Figures:
    """Enqueue jobs that write; the benchmark itself looks when all rows are there."""
    chosen = write_plainly if wish.pool else write
    client = await runner.connect(os.environ["BENCH_REDIS_URL"])
    began = time.time()
    for first in range(0, wish.callers, ENQUEUE_AT_ONCE):
        numbers = range(first, min(first + ENQUEUE_AT_ONCE, wish.callers))
        await client.enqueue_many([chosen.call(number) for number in numbers])
    await client.aclose()
    return {"began": began}


def main(wish: str, answer: str) -> None:
    """Do what is wished for, and write the figures down."""
    read = Wish(**json.loads(wish))
    figures = uvloop.run({"load": load, "bad": bad, "jobs": jobs}[read.what](read))
    Path(answer).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
