"""Workers are killed while they run flows: none gets stuck, no join runs early, none runs twice.

Run more of it on demand: ``FLOWS=5000 pytest tests/acceptance/test_workflow_kills.py``.
"""

from __future__ import annotations

import asyncio
import collections
import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import Flow, NodeState, keys
from runner.workflow.graph import interpret
from tests.flow_worker import accounted

if TYPE_CHECKING:
    from asyncio.subprocess import Process

ROOT = Path(__file__).resolve().parents[2]
FLOWS = int(os.environ.get("FLOWS", "500"))
WORKERS = 3
BETWEEN_S = 0.03


@dataclass
class Incarnation:
    """One worker process, and whether it was killed."""

    process: Process
    account: Path
    was_killed: bool = False


@dataclass
class Fleet:
    url: str
    folder: Path
    chance: random.Random
    running: list[Incarnation] = field(default_factory=list)
    all: list[Incarnation] = field(default_factory=list)

    async def start(self) -> None:
        account = self.folder / f"worker-{len(self.all)}.txt"
        account.touch()
        with account.with_suffix(".log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.flow_worker", self.url, str(account)),
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self.running.append(Incarnation(process, account))
        self.all.append(self.running[-1])

    async def kill_until(self, done: asyncio.Event) -> int:
        kills = 0
        while not done.is_set():
            await asyncio.sleep(self.chance.uniform(0.3, 1.2))  # the pace of the kills
            victim = self.running.pop(0)
            victim.was_killed = True
            victim.process.kill()
            await victim.process.wait()
            kills += 1
            await self.start()
        return kills

    def kill_all(self) -> None:
        for incarnation in self.all:
            if incarnation.process.returncode is None:
                incarnation.process.kill()


@dataclass
class Accounts:
    """What all workers noted: by job, when it started and ended, and where."""

    starts: dict[str, list[int]] = field(default_factory=lambda: collections.defaultdict(list))
    ends: dict[str, list[int]] = field(default_factory=lambda: collections.defaultdict(list))
    whole: collections.Counter[str] = field(default_factory=collections.Counter)

    def read(self, incarnation: Incarnation) -> None:
        for line in incarnation.account.read_text("utf-8").splitlines():
            what, job_id, at = line.split()
            (self.starts if what == "start" else self.ends)[job_id].append(int(at))
            if what == "start" and not incarnation.was_killed:
                self.whole[job_id] += 1


def random_flow(chance: random.Random, number: int) -> tuple[Flow, set[str]]:
    """Return a flow of up to nine nodes, and the names of those that fail."""
    flow = Flow(f"flow {number}", keep_result=600)
    added: list[Any] = []
    fails: set[str] = set()
    for index in range(chance.randint(2, 9)):
        name = f"n{index}"
        parents = chance.sample(added, min(len(added), chance.randint(0, 4)))
        if chance.random() < 0.1:
            fails.add(name)
        added.append(
            flow.add(
                accounted.call(
                    name,
                    [parent.result for parent in parents],
                    fails=name in fails,
                    grows=chance.random() < 0.05 and name not in fails,
                ),
                name=name,
                after=parents,
            )
        )
    return flow, fails


async def start_flows(
    client: runner.Client, chance: random.Random
) -> list[tuple[runner.Run[Any], Flow, set[str]]]:
    started = []
    for number in range(FLOWS):
        flow, fails = random_flow(chance, number)
        started.append((await client.start(flow), flow, fails))
        await asyncio.sleep(BETWEEN_S)  # so that there is something to break for a while
    return started


async def check(run: runner.Run[Any], flow: Flow, fails: set[str], accounts: Accounts) -> None:
    nodes = await run.nodes()
    reference = interpret(flow.graph(), lambda name: name not in fails)
    states = {node.name: node.state for node in nodes}
    expected = reference.final()
    assert {name: states[name] for name in expected} == expected
    job_ids = {node.name: node.job_id for node in nodes}
    for node in nodes:
        ran = states[node.name] in (NodeState.SUCCEEDED, NodeState.FAILED)
        starts = accounts.starts.get(node.job_id, [])
        assert bool(starts) == ran, node
        assert accounts.whole[node.job_id] <= 1, f"{node} ran twice where nobody was killed"
        for parent in node.after:
            ended = accounts.ends[job_ids[parent]]
            assert all(min(ended) < start for start in starts), f"{node} ran before {parent}"


@pytest.mark.timeout(120 + FLOWS // 2)
@pytest.mark.lasting_keys("runner:held:*")
async def test_flows_survive_the_death_of_their_workers(redis_url: str, tmp_path: Path) -> None:
    chance = random.Random(1913)
    fleet = Fleet(redis_url, tmp_path, chance)
    done = asyncio.Event()
    try:
        for _ in range(WORKERS):
            await fleet.start()
        async with runner.connect(redis_url) as client:
            killer = asyncio.create_task(fleet.kill_until(done), name="killer")
            try:
                started = await start_flows(client, random.Random(7))
            finally:
                done.set()
                kills = await killer
            statuses = await asyncio.gather(*(run.wait(timeout=60) for run, _, _ in started))
            assert all(status.has_ended and not status.problem for status in statuses)
            assert kills >= 3
            accounts = Accounts()
            for incarnation in fleet.all:
                accounts.read(incarnation)
            for run, flow, fails in started:
                await check(run, flow, fails, accounts)
            assert await client.zcard(keys.DEFAULT_QUEUE) == 0
            again = sum(len(starts) > 1 for starts in accounts.starts.values())
            assert again > 0, "no kill has hit a job: this has shown nothing"
    finally:
        fleet.kill_all()
        for incarnation in fleet.all:
            await incarnation.process.wait()
