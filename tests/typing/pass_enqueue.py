"""Calls that fit: the type checker has nothing to say."""

from __future__ import annotations

from typing import assert_type

import runner
from runner import Answer, Call, Client, Context, Job, RetryPolicy, task


@task
async def place(ctx: Context, order: int, *, note: str = "") -> str:
    return f"{ctx.job_id} {order} {note}"


@task(retries=3, backoff=RetryPolicy(base=2), timeout=5)
async def count(_ctx: Context, numbers: list[int]) -> int:
    return sum(numbers)


async def calls(client: Client, ctx: Context) -> None:
    job = await client.enqueue(place, 1, note="x")
    assert_type(job, Job[str])
    assert_type(await job.result(timeout=1), str)
    assert_type(await client.enqueue(count.options(delay=5), [1, 2]), Job[int])
    assert_type(place.call(1), Call[str])
    assert_type(await client.enqueue_many([count.call([n]) for n in range(3)]), list[Job[int]])
    assert_type(await place(ctx, 1), str)
    await client.enqueue("by name", 1, anything=2)


async def writes(url: str) -> None:
    async with runner.database(url, timeout=5) as db:
        assert_type(db, runner.Database)
        await db.insert("t", id=1)
        await db.within(2).add("t", key={"id": 1}, n=1)
        async with db.unit(id="x") as unit:
            unit.update("t", key={"id": 1}, n=2)
        assert_type(await unit.commit(), Answer)
        assert_type(await unit.submit(), str)
