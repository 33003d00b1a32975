"""Our own abort: by a script that never puts an ended job back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import keys, task
from runner.scripts import load
from tests.engine import serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUEUE = keys.DEFAULT_QUEUE
FAR_MS = keys.FAR_OFF_MS


@task
async def nothing(_ctx: Any) -> None: ...


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as client:
        yield client


async def ask(client: runner.Client, job_id: str) -> int:
    names = [QUEUE, keys.held(QUEUE), keys.idle(QUEUE), keys.wake(QUEUE)]
    asked: int = await load("abort").call(client, keys=names, args=[job_id])
    return asked


async def test_deferred_job_is_made_due(client: runner.Client) -> None:
    job = await client.enqueue(nothing.options(delay=3600))
    due = await client.enqueue(nothing)
    assert await ask(client, job.job_id) == 1
    scores = [await client.zscore(QUEUE, each.job_id) for each in (due, job)]
    assert abs(scores[0] - scores[1]) < 60_000  # an hour is 3,600,000


async def test_ended_job_is_not_put_back(client: runner.Client) -> None:
    assert await ask(client, "ended") == 0
    assert await client.zcard(QUEUE) == 0


@pytest.mark.parametrize(("holder", "asked"), [("r:1:1", 1), ("1", 1), ("committing:1-0", 0)])
async def test_job_that_somebody_holds_keeps_its_place(
    client: runner.Client, holder: str, asked: int
) -> None:
    await client.zadd(QUEUE, {"held": FAR_MS})
    await client.set(keys.in_progress("held"), holder)
    assert await ask(client, "held") == asked
    assert await client.zscore(QUEUE, "held") == FAR_MS


async def test_job_that_is_left_over_from_a_crash_keeps_its_place(client: runner.Client) -> None:
    await client.zadd(QUEUE, {"left": FAR_MS})
    await client.hset(keys.held(QUEUE), "left", "r:1:1 0 1")  # type: ignore[misc]
    await client.expire(keys.held(QUEUE), 60)
    assert await ask(client, "left") == 1
    assert await client.zscore(QUEUE, "left") == FAR_MS


async def test_abort_of_a_job_that_is_over_leaves_no_request(client: runner.Client) -> None:
    assert await client.job("over").abort(timeout=5) is False
    assert await client.zcard(keys.ABORT) == 0


async def test_deferred_job_is_aborted_at_once(client: runner.Client, redis_url: str) -> None:
    async with serving(redis_url, [nothing], allow_abort_jobs=True, poll_delay=20):

        async def idle() -> bool:
            return bool(await client.zcard(keys.idle(QUEUE)))

        await wait_until(idle, description="the worker waits")
        job = await client.enqueue(nothing.options(delay=3600))
        assert await job.abort(timeout=10) is True
        assert await client.zcard(QUEUE) == 0


async def test_caller_who_is_cancelled_does_not_take_it_for_an_abort(
    client: runner.Client,
) -> None:
    job = await client.enqueue(nothing.options(delay=3600))
    aborting = asyncio.create_task(job.abort())

    async def asked() -> bool:
        return await client.zscore(keys.ABORT, job.job_id) is not None

    await wait_until(asked, description="the abort is asked for")
    aborting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await aborting
    await client.delete(QUEUE)
