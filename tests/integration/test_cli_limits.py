"""The commands ``runner limits``, ``pause``, ``resume`` and ``paused``, against a real Redis."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from redis.asyncio import Redis

from runner import RateLimit, RunningLimit
from runner.cli import main
from runner.limits import Gate

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.lasting_keys("runner:limits", "runner:gated", "runner:paused*")

SETTINGS = """\
import runner

@runner.task
async def sends(ctx: runner.Context, tenant_id: int) -> None: ...

class WorkerSettings(runner.WorkerSettings):
    functions = [sends]
    redis_settings = runner.RedisSettings.from_dsn("{url}")
"""


class Command:
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *words: str, status: int = 0) -> str:
        """Run a command, and return all that it said."""
        return self._run(words, status).output

    def json(self, *words: str) -> Any:
        return json.loads(self._run((*words, "--json"), 0).stdout)

    def _run(self, words: tuple[str, ...], status: int) -> Result:
        settings = ("--settings", self.path)
        outcome = CliRunner().invoke(main, (words[0], *settings, *words[1:]))
        assert outcome.exit_code == status, outcome.output
        assert "Traceback" not in outcome.output
        return outcome


@pytest.fixture
def command(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    module = "limits_settings_" + redis_url.rpartition("/")[2]  # each test imports its own
    (tmp_path / f"{module}.py").write_text(SETTINGS.format(url=redis_url), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    async def declare() -> None:
        async with Redis.from_url(redis_url) as redis:
            mail, count = RateLimit("mail", "100/m"), RunningLimit("count.running", 2, "tenant_id")
            await Gate(lambda: redis, [("t", mail), ("t", count)]).declare(redis)

    asyncio.run(declare())
    return Command(f"{module}.WorkerSettings")


def test_limits_are_listed_set_shown_and_cleared(command: Command) -> None:
    heads, *rows = command("limits", "list").splitlines()
    assert heads.split() == ["LIMIT", "RULE", "DECLARED", "KEY", "USED", "PARKED", "RESERVED"]
    assert [row.split()[0] for row in rows] == ["count.running", "mail"]
    said = command("limits", "set", "mail", "--rate", "20/m", "--burst", "5")
    assert said == ("mail: 20/m burst 5, the code says 100/m; used 0, parked 0, reserved 0\n")
    assert command.json("limits", "show", "mail")["rule"] == "20/m burst 5"
    assert "USED" in command("limits", "show", "count.running")
    assert command("limits", "clear", "mail").startswith("mail: 100/m; used 0")


def test_a_task_without_limits_gets_one_and_loses_it(command: Command) -> None:
    info = command.json("limits", "set", "--task", "free", "--max-running", "3", "--key", "who")
    assert (info["limit"], info["rule"], info["key"]) == ("free.running", "3 at once", "who")
    assert command("limits", "clear", "free.running") == "free.running: no limit\n"
    assert len(command.json("limits", "list")) == 2


def test_what_cannot_be_is_one_line(command: Command) -> None:
    assert "did you mean 'mail'" in command("limits", "show", "mial", status=1)
    assert "a rate is a text" in command("limits", "set", "mail", "--rate", "much", status=1)
    assert "give either queue= or task=" in command("pause", status=1)
    words = ("limits", "set", "--task", "sends", "--max-running", "3", "--key", "tenant")
    assert "no parameter 'tenant'; did you mean 'tenant_id'" in command(*words, status=1)


def test_queues_and_tasks_are_paused_and_resumed(command: Command) -> None:
    assert command("pause", "--queue", "reports") == "paused: reports\n"
    assert command("pause", "--queue", "reports") == "reports was paused already\n"
    assert command("pause", "--task", "sends") == "paused: sends\n"
    assert command("resume", "--task", "sends") == "resumed: sends\n"
    note, paused = command("pause", "--task", "send").splitlines()
    assert note == f"note: {command.path} names no task 'send'; did you mean 'sends'?"
    assert paused == "paused: send"
    assert command("paused") == "queue reports\ntask send\n"
    assert command.json("paused") == {"queues": ["reports"], "tasks": ["send"]}
    assert command.json("pause", "--queue", "reports") == {
        "queue": "reports",
        "is_paused": True,
        "changed": False,
    }
    assert command("resume", "--queue", "reports") == "resumed: reports\n"
    assert command.json("resume", "--task", "send") == {
        "task": "send",
        "is_paused": False,
        "changed": True,
    }
    assert command("paused") == "nothing is paused\n"
