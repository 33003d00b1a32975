"""Retries, dead letters and queued jobs that fit: the type checker has nothing to say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import assert_type

from runner import (
    Backoff,
    Client,
    Context,
    DeadLetter,
    JobFilter,
    JobInfo,
    JobState,
    LetterFilter,
    Outcome,
    RetryPolicy,
    Rule,
    give_up,
    on,
    task,
)
from runner.errors import WriteRejected

POLICY = RetryPolicy(
    retries=5,
    backoff=Backoff.LINEAR,
    rules=(
        on(ConnectionError, retries=20, backoff=RetryPolicy(base=0.5, cap=30)),
        on((LookupError, ValueError), give_up),
        on([WriteRejected], delay=timedelta(minutes=1)),
    ),
    give_up_on=KeyError,
    retry_on=(OSError, TimeoutError),
    retry_on_timeout=True,
)


@task(backoff=POLICY)
async def pay(ctx: Context, order_id: int) -> str:
    return f"{order_id} {ctx.attempt}"


async def letters(client: Client) -> None:
    assert_type(on(OSError), Rule)
    where = LetterFilter(
        task=pay,
        error=ConnectionError,
        outcome=Outcome.FAILED,
        since=datetime(2026, 1, 1, tzinfo=UTC),
        arguments={"order_id": 3, 0: 3},
    )
    assert_type((await client.dead.list(where, limit=5)).letters, list[DeadLetter])
    assert_type(await client.dead.show("id"), DeadLetter)
    said = await client.dead.requeue(where, args=[3], delay=60, task=pay)
    assert_type(said.count, int)
    await client.dead.requeue("id", kwargs={"order_id": 3}, delay=timedelta(hours=1))
    await client.dead.requeue(["id", "other"])
    assert_type(await client.dead.purge(LetterFilter(task="pay", error="Closed")), int)
    async for letter in client.dead.of("other").find(where):
        assert_type(letter, DeadLetter)


async def jobs(client: Client) -> None:
    where = JobFilter(task=pay, states={JobState.DEFERRED, "retrying"}, older=60)
    assert_type((await client.jobs.list(where)).jobs, list[JobInfo])
    assert_type((await client.jobs.cancel(where, keep_result=60)).count, int)
    assert_type(await client.jobs.retry_now(["id"]), int)
    assert_type((await client.jobs.of("other").purge()).count, int)
    async for job in client.jobs.find():
        assert_type(job.state, JobState)
