# /// script
# dependencies = []
# [tool.bench]
# title = "arq 0.28, tuned"
# shows = ["arq", "redis", "hiredis", "uvloop"]
# worker = ["arq", "tests.benchmarks.peers.arq.WorkerSettings"]
# left = ["ZCARD arq:queue"]
# naps = true
# guarantee = "at least once"
# note = """\
# stock arq in the project's own environment, so on the same redis-py; poll_delay 0.01, \
# max_jobs 100, uvloop; Job.result polls every 0.5 s, as is its default"""
# ///
"""Stock arq, tuned: what the project stands in the place of."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from arq.connections import ArqRedis, RedisSettings, create_pool
from redis.asyncio import Redis

from tests.benchmarks import stage

if TYPE_CHECKING:
    from arq.jobs import Job

stage.quiet()
stage.use_uvloop()

SETTINGS = RedisSettings(host=stage.HOST, port=stage.PORT)


async def noop(_ctx: dict[str, Any]) -> None:
    """Do nothing."""


async def nap(_ctx: dict[str, Any]) -> None:
    """Sleep for 10 ms."""
    await asyncio.sleep(stage.NAP_S)


async def stamp(_ctx: dict[str, Any], sent_ns: int) -> None:
    """Note when it started."""
    stage.record_start(sent_ns)


async def say_ready(_ctx: dict[str, Any]) -> None:
    """Tell the benchmark that this worker is up."""
    stage.record_ready()


class WorkerSettings:
    """The worker."""

    functions: ClassVar = [noop, nap, stamp]
    redis_settings = SETTINGS
    max_jobs = stage.CONCURRENCY
    poll_delay = 0.01
    keep_result = stage.KEEP_RESULT_S
    on_startup = say_ready


_pools: list[ArqRedis] = []
_plain: list[Redis] = []


async def _pool() -> ArqRedis:
    if not _pools:
        _pools.append(await create_pool(SETTINGS))
    return _pools[0]


async def enqueue(task: str, **arguments: int) -> Job | None:
    """Enqueue one job."""
    pool = await _pool()
    given: dict[str, Any] = dict(arguments)
    return await pool.enqueue_job(task, **given)


async def enqueue_at(task: str, due_ns: int, **arguments: int) -> Job | None:
    """Enqueue one job for later."""
    pool = await _pool()
    given: dict[str, Any] = dict(arguments)
    at = datetime.fromtimestamp(due_ns / 1e9, tz=UTC)
    return await pool.enqueue_job(task, _defer_until=at, **given)


async def result(job: Job) -> None:
    """Wait for a job's result."""
    await job.result(timeout=30)


async def round_trip() -> None:
    """Make one bare round trip of redis-py."""
    if not _plain:
        _plain.append(Redis.from_url(stage.REDIS_URL))
    await _plain[0].set("bench:set", b"x" * 100)


async def close() -> None:
    """Disconnect."""
    for pool in _pools:
        await pool.aclose(close_connection_pool=True)
    for plain in _plain:
        await plain.aclose()
