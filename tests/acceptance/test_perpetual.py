"""Workers of a perpetual task are killed at any moment: its chain neither ends nor splits."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import wait_until

if TYPE_CHECKING:
    from asyncio.subprocess import Process

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
RUNS = int(os.environ.get("PERPETUAL_RUNS", "40"))


class Fleet:
    def __init__(self, url: str, account: Path) -> None:
        self._url = url
        self._account = account
        self.processes: list[Process] = []
        self.killed = 0

    async def keep_up(self) -> None:
        """Start a worker for each that was killed."""
        living = [process for process in self.processes if process.returncode is None]
        self.killed += len(self.processes) - len(living)
        while len(living) < WORKERS:
            living.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.perpetual_worker"),
                    *(self._url, str(self._account)),
                    cwd=ROOT,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                )
            )
        self.processes = living

    async def stop(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*(process.wait() for process in self.processes))

    def runs(self) -> dict[int, list[str]]:
        """Return the ids of the jobs that ran as each number."""
        found: dict[int, list[str]] = defaultdict(list)
        if self._account.exists():
            for line in self._account.read_text("utf-8").splitlines():
                number, job_id = line.split()
                found[int(number)].append(job_id)
        return found


@pytest.mark.timeout(240)
@pytest.mark.lasting_keys("runner:schedules:*", "runner:schedule:*", "runner:held:*")
async def test_chain_neither_ends_nor_splits_when_its_workers_are_killed(
    redis_url: str, tmp_path: Path
) -> None:
    fleet = Fleet(redis_url, tmp_path / "account.txt")

    async def far_enough() -> bool:
        await fleet.keep_up()
        return max(fleet.runs(), default=0) >= RUNS

    try:
        await wait_until(far_enough, description=f"{RUNS} runs", timeout_s=200)
    finally:
        await fleet.stop()
    runs = fleet.runs()
    assert sorted(runs) == list(range(1, max(runs) + 1)), "no number is left out"
    for number, job_ids in runs.items():
        assert len(set(job_ids)) == 1, f"number {number} had several jobs: {job_ids}"
    assert len({job_ids[0] for job_ids in runs.values()}) == len(runs)
    assert fleet.killed > 0
