"""The command ``runner cron``, in this process, against a real Redis."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import redis as sync_redis
from click.testing import CliRunner

from runner.cli import main
from runner.cli.cron import HEADS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.lasting_keys("runner:schedules:*", "runner:schedule:*")

SETTINGS = """\
import runner

@runner.task
async def daily_report(ctx, region: str = "north"): ...

class WorkerSettings(runner.WorkerSettings):
    functions = [daily_report]
    redis_settings = runner.RedisSettings.from_dsn("{url}")
    queue_name = "reports"
"""


class Cron:
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *words: str) -> str:
        """Run a command that succeeds; return what it said."""
        outcome = CliRunner().invoke(main, ["cron", "--settings", self.path, *words])
        assert outcome.exit_code == 0, outcome.output
        return outcome.output

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))

    def error(self, *words: str) -> str:
        """Run a command that fails; return its one line."""
        outcome = CliRunner().invoke(main, ["cron", "--settings", self.path, *words])
        assert outcome.exit_code == 1, outcome.output
        assert "Traceback" not in outcome.output
        return outcome.output


@pytest.fixture
def cron(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cron:
    module = "cron_settings_" + redis_url.rpartition("/")[2]  # each test imports its own
    (tmp_path / f"{module}.py").write_text(SETTINGS.format(url=redis_url), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Cron(f"{module}.WorkerSettings")


NIGHTLY = ("nightly", "daily_report", "0 1 * * *")


def test_schedule_goes_through_its_life_by_commands(cron: Cron, redis_url: str) -> None:
    zone, args = ("--timezone", "Asia/Ho_Chi_Minh"), ("--args", '["south"]')
    assert cron("add", *NIGHTLY, *zone, *args).startswith("added: nightly, next at ")
    (listed,) = cron.json("list")
    assert listed["when"] == "0 1 * * *"
    assert listed["timezone"] == "Asia/Ho_Chi_Minh"
    assert (listed["args"], listed["state"], listed["source"]) == (["south"], "on", "api")
    due = datetime.fromtimestamp(listed["next_due_ms"] / 1000, UTC)
    assert (due.hour, due.minute, due.second) == (18, 0, 0)
    assert (listed["last_due_ms"], listed["jitter_s"]) == (0, 0)
    assert cron("pause", "nightly") == "paused: nightly\n"
    assert cron.json("list")[0]["state"] == "paused"
    assert cron("resume", "nightly").startswith("resumed: nightly, next at ")
    queued = cron.json("run", "nightly")["job_id"]
    with sync_redis.Redis.from_url(redis_url) as redis:
        assert redis.zrange("reports", 0, -1) == [queued.encode()]
    changed = cron.json("change", "nightly", "daily_report", "--every", "0.5", "--overlap", "skip")
    assert (changed["when"], changed["overlap"], changed["runs"]) == ("every 0.5 s", "skip", 1)
    assert cron("remove", "nightly") == "removed: nightly\n"
    assert cron.json("list") == []


def test_list_for_people_is_a_table(cron: Cron) -> None:
    cron("add", *NIGHTLY)
    cron("add", "own", "daily_report", "--perpetual", "--otherwise", "60")
    heads, *rows = cron("list").splitlines()
    assert heads.split() == list(HEADS)
    assert {row.split()[0] for row in rows} == {"nightly", "own"}
    assert len({row.index("daily_report") for row in rows}) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("x", "daily_reprot", "0 1 * * *"), "no worker has a task 'daily_reprot'; did you mean"),
        (("x", "daily_report", "0 1 * *"), "wrong number of fields"),
        (("x", "daily_report"), "give one of EXPRESSION, --every and --perpetual"),
        (("x", "daily_report", "0 1 * * *", "--every", "5"), "give one of"),
        (("x", "daily_report", "--every", "5", "--otherwise", "5"), "goes with --perpetual"),
        (("x", "daily_report", "--every", "0.05"), "0.1 s at least"),
        (("x", "daily_report", "--every", "5", "--args", "{}"), "--args must be an array"),
        (("x", "daily_report", "--every", "5", "--kwargs", "{"), "--kwargs is no JSON"),
        (("x", "daily_report", "0 1 * * *", "--timezone", "Mars"), "there is no time zone 'Mars'"),
        (("x", "daily_report", "--every", "5", "--expires", "nan"), "expires must be a number"),
        (("x", "daily_report", "--every", "5", "--grace", "1e300"), "grace must be a number"),
        (NIGHTLY, "was added at run time"),
    ],
)
def test_what_cannot_be_added_is_told_in_one_line(
    cron: Cron, words: tuple[str, ...], message: str
) -> None:
    cron("add", *NIGHTLY)
    assert message in cron.error("add", *words)


def test_name_that_nobody_has_is_told_in_one_line(cron: Cron) -> None:
    cron("add", *NIGHTLY)
    for word in ("pause", "resume", "run", "remove"):
        assert "there is no schedule 'nightli'; did you mean" in cron.error(word, "nightli")
