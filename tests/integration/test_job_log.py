"""The job log in Postgres: what ended is found by each of its keys, as long as it is kept."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import runner
from runner import Context, JobLog, RetryPolicy, WriteRejected, keys, task
from runner.errors import ArgumentsError, JobNotFound, RemoteError, SettingsError, WriterUnavailable
from runner.joblog import collect
from runner.writer.housekeeping import PAGE, PAGES_AT_ONCE, forget
from tests.engine import Gate, raw, serving
from tests.integration.test_writer_support import LASTING
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Connection, Record

    from runner import Client, LoggedJob

pytestmark = [
    pytest.mark.lasting_keys(*LASTING, "runner:*"),
    pytest.mark.timeout(60),
]

NOW = RetryPolicy(base=0, cap=0)
HOUR = dt.timedelta(hours=1)


@task
async def pay(_ctx: Context, order: Any, *, currency: str = "EUR") -> str:
    if order == "bad":
        raise ValueError(f"no address for {currency} 100%")
    return currency


@task(retries=1, backoff=NOW)
async def unsteady(ctx: Context) -> None:
    if ctx.attempt == 1:
        raise OSError("not yet")


@task(on_write_error="fail")
async def insert(ctx: Context, number: int) -> None:
    ctx.db.insert("t", id=number)


@task(retries=1, backoff=NOW, on_write_error="retry")
async def insert_or_next(ctx: Context, number: int) -> None:
    ctx.db.insert("t", id=number + ctx.attempt - 1)


ALL = [pay, unsteady, insert, insert_or_next]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Connection[Record]]:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    yield connection
    await connection.close()


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[JobLog]:
    async with JobLog(database_url) as opened:
        yield opened


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


async def begun(log: JobLog) -> None:
    """Wait until the first writer has made the table."""

    async def is_there() -> bool:
        try:
            await log.search()
        except WriterUnavailable:
            return False
        return True

    await wait_until(is_there, description="the first writer has begun", timeout_s=20)


async def logged(log: JobLog, count: int, **given: Any) -> list[LoggedJob]:
    """Wait until so many rows fit."""

    await begun(log)

    async def found() -> Any:
        jobs = await log.search(**given)
        return jobs if len(jobs) >= count else None

    jobs: list[LoggedJob] = await wait_until(
        found, description=f"{count} jobs are logged", timeout_s=20
    )
    return jobs


async def test_a_job_is_logged_with_all_that_is_known_of_it(
    redis_url: str, database_url: str, client: Client, log: JobLog
) -> None:
    async with serving(redis_url, ALL, database_url=database_url, job_log=True) as worker:
        job = await client.enqueue(pay, 7, currency="CHF")
        await job.result(timeout=20)
        (row,) = await logged(log, 1)
    assert (row.job_id, row.task, row.queue) == (job.job_id, "pay", keys.DEFAULT_QUEUE)
    assert (row.outcome, row.attempt, row.worker) == ("succeeded", 1, worker.name)
    assert row.arguments == {"order": 7, "currency": "CHF"}
    assert (row.error_type, row.error) == ("", "")
    assert row.enqueued_at is not None
    assert row.started_at is not None
    assert row.enqueued_at <= row.started_at <= row.ended_at
    assert await log.of(job.job_id) == [row]


async def test_jobs_are_found_by_each_of_their_keys(
    redis_url: str, database_url: str, client: Client, log: JobLog
) -> None:
    async with (
        serving(redis_url, ALL, database_url=database_url, job_log=True),
        runner.connect(redis_url, queue="other") as elsewhere,
        serving(redis_url, ALL, queue_name="other", database_url=database_url, job_log=True),
    ):
        good = await client.enqueue(pay, {"id": 7, "lines": [1, 2]})
        bad = await client.enqueue(pay, "bad", currency="CHF")
        other = await elsewhere.enqueue(unsteady)
        unknown = await client.enqueue("nobody_knows_it", 1)
        await good.result(timeout=20)
        await other.result(timeout=20)
        for job in (bad, unknown):
            with pytest.raises(Exception, match=r"address|not found"):
                await job.result(timeout=20)
        rows = await logged(log, 4)

    async def found(**given: Any) -> set[str]:
        return {row.job_id for row in await log.search(**given)}

    everything = {job.job_id for job in (good, bad, other, unknown)}
    assert {row.job_id for row in rows} == everything
    assert await found(task="pay") == {good.job_id, bad.job_id}
    assert await found(queue="other") == {other.job_id}
    assert await found(outcomes=["failed"]) == {bad.job_id}
    assert await found(outcomes=["failed", "unknown_task"]) == {bad.job_id, unknown.job_id}
    assert await found(error="valueerror") == {bad.job_id}
    assert await found(error="CHF 100%") == {bad.job_id}
    assert await found(error="CHF 10_%") == set()
    assert await found(arguments={"currency": "CHF"}) == {bad.job_id}
    assert await found(arguments={"order": {"id": 7}}) == {good.job_id}
    assert await found(arguments={"order": {"id": "7"}}) == set()
    assert await found(arguments={"0": 1}) == {unknown.job_id}
    now = dt.datetime.now(dt.UTC)
    assert await found(since=now - HOUR, until=now + HOUR) == everything
    assert await found(until=now - HOUR) == await found(since=now + HOUR) == set()
    assert await found(task="pay", outcomes=["succeeded"], arguments={"order": {"id": 8}}) == set()
    assert [row.attempt for row in await log.of(other.job_id)] == [2]


async def test_pages_follow_each_other_without_a_gap(
    redis_url: str, database_url: str, client: Client, log: JobLog
) -> None:
    async with serving(redis_url, ALL, database_url=database_url, job_log=True):
        await client.enqueue_many(pay.call(number) for number in range(1_200))
        everything = await logged(log, 1_200, limit=2_000)
    pages: list[LoggedJob] = []
    while page := await log.search(limit=500, before=pages[-1] if pages else None):
        pages += page
    assert pages == everything
    assert sorted(row.arguments["order"] for row in pages) == list(range(1_200))


async def test_rows_of_a_busy_worker_travel_together(
    redis_url: str, database_url: str, client: Client, log: JobLog
) -> None:
    async with serving(redis_url, ALL, database_url=database_url, job_log=True, max_jobs=500):
        await begun(log)
        await client.enqueue_many(pay.call(number) for number in range(2_000))
        await logged(log, 2_000, limit=2_000)
        status = await client.writer_status()
    assert status.operations == 2_000
    assert status.units <= 100


HOSTILE = [
    "nul \0 and half \ud83d",
    {"\0": "\0"},
    10**400,
    float("nan"),
    "x" * 1_000_000,
    {"many": [[number] * 100 for number in range(1_000)]},
    [[[[[[[[[[[["deep"]]]]]]]]]]]],
]


async def test_hostile_arguments_refuse_no_row(
    redis_url: str, database_url: str, log: JobLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", logger="arq.worker")  # xdist cannot tell half a character
    async with (
        runner.connect(redis_url, codec="pickle") as client,
        serving(redis_url, ALL, codec="pickle", database_url=database_url, job_log=True),
    ):
        jobs = [await client.enqueue("pay", value) for value in HOSTILE]
        jobs.append(await client.enqueue("pay\0\ud800" * 500, b"\0"))
        jobs.append(await client.enqueue_job("pay", 1, _job_id="long " * 2_000))  # type: ignore[arg-type]
        await client.enqueue("pay", 2)
        rows = await logged(log, len(HOSTILE) + 3)
        assert (await client.writer_status()).rejected == 0
    assert len(rows) == len(HOSTILE) + 3
    assert {row.outcome for row in rows} == {"succeeded", "unknown_task"}


async def test_hostile_errors_are_kept_as_text(
    redis_url: str,
    database_url: str,
    client: Client,
    log: JobLog,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("CRITICAL", logger="arq.worker")  # xdist cannot tell half a character

    @task(name="shouts")
    async def shouts(_ctx: Context) -> None:
        raise ValueError("nul \0, half \ud800, long " + "x" * 100_000)

    async with serving(redis_url, [shouts], database_url=database_url, job_log=True):
        job = await client.enqueue(shouts)
        with pytest.raises(RemoteError):
            await job.result(timeout=20)
        (row,) = await logged(log, 1)
    assert row.error.startswith("nul \\x00, half \\ud800, long xxx")
    assert len(row.error) < 2_100


async def test_a_refused_unit_makes_a_failure_of_the_success(
    redis_url: str,
    database_url: str,
    database: Connection[Record],
    client: Client,
    log: JobLog,
) -> None:
    async with serving(redis_url, ALL, database_url=database_url, job_log=True):
        bad = await client.enqueue(insert, 1)
        with pytest.raises(WriteRejected):
            await bad.result(timeout=20)
        again = await client.enqueue(insert_or_next, 1)
        await again.result(timeout=20)

        async def complete() -> Any:
            rows = await log.search()
            states = {(row.job_id, row.attempt): row.outcome for row in rows}
            names = {row.task for row in rows}
            return states if len(states) == 3 and "" not in names else None

        states = await wait_until(complete, description="all rows are mended", timeout_s=20)
        assert states == {
            (bad.job_id, 1): "failed",
            (again.job_id, 1): "retried",
            (again.job_id, 2): "succeeded",
        }
        (row,) = await log.search(outcomes=["failed"])
        assert row.error_type == "WriteRejected"
        assert row.arguments == {"number": 1}
        assert await database.fetchval("SELECT count(*) FROM t") == 2


async def test_a_job_that_somebody_else_has_is_not_logged(
    redis_url: str, database_url: str, client: Client, log: JobLog
) -> None:
    gate = Gate()

    @task(name="slow")
    async def slow(_ctx: Context) -> None:
        await gate()

    async with (
        serving(redis_url, [slow, pay], database_url=database_url, job_log=True),
        raw(redis_url) as redis,
    ):
        lost = await client.enqueue(slow)
        await gate.runs.wait()
        await redis.set(keys.in_progress(lost.job_id), "r:somebody else")
        gate.opens.set()
        await client.enqueue(pay, 1)
        await logged(log, 1, task="pay")

        async def alone() -> bool:
            return [row.task for row in await log.search()] == ["pay"]

        await wait_until(alone, description="the other row is not there, or no more")


async def test_old_rows_are_deleted_in_pages_by_the_writer(
    redis_url: str, database_url: str, database: Connection[Record], client: Client, log: JobLog
) -> None:
    async with serving(redis_url, ALL, database_url=database_url, job_log=True, job_log_keep=3600):
        await client.enqueue(pay, 1)
        (fresh,) = await logged(log, 1)
        old = PAGE * PAGES_AT_ONCE + 1
        await database.execute(
            "INSERT INTO runner.job_log (job_id, ended_at, queue, outcome, attempt)"
            " SELECT i::text, now() - interval '2 hours' - i * interval '1 s', 'q', 'failed', 1"
            " FROM generate_series(1, $1::int) i",
            old,
        )

        async def left() -> bool:
            return await log.search(limit=5) == [fresh]

        await wait_until(left, description="what is old is gone", timeout_s=30)


async def test_a_step_of_deletion_is_bounded(
    redis_url: str, database_url: str, database: Connection[Record], log: JobLog
) -> None:
    async with serving(redis_url, ALL, database_url=database_url):
        await begun(log)
    await database.execute(
        "INSERT INTO runner.job_log (job_id, ended_at, queue, outcome, attempt)"
        " SELECT i::text, now() - i * interval '1 s', 'q', 'failed', 1"
        " FROM generate_series(1, 25000) i"
    )
    assert await forget(database, 10_000) == PAGE * PAGES_AT_ONCE
    assert await database.fetchval("SELECT min(job_id::int) FROM runner.job_log") == 1


async def test_off_by_default_and_needs_a_database(
    redis_url: str, database_url: str, client: Client, log: JobLog
) -> None:
    async with serving(redis_url, ALL, database_url=database_url) as worker:
        await (await client.enqueue(pay, 1)).result(timeout=20)
        await begun(log)
    assert worker.job_log is None
    assert await log.search() == []
    with pytest.raises(SettingsError, match="database_url"):
        async with serving(redis_url, ALL, job_log=True):
            pass


async def test_what_cannot_be_searched_says_why(empty_database_url: str, log: JobLog) -> None:
    async with JobLog(empty_database_url) as empty:
        with pytest.raises(WriterUnavailable, match="no job log"):
            await empty.search()
    async with JobLog("postgresql://127.0.0.1:1/nowhere") as away:
        with pytest.raises(WriterUnavailable, match="cannot read"):
            await away.search()
    with pytest.raises(ArgumentsError, match="zone"):
        await log.search(since=dt.datetime(2026, 1, 1))  # noqa: DTZ001  what is refused
    with pytest.raises(ArgumentsError, match="limit"):
        await log.search(limit=0)


async def test_a_job_without_a_row_is_not_found(
    redis_url: str, database_url: str, log: JobLog
) -> None:
    async with serving(redis_url, ALL, database_url=database_url):
        await begun(log)
    with pytest.raises(JobNotFound):
        await log.of("nothing")


@pytest.mark.parametrize(
    "hostile", ["a\0b", "half \ud800", "'; DROP TABLE runner.job_log; --", "%", "_ay", "{}", "$1"]
)
async def test_whatever_is_looked_for_is_a_value(
    redis_url: str, database_url: str, client: Client, log: JobLog, hostile: str
) -> None:
    async with serving(redis_url, ALL, database_url=database_url, job_log=True):
        await (await client.enqueue(pay, hostile.encode(errors="replace").decode())).result(
            timeout=20
        )
        await logged(log, 1)
    assert await log.search(task=hostile) == []
    assert await log.search(queue=hostile) == []
    assert await log.search(outcomes=[hostile]) == []
    assert await log.search(error=hostile) == []
    assert await log.search(arguments={hostile: hostile}) == []
    with pytest.raises(JobNotFound):
        await log.of(hostile)
    assert len(await log.search()) == 1


async def test_jobs_whose_long_ids_begin_alike_have_rows_of_their_own(
    redis_url: str, database_url: str, client: Client, log: JobLog
) -> None:
    ids = [f"{'import:' * 50}{number}" for number in range(3)]
    async with serving(redis_url, ALL, database_url=database_url, job_log=True):
        for number, job_id in enumerate(ids):
            await client.enqueue(pay.options(key=job_id), number)
        await logged(log, 3)
    for number, job_id in enumerate(ids):
        (row,) = await log.of(job_id)
        assert row.arguments["order"] == number


async def test_a_log_that_nobody_writes_down_holds_no_job_up(
    redis_url: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "TICK_S", 0.01)
    monkeypatch.setattr(collect, "FULL_TIMEOUT_S", 0.05)
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    async with (
        serving(
            redis_url, [pay], database_url=nowhere, job_log=True, monitor=True, health_port=0
        ) as worker,
        raw(redis_url) as redis,
    ):
        await redis.hset(keys.WRITER, "bound", 20)
        for number in range(60):  # each a unit of its own, as a tick lies between them
            await (await client.enqueue(pay, number)).result(timeout=20)
        assert await redis.xlen(keys.UNITS) <= 6, "a quarter of the room"
        assert worker.job_log is not None
        assert worker.job_log.dropped == 0
        status = await client.writer_status()

        async def failed() -> Any:
            return (await client.writer_status()).errors > status.errors

        await wait_until(failed, description="the writer's errors are counted", timeout_s=20)


async def test_rows_that_found_no_room_are_written_when_there_is_some(
    redis_url: str, database_url: str, client: Client, log: JobLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "TICK_S", 0.01)
    monkeypatch.setattr(collect, "FULL_TIMEOUT_S", 0.05)
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    async with raw(redis_url) as redis:
        await redis.hset(keys.WRITER, "bound", 8)
        async with serving(redis_url, [pay], database_url=nowhere, job_log=True):
            for number in range(20):
                await (await client.enqueue(pay, number)).result(timeout=20)
            async with serving(
                redis_url, [unsteady], database_url=database_url, queue_name="other"
            ):
                rows = await logged(log, 20)
    assert sorted(row.arguments["order"] for row in rows) == list(range(20))
