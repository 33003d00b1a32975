"""A worker to be killed between a commit and a job's end: ``python -m tests.commit_worker URL``.

Each attempt notes what its commit told in Redis under ``told:<job id>``. The first waits then for
its end; a later one goes on.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from runner import Context, RedisSettings, Worker, task

LEASE_S = 2.0


@task(name="commit_and_wait")
async def commit_and_wait(ctx: Context, name: str) -> int:
    ctx.db.insert("serials", name=name, returning=["id"])
    ctx.db.update("total", key={"name": "x"}, n=1)
    committed = await ctx.db.commit()
    assert committed.rows[0] is not None
    told = json.dumps([committed.entry, committed.counts, committed.rows])
    redis: Any = ctx.client
    if await redis.rpush(f"told:{ctx.job_id}", told) == 1:
        await asyncio.sleep(600)
    ctx.db.add("total", key={"name": "x"}, n=10)
    number: int = committed.rows[0][0]["id"]
    return number


def main(url: str) -> None:
    Worker(
        [commit_and_wait],
        redis_settings=RedisSettings.from_dsn(url),
        codec="msgpack",
        history=True,
        lease=LEASE_S,
        poll_delay=0.2,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
