# /// script
# dependencies = ["pydocket==0.27.0", "hiredis==3.5.0", "uvloop==0.23.0"]
# [tool.bench]
# title = "docket"
# shows = ["pydocket", "redis", "hiredis", "uvloop"]
# worker = [
#     "docket", "worker", "--docket", "bench", "--tasks", "tests.benchmarks.peers.docket:tasks",
#     "--concurrency", "{concurrency}", "--logging-level", "WARNING",
#     "--url", "{url}?max_connections=1000",
# ]
# left = ["XLEN bench:stream"]
# naps = true
# guarantee = "at least once"
# note = """\
# concurrency 100, uvloop, results kept for an hour, max_connections 1,000 (with the 100 of \
# redis-py 8 the worker falls over)"""
# ///
"""docket."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from docket import Docket  # type: ignore[import-not-found]  # in an environment of its own

from tests.benchmarks import stage

stage.quiet()
stage.use_uvloop()


async def noop() -> None:
    """Do nothing."""


async def nap() -> None:
    """Sleep for 10 ms."""
    await asyncio.sleep(stage.NAP_S)


async def stamp(sent_ns: int) -> None:
    """Note when it started."""
    stage.record_start(sent_ns)


tasks = [noop, nap, stamp]
TASKS = {task.__name__: task for task in tasks}
_open: list[Any] = []


async def _docket() -> Any:
    if not _open:
        docket = Docket(
            name="bench",
            url=f"{stage.REDIS_URL}?max_connections=1000",
            execution_ttl=timedelta(seconds=stage.KEEP_RESULT_S),
        )
        _open.append(await docket.__aenter__())
        for task in tasks:
            docket.register(task)
    return _open[0]


async def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    docket = await _docket()
    return await docket.add(TASKS[task])(**arguments)


async def enqueue_many(task: str, count: int) -> None:
    """Enqueue many jobs in one call."""
    docket = await _docket()
    await docket.add_many([docket.call(TASKS[task])() for _ in range(count)])


async def result(job: Any) -> None:
    """Wait for a job's result."""
    await job.get_result(timeout=timedelta(seconds=30))


async def close() -> None:
    """Disconnect."""
    for docket in _open:
        await docket.__aexit__(None, None, None)
