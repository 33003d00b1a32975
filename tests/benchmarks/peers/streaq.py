# /// script
# dependencies = ["streaq==7.2.0", "uvloop==0.23.0"]
# [tool.bench]
# title = "streaQ"
# shows = ["streaq", "coredis", "uvloop"]
# worker = ["streaq", "run", "tests.benchmarks.peers.streaq:worker"]
# left = ["XLEN streaq:default:queues:normal"]
# naps = true
# guarantee = "at least once"
# note = "concurrency 100, uvloop, results kept for an hour"
# ///
"""streaQ."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import streaq  # type: ignore[import-not-found]  # it lives in an environment of its own

from tests.benchmarks import stage

stage.quiet()
worker = streaq.Worker(
    redis_url=stage.REDIS_URL,
    concurrency=stage.CONCURRENCY,
    anyio_kwargs={"use_uvloop": True},
)


async def _noop() -> None:
    """Do nothing."""


async def _nap() -> None:
    """Sleep for 10 ms."""
    await asyncio.sleep(stage.NAP_S)


async def _stamp(sent_ns: int) -> None:
    """Note when it started."""
    stage.record_start(sent_ns)


TASKS = {
    name: worker.task(name=name, ttl=stage.KEEP_RESULT_S)(function)
    for name, function in (("noop", _noop), ("nap", _nap), ("stamp", _stamp))
}
_open: list[AsyncExitStack] = []


async def _connect() -> None:
    if not _open:
        _open.append(AsyncExitStack())
        await _open[0].enter_async_context(worker)


async def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    await _connect()
    return await TASKS[task].enqueue(**arguments)


async def enqueue_many(task: str, count: int) -> None:
    """Enqueue many jobs in one call."""
    await _connect()
    await worker.enqueue_many([TASKS[task].enqueue() for _ in range(count)])


async def result(job: Any) -> None:
    """Wait for a job's result."""
    await job.result(30)


async def close() -> None:
    """Disconnect."""
    for stack in _open:
        await stack.aclose()
