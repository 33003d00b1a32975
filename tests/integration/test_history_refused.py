"""History tells of jobs whose writes Postgres refused: as failures, once, whatever came first."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import pytest

import runner
from runner import Context, LetterFilter, RetryPolicy, WriteRejected, keys, task
from runner.broker import Claimed
from runner.cli.ended import look
from runner.codec import JobRecord
from runner.execution import Attempt, Ending
from runner.monitor import Monitor, MonitorOptions
from runner.types import Outcome, Retention
from runner.writer import Candidate, adopt_database
from runner.writer.entries import read_entry
from runner.writer.settle import Settler
from tests.engine import serving
from tests.integration.test_writer_support import CODEC, LASTING, Engine, engine, unit_of, writing
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Connection, Record

    from runner import Client
    from runner.writer.entries import Unit

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys(*LASTING)]

SCHEMA = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)"
ROWS = 100
KEEPING = Retention(history_jobs=ROWS)
WHY = "WriteRejected: "


@task(on_write_error="fail")
async def insert(ctx: Context, number: int) -> None:
    ctx.db.insert("t", id=number)


@task(retries=1, backoff=RetryPolicy(base=0, cap=0), on_write_error="retry")
async def insert_or_next(ctx: Context, number: int) -> None:
    ctx.db.insert("t", id=number + ctx.attempt - 1)


@task
async def commit_and_go_on(ctx: Context, number: int) -> str:
    ctx.db.insert("t", id=number)
    try:
        await ctx.db.commit()
    except WriteRejected:
        return "refused"
    return "committed"


ALL = [insert, insert_or_next, commit_and_go_on]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Connection[Record]]:
    connection = await asyncpg.connect(database_url)
    await connection.execute(SCHEMA)
    yield connection
    await connection.close()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


async def ended(client: Client) -> dict[str, int]:
    return (await client.history.last()).outcomes


async def counted(client: Client, **outcomes: int) -> None:
    """Wait until attempts are counted so, and no other."""

    async def are() -> bool:
        return await ended(client) == outcomes

    await wait_until(are, description=f"{outcomes} are counted", timeout_s=20)


async def listed(client: Client) -> list[tuple[str, int, str]]:
    return [(j.job_id, j.attempt, j.outcome) for j in await client.history.finished()]


# With workers


@pytest.mark.usefixtures("database")
async def test_a_refused_job_is_a_failure_in_counts_in_the_list_and_on_its_page(
    redis_url: str, database_url: str, client: Client
) -> None:
    async with serving(redis_url, ALL, database_url=database_url, monitor=True) as worker:
        good = await client.enqueue(insert, 2)
        await good.result(timeout=20)
        bad = await client.enqueue(insert, 1)
        with pytest.raises(WriteRejected):
            await bad.result(timeout=20)
        await counted(client, succeeded=1, failed=1)
        by_task = await client.history.tasks()
        assert by_task["insert"].outcomes == {"succeeded": 1, "failed": 1}
        assert (await client.history.task("insert")).outcomes == {"succeeded": 1, "failed": 1}
        assert by_task["insert"].run.count == 2
        assert Counter(await listed(client)) == {
            (bad.job_id, 1, "failed"): 1,
            (good.job_id, 1, "succeeded"): 1,
        }
        (row,) = await client.history.finished(outcomes=["failed"], task="insert")
        assert row.error.startswith(WHY)
        assert "t_pkey" in row.error
        assert row.worker == worker.name
        assert row.enqueued_ms <= row.started_ms <= row.ended_ms

        assert await client.history.find(bad.job_id) == row
        facts, _ = await look(client, keys.DEFAULT_QUEUE, bad.job_id)
        assert facts["state"] == "dead letter"
        for _ in ("by its letter", "by its result"):
            story = await client.jobs.story(bad.job_id)
            assert (story.state, story.attempt, story.worker) == ("failed", 1, worker.name)
            assert story.errors[-1].error in row.error
            await client.dead.purge(LetterFilter())


@pytest.mark.usefixtures("database")
async def test_a_refused_commit_in_the_middle_of_a_job_is_no_end_of_it(
    redis_url: str, database_url: str, client: Client
) -> None:
    async with serving(redis_url, ALL, database_url=database_url, monitor=True):
        job = await client.enqueue(commit_and_go_on, 1)
        assert await job.result(timeout=20) == "refused"
        bad = await client.enqueue(insert, 1)
        with pytest.raises(WriteRejected):
            await bad.result(timeout=20)
        await counted(client, succeeded=1, failed=1)
        assert Counter(await listed(client)) == {
            (bad.job_id, 1, "failed"): 1,
            (job.job_id, 1, "succeeded"): 1,
        }


@pytest.mark.usefixtures("database")
async def test_a_job_that_runs_again_is_counted_as_retried_and_listed_by_its_last_attempt(
    redis_url: str, database_url: str, client: Client
) -> None:
    async with serving(redis_url, ALL, database_url=database_url, monitor=True):
        job = await client.enqueue(insert_or_next, 1)
        await job.result(timeout=20)
        await counted(client, succeeded=1, retried=1)
        by_task = await client.history.tasks()
        assert by_task["insert_or_next"].outcomes == {"succeeded": 1, "retried": 1}
        assert await listed(client) == [(job.job_id, 2, "succeeded")]


@pytest.mark.usefixtures("database")
async def test_each_of_many_is_listed_once(
    redis_url: str, database_url: str, client: Client
) -> None:
    async with serving(redis_url, ALL, database_url=database_url, monitor=True):
        jobs = await client.enqueue_many([insert.call(number % 10) for number in range(100)])
        for job in jobs:
            with contextlib.suppress(WriteRejected):
                await job.result(timeout=20)
        await counted(client, succeeded=9, failed=91)
        found = await client.history.finished(limit=1_000)
        assert Counter(job.job_id for job in found) == Counter(job.job_id for job in jobs)
        assert Counter(job.outcome for job in found) == {"succeeded": 9, "failed": 91}


@pytest.mark.usefixtures("database")
async def test_whoever_leads_corrects_what_another_ran(
    redis_url: str, database_url: str, client: Client
) -> None:
    elsewhere: Any = {"queue_name": "other", "database_url": database_url, "monitor": True}
    async with serving(redis_url, ALL, **elsewhere) as leader:
        candidate: Any = await wait_until(lambda: leader.candidate, description="a candidate")
        await wait_until(lambda: candidate.leading, description="it leads")
        async with serving(redis_url, ALL, database_url=database_url, monitor=True) as worker:
            bad = await client.enqueue(insert, 1)
            with pytest.raises(WriteRejected):
                await bad.result(timeout=20)
            await counted(client, failed=1)
            (row,) = await client.history.finished()
            assert (row.job_id, row.outcome, row.worker) == (bad.job_id, "failed", worker.name)
        assert candidate.leading
    assert (await client.history.of("other").last()).ended == 0


@pytest.mark.usefixtures("database")
async def test_where_nobody_watches_nothing_is_corrected(
    redis_url: str, database_url: str, client: Client
) -> None:
    async with serving(redis_url, ALL, database_url=database_url):
        bad = await client.enqueue(insert, 1)
        with pytest.raises(WriteRejected):
            await bad.result(timeout=20)
    for pattern in ("runner:minute*", "runner:finished*", "runner:refused*"):
        assert [key async for key in client.scan_iter(pattern)] == []


# Step by step: a worker's counts, and the writer


class Watched:
    """As much of a worker as its counts need."""

    def __init__(self, redis: Any) -> None:
        self.pool, self.name = redis, "w"
        self.functions = {"t": None}


@dataclasses.dataclass
class Steps:
    """Jobs that have ended well at 2 ms, and insert a row that is there."""

    engine: Engine
    candidate: Candidate
    monitor: Monitor

    async def submit(self, *job_ids: str) -> str:
        clashes = unit_of(lambda u: u.insert("t", id=1))
        return [await self.engine.submit(job_id, clashes) for job_id in job_ids][-1]

    async def units(self) -> list[Unit]:
        read = await self.engine.redis.xrange(keys.UNITS)
        return [read_entry(entry.decode(), fields) for entry, fields in read]

    async def refuse(self, last: str) -> None:
        async with writing(self.candidate):
            await self.engine.answered(last)

    async def flush(self, *job_ids: str, due_ms: float = 1.0, ended_ms: int = 2) -> None:
        record = JobRecord(task="t", args=(1,), kwargs={}, attempt=None, enqueued_ms=1, options={})
        for job_id in job_ids:
            claimed = Claimed(job_id, keys.DEFAULT_QUEUE, "token", due_ms, None, 1, 0)
            attempt = Attempt(claimed, 1, record, 1, ended_ms)
            cast("Any", self.monitor)._tally.ended(attempt, Ending(Outcome.SUCCEEDED))
        await cast("Any", self.monitor)._write()


@pytest.fixture
async def steps(redis_url: str, database_url: str) -> AsyncIterator[Steps]:
    async with engine(redis_url, database_url, SCHEMA) as e:
        candidate = Candidate(
            redis=e.redis, database_url=database_url, codec=CODEC, retention=KEEPING
        )
        watched: Any = Watched(e.redis)
        yield Steps(e, candidate, Monitor(watched, MonitorOptions(jobs=ROWS)))


@pytest.mark.parametrize("is_late", [False, True])
async def test_it_does_not_matter_which_comes_first(
    steps: Steps, client: Client, *, is_late: bool
) -> None:
    last = await steps.submit("bad")
    if is_late:
        await steps.flush("bad", "fine")
        assert await ended(client) == {"succeeded": 2}
        await steps.refuse(last)
    else:
        await steps.refuse(last)
        assert await ended(client) == {"failed": 1}, "and no count is below zero"
        assert await listed(client) == [("bad", 1, "failed")]
        await steps.flush("bad", "fine")
    assert await ended(client) == {"succeeded": 1, "failed": 1}
    assert (await client.history.tasks())["t"].outcomes == {"succeeded": 1, "failed": 1}
    assert sorted(await listed(client)) == [("bad", 1, "failed"), ("fine", 1, "succeeded")]
    found = await client.history.find("bad")
    assert found is not None
    assert (found.outcome, found.error[: len(WHY)]) == ("failed", WHY)


async def test_another_end_of_the_same_id_is_another_job(steps: Steps, client: Client) -> None:
    """A letter that is requeued keeps its id, and counts its attempts anew."""
    await steps.refuse(await steps.submit("bad"))
    await steps.flush("bad")
    await steps.flush("bad", ended_ms=3)
    assert Counter(await listed(client)) == {("bad", 1, "failed"): 1, ("bad", 1, "succeeded"): 1}
    assert await ended(client) == {"succeeded": 1, "failed": 1}


async def test_what_is_settled_again_is_corrected_once(steps: Steps, client: Client) -> None:
    last = await steps.submit("bad", "worse")
    await steps.flush("bad", "worse", "fine")
    units = await steps.units()
    why = {unit.entry: WriteRejected("no") for unit in units}
    for _ in ("a leader that dies", "its successor"):
        settler = Settler(steps.engine.redis, CODEC, "a leader", "0-0", KEEPING)
        await settler.settle(units, why)
    assert why.keys() == {unit.entry for unit in units} >= {last}
    assert await ended(client) == {"succeeded": 1, "failed": 2}
    assert len(await listed(client)) == 3


async def test_what_waits_while_a_database_is_adopted_is_corrected(
    steps: Steps, client: Client
) -> None:
    e = steps.engine
    await steps.submit("left")
    await steps.flush("left", "fine")
    await adopt_database(e.redis, e.database_url, CODEC, retention=KEEPING)
    assert await ended(client) == {"succeeded": 1, "failed": 1}
    assert ("left", 1, "failed") in await listed(client)


async def test_a_success_that_was_counted_a_minute_later_is_found_there(
    steps: Steps, client: Client
) -> None:
    await steps.refuse(await steps.submit("bad"))
    redis: Any = steps.engine.redis
    (key,) = [key async for key in redis.scan_iter("runner:minute:*")]
    name, minute = key.decode().rsplit(":", 1)
    await redis.rename(key, f"{name}:{int(minute) - 1}")  # that it was refused, a minute ago
    await steps.flush("bad", "fine")
    minutes = await client.history.minutes(3)
    assert [each.outcomes for each in minutes][-2:] in (
        [{"failed": 1}, {"succeeded": 1}],
        [{}, {"succeeded": 1}],  # a minute has just begun
    )
    assert await ended(client) == {"succeeded": 1, "failed": 1}


async def test_failures_stay_in_the_list_whatever_workers_tell_afterwards(
    steps: Steps, client: Client
) -> None:
    ids = [f"j{number}" for number in range(3 * ROWS)]
    await steps.refuse(await steps.submit(*ids))
    await steps.flush(*ids)
    assert await ended(client) == {"failed": 3 * ROWS}
    found = await client.history.finished(limit=10_000)
    assert Counter(job.outcome for job in found) == {"failed": ROWS}
    assert len({job.job_id for job in found}) == ROWS


async def test_what_is_noted_of_refused_jobs_is_bounded(steps: Steps, client: Client) -> None:
    redis: Any = steps.engine.redis
    name = keys.refused(keys.DEFAULT_QUEUE)
    await redis.zadd(name, {f"{number} old": number for number in range(1, 12_000)})
    await redis.zadd(name, {f"{number} new": 2**42 + number for number in range(12_000)})
    await steps.refuse(await steps.submit("bad"))
    assert await redis.zcard(name) == 10_000
    assert await redis.zscore(name, "11999 old") is None, "it is years old"
    assert 0 < await redis.pttl(name) <= 900_000
    await redis.delete(name)
    assert await listed(client) == [("bad", 1, "failed")]


async def test_what_was_told_is_forgotten(steps: Steps, client: Client) -> None:
    await steps.refuse(await steps.submit("bad"))
    redis: Any = steps.engine.redis
    assert await redis.zcard(keys.refused(keys.DEFAULT_QUEUE)) == 1
    await steps.flush("é\0\udc80", "bad", due_ms=math.inf)
    assert await redis.exists(keys.refused(keys.DEFAULT_QUEUE)) == 0
    (job, _) = await client.history.finished()
    assert (job.job_id, job.due_ms, job.started_ms, job.ended_ms) == ("é\0\\udc80", 0, 1, 2)
    assert (job.task, job.worker) == ("t", "w")


async def test_a_key_that_holds_something_else_keeps_no_job_from_its_end(
    steps: Steps, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await steps.engine.redis.set(keys.finished(keys.DEFAULT_QUEUE), "no list", px=60_000)
    await steps.refuse(await steps.submit("bad"))
    with pytest.raises(WriteRejected):
        await client.job("bad").result(timeout=5)
    assert await client.dead.count() == 1
    assert "the history of 'arq:queue' is not corrected" in caplog.text
    assert "could not keep the result" not in caplog.text


async def test_a_job_of_an_unreadable_payload_is_corrected_too(
    steps: Steps, client: Client
) -> None:
    last = await steps.submit("bad")
    await steps.engine.redis.set(keys.job("bad"), b"\xff", px=60_000)
    await steps.refuse(last)
    await steps.flush("bad")
    assert await ended(client) == {"failed": 1}
    assert [(j.task, j.outcome) for j in await client.history.finished()] == [
        ("<unknown>", "failed")
    ]
