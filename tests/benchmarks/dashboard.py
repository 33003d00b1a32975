"""How long the dashboard's pages take: the server's time for each, with much stored.

``python -m tests.benchmarks.dashboard [rounds]``: 100,000 jobs in one queue, a tenth of them
deferred; 10,000 dead letters, 200 tasks with an hour of counts, 50 workers' heartbeats, 300 flows,
500 schedules, 20 limits. Each page is asked for in turn, without a socket; beside wall-clock time
the CPU time of this process is shown, and what Redis spent.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

import httpx
import msgspec
import uvloop
from redis.asyncio import Redis

import runner
from runner import Flow, cron, embedded, keys, task
from runner.dashboard import dashboard
from runner.inspect.latency import BOUNDS_MS
from runner.inspect.workers import RunningJob, WorkerInfo
from runner.letters import encode_letter
from runner.types import DeadLetter

if TYPE_CHECKING:
    from runner import Client

ROUNDS = 30
JOBS, TASKS, WORKERS, LETTERS, FLOWS, SCHEDULES = 100_000, 200, 50, 10_000, 300, 500
GOAL_MS = 50.0


@task
async def step(_ctx: runner.Context, number: int, word: str = "") -> int:
    """Stand for any task."""
    return number + len(word)


def names() -> list[str]:
    """Return the names of the tasks."""
    return [f"shop.orders.task_{number:03}" for number in range(TASKS)]


async def fill(url: str) -> dict[str, str]:
    """Store what a large fleet would have; return ids that pages are about."""
    tasks = [task(name=name)(step.function) for name in names()]
    async with runner.connect(url) as client:
        for start in range(0, JOBS, 5_000):
            calls = [
                tasks[n % TASKS].call(n, word=f"order {n}") for n in range(start, start + 5_000)
            ]
            if start >= JOBS * 9 // 10:
                calls = [call.task.options(delay=3_600).call(*call.args) for call in calls]
            await client.enqueue_many(calls)
        await _minutes(client)
        await _workers(client)
        await _letters(client)
        flow_id = ""
        for number in range(FLOWS):
            flow = Flow(f"flow {number}")
            first = flow.add(step.call(1), name="first")
            middle = [flow.add(step.call(n), name=f"m{n}", after=[first]) for n in range(30)]
            flow.add(step.call(2), name="last", after=middle)
            flow_id = (await client.start(flow)).id
        for number in range(SCHEDULES):
            due = cron(names()[number % TASKS], f"{number % 60} 3 * * *", name=f"schedule {number}")
            await client.schedules.add(due, tasks=names())
        for number in range(20):
            await client.limits.set(task=names()[number], rate="100/m")
        page = await client.jobs.list(limit=1)
        letter = (await client.dead.list(limit=1)).letters[0]
    return {"job": page.jobs[0].job_id, "dead": letter.job_id, "flow": flow_id}


async def _minutes(client: Client) -> None:
    """Write an hour of counts for all tasks."""
    seconds, _ = await client.time()
    buckets = range(0, len(BOUNDS_MS), 3)
    for minute in range(seconds // 60 - 60, seconds // 60 + 1):
        totals: dict[str, int] = {"succeeded": 9_000, "failed": 40, "ws": 90_000, "rs": 900_000}
        totals |= {f"{kind}{bucket}": 400 for kind in "wr" for bucket in range(len(BOUNDS_MS))}
        await cast(Any, client).hset(keys.minute(keys.DEFAULT_QUEUE, minute), mapping=totals)
        by_task: dict[str, int] = {}
        for name in names():
            by_task |= {
                f"succeeded {name}": 45,
                f"failed {name}": 1,
                f"ws {name}": 9,
                f"rs {name}": 9,
            }
            by_task |= {f"{kind}{bucket} {name}": 4 for kind in "wr" for bucket in buckets}
        await cast(Any, client).hset(keys.minute_tasks(keys.DEFAULT_QUEUE, minute), mapping=by_task)


async def _workers(client: Client) -> None:
    """Write heartbeats that last as long as the run."""
    now_ms = time.time_ns() // 1_000_000
    for number in range(WORKERS):
        name = f"host-{number}:4711:a0b1c{number}"
        running = tuple(
            RunningJob(f"job{n}", names()[n], "arq:queue", 1, now_ms) for n in range(50)
        )
        info = WorkerInfo(
            name=name, host=f"host-{number}", pid=4711, version="0.1.0", queues=("arq:queue",),
            tasks=tuple(names()), state="running", concurrency=100, running=50, jobs=running,
            succeeded=10**6, failed=10, retried=100, rss_bytes=10**8, loop_delay_ms=1.5,
            is_writer=number == 0, started_ms=now_ms, at_ms=now_ms,
        )  # fmt: skip
        await client.zadd(keys.WORKERS, {name: now_ms + 10**9})
        await client.set(keys.worker(name), msgspec.msgpack.encode(info))


async def _letters(client: Client) -> None:
    now_ms = time.time_ns() // 1_000_000
    for start in range(0, LETTERS, 1_000):
        async with client.pipeline(transaction=False) as pipe:
            for number in range(start, start + 1_000):
                letter = DeadLetter(
                    job_id=f"dead{number}", queue=keys.DEFAULT_QUEUE, task=names()[number % TASKS],
                    args=[number], kwargs={"word": "x" * 50}, attempt=3, outcome="failed",
                    error_type="ConnectionError", error="the shop is closed",
                    traceback="Traceback\n" * 100, enqueued_ms=now_ms, died_ms=now_ms - number,
                )  # fmt: skip
                pipe.set(keys.dead_letter(letter.job_id), encode_letter(letter))
                pipe.zadd(keys.dead(keys.DEFAULT_QUEUE), {letter.job_id: letter.died_ms})
            await pipe.execute()


def pages(ids: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return what is asked for."""
    return [
        ("/", {}),
        ("/tasks", {}),
        ("/task", {"name": names()[7]}),
        ("/jobs", {}),
        ("/jobs", {"state": "running"}),
        ("/jobs", {"state": "deferred"}),
        ("/jobs", {"task": names()[7]}),
        ("/jobs", {"arg": "number=-1"}),
        ("/jobs", {"state": "finished"}),
        ("/job", {"id": ids["job"]}),
        ("/job", {"id": ids["dead"]}),
        ("/dead", {}),
        ("/dead", {"task": names()[7]}),
        ("/dead", {"error": "NoSuchError"}),
        ("/schedules", {}),
        ("/workflows", {}),
        ("/workflow", {"id": ids["flow"]}),
        ("/workers", {}),
        ("/limits", {}),
        ("/writer", {}),
    ]


async def measure(url: str, ids: dict[str, str], rounds: int) -> bool:
    """Ask for all pages, and print what they took; return whether the goal was met."""
    tasks = [task(name=name)(step.function) for name in names()]
    app = dashboard(url, tasks=tasks)
    asked = pages(ids)
    took: dict[int, list[tuple[float, float]]] = {index: [] for index in range(len(asked))}
    sizes: dict[int, int] = {}
    redis = Redis.from_url(url)
    spent: dict[int, float] = dict.fromkeys(took, 0.0)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://localhost"
    ) as http:
        for index, (path, fields) in enumerate(asked):
            reply = await http.get(f"{path}?{urlencode(fields)}")
            assert reply.status_code == 200, (path, reply.text)
            sizes[index] = len(reply.content)
        for _ in range(rounds):
            for index, (path, fields) in enumerate(asked):
                await asyncio.sleep(0.05)  # so that nothing is fresh from the page before
                before = await _redis_us(redis)
                cpu, wall = time.process_time(), time.perf_counter()
                await http.get(f"{path}?{urlencode(fields)}")
                ended, used = time.perf_counter(), time.process_time()
                took[index].append(((ended - wall) * 1000, (used - cpu) * 1000))
                spent[index] += await _redis_us(redis) - before
    await redis.aclose()
    await app.aclose()
    lines = [f"{'page':44} {'p50 ms':>8} {'p95 ms':>8} {'CPU p50':>8} {'Redis ms':>9} {'kB':>6}"]
    worst = 0.0
    for index, (path, fields) in enumerate(asked):
        walls = sorted(wall for wall, _ in took[index])
        p95 = walls[min(int(len(walls) * 0.95), len(walls) - 1)]
        worst = max(worst, p95)
        cpu = statistics.median(used for _, used in took[index])
        redis_ms = spent[index] / rounds / 1000
        name = f"{path}?{urlencode(fields)}" if fields else path
        lines.append(
            f"{name[:44]:44} {statistics.median(walls):8.1f} {p95:8.1f} {cpu:8.1f} "
            f"{redis_ms:9.1f} {sizes[index] / 1000:6.0f}"
        )
    lines.append(f"slowest p95: {worst:.1f} ms, goal {GOAL_MS:.0f} ms")
    print("\n".join(lines))  # noqa: T201  its report
    return worst <= GOAL_MS


async def _redis_us(redis: Any) -> float:
    stats = await redis.info("commandstats")
    counted = (stat["usec"] for name, stat in stats.items() if name != "cmdstat_info")
    return float(sum(counted))


def main(rounds: int) -> int:
    """Run it on servers of its own."""
    with embedded.start(fsync=False) as servers:
        ids = uvloop.run(fill(servers.redis_url))
        is_met = uvloop.run(measure(servers.redis_url, ids, rounds))
    return 0 if is_met else 1


if __name__ == "__main__":
    os.environ.pop("REDIS_URL", None)
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else ROUNDS))
