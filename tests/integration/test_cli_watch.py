"""The commands ``runner top``, ``workers``, ``queues`` and ``health``, against a real worker."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import runner
from runner import Part, task
from runner.cli import main
from tests.engine import serving
from tests.support import start_python, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runner import Context
    from tests.servers import ChaosServers

ENOUGH_S = 60
SETTINGS = """\
import runner

@runner.task
async def works(ctx): ...

class WorkerSettings(runner.WorkerSettings):
    functions = [works]
    redis_settings = runner.RedisSettings.from_dsn("{url}")
"""


@task
async def works(_ctx: Context) -> None: ...


async def run(*words: str) -> Any:
    """Run a command in a thread: it has a loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, main, list(words))


@pytest.fixture
def settings(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"watched_{tmp_path.name}".replace("-", "_").replace("[", "_").replace("]", "_")
    (tmp_path / f"{name}.py").write_text(SETTINGS.format(url=redis_url))
    monkeypatch.syspath_prepend(tmp_path)
    return f"{name}.WorkerSettings"


async def test_the_commands_show_what_the_fleet_does(redis_url: str, settings: str) -> None:
    at = ("--settings", settings)
    async with (
        serving(redis_url, [works], monitor=True, health_port=0, max_jobs=9) as worker,
        runner.connect(redis_url) as client,
    ):
        await client.enqueue(works)

        async def counted() -> Any:
            return await client.history.finished() and await client.workers.list()

        await wait_until(counted, description="the job and the worker are known")

        said = json.loads((await run("workers", *at, "--json")).stdout)
        assert [(info["name"], info["concurrency"]) for info in said] == [(worker.name, 9)]
        assert worker.name in (await run("workers", *at, "list")).stdout
        (queue,) = json.loads((await run("queues", *at, "--json")).stdout)
        assert (queue["queue"], queue["last"]["outcomes"]) == ("arq:queue", {"succeeded": 1})
        assert "arq:queue" in (await run("queues", *at)).stdout
        shown = (await run("top", *at, "--once")).stdout
        assert "1 worker, " in shown
        assert "works" in shown
        assert json.loads((await run("top", *at, "--once", "--json")).stdout)["workers"]

        answered = json.loads((await run("workers", *at, "ping", "--json")).stdout)
        assert answered == {worker.name: "pong, running"}
        assert (await run("workers", *at, "drain")).exit_code == 2, "nothing said is never all"
        told = await run("workers", *at, "concurrency", "4", worker.name)
        assert told.stdout == f"{worker.name}  concurrency 4, was 9\n"

        assert worker.monitor is not None
        assert worker.monitor.probes is not None
        url = f"http://127.0.0.1:{worker.monitor.probes.port}"
        assert (await run("health", "--url", url)).exit_code == 0
        assert (await run("workers", *at, "drain", "--all")).exit_code == 0
        unwell = await run("health", "--url", url, "--json")
        assert unwell.exit_code == 1
        assert json.loads(unwell.stdout) == {"ok": False, "said": "draining"}
        assert (await run("health", "--url", url, "--live")).exit_code == 0
        assert (await run("workers", *at, "resume", worker.name)).exit_code == 0
    assert (await run("health", "--url", url)).exit_code == 1, "nobody answers any more"


def drawn(command: list[str], *, until: Callable[[str], bool], size: tuple[int, int]) -> str:
    """Run a command on a terminal until it has drawn something; Ctrl-C ends it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=dict(os.environ),  # not what readline has written behind Python's back
    )
    os.close(theirs)
    text = ""
    try:
        while not until(text):
            ready, _, _ = select.select([ours], [], [], ENOUGH_S)
            assert ready, text
            text += os.read(ours, 65_536).decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(ENOUGH_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return text


@pytest.mark.lasting_keys("runner:fleet*")
async def test_top_fits_its_terminal_and_ends_with_ctrl_c(
    redis_url: str, settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    async with serving(redis_url, [works], monitor=True):
        async with runner.connect(redis_url) as client:
            await wait_until(client.workers.list, description="the worker is listed")
        command = [sys.executable, "-m", "runner.cli", "top", "--settings", settings]
        for size in ((24, 80), (6, 40)):
            text = await asyncio.to_thread(
                drawn,
                [*command, "--every", "0.2"],
                until=lambda text: text.count("\x1b[H") > 2,
                size=size,
            )
            _, first, second, *_ = text.split("\x1b[H")
            for screen in (first, second):
                plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", screen).replace("\r", "")
                assert "1 worker, " in plain
                assert len(plain.splitlines()) < size[0], plain
                assert screen.endswith("\x1b[J")
                widths = [len(line) for line in plain.splitlines()]
                assert widths[0] <= size[1], plain
                assert max(widths) <= 80, plain


async def test_top_goes_on_when_redis_comes_back(
    chaos_servers: ChaosServers, tmp_path: Path
) -> None:
    text = SETTINGS.format(url=chaos_servers.redis_url)
    (tmp_path / "back.py").write_text(text, "utf-8")
    process = await start_python(
        *(tmp_path, dict(os.environ), "-m", "runner.cli", "top"),
        *("--settings", "back.WorkerSettings", "--json", "--every", "0.2"),
    )
    output: Any = process.stdout

    async def says(word: str) -> None:
        while word not in json.loads(await asyncio.wait_for(output.readline(), ENOUGH_S)):
            pass

    try:
        await says("queues")
        await chaos_servers.stop_redis()
        await says("error")
        await chaos_servers.start_redis()
        await says("queues")
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), ENOUGH_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("every", ["nan", "0", "inf", "-1", "0.1"])
async def test_top_does_not_draw_without_a_pause(settings: str, every: str) -> None:
    said = await run("top", "--settings", settings, "--every", every)
    assert said.exit_code == 2
    assert isinstance(said.exception, SystemExit)


@pytest.mark.parametrize(
    "url",
    ["http://[bad", "http://127.0.0.1:nope", "http://127.0.0.1:1/a b", "http://%00"],
)
async def test_health_at_no_address_is_not_well(url: str) -> None:
    said = await run("health", "--url", url)
    assert said.exit_code == 1
    assert isinstance(said.exception, SystemExit)
    assert "nobody answers at" in said.output


async def test_health_of_what_speaks_no_http_is_not_well() -> None:
    async def talk(_reader: Any, writer: Any) -> None:
        writer.write(b"220 mail.example.com ready\r\n")
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        said = await run("health", "--url", f"http://127.0.0.1:{port}")
    assert said.exit_code == 1
    assert isinstance(said.exception, SystemExit)


class Shelf(Part):
    commands = ("count",)

    def count(self, text: str) -> str:
        return f"3 of {text}"


async def test_a_part_is_told_by_the_command_line(redis_url: str, settings: str) -> None:
    at = ("--settings", settings)
    async with (
        serving(redis_url, [works], monitor=True, parts=[Shelf()]) as worker,
        runner.connect(redis_url) as client,
    ):
        await wait_until(client.workers.list, description="the worker is seen")
        told = await run("workers", *at, "tell", "count", "tea")
        assert (told.stdout, told.exit_code) == (f"{worker.name}  3 of tea\n", 0)
        unknown = await run("workers", *at, "tell", "cuont", "--name", worker.name, "--json")
        (said,) = json.loads(unknown.stdout).values()
        assert said == "refused: no part has a command 'cuont'; did you mean 'count'?"
        own = await run("workers", *at, "tell", "drain")
        assert own.exit_code != 0


async def test_health_needs_to_know_where(settings: str) -> None:
    said = await run("health", "--settings", settings)
    assert said.exit_code == 1
    assert "health_port is not set" in said.output
