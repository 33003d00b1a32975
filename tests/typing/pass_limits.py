"""Limits that fit: the type checker has nothing to say."""

from __future__ import annotations

from typing import assert_type

from runner import Client, Context, LimitInfo, RateLimit, RunningLimit, task

mail = RateLimit("mail", "100/m", burst=20, key="tenant_id")
database = RunningLimit("database", 5)


@task(rate="100/m", burst=10, weight=2, rate_key="tenant_id", limits=[mail, database])
async def send(ctx: Context, tenant_id: int) -> int:
    return tenant_id + ctx.attempt


@task(max_running=10, max_running_key="tenant_id", limits=(database,))
async def report(ctx: Context, tenant_id: int) -> None:
    assert_type(ctx.attempt + tenant_id, int)


async def limits(client: Client) -> None:
    assert_type(await client.limits.list(), list[LimitInfo])
    assert_type(await client.limits.set("mail", rate="1/s"), LimitInfo)
    assert_type(await client.limits.set(task="send", max_running=3, key="tenant_id"), LimitInfo)
    assert_type(await client.limits.clear("mail"), LimitInfo | None)
    assert_type(await client.pause(task="send"), bool)
    assert_type((await client.paused()).tasks, tuple[str, ...])
