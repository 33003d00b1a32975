"""Ten workers, wrong clocks, a kill and a restart: each due time is run once.

The audit reads what the jobs themselves wrote down.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.schedule_worker import INTERVAL_S
from tests.support import wait_until

if TYPE_CHECKING:
    from asyncio.subprocess import Process

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 10
AHEAD_S, BEHIND_S = 3.0, -3.0
SKEWS = [AHEAD_S, BEHIND_S] + [0.0] * (WORKERS - 2)
PERIODS_MS = {"interval": round(INTERVAL_S * 1000), "seconds": 1000}
LONG_MS = 3000


class Fleet:
    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self.processes: list[Process] = []

    async def start(self, skew_s: float) -> Process:
        number = len(self.processes)
        with (self._folder / f"{number}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.schedule_worker"),
                *(self._url, str(self.account(number)), str(skew_s)),
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def account(self, number: int) -> Path:
        return self._folder / f"{number}.txt"

    def runs(self, *numbers: int) -> list[tuple[str, int, str]]:
        """Return name, due time and job id of each run, of some workers or of all."""
        found = []
        for number in numbers or range(len(self.processes)):
            if self.account(number).exists():
                for line in self.account(number).read_text("utf-8").splitlines():
                    name, due_ms, job_id = line.split()
                    found.append((name, int(due_ms), job_id))
        return found

    def last_due(self) -> int:
        return min(
            max((due_ms for name, due_ms, _ in self.runs() if name == wanted), default=0)
            for wanted in (*PERIODS_MS, "own")
        )

    async def goes_on(self, until_ms: int) -> None:
        await wait_until(
            lambda: self.last_due() >= until_ms,
            description="the schedules go on",
            timeout_s=60,
        )

    def is_complete(self, until_ms: int) -> bool:
        """Say whether no due time up to this one is left out."""
        runs = self.runs()
        for name, period_ms in PERIODS_MS.items():
            dues = {due_ms for wanted, due_ms, _ in runs if wanted == name}
            if not dues.issuperset(
                range(min(dues), until_ms // period_ms * period_ms + 1, period_ms)
            ):
                return False
        return True

    def kill_all(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()


@pytest.mark.lasting_keys("runner:schedules:*", "runner:schedule:*")
async def test_each_due_time_is_run_once_by_ten_workers(redis_url: str, tmp_path: Path) -> None:
    fleet = Fleet(redis_url, tmp_path)
    try:
        for skew_s in SKEWS:
            await fleet.start(skew_s)
        await wait_until(
            lambda: all(fleet.account(number).exists() for number in range(WORKERS)),
            description="all workers run",
            timeout_s=60,
        )
        await wait_until(lambda: fleet.runs(0), description="the fast clock runs jobs, too")
        await wait_until(fleet.last_due, description="all schedules run", timeout_s=60)
        await fleet.goes_on(fleet.last_due() + LONG_MS)
        # Whoever ran the last job is the likeliest to be at work.
        killed = max(range(2, WORKERS), key=lambda n: max(fleet.runs(n), default=("", 0, ""))[1])
        fleet.processes[killed].kill()
        await fleet.goes_on(fleet.last_due() + LONG_MS)
        stopped = next(number for number in range(2, WORKERS) if number != killed)
        fleet.processes[stopped].terminate()
        await fleet.start(0.0)
        await fleet.goes_on(fleet.last_due() + LONG_MS)
        # What the killed worker had claimed comes back when its leases are over.
        last_due = fleet.last_due()
        await wait_until(
            lambda: fleet.is_complete(last_due),
            description="no due time is left out",
            timeout_s=60,
        )
        for process in fleet.processes:
            if process.returncode is None:
                process.terminate()
        await asyncio.gather(*(process.wait() for process in fleet.processes))
    finally:
        fleet.kill_all()
    audit(fleet, killed)


def audit(fleet: Fleet, killed: int) -> None:
    """Hold what the jobs wrote against the times at which they were due."""
    runs = fleet.runs()
    # Jobs of the killed worker that it had not settled yet run again.
    unfinished = set(fleet.runs(killed))
    for name, period_ms in PERIODS_MS.items():
        dues = sorted({due_ms for wanted, due_ms, _ in runs if wanted == name})
        assert len(dues) >= 2 * LONG_MS // period_ms
    doubled = {run: count for run, count in Counter(runs).items() if count > 1}
    assert set(doubled) <= unfinished
    assert set(doubled.values()) <= {2}
    assert {job_id for _, _, job_id in runs} == {f"cron:{n}:{due_ms}" for n, due_ms, _ in runs}
    everyone = [number for number in range(len(fleet.processes)) if fleet.runs(number)]
    assert len(everyone) >= 2, "several workers had a part in it"
