"""A worker that is told to stop ends, whenever it is told."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from tests.support import wait_until

ROOT = Path(__file__).parents[2]
SETTINGS = """
import os
import runner
from runner import RedisSettings, task

@task
async def nothing(ctx):
    pass

class WorkerSettings(runner.WorkerSettings):
    functions = [nothing]
    redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])
    use_uvloop = os.environ["LOOP"] == "uvloop"
    job_completion_wait = int(os.environ["WAIT"])
"""
AT_ONCE = 4

# The moment between the worker's making and its loop: told by a signal from within.
BETWEEN = """
import os, signal, sys
import arq.worker
import shop
worker = arq.worker.create_worker(shop.WorkerSettings)
os.kill(os.getpid(), signal.SIGTERM)
print("told", flush=True)
worker.run()
"""

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SETTINGS)
    (tmp_path / "between.py").write_text(BETWEEN)
    return tmp_path


async def start(
    folder: Path, url: str, loop: str, wait: int, *command: str
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        cwd=folder,
        env={
            **os.environ,
            "REDIS_URL": url,
            "LOOP": loop,
            "WAIT": str(wait),
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def ends(process: asyncio.subprocess.Process, why: str) -> str:
    try:
        async with asyncio.timeout(30):
            out, _ = await process.communicate()
    except TimeoutError:
        raise AssertionError(f"the worker lives on: {why}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    return out.decode()


@pytest.mark.parametrize("wait", [0, 5])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_signal_before_the_loop_runs_ends_the_worker(
    redis_url: str, folder: Path, loop: str, wait: int
) -> None:
    process = await start(folder, redis_url, loop, wait, "between.py")
    out = await ends(process, "told before its loop ran")
    assert "told" in out
    assert process.returncode == 0, out


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_signal_at_any_moment_of_the_start_ends_the_worker(
    redis_url: str, folder: Path, loop: str
) -> None:
    chance = random.Random(20)

    async def once() -> None:
        delay_s = chance.uniform(0, 1.5)
        process = await start(folder, redis_url, loop, 0, "-m", "arq", "shop.WorkerSettings")
        clock = asyncio.get_running_loop().time
        until = clock() + delay_s
        await wait_until(lambda: clock() >= until, description="a moment of the start")
        process.send_signal(signal.SIGTERM)
        out = await ends(process, f"told after {delay_s:.3f} s")
        # Before Python handles signals the default does.
        assert process.returncode in (0, -signal.SIGTERM), out

    for _ in range(int(os.environ.get("SIGNAL_ROUNDS", "5"))):
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(once())
