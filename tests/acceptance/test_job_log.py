"""The job log when workers are killed, and when the writer is a process of its own."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import runner
from runner import Context, JobLog, WriteRejected, task
from runner.errors import WriterUnavailable
from tests.integration.test_writer_support import LASTING
from tests.support import start_python, wait_until

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from pathlib import Path

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.lasting_keys(*LASTING, "runner:*"),
]

JOBS, KILLS = 3_000, 3
SETTINGS = """\
import os

import runner

@runner.task
async def step(ctx, number):
    return number

@runner.task(on_write_error="fail")
async def insert(ctx, number):
    ctx.db.insert("t", id=number)

class WorkerSettings(runner.WorkerSettings):
    functions = [step, insert]
    redis_settings = runner.RedisSettings.from_dsn(os.environ["REDIS_URL"])
    database_url = os.environ["DATABASE_URL"]
    job_log = True
    lease = 1.0
    max_jobs = 20
    writer = "NO_WRITER" not in os.environ
"""


@task
async def step(_ctx: Context, number: int) -> int:
    return number


class Fleet:
    """Processes with the same settings."""

    def __init__(self, folder: Path, redis_url: str, database_url: str) -> None:
        (folder / "shop.py").write_text(SETTINGS, "utf-8")
        self._folder = folder
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
        }

    async def worker(self, **more: str) -> Process:
        words = ("-m", "arq", "shop.WorkerSettings")
        return await start_python(self._folder, {**self._environment, **more}, *words)

    async def writer(self) -> Process:
        words = ("-m", "runner.cli", "writer", "shop.WorkerSettings")
        return await start_python(self._folder, self._environment, *words)


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str, database_url: str) -> Fleet:
    return Fleet(tmp_path, redis_url, database_url)


async def end(*processes: Process) -> None:
    for process in processes:
        if process.returncode is None:
            process.terminate()
    for process in processes:
        await asyncio.wait_for(process.communicate(), 20)


async def test_no_job_is_logged_twice_however_often_workers_are_killed(
    redis_url: str, database_url: str, fleet: Fleet
) -> None:
    async with runner.connect(redis_url) as client, JobLog(database_url) as log:
        jobs = await client.enqueue_many(step.call(number) for number in range(JOBS))
        ended, process = 0, await fleet.worker()

        async def moved() -> int:
            stats = await client.queue_stats()
            return stats.succeeded if stats.succeeded > ended else 0

        for _ in range(KILLS):
            ended = await wait_until(moved, description="jobs end", timeout_s=30)
            process.kill()
            await process.communicate()
            ended = (await client.queue_stats()).succeeded
            process = await fleet.worker()

        async def drained() -> bool:
            return (await client.queue_stats()).queued == 0

        await wait_until(drained, description="all jobs have ended", timeout_s=60)
        last = f":{process.pid}:"
        await end(process)
        # What waits in the stream is the next writer's.
        process = await fleet.writer()

        async def settled() -> bool:
            status = await client.writer_status()
            return bool(status.leader) and status.backlog == 0

        await wait_until(settled, description="all is committed", timeout_s=30)
        await end(process)
        rows = await log.search(limit=10_000)
    assert all((row.task, row.outcome) == ("step", "succeeded") for row in rows)
    counted = Counter(row.job_id for row in rows)
    assert set(counted) <= {job.job_id for job in jobs}
    assert set(counted.values()) == {1}
    # Of those that were killed the last half second may be missing; of the other one nothing is.
    assert sum(last in row.worker for row in rows) == JOBS - ended


async def test_a_writer_of_its_own_mends_the_rows_of_what_it_refuses(
    redis_url: str, database_url: str, fleet: Fleet
) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    await connection.close()
    processes = [await fleet.writer(), await fleet.worker(NO_WRITER="1")]
    try:
        async with runner.connect(redis_url) as client, JobLog(database_url) as log:
            good, bad = await client.enqueue("insert", 2), await client.enqueue("insert", 1)
            await good.result(timeout=60)
            with pytest.raises(WriteRejected):
                await bad.result(timeout=60)

            async def mended() -> Any:
                try:
                    rows = await log.search(task="insert")
                except WriterUnavailable:
                    return None
                states = {row.job_id: row.outcome for row in rows}
                return states if states.get(bad.job_id) == "failed" else None

            states = await wait_until(mended, description="the row is mended", timeout_s=30)
            assert states == {good.job_id: "succeeded", bad.job_id: "failed"}
    finally:
        await end(*processes)
