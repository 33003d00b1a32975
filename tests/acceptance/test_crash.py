"""Writers and workers are killed by the hundred; every unit is applied once, and in order.

Run more of it on demand, with more of ``CRASH_KILLS`` and ``CRASH_UNITS``::

    CRASH_KILLS=2000 CRASH_UNITS=500000 pytest tests/acceptance/test_crash.py
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from redis.asyncio import Redis

import runner
from runner import keys
from runner.writer import UnitBuilder, writer_status
from runner.writer.session import APPLICATION_NAME
from tests.crash_process import LEASE_S, purchase
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import ChaosServers

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("CRASH_KILLS", "100"))
UNITS = int(os.environ.get("CRASH_UNITS", "20000"))
WRITERS, WORKERS = 3, 4
CALLERS, AT_ONCE = 50, 8
SERVICES = 5
BETWEEN_KILLS_S = (0.15, 0.55)

SCHEMA = """
CREATE TABLE purchase (job text PRIMARY KEY);
CREATE TABLE log (id bigserial PRIMARY KEY, caller text NOT NULL, number int NOT NULL);
CREATE TABLE total (caller text PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
CREATE TABLE stock (item int PRIMARY KEY, n bigint NOT NULL);
INSERT INTO stock SELECT i, 0 FROM generate_series(0, 4) i;
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it."""

    kills: int
    units: int
    restarts: int
    variant: str = "sound"


@dataclass
class Fleet:
    """The processes: which run, which are writers, and the one that forks them."""

    nursery: asyncio.subprocess.Process
    variant: str
    chance: random.Random
    writers: list[int] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)
    stopped: set[int] = field(default_factory=set)
    killed: collections.Counter[str] = field(default_factory=collections.Counter)

    async def start(self, role: str) -> None:
        assert self.nursery.stdin
        assert self.nursery.stdout
        line = "worker\n" if role == "worker" else f"writer {self.variant}\n"
        self.nursery.stdin.write(line.encode())
        pid = int(await self.nursery.stdout.readline())
        (self.workers if role == "worker" else self.writers).append(pid)

    async def kill(self, pid: int) -> None:
        role = "worker" if pid in self.workers else "writer"
        (self.workers if role == "worker" else self.writers).remove(pid)
        os.kill(pid, signal.SIGKILL)
        self.killed[role] += 1
        await self.start(role)

    async def stop_a_while(self, pid: int, delay_s: float) -> None:
        self.stopped.add(pid)
        os.kill(pid, signal.SIGSTOP)
        self.killed["stopped"] += 1
        await asyncio.sleep(delay_s)  # the time is what is tested
        os.kill(pid, signal.SIGCONT)
        self.stopped.discard(pid)

    def choose(self, pids: list[int]) -> int | None:
        free = [pid for pid in pids if pid not in self.stopped]
        return self.chance.choice(free) if free else None


@contextlib.asynccontextmanager
async def fleet_of(servers: ChaosServers, plan: Plan, log: Path) -> AsyncIterator[Fleet]:
    nursery = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.crash_process"),
        *(servers.redis_url, servers.database_url, str(log)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert nursery.stdin
    fleet = Fleet(nursery, plan.variant, random.Random(2013))
    try:
        for _ in range(WRITERS):
            await fleet.start("writer")
        for _ in range(WORKERS):
            await fleet.start("worker")
        yield fleet
    finally:
        nursery.stdin.close()
        await nursery.wait()


@dataclass
class Account:
    """What callers have seen."""

    jobs: dict[str, list[int]] = field(default_factory=lambda: collections.defaultdict(list))
    direct: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    answered: int = 0

    @property
    def submitted(self) -> int:
        return sum(map(len, self.jobs.values())) + sum(self.direct.values())


class Hurt:
    """Kills, stops and restarts, one thing after the other, as long as there is load."""

    def __init__(self, servers: ChaosServers, fleet: Fleet, plan: Plan, redis: Redis) -> None:
        self._servers, self._fleet, self._plan, self._redis = servers, fleet, plan, redis
        self._restarts = 0

    @property
    def is_done(self) -> bool:
        killed = self._fleet.killed
        kills = killed["writer"] + killed["worker"] + killed["stopped"]
        return kills >= self._plan.kills and self._restarts >= self._plan.restarts

    async def run(self) -> None:
        fleet, chance = self._fleet, self._fleet.chance
        async with asyncio.TaskGroup() as group:
            while not self.is_done:
                await asyncio.sleep(chance.uniform(*BETWEEN_KILLS_S))
                done = sum(fleet.killed.values()) / self._plan.kills
                if self._restarts < self._plan.restarts * min(1.0, done * 1.2):
                    await self._servers.restart_postgres(kill=self._restarts % 2 == 0)
                    self._restarts += 1
                    continue
                what = chance.random()
                if what < 0.4:
                    pid = await self._leader() or fleet.choose(fleet.writers)
                    pid = pid if pid not in fleet.stopped else None
                elif what < 0.8 or self._plan.variant != "sound":
                    pid = fleet.choose(fleet.workers)
                else:
                    pid = None
                if pid is not None:
                    await fleet.kill(pid)
                elif what < 0.93:
                    self._stop_one(group)
                else:
                    await self._end_backends()

    def _stop_one(self, group: asyncio.TaskGroup) -> None:
        fleet = self._fleet
        pid = fleet.choose(fleet.writers + fleet.workers)
        if pid is not None and len(fleet.stopped) < 2:
            delay_s = fleet.chance.choice((0.2, 1.0, LEASE_S + 0.5))
            group.create_task(fleet.stop_a_while(pid, delay_s), name="stopped for a while")

    async def _leader(self) -> int | None:
        name = await self._redis.get(keys.LEADER)
        pid = int(name.decode().split(":")[1]) if name else None
        return pid if pid in self._fleet.writers else None

    async def _end_backends(self) -> None:
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            database = await asyncpg.connect(self._servers.database_url)
            try:
                await database.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = $1",
                    APPLICATION_NAME,
                )
            finally:
                await database.close()
            self._fleet.killed["backends"] += 1


async def call(
    client: runner.Client, caller: str, plan: Plan, account: Account, hurting: asyncio.Task[None]
) -> None:
    """Enqueue jobs some at a time, each time after those before were answered."""
    jobs = account.jobs[caller]
    while len(jobs) < plan.units // CALLERS or not hurting.done():
        numbers = range(len(jobs), len(jobs) + AT_ONCE)
        sent = [
            await client.enqueue(purchase.options(key=f"{caller}-{n}"), caller, n) for n in numbers
        ]
        jobs.extend(numbers)
        for number, outcome in zip(
            numbers,
            await asyncio.gather(*(job.result(timeout=90) for job in sent), return_exceptions=True),
            strict=True,
        ):
            if outcome != number:
                account.failed.append(f"{caller}-{number}: {outcome!r}")
            account.answered += 1
        if account.submitted > plan.units:
            await asyncio.sleep(0.3)  # enough are there, but the killing is not over


async def submit(redis: Redis, caller: str, account: Account, hurting: asyncio.Task[None]) -> None:
    """Submit units without a job, one after the other and without waiting for any answer."""
    account.direct[caller] = 0
    while not hurting.done():
        async with redis.pipeline(transaction=False) as pipe:
            for _ in range(10):
                number = account.direct[caller]
                unit = UnitBuilder()
                unit.insert("log", caller=caller, number=number)
                unit.add("total", key={"caller": caller}, missing="insert", n=1)
                fields: dict[Any, Any] = {"u": f"{caller}:{number}", "o": unit.encode()}
                pipe.xadd(keys.UNITS, fields)
                account.direct[caller] += 1
            await pipe.execute()
        await asyncio.sleep(0.1)


async def crash(servers: ChaosServers, plan: Plan, log: Path) -> list[str]:
    """Run the load and the killing, and return what is wrong afterwards."""
    database = await asyncpg.connect(servers.database_url)
    schema = SCHEMA
    if plan.variant == "after":
        # What is applied again is to be seen, not refused: this writer cannot go on behind that.
        schema = schema.replace("job text PRIMARY KEY", "job text")
    await database.execute(schema)
    await database.close()
    account = Account()
    async with (
        runner.connect(servers.redis_url) as client,
        Redis.from_url(servers.redis_url) as redis,
        fleet_of(servers, plan, log) as fleet,
    ):
        async with asyncio.TaskGroup() as group:
            hurting = group.create_task(Hurt(servers, fleet, plan, redis).run(), name="hurt")
            for number in range(CALLERS):
                group.create_task(call(client, f"caller{number}", plan, account, hurting))
            for number in range(SERVICES):
                group.create_task(submit(redis, f"service{number}", account, hurting))

        wrong = await drain(redis, plan)
        wrong += await check(servers.database_url, account)
        wrong += [f"dead: {letter.job_id} {letter.error}" for letter in await client.dead_letters()]
        wrong += [f"left: {key!r}" async for key in redis.scan_iter("arq:in-progress:*")]
    sys.stdout.write(f"{account.submitted} units, {dict(fleet.killed)}\n")
    return wrong


async def drain(redis: Redis, plan: Plan) -> list[str]:
    """Wait until everything was applied and answered; return what is left, where something is."""

    async def drained() -> bool:
        status = await writer_status(redis)
        return status.backlog == 0 and await redis.zcard(keys.DEFAULT_QUEUE) == 0

    # The controls lose units, and the jobs that wait for them: they are not waited for as long.
    timeout_s = 60 if plan.variant == "sound" else 20
    try:
        await wait_until(drained, description="all was applied", timeout_s=timeout_s)
    except AssertionError:
        left = await redis.zrange(keys.DEFAULT_QUEUE, 0, 4, withscores=True)
        return [f"not drained: {await writer_status(redis)}, queued {left}"]
    return []


async def check(database_url: str, account: Account) -> list[str]:
    """Compare what is in the tables with what was submitted; return the differences."""
    database = await asyncpg.connect(database_url)
    try:
        log = await database.fetch("SELECT caller, number FROM log ORDER BY id")
        rows = await database.fetch("SELECT caller, n FROM total")
        stock = await database.fetchval("SELECT -sum(n) FROM stock")
        purchases = await database.fetchval("SELECT count(*) FROM purchase")
    finally:
        await database.close()
    totals = {row["caller"]: row["n"] for row in rows}
    by_caller: dict[str, list[int]] = collections.defaultdict(list)
    for row in log:
        by_caller[row["caller"]].append(row["number"])
    wrong = [f"failed: {text}" for text in account.failed]
    expected = {caller: len(numbers) for caller, numbers in account.jobs.items()} | account.direct
    for caller, count in expected.items():
        times = collections.Counter(by_caller[caller])
        wrong += [f"lost: {caller} {n}" for n in range(count) if not times[n]]
        wrong += [f"twice: {caller} {n}" for n, seen in times.items() if seen > 1]
        if totals.get(caller, 0) != count:
            wrong.append(f"total: {caller} has {totals.get(caller)} of {count}")
        # Jobs that were enqueued together may end in any order; those after them come after.
        width = 1 if caller in account.direct else AT_ONCE
        order = [number // width for number in by_caller[caller]]
        if order != sorted(order):
            wrong.append(f"order: {caller}")
    jobs = sum(map(len, account.jobs.values()))
    if (stock, purchases, account.answered) != (jobs, jobs, jobs):
        wrong.append(f"{jobs} jobs: {stock=} {purchases=} {account.answered=}")
    return wrong


@pytest.mark.timeout(180 + KILLS * 3 + UNITS // 100)
async def test_every_unit_is_applied_once_and_in_order_whoever_is_killed(
    chaos_servers: ChaosServers, tmp_path: Path
) -> None:
    plan = Plan(kills=KILLS, units=UNITS, restarts=2)
    assert await crash(chaos_servers, plan, tmp_path / "log") == []


@pytest.mark.parametrize(
    ("variant", "finding"), [("before", "lost: "), ("after", "twice: service")]
)
@pytest.mark.timeout(180)
async def test_the_same_check_finds_a_position_that_is_not_moved_with_the_batch(
    chaos_servers: ChaosServers, tmp_path: Path, variant: str, finding: str
) -> None:
    plan = Plan(kills=15, units=500, restarts=0, variant=variant)
    wrong = await crash(chaos_servers, plan, tmp_path / "log")
    assert any(text.startswith(finding) for text in wrong), wrong[:20]
