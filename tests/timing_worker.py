"""A worker on uvloop with tasks of every kind: ``python -m tests.timing_worker <url> <grace>``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from pathlib import Path
from typing import Any

from arq.connections import RedisSettings

from runner import Context, Worker, task
from tests.timing_jobs import IN_PROCESSES

FOREVER_S = 3600.0

threading.settrace(None)  # see conftest


@task
async def wait_in_loop(_ctx: Context, note: str) -> None:
    Path(note).write_text("begun")  # noqa: ASYNC240  a few bytes
    await asyncio.sleep(FOREVER_S)


@task
async def stubborn(_ctx: Context, note: str) -> None:
    Path(note).write_text("begun")  # noqa: ASYNC240  as above
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(FOREVER_S)


@task
def wait_in_thread(_ctx: Context, note: str) -> None:
    Path(note).write_text("begun")
    time.sleep(FOREVER_S)  # one call into C


@task
def heeds_in_thread(ctx: Context, note: str) -> str:
    Path(note).write_text("begun")
    while not ctx.cancelled:
        time.sleep(0.001)
    return "heeded"


@task(soft_timeout=0.2, timeout=60)
def soft_in_thread(_ctx: Context) -> None:
    while True:
        time.sleep(0.001)


@task(soft_timeout=0.2, timeout=60)
async def soft_in_loop(_ctx: Context) -> None:
    await asyncio.sleep(FOREVER_S)


TASKS: list[Any] = [
    *IN_PROCESSES,
    *(wait_in_loop, stubborn, wait_in_thread, heeds_in_thread, soft_in_thread, soft_in_loop),
]


def main(url: str, grace_s: str) -> None:
    Worker(
        TASKS,
        redis_settings=RedisSettings.from_dsn(url),
        codec="msgpack",
        history=True,
        use_uvloop=True,
        lease=1,
        poll_delay=0.2,
        cancel_grace=float(grace_s),
        allow_abort_jobs=True,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
