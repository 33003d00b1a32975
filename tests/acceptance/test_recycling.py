"""A worker's process is replaced when a limit is reached, and no job notices."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import group
from tests.fleet import Fleet, environment_of, fleet, runs_of, write_settings
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = [pytest.mark.timeout(180), pytest.mark.lasting_keys("runner:*")]

RECYCLED = 75


async def ran_once_each(client: Any, jobs: Sequence[runner.Job[int]]) -> set[int]:
    """Wait for all results, assert that each job ran once, and return who ran them."""
    pids = [await job.result(timeout=90) for job in jobs]
    assert [await runs_of(client, job.job_id) for job in jobs] == [[pid] for pid in pids]
    stats = await client.queue_stats()
    assert (stats.succeeded, stats.failed) == (len(jobs), 0)
    assert (stats.retried, stats.crashed, stats.queued, stats.running) == (0, 0, 0, 0)
    return set(pids)


async def replaced(running: Fleet, why: str, times: int) -> None:
    await wait_until(
        lambda: running.text.count(why) >= times and running.says("has left", times),
        description=f"{times} workers are replaced ({why}):\n{running.text}",
        timeout_s=60,
    )


async def test_after_so_many_jobs_a_new_process_takes_over(redis_url: str, tmp_path: Path) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2", more="max_jobs_per_process = 50") as running,
    ):
        await running.ready()
        jobs = [await client.enqueue("quick", 4)]  # which is waited for
        while not running.says("has left", 3):
            jobs.append(await client.enqueue("quick", 0.02))
            await asyncio.sleep(0.005)
        assert len(await ran_once_each(client, jobs)) >= 4
        assert running.says("max_jobs_per_process is 50", 3)
        assert await running.end() == 0


@runner.task
async def quick(_ctx: runner.Context, _seconds: float = 0) -> int:
    """Stand for the task of this name in the fleet."""
    return 0


async def test_all_kinds_of_jobs_pass_through_a_replacement(redis_url: str, tmp_path: Path) -> None:
    more = "max_jobs_per_process = 80\nfunctions += [in_process]"
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2", more=more) as running,
    ):
        await running.ready()
        jobs, flows, elsewhere = [], [], []
        while not running.says("has left", 2):
            names = ("quick", "limited", "in_thread")
            jobs += [await client.enqueue(name, 0.05) for name in names]
            elsewhere.append(await client.enqueue("in_process", 0.02))
            if len(jobs) % 10 == 0:
                flows.append(await client.start(group(quick.call(0.02), quick.call(0.02))))
            await asyncio.sleep(0.04)
        for flow in flows:
            assert len(await flow.result(timeout=60)) == 2
        for job in elsewhere:
            await job.result(timeout=60)
        pids = [await job.result(timeout=60) for job in jobs]
        assert [await runs_of(client, job.job_id) for job in jobs] == [[pid] for pid in pids]
        stats = await client.queue_stats()
        assert stats.succeeded == len(jobs) + len(elsewhere) + 2 * len(flows)
        assert (stats.failed, stats.retried, stats.crashed, stats.dead) == (0, 0, 0, 0)
        assert await running.end() == 0


async def test_process_that_grows_is_replaced_in_time(redis_url: str, tmp_path: Path) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1", more="max_memory_mb = 250") as running,
    ):
        await running.ready()
        jobs = []
        while not running.says("has left", 2):
            jobs.append(await client.enqueue("hold", 5))
            await asyncio.sleep(0.02)
        assert len(await ran_once_each(client, jobs)) >= 3
        assert running.says("max_memory_mb is 250", 2)
        assert await running.end() == 0


async def test_old_process_is_replaced(redis_url: str, tmp_path: Path) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1", more="max_age = 1") as running,
    ):
        await running.ready()
        jobs = [await client.enqueue("quick", 3)]
        await replaced(running, "max_age is 1 s", 2)
        await ran_once_each(client, jobs)
        assert await running.end() == 0


async def test_long_jobs_do_not_let_old_processes_pile_up(redis_url: str, tmp_path: Path) -> None:
    more = "max_jobs_per_process = 5"
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1", more=more) as running,
    ):
        await running.ready()
        members: set[int] = set()
        longs: list[runner.Job[int]] = []
        most = 0
        while len(members) < 4:
            longs.append(await client.enqueue("quick", 5))
            shorts = [await client.enqueue("quick") for _ in range(10)]
            for job in shorts:
                await job.result(timeout=30)
            now = running.members()
            most = max(most, len(now))
            members.update(now)
        for job in longs:
            await job.result(timeout=60)
        assert most <= 3  # one that leaves, one that serves, one that starts
        assert running.says("goes on until")
        assert (await client.queue_stats()).retried == 0
        assert await running.end() == 0


async def test_renewal_in_between_forgets_nobody_who_leaves(redis_url: str, tmp_path: Path) -> None:
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1", more="max_jobs_per_process = 5") as running,
    ):
        await running.ready()
        (first,) = running.members()
        long = await client.enqueue("quick", 600)
        await wait_until(lambda: runs_of(client, long.job_id), description="the long job runs")
        for times in (2, 3):
            running.process.send_signal(signal.SIGHUP)
            await running.ready(times)
        await wait_until(lambda: running.says("has left"), description="the second has left")
        members = running.members()
        assert len(members) == 2
        for job in [await client.enqueue("quick") for _ in range(5)]:
            await job.result(timeout=30)
        await wait_until(
            lambda: running.says(f"goes on until worker 1 (pid {first}) has left"),
            description="the third waits for the first",
        )
        assert running.members() == members


@pytest.mark.parametrize(
    ("limit", "more"),
    [(20, ""), (200, "parts = [Large()]")],
    ids=["of its modules", "of a part"],
)
async def test_limit_that_a_new_process_is_beyond_replaces_none(
    redis_url: str, tmp_path: Path, *, limit: int, more: str
) -> None:
    more = f"max_memory_mb = {limit}\n{more}"
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1", more=more) as running,
    ):
        await running.ready()
        (member,) = running.members()
        await wait_until(
            lambda: running.says(f"max_memory_mb is {limit}, "), description="the limit is named"
        )
        jobs = [await client.enqueue("quick", 0.5) for _ in range(5)]
        assert await ran_once_each(client, jobs) == {member}
        assert running.members() == [member]
        assert await running.end() == 0


@pytest.mark.parametrize(
    ("limit", "more"),
    [(20, ""), (200, "parts = [Large()]")],
    ids=["of its modules", "of a part"],
)
async def test_hard_limit_that_a_new_process_is_beyond_costs_no_job(
    redis_url: str, tmp_path: Path, *, limit: int, more: str
) -> None:
    more = f"max_memory_hard_mb = {limit}\n{more}"
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2", more=more) as running,
    ):
        await client.enqueue("quick")
        assert await asyncio.wait_for(running.process.wait(), 60) == 1
        assert running.says(f"max_memory_hard_mb is {limit}, and must be more than")
        assert not running.says("Traceback")
        stats = await client.queue_stats()
        assert (stats.queued, stats.crashed) == (1, 0)


async def test_job_that_eats_memory_ends_as_a_dead_letter_and_its_neighbours_do_not(
    redis_url: str, tmp_path: Path
) -> None:
    more = "max_memory_hard_mb = 300\nlease = 600\nmax_crashes = 2"
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "2", more=more) as running,
    ):
        await running.ready()
        eater = await client.enqueue("eat", 600)
        # None of this takes as long as the lease: all was handed back.
        with pytest.raises(runner.errors.TooManyCrashes):
            await eater.result(timeout=90)
        assert len(await runs_of(client, eater.job_id)) == 2
        letter = await client.dead.show(eater.job_id)
        assert [error.outcome for error in letter.errors] == ["crashed", "crashed"]
        assert all("max_memory_hard_mb is 300" in error.error for error in letter.errors)
        assert all(0 < error.started_ms <= error.ended_ms for error in letter.errors)
        assert (await client.queue_stats()).crashed == 2
        neighbours = [await client.enqueue("quick", 0.01) for _ in range(20)]
        for job in neighbours:
            await job.result(timeout=30)
        assert running.says("max_memory_hard_mb is 300", 2)
        assert await running.end() == 0


async def test_job_that_eats_memory_and_does_not_end_is_handed_back_without_it(
    redis_url: str, tmp_path: Path
) -> None:
    more = "max_memory_hard_mb = 300\nlease = 600\nmax_crashes = 2"
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1", more=more) as running,
    ):
        await running.ready()
        job = await client.enqueue("eat_and_refuse", 600)
        with pytest.raises(runner.errors.TooManyCrashes):
            await job.result(timeout=90)
        assert len(await runs_of(client, job.job_id)) == 2
        assert running.says("its function goes on in the loop", 2)
        assert not running.says("could not be handed back")
        assert await running.end() == 0


async def test_process_that_eats_memory_and_blocks_is_ended_by_force(
    redis_url: str, tmp_path: Path
) -> None:
    more = "max_memory_hard_mb = 200\nmax_crashes = 1\nlease = 2"
    async with (
        runner.connect(redis_url) as client,
        fleet(tmp_path, redis_url, "--processes", "1", more=more) as running,
    ):
        await running.ready()
        await (await client.enqueue("hold", 40)).result(timeout=20)
        job = await client.enqueue("hold_and_block", 200, 600)
        with pytest.raises(runner.errors.TooManyCrashes):
            await job.result(timeout=60)
        assert running.says("could not be handed back: the process ends now")
        assert running.says("in hold_and_block")  # which is named
        assert running.says("has left: it holds")


async def test_lone_worker_ends_with_a_status_that_says_start_me_again(
    redis_url: str, tmp_path: Path
) -> None:
    write_settings(tmp_path, "max_jobs_per_process = 5")
    async with runner.connect(redis_url) as client:
        long = await client.enqueue("quick", 2)
        jobs = [await client.enqueue("quick") for _ in range(5)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "arq", "shop.WorkerSettings"),
            cwd=tmp_path,
            env=environment_of(tmp_path, redis_url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == RECYCLED, out.decode()
        assert "max_jobs_per_process is 5" in out.decode()
        await ran_once_each(client, [long, *jobs])
