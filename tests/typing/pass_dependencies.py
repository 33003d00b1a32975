"""What is provided is asked for by no type checker, where it is a parameter's default."""

from collections.abc import AsyncIterator
from typing import Annotated, assert_type

from runner import Client, Context, Depends, Job, ManyContext, task


class Pool:
    """A pool of connections."""


async def get_pool() -> AsyncIterator[Pool]:
    """Provide it."""
    yield Pool()


@task
async def report(
    _ctx: Context, day: int, *, pool: Annotated[Pool, Depends(get_pool)] = Depends(get_pool)
) -> str:
    """Run in the event loop."""
    return f"{day} {pool}"


@task
def count(_ctx: Context, day: int, pool: Pool = Depends(get_pool, scope="worker")) -> int:
    """Run in a thread."""
    return day + len(repr(pool))


@task(batch=10)
async def store(_ctx: ManyContext, rows: list[int], *, pool: Pool = Depends(get_pool)) -> list[str]:
    """Take many jobs."""
    return [f"{row} {pool}" for row in rows]


async def enqueue(client: Client) -> None:
    """Pass the arguments, and nothing else."""
    assert_type(await client.enqueue(report, 1), Job[str])
    assert_type(await client.enqueue(count, 1), Job[int])
    assert_type(await client.enqueue(store, 1), Job[str])
    await client.enqueue_many([report.call(1), report.call(2)])
