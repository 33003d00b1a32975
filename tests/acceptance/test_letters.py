"""Dead letters of jobs whose workers are killed, and of operators who are."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

import runner
from runner import Context, LetterFilter, keys, task
from tests.engine import drain, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from pathlib import Path

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:held:*")]

OPERATOR = """\
import asyncio, sys
import runner

async def main():
    async with runner.connect(sys.argv[1]) as client:
        print("go", flush=True)
        await client.dead.requeue(runner.LetterFilter())

asyncio.run(main())
"""


async def start(*words: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE
    )


@task(name="wait")
async def fail(_ctx: Context, seconds: float) -> None:
    raise ValueError(f"after {seconds}")


@task(name="fail")
async def fail_once(_ctx: Context, number: int) -> None:
    raise LookupError(str(number))


@task(name="fail")
async def count(ctx: Context, number: int) -> None:
    ctx["ran"].append(number)


async def test_letter_names_the_worker_that_was_killed(redis_url: str) -> None:
    async with runner.connect(redis_url) as client:
        job = await client.enqueue("wait", 600)
        process = await start("-m", "tests.worker_process", redis_url, "1")
        await wait_until(lambda: client.exists(f"runs:{job.job_id}"), description="it runs")
        held_by = (await client.jobs.show(job.job_id)).worker
        process.kill()
        await process.communicate()
        async with serving(redis_url, [fail], lease=1) as worker:
            with pytest.raises(runner.errors.RemoteError, match="after 600"):
                await job.result(timeout=30)
        letter = await client.dead.show(job.job_id)
    (crash,) = letter.errors
    assert (crash.outcome, crash.attempt, letter.attempt) == ("crashed", 1, 1)
    assert (crash.worker, letter.worker) == (held_by, worker.name)
    assert f":{process.pid}:" in crash.worker
    assert letter.enqueued_ms < crash.ended_ms <= letter.started_ms + 1


async def test_operator_who_is_killed_half_way_loses_and_doubles_nothing(
    redis_url: str, tmp_path: Path
) -> None:
    script = tmp_path / "requeue_all.py"
    script.write_text(OPERATOR, "utf-8")
    number = 4_000
    async with runner.connect(redis_url) as client:
        await client.enqueue_many([fail_once.call(n) for n in range(number)])
        await drain(redis_url, [fail_once], max_jobs=100, log_results=False)
        assert await client.dead.count() == number
        operator = await start(str(script), redis_url)
        await wait_until(
            lambda: client.zcard(keys.DEFAULT_QUEUE), description="some are in the queue again"
        )
        operator.kill()
        await operator.communicate()
        queued = await client.zcard(keys.DEFAULT_QUEUE)
        assert queued + await client.dead.count() == number
        await client.dead.requeue(LetterFilter())
        assert await client.dead.count() == 0
        ran: list[int] = []
        await drain(redis_url, [count], ctx={"ran": ran}, max_jobs=100)
    assert sorted(ran) == list(range(number))
