# /// script
# dependencies = ["streaq==7.2.0", "uvloop==0.23.0"]
# [tool.bench]
# title = "streaQ"
# shows = ["streaq", "coredis", "uvloop"]
# worker = ["streaq", "run", "tests.benchmarks.peers.streaq:worker"]
# left = ["XLEN streaq:default:queues:normal"]
# naps = true
# guarantee = "at least once"
# note = "concurrency 100, uvloop, results kept for an hour"
# ///
"""streaQ."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import Any

import streaq  # type: ignore[import-not-found]  # it lives in an environment of its own

from tests.benchmarks import stage

stage.quiet()
worker = streaq.Worker(
    redis_url=stage.REDIS_URL,
    concurrency=stage.CONCURRENCY,
    anyio_kwargs={"use_uvloop": True},
)


async def _noop() -> None:
    """Do nothing."""


async def _nap() -> None:
    """Sleep for 10 ms."""
    await asyncio.sleep(stage.NAP_S)


async def _stamp(sent_ns: int) -> None:
    """Note when it started."""
    stage.record_start(sent_ns)


async def _first() -> int:
    """Begin a flow."""
    stage.record_start(0)
    return 0


async def _following(number: int) -> int:
    """Be one of many members, or of many steps."""
    return number + 1


async def _joined() -> None:
    """End a chord: what waits for many gets no results of theirs."""
    stage.record_start(1)


async def _last(number: int, *, steps: int) -> None:
    """End a chain."""
    stage.record_end(number + 2, steps)


TASKS = {
    name: worker.task(name=name, ttl=stage.KEEP_RESULT_S)(function)
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
_open: list[AsyncExitStack] = []


async def _connect() -> None:
    if not _open:
        _open.append(AsyncExitStack())
        await _open[0].enter_async_context(worker)


async def enqueue(task: str, **arguments: int) -> Any:
    """Enqueue one job."""
    await _connect()
    return await TASKS[task].enqueue(**arguments)


async def enqueue_many(task: str, count: int) -> None:
    """Enqueue many jobs in one call."""
    await _connect()
    await worker.enqueue_many([TASKS[task].enqueue() for _ in range(count)])


async def start_chord(members: int) -> None:
    """Start a chord of so many members."""
    await _connect()
    following = TASKS["following"]
    header = [TASKS["first"].enqueue(), *(following.enqueue(n) for n in range(1, members))]
    await worker.enqueue_many(header)
    await TASKS["joined"].enqueue().start(after=[each.id for each in header])


async def start_chain(steps: int) -> None:
    """Start a chain of so many steps."""
    await _connect()
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 20 * steps))  # a call for each step
    chain = TASKS["first"].enqueue()
    for _ in range(steps - 2):
        chain = chain.then(TASKS["following"])
    await chain.then(TASKS["last"], steps=steps)


async def result(job: Any) -> None:
    """Wait for a job's result."""
    await job.result(30)


async def close() -> None:
    """Disconnect."""
    for stack in _open:
        await stack.aclose()
