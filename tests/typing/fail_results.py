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


@task  # error: arg-type
def plain(_ctx: Context) -> int:
    return 1
