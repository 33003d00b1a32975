"""The commands ``runner top``, ``workers``, ``queues`` and ``health``, against a real worker."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import runner
from runner import Part, task
from runner.cli import main
from tests.engine import serving
from tests.support import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from runner import Context

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
        assert "1 workers" in shown
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
