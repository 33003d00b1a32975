"""The command ``runner``, as a person types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from runner.writer import UnitBuilder
from tests.support import wait_until

PROC = Path("/proc")
SETTINGS = """\
import os
import runner

@runner.task
async def noop(ctx): ...

class WorkerSettings(runner.WorkerSettings):
    functions = [noop]
    redis_settings = runner.RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://localhost"))
    database_url = os.environ.get("DATABASE_URL")
"""
ENOUGH_S = 60


def command(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    (folder / "settings.py").write_text(SETTINGS, "utf-8")
    inherited = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "DATABASE_URL")}
    return subprocess.Popen(
        [sys.executable, "-m", "runner.cli", *words],
        cwd=folder,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=ENOUGH_S)
    return process.returncode, output


@pytest.mark.lasting_keys("runner:writer", "runner:units")
async def test_writer_is_elected_and_resigns_when_it_is_told_to_stop(
    redis_url: str, database_url: str, tmp_path: Path
) -> None:
    process = command(tmp_path, "writer", REDIS_URL=redis_url, DATABASE_URL=database_url)
    try:
        async with Redis.from_url(redis_url) as redis:
            # Its position stands there a moment before it leads: what it answers tells.
            unit = UnitBuilder()
            unit.execute("SELECT 1")
            fields: dict[Any, Any] = {"u": "test:1", "o": unit.encode()}
            entry = await redis.xadd("runner:units", fields)

            async def leads() -> bool:
                return bool(await cast(Any, redis.hget("runner:writer", "answered")) == entry)

            _: bool = await wait_until(leads, timeout_s=ENOUGH_S, description="it writes")
            process.terminate()
            status, output = said(process)
            assert status == 0, output
            assert "resigns" in output
            assert await redis.get("runner:writer:leader") is None
    finally:
        process.kill()


@pytest.mark.lasting_keys("runner:writer")
async def test_adopt_gives_both_stores_one_identity(
    redis_url: str, database_url: str, tmp_path: Path
) -> None:
    words = ("writer", "--adopt")
    status, output = said(command(tmp_path, *words, REDIS_URL=redis_url, DATABASE_URL=database_url))
    assert status == 0, output
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        identity = await redis.hget("runner:writer", "identity")
    assert identity in output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("writer",), "database_url is not set: nothing to write to"),
        (("writer", "settings.WorkerSetting"), "did you mean 'WorkerSettings'"),
        (("writer", "setings.WorkerSettings"), "there is no module 'setings'"),
        (("writer", "WorkerSettings"), "must name a class, as in settings.WorkerSettings"),
        (("writer", "settings.noop"), "must be a subclass of runner.WorkerSettings"),
    ],
)
def test_a_mistake_is_answered_by_one_line(
    words: tuple[str, ...], text: str, redis_url: str, tmp_path: Path
) -> None:
    status, output = said(command(tmp_path, *words, REDIS_URL=redis_url))
    assert status == 1
    assert text in output
    assert "Traceback" not in output


def test_help_names_the_commands(tmp_path: Path) -> None:
    status, output = said(command(tmp_path, "--help"))
    assert status == 0
    assert "writer" in output
    assert "dev" in output


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_dev_leaves_no_process_however_it_ends(
    ending: signal.Signals, tmp_path: Path
) -> None:
    mark = {"RUNNER_DEV_TEST": str(tmp_path)}
    process = command(tmp_path, "dev", "--data", str(tmp_path / "data"), **mark)

    def alive() -> list[int]:
        return [pid for pid in marked(mark) if pid != process.pid]

    def worker_runs() -> bool:
        return any(b"arq" in command_of(pid).split(b"\0") for pid in alive())

    try:
        await wait_until(worker_runs, timeout_s=30, description="the worker runs")
        process.send_signal(ending)
        await wait_until(
            lambda: process.poll() is not None, timeout_s=30, description="runner dev ended"
        )
        await wait_until(lambda: not alive(), timeout_s=30, description="nothing is left")
    finally:
        process.kill()
        process.communicate(timeout=ENOUGH_S)


def marked(mark: dict[str, str]) -> list[int]:
    """Return the processes that carry a variable in their environment."""
    ((name, value),) = mark.items()
    wanted = f"{name}={value}".encode()
    found = []
    for folder in PROC.glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # it ended, or is not ours to read
    return found


def command_of(pid: int) -> bytes:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""
