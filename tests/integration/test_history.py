"""History: exact where Redis loses answers, bounded, and unmoved by names, keys and clocks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis.exceptions import RedisError

import runner
from runner import Context, keys, task
from runner.broker import Claimed
from runner.codec import JobRecord
from runner.errors import RunnerError
from runner.execution import Attempt, Ending
from runner.inspect import history
from runner.monitor import Monitor, MonitorOptions
from runner.scripts import load
from runner.types import Outcome
from tests.engine import raw, serving
from tests.proxy import proxied
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client
    from tests.servers import ChaosServers

pytestmark = pytest.mark.timeout(60)

HOSTILE = ["a:b", "{x}", "a b", " ", "w3", "ws", "succeeded", "new\nline", "é\0", "x" * 5_000]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@task
async def works(_ctx: Context, number: int = 0) -> int:
    return number


def named(name: str) -> Any:
    async def one(_ctx: Context) -> None: ...

    return runner.func(cast("Any", one), name=name)


async def outcomes(client: Client) -> dict[str, int]:
    return (await client.history.last()).outcomes


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_task_may_be_called_anything(redis_url: str, client: Client, name: str) -> None:
    async with serving(redis_url, [named(name), named("other")], monitor=True):
        job: Any = await client.enqueue(name)
        await (await client.enqueue("other")).result(timeout=20)
        await job.result(timeout=20)

        async def told() -> Any:
            return await outcomes(client) == {"succeeded": 2}

        await wait_until(told, description="both are counted")
        found = await client.history.tasks()
        assert found[name].outcomes == {"succeeded": 1}
        assert (found[name].run.count, found["other"].run.count) == (1, 1)
        assert (await client.history.task(name)).outcomes == {"succeeded": 1}
        assert [j.job_id for j in await client.history.finished(task=name)] == [job.job_id]
        assert (await client.history.find(job.job_id)) is not None


async def test_what_redis_did_not_answer_to_is_counted_once(redis_url: str, client: Client) -> None:
    """The answer is lost, so nobody knows whether it counted: three times."""
    async with (
        proxied(redis_url) as wire,
        serving(wire.url, [works], monitor=True) as worker,
    ):
        await wait_until(worker.is_live, description="the worker runs")
        wire.cut, wire.most_cuts = load("history_add").sha.encode(), 3
        for number in range(20):
            await (await client.enqueue(works, number)).result(timeout=20)
        await wait_until(lambda: wire.cuts == 3, description="three answers are lost", timeout_s=30)

        async def told() -> Any:
            return (await outcomes(client)).get("succeeded", 0) >= 20

        await wait_until(told, description="all are counted", timeout_s=20)
    assert await outcomes(client) == {"succeeded": 20}
    assert len(await client.history.finished()) == 20


async def test_nothing_counted_is_lost_with_a_restart_of_redis(chaos_servers: ChaosServers) -> None:
    url = chaos_servers.redis_url
    async with runner.connect(url) as client, serving(url, [works], monitor=True) as worker:
        await wait_until(worker.is_live, description="the worker runs")
        jobs = [await client.enqueue(works, number) for number in range(200)]
        for job in jobs:
            await job.result(timeout=20)
        await chaos_servers.restart_redis()

        async def told() -> Any:
            try:
                return (await outcomes(client)).get("succeeded", 0) >= 200
            except (RedisError, RunnerError, OSError):
                return False

        await wait_until(told, description="all are counted", timeout_s=30)
        assert await outcomes(client) == {"succeeded": 200}


async def test_a_key_that_holds_something_else_stops_neither_heartbeats_nor_other_queues(
    redis_url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    other = works.options(queue="other")
    queues = {keys.DEFAULT_QUEUE: 1, "other": 1}
    async with (
        serving(redis_url, [works], monitor=True, queues=queues) as worker,
        raw(redis_url) as redis,
    ):
        await wait_until(worker.is_live, description="the worker runs")
        await redis.set(keys.finished(keys.DEFAULT_QUEUE), "no list", ex=3600)
        await (await client.enqueue(works)).result(timeout=20)
        await (await client.enqueue(other)).result(timeout=20)

        async def told() -> Any:
            return (await client.history.of("other").last()).outcomes == {"succeeded": 1}

        await wait_until(told, description="the other queue is counted")
        await redis.delete(keys.finished(keys.DEFAULT_QUEUE))
        await (await client.enqueue(works)).result(timeout=20)

        async def listed() -> Any:
            return await client.history.finished()

        assert len(await wait_until(listed, description="it goes on")) == 1
        assert [info.name for info in await client.workers.list()] == [worker.name]
    assert "the history of 'arq:queue' is refused" in caplog.text


async def test_a_full_redis_keeps_no_worker_from_being_ready(
    chaos_servers: ChaosServers,
) -> None:
    url = chaos_servers.redis_url
    async with (
        runner.connect(url) as client,
        raw(url) as redis,
        serving(url, [works], monitor=True, health_port=0) as worker,
    ):
        await wait_until(worker.is_live, description="the worker runs")
        assert worker.monitor is not None
        await redis.config_set("maxmemory", 1)
        before = worker.monitor._answered_at

        def answered() -> bool:
            assert worker.monitor is not None
            return worker.monitor._answered_at > before

        await wait_until(answered, description="a refusal is an answer", timeout_s=20)
        await redis.config_set("maxmemory", 0)
        assert await (await client.enqueue(works, 3)).result(timeout=20) == 3


async def test_the_clock_of_whoever_reads_changes_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, _ = await client.time()
    monkeypatch.setattr(time, "time", lambda: now_s - 31.0)
    found = await client.history.last(minutes=2)
    later_s, _ = await client.time()
    expected = {60 + max(moment % 60, 1) for moment in (now_s, later_s)}
    assert found.seconds in expected or later_s // 60 > now_s // 60


class Watched:
    """As much of a worker as its counts need."""

    def __init__(self, redis: Any, tasks: list[str]) -> None:
        self.pool, self.name = redis, "w"
        self.functions = dict.fromkeys(tasks)


def attempt(number: int, task_name: str) -> Attempt:
    record = JobRecord(
        task=task_name, args=(), kwargs={}, attempt=None, enqueued_ms=1_000, options={}
    )
    claimed = Claimed(f"{number:032x}", keys.DEFAULT_QUEUE, "token", 1_000.5, None, 1, 0)
    return Attempt(claimed, 1_010, record, 1, 1_010 + number % 1_000)


async def test_many_jobs_of_many_tasks_stay_within_bounds(redis_url: str, client: Client) -> None:
    tasks = [f"task number {number}" for number in range(2_000)]
    async with raw(redis_url) as redis:
        worker: Any = Watched(redis, tasks)
        monitor = Monitor(worker, MonitorOptions(jobs=500))
        tally: Any = monitor._tally
        for round_ in range(10):
            for number in range(10_000):
                made = attempt(round_ * 10_000 + number, tasks[number % len(tasks)])
                tally.ended(made, Ending(Outcome.SUCCEEDED))
            await monitor._write()
        listed = await client.history.finished(limit=100_000)
        assert 500 <= len(listed) <= 1_000
        assert listed[0].ended_ms >= listed[-1].ended_ms
        period = await client.history.last(minutes=2)
        assert period.outcomes == {"succeeded": 100_000}
        assert period.run.count == 100_000
        found = await client.history.tasks(minutes=2)
        assert len(found) == 2_000
        assert {one.outcomes["succeeded"] for one in found.values()} == {50}
        minute_keys = [key async for key in redis.scan_iter("runner:minute*")]
        for key in minute_keys:
            tasks_key = b"minute-tasks" in key
            most_ms = 3 * 3_600_000 if tasks_key else 24 * 3_600_000
            assert 0 < await redis.pttl(key) <= most_ms
            if not tasks_key:
                assert await redis.hlen(key) <= len(history._FIELDS)
