"""arq's own command starts our worker: `arq settings.WorkerSettings`, with all of its switches."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from arq.jobs import Job as StockJob
from arq.jobs import JobStatus

import runner
from runner import keys
from runner.codec import MsgpackCodec
from tests.engine import raw, stock_client
from tests.support import wait_until

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:held:*")]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30
SETTINGS = """
import os
import runner
from runner import Context, RedisSettings, task

@task
async def add(ctx: Context, a: int, b: int) -> int:
    return a + b

@task
async def fail(ctx: Context) -> None:
    raise ValueError("broken")

@task
async def hang(ctx: Context) -> None:
    import asyncio
    await asyncio.Event().wait()

@task
async def frozen(ctx: Context) -> int:
    import gc
    return gc.get_freeze_count()

class WorkerSettings(runner.WorkerSettings):
    functions = [add, fail, hang, frozen]
    redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])
    codec = os.environ.get("RUNNER_CODEC", "msgpack")
    health_check_interval = 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SETTINGS)
    return tmp_path


@asynccontextmanager
async def arq(folder: Path, redis_url: str, *switches: str, **env: str) -> AsyncIterator[Process]:
    """Run ``arq shop.WorkerSettings``; a process that is left over is killed."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RUNNER_")},
        "PYTHONUNBUFFERED": "1",  # arq says by print that it starts again
        "REDIS_URL": redis_url,
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        **env,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "arq", "shop.WorkerSettings", *switches),
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def finished(process: Process) -> tuple[int, str]:
    async with asyncio.timeout(TIMEOUT_S):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def burst(folder: Path, redis_url: str, **env: str) -> str:
    async with arq(folder, redis_url, "--burst", **env) as process:
        code, out = await finished(process)
    assert code == 0, out
    return out


async def test_burst_drains_what_a_stock_client_enqueued_as_pickles(
    redis_url: str, folder: Path
) -> None:
    async with stock_client(redis_url) as stock:
        jobs = [await stock.enqueue_job("add", n, b=1) for n in range(20)]
        await burst(folder, redis_url, RUNNER_CODEC="pickle")
        assert await stock.zcard(keys.DEFAULT_QUEUE) == 0
        results = [await job.result(timeout=1) for job in jobs if job]
    assert results == [n + 1 for n in range(20)]


async def test_burst_drains_what_a_stock_client_enqueued_with_the_safe_codec(
    redis_url: str, folder: Path
) -> None:
    codec = MsgpackCodec()
    hooks: dict[str, Any] = {"job_serializer": codec.dumps, "job_deserializer": codec.loads}
    async with stock_client(redis_url, **hooks) as stock:
        job = await stock.enqueue_job("add", 20, 22)
        assert job is not None
        await burst(folder, redis_url)
        assert await job.result(timeout=1) == 42
        info = await job.info()
    assert info is not None
    assert (info.function, list(info.args)) == ("add", [20, 22])


async def test_pickle_that_nobody_asked_for_is_never_read(redis_url: str, folder: Path) -> None:
    trap = folder / "trap"

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (trap,))

    async with stock_client(redis_url) as stock, runner.connect(redis_url) as client:
        job = await stock.enqueue_job("add", Trap(), 1)
        assert job is not None
        await burst(folder, redis_url)
        (letter,) = await client.dead_letters()
        assert (letter.job_id, letter.outcome) == (job.job_id, "undecodable")
    assert not trap.exists()


async def test_our_worker_is_the_one_that_runs(redis_url: str, folder: Path) -> None:
    async with runner.connect(redis_url) as client:
        await client.enqueue("fail")
        out = await burst(folder, redis_url)
        stats = await client.queue_stats()
    assert (stats.failed, stats.dead) == (1, 1)
    assert "ValueError: broken" in out
    assert out.count("fail()") == 1, "each line is written once"


async def test_check_tells_whether_a_worker_is_alive(redis_url: str, folder: Path) -> None:
    async with arq(folder, redis_url, "--check") as check:
        assert (await finished(check))[0] == 1
    async with arq(folder, redis_url) as worker, raw(redis_url) as redis:
        await wait_until(
            lambda: redis.exists(keys.health(keys.DEFAULT_QUEUE)),
            description="the worker says that it is well",
            timeout_s=TIMEOUT_S,
        )
        async with arq(folder, redis_url, "--check") as check:
            assert (await finished(check))[0] == 0
        worker.send_signal(signal.SIGTERM)
        code, out = await finished(worker)
        assert code == 0, out
        assert await redis.keys() == []


@pytest.mark.parametrize("switches", [(), ("--watch", ".")], ids=["plain", "watch"])
async def test_worker_ends_on_sigterm_and_hands_its_job_back(
    redis_url: str, folder: Path, switches: tuple[str, ...]
) -> None:
    async with runner.connect(redis_url) as client:
        job = await client.enqueue("hang")
        async with arq(folder, redis_url, *switches) as worker:
            await wait_until(
                lambda: _is(job, JobStatus.in_progress),
                description="the job runs",
                timeout_s=TIMEOUT_S,
            )
            worker.send_signal(signal.SIGTERM)
            code, out = await finished(worker)
            assert code in (0, -signal.SIGTERM), out
        assert await job.status() is JobStatus.queued
        assert not await client.exists(keys.retry(job.job_id), keys.held(keys.DEFAULT_QUEUE))


async def _is(job: StockJob, status: JobStatus) -> bool:
    return await job.status() is status


async def test_watching_worker_starts_again_when_a_file_changes(
    redis_url: str, folder: Path
) -> None:
    async with (
        runner.connect(redis_url) as client,
        arq(folder, redis_url, "--watch", ".") as worker,
    ):
        job = await client.enqueue("add", 1, 1)
        assert await job.result(timeout=TIMEOUT_S) == 2
        (folder / "more.py").write_text("")
        assert worker.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            while b"files changed, reloading" not in await worker.stdout.readline():
                pass
        job = await client.enqueue("add", 2, 2)
        assert await job.result(timeout=TIMEOUT_S) == 4
        worker.send_signal(signal.SIGTERM)
        await finished(worker)


async def test_json_lines_carry_the_job(redis_url: str, folder: Path) -> None:
    async with runner.connect(redis_url) as client:
        good, bad = await client.enqueue("add", 1, 2), await client.enqueue("fail")
    out = await burst(folder, redis_url, RUNNER_LOG="json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert all({"event", "level", "timestamp", "logger"} <= line.keys() for line in lines)
    said = [line for line in lines if line.get("job_id") == good.job_id]
    assert [line["task"] for line in said] == ["add", "add"]
    assert [line["attempt"] for line in said] == [1, 1]
    (failure,) = [
        line for line in lines if line.get("job_id") == bad.job_id and line["level"] == "error"
    ]
    assert failure["exception"][0]["exc_type"] == "ValueError"


async def test_unknown_log_format_is_refused(redis_url: str, folder: Path) -> None:
    async with arq(folder, redis_url, "--burst", RUNNER_LOG="jsn") as process:
        code, out = await finished(process)
    assert code != 0
    assert "did you mean 'json'" in out


async def test_mistyped_setting_is_refused_at_the_start(redis_url: str, folder: Path) -> None:
    (folder / "shop.py").write_text(SETTINGS + "    max_job = 3\n")
    async with arq(folder, redis_url, "--burst") as process:
        code, out = await finished(process)
    assert code != 0
    assert "unknown setting 'max_job'; did you mean 'max_jobs'?" in out


async def test_what_is_loaded_at_the_start_is_no_work_for_the_garbage_collector(
    folder: Path, redis_url: str
) -> None:
    async with arq(folder, redis_url), runner.connect(redis_url) as client:
        job = await client.enqueue("frozen")
        assert await job.result(timeout=TIMEOUT_S) > 10_000
