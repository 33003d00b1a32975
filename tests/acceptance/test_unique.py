"""Ten processes enqueue the same jobs at the same moment: one of each is there."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from runner import keys
from tests.support import wait_until
from tests.unique_process import HERE, START

ROOT = Path(__file__).resolve().parents[2]
PROCESSES, ROUNDS = 10, 300


@pytest.mark.timeout(120)
async def test_ten_processes_let_one_of_each_in(redis_url: str) -> None:
    redis: Any = Redis.from_url(redis_url)
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.unique_process", redis_url, str(ROUNDS)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(PROCESSES)
    ]
    try:

        async def all_there() -> bool:
            return bool(await redis.llen(HERE) == PROCESSES)

        await wait_until(all_there, description="all processes are there", timeout_s=60)
        await redis.rpush(START, *range(PROCESSES))
        said = await asyncio.gather(*(process.communicate() for process in processes))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
        queued = {raw.decode() for raw in await redis.zrange(keys.DEFAULT_QUEUE, 0, -1)}
        await redis.aclose()
    got: dict[int, list[tuple[str, bool]]] = defaultdict(list)
    for out, _ in said:
        for line in out.decode().splitlines():
            number, job_id, is_new = line.split()
            got[int(number)].append((job_id, is_new == "1"))
    assert len(got) == len(queued) == ROUNDS
    for called, answers in got.items():
        assert len(answers) == PROCESSES, called
        assert len({job_id for job_id, _ in answers}) == 1, called
        assert sum(is_new for _, is_new in answers) == 1, called
    assert {answers[0][0] for answers in got.values()} == queued
