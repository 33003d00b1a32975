"""The caller's door to a queue in Redis: enqueue, read results, ask for an abort."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
from redis.exceptions import ReadOnlyError, ResponseError

from runner import keys
from runner.broker import MAX_ENTRIES
from runner.errors import (
    DuplicateJob,
    EnqueueError,
    QueueFull,
    RedisOutOfMemory,
    RedisUnavailable,
)
from runner.scripts import load
from runner.unique import NO_PLACE, Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from runner.scripts import Executes, Script

ENQUEUE = load("enqueue")
ENQUEUE_UNIQUE = load("enqueue_unique")

WAITER_TTL_MS = 60_000


class EnqueueEntry(msgspec.Struct, frozen=True):
    """One job on its way into the queue; a struct, made in a fifth of a dataclass's time.

    Attributes:
        run_at_ms: when it may start, Unix time in ms; None means now, by Redis's clock.
        lifetime_ms: how long its payload is kept if nobody runs it.
        may_exist: the id was chosen by the caller, so it may be there already.
        max_length: how many jobs the queue may hold for this one to be taken; 0: any number.
        place: what it must have for itself; None: nothing.
        delay_ms: where `run_at_ms` is None, how long from now, by Redis's clock.
    """

    job_id: str
    payload: bytes
    run_at_ms: float | None
    lifetime_ms: int
    may_exist: bool
    max_length: int = 0
    place: Place | None = None
    delay_ms: float = 0


class Other(msgspec.Struct, frozen=True):
    """The job that has the place which another asked for.

    Attributes:
        running: it has been claimed, and has not ended.
    """

    job_id: str
    running: bool


Queued: TypeAlias = bool | Other
"""What became of an entry: True (queued), False (its id is there), or who is in its place."""


async def enqueue(
    redis: Executes,
    queue: str,
    entries: Sequence[EnqueueEntry],
) -> list[Queued | EnqueueError | RedisUnavailable]:
    """Put jobs into one queue, `MAX_ENTRIES` a round trip, in order.

    Returns:
        For each entry what became of it (`Queued`), or what went wrong.
    """
    outcomes: list[Queued | EnqueueError | RedisUnavailable] = []
    for start in range(0, len(entries), MAX_ENTRIES):
        part = entries[start : start + MAX_ENTRIES]
        script, script_keys, args = enqueue_call(queue, part)
        reply: Any
        try:
            reply = await script.call(redis, keys=script_keys, args=args)
        except ResponseError as exc:
            reply = exc
        outcomes += enqueue_outcomes(queue, part, reply)
    return outcomes


def enqueue_call(
    queue: str,
    entries: Sequence[EnqueueEntry],
) -> tuple[Script, tuple[str, ...], list[Any]]:
    """Return the script that enqueues these, with its keys and arguments.

    It is a longer one where an entry asks for a place: the others are not to pay for it.
    """
    args: list[Any] = []
    with_places = False
    for entry in entries:
        if entry.place is not None:
            with_places = True
        args += (
            entry.job_id,
            entry.payload,
            _run_at(entry) if entry.run_at_ms is not None or entry.delay_ms else "",
            entry.lifetime_ms,
            "1" if entry.may_exist else "",
            entry.max_length or "",
        )
    if with_places:
        return ENQUEUE_UNIQUE, _keys_with_places(queue), _with_places(args, entries)
    return ENQUEUE, _enqueue_keys(queue), args


def _run_at(entry: EnqueueEntry) -> float | str:
    return f"+{entry.delay_ms}" if entry.run_at_ms is None else entry.run_at_ms


@lru_cache(maxsize=1024)
def _enqueue_keys(queue: str) -> tuple[str, ...]:
    return queue, keys.idle(queue), keys.wake(queue)


@lru_cache(maxsize=1024)
def _keys_with_places(queue: str) -> tuple[str, ...]:
    return *_enqueue_keys(queue), keys.held(queue), keys.places(queue)


def _with_places(args: list[Any], entries: Sequence[EnqueueEntry]) -> list[Any]:
    size = len(args) // len(entries)
    longer: list[Any] = []
    for index, entry in enumerate(entries):
        longer += args[index * size : (index + 1) * size]
        longer += NO_PLACE if entry.place is None else entry.place.fields()
    return longer


def enqueue_outcomes(
    queue: str,
    entries: Sequence[EnqueueEntry],
    reply: Any,
) -> list[Queued | EnqueueError | RedisUnavailable]:
    """Read the reply of a script that enqueues, or the exception that came in its place."""
    if isinstance(reply, RedisUnavailable):
        return [reply] * len(entries)
    if isinstance(reply, BaseException):
        refusal = EnqueueError(f"Redis refused the job: {reply}")
        refusal.__cause__ = reply
        return [refusal] * len(entries)
    return [
        status == 1 or _not_queued(queue, entry, status)
        for entry, status in zip(entries, reply, strict=True)
    ]


def _not_queued(
    queue: str,
    entry: EnqueueEntry,
    status: int | bytes | list[Any],
) -> Literal[False] | Other | EnqueueError | RedisUnavailable:
    if status == 0:
        return False
    if status == -1:
        return queue_full(queue, entry.max_length)
    if isinstance(status, list):
        return _duplicate(entry, status)
    text = status.decode() if isinstance(status, bytes) else str(status)
    if "OOM" in text.partition(" ")[0]:
        return RedisOutOfMemory(
            f"Redis is full, the job is not queued: raise its maxmemory, or let workers catch up, "
            f"and look at keep_result ({text})",
        )
    if "READONLY" in text.partition(" ")[0]:
        error = RedisUnavailable(f"Redis takes no writes, the job is not queued: {text}")
        error.__cause__ = ReadOnlyError(text)
        return error
    return EnqueueError(f"Redis refused the job: {text}")


def _duplicate(entry: EnqueueEntry, status: list[Any]) -> Other | DuplicateJob:
    assert entry.place is not None  # who asks for none gets no such answer
    job_id, running = status[0].decode(errors="surrogateescape"), bool(status[1])
    if entry.place.rule.second == "return":
        return Other(job_id, running)
    state = "runs" if running else "is there"
    return DuplicateJob(
        f"job {job_id!r} {state}, and there is to be no second one beside it "
        f"({entry.place.rule.option})",
        job_id=job_id,
        running=running,
    )


def queue_full(queue: str, max_length: int) -> QueueFull:
    """Return the error that says so."""
    return QueueFull(
        f"queue {queue!r} has no room: it may hold {max_length} jobs; try again later, "
        f'or wait with when_full="wait"',
        queue=queue,
        max_length=max_length,
    )


async def read_results(
    redis: Executes,
    queue: str,
    *,
    channel: str,
    job_ids: Sequence[str],
) -> list[bytes | None]:
    """Read results, and register `channel` for those to come.

    Returns:
        For each id the encoded result, b"" while it is to come, or None when the job is not
        in the queue and has no result.
    """
    answers: list[bytes | None] = await load("results").call(
        redis,
        keys=[queue],
        args=[channel, WAITER_TTL_MS, *job_ids],
    )
    return answers


async def replaced_by(redis: Executes, job_id: str) -> str | None:
    """Return the job that took the place of one that waited, None when there is none."""
    successor = await redis.execute_command("GET", keys.REPLACED.encode() + keys.raw_id(job_id))
    return None if successor is None else str(successor.decode(errors="surrogateescape"))


async def abort(redis: Redis, queue: str, job_id: str) -> bool:
    """Ask for a job to be aborted; return False when there is nothing left to abort.

    The request stands in arq's own set, so that workers of either kind see it. It is written
    before the job is made due: whoever claims it then knows.
    """
    await redis.zadd(keys.ABORT, {keys.raw_id(job_id): time.time_ns() // 1_000_000})
    queue_keys = [queue, keys.held(queue), keys.idle(queue), keys.wake(queue)]
    if await load("abort").call(redis, keys=queue_keys, args=[keys.raw_id(job_id)]):
        return True
    await redis.zrem(keys.ABORT, keys.raw_id(job_id))
    return False
