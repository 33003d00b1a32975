"""A worker with sub-second schedules, which may live in the past or in the future.

``python -m tests.schedule_worker URL FILE SECONDS``: its clocks are off by so many seconds. Each
run of a job is one line in the file, written with one call, so that it outlives SIGKILL.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
from typing import Any

INTERVAL_S = 0.2
OWN_S = 0.3
GRACE_S = 60.0


def shift_clocks(seconds: float) -> None:
    """Put every wall clock of this process off; to be called before anything reads one."""
    real_time, real_ns, real = time.time, time.time_ns, dt.datetime

    class Shifted(real):  # type: ignore[misc,valid-type]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real.now(tz) + dt.timedelta(seconds=seconds)

    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)
    dt.datetime = Shifted  # type: ignore[misc]


def main(url: str, path: str) -> None:
    from runner import Context, RedisSettings, Worker, cron, every, perpetual, task  # noqa: PLC0415  late: see above

    account = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @task(name="audited")
    async def audited(ctx: Context) -> None:
        _, name, due_ms = ctx["cron"]
        os.write(account, f"{name} {due_ms} {ctx.job_id}\n".encode())

    @task(name="deciding")
    async def deciding(ctx: Context) -> None:
        await ctx.reschedule(OWN_S)
        await audited(ctx)

    Worker(
        [audited],
        cron_jobs=[
            cron(audited, every(INTERVAL_S), name="interval", grace=GRACE_S),
            cron(audited, "* * * * * *", name="seconds", grace=GRACE_S),
            cron(deciding, perpetual(), name="own"),
        ],
        redis_settings=RedisSettings.from_dsn(url),
        codec="msgpack",
        history=True,
        lease=6.0,
        poll_delay=0.2,
        ctx={},
    ).run()


if __name__ == "__main__":
    shift_clocks(float(sys.argv[3]))
    main(*sys.argv[1:3])
