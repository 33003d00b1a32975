"""Dead letters and errors of jobs whose writes Postgres refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

import runner
from runner import Context, LetterFilter, RetryPolicy, WriteRejected, give_up, keys, on, task
from runner.events import Event, UnitRefused
from tests.engine import Rig, raw, serving
from tests.integration.test_writer_support import LASTING
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Connection, Record

    from runner import Client

pytestmark = [
    pytest.mark.lasting_keys(*LASTING, "runner:held:*", "runner:writer:leader"),
    pytest.mark.timeout(60),
]

NOW = RetryPolicy(base=0, cap=0)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Connection[Record]]:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    yield connection
    await connection.close()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@task(retries=2, backoff=NOW, on_write_error="retry")
async def insert(ctx: Context, number: int) -> int:
    ctx.db.insert("t", id=number)
    return ctx.attempt


@task(retries=2, backoff=NOW, on_write_error="retry")
async def insert_another_at_last(ctx: Context, number: int) -> int:
    if ctx.attempt == 1:
        raise LookupError("not even written")
    ctx.db.insert("t", id=number if ctx.attempt == 2 else -number)
    return ctx.attempt


@task(
    on_write_error="retry",
    backoff=RetryPolicy(retries=5, rules=(on(WriteRejected, give_up),)),
)
async def insert_once(ctx: Context, number: int) -> int:
    ctx.db.insert("t", id=number)
    return ctx.attempt


async def test_letter_tells_of_every_refusal(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    await database.execute("INSERT INTO t VALUES (1)")
    async with serving(redis_url, [insert], database_url=database_url) as worker:
        job = await client.enqueue(insert, 1)
        with pytest.raises(WriteRejected):
            await job.result(timeout=20)
    letter = await client.dead.show(job.job_id)
    assert (letter.attempt, letter.outcome, letter.worker) == (3, "failed", worker.name)
    assert letter.enqueued_ms <= letter.started_ms <= letter.died_ms
    assert [(e.attempt, e.outcome, e.error_type) for e in letter.errors] == [
        (1, "retried", "runner.errors.WriteRejected"),
        (2, "retried", "runner.errors.WriteRejected"),
    ]
    assert {error.worker for error in letter.errors} == {worker.name}
    assert await client.exists(keys.errors(job.job_id)) == 0


async def test_refused_job_is_requeued_and_writes(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    await database.execute("INSERT INTO t VALUES (1)")
    async with serving(redis_url, [insert_once], database_url=database_url):
        job = await client.enqueue(insert_once, 1)
        with pytest.raises(WriteRejected):
            await job.result(timeout=20)
        assert (await client.dead.show(job.job_id)).attempt == 1
        await database.execute("DELETE FROM t")
        assert (await client.dead.requeue(LetterFilter(error=WriteRejected))).count == 1
        assert await job.result(timeout=20) == 1
    assert await database.fetchval("SELECT count(*) FROM t") == 1
    assert await client.dead.count() == 0
    assert await client.keys("runner:*errors:*") == []


async def test_errors_are_gone_when_the_unit_of_a_later_attempt_commits(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    await database.execute("INSERT INTO t VALUES (1)")
    async with serving(redis_url, [insert_another_at_last], database_url=database_url):
        job = await client.enqueue(insert_another_at_last, 1)
        assert await job.result(timeout=20) == 3
    assert await client.keys("runner:*errors:*") == []
    assert await database.fetchval("SELECT min(id) FROM t") == -1


async def test_crashes_count_also_behind_a_refused_unit(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    await database.execute("INSERT INTO t VALUES (1)")
    await client.enqueue(insert.options(key="j"), 1)
    async with raw(redis_url) as redis:
        rig = Rig(redis)
        for _ in range(2):
            await rig.lapse(*await rig.claim())
    seen: list[int] = []
    settings = {"database_url": database_url, "max_crashes": 5}
    async with serving(redis_url, [insert], subscribers=[_crashes_of(seen)], **settings):
        with pytest.raises(WriteRejected):
            await client.job("j").result(timeout=20)
    assert seen == [2, 2, 2]
    errors = (await client.dead.show("j")).errors
    assert [error.outcome for error in errors] == ["crashed", "crashed", "retried", "retried"]
    assert await client.exists(keys.held(keys.DEFAULT_QUEUE)) == 0


async def test_crashes_are_forgotten_when_the_unit_commits(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    await client.enqueue(insert.options(key="j"), 1)
    async with raw(redis_url) as redis:
        rig = Rig(redis)
        await rig.lapse(*await rig.claim())
    async with serving(redis_url, [insert], database_url=database_url):
        assert await client.job("j").result(timeout=20) == 1
        await wait_until(
            lambda: _is_gone(client, keys.held(keys.DEFAULT_QUEUE)), description="nothing is held"
        )
    assert await client.keys("runner:*errors:*") == []
    assert await database.fetchval("SELECT count(*) FROM t") == 1


async def _is_gone(client: Client, key: str) -> bool:
    return bool(await client.exists(key) == 0)


def _crashes_of(seen: list[int]) -> runner.events.Subscriber:
    def note(event: runner.events.Event) -> None:
        if isinstance(event, runner.events.JobEnded):
            seen.append(event.crashes)

    return note


async def test_letters_of_refused_units_are_bounded_too(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    await database.execute("INSERT INTO t VALUES (1)")
    settings = {"database_url": database_url, "dead_letters_max": 3, "dead_letters_keep": 600}
    async with serving(redis_url, [insert_once], **settings):
        for number in range(5):
            job = await client.enqueue(insert_once.options(key=f"j{number}"), 1)
            with pytest.raises(WriteRejected):
                await job.result(timeout=20)
    assert await client.dead.count() == 3
    assert len(await client.keys("runner:dead-letter:*")) == 3
    assert 0 < await client.pttl(keys.dead_letter("j4")) <= 600_000


async def test_subscribers_of_the_worker_that_writes_hear_what_was_refused(
    redis_url: str, database_url: str, database: Connection[Record], client: Client
) -> None:
    await database.execute("INSERT INTO t VALUES (1)")
    seen: list[UnitRefused] = []

    def note(event: Event) -> None:
        if isinstance(event, UnitRefused):
            seen.append(event)

    async with serving(
        redis_url, [insert_once], subscribers=[note], database_url=database_url
    ) as worker:
        job = await client.enqueue(insert_once, 1)
        with pytest.raises(WriteRejected):
            await job.result(timeout=20)
        async with runner.database(redis_url) as db:
            with pytest.raises(WriteRejected):
                await db.execute("INSERT INTO t VALUES ($1)", 1)
            await db.execute("INSERT INTO t VALUES ($1)", 2)
        name = worker.name
    assert [(event.job_id, event.error.sqlstate) for event in seen] == [
        (job.job_id, "23505"),
        ("", "23505"),
    ]
    assert {event.worker for event in seen} == {name}
