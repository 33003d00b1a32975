# /// script
# dependencies = ["dramatiq[redis]==2.2.1", "hiredis==3.5.0"]
# [tool.bench]
# title = "dramatiq"
# shows = ["dramatiq", "redis", "hiredis"]
# worker = [
#     "dramatiq", "tests.benchmarks.peers.dramatiq:broker", "--processes", "1", "--threads", "8",
# ]
# left = ["HLEN dramatiq:default.msgs"]
# guarantee = "at least once"
# note = """\
# one process, eight threads (its default), results kept for an hour; blocking client, so \
# nothing to gather"""
# ///
"""dramatiq."""

from __future__ import annotations

import time
from typing import Any

import dramatiq  # type: ignore[import-not-found]  # it lives in an environment of its own
from dramatiq.brokers.redis import RedisBroker  # type: ignore[import-not-found]
from dramatiq.results import Results  # type: ignore[import-not-found]
from dramatiq.results.backends import RedisBackend  # type: ignore[import-not-found]

from tests.benchmarks import stage

stage.quiet()
broker = RedisBroker(url=stage.REDIS_URL)
broker.add_middleware(Results(backend=RedisBackend(url=stage.REDIS_URL)))
dramatiq.set_broker(broker)


def _noop() -> None:
    """Do nothing."""


def _nap() -> None:
    """Sleep for 10 ms."""
    time.sleep(stage.NAP_S)


def _stamp(sent_ns: int) -> None:
    """Note when it started."""
    stage.record_start(sent_ns)


OPTIONS = {"store_results": True, "result_ttl": stage.KEEP_RESULT_S * 1000}
TASKS = {
    name: dramatiq.actor(function, actor_name=name, **OPTIONS)
    for name, function in (("noop", _noop), ("nap", _nap), ("stamp", _stamp))
}


def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    return TASKS[task].send(**arguments)


def result(job: Any) -> None:
    """Wait for a job's result."""
    job.get_result(block=True, timeout=30_000)
