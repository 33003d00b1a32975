"""The one door to the queue in Redis: enqueue, claim, settle, renew and read results."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from runner import keys
from runner.errors import EnqueueError, QueueFull
from runner.scripts import load
from runner.types import QueueStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

MAX_ENTRIES = 500
"""Entries a script call settles, claims or enqueues at most: about 10 ms of the server's time."""

WAITER_TTL_MS = 60_000

Mode: TypeAlias = Literal["done", "again", "back", "submit"]


@dataclass(slots=True, kw_only=True)
class Claimed:
    """A job that this worker holds.

    Attributes:
        queue: the queue that it was claimed from.
        token: names the claim; the fence of everything that follows.
        run_at_ms: the score that the job had in the queue before the claim.
        payload: the encoded job, None when it is gone.
        attempt: the number of this try, counted from 1.
        crashes: leases of this job that were lost before.
    """

    job_id: str
    queue: str
    token: str
    run_at_ms: float
    payload: bytes | None
    attempt: int
    crashes: int


@dataclass(slots=True, kw_only=True)
class Settlement:
    """How one attempt ends in Redis.

    Attributes:
        counter: the count that goes up with it, or "".
        result: the encoded result; told to those who wait even when it is not kept.
        keep_ms: how long the result is kept: 0 not at all, -1 for ever.
        extra: see ``cycle.lua``: the delay of another try, or a cron job's afterlife.
        letter: the encoded dead letter, or nothing.
        unit_id: the id of the unit of writes, for mode "submit".
        operations: the encoded unit.
        header: the job header that the writer needs to settle the job.
        unanswered: it was sent before, and what became of it is not known.
    """

    claimed: Claimed
    mode: Mode
    counter: str = ""
    result: bytes = b""
    keep_ms: int = 0
    extra: str = ""
    letter: bytes = b""
    unit_id: str = ""
    operations: bytes = b""
    header: bytes = b""
    unanswered: bool = False


@dataclass(frozen=True, slots=True)
class CycleReply:
    """What one round trip of the engine brought back.

    Attributes:
        queue: the queue that was asked.
        now_ms: Redis's time.
        next_due_ms: when the next job of the set is due, None when there is none.
        queued: ids in the set, running ones included.
        more: due jobs were left behind.
        statuses: for each settlement 1 (settled), 0 (the lease was lost), or an error's text.
        claimed: the jobs that are now held.
    """

    queue: str
    now_ms: int
    next_due_ms: float | None
    queued: int
    more: bool
    statuses: list[int | str]
    claimed: list[Claimed]


@dataclass(frozen=True, slots=True)
class EnqueueEntry:
    """One job on its way into the queue.

    Attributes:
        run_at_ms: when it may start, Unix time in ms; None means now, by Redis's clock.
        lifetime_ms: how long its payload is kept if nobody runs it.
        may_exist: the id was chosen by the caller, so it may be there already.
        max_length: how many jobs the queue may hold for this one to be taken; 0: any number.
    """

    job_id: str
    payload: bytes
    run_at_ms: float | None
    lifetime_ms: int
    may_exist: bool
    max_length: int = 0


class Broker:
    """One queue in Redis, seen from a worker.

    Args:
        lease_ms: how long a claim holds without being renewed.
        keeps: write counters and dead letters; arq's bare Worker leaves no key of its own.
    """

    def __init__(self, queue: str, *, lease_ms: int, keeps: bool) -> None:
        self.queue = queue
        self.lease_ms = lease_ms
        self.keeps = keeps
        self._cycle = load("cycle")
        self._keys = [
            queue,
            keys.held(queue),
            keys.clock(queue),
            keys.idle(queue),
            keys.wake(queue),
            keys.counters(queue),
            keys.dead(queue),
            keys.UNITS,
        ]

    async def cycle(
        self,
        redis: Redis,
        *,
        token: str,
        settlements: Sequence[Settlement],
        limit: int,
        worker: str = "",
        idle_ms: int = 0,
    ) -> CycleReply:
        """Settle what has ended and claim what is due, in one round trip.

        Args:
            redis: the connection pool.
            token: a name for this claim that no other has.
            settlements: at most `MAX_ENTRIES`.
            limit: how many jobs to claim at most.
            worker: the name to register as idle when slots stay free; "" never does.
            idle_ms: how long that registration lasts.
        """
        args: list[Any] = [
            token,
            self.lease_ms,
            min(limit, MAX_ENTRIES),
            worker,
            idle_ms,
            int(self.keeps),
            len(settlements),
        ]
        for settlement in settlements:
            args.extend(_settlement_fields(settlement))
        reply = await self._cycle.call(redis, keys=self._keys, args=args)
        now_ms, upcoming, queued, more, statuses, claimed = reply
        return CycleReply(
            queue=self.queue,
            now_ms=now_ms,
            next_due_ms=float(upcoming) if upcoming else None,
            queued=queued,
            more=bool(more),
            statuses=[s if isinstance(s, int) else s.decode() for s in statuses],
            claimed=[
                Claimed(
                    job_id=job_id.decode(errors="surrogateescape"),
                    queue=self.queue,
                    token=token,
                    run_at_ms=float(score),
                    payload=payload,
                    attempt=attempt,
                    crashes=crashes,
                )
                for job_id, score, payload, attempt, crashes in claimed
            ],
        )


def raw_id(job_id: str) -> bytes:
    """Return an id as it stands in Redis, where anybody may have put bytes that are no text."""
    return job_id.encode(errors="surrogateescape")


def _settlement_fields(settlement: Settlement) -> tuple[Any, ...]:
    claimed = settlement.claimed
    fields = (
        raw_id(claimed.job_id),
        claimed.token,
        claimed.attempt,
        settlement.mode,
        settlement.counter,
        settlement.result,
        settlement.keep_ms,
        settlement.extra,
        settlement.letter,
        settlement.unit_id,
    )
    if settlement.mode == "submit":
        return (*fields, settlement.operations, settlement.header)
    return fields


async def enqueue(
    redis: Redis,
    queue: str,
    entries: Sequence[EnqueueEntry],
) -> list[bool | EnqueueError]:
    """Put jobs into one queue, `MAX_ENTRIES` a round trip, in order.

    Returns:
        For each entry True (queued), False (its id is there already), or what went wrong.
    """
    script = load("enqueue")
    queue_keys = [queue, keys.idle(queue), keys.wake(queue)]
    outcomes: list[bool | EnqueueError] = []
    for start in range(0, len(entries), MAX_ENTRIES):
        part = entries[start : start + MAX_ENTRIES]
        args: list[Any] = []
        for entry in part:
            args += (
                entry.job_id,
                entry.payload,
                "" if entry.run_at_ms is None else entry.run_at_ms,
                entry.lifetime_ms,
                "1" if entry.may_exist else "",
                entry.max_length or "",
            )
        statuses = await script.call(redis, keys=queue_keys, args=args)
        outcomes += [
            _enqueue_outcome(queue, entry, status)
            for entry, status in zip(part, statuses, strict=True)
        ]
    return outcomes


def _enqueue_outcome(
    queue: str,
    entry: EnqueueEntry,
    status: int | bytes,
) -> bool | EnqueueError:
    if status == 1:
        return True
    if status == 0:
        return False
    if status == -1:
        return queue_full(queue, entry.max_length)
    text = status.decode() if isinstance(status, bytes) else str(status)
    return EnqueueError(f"Redis refused the job: {text}")


def queue_full(queue: str, max_length: int) -> QueueFull:
    """Return the error that says so."""
    return QueueFull(
        f"queue {queue!r} has no room: it may hold {max_length} jobs; try again later, "
        f'or wait with when_full="wait"',
        queue=queue,
        max_length=max_length,
    )


async def read_results(
    redis: Redis,
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


async def abort(redis: Redis, queue: str, job_id: str) -> bool:
    """Ask for a job to be aborted; return False when there is nothing left to abort.

    The request stands in arq's own set, so that workers of either kind see it. It is written
    before the job is made due: whoever claims it then knows.
    """
    await redis.zadd(keys.ABORT, {raw_id(job_id): time.time_ns() // 1_000_000})
    queue_keys = [queue, keys.held(queue), keys.idle(queue), keys.wake(queue)]
    if await load("abort").call(redis, keys=queue_keys, args=[raw_id(job_id)]):
        return True
    await redis.zrem(keys.ABORT, raw_id(job_id))
    return False


async def queue_stats(redis: Redis, queue: str) -> QueueStats:
    """Read one queue's counts, in one round trip."""
    async with asyncio.timeout(10), redis.pipeline(transaction=False) as pipe:
        pipe.zcard(queue)
        pipe.hlen(keys.held(queue))
        pipe.hgetall(keys.counters(queue))
        pipe.zcard(keys.dead(queue))
        queued, running, counts, dead = await pipe.execute()
    count = {key.decode(): int(value) for key, value in counts.items()}
    return QueueStats(
        queued=queued,
        running=running,
        succeeded=count.get("succeeded", 0),
        failed=count.get("failed", 0),
        retried=count.get("retried", 0),
        crashed=count.get("crashed", 0),
        dead=dead,
    )
