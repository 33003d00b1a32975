"""Take the office of writer from a leader in several ways, and measure how long it takes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

import asyncpg
from redis.asyncio import Redis

from runner import keys
from runner.codec import MsgpackCodec
from runner.writer import Candidate, UnitBuilder, writer_status
from runner.writer.session import APPLICATION_NAME
from runner.writer.status import exceeds
from tests.network import Network, NetworkWire
from tests.silence import Wire, wire_to
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Connection, Record

__all__ = ["SCHEMA", "WAYS", "Stage", "Way", "stage"]

ROOT = Path(__file__).resolve().parents[1]
LARGE = 8_000_000
SCHEMA = """
CREATE TABLE total (name text PRIMARY KEY, n bigint NOT NULL);
INSERT INTO total VALUES ('x', 0);
CREATE TABLE blob (data text);
"""
SESSIONS = f"""
SELECT pid, state, wait_event_type FROM pg_stat_activity
 WHERE application_name = '{APPLICATION_NAME}' AND datname = current_database()
"""

Way = Literal[
    "kill",
    "stop",
    "stop in a batch",
    "stop in a message",
    "cut from redis",
    "cut from postgres",
    "backend",
]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(slots=True)
class Stage:
    """A leader in a process of its own, behind wires that can be cut; and one standby here."""

    redis: Redis
    database: Connection[Record]
    database_url: str
    leader: asyncio.subprocess.Process
    to_redis: Wire
    to_postgres: Wire
    standby: Candidate
    submitted: int = 0

    async def submit(self) -> str:
        """Submit one unit without a job."""
        unit = UnitBuilder()
        unit.add("total", key={"name": "x"}, n=1)
        return await self._submit(unit)

    async def _submit(self, unit: UnitBuilder) -> str:
        self.submitted += 1
        fields = {"u": f"client:{self.submitted}", "o": unit.encode()}
        return str((await self.redis.xadd(keys.UNITS, cast(dict[object, object], fields))).decode())  # type: ignore[arg-type]

    async def answered(self, entry: str) -> None:
        """Wait until an entry is committed and answered."""

        async def is_answered() -> bool:
            value = await self.redis.hget(keys.WRITER, "answered")  # type: ignore[misc]
            return bool(value) and not exceeds(entry, value.decode())

        _: bool = await wait_until(is_answered, description=f"{entry} answered", timeout_s=20)

    async def take_over(self, way: Way) -> float:
        """Do that to the leader; return the seconds until the next unit is committed."""
        if way == "stop in a batch":
            return await self._stop_in_a_batch()
        if way == "stop in a message":
            return await self._stop_in_a_message()
        began = time.monotonic()
        await self._harm(way)
        await self.answered(await self.submit())
        return time.monotonic() - began

    async def _harm(self, way: Way) -> None:
        match way:
            case "kill":
                self.leader.kill()
            case "stop":
                self.leader.send_signal(signal.SIGSTOP)
            case "cut from redis":
                self.to_redis.cut()
            case "cut from postgres":
                self.to_postgres.cut()
            case _:
                await self.database.execute(f"SELECT pg_terminate_backend(pid) FROM ({SESSIONS}) s")

    async def _stop_in_a_batch(self) -> float:
        """Stop the leader while its statement runs: it waits for a row that is locked here."""
        holder = await asyncpg.connect(self.database_url)
        try:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("SELECT n FROM total FOR UPDATE")
            entry = await self.submit()

            async def waits() -> bool:
                rows = await self.database.fetch(SESSIONS)
                return any(row["wait_event_type"] == "Lock" for row in rows)

            _: bool = await wait_until(waits, description="the batch waits for the row")
            began = time.monotonic()
            self.leader.send_signal(signal.SIGSTOP)
            await wait_until(lambda: self.standby.leading, description="it leads", timeout_s=20)
            await transaction.rollback()
            await self.answered(entry)
        finally:
            await holder.close()
        return time.monotonic() - began

    async def _stop_in_a_message(self) -> float:
        """Stop the leader while it sends: Postgres has a part of it, and holds a lock."""
        self.to_postgres.hold_after(LARGE // 4)
        unit = UnitBuilder()
        unit.add("total", key={"name": "x"}, n=1)
        unit.execute("INSERT INTO blob VALUES ($1)", "x" * LARGE)
        entry = await self._submit(unit)
        await self.to_postgres.stands.wait()
        began = time.monotonic()
        self.leader.send_signal(signal.SIGSTOP)
        await self.answered(entry)
        return time.monotonic() - began

    def mend(self) -> None:
        """Let the old leader go on, if it lives."""
        self.to_redis.mend()
        self.to_postgres.mend()
        with contextlib.suppress(ProcessLookupError):
            self.leader.send_signal(signal.SIGCONT)

    async def total(self) -> int:
        """Return how many units were applied."""
        return int(await self.database.fetchval("SELECT n FROM total"))


@contextlib.asynccontextmanager
async def stage(
    redis_url: str, database_url: str, network: Network | None = None
) -> AsyncIterator[Stage]:
    """Set a leader and a standby up, in a database that has `SCHEMA`.

    With a network the leader runs inside it, and the kernel cuts its wires.
    """
    wires: list[Wire | None] = [None, None]
    if network:
        urls = (redis_url, database_url)
        wires = [
            NetworkWire(url, network, address)
            for url, address in zip(urls, network.addresses, strict=True)
        ]
    redis, database = Redis.from_url(redis_url), await asyncpg.connect(database_url)
    standby = Candidate(redis=redis, database_url=database_url, codec=MsgpackCodec(), name="near")
    async with (
        wire_to(redis_url, wires[0]) as to_redis,
        wire_to(database_url, wires[1]) as to_postgres,
    ):
        leader = await asyncio.create_subprocess_exec(
            *(network.command if network else []),
            *(sys.executable, "-m", "tests.writer_process", to_redis.url, to_postgres.url, "far"),
            cwd=ROOT,
            stderr=asyncio.subprocess.DEVNULL if "TAKEOVER_LOG" not in os.environ else None,
        )
        try:
            found = Stage(redis, database, database_url, leader, to_redis, to_postgres, standby)
            await found.answered(await found.submit())
            assert (await writer_status(redis)).leader == "far"
            await standby.start()
            yield found
        finally:
            await standby.stop()
            with contextlib.suppress(ProcessLookupError):
                leader.kill()
            await leader.wait()
    await database.close()
    await redis.aclose()
