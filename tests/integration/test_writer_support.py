"""What the writer's tests share: the engine's end of the contract, and a bench to apply on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import msgspec
from redis.asyncio import Redis

from runner import keys
from runner.codec import JobRecord, MsgpackCodec, ResultRecord, encode_job, encode_result
from runner.writer import Candidate, UnitBuilder
from runner.writer.batch import Batch, Batches, Refusals
from runner.writer.entries import Unit, read_entry
from runner.writer.office import Office
from runner.writer.queries import migrate, query
from runner.writer.session import LOCK, close, connect
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from asyncpg import Connection, Record

CODEC = MsgpackCodec()
LASTING = ("runner:writer", "runner:units")
"""The writer's own keys that never expire."""


def unit_of(*calls: Callable[[UnitBuilder], None]) -> UnitBuilder:
    builder = UnitBuilder()
    for call in calls:
        call(builder)
    return builder


def unit(number: int, *calls: Callable[[UnitBuilder], None], key: str = "") -> Unit:
    """Return a unit as the reader would have read it, with the entry ``<number>-0``."""
    unit_id = key or f"job{number}:1700000000000:0"
    return read_entry(f"{number}-0", {b"u": unit_id.encode(), b"o": unit_of(*calls).encode()})


@dataclass(slots=True)
class Bench:
    """A term's applying end, without a stream."""

    connection: Connection[Record]
    batches: Batches
    office: Office

    async def apply(self, *units: Unit) -> Refusals:
        return await self.batches.apply(Batch(units))

    async def position(self) -> str:
        return str(await self.connection.fetchval("SELECT position FROM runner.writer"))

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.connection.fetch(sql)]


@contextlib.asynccontextmanager
async def bench(database_url: str, schema: str = "") -> AsyncIterator[Bench]:
    connection = await connect(database_url)
    try:
        await migrate(connection)
        await connection.fetchval(query("try_lock"), LOCK)
        row = await connection.fetchrow(query("take_office"), "bench")
        assert row is not None
        office = Office(row["epoch"], row["position"], row["ledger"], LOCK, row["position"])
        if schema:
            await connection.execute(schema)
        yield Bench(connection, Batches(connection, office), office)
    finally:
        await close(connection)


@dataclass(slots=True)
class Engine:
    """Submits units as the engine's finish script does."""

    redis: Redis
    database: Connection[Record]
    database_url: str

    async def submit(
        self,
        job_id: str,
        builder: UnitBuilder,
        *,
        keep_ms: int = 60_000,
        enqueued_ms: int = 1_700_000_000_000,
        queue: str = keys.DEFAULT_QUEUE,
        afterlife_ms: int = 0,
        entry_id: str = "*",
    ) -> str:
        record = JobRecord(
            task="t", args=(1,), kwargs={}, attempt=None, enqueued_ms=enqueued_ms, options={}
        )
        result = ResultRecord(
            job_id=job_id,
            queue=queue,
            task="t",
            args=(1,),
            kwargs={},
            attempt=1,
            enqueued_ms=enqueued_ms,
            started_ms=1,
            finished_ms=2,
            success=True,
            result="done",
        )
        header = msgspec.msgpack.encode((job_id, queue, 1, 1, 2, keep_ms, afterlife_ms))
        fields: dict[Any, Any] = {
            "u": f"{job_id}:{enqueued_ms}:0",
            "o": builder.encode(),
            "j": header,
            "r": encode_result(CODEC, result) if keep_ms else b"",
        }
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.xadd(keys.UNITS, fields, id=entry_id)
            pipe.set(keys.job(job_id), encode_job(CODEC, record), px=60_000)
            pipe.zadd(queue, {job_id: keys.FAR_OFF_MS})
            entry = (await pipe.execute())[0].decode()
        await self.redis.set(keys.in_progress(job_id), keys.COMMITTING + entry)
        return str(entry)

    async def submit_alone(self, unit_id: str, builder: UnitBuilder) -> str:
        fields: dict[Any, Any] = {"u": unit_id, "o": builder.encode()}
        return str((await self.redis.xadd(keys.UNITS, fields)).decode())

    async def answered(self, entry: str, timeout_s: float = 10) -> None:
        async def is_answered() -> bool:
            value = await cast(Any, self.redis.hget(keys.WRITER, "answered"))
            return bool(value) and _number(value.decode()) >= _number(entry)

        _: bool = await wait_until(
            is_answered, description=f"{entry} is answered", timeout_s=timeout_s
        )

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.database.fetch(sql)]

    def candidate(self, name: str | None = None) -> Candidate:
        return Candidate(redis=self.redis, database_url=self.database_url, codec=CODEC, name=name)


def _number(entry: str) -> tuple[int, int]:
    ms, _, sequence = entry.partition("-")
    return int(ms), int(sequence)


@contextlib.asynccontextmanager
async def engine(redis_url: str, database_url: str, schema: str = "") -> AsyncIterator[Engine]:
    redis = Redis.from_url(redis_url)
    database = await asyncpg.connect(database_url)
    try:
        if schema:
            await database.execute(schema)
        yield Engine(redis, database, database_url)
    finally:
        await database.close()
        await redis.aclose()


@contextlib.asynccontextmanager
async def writing(candidate: Candidate) -> AsyncIterator[Candidate]:
    await candidate.start()
    try:
        await wait_until(lambda: candidate.leading, description=f"{candidate.name} leads")
        yield candidate
    finally:
        await candidate.stop()
