"""Enqueue as one side's client does, and time it: runs in that side's own environment.

``python -m tests.benchmarks.produce MODULE WHAT OPTIONS FILE``: writes one JSON object. Needs
nothing but the standard library and what the side's module imports.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import random
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CHUNK = 5_000
AT_ONCE = 100
BLOCK = 100


class Producer:
    """One side's client, with what its module offers; blocking clients are called as they are."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.blocks = not inspect.iscoroutinefunction(module.enqueue)
        self.has_many = hasattr(module, "enqueue_many")
        self.has_result = hasattr(module, "result")
        self.has_round_trip = hasattr(module, "round_trip")

    async def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the module, blocking or not."""
        answer = getattr(self.module, name)(*args, **kwargs)
        return await answer if inspect.isawaitable(answer) else answer

    async def close(self) -> None:
        """Disconnect, where there is something to disconnect."""
        if hasattr(self.module, "close"):
            await self.call("close")


async def fill(producer: Producer, *, jobs: int, task: str, limit_s: float) -> dict[str, float]:
    """Enqueue jobs in the quickest way there is, for so long at most; say how many."""
    until = time.monotonic() + limit_s
    queued = 0
    while queued < jobs and time.monotonic() < until:
        if producer.has_many:
            count = min(CHUNK, jobs - queued)
            await producer.call("enqueue_many", task, count)
        elif producer.blocks:
            count = 1
            producer.module.enqueue(task)
        else:
            count = min(AT_ONCE, jobs - queued)
            await asyncio.gather(*(producer.module.enqueue(task) for _ in range(count)))
        queued += count
    return {"queued": queued}


async def enqueue(producer: Producer, *, jobs: int, limit_s: float) -> dict[str, float]:
    """Time one enqueue after the other, a hundred at once, and many in one call."""
    for _ in range(20):
        await producer.call("enqueue", "noop")
    figures = await _one_by_one(producer, limit_s)
    if not producer.blocks:
        figures["gather"] = await _gather(producer, limit_s)
    if producer.has_many:
        await producer.call("enqueue_many", "noop", 100)
        started = time.perf_counter()
        await producer.call("enqueue_many", "noop", jobs)
        figures["bulk"] = jobs / (time.perf_counter() - started)
    return figures


async def _one_by_one(producer: Producer, limit_s: float) -> dict[str, float]:
    """Enqueue in blocks; where the side has bare round trips, one block of them before each."""
    enqueues, trips = [], []
    if producer.has_round_trip:
        await producer.call("round_trip")
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if producer.has_round_trip:
            trips.append(await _block(producer.module.round_trip))
        enqueues.append(await _block(lambda: producer.module.enqueue("noop")))
    figures = {"one": BLOCK / statistics.fmean(enqueues)}
    if trips:
        figures["bare"] = BLOCK / statistics.fmean(trips)
        figures["of_bare"] = statistics.fmean(trips) / statistics.fmean(enqueues)
    return figures


async def _block(call: Any) -> float:
    started = time.perf_counter()
    for _ in range(BLOCK):
        answer = call()
        if inspect.isawaitable(answer):
            await answer
    return time.perf_counter() - started


async def _gather(producer: Producer, limit_s: float) -> float:
    count, spent = 0, 0.0
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        started = time.perf_counter()
        await asyncio.gather(*(producer.module.enqueue("noop") for _ in range(AT_ONCE)))
        spent += time.perf_counter() - started
        count += AT_ONCE
    return count / spent


async def latency(
    producer: Producer, *, starts: str, jobs: int, limit_s: float
) -> dict[str, float]:
    """Time enqueue to start on an idle worker, then enqueue to result, one job at a time."""
    path = Path(starts)
    await _warm_up(producer, path)
    random.seed(1)
    warm = _lines(path)
    until = time.monotonic() + limit_s
    sent = 0
    while sent < jobs and time.monotonic() < until:
        await producer.call("enqueue", "stamp", sent_ns=time.time_ns())
        sent += 1
        # Idle in between, and out of step with anything that polls.
        await asyncio.sleep(random.uniform(0.02, 0.04))
    await _wait_for_lines(path, warm + sent)
    waits_ms = _waits_ms(path)[warm:]
    figures = {
        "pickup_p50": statistics.median(waits_ms),
        "pickup_p99": statistics.quantiles(waits_ms, n=100)[98],
    }
    if producer.has_result:
        figures["result_p50"] = await _results(producer, jobs=jobs, limit_s=limit_s)
    return figures


async def deferred(
    producer: Producer, *, starts: str, jobs: int, limit_s: float
) -> dict[str, float]:
    """Time how late deferred jobs start on an idle worker, one at a time."""
    path = Path(starts)
    await _warm_up(producer, path)
    random.seed(2)
    warm = _lines(path)
    until = time.monotonic() + limit_s
    sent = 0
    while sent < jobs and time.monotonic() < until:
        due_ns = time.time_ns() + int(random.uniform(100e6, 150e6))
        due_ns -= due_ns % 1_000_000  # queues count whole milliseconds
        await producer.call("enqueue_at", "stamp", due_ns, sent_ns=due_ns)
        sent += 1
        await _wait_for_lines(path, warm + sent)
    late_ms = _waits_ms(path)[warm:]
    return {
        "late_p50": statistics.median(late_ms),
        "late_p99": statistics.quantiles(late_ms, n=100)[98],
        "late_most": max(late_ms),
        "early": sum(late < 0 for late in late_ms) / len(late_ms),
    }


async def flow(producer: Producer, *, shape: str, size: int, times: int) -> dict[str, float]:
    """Start so many chords or chains; time how long it takes to start one."""
    await producer.call("enqueue", "noop")  # connected
    started = time.perf_counter()
    for _ in range(times):
        await producer.call(f"start_{shape}", size)
    return {"start": (time.perf_counter() - started) / times}


async def _warm_up(producer: Producer, path: Path) -> None:
    """Enqueue until the worker is up and has run some jobs."""
    for count in range(1, 11):
        await producer.call("enqueue", "stamp", sent_ns=time.time_ns())
        await _wait_for_lines(path, count)


def _waits_ms(path: Path) -> list[float]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return [(int(start) - int(sent_ns)) / 1e6 for sent_ns, start in pairs]


def _lines(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.read_bytes().count(b"\n")
    return 0


async def _wait_for_lines(path: Path, count: int, timeout_s: float = 30) -> None:
    until = time.monotonic() + timeout_s
    while _lines(path) < count:
        if time.monotonic() > until:
            sys.exit(f"{_lines(path)} of {count} jobs had started after {timeout_s:g} s")
        await asyncio.sleep(0.005)


async def _results(producer: Producer, *, jobs: int, limit_s: float) -> float:
    spent_ms: list[float] = []
    until = time.monotonic() + limit_s
    while len(spent_ms) < jobs and time.monotonic() < until:
        started = time.perf_counter()
        job = await producer.call("enqueue", "noop")
        await producer.call("result", job)
        spent_ms.append((time.perf_counter() - started) * 1000)
    # The first one also subscribes, or whatever the side does once.
    return statistics.median(spent_ms[1:] or spent_ms)


async def main(module: str, what: str, options: str) -> dict[str, float]:
    """Do one thing, and return what came of it."""
    producer = Producer(importlib.import_module(module))
    acts: dict[str, Callable[..., Awaitable[dict[str, float]]]]
    acts = {
        "fill": fill,
        "enqueue": enqueue,
        "latency": latency,
        "deferred": deferred,
        "flow": flow,
    }
    try:
        return await acts[what](producer, **json.loads(options))
    finally:
        await producer.close()


def run() -> None:
    """Run `main` on uvloop where the environment has it, and write its figures down."""
    *given, path = sys.argv[1:]
    loop_factory = None
    with suppress(ImportError):  # blocking sides have none
        import uvloop  # noqa: PLC0415

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        figures = runner.run(main(*given))
    Path(path).write_text(json.dumps(figures))


if __name__ == "__main__":
    run()
