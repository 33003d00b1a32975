"""The worker's door to a queue in Redis: claim, settle, give back, count."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from runner import keys
from runner.scripts import load
from runner.types import QueueStats, Retention

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis.asyncio import Redis

    from runner.scripts import Executes

MAX_ENTRIES = 500
"""Entries a script call settles, claims or enqueues at most: about 10 ms of the server's time."""

MAX_BYTES = 64 * 1024 * 1024
"""How much the ends of one call may carry: one that outlasts its timeout is sent in vain again."""

MAX_RESULT_BYTES = 128 * 1024 * 1024
"""A larger result is not kept: Redis cuts whoever sends 512 MB in one piece."""

UNHEARD_MS = 3_600_000
"""How long Redis remembers claims whose answers were lost."""

ENDED = "ENDED "
"""What a status begins with when the end stands, and something beside it was refused."""

logger = logging.getLogger("runner.broker")

Mode: TypeAlias = Literal["done", "again", "back", "submit"]


class Claimed(msgspec.Struct):
    """A job that this worker holds.

    Attributes:
        queue: the queue that it was claimed from.
        token: names the claim; the fence of everything that follows.
        run_at_ms: the score that the job had in the queue before the claim.
        payload: the encoded job, None when it is gone.
        attempt: the number of this try, counted from 1.
        crashes: leases of this job that were lost before.
        until: the time, by `time.monotonic`, beyond which its lease is not renewed any more.
        gates: what the claim said of paused tasks, and of limits set on tasks; b"" is nothing.
    """

    job_id: str
    queue: str
    token: str
    run_at_ms: float
    payload: bytes | None
    attempt: int
    crashes: int
    until: float = math.inf
    gates: bytes = b""


class Settlement(msgspec.Struct, kw_only=True, eq=False):
    """How one attempt ends in Redis; a struct, made in a fifth of a dataclass's time.

    Attributes:
        counter: the count that goes up with it, or "".
        result: the encoded result; told to those who wait even when it is not kept.
        keep_ms: how long the result is kept: 0 not at all, -1 for ever.
        extra: see ``cycle.lua``: the delay of another try, or a cron job's afterlife.
        letter: the encoded dead letter; for mode "again" the record of the attempt's error.
        unit_id: the id of the unit of writes, for mode "submit".
        operations: the encoded unit.
        header: the job header that the writer needs to settle the job.
        had_errors: attempts before this one may have left records of their errors.
        end: what is told to those who listen once Redis has settled it, or refused its lease.
        slots: the slots of limits that the attempt gives up, packed, or nothing.
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
    had_errors: bool = False
    slots: bytes = b""
    end: Any = None

    @property
    def size(self) -> int:
        """About how many bytes it takes in a call."""
        return len(self.result) + len(self.operations) + len(self.letter)


@dataclass(frozen=True, slots=True)
class CycleReply:
    """What one round trip of the engine brought back.

    Attributes:
        queue: the queue that was asked.
        now_ms: Redis's time.
        next_due_ms: when the next job of the set is due; None when there is none, and when
            `more` are due now.
        more: due jobs were left behind.
        statuses: for each settlement 1 (settled), 2 (by an earlier sending of the batch), 0 (the
            lease was lost), or an error's text.
        claimed: the jobs that are now held.
        problem: what Redis says against the claims; "" when they went well.
    """

    queue: str
    now_ms: int
    next_due_ms: float | None
    more: bool
    statuses: list[int | str]
    claimed: list[Claimed]
    problem: str = ""


class Broker:
    """One queue in Redis, seen from a worker.

    Args:
        lease_ms: how long a claim holds without being renewed.
        keeps: write counters and dead letters; arq's bare Worker leaves no key of its own.
        heeds: claim nothing while too much waits for the writer.
        retention: how long dead letters are kept, and how many.
    """

    def __init__(
        self,
        queue: str,
        *,
        lease_ms: int,
        keeps: bool,
        heeds: bool = False,
        retention: Retention | None = None,
    ) -> None:
        self.queue = queue
        self.lease_ms = lease_ms
        self.keeps = keeps
        self.heeds = heeds
        self.retention = retention or Retention()
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
            keys.WRITER,
        ]
        self._gates = [keys.paused(queue), keys.GATED]

    async def cycle(
        self,
        redis: Executes,
        *,
        token: str,
        settlements: Sequence[Settlement],
        limit: int,
        worker: str = "",
        idle_ms: int = 0,
        batch: str = "",
        lane: str = "",
    ) -> CycleReply:
        """Settle what has ended and claim what is due, in one round trip.

        Args:
            redis: a client, or a pipe.
            token: a name for this claim that no other has.
            settlements: at most `MAX_ENTRIES`.
            limit: how many jobs to claim at most.
            worker: the name to register as idle when slots stay free; "" never does.
            idle_ms: how long that registration lasts.
            batch: the token under which these settlements were sent first, when they may have
                to be sent again; "" when not.
            lane: where Redis remembers the batch; the next batch of the lane takes its place.
        """
        args: list[Any] = [
            token,
            self.lease_ms,
            min(limit, MAX_ENTRIES),
            worker,
            idle_ms,
            int(self.keeps),
            int(self.heeds),
            self.retention.keep_ms,
            self.retention.most,
            batch,
            len(settlements),
        ]
        for settlement in settlements:
            args += _settlement_fields(settlement)
        script_keys = [*self._keys, keys.settled(lane), *self._gates]
        reply = await self._cycle.call(redis, keys=script_keys, args=args)
        now_ms, upcoming, more, statuses, claimed, *rare = reply
        values = iter(claimed)
        queue = self.queue
        answer = CycleReply(
            queue=queue,
            now_ms=now_ms,
            next_due_ms=float(upcoming) if upcoming else None,
            more=bool(more),
            statuses=[
                status if type(status) is int else _told(settlement, status)
                for status, settlement in zip(statuses, settlements, strict=True)
            ],
            claimed=[
                Claimed(
                    job_id.decode(errors="surrogateescape"),
                    queue,
                    token,
                    float(score),
                    payload,
                    attempt,
                    crashes,
                )
                for job_id, score, payload, attempt, crashes in zip(*[values] * 5, strict=True)
            ],
            problem=rare[1].decode(errors="replace") if len(rare) > 1 else "",
        )
        if rare and rare[0]:
            for job in answer.claimed:
                job.gates = rare[0]
        return answer

    async def give_back(self, redis: Executes, tokens: Sequence[str]) -> int:
        """Give back what was claimed under these tokens, whose answers were lost.

        Returns:
            How many jobs it were.
        """
        queue = self.queue
        script_keys = [
            *(queue, keys.held(queue), keys.unheard(queue)),
            *(keys.idle(queue), keys.wake(queue)),
        ]
        script = load("unheard")
        given: int = await script.call(redis, keys=script_keys, args=[UNHEARD_MS, *tokens])
        return given


def _told(settlement: Settlement, status: bytes) -> int | str:
    """Read a status that is a text; where only something beside the end was refused, say so."""
    text = status.decode(errors="replace")
    if not text.startswith(ENDED):
        return text
    logger.error(
        "job %s has ended, but Redis refused its result or its dead letter: %s",
        settlement.claimed.job_id,
        text.removeprefix(ENDED),
    )
    return 1


def _settlement_fields(settlement: Settlement) -> tuple[Any, ...]:
    claimed, mode = settlement.claimed, settlement.mode
    job_id = claimed.job_id.encode(errors="surrogateescape")
    if (
        mode == "done"
        and settlement.counter == "succeeded"
        and not settlement.extra
        and not settlement.letter
        and not settlement.had_errors
        and not settlement.slots
    ):
        ends = (settlement.result, settlement.keep_ms)
        return (job_id, claimed.token, claimed.attempt, "ok", *ends)
    fields = (
        job_id,
        claimed.token,
        claimed.attempt,
        mode,
        settlement.counter,
        settlement.result,
        settlement.keep_ms,
        settlement.extra,
        settlement.letter,
        settlement.unit_id,
    )
    if mode == "submit":
        return (*fields, settlement.operations, settlement.header, settlement.slots)
    return (*fields, settlement.slots)


async def count_crashes(redis: Redis, running: Iterable[tuple[Claimed, bytes]]) -> int:
    """Count a crash of each of these jobs that is still held so; return how many are.

    Args:
        redis: the connection pool.
        running: their claims, each with the record of the crash for its history, or b"".
    """
    by_queue: dict[str, list[Any]] = {}
    for claimed, record in running:
        args = by_queue.setdefault(claimed.queue, [])
        args += (keys.raw_id(claimed.job_id), claimed.token, claimed.attempt, record)
    counted = 0
    for queue, args in by_queue.items():
        names = [queue, keys.held(queue), keys.counters(queue)]
        counted += await load("crash").call(redis, keys=names, args=args)
    return counted


async def queue_stats(redis: Redis, queue: str) -> QueueStats:
    """Read one queue's counts, in one round trip."""
    async with asyncio.timeout(10), redis.pipeline(transaction=False) as pipe:
        pipe.zcard(queue)
        pipe.hlen(keys.held(queue))
        pipe.hgetall(keys.counters(queue))
        pipe.zcard(keys.dead(queue))
        pipe.zcount(queue, keys.PAUSED_MS, keys.PARKED_MS)
        queued, running, counts, dead, parked = await pipe.execute()
    count = {key.decode(): int(value) for key, value in counts.items()}
    return QueueStats(
        queued=queued,
        running=running,
        succeeded=count.get("succeeded", 0),
        failed=count.get("failed", 0),
        retried=count.get("retried", 0),
        crashed=count.get("crashed", 0),
        dead=dead,
        parked=parked,
    )


async def runnable(redis: Redis, queue: str) -> int:
    """Return how many jobs of a queue run or will run: none while it is paused, or is no queue.

    The claims have said so already where its key is of another type.
    """
    async with asyncio.timeout(10), redis.pipeline(transaction=False) as pipe:
        pipe.type(queue)
        pipe.exists(keys.paused(queue))
        pipe.zcard(queue)
        pipe.zcount(queue, keys.PAUSED_MS, keys.PAUSED_MS)
        kind, is_paused, queued, rest = await pipe.execute(raise_on_error=False)
    if kind not in (b"zset", b"none"):
        if isinstance(kind, Exception):
            raise kind
        return 0
    for answer in (is_paused, queued, rest):
        if isinstance(answer, Exception):
            raise answer
    return 0 if is_paused else int(queued - rest)
