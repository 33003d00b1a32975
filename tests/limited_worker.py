"""A worker of limited tasks in a process of its own: ``python -m tests.limited_worker URL``.

Its jobs note when they begin and end; all processes are on one
machine, and share its clock. Each note is one RPUSH, which the job awaits: it outlives SIGKILL.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from arq.connections import RedisSettings

from runner import Context, RateLimit, RunningLimit, Worker, task

PERIOD_S = 4
WINDOW, BUCKET, BURST, MAIL = 240, 240, 20, 80
"""What each allows in a period: long, so that a start some ms after its admission counts little."""

SLOTS, TENANT_SLOTS = 8, 2
SHARED = RateLimit("shared-mail", f"{MAIL}/{PERIOD_S}s")
DATABASE = RunningLimit("database", 3)


async def note(ctx: Context, what: str, *facts: Any) -> None:
    redis: Any = ctx.client
    moment = time.time_ns() // 1000  # before the call: nothing lies between admission and it
    await redis.rpush(what, " ".join(map(str, (moment, os.getpid(), ctx.job_id, *facts))))


@task(name="windowed", rate=f"{WINDOW}/{PERIOD_S}s", keep_result=0)
async def windowed(ctx: Context) -> None:
    await note(ctx, "windowed")


@task(name="bucketed", rate=f"{BUCKET}/{PERIOD_S}s", burst=BURST, keep_result=0)
async def bucketed(ctx: Context) -> None:
    await note(ctx, "bucketed")


@task(name="letter", limits=[SHARED], keep_result=0)
async def letter(ctx: Context) -> None:
    await note(ctx, "shared", 1)


@task(name="parcel", limits=[SHARED], weight=3, keep_result=0)
async def parcel(ctx: Context) -> None:
    await note(ctx, "shared", 3)


@task(name="slotted", max_running=SLOTS, keep_result=0)
async def slotted(ctx: Context, number: int) -> None:
    await held(ctx, "slotted", number)


@task(name="tenant", max_running=TENANT_SLOTS, max_running_key="tenant_id", keep_result=0)
async def tenant(ctx: Context, number: int, tenant_id: int) -> None:
    await held(ctx, f"tenant:{tenant_id}", number)


@task(name="query", limits=[DATABASE, SHARED], keep_result=0)
async def query(ctx: Context, number: int) -> None:
    await held(ctx, "database", number)


@task(name="free", keep_result=0)
async def free(ctx: Context) -> None:
    await note(ctx, "free")


async def held(ctx: Context, what: str, number: int) -> None:
    await note(ctx, what, "begin", number)
    await asyncio.sleep(0.02)
    await note(ctx, what, "end", number)


TASKS = (windowed, bucketed, letter, parcel, slotted, tenant, query, free)


def main(url: str, lease_s: str, max_jobs: str) -> None:
    Worker(
        TASKS,
        redis_settings=RedisSettings.from_dsn(url),
        codec="msgpack",
        history=True,
        lease=float(lease_s),
        max_jobs=int(max_jobs),
        poll_delay=0.2,
        use_uvloop=True,
        job_completion_wait=5,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
