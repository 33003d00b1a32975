"""Redis slow, full, cut off, or reached in unusual ways: nothing is lost and nothing runs twice."""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, Any

import pytest
from arq.jobs import SerializationError
from redis.asyncio import Redis

import runner
from runner import Context, RedisSettings, keys, task
from runner.broker import Broker, CycleReply
from runner.embedded.programs import find_redis
from runner.events import Event, JobEnded
from runner.worker import Worker
from tests.engine import Gate, lease_is_renewed, serving, started
from tests.proxy import proxied
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.servers import ChaosServers

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:held:*")]

JOBS = 100
MB = 1024 * 1024


@task
async def brief(ctx: Context, number: int) -> int:
    ctx["runs"][number] += 1
    await asyncio.sleep(0.005)
    return number


@task
async def hold(ctx: Context, number: int) -> int:
    ctx["runs"][number] += 1
    await ctx["gate"]()
    return number


async def test_replies_that_are_cut_off_cost_no_run_and_no_try(redis_url: str) -> None:
    """The script ran, its reply was lost: each job runs once, and every end is told once."""
    runs: collections.Counter[int] = collections.Counter()
    ends: list[JobEnded] = []

    def note(event: Event) -> None:
        if isinstance(event, JobEnded):
            ends.append(event)

    async with proxied(redis_url) as wire, runner.connect(redis_url) as client:
        settings: dict[str, Any] = {"ctx": {"runs": runs, "gate": Gate()}, "max_jobs": 20}
        jobs = await client.enqueue_many([hold.call(n) for n in range(20)])
        gate = settings["ctx"]["gate"]
        async with serving(wire.url, [hold], lease=2, subscribers=[note], **settings):
            await wait_until(lambda: len(runs) == 20, description="all run")
            wire.cut = b"EVALSHA"
            gate.opens.set()
            await wait_until(lambda: wire.cuts >= 3, description="replies were lost")
            wire.cut = b""
            results = await asyncio.gather(*(job.result(timeout=20) for job in jobs))
            await wait_until(lambda: len(ends) == 20, description="all ends are told")
        assert results == list(range(20))
        assert set(runs.values()) == {1}
        assert {(end.outcome.value, end.attempt) for end in ends} == {("succeeded", 1)}
        assert (await client.queue_stats()).crashed == 0


async def test_claims_whose_replies_are_cut_off_cost_no_try(redis_url: str) -> None:
    """What was claimed and never heard of runs after its lease, in its first try."""
    runs: collections.Counter[int] = collections.Counter()
    async with proxied(redis_url) as wire, runner.connect(redis_url) as client:
        settings: dict[str, Any] = {"ctx": {"runs": runs}, "max_jobs": JOBS, "max_tries": 1}
        async with serving(wire.url, [brief], lease=1, max_crashes=100, **settings):
            await wait_until(
                lambda: client.exists(keys.idle(keys.DEFAULT_QUEUE)), description="it waits"
            )
            wire.cut = b"EVALSHA"
            jobs = await client.enqueue_many([brief.call(n) for n in range(JOBS)])
            await wait_until(lambda: wire.cuts >= 2, description="replies were lost")
            wire.cut = b""
            results = await asyncio.gather(*(job.result(timeout=30) for job in jobs))
        assert results == list(range(JOBS))
        assert set(runs.values()) == {1}


async def test_slow_redis_slows_jobs_and_loses_none(redis_url: str) -> None:
    runs: collections.Counter[int] = collections.Counter()
    async with proxied(redis_url) as wire, runner.connect(redis_url) as client:
        wire.delay_s = 0.2
        jobs = await client.enqueue_many([brief.call(n) for n in range(JOBS)])
        async with serving(wire.url, [brief], lease=2, ctx={"runs": runs}, max_jobs=50):
            results = await asyncio.gather(*(job.result(timeout=30) for job in jobs))
        assert results == list(range(JOBS))
        assert set(runs.values()) == {1}


async def test_full_redis_still_ends_jobs_and_goes_on_when_there_is_room(
    chaos_servers: ChaosServers,
) -> None:
    runs: collections.Counter[int] = collections.Counter()
    gate, url = Gate(), chaos_servers.redis_url
    async with (
        runner.connect(url) as client,
        serving(url, [hold], lease=1, ctx={"runs": runs, "gate": gate}, max_jobs=10),
    ):
        jobs = await client.enqueue_many([hold.call(n) for n in range(30)])
        await wait_until(lambda: len(runs) == 10, description="the slots are full")
        await client.config_set("maxmemory", 1)
        first = sorted(runs)
        gate.opens.set()
        # Ends free memory before they need some: those that run end, and leave their results.
        results = await asyncio.gather(*(jobs[number].result(timeout=20) for number in first))
        assert results == first
        with pytest.raises(runner.errors.EnqueueError, match="maxmemory"):
            await client.enqueue(hold, 30)
        await client.config_set("maxmemory", 0)
        results = await asyncio.gather(*(job.result(timeout=20) for job in jobs))
        assert results == list(range(30))
        assert set(runs.values()) == {1}


async def test_worker_with_a_single_connection_runs_jobs(redis_url: str) -> None:
    settings = RedisSettings.from_dsn(redis_url)
    settings.max_connections = 1
    runs: collections.Counter[int] = collections.Counter()
    worker = Worker(
        [brief],
        redis_settings=settings,
        handle_signals=False,
        codec="msgpack",
        allow_abort_jobs=True,
        ctx={"runs": runs},
        poll_delay=3600,
        lease=3600,
    )
    async with runner.connect(settings) as client, started(worker):
        # Waiting for a wake token and for results takes no connection from either.
        for start in range(0, 50, 10):
            jobs = await client.enqueue_many([brief.call(start + n) for n in range(10)])
            results = await asyncio.gather(*(job.result(timeout=10) for job in jobs))
            assert results == list(range(start, start + 10))
    assert set(runs.values()) == {1}


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Path]:
    """A server that listens on a unix socket alone, with a user and a password."""
    path = tmp_path / "redis.sock"
    found = find_redis()
    assert found is not None
    (tmp_path / "server.conf").write_text(
        f"port 0\nunixsocket {path}\nsave ''\ndir {tmp_path}\n"
        "user shop on >secret ~* &* +@all\nuser default off\n"
    )
    process = await asyncio.create_subprocess_exec(
        str(found.server), str(tmp_path / "server.conf"), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await wait_until(path.exists, description="it listens")
        yield path
    finally:
        process.kill()
        await process.wait()


async def test_unix_socket_user_password_and_database_count_for_every_connection(
    guarded: Path,
) -> None:
    settings = RedisSettings(
        unix_socket_path=str(guarded), username="shop", password="secret", database=3
    )
    runs: collections.Counter[int] = collections.Counter()
    gate = Gate()
    worker = Worker(
        [hold, brief],
        redis_settings=settings,
        handle_signals=False,
        codec="msgpack",
        lease=0.6,
        poll_delay=0.15,
        ctx={"runs": runs, "gate": gate},
    )
    async with runner.connect(settings) as client, started(worker):
        job = await client.enqueue(hold, 1)
        await gate.runs.wait()
        await lease_is_renewed(client, job.job_id)
        woken = [info for info in await client.client_list() if info["cmd"] == "blpop"]
        assert [(info["db"], info["user"]) for info in woken] == [("3", "shop")]
        assert await (await client.enqueue(brief, 2)).result(timeout=10) == 2
        gate.opens.set()
        assert await job.result(timeout=10) == 1
    assert runs == {1: 1, 2: 1}


async def test_ten_thousand_jobs_sleep_at_once_in_one_worker(redis_url: str) -> None:
    at_once, opens = 10_000, asyncio.Event()
    running = 0

    @task
    async def sleep(_ctx: Context) -> None:
        nonlocal running
        running += 1
        await opens.wait()

    async with runner.connect(redis_url) as client:
        await client.enqueue_many([sleep.call() for _ in range(at_once)])
        async with serving(redis_url, [sleep], max_jobs=at_once, lease=60) as worker:
            await wait_until(
                lambda: running == at_once, description="all run at once", timeout_s=40
            )
            opens.set()
            await wait_until(
                lambda: worker.jobs_complete == at_once, description="all end", timeout_s=40
            )
        async with Redis.from_url(redis_url) as redis:
            assert await redis.zcard(keys.DEFAULT_QUEUE) == 0


@task
async def large(_ctx: Context, size: int) -> bytes:
    return bytes(size)


async def test_result_that_redis_takes_not_at_all_holds_nobody_back(
    chaos_servers: ChaosServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.broker.MAX_RESULT_BYTES", MB // 2)
    url = chaos_servers.redis_url
    async with runner.connect(url) as client:
        await client.config_set("proto-max-bulk-len", MB)
        jobs = await client.enqueue_many([large.call(size) for size in (10, 2 * MB, 20)])
        async with serving(url, [large], max_jobs=10):
            first, last = await asyncio.gather(
                jobs[0].result(timeout=20), jobs[2].result(timeout=20)
            )
            assert (len(first), len(last)) == (10, 20)
            with pytest.raises(SerializationError, match="bytes, more than"):
                await jobs[1].result(timeout=20)


async def test_large_results_of_one_moment_travel_in_several_calls(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.broker.MAX_BYTES", MB // 4)
    carried: list[int] = []
    cycle = Broker.cycle

    async def weighed(self: Broker, redis: Any, **call: Any) -> CycleReply:
        carried.append(sum(settlement.size for settlement in call["settlements"]))
        return await cycle(self, redis, **call)

    monkeypatch.setattr(Broker, "cycle", weighed)
    async with runner.connect(redis_url) as client:
        jobs = await client.enqueue_many([large.call(MB // 10) for _ in range(50)])
        async with serving(redis_url, [large], max_jobs=50):
            results = await asyncio.gather(*(job.result(timeout=20) for job in jobs))
    assert {len(result) for result in results} == {MB // 10}
    assert max(carried) <= MB // 4


async def test_worker_comes_back_from_a_wire_that_has_gone_silent(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("runner.cycle", "runner.worker"):
        monkeypatch.setattr(f"{module}.CYCLE_TIMEOUT_S", 0.5)
    gate = Gate()
    runs: collections.Counter[int] = collections.Counter()
    async with proxied(redis_url) as wire, runner.connect(redis_url) as client:
        settings: dict[str, Any] = {"ctx": {"runs": runs, "gate": gate}, "poll_delay": 0.05}
        async with serving(wire.url, [hold], allow_abort_jobs=True, **settings) as worker:
            job = await client.enqueue(hold, 1)
            await wait_until(lambda: job.job_id in worker.job_tasks, description="the job runs")
            wire.mute = b"\r\nZRANGE\r\n"  # of the look at aborts
            await wait_until(lambda: wire.muted, description="nobody answers the worker's loop")
            wire.mute = b""
            assert await job.abort(timeout=10)
