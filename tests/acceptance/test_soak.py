"""Jobs that leak, for a while: memory stays bounded, and every job is accounted for.

``SOAK_S=1800 pytest tests/acceptance/test_soak.py`` is the long form.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

import runner
from tests.fleet import Fleet, fleet

SOAK_S = float(os.environ.get("SOAK_S", "20"))
LIMIT_MB = 150
SLACK_MB = 150
"""What a process may take on until its replacement is ready, and it has finished."""
SETTINGS = f"""
max_memory_mb = {LIMIT_MB}
max_jobs = 20
left_tasks = "cancel"
"""

pytestmark = [pytest.mark.timeout(SOAK_S + 180), pytest.mark.lasting_keys("runner:*")]


def resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


async def leak(client: Any, running: Fleet) -> tuple[list[Any], float]:
    """Enqueue jobs that leak memory and tasks; return them, and the most a worker held."""
    clock = asyncio.get_running_loop().time
    until, most_mb = clock() + SOAK_S, 0.0
    jobs = []
    while clock() < until:
        calls = [("hold", 1), ("leave_a_task", 0.01), ("quick", 0.02)]
        jobs += [await client.enqueue(*call) for call in calls]
        most_mb = max([most_mb, *map(resident_mb, running.members())])
        await asyncio.sleep(0.02)
    return jobs, most_mb


async def test_leaks_do_not_add_up_and_no_job_is_lost(redis_url: str, tmp_path: Path) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2", more=SETTINGS) as running,
    ):
        await running.ready()
        jobs, most_mb = await leak(client, running)
        for job in jobs:
            await job.result(timeout=60)
        redis: Any = client
        runs = [await redis.llen(f"runs:{job.job_id}") for job in jobs]
        assert runs == [1] * len(jobs)
        stats = await client.queue_stats()
        assert (stats.succeeded, stats.retried, stats.crashed) == (len(jobs), 0, 0)
        assert running.says("max_memory_mb is 150", 2)
        assert running.says("which are cancelled")
        assert LIMIT_MB < most_mb < LIMIT_MB + SLACK_MB
        assert await running.end() == 0
