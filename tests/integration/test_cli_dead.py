"""The commands ``runner dead``, ``runner jobs`` and ``runner purge``, against a real Redis."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import runner
from runner import Context, RetryPolicy, keys, task
from runner.cli import dead as dead_module
from runner.cli import jobs as jobs_module
from runner.cli import main
from runner.cli.tables import escaped, table
from tests.engine import drain

if TYPE_CHECKING:
    from pathlib import Path

QUEUE = "orders"
SETTINGS = """\
import runner

@runner.task
async def place_order(ctx, order_id: int, *, tenant: str = "acme"): ...

class WorkerSettings(runner.WorkerSettings):
    functions = [place_order]
    redis_settings = runner.RedisSettings.from_dsn("{url}")
    queue_name = "orders"
"""


@task(retries=1, backoff=RetryPolicy(base=0, cap=0))
async def place_order(_ctx: Context, order_id: int, *, tenant: str = "acme") -> None:
    raise ConnectionError(f"order {order_id} of {tenant}: \x1b[31mclosed")


class Command:
    def __init__(self, path: str) -> None:
        self.path = path

    def run(self, *words: str) -> Any:
        group, *rest = words
        asked = [group, "--settings", self.path, *rest]
        return CliRunner().invoke(main, asked)

    def __call__(self, *words: str) -> str:
        """Run a command that succeeds; return what it said."""
        outcome = self.run(*words)
        assert outcome.exit_code == 0, outcome.output
        return str(outcome.output)

    def json(self, *words: str) -> Any:
        outcome = self.run(*words, "--json")
        assert outcome.exit_code == 0, outcome.output
        return json.loads(outcome.stdout)

    def error(self, *words: str) -> str:
        """Run a command that fails; return what it said."""
        outcome = self.run(*words)
        assert outcome.exit_code in (1, 2), outcome.output
        assert isinstance(outcome.exception, SystemExit)
        return str(outcome.output)


@pytest.fixture
def command(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    module = "dead_settings_" + redis_url.rpartition("/")[2]  # each test imports its own
    (tmp_path / f"{module}.py").write_text(SETTINGS.format(url=redis_url), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Command(f"{module}.WorkerSettings")


def put(redis_url: str, *order_ids: int, delay: float | None = None) -> None:
    async def work() -> None:
        async with runner.connect(redis_url, queue=QUEUE) as client:
            for order_id in order_ids:
                named = place_order.options(key=f"order-{order_id}", delay=delay)
                await client.enqueue(named, order_id, tenant="b" if order_id % 2 else "a")

    asyncio.run(work())


def kill(redis_url: str, *order_ids: int) -> None:
    put(redis_url, *order_ids)
    asyncio.run(_drain(redis_url))


async def _drain(redis_url: str) -> None:
    await drain(redis_url, [place_order], queue_name=QUEUE)


def listed(command: Command, group: str, *words: str) -> list[str]:
    found = command.json(group, "list", *words)["letters" if group == "dead" else "jobs"]
    return sorted(one["job_id"] for one in found)


def test_letters_go_through_their_life_by_commands(command: Command, redis_url: str) -> None:
    kill(redis_url, 1, 2, 3, 4)
    assert listed(command, "dead") == [f"order-{n}" for n in (1, 2, 3, 4)]
    assert listed(command, "dead", "--arg", "order_id=3") == ["order-3"]
    assert listed(command, "dead", "--task", "place_order", "--arg", "tenant=a") == [
        "order-2",
        "order-4",
    ]
    assert listed(command, "dead", "--error", "ConnectionError", "--since", "1h", "--text", "4")
    assert listed(command, "dead", "--until", "1h") == []
    shown = command.json("dead", "show", "order-1")
    assert (shown["args"], shown["attempt"], len(shown["errors"])) == ([1], 2, 1)
    assert command("dead", "requeue", "--arg", "tenant=a", "--task", "place_order") == (
        "requeued: 2\n"
    )
    assert command.json("dead", "requeue", "order-1", "--new-args", "[7]") == {
        "requeued": 1,
        "gone": 0,
        "refused": {},
    }
    assert command("dead", "purge", "--all", "--yes") == "purged: 1\n"
    assert command.json("dead", "list") == {"letters": [], "after": "", "count": 0}
    assert command.json("jobs", "show", "order-1")["args"] == [7]


def test_pages_follow_each_other(command: Command, redis_url: str) -> None:
    kill(redis_url, 1, 2, 3)
    first = command.json("dead", "list", "--limit", "2")
    second = command.json("dead", "list", "--limit", "2", "--after", first["after"])
    ids = [letter["job_id"] for page in (first, second) for letter in page["letters"]]
    assert sorted(ids) == ["order-1", "order-2", "order-3"]
    outcome = command.run("dead", "list", "--limit", "2")
    assert f'more: --after "{first["after"]}"' in outcome.output
    assert "2 shown, 3 in all" in outcome.output


def test_tables_are_for_people_and_escape_what_jobs_say(command: Command, redis_url: str) -> None:
    kill(redis_url, 1)
    said = command("dead", "list")
    assert said.splitlines()[0].split("  ")[0] == dead_module.HEADS[0]
    assert "ConnectionError: order 1 of b: \\x1b[31mclosed" in said
    shown = command("dead", "show", "order-1")
    assert "attempt 1, retried" in shown
    assert "\x1b" not in said + shown
    put(redis_url, 5)
    heads, row, *_ = command("jobs", "list").splitlines()
    assert heads.startswith("JOB")
    assert row.split()[:4] == ["order-5", "place_order", "queued", "1"]
    assert "tenant='b'" in row
    assert "place_order" in command("jobs", "show", "order-5")
    assert len(jobs_module.HEADS) == 7


def test_nothing_is_destroyed_without_a_yes(command: Command, redis_url: str) -> None:
    kill(redis_url, 1)
    put(redis_url, 2)
    for words in (
        ("dead", "purge", "--all"),
        ("jobs", "cancel", "--all"),
        ("purge", QUEUE),
    ):
        assert "Say --yes" in command.error(*words)
    assert (listed(command, "dead"), listed(command, "jobs")) == (["order-1"], ["order-2"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dead", "requeue"), "say which letters"),
        (("dead", "purge", "--yes"), "say which letters"),
        (("dead", "requeue", "x", "--all"), "say which letters"),
        (("dead", "requeue", "x", "--new-args", "{"), "--new-args is no JSON"),
        (("dead", "requeue", "x", "--new-args", "{}"), "--new-args must be an array"),
        (("dead", "requeue", "--all", "--new-kwargs", "[]"), "--new-kwargs must be an object"),
        (("dead", "show", "nobody"), "has no dead letter of job 'nobody'"),
        (("dead", "requeue", "nobody"), "has no dead letter of job 'nobody'"),
        (("dead", "list", "--arg", "x"), "must be name=value"),
        (("dead", "list", "--since", "soon"), "'soon' is no time"),
        (("dead", "list", "--after", "3"), "not the `after` of a page"),
        (("dead", "list", "--outcome", "succeeded"), "is not one of"),
        (("jobs", "cancel", "--yes"), "say which jobs"),
        (("jobs", "retry"), "say which jobs"),
        (("jobs", "show", "nobody"), "has no job 'nobody'"),
        (("jobs", "list", "--older", "old"), "no length of time"),
        (("jobs", "list", "--older", "99999999999999d"), "no length of time"),
        (("jobs", "retry", "--newer", "1" + "0" * 400 + "d"), "no length of time"),
        (("jobs", "enqueue", "place_order", "--delay", "99999d"), "fifty years"),
        (("jobs", "enqueue", "place_order", "--wait", "99999999999d"), "no length of time"),
        (("jobs", "enqueue", "place_order", "--args", "[" * 3_000), "--args is no JSON"),
        (
            ("jobs", "enqueue", "other", "--undeclared", "--kwargs", '{"_job_id": 1}'),
            "begin with _",
        ),
        (("jobs", "list", "--after", "nan 00"), "not the `after` of a page"),
        (("dead", "list", "--after", "nan 00"), "not the `after` of a page"),
        (("dead", "list", "--since", "9999999d"), "is no time"),
        (("dead", "requeue", "--all", "--delay", "99999999999d"), "no length of time"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    command: Command, words: tuple[str, ...], said: str
) -> None:
    assert said in command.error(*words)


@pytest.mark.parametrize("arg", ["²=1", "a=" + "[" * 3_000, "9" * 5_000 + "=1"])
def test_any_text_may_be_searched_for(command: Command, redis_url: str, arg: str) -> None:
    put(redis_url, 1)
    assert command.json("jobs", "list", "--arg", arg)["jobs"] == []


def test_new_arguments_that_do_not_fit_are_refused(command: Command, redis_url: str) -> None:
    kill(redis_url, 1)
    assert "takes int" in command.error("dead", "requeue", "order-1", "--new-args", '["x"]')
    assert "takes int" in command.error(
        "dead", "requeue", "--task", "place_order", "--new-args", '["x"]'
    )
    assert listed(command, "dead") == ["order-1"]


def test_letters_that_stay_end_the_command_with_an_error(command: Command, redis_url: str) -> None:
    kill(redis_url, 1, 2)
    asyncio.run(_forget(redis_url))
    put(redis_url, 1)
    said = command.error("dead", "requeue", "--all")
    assert "requeued: 1" in said
    assert "order-1: job 'order-1' was not requeued: a job of this id is in the queue" in said


async def _forget(redis_url: str) -> None:
    async with runner.connect(redis_url) as client:
        await client.delete(keys.result("order-1"))


def test_jobs_are_cancelled_and_hurried_by_commands(command: Command, redis_url: str) -> None:
    put(redis_url, 1, 2)
    put(redis_url, 3, 4, 5, delay=3600)
    assert listed(command, "jobs", "--state", "deferred") == ["order-3", "order-4", "order-5"]
    assert listed(command, "jobs", "--newer", "90", "--arg", "0=4") == ["order-4"]
    assert listed(command, "jobs", "--older", "1h") == []
    assert command("jobs", "retry", "order-3") == "due now: 1\n"
    assert command.json("jobs", "retry", "--state", "deferred", "--arg", "tenant=a") == {"moved": 1}
    assert listed(command, "jobs", "--state", "deferred") == ["order-5"]
    assert command.json("jobs", "cancel", "order-1", "nobody", "--yes") == {
        "cancelled": 1,
        "running": 0,
        "gone": 1,
    }
    assert command("jobs", "cancel", "--state", "deferred", "--yes") == "cancelled: 1\n"
    assert command.json("purge", QUEUE, "--yes") == {"purged": 3, "running": 0, "gone": 0}
    assert listed(command, "jobs") == []


def test_another_queue_is_another_place(command: Command, redis_url: str) -> None:
    kill(redis_url, 1)
    outcome = CliRunner().invoke(
        main, ["dead", "--settings", command.path, "--queue", "other", "list", "--json"]
    )
    assert json.loads(outcome.stdout)["letters"] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain", "plain"), ("a\tb\n", "a\\tb\\n"), ("\x1b[0m", "\\x1b[0m"), ("é世", "é世"), ("", "")],
)
def test_text_does_nothing_to_a_terminal(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_table_has_columns_of_one_width() -> None:
    assert list(table(["A", "LONGER"], [["xyz", "p"], ["", "qq"]])) == [
        "A    LONGER",
        "xyz  p",
        "     qq",
    ]
