"""Tasks of every kind: the type checker has nothing to say."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from runner import Client, Context, Job, SoftTimeLimit, SyncTask, Task, task


@task
def shout(ctx: Context, text: str, *, times: int = 1) -> str:
    return f"{ctx.job_id} {text.upper() * times}"


@task(timeout=60, soft_timeout=timedelta(seconds=50))
def count(ctx: Context, words: list[str]) -> int:
    if ctx.cancelled:
        return 0
    try:
        return len(words)
    except SoftTimeLimit:
        return -1


@task(executor="process", retries=2)
def square(_ctx: Context, number: int) -> int:
    return number**2


@task(executor="process", soft_timeout=5)
async def square_slowly(_ctx: Context, number: int) -> int:
    return number**2


@task
def enqueues(ctx: Context) -> int:
    job = ctx.run(ctx.client.enqueue(square, 2))
    assert_type(job, Job[int])
    return ctx.run(job.result(timeout=5))


async def calls(client: Client, ctx: Context) -> None:
    assert_type(shout(ctx, "a", times=2), str)
    assert_type(count(ctx, ["a"]), int)
    assert_type(square(ctx, 2), int)
    assert_type(await square_slowly(ctx, 2), int)
    assert_type(await client.enqueue(shout, "a"), Job[str])
    assert_type(await client.enqueue(count.options(delay=5), ["a"]), Job[int])
    assert_type(await client.enqueue_many([square.call(n) for n in range(3)]), list[Job[int]])
    of_thread: SyncTask[[int], int] = square
    of_loop: Task[[int], int] = square_slowly
    await client.enqueue(of_thread, 1)
    await client.enqueue(of_loop, 1)
