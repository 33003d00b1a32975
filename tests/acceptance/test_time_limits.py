"""Workers in processes of their own, on uvloop: told to end, or killed, while each kind runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import ProcessDied, keys
from tests import timing_jobs, timing_worker
from tests.support import wait_until

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
ENDS_S = 20

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.lasting_keys("runner:held:*", "runner:units", "runner:writer*"),
]


@asynccontextmanager
async def working(url: str, grace_s: float = 0.3) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.timing_worker", url, str(grace_s)), cwd=ROOT
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ended(process: Process) -> int:
    async with asyncio.timeout(ENDS_S):
        return await process.wait()


async def begun(note: Path) -> str:
    def read() -> str:
        return note.read_text() if note.exists() else ""

    text: str = await wait_until(read, description="the job has begun", timeout_s=30)
    return text


def is_gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"  # nobody waits for it here: that is init's


def children_of(pid: int) -> list[int]:
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as client:
        yield client


@pytest.mark.parametrize("function", [timing_jobs.spin, timing_jobs.wait_in_process])
async def test_processes_die_with_a_worker_that_is_killed(
    redis_url: str, client: runner.Client, tmp_path: Path, function: Any
) -> None:
    async with working(redis_url) as worker:
        await client.enqueue(function, str(tmp_path / "note"))
        pid = int(await begun(tmp_path / "note"))
        children = children_of(worker.pid)
        assert children
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
        for each in (pid, *children):
            await wait_until(partial(is_gone, each), description="it has ended")


@pytest.mark.parametrize(
    ("function", "is_handed_back"),
    [
        (timing_worker.wait_in_loop, True),
        (timing_worker.stubborn, True),
        (timing_jobs.wait_in_process, True),
        (timing_worker.wait_in_thread, False),
    ],
)
async def test_worker_ends_whatever_runs(
    redis_url: str, client: runner.Client, tmp_path: Path, function: Any, is_handed_back: bool
) -> None:
    async with working(redis_url) as worker:
        job = await client.enqueue(function, str(tmp_path / "note"))
        await begun(tmp_path / "note")
        worker.send_signal(signal.SIGTERM)
        assert await ended(worker) == 0
        # A thread's job is left to its lease: it was not seen to end.
        redis: Any = client
        held = await redis.hexists(keys.held(keys.DEFAULT_QUEUE), job.job_id)
        assert held is not is_handed_back
    async with working(redis_url):
        (tmp_path / "note").unlink()
        await begun(tmp_path / "note")


async def test_thread_that_looks_ends_with_its_worker(
    redis_url: str, client: runner.Client, tmp_path: Path
) -> None:
    async with working(redis_url, grace_s=20) as worker:
        job = await client.enqueue(timing_worker.heeds_in_thread, str(tmp_path / "note"))
        await begun(tmp_path / "note")
        worker.send_signal(signal.SIGTERM)
        assert await ended(worker) == 0
    assert await job.result(timeout=5) == "heeded"


async def test_limits_hold_on_uvloop(redis_url: str, client: runner.Client) -> None:
    async with working(redis_url):
        late = [
            await client.enqueue(timing_worker.soft_in_loop),
            await client.enqueue(timing_worker.soft_in_thread),
            await client.enqueue(timing_jobs.late_in_process),
        ]
        tidy = await client.enqueue(timing_jobs.tidy_in_process_async)
        dies = await client.enqueue(timing_jobs.segfault)
        for job in late:
            with pytest.raises(TimeoutError, match="soft time limit"):
                await job.result(timeout=30)
        assert await tidy.result(timeout=30) == "tidy"
        with pytest.raises(ProcessDied):
            await dies.result(timeout=30)


SPEAKS = """
import logging, os, runner
from runner import task

@task(executor="process")
def speak(ctx):
    logging.getLogger("shop").warning("from the process")

@task
def think(ctx):
    logging.getLogger("shop").warning("from the thread")

class WorkerSettings(runner.WorkerSettings):
    functions = [speak, think]
    redis_settings = runner.RedisSettings.from_dsn(os.environ["REDIS_URL"])
"""


async def test_what_is_logged_elsewhere_names_its_job(
    redis_url: str, client: runner.Client, tmp_path: Path
) -> None:
    (tmp_path / "speaks.py").write_text(SPEAKS)
    environment = {**os.environ, "REDIS_URL": redis_url, "RUNNER_LOG": "json"}
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{ROOT}"
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "arq", "speaks.WorkerSettings"),
        cwd=tmp_path,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        for name in ("speak", "think"):
            await client.enqueue_job(name, _job_id=name)
            await client.job(name).result(timeout=30)
        worker.terminate()
        _, said = await asyncio.wait_for(worker.communicate(), ENDS_S)
    finally:
        if worker.returncode is None:
            worker.kill()
    lines = [json.loads(line) for line in said.splitlines() if b'"shop"' in line]
    assert [(line["event"], line["job_id"], line["task"]) for line in lines] == [
        ("from the process", "speak", "speak"),
        ("from the thread", "think", "think"),
    ]


async def test_busy_process_does_not_cost_its_job_the_lease(
    redis_url: str, client: runner.Client
) -> None:
    async with working(redis_url):
        job = await client.enqueue(timing_jobs.compute, 4)  # four leases
        assert await job.result(timeout=30) not in (0, os.getpid())
    stats = await client.queue_stats()
    assert (stats.crashed, stats.succeeded) == (0, 1)
