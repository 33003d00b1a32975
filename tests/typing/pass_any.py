"""Tasks that take or return Any, and their calls: a type checker knows all the rest of them."""

from __future__ import annotations

from typing import Any, assert_type

from runner import Client, Context, Job, SyncTask, Task, task
from runner.tasks import Step


@task
async def takes(ctx: Context, value: Any, number: int) -> int:
    return number + ctx.attempt if value else 0


@task(retries=2)
async def takes_dict(ctx: dict[str, Any], value: dict[str, Any]) -> str:
    return f"{ctx} {value}"


@task
async def gives(ctx: Context, number: int) -> dict[str, Any]:
    return {ctx.job_id: number}


@task
async def whatever(ctx: Any, number: int) -> None:
    del ctx, number


@task(batch=10)
async def many(ctx: Context, items: list[Any]) -> list[int | Exception]:
    return [ctx.attempt for _ in items]


@task
def in_thread(ctx: Context, value: Any) -> int:
    return ctx.attempt if value else 0


async def calls(client: Client) -> None:
    of_loop: Task[[Any, int], int] = takes
    of_thread: SyncTask[[Any], int] = in_thread
    assert_type(await client.enqueue(of_loop, object(), 1), Job[int])
    assert_type(await client.enqueue(of_thread, 1), Job[int])
    assert_type(await client.enqueue(takes_dict, {"a": 1}), Job[str])
    assert_type(await client.enqueue(gives, 1), Job[dict[str, Any]])
    assert_type(await client.enqueue(whatever, 1), Job[None])
    assert_type(await client.enqueue(many, 1), Job[int])
    assert_type(takes.s(1), Step[Any, int])
