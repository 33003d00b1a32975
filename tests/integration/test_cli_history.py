"""The command ``runner history``, against rows that a real worker has left."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import runner
from runner import Context, JobLog, task
from runner.cli import main
from runner.cli.tables import moment
from runner.errors import RemoteError
from tests.engine import serving
from tests.integration.test_job_log import logged
from tests.integration.test_writer_support import LASTING

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.lasting_keys(*LASTING, "runner:*")

SETTINGS = """\
import runner

class WorkerSettings(runner.WorkerSettings):
    redis_settings = runner.RedisSettings.from_dsn("{redis_url}")
    database_url = {database_url!r}
"""


@task
async def pay(_ctx: Context, order: int) -> None:
    if order == 2:
        raise ValueError("no address\x1b[31m")


async def run(*words: str) -> Any:
    """Run a command in a thread: it has a loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, main, ["history", *words])


def settings(folder: Path, name: str, redis_url: str, database_url: str | None) -> str:
    text = SETTINGS.format(redis_url=redis_url, database_url=database_url)
    (folder / f"{name}.py").write_text(text, "utf-8")
    return f"{name}.WorkerSettings"


async def test_the_command_searches_and_shows(
    redis_url: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    async with (
        serving(redis_url, [pay], database_url=database_url, job_log=True),
        runner.connect(redis_url) as client,
        JobLog(database_url) as log,
    ):
        good, bad = await client.enqueue(pay, 1), await client.enqueue(pay, 2)
        await good.result(timeout=20)
        with pytest.raises(RemoteError):
            await bad.result(timeout=20)
        await logged(log, 2)

    at = ("--settings", settings(tmp_path, "history_shop", redis_url, database_url))
    everything = await run(*at, "search", "--json")
    assert {job["job_id"] for job in json.loads(everything.output)} == {good.job_id, bad.job_id}
    given = ("--task", "pay", "--outcome", "failed", "--error", "ADDRESS", "--arg", "order=2")
    table = await run(*at, "search", *given, "--since", "2h", "--queue", "arq:queue")
    assert table.exit_code == 0, table.output
    assert bad.job_id in table.output
    assert "ValueError: no address\\x1b[31m" in table.output
    assert good.job_id not in table.output
    assert "1 shown" in table.output
    nothing = await run(*at, "search", "--until", "2h", "--json")
    assert json.loads(nothing.output) == []
    limited = await run(*at, "search", "--limit", "1")
    assert "1 shown, perhaps more" in limited.output

    shown = await run(*at, "show", bad.job_id)
    assert "no address\\x1b[31m" in shown.output
    assert "'order': 2" in shown.output
    as_json = json.loads((await run(*at, "show", good.job_id, "--json")).output)
    assert [(row["outcome"], row["arguments"]) for row in as_json] == [("succeeded", {"order": 1})]
    (row,) = as_json
    assert row["enqueued_ms"] <= row["started_ms"] <= row["ended_ms"]
    assert f"ended  {moment(row['ended_ms'])} UTC" in (await run(*at, "show", good.job_id)).output
    missing = await run(*at, "show", "nobody")
    assert missing.exit_code == 1
    assert "no job 'nobody'" in missing.output


async def test_without_a_database_the_command_says_so(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    at = ("--settings", settings(tmp_path, "history_nowhere", redis_url, None))
    said = await run(*at, "search")
    assert said.exit_code == 1
    assert "database_url is not set" in said.output
