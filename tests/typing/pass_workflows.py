"""Flows that fit: the type checker knows what they return."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  an annotation that is looked at when jobs run
from typing import Any, assert_type

from runner import (
    Call,
    Client,
    Context,
    Flow,
    FlowStatus,
    Job,
    ManyContext,
    NodeInfo,
    Run,
    chain,
    chord,
    group,
    node,
    task,
)


@task
async def load(_ctx: Context, day: int) -> list[str]:
    return [str(day)]


@task
async def count(_ctx: Context, parts: Sequence[list[str]], *, scale: int = 1) -> int:
    return scale * len(parts)


@task
async def show(_ctx: Context, number: int, title: str = "") -> str:
    return f"{title}{number}"


@task
async def batch(_ctx: Context, days: list[int]) -> bool:
    return bool(days)


async def flows(client: Client) -> None:
    members = load.map(range(3))
    assert_type(await client.start(members), Run[list[list[str]]])
    assert_type(await client.start(chord(members, count.s(scale=2))), Run[int])
    run = await client.start(chain(members, count.s(), show.s("n = ")))
    assert_type(run, Run[str])
    assert_type(await run.result(timeout=1), str)
    assert_type(await client.start(group(show.call(1), show.call(2))), Run[list[str]])
    assert_type(await client.start(batch.chunks(range(9), 2)), Run[list[bool]])
    assert_type(await client.start(node(show.call(1), retries=3)), Run[str])
    assert_type(await run.status(), FlowStatus)
    assert_type(await run.nodes(), list[NodeInfo])
    async for status in run.progress:
        assert_type(status.fraction, float)


async def graphs(client: Client, ctx: Context) -> None:
    flow = Flow("month-end", on_error=show.call(1))
    one = flow.add(load.call(1))
    two = flow.add(count.call([one.result]), after=[one], on_failure="continue")
    assert_type(two.result, int)
    flow.add(show.call(two.result), after=two, fallback=show.call(0))
    assert_type(await client.start(flow), Run[dict[str, Any]])
    added = await ctx.flow.add(show.call(1))
    assert_type(added.result, str)
    assert_type(await ctx.flow.wait(chord(load.map([1]), count.s())), int)


@task(batch=500, batch_wait=0.2, retries=3)
async def store(ctx: ManyContext, rows: list[str]) -> list[int | Exception]:
    return [len(row) + len(ctx.jobs) for row in rows]


async def many(client: Client) -> None:
    assert_type(await client.enqueue(store, "row"), Job[int])
    assert_type(store.call("row"), Call[int])


@task
def crunch(_ctx: Context, number: int, base: int = 10) -> float:
    return number / base


async def threads(client: Client) -> None:
    assert_type(await client.start(chain(crunch.call(1), show.call(2))), Run[str])
    assert_type(await client.start(chain(show.call(1), crunch.call(2))), Run[float])
    assert_type(await client.start(chord(crunch.map([1, 2]), average.s())), Run[float])


@task
def average(_ctx: Context, numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)
