"""The worker and the writer as the benchmark starts them, by their own command lines."""

from __future__ import annotations

import os
from typing import Any

import asyncpg

import runner
from runner import Context, RedisSettings, task
from tests.benchmarks import stage

DATABASE_URL = os.environ.get("BENCH_DATABASE_URL", "")
POOL_SIZE = int(os.environ.get("BENCH_POOL", "10"))

_pools: list[Any] = []

stage.quiet()


@task
async def write(ctx: Context, number: int) -> None:
    """Write one row, with the job's end."""
    ctx.db.insert("done", number=number)


@task
async def write_plainly(_ctx: Context, number: int) -> None:
    """Write one row over a pool of the worker's own, before the job ends."""
    await _pools[0].execute("INSERT INTO done (number) VALUES ($1)", number)


async def open_pool(_ctx: dict[Any, Any]) -> None:
    """Open the pool, and say that this worker is up."""
    if POOL_SIZE:
        _pools.append(
            await asyncpg.create_pool(DATABASE_URL, min_size=POOL_SIZE, max_size=POOL_SIZE)
        )
    stage.record_ready()


async def close_pool(_ctx: dict[Any, Any]) -> None:
    """Close the pool."""
    for pool in _pools:
        await pool.close()


# mypy would bind plain functions as methods.
_open: Any = open_pool
_close: Any = close_pool


class WorkerSettings(runner.WorkerSettings):
    """The worker, which leaves the writing to the process that is there for it."""

    functions = (write, write_plainly)
    redis_settings = RedisSettings.from_dsn(stage.REDIS_URL)
    database_url = DATABASE_URL or None
    writer = False
    max_jobs = 500
    keep_result = 60
    on_startup = _open
    on_shutdown = _close
