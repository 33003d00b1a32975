"""Results that are taken for what they are not; each line names its error."""

from __future__ import annotations

from runner import Client, Context, Job, task


@task
async def count(_ctx: Context, number: int) -> int:
    return number


async def results(client: Client) -> None:
    job = await client.enqueue(count, 1)
    text: str = await job.result()  # error: assignment
    other: Job[str] = await client.enqueue(count, 1)  # error: call-overload
    await results_of(text, other)


async def results_of(_text: str, _job: Job[str]) -> None: ...


@task
def plain(_ctx: Context, number: int) -> int:
    return number


@task(executor="process", timeout=5)
def apart(_ctx: Context, number: int) -> list[int]:
    return [number]


async def results_of_plain_functions(client: Client, ctx: Context) -> None:
    text: str = plain(ctx, 1)  # error: assignment
    await plain(ctx, 1)  # error: misc
    plain(ctx, "one")  # error: arg-type
    other: Job[str] = await client.enqueue(plain, 1)  # error: call-overload
    numbers: list[str] = apart(ctx, 1)  # error: assignment
    await results_of(text, other)
    await client.enqueue(apart, *numbers)  # error: call-overload


@task  # error: arg-type
def without_context() -> int:
    return 1
