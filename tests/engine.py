"""What the engine's tests share: workers and clients on the test's own Redis, and their state."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arq.connections import ArqRedis, RedisSettings, create_pool
from redis.asyncio import Redis

from runner import keys
from runner.broker import Broker, Claimed, Settlement
from runner.codec import JobRecord, MsgpackCodec, ResultRecord, decode_result, encode_job
from runner.producer import EnqueueEntry
from runner.producer import enqueue as put
from runner.scripts import load
from runner.worker import Worker
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

LEASE_MS = 15_000
LIFETIME_MS = 60_000
StockWorker: Any = next(kind for kind in Worker.__mro__ if kind.__module__ == "arq.worker")
"""arq's own Worker, also where a `WorkerSettings` has put ours in its place."""


@asynccontextmanager
async def serving(url: str, functions: Sequence[Any], **settings: Any) -> AsyncIterator[Worker]:
    """Run a worker of ours in this loop, and close it afterwards."""
    given = {"codec": "msgpack", "history": True, "poll_delay": 0.2, **settings}
    worker = Worker(
        functions,
        redis_settings=RedisSettings.from_dsn(url),
        handle_signals=False,
        **given,
    )
    async with started(worker):
        yield worker


@asynccontextmanager
async def started(worker: Any) -> AsyncIterator[Any]:
    """Run this worker, ours or stock arq's, and close it afterwards."""
    main = asyncio.create_task(worker.async_run(), name="worker under test")
    try:
        yield worker
    finally:
        await worker.close()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(10):
                await main


async def drain(url: str, functions: Sequence[Any], **settings: Any) -> Worker:
    """Run a burst worker of ours until the queue is empty, and close it."""
    async with asyncio.timeout(30), serving(url, functions, burst=True, **settings) as worker:
        # Asked for the task itself, wait_until would await it.
        await wait_until(lambda: worker.main_task is not None, description="the worker runs")
        assert worker.main_task is not None
        await worker.main_task
    return worker


@asynccontextmanager
async def stock_client(url: str, **settings: Any) -> AsyncIterator[ArqRedis]:
    """Lend a client of stock arq."""
    pool = await create_pool(RedisSettings.from_dsn(url), **settings)
    try:
        yield pool
    finally:
        await pool.aclose(close_connection_pool=True)


def raw(url: str) -> Any:
    """Return a plain Redis connection pool; use it with ``async with``."""
    return Redis.from_url(url)


@dataclass
class Gate:
    """A job's way to say that it runs, and to wait until it may end."""

    runs: asyncio.Event = field(default_factory=asyncio.Event)
    opens: asyncio.Event = field(default_factory=asyncio.Event)
    passed: list[str] = field(default_factory=list)

    async def __call__(self, name: str = "") -> None:
        self.runs.set()
        await self.opens.wait()
        self.passed.append(name)


class Rig:
    """One queue seen from its scripts, without workers: what a claim or a settlement does."""

    def __init__(
        self,
        redis: Any,
        *,
        lease_ms: int = LEASE_MS,
        keeps: bool = True,
        queue: str = keys.DEFAULT_QUEUE,
    ) -> None:
        self.redis = redis
        self.queue = queue
        self.broker = Broker(self.queue, lease_ms=lease_ms, keeps=keeps)
        self._claims = 0

    async def put(self, *job_ids: str, run_at_ms: float | None = None) -> list[Any]:
        """Enqueue jobs of these ids."""
        entries = [EnqueueEntry(i, payload(i), run_at_ms, LIFETIME_MS, True) for i in job_ids]
        return await put(self.redis, self.queue, entries)

    async def claim(self, limit: int = 10, *, token: str = "") -> list[Claimed]:
        """Claim due jobs as a worker with a token of its own would."""
        self._claims += 1
        reply = await self.broker.cycle(
            self.redis,
            token=token or f"r:test:{self._claims}",
            settlements=[],
            limit=limit,
        )
        return reply.claimed

    async def claim_one(self, job_id: str = "j", *, token: str = "") -> Claimed:
        """Enqueue one job and claim it."""
        await self.put(job_id)
        (claimed,) = await self.claim(token=token)
        return claimed

    async def settle(self, *settlements: Settlement) -> list[int | str]:
        """Settle attempts and claim nothing."""
        self._claims += 1
        reply = await self.broker.cycle(
            self.redis,
            token=f"r:test:{self._claims}",
            settlements=settlements,
            limit=0,
        )
        return reply.statuses

    async def renew(self, *claims: Claimed) -> list[int]:
        """Renew leases as the thread of a worker does."""
        args: list[Any] = [self.broker.lease_ms]
        for claimed in claims:
            args += (claimed.job_id, claimed.token, claimed.attempt)
        queue_keys = (self.queue, keys.held(self.queue), keys.clock(self.queue))
        statuses: list[int] = await load("renew").call(self.redis, keys=queue_keys, args=args)
        return statuses

    async def due(self, *job_ids: str) -> None:
        """Give ids the oldest of scores, as if their leases were over, or as an abort does."""
        await self.redis.zadd(self.queue, dict.fromkeys(job_ids, 1))

    async def lapse(self, *claims: Claimed) -> None:
        """Let leases run out while nobody claims: the keys are gone, the scores are due."""
        for claimed in claims:
            await self.redis.delete(keys.in_progress(claimed.job_id))
        await self.due(*(claimed.job_id for claimed in claims))

    async def ids(self) -> set[str]:
        """Return the ids in the queue's set."""
        return {raw_id.decode() for raw_id in await self.redis.zrange(self.queue, 0, -1)}

    async def server_ms(self) -> float:
        """Return Redis's own time."""
        seconds, micros = await self.redis.time()
        return float(seconds * 1000 + micros / 1000)


def payload(task: str) -> bytes:
    """Return an encoded job."""
    record = JobRecord(
        task=task, args=(), kwargs={}, attempt=None, enqueued_ms=1_700_000_000_000, options={}
    )
    return encode_job(MsgpackCodec(), record)


def done(claimed: Claimed, result: bytes = b"result", keep_ms: int = 60_000) -> Settlement:
    """Return the settlement of a job that ended well."""
    return Settlement(
        claimed=claimed, mode="done", counter="succeeded", result=result, keep_ms=keep_ms
    )


async def lease_is_renewed(redis: Any, job_id: str, times: int = 3) -> None:
    """See the lease of a running job grow so many times; only its renewal does that."""
    left_ms = await redis.pttl(keys.in_progress(job_id))

    async def grew() -> bool:
        nonlocal left_ms
        before_ms, left_ms = left_ms, await redis.pttl(keys.in_progress(job_id))
        return bool(left_ms > before_ms)

    for _ in range(times):
        await wait_until(grew, description=f"the lease of {job_id} is renewed")


async def result_of(redis: Any, job_id: str) -> ResultRecord:
    """Read a kept result that was written with the default codec."""
    blob = await redis.get(keys.result(job_id))
    assert blob is not None, f"job {job_id} left no result"
    return decode_result(MsgpackCodec(), blob)


__all__ = [
    "Gate",
    "Rig",
    "StockWorker",
    "done",
    "drain",
    "lease_is_renewed",
    "payload",
    "raw",
    "result_of",
    "serving",
    "started",
    "stock_client",
]
