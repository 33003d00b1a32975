"""Calls that fit: the type checker has nothing to say."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

import runner
from runner import (
    Answer,
    Call,
    Client,
    Context,
    Debounce,
    Job,
    RetryPolicy,
    Throttle,
    Unique,
    task,
)


@task
async def place(ctx: Context, order: int, *, note: str = "") -> str:
    return f"{ctx.job_id} {order} {note}"


@task(retries=3, backoff=RetryPolicy(base=2), timeout=5)
async def count(_ctx: Context, numbers: list[int]) -> int:
    return sum(numbers)


@task(unique=Unique(by=("order",), until=60, second="refuse"))
async def once(_ctx: Context, order: int) -> int:
    return order


@task(debounce=Debounce(5, max_wait=timedelta(minutes=1), by="order"))
async def late(_ctx: Context, order: int) -> None: ...


@task(throttle=60)
async def rare(_ctx: Context) -> None: ...


async def unique_calls(client: Client) -> None:
    assert_type(await client.enqueue(once, 1), Job[int])
    assert_type(await client.enqueue(once.options(unique=False), 1), Job[int])
    assert_type(await client.enqueue(once.options(unique=Unique(key="k")), 1), Job[int])
    assert_type(await client.enqueue(once.options(throttle=Throttle(1, by=())), 1), Job[int])
    assert_type(await client.enqueue(late.options(debounce=timedelta(seconds=1)), 1), Job[None])
    assert_type(await client.enqueue(rare), Job[None])


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
