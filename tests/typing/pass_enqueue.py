"""Calls that fit: the type checker has nothing to say."""

from __future__ import annotations

from typing import assert_type

from runner import Call, Client, Context, Job, RetryPolicy, task


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
