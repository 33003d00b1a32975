"""A worker that keeps its own account of what it runs: ``python -m tests.chaos_worker URL FILE``.

Each start and end of a job is one line, written with one call, so that it outlives SIGKILL
of the worker and restarts of Redis.
"""

from __future__ import annotations

import asyncio
import os
import sys

from runner import Context, RedisSettings, Worker, task

LEASE_S = 3.0


@task(name="accounted")
async def accounted(ctx: Context, number: int) -> int:
    """Take a moment; every hundredth job takes longer than a lease renewal."""
    note(ctx, "start")
    await asyncio.sleep(1.5 if number % 100 == 0 else 0.01)
    note(ctx, "end")
    return number


def note(ctx: Context, what: str) -> None:
    os.write(ctx["account"], f"{what} {ctx.job_id}\n".encode())


def main(url: str, path: str) -> None:
    account = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    Worker(
        [accounted],
        redis_settings=RedisSettings.from_dsn(url),
        codec="msgpack",
        history=True,
        lease=LEASE_S,
        max_jobs=50,
        max_crashes=100,  # here workers die of their tester, not of a job
        ctx={"account": account},
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
