# /// script
# dependencies = ["broccoli-workers==0.1.5", "hiredis==3.5.0"]
# [tool.bench]
# title = "broccoli-workers"
# shows = ["broccoli-workers", "redis", "hiredis"]
# worker = ["python", "-m", "tests.benchmarks.peers.broccoli"]
# left = ["ZCARD tasks:queue", "ZCARD tasks:processing"]
# guarantee = "at least once"
# note = """\
# ThreadedWorker; no way to wait for a result, no bulk enqueue; blocking client, so nothing to \
# gather"""
# ///
"""broccoli-workers."""

from __future__ import annotations

import time
from typing import Any

from broccoli.core.task.task import Task  # type: ignore[import-not-found]  # in its own environment
from broccoli.core.task.task_queue import TaskQueue  # type: ignore[import-not-found]
from broccoli.workers.threaded_worker import ThreadedWorker  # type: ignore[import-not-found]

from tests.benchmarks import stage

stage.quiet()


def noop(_payload: dict[str, Any]) -> None:
    """Do nothing."""


def nap(_payload: dict[str, Any]) -> None:
    """Sleep for 10 ms."""
    time.sleep(stage.NAP_S)


def stamp(payload: dict[str, Any]) -> None:
    """Note when it started."""
    stage.record_start(payload["sent_ns"])


_queues: list[Any] = []


def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    if not _queues:
        _queues.append(TaskQueue(redis_url=stage.REDIS_URL))
    job = Task(task_type=task, payload=arguments)
    _queues[0].push(job)
    return job


def main() -> None:
    """Run the worker."""
    worker = ThreadedWorker(redis_url=stage.REDIS_URL, max_workers=stage.CONCURRENCY)
    for function in (noop, nap, stamp):
        worker.registry.register_manually(function.__name__, function)
    worker.start()


if __name__ == "__main__":
    main()
