"""Behind Sentinel: the master goes over to its replica, and workers and clients go with it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

import runner
from runner import Context, RedisSettings, task
from runner.embedded.programs import find_redis
from runner.worker import Worker
from tests.engine import Gate, lease_is_renewed, started
from tests.support import wait_until

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)

LEASE_S = 2.0
MASTER = "main"
JOBS = 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Group:
    """One master, one replica, and sentinels that watch them."""

    folder: Path
    ports: list[int] = field(default_factory=list)
    sentinels: list[int] = field(default_factory=list)
    processes: dict[int, Process] = field(default_factory=dict)

    async def start(self) -> None:
        self.ports = [free_port(), free_port()]
        first, second = self.ports
        await self._run(first, "save ''", "repl-diskless-sync-delay 0")
        await self._run(second, "save ''", f"replicaof 127.0.0.1 {first}")
        await wait_until(lambda: self._is_in_sync(first), description="the replica is in sync")
        self.sentinels = [free_port() for _ in range(3)]
        for port in self.sentinels:
            await self._run(
                port,
                f"sentinel monitor {MASTER} 127.0.0.1 {first} 2",
                f"sentinel down-after-milliseconds {MASTER} 1000",
                f"sentinel failover-timeout {MASTER} 5000",
                sentinel=True,
            )
        await wait_until(self._know_each_other, description="the sentinels agree", timeout_s=30)

    async def _run(self, port: int, *lines: str, sentinel: bool = False) -> None:
        found = find_redis()
        assert found is not None
        folder = self.folder / str(port)
        folder.mkdir()
        text = "\n".join([f"port {port}", "bind 127.0.0.1", f"dir {folder}", *lines])
        (folder / "server.conf").write_text(text + "\n")
        self.processes[port] = await asyncio.create_subprocess_exec(
            str(found.server),
            *(str(folder / "server.conf"), *(["--sentinel"] if sentinel else [])),
            stdout=asyncio.subprocess.DEVNULL,
        )
        await wait_until(lambda: self._answers(port), description=f"{port} answers")

    async def ask(self, port: int, *command: Any) -> Any:
        async with Redis(port=port, decode_responses=True) as redis:
            execute: Any = redis.execute_command  # it has no types
            return await execute(*command)

    async def _answers(self, port: int) -> bool:
        with contextlib.suppress(RedisError, OSError):
            return bool(await self.ask(port, "PING"))
        return False

    async def _is_in_sync(self, port: int) -> bool:
        replication = await self.ask(port, "INFO", "replication")
        slaves: int = replication["connected_slaves"]
        return slaves == 1 and bool(replication["slave0"]["state"] == "online")

    async def _know_each_other(self) -> bool:
        for port in self.sentinels:
            masters = await self.ask(port, "SENTINEL MASTERS")
            state = masters[MASTER]
            if state["num-other-sentinels"] != 2 or state["num-slaves"] != 1:
                return False
        return True

    async def master(self) -> int:
        _, port = await self.ask(self.sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return int(port)

    async def switched(self, old: int) -> bool:
        new = await self.master()
        if new == old or not await self._answers(new):
            return False
        role = await self.ask(new, "ROLE")
        return str(role[0]) == "master"

    async def end(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()

    @property
    def settings(self) -> RedisSettings:
        addresses = [("127.0.0.1", port) for port in self.sentinels]
        return RedisSettings(host=addresses, sentinel=True, sentinel_master=MASTER)


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    made = Group(tmp_path)
    try:
        await made.start()
        yield made
    finally:
        await made.end()


@task
async def brief(ctx: Context, number: int) -> int:
    ctx["runs"][number] += 1
    await asyncio.sleep(0.01)
    return number


@task
async def lasting(ctx: Context) -> str:
    ctx["runs"]["lasting"] += 1
    await ctx["gate"]()
    return "done"


@asynccontextmanager
async def workers(group: Group, **ctx: Any) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for _ in range(2):
            worker = Worker(
                [brief, lasting],
                redis_settings=group.settings,
                handle_signals=False,
                codec="msgpack",
                history=True,
                lease=LEASE_S,
                max_jobs=20,
                poll_delay=0.2,
                ctx=dict(ctx),
            )
            await stack.enter_async_context(started(worker))
        yield


async def switch_over(group: Group, old: int) -> None:
    """The master is asked to step down, and lives on as a replica."""
    # Until it has stepped down, what it acknowledged alone would be lost: without a replica it
    # refuses to write, as the manual of Sentinel advises.
    await group.ask(old, "CONFIG", "SET", "min-replicas-to-write", "1")
    await group.ask(group.sentinels[0], "SENTINEL", "FAILOVER", MASTER)
    await wait_until(lambda: group.switched(old), description="the replica leads", timeout_s=30)


async def fail_over(group: Group, old: int) -> None:
    """The master dies."""
    group.processes[old].kill()
    await wait_until(lambda: group.switched(old), description="the replica leads", timeout_s=30)


@pytest.mark.parametrize("change", [switch_over, fail_over])
async def test_no_acknowledged_job_is_lost_and_leases_are_renewed_at_the_new_master(
    group: Group, change: Any
) -> None:
    runs: collections.Counter[Any] = collections.Counter()
    gate = Gate()
    async with runner.connect(group.settings) as client:
        long = await client.enqueue(lasting)
        async with workers(group, runs=runs, gate=gate):
            await gate.runs.wait()
            jobs = await client.enqueue_many([brief.call(n) for n in range(JOBS)])
            old = await group.master()
            # What is acknowledged is on the replica too: replication answers later than Redis.
            assert await group.ask(old, "WAIT", 1, 5000) == 1
            await change(group, old)
            jobs += [await enqueue(client, JOBS + n) for n in range(JOBS)]
            results = await asyncio.gather(*(job.result(timeout=30) for job in jobs))
            assert results == list(range(2 * JOBS))
            async with Redis(port=await group.master()) as master:
                await lease_is_renewed(master, long.job_id)
            gate.opens.set()
            assert await long.result(timeout=10) == "done"
    assert runs["lasting"] == 1
    assert set(runs) == {"lasting", *range(2 * JOBS)}


async def enqueue(client: runner.Client, number: int) -> runner.Job[int]:
    while True:
        try:
            return await client.enqueue(brief.options(key=f"job-{number}"), number)
        except (RedisError, OSError, runner.RunnerError):
            await asyncio.sleep(0.05)  # the new master is not known everywhere yet
