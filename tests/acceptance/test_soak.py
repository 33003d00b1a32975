"""Jobs that leak, for a while: what leaks stays bounded, and every job is accounted for.

Three minutes in ``make test``; ``make soak`` is the long form, half an hour. The figures are shown
by ``pytest -rP``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import runner
from tests.fleet import Fleet, fleet

SOAK_S = float(os.environ.get("SOAK_S", "180"))
LIMIT_MB = 150
SLACK_MB = 150
"""What a process may take on until its replacement is ready, and it has finished."""
MOST_FILES = 1000
SETTINGS = f"""
max_memory_mb = {LIMIT_MB}
max_jobs = 20
left_tasks = "cancel"
left_resources = "report"
"""
PARTS = 3
AT_ONCE = 500

pytestmark = [pytest.mark.timeout(SOAK_S * 1.5 + 240), pytest.mark.lasting_keys("runner:*")]


@dataclass
class Seen:
    """What was enqueued, and the most that one worker held meanwhile."""

    jobs: list[Any] = field(default_factory=list)
    most_mb: float = 0
    most_files: int = 0
    workers: set[int] = field(default_factory=set)

    def look(self, pid: int) -> None:
        self.workers.add(pid)
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except (OSError, IndexError):
            return
        self.most_mb = max(self.most_mb, pages * os.sysconf("SC_PAGESIZE") / 1e6)
        self.most_files = max(self.most_files, files)


async def leak(client: Any, running: Fleet) -> Seen:
    """Enqueue jobs that leak memory, tasks and connections."""
    clock = asyncio.get_running_loop().time
    until, seen = clock() + SOAK_S, Seen()
    while clock() < until:
        keeps = len(seen.jobs) % 2 == 0
        calls = [("hold", 1), ("leave_a_task", 0.01), ("connect", keeps), ("quick", 0.02)]
        calls.append(("quick", 0))  # an odd number, so that `keeps` changes
        seen.jobs += [await client.enqueue(*call) for call in calls]
        for pid in running.members():
            seen.look(pid)
        await asyncio.sleep(0.03)
    return seen


async def runs_of_all(client: Any, jobs: list[Any]) -> list[list[bytes]]:
    """Return of each job the notes of its runs."""
    found: list[list[bytes]] = []
    for start in range(0, len(jobs), AT_ONCE):
        async with client.pipeline(transaction=False) as pipe:
            for job in jobs[start : start + AT_ONCE]:
                pipe.lrange(f"runs:{job.job_id}", 0, -1)
            found += await pipe.execute()
    return found


def begun_by_part(began: list[float]) -> list[int]:
    """Return how many jobs began in each of equal parts of the time."""
    first, last = min(began), max(began)
    counts = [0] * PARTS
    for at in began:
        counts[min(int((at - first) / (last - first) * PARTS), PARTS - 1)] += 1
    return counts


async def test_leaks_do_not_add_up_and_no_job_is_lost(redis_url: str, tmp_path: Path) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2", more=SETTINGS) as running,
    ):
        await running.ready()
        seen = await leak(client, running)
        for job in seen.jobs:
            await job.result(timeout=60)
        runs = await runs_of_all(client, seen.jobs)
        counts = begun_by_part([float(notes[0].split()[1]) for notes in runs])
        sys.stdout.write(
            f"{len(seen.jobs)} jobs in {SOAK_S:g} s, begun by thirds {counts}, in "
            f"{len(seen.workers)} processes of at most {seen.most_mb:.0f} MB and "
            f"{seen.most_files} files\n"
        )
        assert [len(notes) for notes in runs] == [1] * len(seen.jobs)
        stats = await client.queue_stats()
        assert (stats.succeeded, stats.retried, stats.crashed) == (len(seen.jobs), 0, 0)
        assert (stats.failed, stats.queued, stats.running, stats.dead) == (0, 0, 0, 0)
        assert running.says("max_memory_mb is 150", 2)
        assert running.says("which are cancelled")
        assert running.says("has not closed")
        assert LIMIT_MB < seen.most_mb < LIMIT_MB + SLACK_MB
        assert seen.most_files < MOST_FILES
        # Steady as far as other load on the machine lets it be.
        assert min(counts) > max(counts) / 3
        assert await running.end() == 0
