# /// script
# dependencies = [
#     "taskiq[uv,orjson]==0.13.0", "taskiq-redis==1.2.4", "hiredis==3.5.0", "uvloop==0.23.0",
# ]
# [tool.bench]
# title = "taskiq-redis, streams"
# shows = ["taskiq", "taskiq-redis", "redis", "hiredis", "uvloop"]
# worker = [
#     "taskiq", "worker", "tests.benchmarks.peers.taskiq:broker", "--workers", "1",
#     "--max-async-tasks", "{concurrency}", "--max-prefetch", "{concurrency}",
#     "--log-level", "WARNING", "--no-configure-logging",
# ]
# done = ["DBSIZE"]
# naps = true
# guarantee = "at least once"
# note = """\
# RedisStreamBroker, ORJSON, one worker process with 100 tasks and 100 prefetched, uvloop; \
# wait_result polls every 0.2 s, as is its default; no bulk enqueue"""
# ///
"""taskiq with Redis streams."""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq.serializers import (  # type: ignore[import-not-found]  # in an environment of its own
    ORJSONSerializer,
)
from taskiq_redis import (  # type: ignore[import-not-found]  # in an environment of its own
    RedisAsyncResultBackend,
    RedisStreamBroker,
)

from tests.benchmarks import stage

stage.quiet()
broker = (
    RedisStreamBroker(stage.REDIS_URL, consumer_id="0")
    .with_result_backend(
        RedisAsyncResultBackend(stage.REDIS_URL, result_ex_time=stage.KEEP_RESULT_S)
    )
    .with_serializer(ORJSONSerializer())
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
    name: broker.register_task(function, task_name=name)
    for name, function in (("noop", _noop), ("nap", _nap), ("stamp", _stamp))
}
_open: list[Any] = []


async def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    if not _open:
        _open.append(broker)
        await broker.startup()
    return await TASKS[task].kiq(**arguments)


async def result(job: Any) -> None:
    """Wait for a job's result."""
    await job.wait_result(timeout=30)


async def close() -> None:
    """Disconnect."""
    for each in _open:
        await each.shutdown()
