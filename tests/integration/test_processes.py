"""Functions in processes: what goes in and out, how they end, and what a dead process does."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import runner
from runner import Outcome, ProcessDied, RedisSettings, keys
from runner.errors import RemoteError, TaskError
from runner.events import JobEnded
from tests import timing_jobs as jobs
from tests.engine import serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys("runner:held:*", "runner:units", "runner:writer*", "runner:answers*"),
]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as client:
        yield client


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def noted_pid(note: Path) -> int:
    def read() -> str:
        return note.read_text() if note.exists() else ""

    return int(await wait_until(read, description="the process has begun"))


async def test_functions_run_in_another_process_with_their_arguments(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES, max_processes=1):
        one = await client.enqueue(jobs.add, 1, two=2)
        other = await client.enqueue(jobs.add_async, 3, 4)
        moved = await client.enqueue(jobs.move, jobs.Point(1, 2))
        names = await client.enqueue(jobs.who)
        assert await one.result(timeout=20) == 3
        assert await other.result(timeout=20) == 7
        assert await moved.result(timeout=20) == jobs.Point(2, 2)
        assert await names.result(timeout=20) == [names.job_id, 1, False]
        first = await (await client.enqueue(jobs.pid)).result(timeout=20)
        assert first != os.getpid()
        assert await (await client.enqueue(jobs.pid)).result(timeout=20) == first


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        (jobs.fail, RemoteError, "ValueError: broken in a process"),
        (jobs.fail_oddly, RemoteError, "Unpicklable: 1 2"),
        (jobs.leave, RemoteError, "SystemExit"),
        (jobs.lambda_result, runner.errors.EncodeError, "cannot leave the process"),
        (jobs.asks_for_client, RemoteError, "no ctx.client"),
    ],
)
async def test_what_a_function_raises_there_fails_its_job(
    redis_url: str, client: runner.Client, task: Any, kind: type[Exception], message: str
) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES):
        job = await client.enqueue(task)
        with pytest.raises(kind, match=message):
            await job.result(timeout=20)
    (letter,) = await client.dead_letters()
    if task is jobs.fail:
        assert "in fail" in letter.traceback
        assert letter.error_type == "ValueError"


async def test_control_flow_passes_from_the_process(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES):
        job = await client.enqueue(jobs.again)
        assert await job.result(timeout=20) == 2


@pytest.mark.parametrize("total", [1, 3, 20_000])
async def test_progress_is_said_from_a_process(
    redis_url: str, client: runner.Client, total: int
) -> None:
    async with serving(redis_url, [jobs.count_up, jobs.count_up_async]):
        job = await client.enqueue(jobs.count_up, total)
        assert await job.result(timeout=20) == total
        words = [word async for word in job.progress()]
        assert (words[-1].done, words[-1].total) == (total, total * 2)
        assert words[-1].message == f"number {total}"
        other = await client.enqueue(jobs.count_up_async, total)
        assert await other.result(timeout=20) == total
        assert [word.part async for word in other.progress()][-1] == 1


async def test_progress_is_seen_while_a_process_works_and_harms_no_abort(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, [jobs.count_up, jobs.pid], allow_abort_jobs=True):
        job = await client.enqueue(jobs.count_up, 2**40)
        async with asyncio.timeout(20):
            async for word in job.progress():
                if word.done > 1_000:
                    break
        assert await job.abort(timeout=20)
        other = await client.enqueue(jobs.pid)
        assert await other.result(timeout=20)


async def test_waiting_in_a_process_is_refused(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, [jobs.wait_there]):
        job = await client.enqueue(jobs.wait_there)
        with pytest.raises(RemoteError, match=r"is for ctx\.progress"):
            await job.result(timeout=20)


@pytest.mark.parametrize(
    ("task", "args", "message"),
    [
        (jobs.segfault, (), "SIGSEGV"),
        (jobs.exit_at_once, (3,), "status 3"),
        (jobs.exit_at_once, (0,), "status 0"),
    ],
)
async def test_process_that_dies_fails_its_job_alone(
    redis_url: str, client: runner.Client, task: Any, args: tuple[int, ...], message: str
) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES, max_processes=2):
        beside = await client.enqueue(jobs.compute, 0.5)
        job = await client.enqueue(task, *args)
        with pytest.raises(ProcessDied, match=message):
            await job.result(timeout=20)
        await beside.result(timeout=20)
        after = await client.enqueue(jobs.add, 1)
        assert await after.result(timeout=20) == 1


async def test_death_of_a_process_is_a_failure_that_retries_see(
    redis_url: str, client: runner.Client
) -> None:
    events: list[Any] = []
    async with serving(redis_url, jobs.IN_PROCESSES, subscribers=[events.append]):
        job = await client.enqueue(jobs.die_once)
        assert await job.result(timeout=20) == 2
    first = next(event for event in events if isinstance(event, JobEnded))
    assert first.outcome is Outcome.RETRIED
    assert isinstance(first.exception, ProcessDied)
    assert (first.exception.signal, first.exception.exit_status) == (9, None)


async def test_idle_process_that_was_killed_is_replaced_unseen(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES, max_processes=1):
        pid = await (await client.enqueue(jobs.pid)).result(timeout=20)
        os.kill(pid, 9)
        assert await (await client.enqueue(jobs.pid)).result(timeout=20) != pid


def children_of(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in threads for child in children.read_text().split()]


def forkers() -> list[int]:
    """Return the processes that make processes, of this test's worker."""
    pids = children_of(os.getpid())
    return [p for p in pids if b"executors.forker" in Path(f"/proc/{p}/cmdline").read_bytes()]


async def test_dead_processes_are_not_left_as_zombies(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES, max_processes=1):
        job = await client.enqueue(jobs.exit_at_once, 3)
        with pytest.raises(ProcessDied):
            await job.result(timeout=20)
        (forker,) = forkers()
        assert children_of(forker) == []
    assert forkers() == []


async def test_process_that_makes_the_others_is_replaced(
    redis_url: str, client: runner.Client, tmp_path: Path
) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES, max_processes=2):
        running = await client.enqueue(jobs.wait_in_process, str(tmp_path / "note"))
        await noted_pid(tmp_path / "note")
        (forker,) = forkers()
        os.kill(forker, 9)
        with pytest.raises(ProcessDied, match="was lost"):
            await running.result(timeout=20)
        assert await (await client.enqueue(jobs.add, 1)).result(timeout=20) == 1


async def test_worker_whose_task_cannot_be_imported_elsewhere_says_so(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.add.function, "__module__", "nowhere.to_be_found")
    worker = runner.Worker(
        [jobs.add], redis_settings=RedisSettings.from_dsn(redis_url), handle_signals=False
    )
    with pytest.raises(TaskError, match=r"nowhere\.to_be_found cannot be imported"):
        await worker.main()
    await worker.close()


async def test_hard_limit_kills_what_heeds_nothing(
    redis_url: str, client: runner.Client, tmp_path: Path
) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES, max_processes=1):
        job = await client.enqueue(jobs.spin, str(tmp_path / "note"))
        with pytest.raises(TimeoutError):
            await job.result(timeout=20)
        assert not is_alive(await noted_pid(tmp_path / "note"))
        assert await (await client.enqueue(jobs.add, 1)).result(timeout=20) == 1
    (letter,) = await client.dead_letters()
    assert letter.outcome == "timed_out"


@pytest.mark.parametrize("task", [jobs.tidy_in_process, jobs.tidy_in_process_async])
async def test_soft_limit_is_raised_in_the_process(
    redis_url: str, client: runner.Client, task: Any
) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES):
        job = await client.enqueue(task)
        assert await job.result(timeout=20) == "tidy"


async def test_soft_limit_that_escapes_ends_the_job_as_timed_out(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES):
        job = await client.enqueue(jobs.late_in_process)
        with pytest.raises(TimeoutError, match=r"soft time limit of 0\.3 s"):
            await job.result(timeout=20)


async def test_soft_limit_never_strikes_the_next_job(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES, max_processes=2, max_jobs=50):
        calls: list[Any] = [jobs.close_to_its_limit.call(n) for n in range(60)]
        ran = await client.enqueue_many(calls)
        ends = await asyncio.gather(
            *(job.result(timeout=30) for job in ran), return_exceptions=True
        )
        assert [end for end in ends if not isinstance(end, int | TimeoutError)] == []
        plain = await client.enqueue_many([jobs.add.call(n) for n in range(20)])
        assert [await job.result(timeout=10) for job in plain] == list(range(20))


async def test_aborted_job_tidies_up_and_its_process_is_gone(
    redis_url: str, client: runner.Client, tmp_path: Path
) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES, allow_abort_jobs=True):
        job = await client.enqueue(jobs.wait_in_process, str(tmp_path / "note"))
        pid = await noted_pid(tmp_path / "note")
        assert await job.abort(timeout=20) is True
        assert (tmp_path / "note.tidy").exists()
        await wait_until(lambda: not is_alive(pid), description="the process has ended")


async def test_worker_that_closes_hands_the_job_back_and_leaves_no_process(
    redis_url: str, client: runner.Client, tmp_path: Path
) -> None:
    events: list[Any] = []
    async with serving(redis_url, jobs.IN_PROCESSES, subscribers=[events.append]):
        await client.enqueue(jobs.wait_in_process, str(tmp_path / "note"))
        pid = await noted_pid(tmp_path / "note")
    (end,) = [event for event in events if isinstance(event, JobEnded)]
    assert end.outcome is Outcome.HANDED_BACK
    assert not is_alive(pid)
    assert await client.zcard(keys.DEFAULT_QUEUE) == 1


async def test_writes_of_a_process_are_committed_with_its_job(
    redis_url: str, database_url: str, client: runner.Client
) -> None:
    database = await asyncpg.connect(database_url)
    try:
        await database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        async with serving(redis_url, jobs.IN_PROCESSES, database_url=database_url):
            job = await client.enqueue(jobs.insert, 7)
            assert await job.result(timeout=30) == 7
        assert await database.fetchval("SELECT id FROM t") == 7
    finally:
        await database.close()


async def test_process_is_replaced_after_its_calls(redis_url: str, client: runner.Client) -> None:
    settings = {"max_processes": 1, "calls_per_process": 2}
    async with serving(redis_url, jobs.IN_PROCESSES, **settings):
        pids = [await (await client.enqueue(jobs.pid)).result(timeout=20) for _ in range(6)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]


async def test_no_more_processes_than_allowed(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, jobs.IN_PROCESSES, max_processes=2, max_jobs=20):
        ran = [await client.enqueue(jobs.pid) for _ in range(20)]
        assert len({await job.result(timeout=20) for job in ran}) <= 2
