"""Calls of tasks with an Any somewhere; each line names the error that it must give."""

from __future__ import annotations

from typing import Any

from runner import Client, Context, task


@task
async def takes(ctx: Context, value: Any, number: int) -> int:
    return number + ctx.attempt if value else 0


@task(retries=2)
async def gives(ctx: Any, number: int) -> dict[str, Any]:
    return {str(ctx): number}


async def calls(client: Client) -> None:
    await client.enqueue(takes, 1, "two")  # error: call-overload
    await client.enqueue(gives, "one")  # error: call-overload
    takes.call(1)  # error: call-arg
    gives.options(delai=5)  # error: call-arg
