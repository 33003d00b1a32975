"""Say what a worker is and does, and do what it is told."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec

from runner import keys
from runner.connections import TROUBLE
from runner.errors import PartFailed
from runner.execution import now_ms
from runner.inspect.workers import Answer, Order, RunningJob, WorkerInfo
from runner.scripts import load

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from runner.monitor.watched import Watched

logger = logging.getLogger("runner.monitor")

KEEP_MS = 10_000
ANSWER_MS = 60_000
MOST_JOBS = 50
CALL_TIMEOUT_S = 5.0


async def beat(redis: Redis, worker: Watched, *, started_ms: int, delay_s: float) -> list[Order]:
    """Write down what a worker does, in one call; return the orders that waited for it."""
    facts = msgspec.msgpack.encode(info_of(worker, started_ms=started_ms, delay_s=delay_s))
    orders = await load("worker_beat").call(
        redis,
        keys=[keys.WORKERS, keys.worker(worker.name), keys.control(worker.name)],
        args=[worker.name, facts, KEEP_MS],
    )
    return [msgspec.msgpack.decode(order, type=Order) for order in orders]


async def leave(redis: Redis, worker: Watched) -> None:
    """Say that a worker has ended."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zrem(keys.WORKERS, worker.name)
        pipe.delete(keys.worker(worker.name), keys.control(worker.name))
        await pipe.execute()


async def obey(redis: Redis, worker: Watched, order: Order) -> None:
    """Do one thing that a worker is told, and answer."""
    try:
        said = await done(worker, order)
        answer = Answer(worker.name, said.encode(errors="backslashreplace").decode())
        async with redis.pipeline(transaction=False) as pipe:
            pipe.rpush(keys.answers(order.reply), msgspec.msgpack.encode(answer))
            pipe.pexpire(keys.answers(order.reply), ANSWER_MS)
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await pipe.execute()
    except TROUBLE as exc:
        logger.warning("what %r said could not be sent: Redis does not answer (%s)", order, exc)


async def done(worker: Watched, order: Order) -> str:
    """Do one thing; return what is answered."""
    match order.verb:
        case "ping":
            return f"pong, {state_of(worker)}"
        case "drain":
            worker.quiet()
            return f"draining, {worker.job_counter} running"
        case "resume":
            worker.resume()
            return state_of(worker)
        case "concurrency":
            before = worker.max_jobs
            worker.resize(order.value)
            return f"concurrency {worker.max_jobs}, was {before}"
        case _:
            return await told(worker, order)


async def told(worker: Watched, order: Order) -> str:
    """Let a part do what only it knows; return what it says, or why it did not."""
    try:
        return await worker.parts.command(order.verb, order.text)
    except PartFailed as exc:
        return f"refused: {exc}"
    except (Exception, asyncio.CancelledError, SystemExit) as exc:
        # What waits for a task that ends, or reads its text by argparse, raises the other two.
        this_task = asyncio.current_task()
        if this_task is not None and this_task.cancelling():
            raise
        logger.exception("the command %r of a part failed", order.verb)
        return f"failed: {type(exc).__name__}: {exc}"


def info_of(worker: Watched, *, started_ms: int, delay_s: float) -> WorkerInfo:
    """Return what a worker is and does at the moment."""
    jobs = [
        RunningJob(
            attempt.claimed.job_id.encode(errors="backslashreplace").decode(),
            attempt.record.task,
            attempt.claimed.queue,
            attempt.number,
            attempt.started_ms,
        )
        for attempt in worker.running()
    ]
    jobs.sort(key=lambda job: job.started_ms)
    return WorkerInfo(
        name=worker.name,
        host=socket.gethostname(),
        pid=os.getpid(),
        version=version(),
        queues=tuple(worker.cycles.names),
        tasks=tuple(worker.functions),
        state=state_of(worker),
        concurrency=worker.max_jobs,
        running=worker.job_counter,
        jobs=tuple(jobs[:MOST_JOBS]),
        succeeded=worker.jobs_complete,
        failed=worker.jobs_failed,
        retried=worker.jobs_retried,
        rss_bytes=rss_bytes(),
        loop_delay_ms=round(delay_s * 1000, 1),
        is_writer=leads(worker),
        started_ms=started_ms,
        at_ms=now_ms(),
    )


def state_of(worker: Watched) -> str:
    """Return the word for what a worker does."""
    if worker.stopping:
        return "stopping"
    return "running" if worker.allow_pick_jobs else "draining"


def leads(worker: Watched) -> bool:
    """Say whether it is the elected writer."""
    candidate: Any = worker.candidate
    return candidate is not None and bool(candidate.leading)


def rss_bytes() -> int:
    """Return the memory of this process; what it had at most, where the system says no more."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  no disk behind it
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


@cache
def version() -> str:
    """Return the version of this package."""
    return metadata.version("arq-runner")
