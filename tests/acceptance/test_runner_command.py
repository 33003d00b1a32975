"""The command ``runner``, as a person types it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from tests.support import wait_until

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = """\
import os
import runner

@runner.task
async def noop(ctx): ...

class WorkerSettings(runner.WorkerSettings):
    functions = [noop]
    redis_settings = runner.RedisSettings.from_dsn(os.environ["REDIS_URL"])
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

            async def elected() -> bool:
                return await redis.hexists("runner:writer", "position")  # type: ignore[no-any-return]

            await wait_until(elected, timeout_s=30, description="the writer took office")
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
