"""What a job writes and reads: discarded with its attempt, waited for by anybody's client."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import pytest
from arq.connections import RedisSettings
from arq.jobs import JobStatus
from arq.worker import func

import runner
from runner import Cancel, Context, Retry, RetryPolicy, Snooze, keys, task
from runner.errors import JobFailed
from tests.engine import Gate, StockWorker, serving, started, stock_client
from tests.integration.test_writer_support import LASTING, engine, writing
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Connection, Record

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys(*LASTING, "runner:held:*", "runner:writer:leader"),
    pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning"),
]

SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY);
CREATE TABLE total (name text PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
INSERT INTO total VALUES ('x', 0);
"""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Connection[Record]]:
    connection = await asyncpg.connect(database_url)
    await connection.execute(SCHEMA)
    yield connection
    await connection.close()


ENDS: dict[str, Exception | None] = {
    "fails": RuntimeError("on the way"),
    "is retried": Retry(defer=0),
    "snoozes": Snooze(0),
    "is cancelled": Cancel(),
    "is aborted": None,
    "is out of time": None,
}


async def _ends(ctx: Context, how: str) -> int:
    ctx.db.add("total", key={"name": "x"}, n=1)
    ctx["begun"].append(how)
    if len(ctx["begun"]) == 1:
        if (error := ENDS[how]) is not None:
            raise error
        await asyncio.Event().wait()
    return 0


@task(name="ends", retries=1, backoff=RetryPolicy(base=0))
async def ends(ctx: Context, how: str) -> int:
    return await _ends(ctx, how)


@task(name="out of time", timeout=0.1)
async def out_of_time(ctx: Context, how: str) -> int:
    return await _ends(ctx, how)


@pytest.mark.parametrize("how", ENDS)
async def test_what_an_attempt_wrote_is_discarded_when_it_does_not_end_well(
    redis_url: str, database_url: str, database: Connection[Record], how: str
) -> None:
    begun: list[str] = []
    settings = {"database_url": database_url, "ctx": {"begun": begun}, "allow_abort_jobs": True}
    tasks = [ends, out_of_time]
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, tasks, **settings),
    ):
        job = await client.enqueue(out_of_time if how == "is out of time" else ends, how)
        if how == "is aborted":
            await wait_until(lambda: begun, description="the job runs")
            assert await job.abort(timeout=20)
        with contextlib.suppress(JobFailed, TimeoutError, Cancel, asyncio.CancelledError):
            await job.result(timeout=20)
        # Of its attempts the last one counts, where it ended well.
        expected = 1 if len(begun) == 2 else 0
        assert await client.xlen(keys.UNITS) == expected
        assert await database.fetchval("SELECT n FROM total") == expected
    assert len(begun) == (2 if how in ("fails", "is retried", "snoozes") else 1)


async def writes(ctx: Any, number: int) -> str:
    ctx["begun"].append(number)
    ctx.db.insert("t", id=number)
    return "written"


async def adds(_ctx: Any, a: int, b: int) -> int:
    return a + b


async def test_a_stock_client_waits_for_the_commit_and_a_stock_worker_leaves_the_job_alone(
    redis_url: str, database_url: str, database: Connection[Record]
) -> None:
    begun: list[int] = []
    ours = {"codec": "pickle", "database_url": database_url, "ctx": {"begun": begun}}
    async with stock_client(redis_url) as stock:
        job = await stock.enqueue_job("writes", 1)
        assert job is not None
        async with serving(redis_url, [writes], writer=False, **ours):

            async def commits() -> bool:
                marker = await stock.get(keys.in_progress(job.job_id))
                return bool(marker) and marker.decode().startswith(keys.COMMITTING)

            _: bool = await wait_until(commits, description="its unit waits for a writer")
        assert await job.status() is JobStatus.in_progress
        assert await stock.zscore(keys.DEFAULT_QUEUE, job.job_id) == keys.FAR_OFF_MS
        with pytest.raises(TimeoutError):
            await job.abort(timeout=0.05, poll_delay=0.02)  # too late: it has run
        theirs = StockWorker(
            [func(writes, name="writes"), func(cast("Any", adds), name="adds")],
            redis_settings=RedisSettings.from_dsn(redis_url),
            poll_delay=0.05,
            handle_signals=False,
            allow_abort_jobs=True,
            ctx={"begun": begun},
        )
        async with started(theirs):
            # What it finds first is the aborted job, which looks as if it were due.
            other = await stock.enqueue_job("adds", 1, 2)
            assert other is not None
            assert await other.result(timeout=20, poll_delay=0.02) == 3
            waiting = asyncio.create_task(job.result(timeout=30, poll_delay=0.02))
            async with engine(redis_url, database_url) as e, writing(e.candidate()):
                assert await waiting == "written"
        assert await job.status() is JobStatus.complete
    assert begun == [1]
    assert [row["id"] for row in await database.fetch("SELECT id FROM t")] == [1]


@task(name="reads")
async def reads(ctx: Context, number: int) -> list[Any]:
    await ctx["gate"](str(number))
    rows = await ctx.db.fetch("SELECT name, n FROM total WHERE name = $1", "x")
    row = await ctx.db.fetchrow("SELECT n FROM total")
    assert row is not None
    none = await ctx.db.fetchrow("SELECT n FROM total WHERE name = 'y'")
    return [[dict(r) for r in rows], row["n"], none, await ctx.db.fetchval("SELECT 40 + $1", 2)]


@task(name="reads_wrongly")
async def reads_wrongly(ctx: Context) -> str:
    try:
        await ctx.db.fetch("DELETE FROM total RETURNING n")
    except asyncpg.ReadOnlySQLTransactionError as exc:
        return str(exc)
    return "deleted"


async def test_reads_share_a_small_pool_apart_from_the_writer(
    redis_url: str, database_url: str, database: Connection[Record]
) -> None:
    gate = Gate()
    settings = {"database_url": database_url, "writer": False, "ctx": {"gate": gate}}
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, [reads, reads_wrongly], max_jobs=20, **settings),
    ):
        jobs = [await client.enqueue(reads, number) for number in range(20)]
        await gate.runs.wait()
        gate.opens.set()
        for job in jobs:
            assert await job.result(timeout=20) == [[{"name": "x", "n": 0}], 0, None, 42]
        count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'arq-runner reads'"
        mine = " AND datname = current_database()"
        assert await database.fetchval(count + mine) <= 2
        wrong = await client.enqueue(reads_wrongly)
        assert "read-only" in await wrong.result(timeout=20)
