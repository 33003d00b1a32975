"""The commands that show single jobs, flows, queues and the writer, on a real Redis."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

import runner
from runner import task
from runner.cli import main
from runner.cli.tables import moment
from tests.engine import serving
from tests.support import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from runner import Context, Job

SETTINGS = """\
import runner

@runner.task
async def adds(ctx: runner.Context, one: int, other: int) -> int: ...

@runner.task
async def breaks(ctx: runner.Context) -> None: ...

class WorkerSettings(runner.WorkerSettings):
    functions = [adds, breaks]
    redis_settings = runner.RedisSettings.from_dsn("{url}")
"""

logger = logging.getLogger("sums")


@task
async def adds(ctx: Context, one: int, other: int) -> int:
    logger.warning("adding\n%d and %d \x1b[31m", one, other)
    await ctx.progress(1, 2, "half")
    return one + other


@task
async def breaks(_ctx: Context) -> None:
    raise ValueError("as it should")


class Command:
    def __init__(self, path: str) -> None:
        self.path = path

    async def __call__(self, *words: str, status: int = 0) -> str:
        """Run a command in a thread, as it has a loop of its own; return what it printed."""
        spread = (words[0], "--settings", self.path, *words[1:])
        outcome = await asyncio.to_thread(CliRunner().invoke, main, list(spread))
        assert outcome.exit_code == status, outcome.output
        assert "Traceback" not in outcome.output
        return outcome.stdout if status == 0 else outcome.output

    async def json(self, *words: str, status: int = 0) -> Any:
        spread = (words[0], "--settings", self.path, *words[1:], "--json")
        outcome = await asyncio.to_thread(CliRunner().invoke, main, list(spread))
        assert outcome.exit_code == status, outcome.output
        return json.loads(outcome.stdout)


@pytest.fixture
def command(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    module = "complete_settings_" + redis_url.rpartition("/")[2]  # each test imports its own
    (tmp_path / f"{module}.py").write_text(SETTINGS.format(url=redis_url), "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return Command(f"{module}.WorkerSettings")


async def test_a_job_is_enqueued_by_name_and_its_result_printed(
    redis_url: str, command: Command
) -> None:
    async with serving(redis_url, [adds, breaks], monitor=True):
        words = ("jobs", "enqueue", "adds", "--args", "[2]", "--kwargs", '{"other": 3}')
        said = await command.json(*words, "--wait", "20")
        assert (said["is_new"], said["result"]) == (True, 5)
        failed = await command.json("jobs", "enqueue", "breaks", "--wait", "20", status=1)
        assert failed["error"].endswith("as it should")

        assert (await command("jobs", "enqueue", "adds", "--key", "one", status=1)).startswith(
            "Error: adds"
        ), "the declared parameters are checked"
        said = await command("jobs", "enqueue", "ads", status=1)
        assert "did you mean 'adds'" in said
        later = ("jobs", "enqueue", "adds", "--args", "[1, 2]", "--key", "one", "--delay", "1h")
        assert await command(*later) == "enqueued: one\n"
        assert await command(*later) == "there already: one\n"
        assert (await command.json("jobs", "show", "one"))["state"] == "deferred"
        assert (await command("jobs", "enqueue", "gone", "--undeclared")).startswith("enqueued: ")


async def test_a_job_that_has_ended_is_listed_and_shown_with_its_lines(
    redis_url: str, command: Command
) -> None:
    async with (
        serving(redis_url, [adds, breaks], monitor=True),
        runner.connect(redis_url) as client,
    ):
        added = await client.enqueue(adds, 1, 2)
        broken = await client.enqueue(breaks)
        await added.result(timeout=20)

        async def told() -> bool:
            lines = await client.job_log(added.job_id)
            return len(await client.history.finished()) == 2 and bool(lines)

        await wait_until(told, description="history and lines are there")
        found = await command.json("jobs", "finished")
        assert {job["job_id"] for job in found} == {added.job_id, broken.job_id}
        (only,) = await command.json("jobs", "finished", "--outcome", "failed")
        assert only["error"] == "ValueError: as it should"
        assert "as it should" in await command("jobs", "finished", "--task", "breaks")

        shown = await command.json("jobs", "show", added.job_id)
        assert (shown["state"], shown["result"]) == ("succeeded", 3)
        assert shown["progress"] == "1 of 2 half"
        assert (await command.json("jobs", "show", broken.job_id))["state"] == "dead letter"
        assert "dead letter" in await command("jobs", "show", broken.job_id)
        assert "has no job 'nobody'" in await command("jobs", "show", "nobody", status=1)

        lines = (await command("jobs", "logs", added.job_id)).splitlines()
        assert lines[0].endswith("WARNING  adding")
        assert lines[1] == "    1 and 2 \\x1b[31m"
        assert (await command.json("jobs", "logs", added.job_id))[0]["level"] == "WARNING"
        assert await command("jobs", "logs", "nobody") == ""


async def test_what_is_known_of_a_job_has_one_name_in_all_commands(
    redis_url: str, command: Command
) -> None:
    async with runner.connect(redis_url) as client:
        jobs: list[Job[Any]] = [await client.enqueue(breaks), await client.enqueue(adds, 1, 2)]
        (waiting, _) = (await command.json("jobs", "list"))["jobs"]
        assert {**waiting, "errors": []} == await command.json("jobs", "show", waiting["job_id"])
        assert min(waiting["due_ms"], waiting["enqueued_ms"]) > 0
        async with serving(redis_url, [adds, breaks], monitor=True):

            async def told() -> bool:
                return len(await client.history.finished()) == 2

            await wait_until(told, description="history is there")
        finished = {job["job_id"]: job for job in await command.json("jobs", "finished")}
        (letter,) = (await command.json("dead"))["letters"]
        by_letter, by_result = [await command.json("jobs", "show", j.job_id) for j in jobs]
    assert by_letter == {"state": "dead letter", **letter, "errors": []}
    same = ["task", "attempt", "worker", "enqueued_ms", "started_ms"]
    ended = finished[jobs[0].job_id]
    assert [letter[name] for name in same] == [ended[name] for name in same]
    assert f"{letter['error_type']}: {letter['error']}" == ended["error"]
    same.remove("worker")
    ended = finished[jobs[1].job_id]
    assert [by_result[name] for name in same] == [ended[name] for name in same]
    assert by_result["ended_ms"] >= by_result["started_ms"]
    assert (by_result["error_type"], by_result["error"]) == ("", "")
    said = await command("jobs", "show", jobs[1].job_id)
    assert f"started  {moment(by_result['started_ms'])} UTC" in said


async def test_a_queue_is_paused_shown_and_resumed(command: Command) -> None:
    assert await command("queues", "pause", "arq:queue") == "paused: arq:queue\n"
    (queue,) = await command.json("queues")
    assert queue["is_paused"] is True
    assert "paused" not in queue
    assert (await command("queues")).splitlines()[1].endswith("paused")
    assert await command("queues", "pause", "arq:queue") == "arq:queue was paused already\n"
    said = await command.json("queues", "resume", "arq:queue")
    assert said == [{"queue": "arq:queue", "is_paused": False, "changed": True}]


async def test_flows_are_listed_shown_drawn_and_run_again(redis_url: str, command: Command) -> None:
    async with serving(redis_url, [adds, breaks]), runner.connect(redis_url) as client:
        fine = await client.start(adds.call(1, 2))
        bad = await client.start(breaks.call())
        await fine.wait(20)
        await bad.wait(20)

        listed = await command.json("flows")
        assert [(flow["flow"], flow["state"]) for flow in listed] == [
            (bad.id, "failed"),
            (fine.id, "succeeded"),
        ]
        (only,) = await command.json("flows", "list", "--state", "failed")
        assert only["flow"] == bad.id
        assert fine.id in await command("flows", "list", "--limit", "2")

        shown = await command.json("flows", "show", bad.id)
        assert [node["state"] for node in shown["nodes"]] == ["failed"]
        assert "as it should" in await command("flows", "show", bad.id)
        assert (await command("flows", "draw", bad.id)).startswith("flowchart")
        assert (await command("flows", "draw", bad.id, "--as", "dot")).startswith("digraph")
        assert await command("flows", "retry", bad.id) == "nodes to run: 1\n"
        await bad.wait(20)
        assert (await command("flows", "cancel", fine.id, "--yes")).endswith("had ended already\n")
        assert "there is no flow 'none'" in await command("flows", "show", "none", status=1)


async def test_the_writer_is_shown_and_nobody_is_nobody(command: Command) -> None:
    async def invoke(*words: str) -> Any:
        words = ("writer", "status", "--settings", command.path, *words)
        return await asyncio.to_thread(CliRunner().invoke, main, list(words))

    said = await invoke("--json")
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["position"] == "0-0"
    assert "nobody" in (await invoke()).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_words(shell: str) -> None:
    said = CliRunner().invoke(main, ["completion", shell])
    assert said.exit_code == 0, said.output
    assert "_RUNNER_COMPLETE" in said.stdout
    words = {"COMP_WORDS": "runner que", "COMP_CWORD": "1", "_RUNNER_COMPLETE": "bash_complete"}
    said = CliRunner().invoke(main, [], env=words, prog_name="runner", standalone_mode=True)
    assert "queues" in said.output


def test_redis_that_is_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "redis://127.0.0.1:1"  # nobody listens there
    (tmp_path / "away_settings.py").write_text(SETTINGS.format(url=url), "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["queues", "--settings", "away_settings.WorkerSettings"]
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 1
    (line,) = said.output.splitlines()
    assert line.startswith("Error: Redis")


def commands(group: click.Command, *path: str) -> list[tuple[str, ...]]:
    """Return the words of every command."""
    if not isinstance(group, click.Group):
        return [path]
    found = [more for name, sub in group.commands.items() for more in commands(sub, *path, name)]
    return [path, *found] if group.invoke_without_command else found


@pytest.mark.parametrize("words", commands(main), ids=" ".join)
def test_every_command_helps_in_eighty_columns_and_knows_json(words: tuple[str, ...]) -> None:
    said = CliRunner().invoke(main, [*words, "--help"], terminal_width=80)
    assert said.exit_code == 0
    assert max(map(len, said.stdout.splitlines())) <= 80
    servers = {("worker",), ("dev",), ("dashboard",), ("writer", "run"), ("completion",)}
    if words not in servers:
        assert "--json" in said.stdout
