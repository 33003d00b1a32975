"""Jobs that never wait share a task; one that waits has its own. Nobody can tell the difference."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

import runner
from runner import Context, keys, task
from tests.engine import Gate, Rig, drain, raw, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client

pytestmark = [pytest.mark.timeout(30), pytest.mark.lasting_keys("runner:held:*")]

QUEUE = keys.DEFAULT_QUEUE
mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="none")


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@task
async def set_mark(ctx: Context, waits: bool) -> list[str]:
    before = mark.get()
    mark.set(ctx.job_id)
    if waits:
        await asyncio.sleep(0.001)
    return [before, mark.get()]


@pytest.mark.parametrize("max_jobs", [1, 10])
@pytest.mark.parametrize("pattern", [[False] * 5, [True] * 5, [False, True, False, True, True]])
async def test_jobs_do_not_see_each_others_context(
    redis_url: str, client: Client, pattern: list[bool], max_jobs: int
) -> None:
    jobs = await client.enqueue_many([set_mark.call(waits) for waits in pattern])
    await drain(redis_url, [set_mark], max_jobs=max_jobs)
    for job in jobs:
        assert await job.result(timeout=5) == ["none", job.job_id]


async def test_what_the_start_hook_sets_is_seen_by_all_jobs(redis_url: str, client: Client) -> None:
    async def start(_ctx: dict[Any, Any]) -> None:
        mark.set("started")

    jobs = await client.enqueue_many([set_mark.call(False) for _ in range(5)])
    await drain(redis_url, [set_mark], max_jobs=2, on_startup=start)
    for job in jobs:
        assert await job.result(timeout=5) == ["started", job.job_id]


async def test_what_a_hook_sets_is_seen_by_the_job_and_the_next_hook(
    redis_url: str, client: Client
) -> None:
    seen: list[str] = []

    async def before(ctx: dict[Any, Any]) -> None:
        mark.set(f"{ctx['job_id']} begins")

    async def after(_ctx: dict[Any, Any]) -> None:
        seen.append(mark.get())

    job = await client.enqueue(set_mark, False)
    await drain(redis_url, [set_mark], on_job_start=before, after_job_end=after)
    assert await job.result(timeout=5) == [f"{job.job_id} begins", job.job_id]
    assert seen == [job.job_id]


@task
async def own_task(_ctx: Context) -> bool:
    first = asyncio.current_task()
    await asyncio.sleep(0)
    return asyncio.current_task() is first


@task
async def limits_itself(_ctx: Context) -> str:
    try:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    except TimeoutError:
        return "over"
    return "not over"


async def test_jobs_that_wait_have_a_task_each(redis_url: str, client: Client) -> None:
    alone = await client.enqueue_many([own_task.call() for _ in range(3)])
    limited = await client.enqueue_many([limits_itself.call() for _ in range(3)])
    await drain(redis_url, [own_task, limits_itself])
    assert [await job.result(timeout=5) for job in alone] == [True] * 3
    assert [await job.result(timeout=5) for job in limited] == ["over"] * 3


@task
async def pass_gate(ctx: Context) -> None:
    await ctx["gate"](ctx.job_id)


@task
async def at_once(ctx: Context) -> None:
    ctx["ran"].append(ctx.job_id)


async def test_job_that_waits_does_not_hold_up_those_behind_it(
    redis_url: str, client: Client
) -> None:
    gate = Gate()
    ran: list[str] = []
    held = await client.enqueue(pass_gate)
    behind = await client.enqueue_many([at_once.call() for _ in range(5)])
    context = {"gate": gate, "ran": ran}
    async with serving(redis_url, [pass_gate, at_once], ctx=context) as worker:
        await wait_until(lambda: len(ran) == 5, description="the jobs behind it ran")
        assert ran == [job.job_id for job in behind]
        assert list(worker.tasks) == list(worker.job_tasks) == [held.job_id]
        assert worker.tasks[held.job_id].get_name() == held.job_id
        gate.opens.set()
        await held.result(timeout=5)
        assert worker.tasks == {}


@task
async def cancels_its_task(ctx: Context) -> str:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    return ctx.job_id


async def test_job_that_cancels_its_task_and_ends_harms_no_other(
    redis_url: str, client: Client
) -> None:
    first = await client.enqueue(cancels_its_task)
    others = await client.enqueue_many([own_task.call() for _ in range(3)])
    await drain(redis_url, [cancels_its_task, own_task])
    assert await first.result(timeout=5) == first.job_id
    assert [await job.result(timeout=5) for job in others] == [True] * 3


async def test_jobs_whose_task_was_cancelled_before_it_began_get_another(
    redis_url: str,
) -> None:
    ran: list[str] = []
    async with raw(redis_url) as redis, serving(redis_url, [at_once], ctx={"ran": ran}) as worker:
        await wait_until(lambda: "redis" in worker.ctx, description="the worker is connected")
        async with runner.connect(redis_url) as client:
            await client.enqueue(at_once.options(queue="aside", key="j"))
        rig = Rig(redis, queue="aside")
        (claimed,) = await rig.claim()
        claimed.queue = QUEUE
        worker._start_job(claimed)
        assert worker._turns._taker is not None
        worker._turns._taker.cancel()
        await wait_until(lambda: ran == ["j"], description="the job ran")
        await redis.delete("aside", keys.held("aside"))


@task
async def raises_cancelled(ctx: Context) -> str:
    if ctx.attempt == 1:
        raise asyncio.CancelledError
    return "second try"


async def test_cancellation_that_a_job_raises_itself_is_a_retry(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(raises_cancelled)
    await drain(redis_url, [raises_cancelled])
    assert await job.result(timeout=5) == "second try"


@task(keep_result=0)
async def keeps_nothing(ctx: Context) -> None:
    ctx["ran"].append(ctx.job_id)


@pytest.mark.parametrize("function", [at_once, keeps_nothing])
async def test_end_whose_answer_is_lost_is_an_end_and_not_a_lost_lease(
    redis_url: str, client: Client, caplog: pytest.LogCaptureFixture, function: Any
) -> None:
    ran: list[str] = []
    lost: list[str] = []
    async with serving(redis_url, [function], ctx={"ran": ran}) as worker:
        await wait_until(lambda: "redis" in worker.ctx, description="the worker is connected")
        pipe: Any = worker._engines_redis()
        execute = pipe.execute_command

        async def answer_is_lost(*args: Any) -> Any:
            answer = await execute(*args)
            if "ok" in args and not lost:
                lost.append("the answer")
                raise RedisConnectionError("the connection was cut")
            return answer

        pipe.execute_command = answer_is_lost
        caplog.set_level(logging.INFO)
        jobs = await client.enqueue_many([function.call() for _ in range(3)])
        async with raw(redis_url) as redis:

            async def settled() -> bool:
                return bool(lost) and await redis.exists(QUEUE) == 0 and not len(worker._leases)

            await wait_until(settled, description="all jobs are settled")
    assert sorted(ran) == sorted(job.job_id for job in jobs)
    assert "Redis answers again" in caplog.text
    assert "lease was lost" not in caplog.text
    assert (await client.queue_stats()).succeeded == 3
    assert await client.keys("runner:settled:*") == []
