# /// script
# requires-python = ">=3.12"
# dependencies = ["blitzq==1.1.0", "hiredis==3.5.0", "uvloop==0.23.0"]
# [tool.bench]
# title = "blitzq, reliable"
# shows = ["blitzq", "redis", "hiredis", "uvloop"]
# worker = [
#     "blitzq", "worker", "tests.benchmarks.peers.blitzq:queue", "--concurrency", "{concurrency}",
#     "--log-level", "WARNING",
# ]
# left = ["XLEN blitzq:s:default"]
# naps = true
# guarantee = "at least once"
# note = "mode reliable (streams), concurrency 100, uvloop"
# [tool.bench.variants.fast]
# title = "blitzq, fast"
# variables = { BENCH_BLITZQ_MODE = "fast" }
# left = []
# done = ["DBSIZE"]
# guarantee = "at most once: a killed worker's jobs are lost"
# note = "mode fast (lists), concurrency 100, uvloop"
# ///
"""blitzq, in both of its modes."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from blitzq import Queue  # type: ignore[import-not-found]  # in an environment of its own

from tests.benchmarks import stage

stage.quiet()
stage.use_uvloop()
queue = Queue(
    redis_url=stage.REDIS_URL,
    mode=os.environ.get("BENCH_BLITZQ_MODE", "reliable"),
    result_ttl=stage.KEEP_RESULT_S,
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
    name: queue.task(name=name)(function)
    for name, function in (("noop", _noop), ("nap", _nap), ("stamp", _stamp))
}


async def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    return await TASKS[task].enqueue(**arguments)


async def enqueue_many(task: str, count: int) -> None:
    """Enqueue many jobs in one call."""
    await TASKS[task].enqueue_many([()] * count)


async def result(job: Any) -> None:
    """Wait for a job's result."""
    await queue.get_result(job.id, timeout=30)


async def close() -> None:
    """Disconnect."""
    await queue.close()
