# /// script
# dependencies = ["celery[redis]==5.7.0", "hiredis==3.5.0"]
# [tool.bench]
# title = "Celery, prefork 2"
# shows = ["celery", "kombu", "redis", "hiredis"]
# worker = [
#     "celery", "-A", "tests.benchmarks.peers.celery", "worker", "--pool", "prefork",
#     "--concurrency", "2", "--loglevel", "WARNING", "--without-gossip", "--without-mingle",
#     "--without-heartbeat",
# ]
# left = ["LLEN celery", "HLEN unacked"]
# guarantee = "at most once: acknowledged before they run"
# note = """\
# two child processes, prefetch 64 for each, no gossip, mingle or heartbeat; blocking client, \
# so nothing to gather"""
# ///
"""Celery."""

from __future__ import annotations

import time
from typing import Any

from celery import Celery  # type: ignore[import-not-found]  # in an environment of its own

from tests.benchmarks import stage

app = Celery("bench", broker=stage.REDIS_URL, backend=stage.REDIS_URL)
app.conf.update(
    result_expires=stage.KEEP_RESULT_S,
    worker_prefetch_multiplier=64,
    worker_hijack_root_logger=False,
)


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
    return TASKS[task].apply_async(kwargs=arguments)


def result(job: Any) -> None:
    """Wait for a job's result."""
    job.get(timeout=30)
