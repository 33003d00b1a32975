"""What limits cost, and how well rates are used: ``python -m tests.benchmarks.limits``.

- admissions: one worker drains jobs of each kind of limit, wide enough to refuse none; beside the
  rate stand the processor time of the worker, and the time of the two scripts in the server.
- parked: what a worker costs while 100,000 jobs are parked.
- use: four workers, a rate of 1,000/s and more jobs than that: the share of it that is used, and
  the fullest window, by the starts that the jobs note.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import runner
from runner import Context, RateLimit, RunningLimit, embedded, keys, task
from tests.benchmarks.processes import Process, cpu_s

if TYPE_CHECKING:
    from runner import Task

ROOT = Path(__file__).resolve().parents[2]
RATE = 1_000
WIDE, WIDER = RateLimit("wide", "100000/s"), RunningLimit("wider", 10_000)


@task(name="free", keep_result=0)
async def free(_ctx: Context, _tenant_id: int) -> None:
    """Has no limit."""


@task(name="window", rate="100000/s", keep_result=0)
async def window(_ctx: Context, _tenant_id: int) -> None:
    """Has an exact window."""


@task(name="bucket", rate="1000000/s", burst=100_000, keep_result=0)
async def bucket(_ctx: Context, _tenant_id: int) -> None:
    """Has a token bucket."""


@task(name="tenants", rate="100000/s", burst=10_000, rate_key="_tenant_id", keep_result=0)
async def tenants(_ctx: Context, _tenant_id: int) -> None:
    """Has a token bucket for each of a hundred tenants."""


@task(name="running", max_running=10_000, keep_result=0)
async def running(_ctx: Context, _tenant_id: int) -> None:
    """Has slots."""


@task(name="several", limits=[WIDE, WIDER], keep_result=0)
async def several(_ctx: Context, _tenant_id: int) -> None:
    """Has a window and slots."""


@task(name="one", max_running=1, keep_result=0)
async def one(_ctx: Context, _tenant_id: int) -> None:
    """Is what a hundred thousand are parked for."""


@task(name="noted", rate=f"{RATE}/s", keep_result=0)
async def noted(ctx: Context, _tenant_id: int) -> None:
    """Note when it began."""
    moment = time.time_ns() // 1000
    redis: Any = ctx.client
    await redis.rpush("starts", moment)


TASKS = (free, window, bucket, tenants, running, several, one, noted)


def serve(url: str) -> None:
    """Be a worker."""
    runner.Worker(
        TASKS,
        redis_settings=runner.RedisSettings.from_dsn(url),
        codec="msgpack",
        history=True,
        max_jobs=100,
        use_uvloop=True,
    ).run()


def worker(url: str, folder: str, number: int = 0) -> Process:
    """Return the process of a worker."""
    return Process(
        [sys.executable, "-m", "tests.benchmarks.limits", "--serve", url],
        folder=ROOT,
        environment={"PATH": "/usr/bin:/bin"},
        log=Path(folder) / f"worker-{number}.log",
    )


async def until_drained(client: runner.Client) -> None:
    """Wait until no job is left."""
    while await client.zcard(keys.DEFAULT_QUEUE):  # noqa: ASYNC110  it is in another process
        await asyncio.sleep(0.02)


async def ready(client: runner.Client, number: int) -> None:
    """Wait until so many workers wait for jobs."""
    while await client.zcard(keys.idle(keys.DEFAULT_QUEUE)) < number:  # noqa: ASYNC110  the same
        await asyncio.sleep(0.05)


async def drain(client: runner.Client, pid: int, name: str, task: Task[[int], None], n: int) -> str:
    """Let the worker drain jobs of one task; return the row."""
    await client.pause(queue=keys.DEFAULT_QUEUE)
    await client.enqueue_many(task.call(number % 100) for number in range(n))
    await client.config_resetstat()
    began, before_s = time.monotonic(), cpu_s(pid)
    await client.resume(queue=keys.DEFAULT_QUEUE)
    await until_drained(client)
    took_s, used_s = time.monotonic() - began, cpu_s(pid) - before_s
    stats = (await client.info("commandstats"))["cmdstat_evalsha"]
    costs = f"{used_s * 1e6 / n:13.1f} {stats['usec'] / n:13.1f} {stats['calls']:8,}"
    return f"{name:22} {n / took_s:9,.0f}/s {costs}"


async def admissions(url: str, arguments: Any) -> None:
    """Measure each kind of limit."""
    say(f"{'admissions':22} {'jobs':>11} {'worker us/job':>13} {'server us/job':>13} {'calls':>8}")
    async with runner.connect(url) as client:
        with TemporaryDirectory() as folder, worker(url, folder) as process:
            await ready(client, 1)
            await drain(client, process.pid, "warm", free, arguments.count)
            rows = [
                (found.name, found) for found in (free, window, bucket, tenants, running, several)
            ]
            for name, found in rows:
                say(await drain(client, process.pid, name, found, arguments.count))
            await client.limits.set(task="other", rate="1/s")
            say(await drain(client, process.pid, "free, others gated", free, arguments.count))
            await client.limits.clear("other.rate")


async def parked(url: str, arguments: Any) -> None:
    """Measure what a worker costs while nothing runs, without and with parked jobs."""
    say(f"\n{'parked':22} {'worker s/min':>13} {'server s/min':>13}")
    async with runner.connect(url) as client:
        pid = (await client.info("server"))["process_id"]
        for count in (0, arguments.parked):
            await client.flushdb()
            if count:
                await client.pause(queue=keys.DEFAULT_QUEUE)
                await client.enqueue_many(one.call(number) for number in range(count))
                ids = [raw.decode() for raw in await client.zrange(keys.DEFAULT_QUEUE, 0, -1)]
                for start in range(0, count, 1000):
                    part = ids[start : start + 1000]
                    members = {
                        f"{keys.DEFAULT_QUEUE}\n{name}": start + n for n, name in enumerate(part)
                    }
                    await client.zadd(keys.PARKED + "one.running", members)
                    await client.zadd(keys.DEFAULT_QUEUE, dict.fromkeys(part, keys.PARKED_MS))
                # One slot that is taken for good: its job stands in another queue.
                await client.zadd(keys.RUNNING + "one.running", {"elsewhere\nx": 1})
                await client.set(keys.in_progress("x"), "r:elsewhere")
                await client.zadd("elsewhere", {"x": 1})
                await client.zadd(keys.LIMIT_BUCKETS + "one.running", {"one.running": 1})
                await client.resume(queue=keys.DEFAULT_QUEUE)
            with TemporaryDirectory() as folder, worker(url, folder) as process:
                await ready(client, 1)
                await asyncio.sleep(2)
                before = cpu_s(process.pid), cpu_s(pid)
                await asyncio.sleep(arguments.seconds)
                after = cpu_s(process.pid), cpu_s(pid)
            a_minute = 60 / arguments.seconds
            costs = [(b - a) * a_minute for a, b in zip(before, after, strict=True)]
            say(f"{count:<22,} {costs[0]:13.2f} {costs[1]:13.2f}")


async def use(url: str, arguments: Any) -> None:
    """Measure how much of a rate four workers use, and the fullest window."""
    async with runner.connect(url) as client:
        await client.flushdb()
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory())
            for number in range(4):
                stack.enter_context(worker(url, folder, number))
            await ready(client, 4)
            count = int(RATE * arguments.seconds)
            await client.enqueue_many(noted.call(0) for _ in range(count))
            await until_drained(client)
        redis: Any = client
        starts = sorted(int(raw) for raw in await redis.lrange("starts", 0, -1))
    took_s = (starts[-1] - starts[0]) / 1e6
    say(f"\nuse of {RATE}/s by four workers, {len(starts):,} jobs in {took_s:.2f} s")
    say(f"  used      {len(starts) / took_s / RATE:6.1%}")
    for margin in (1.0, 1.02):
        say(
            f"  fullest   {fullest(starts, 1e6 / margin):6,}  in a window of {1000 / margin:.0f} ms"
        )


def fullest(starts: list[int], period_us: float) -> int:
    """Return how many began in the fullest window."""
    most = first = 0
    for index, at in enumerate(starts):
        while starts[first] <= at - period_us:
            first += 1
        most = max(most, index - first + 1)
    return most


async def measure(arguments: Any) -> None:
    """Measure all, on one server."""
    servers = await asyncio.to_thread(embedded.start, postgres=False)
    try:
        await admissions(servers.redis_url, arguments)
        await parked(servers.redis_url, arguments)
        await use(servers.redis_url, arguments)
    finally:
        await asyncio.to_thread(servers.stop)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--parked", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    else:
        asyncio.run(measure(arguments))


def say(line: str) -> None:
    """Write a line for the person who waits for it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
