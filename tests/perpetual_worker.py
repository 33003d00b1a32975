"""A worker of a perpetual task that is killed at any moment.

``python -m tests.perpetual_worker URL FILE``: each run is one line in the file. Some runs kill the
process a moment after they have begun: before the decision, between it and the end, while that is
settled, or after that.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading

from runner import Context, RedisSettings, Worker, cron, perpetual, task

LEASE_S = 1.0
KILLED = 0.3
MOMENT_S = 0.02
RUN_S = 0.008


@task(name="chain")
async def chain(ctx: Context, number: int = 1) -> None:
    os.write(ctx["account"], f"{number} {ctx.job_id}\n".encode())
    if random.random() < KILLED:
        moment_s = random.uniform(0, MOMENT_S)
        threading.Timer(moment_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    await asyncio.sleep(random.uniform(0, RUN_S))
    await ctx.reschedule(0.01, args=(number + 1,))
    await asyncio.sleep(random.uniform(0, RUN_S))


def main(url: str, path: str) -> None:
    account = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    Worker(
        [],
        cron_jobs=[cron(chain, perpetual())],
        redis_settings=RedisSettings.from_dsn(url),
        codec="msgpack",
        history=True,
        lease=LEASE_S,
        max_crashes=100,  # here workers die of their tester, not of a job
        ctx={"account": account},
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
