# /// script
# dependencies = ["huey==3.5.4", "redis==8.1.0", "hiredis==3.5.0"]
# [tool.bench]
# title = "huey"
# shows = ["huey", "redis", "hiredis"]
# worker = [
#     "huey_consumer", "tests.benchmarks.peers.huey.app", "--workers", "4", "--worker-type",
#     "thread", "--quiet",
# ]
# done = ["HLEN huey.results.bench"]
# guarantee = "at most once"
# note = """\
# four threads; results polled with its default back-off; blocking client, so nothing to \
# gather"""
# ///
"""huey."""

from __future__ import annotations

import time
from typing import Any

from huey import RedisHuey  # type: ignore[import-not-found]  # in an environment of its own

from tests.benchmarks import stage

stage.quiet()
# It stores None only when told to, and without that no job would leave a result.
app = RedisHuey("bench", url=stage.REDIS_URL, store_none=True)


def _noop() -> None:
    """Do nothing."""


def _nap() -> None:
    """Sleep for 10 ms."""
    time.sleep(stage.NAP_S)


def _stamp(sent_ns: int) -> None:
    """Note when it started."""
    stage.record_start(sent_ns)


TASKS = {
    name: app.task(name=name)(function)
    for name, function in (("noop", _noop), ("nap", _nap), ("stamp", _stamp))
}


def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    return TASKS[task](**arguments)


def result(job: Any) -> None:
    """Wait for a job's result."""
    job.get(blocking=True, timeout=30)
