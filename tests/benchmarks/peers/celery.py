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

from celery import Celery, chain, chord  # type: ignore[import-not-found]  # in an environment of its own

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


def _first() -> int:
    """Begin a flow."""
    stage.record_start(0)
    return 0


def _following(number: int) -> int:
    """Be one of many members, or of many steps."""
    return number + 1


def _joined(numbers: list[int], members: int) -> None:
    """End a chord."""
    stage.record_end(len(numbers), members)


def _last(number: int, steps: int) -> None:
    """End a chain."""
    stage.record_end(number + 2, steps)


TASKS = {
    name: app.task(name=name)(function)
    for name, function in (
        ("noop", _noop),
        ("nap", _nap),
        ("stamp", _stamp),
        ("first", _first),
        ("following", _following),
        ("joined", _joined),
        ("last", _last),
    )
}


def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    return TASKS[task].apply_async(kwargs=arguments)


def start_chord(members: int) -> None:
    """Start a chord of so many members."""
    following = TASKS["following"]
    header = [TASKS["first"].s(), *(following.s(number) for number in range(1, members))]
    chord(header)(TASKS["joined"].s(members))


def start_chain(steps: int) -> None:
    """Start a chain of so many steps."""
    between = [TASKS["following"].s()] * (steps - 2)
    chain(TASKS["first"].s(), *between, TASKS["last"].s(steps)).apply_async()


def result(job: Any) -> None:
    """Wait for a job's result."""
    job.get(timeout=30)
