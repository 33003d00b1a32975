"""What the engine keeps of its promises while workers are killed and Redis comes and goes."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from arq.connections import RedisSettings

import runner
from runner import Client, Context, keys, task
from runner.worker import Worker
from tests.engine import Gate, serving
from tests.support import wait_until
from tests.worker_process import block, wait

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    from tests.servers import ChaosServers

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:held:*")]

ROOT = Path(__file__).parents[2]
QUEUE = keys.DEFAULT_QUEUE
LEASE_S = 2.0


@asynccontextmanager
async def processes(url: str, count: int, lease_s: float = LEASE_S) -> AsyncIterator[list[Process]]:
    """Run workers in processes of their own; those that are left over are killed."""
    started = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.worker_process", url, str(lease_s)), cwd=ROOT
        )
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def runs(client: Client, job_id: str) -> list[int]:
    return [int(raw) for raw in await client.lrange(f"runs:{job_id}", 0, -1)]  # type: ignore[misc]


async def test_jobs_of_a_killed_worker_run_elsewhere_within_a_lease(redis_url: str) -> None:
    async with runner.connect(redis_url) as client, processes(redis_url, 1) as (first,):
        jobs = await client.enqueue_many([wait.call(600) for _ in range(10)])
        await wait_until(
            lambda: _all_ran(client, jobs, 1), description="all jobs run", timeout_s=20
        )
        async with processes(redis_url, 1):
            await wait_until(
                lambda: client.exists(keys.idle(QUEUE)),
                description="the second waits",
                timeout_s=20,
            )
            first.kill()
            loop = asyncio.get_running_loop()
            killed = loop.time()
            await wait_until(
                lambda: _all_ran(client, jobs, 2),
                description="all jobs run elsewhere",
                timeout_s=20,
            )
            assert loop.time() - killed <= LEASE_S + 2
        assert (await client.queue_stats()).crashed == 10
        # No try was lost: the count is of those that have ended.
        assert await client.get(keys.retry(jobs[0].job_id)) is None


async def _all_ran(client: Client, jobs: list[runner.Job[int]], times: int) -> bool:
    return all([len(await runs(client, job.job_id)) >= times for job in jobs])


async def test_worker_that_is_told_to_stop_hands_its_jobs_over_at_once(redis_url: str) -> None:
    async with (
        runner.connect(redis_url) as client,
        processes(redis_url, 2, lease_s=60) as workers,
    ):
        jobs = await client.enqueue_many([wait.call(600) for _ in range(10)])
        await wait_until(
            lambda: _all_ran(client, jobs, 1), description="all jobs run", timeout_s=20
        )
        ran_by = {process.pid: process for process in workers}
        first = ran_by[(await runs(client, jobs[0].job_id))[0]]
        first.send_signal(signal.SIGTERM)
        await first.wait()
        await wait_until(
            lambda: _all_run_by_others(client, jobs, first.pid),
            description="the other runs them",
            timeout_s=5,
        )
        assert (await client.queue_stats()).crashed == 0


async def _all_run_by_others(client: Client, jobs: list[runner.Job[int]], pid: int) -> bool:
    return all([(await runs(client, job.job_id))[-1] != pid for job in jobs])


async def test_job_that_blocks_longer_than_a_lease_runs_once(redis_url: str) -> None:
    async with runner.connect(redis_url) as client, processes(redis_url, 2, lease_s=1):
        job = await client.enqueue(block, 2.5)
        pid = await job.result(timeout=30)
        assert await runs(client, job.job_id) == [pid]
        assert (await client.queue_stats()).crashed == 0


async def test_stopped_worker_that_wakes_up_does_not_end_a_job_that_runs_elsewhere(
    redis_url: str,
) -> None:
    async with runner.connect(redis_url) as client, processes(redis_url, 1, 1) as (first,):
        job = await client.enqueue(wait, 2)
        await wait_until(
            lambda: _all_ran(client, [job], 1), description="the job runs", timeout_s=20
        )
        first.send_signal(signal.SIGSTOP)
        async with processes(redis_url, 1, 1) as (second,):
            await wait_until(
                lambda: _all_ran(client, [job], 2), description="it is taken over", timeout_s=20
            )
            first.send_signal(signal.SIGCONT)
            assert await job.result(timeout=20) == second.pid
            assert await runs(client, job.job_id) == [first.pid, second.pid]
            stats = await client.queue_stats()
            assert (stats.succeeded, stats.crashed) == (1, 1)


# Redis comes and goes; the workers live on in this process.


@task
async def wait_at(ctx: Context, number: int) -> int:
    ctx["runs"].append(number)
    await ctx["gate"]()
    return number


@task
async def brief(ctx: Context, number: int) -> int:
    ctx["runs"].append(number)
    await asyncio.sleep(0.002)
    return number


async def test_jobs_that_run_while_redis_restarts_finish_once(chaos_servers: ChaosServers) -> None:
    gate, ran = Gate(), list[int]()
    settings = {"lease": LEASE_S, "ctx": {"gate": gate, "runs": ran}, "max_jobs": 30}
    async with runner.connect(chaos_servers.redis_url) as client:
        jobs = await client.enqueue_many([wait_at.call(n) for n in range(30)])
        async with serving(chaos_servers.redis_url, [wait_at], **settings) as worker:
            await wait_until(lambda: len(ran) == 30, description="all run")
            await chaos_servers.stop_redis(kill=True)
            gate.opens.set()
            await wait_until(
                lambda: worker.jobs_complete == 30, description="all end while Redis is away"
            )
            await chaos_servers.start_redis()
            results = await asyncio.gather(*(job.result(timeout=20) for job in jobs))
        assert results == list(range(30))
        assert sorted(ran) == list(range(30))
        assert (await client.queue_stats()).crashed == 0


async def test_nothing_that_was_acknowledged_is_lost_in_restarts(
    chaos_servers: ChaosServers,
) -> None:
    ran: list[int] = []
    acknowledged: list[runner.Job[int]] = []
    stop = asyncio.Event()

    async def enqueue(client: Client) -> None:
        number = 0
        while not stop.is_set():
            try:
                acknowledged.append(await client.enqueue(brief, number))
            except Exception:  # noqa: BLE001  Redis is away: this one was not acknowledged
                await asyncio.sleep(0.05)
            number += 1

    url = chaos_servers.redis_url
    async with (
        runner.connect(url) as client,
        serving(url, [brief], lease=LEASE_S, ctx={"runs": ran}, max_jobs=20),
        serving(url, [brief], lease=LEASE_S, ctx={"runs": ran}, max_jobs=20),
    ):
        enqueuing = asyncio.create_task(enqueue(client))
        for turn in range(3):
            await wait_until(
                lambda turn=turn: len(acknowledged) > 200 * (turn + 1),  # type: ignore[misc]
                description="jobs are enqueued",
            )
            await chaos_servers.restart_redis(kill=True)
        stop.set()
        await enqueuing
        results = await asyncio.gather(*(job.result(timeout=30) for job in acknowledged))
        assert len(results) == len(acknowledged)
        assert len(set(results)) == len(acknowledged)
        assert await client.zcard(QUEUE) == 0


async def test_pause_of_redis_longer_than_a_lease_takes_no_job_from_a_live_worker(
    chaos_servers: ChaosServers,
) -> None:
    gate, ran = Gate(), list[int]()
    url = chaos_servers.redis_url
    settings = {"lease": 1, "ctx": {"gate": gate, "runs": ran}, "max_jobs": 20}
    async with (
        runner.connect(url) as client,
        serving(url, [wait_at], **settings),
        serving(url, [wait_at], **settings),
    ):
        jobs = await client.enqueue_many([wait_at.call(n) for n in range(20)])
        await wait_until(lambda: len(ran) == 20, description="all run")
        await client.client_pause(1800)
        await client.ping()  # answered when the pause is over
        until = asyncio.get_running_loop().time() + 1.5
        await wait_until(
            lambda: asyncio.get_running_loop().time() > until,
            description="every worker has had the time to take what it can",
        )
        gate.opens.set()
        assert await asyncio.gather(*(job.result(timeout=10) for job in jobs)) == list(range(20))
        assert sorted(ran) == list(range(20))


async def test_second_signal_ends_a_worker_that_cannot_reach_redis(
    chaos_servers: ChaosServers, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    async with runner.connect(chaos_servers.redis_url) as client:
        await client.enqueue(wait_at, 1)
    worker = Worker(
        [wait_at],
        redis_settings=RedisSettings.from_dsn(chaos_servers.redis_url),
        handle_signals=True,
        codec="msgpack",
        ctx={"gate": gate, "runs": []},
    )
    main = asyncio.create_task(worker.async_run())
    await gate.runs.wait()
    await chaos_servers.stop_redis(kill=True)
    worker.handle_sig(signal.SIGTERM)
    await asyncio.gather(main, return_exceptions=True)
    closing = asyncio.create_task(worker.close())
    await wait_until(
        lambda: "finished jobs wait for it" in caplog.text,
        description="it tries to hand its job back",
    )
    assert not closing.done()
    worker.handle_sig(signal.SIGTERM)
    async with asyncio.timeout(5):
        await closing


async def test_worker_waits_for_a_redis_that_is_not_there_yet(chaos_servers: ChaosServers) -> None:
    ran: list[int] = []
    url = chaos_servers.redis_url
    async with runner.connect(url) as client, serving(url, [brief], ctx={"runs": ran}):
        await wait_until(lambda: client.exists(keys.idle(QUEUE)), description="it waits")
        await chaos_servers.stop_redis(kill=True)
        await chaos_servers.start_redis()
        job = await client.enqueue(brief, 5)
        assert await job.result(timeout=10) == 5
    assert ran == [5]


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_job_that_blocks_for_a_minute_runs_once_with_the_default_lease(
    redis_url: str,
) -> None:
    async with runner.connect(redis_url) as client, processes(redis_url, 2, lease_s=15):
        job = await client.enqueue(block, 60)
        pid = await job.result(timeout=90)
        assert await runs(client, job.job_id) == [pid]
