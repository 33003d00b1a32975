# /// script
# dependencies = ["saq[redis,hiredis]==0.26.4", "typing-extensions", "uvloop==0.23.0"]
# [tool.bench]
# title = "SAQ"
# shows = ["saq", "redis", "hiredis", "uvloop"]
# worker = ["saq", "tests.benchmarks.peers.saq.settings"]
# left = ["ZCARD saq:default:incomplete"]
# naps = true
# guarantee = "at least once"
# note = """\
# concurrency 100, uvloop; no bulk enqueue; results by Job.refresh, asked again after 1 s, because \
# it never hears of a job that ends between its look and its subscription"""
# ///
"""SAQ."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import saq  # type: ignore[import-not-found]  # it lives in an environment of its own

from tests.benchmarks import stage

stage.quiet()
stage.use_uvloop()
queue = saq.Queue.from_url(stage.REDIS_URL)


async def noop(_ctx: Any) -> None:
    """Do nothing."""


async def nap(_ctx: Any) -> None:
    """Sleep for 10 ms."""
    await asyncio.sleep(stage.NAP_S)


async def stamp(_ctx: Any, *, sent_ns: int) -> None:
    """Note when it started."""
    stage.record_start(sent_ns)


settings = {
    "queue": queue,
    "functions": [noop, nap, stamp],
    "concurrency": stage.CONCURRENCY,
}


async def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    return await queue.enqueue(task, ttl=stage.KEEP_RESULT_S, **arguments)


async def result(job: Any) -> None:
    """Wait for a job's result, and ask again where the message of its end was missed."""
    while not job.completed:
        with contextlib.suppress(TimeoutError):
            await job.refresh(until_complete=1)


async def close() -> None:
    """Disconnect."""
    await queue.disconnect()
