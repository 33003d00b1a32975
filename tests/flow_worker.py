"""A worker for flows that keeps an account of its own: ``python -m tests.flow_worker URL FILE``.

Each start and end of a job is one line, with the time by the machine's clock, written with one
call, so that it outlives SIGKILL of the worker.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from runner import Context, RedisSettings, Worker, task

LEASE_S = 2.0


@task(name="accounted")
async def accounted(
    ctx: Context, name: str, parts: list[str], *, fails: bool = False, grows: bool = False
) -> str:
    """Take a moment, and return what came in with the name behind it."""
    note(ctx, "start")
    if grows:
        added = await ctx.flow.add(accounted.call(f"{name}+", []))
        await ctx.flow.add(accounted.call(f"{name}++", [added.result]), after=[added])
    await asyncio.sleep(0.01)
    note(ctx, "end")
    if fails:
        raise ValueError(name)
    return f"({' '.join(parts)}){name}"


def note(ctx: Context, what: str) -> None:
    account: int = ctx["account"]
    os.write(account, f"{what} {ctx.job_id} {time.monotonic_ns()}\n".encode())


def main(url: str, path: str) -> None:
    account = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    tasks: list[Any] = [accounted]
    Worker(
        tasks,
        redis_settings=RedisSettings.from_dsn(url),
        codec="msgpack",
        history=True,
        lease=LEASE_S,
        max_jobs=20,
        max_crashes=100,  # here workers die of their tester, not of a job
        ctx={"account": account},
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
