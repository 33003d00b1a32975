# /// script
# requires-python = ">=3.12"
# dependencies = ["ardiq==1.2.0", "uvloop==0.23.0"]
# [tool.bench]
# title = "ardiq"
# shows = ["ardiq", "uvloop"]
# worker = ["ardiq", "run", "--quiet", "tests.benchmarks.peers.ardiq:app"]
# left = ["XLEN ardiq:default:queues:default"]
# naps = true
# guarantee = "at least once"
# note = """\
# a Rust core that speaks with Redis outside of Python; concurrency 100, results kept for an \
# hour"""
# ///
"""ardiq."""

from __future__ import annotations

import asyncio
from typing import Any

from ardiq import Ardiq  # type: ignore[import-not-found]  # in an environment of its own

from tests.benchmarks import stage

stage.quiet()
stage.use_uvloop()
app = Ardiq(
    redis_url=stage.REDIS_URL,
    concurrency=stage.CONCURRENCY,
    result_ttl_ms=stage.KEEP_RESULT_S * 1000,
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
    name: app.task(name=name)(function)
    for name, function in (("noop", _noop), ("nap", _nap), ("stamp", _stamp))
}


async def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    return await TASKS[task].enqueue(**arguments)


async def enqueue_many(task: str, count: int) -> None:
    """Enqueue many jobs in one call."""
    await app.enqueue_many([TASKS[task].prepare() for _ in range(count)])


async def result(job: Any) -> None:
    """Wait for a job's result."""
    await job.result(timeout=30)
