"""Sentry's SDK as it comes, with all that it switches on by itself, leaves workers as they are."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

import pytest

import runner
from tests.support import start_python

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.timeout(120), pytest.mark.lasting_keys("runner:*")]

SETTINGS = """
import json, os, sys
import sentry_sdk
from sentry_sdk.transport import Transport
import runner
from runner import Context, Depends, RedisSettings, Sentry, task

class Sent(Transport):
    def capture_envelope(self, envelope):
        event = envelope.get_event()
        if event is not None:
            error = event["exception"]["values"][-1]["type"] if "exception" in event else "a line"
            said = [event.get("tags", {}).get("job.task", ""), event["level"], error]
            print(json.dumps(said), flush=True)

sentry_sdk.init(dsn="http://key@127.0.0.1:1/1", transport=Sent)
assert "arq" in sentry_sdk.get_client().integrations

@task(timeout=0.2)
async def overrun(ctx: Context) -> None:
    import asyncio
    await asyncio.sleep(60)

@task(retries=1, backoff=runner.RetryPolicy(base=0.01))
async def again(ctx: Context) -> None:
    raise KeyError("again")

@task
def in_a_thread(ctx: Context) -> None:
    raise OSError("in a thread")

@task
async def provided(ctx: Context, number: int = Depends(lambda: 7)) -> int:
    raise LookupError(str(number))

class WorkerSettings(runner.WorkerSettings):
    functions = (overrun, again, in_a_thread, provided)
    redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])
    middleware = (Sentry(),) if "REPORTS" in os.environ else ()
    burst = True
"""

TASKS = ("overrun", "again", "in_a_thread", "provided", "unknown")


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        (
            True,
            [
                ["again", "error", "KeyError"],
                ["in_a_thread", "error", "OSError"],
                ["overrun", "error", "TimeoutError"],
                ["provided", "error", "LookupError"],
                ["unknown", "error", "TaskNotFound"],
            ],
        ),
        (False, []),
    ],
    ids=["with our middleware", "without it"],
)
async def test_each_failure_is_sent_once(
    redis_url: str, tmp_path: Path, *, reports: bool, expected: list[list[str]]
) -> None:
    (tmp_path / "tasks.py").write_text(SETTINGS, "utf-8")
    environment = {
        **{name: value for name, value in os.environ.items() if "COVERAGE" not in name},
        "PYTHONPATH": str(tmp_path),
        "REDIS_URL": redis_url,
        **({"REPORTS": "1"} if reports else {}),
    }
    async with runner.connect(redis_url) as client:
        jobs = [await client.enqueue(name) for name in TASKS]
        worker = await start_python(tmp_path, environment, "-m", "arq", "tasks.WorkerSettings")
        said, _ = await asyncio.wait_for(worker.communicate(), 60)
        assert worker.returncode == 0
        assert sorted(json.loads(line) for line in said.splitlines()) == expected
        kinds = {"again": "KeyError", "in_a_thread": "OSError", "provided": "LookupError: 7"}
        for name, job in zip(TASKS, jobs, strict=True):
            with pytest.raises((runner.RunnerError, TimeoutError)) as raised:
                await job.result(timeout=5)
            assert kinds.get(name, "") in str(raised.value)
