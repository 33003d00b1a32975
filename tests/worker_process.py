"""A worker in a process of its own, for tests that kill it: ``python -m tests.worker_process``.

Every run of a job is noted in Redis under ``runs:<job id>``, with the process that ran it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from arq.connections import RedisSettings

from runner import Context, Worker, task


async def note(ctx: Context) -> None:
    redis: Any = ctx.client
    await redis.rpush(f"runs:{ctx.job_id}", os.getpid())


@task
async def wait(ctx: Context, seconds: float) -> int:
    await note(ctx)
    await asyncio.sleep(seconds)
    return os.getpid()


@task
async def block(ctx: Context, seconds: float) -> int:
    await note(ctx)
    time.sleep(seconds)  # noqa: ASYNC251  a job that does not yield is the point
    return os.getpid()


def main(url: str, lease_s: str) -> None:
    Worker(
        [wait, block],
        redis_settings=RedisSettings.from_dsn(url),
        codec="msgpack",
        history=True,
        lease=float(lease_s),
        max_jobs=20,
        poll_delay=0.2,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
