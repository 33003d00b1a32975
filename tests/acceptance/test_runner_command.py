"""The command ``runner``, as a person types it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
from redis.asyncio import Redis

import runner
from runner.writer import UnitBuilder
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
        (("top", "--settings", "nowhere.settings.WorkerSettings"), "there is no module 'nowhere"),
        (("top", "--settings", "..WorkerSettings"), "must name a class"),
        (("top", "--settings", "slip.Settings"), "(slip.py, line 1)"),
        (("top", "--settings", "needs.Settings"), "environment variable NOBODY_SETS_IT is not set"),
        (("top", "--settings", "needs.Settings"), "(needs.py, line 2)"),
        (("top", "--settings", "lacks.Settings"), "No module named 'not_installed'"),
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
    (tmp_path / "slip.py").write_text("class Settings(:\n", "utf-8")
    (tmp_path / "needs.py").write_text("import os\nURL = os.environ['NOBODY_SETS_IT']\n", "utf-8")
    (tmp_path / "lacks.py").write_text("import not_installed\n", "utf-8")
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


@asynccontextmanager
async def developing(folder: Path, settings: str, *words: str) -> AsyncIterator[dict[str, str]]:
    """Run ``runner dev`` on settings of one's own; give what it says of its servers."""
    (folder / "tasks.py").write_text(settings, "utf-8")
    inherited = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "DATABASE_URL")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "runner.cli", "dev", "tasks.WorkerSettings", *words),
        cwd=folder,
        env=inherited,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    facts: dict[str, str] = {}
    heard: list[str] = []
    try:
        while "worker" not in facts:
            line = (await asyncio.wait_for(process.stdout.readline(), ENOUGH_S)).decode()
            heard.append(line)
            assert line, heard
            if found := re.match(r"(REDIS_URL|DATABASE_URL|dashboard|worker)(?:=|: )(\S+)", line):
                facts[found[1]] = found[2]
        reading = asyncio.create_task(process.stdout.read(), name="the rest of what it says")
        yield facts
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), ENOUGH_S)
        facts["rest"] = (await reading).decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


OWN = """\
import os
import runner

@runner.task
async def version(ctx: runner.Context{parameters}) -> str:
    return {told!r}

class WorkerSettings(runner.WorkerSettings):
    functions = [version]
    redis_settings = runner.RedisSettings.from_dsn(os.environ["REDIS_URL"])
    database_url = os.environ["DATABASE_URL"]
"""


async def test_dev_watches_for_new_code_and_for_nothing_else(tmp_path: Path) -> None:
    settings = OWN.format(told="old", parameters="")
    async with developing(tmp_path, settings, "--watch") as facts:

        async def tells(word: str) -> bool:
            async with runner.connect(facts["REDIS_URL"]) as client:
                job = await client.enqueue("version")
                return bool(await job.result(timeout=ENOUGH_S) == word)

        assert await tells("old")
        async with httpx.AsyncClient(base_url=facts["dashboard"], timeout=ENOUGH_S) as http:

            async def shows(word: str) -> bool:
                try:
                    page = await http.get("/task?name=version")
                except httpx.TransportError:
                    return False  # it starts anew
                return word in page.text

            await wait_until(lambda: shows("version()"), description="page", timeout_s=ENOUGH_S)
            text = OWN.format(told="new", parameters=", word: str = 'hat'")
            (tmp_path / "tasks.py").write_text(text, "utf-8")
            await wait_until(lambda: tells("new"), description="new code", timeout_s=ENOUGH_S)
            await wait_until(lambda: shows("word"), description="new page", timeout_s=ENOUGH_S)
    # The servers keep their data in a folder here, which changes all the time.
    assert facts["rest"].count("tasks.py changed: all workers are replaced") == 1, facts["rest"]
    assert facts["rest"].count(" is the writer") <= 2, facts["rest"]


async def test_dev_starts_nothing_for_a_module_that_is_not_there(tmp_path: Path) -> None:
    status, output = said(command(tmp_path, "dev", "setings.WorkerSettings"))
    assert status == 1
    assert "there is no module 'setings'" in output
    assert not (tmp_path / ".runner").exists()


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
