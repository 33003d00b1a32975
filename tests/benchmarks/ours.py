# /// script
# dependencies = []
# [tool.bench]
# title = "arq-runner"
# shows = ["arq", "redis", "hiredis", "uvloop", "msgspec"]
# worker = ["arq", "tests.benchmarks.ours.WorkerSettings"]
# left = ["ZCARD arq:queue"]
# naps = true
# guarantee = "at least once"
# note = """\
# defaults of runner.WorkerSettings: msgpack, leases, counters; max_jobs 100, results kept for \
# an hour"""
# ///
"""Ours: `arq tests.benchmarks.ours.WorkerSettings`, with the defaults that a user gets."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

import runner
from runner import Client, Context, Job, RedisSettings, Task, chain, chord, connect, task
from tests.benchmarks import stage

stage.quiet()


@task
async def noop(_ctx: Context) -> None:
    """Do nothing."""


@task
async def nap(_ctx: Context) -> None:
    """Sleep for 10 ms."""
    await asyncio.sleep(stage.NAP_S)


@task
async def stamp(_ctx: Context, sent_ns: int) -> None:
    """Note when it started."""
    stage.record_start(sent_ns)


@task
async def first(_ctx: Context) -> int:
    """Begin a flow."""
    stage.record_start(0)
    return 0


@task
async def following(_ctx: Context, number: int) -> int:
    """Be one of many members, or of many steps."""
    return number + 1


@task
async def joined(_ctx: Context, numbers: list[int], members: int) -> None:
    """End a chord."""
    stage.record_end(len(numbers), members)


@task
async def last(_ctx: Context, number: int, steps: int) -> None:
    """End a chain."""
    stage.record_end(number + 2, steps)


async def say_ready(_ctx: dict[Any, Any]) -> None:
    """Tell the benchmark that this worker is up."""
    stage.record_ready()


# mypy would bind a plain function as a method.
_ready: Any = say_ready


class WorkerSettings(runner.WorkerSettings):
    """The worker."""

    functions = (noop, nap, stamp, first, following, joined, last)
    redis_settings = RedisSettings.from_dsn(stage.REDIS_URL)
    max_jobs = stage.CONCURRENCY
    keep_result = stage.KEEP_RESULT_S
    on_startup = _ready


TASKS: dict[str, Task[..., None]] = {"noop": noop, "nap": nap, "stamp": stamp}
_clients: list[Client] = []
_plain: list[Redis] = []


async def _client() -> Client:
    if not _clients:
        _clients.append(await connect(stage.REDIS_URL))
    return _clients[0]


async def enqueue(task_name: str, **arguments: int) -> Job[Any]:
    """Enqueue one job."""
    client = await _client()
    return await client.enqueue(TASKS[task_name], **arguments)


async def enqueue_at(task_name: str, due_ns: int, **arguments: int) -> Job[Any]:
    """Enqueue one job for later."""
    client = await _client()
    at = datetime.fromtimestamp(due_ns / 1e9, tz=UTC)
    return await client.enqueue(TASKS[task_name].options(at=at), **arguments)


async def enqueue_many(task_name: str, count: int) -> None:
    """Enqueue many jobs in one call."""
    client = await _client()
    await client.enqueue_many([TASKS[task_name].call() for _ in range(count)])


async def start_chord(members: int) -> None:
    """Start a chord of so many members."""
    client = await _client()
    header = [first.call(), *(following.call(number) for number in range(1, members))]
    await client.start(chord(header, joined.s(members)))


async def start_chain(steps: int) -> None:
    """Start a chain of so many steps."""
    client = await _client()
    steps_between: list[Any] = [following.s()] * (steps - 2)
    await client.start(chain(first.call(), *steps_between, last.s(steps)))


async def result(job: Job[Any]) -> None:
    """Wait for a job's result."""
    await job.result(timeout=30)


async def round_trip() -> None:
    """Make one bare round trip of redis-py: what nobody on it can be quicker than."""
    if not _plain:
        _plain.append(Redis.from_url(stage.REDIS_URL))
    await _plain[0].set("bench:set", b"x" * 100)


async def close() -> None:
    """Disconnect."""
    for client in _clients:
        await client.aclose()
    for plain in _plain:
        await plain.aclose()
