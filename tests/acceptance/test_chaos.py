"""Workers are killed and stopped, Redis restarts; every acknowledged job is accounted for.

Run more of it on demand: ``CHAOS_JOBS=200000 pytest tests/acceptance/test_chaos.py``.
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
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import RedisError

import runner
from runner import keys
from tests.chaos_worker import LEASE_S, accounted
from tests.support import wait_until

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from tests.servers import ChaosServers

ROOT = Path(__file__).resolve().parents[2]
JOBS = int(os.environ.get("CHAOS_JOBS", "20000"))
PRODUCERS = 3
WORKERS = 4
RESTARTS = 3
AT_ONCE = 50
A_SECOND = 900  # jobs that the producers send in a second, so that there is something to break


@dataclass
class Incarnation:
    """One worker process, and whether anything was done to it."""

    process: Process
    account: Path
    was_hurt: bool = False


@dataclass
class Fleet:
    url: str
    folder: Path
    chance: random.Random
    running: list[Incarnation] = field(default_factory=list)
    all: list[Incarnation] = field(default_factory=list)

    async def start(self) -> None:
        account = self.folder / f"worker-{len(self.all)}.txt"
        with account.with_suffix(".log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.chaos_worker", self.url, str(account)),
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        incarnation = Incarnation(process, account)
        self.running.append(incarnation)
        self.all.append(incarnation)

    def check_alive(self) -> None:
        """No worker ends by itself, whatever happens around it."""
        for incarnation in self.running:
            said = incarnation.account.with_suffix(".log")
            assert incarnation.process.returncode is None, said.read_text("utf-8")

    async def kill_one(self) -> None:
        victim = self.running.pop(self.chance.randrange(len(self.running)))
        victim.was_hurt = True
        victim.process.kill()
        await victim.process.wait()
        await self.start()

    async def stop_one_for_longer_than_a_lease(self) -> None:
        victim = self.chance.choice(self.running)
        victim.was_hurt = True
        victim.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(LEASE_S + 1)  # the time is what is tested
        self.check_alive()
        victim.process.send_signal(signal.SIGCONT)

    async def end(self) -> None:
        for incarnation in self.running:
            incarnation.process.terminate()
        for incarnation in self.running:
            assert await incarnation.process.wait() is not None

    def kill_all(self) -> None:
        for incarnation in self.all:
            if incarnation.process.returncode is None:
                incarnation.process.send_signal(signal.SIGCONT)
                incarnation.process.kill()


async def produce(client: runner.Client, numbers: range, acknowledged: set[str]) -> None:
    """Enqueue jobs under ids of their own, again and again until each is acknowledged."""
    for start in range(0, len(numbers), AT_ONCE):
        began = asyncio.get_running_loop().time()
        await asyncio.gather(
            *(enqueue(client, number, acknowledged) for number in numbers[start : start + AT_ONCE])
        )
        took_s = asyncio.get_running_loop().time() - began
        await asyncio.sleep(max(0.0, AT_ONCE * PRODUCERS / A_SECOND - took_s))


async def enqueue(client: runner.Client, number: int, acknowledged: set[str]) -> None:
    while True:
        try:
            job = await client.enqueue(accounted.options(key=f"job-{number}"), number)
        except (RedisError, OSError, runner.RunnerError):
            await asyncio.sleep(0.05)  # Redis is away
        else:
            acknowledged.add(job.job_id)
            return


async def hurt(fleet: Fleet, servers: ChaosServers, acknowledged: set[str]) -> int:
    """Kill, stop and restart until all jobs are acknowledged; return how often Redis was."""
    restarts = 0
    while len(acknowledged) < JOBS or restarts < RESTARTS:
        await asyncio.sleep(fleet.chance.uniform(0.2, 1.0))
        fleet.check_alive()
        if restarts < RESTARTS and len(acknowledged) >= JOBS * (restarts + 1) // (RESTARTS + 1):
            await servers.restart_redis(kill=restarts % 2 == 0)
            restarts += 1
        elif fleet.chance.random() < 0.7:
            await fleet.kill_one()
        else:
            await fleet.stop_one_for_longer_than_a_lease()
    return restarts


@pytest.mark.timeout(120 + JOBS // 100)
async def test_every_acknowledged_job_is_accounted_for(
    chaos_servers: ChaosServers, tmp_path: Path
) -> None:
    fleet = Fleet(chaos_servers.redis_url, tmp_path, random.Random(2013))
    acknowledged: set[str] = set()
    try:
        for _ in range(WORKERS):
            await fleet.start()
        async with runner.connect(chaos_servers.redis_url) as client:
            share = -(-JOBS // PRODUCERS)
            async with asyncio.TaskGroup() as group:
                for start in range(0, JOBS, share):
                    numbers = range(start, min(start + share, JOBS))
                    group.create_task(produce(client, numbers, acknowledged))
                hurting = group.create_task(hurt(fleet, chaos_servers, acknowledged))
            assert hurting.result() == RESTARTS

            async def drained() -> bool:
                with contextlib.suppress(RedisError, OSError):  # it may have just restarted
                    return (await client.queue_stats()).queued == 0
                return False

            await wait_until(drained, description="all jobs ended", timeout_s=60 + JOBS / 500)
            fleet.check_alive()
            await check_results(client, acknowledged)
            await fleet.end()
            await check_keys(client)
    finally:
        fleet.kill_all()
    check_runs(fleet, acknowledged)


async def check_results(client: runner.Client, acknowledged: set[str]) -> None:
    assert acknowledged == {f"job-{number}" for number in range(JOBS)}
    for number in range(JOBS):
        assert await client.job(f"job-{number}").result(timeout=10) == number
    assert await client.dead_letters() == []


async def check_keys(client: runner.Client) -> None:
    """No key of ours without a lifetime is left."""
    lasting = [key async for key in client.scan_iter("runner:*") if await client.ttl(key) == -1]
    assert lasting == []
    assert await client.exists(keys.held(keys.DEFAULT_QUEUE)) == 0


def check_runs(fleet: Fleet, acknowledged: set[str]) -> None:
    runs: dict[str, list[Incarnation]] = collections.defaultdict(list)
    ends: collections.Counter[str] = collections.Counter()
    for incarnation in fleet.all:
        if not incarnation.account.exists():
            continue  # killed before it ran anything
        for line in incarnation.account.read_text("ascii").splitlines():
            what, job_id = line.split(" ")
            if what == "start":
                runs[job_id].append(incarnation)
            else:
                ends[job_id] += 1
    assert set(runs) == acknowledged  # every acknowledged job ran, and no other did
    assert set(ends) == acknowledged
    twice = {
        job_id: len(by)
        for job_id, by in runs.items()
        if len(by) > 1 and not any(incarnation.was_hurt for incarnation in by)
    }
    assert twice == {}  # a job whose workers lived ran once
    again = sum(len(by) > 1 for by in runs.values())
    assert again > 0  # it was chaos
