# /// script
# dependencies = ["rq==3.0.0", "hiredis==3.5.0"]
# [tool.bench]
# title = "RQ, SimpleWorker"
# shows = ["rq", "redis", "hiredis"]
# worker = ["python", "-m", "tests.benchmarks.peers.rq"]
# done = ["ZCARD rq:finished:default"]
# guarantee = "at least once"
# note = """\
# SimpleWorker, which runs one job after the other and forks for none; the default worker \
# forks for each job and is slower still; blocking client, so nothing to gather"""
# ///
"""RQ."""

from __future__ import annotations

import time
from typing import Any

from redis import Redis
from rq import Queue, SimpleWorker  # type: ignore[import-not-found]  # in its own environment

from tests.benchmarks import stage

stage.quiet()
connection = Redis.from_url(stage.REDIS_URL)
queue = Queue(connection=connection)


def noop() -> None:
    """Do nothing."""


def nap() -> None:
    """Sleep for 10 ms."""
    time.sleep(stage.NAP_S)


def stamp(sent_ns: int) -> None:
    """Note when it started."""
    stage.record_start(sent_ns)


MODULE = "tests.benchmarks.peers.rq"


def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    return queue.enqueue(f"{MODULE}.{task}", kwargs=arguments, result_ttl=stage.KEEP_RESULT_S)


def enqueue_many(task: str, count: int) -> None:
    """Enqueue many jobs in one call."""
    data = [
        Queue.prepare_data(f"{MODULE}.{task}", result_ttl=stage.KEEP_RESULT_S) for _ in range(count)
    ]
    queue.enqueue_many(data)


def result(job: Any) -> None:
    """Wait for a job's result."""
    job.latest_result(timeout=30)


if __name__ == "__main__":
    SimpleWorker([queue], connection=connection).work(logging_level="WARNING")
