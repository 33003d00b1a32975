"""Functions that harm the process they run in: it costs their own job, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import Outcome, ProcessDied
from runner.errors import JobFailed, RemoteError
from runner.events import JobEnded
from tests import crowded, stillborn
from tests import hostile_jobs as jobs
from tests.engine import serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys("runner:held:*"),
]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as client:
        yield client


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def noted_pid(note: Path) -> int:
    def read() -> str:
        return note.read_text() if note.exists() else ""

    return int(await wait_until(read, description="the process has begun"))


async def works(client: runner.Client, times: int = 3) -> None:
    """Expect that the pool goes on, and that each job gets its own result."""
    for number in range(times):
        job = await client.enqueue(jobs.same, number)
        assert await job.result(timeout=10) == number


async def test_function_that_forks_answers_once(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=1):
        pid = await (await client.enqueue(jobs.pid)).result(timeout=20)
        for _ in range(3):
            job = await client.enqueue(jobs.fork_and_both_return)
            assert await job.result(timeout=10) == pid
            await works(client)


async def test_process_that_dies_and_leaves_one_behind_is_missed_at_once(
    redis_url: str, client: runner.Client, tmp_path: Path
) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=1):
        job = await client.enqueue(jobs.fork_and_die, str(tmp_path / "note"))
        left = await noted_pid(tmp_path / "note")
        try:
            with pytest.raises(ProcessDied, match="status 3"):
                await job.result(timeout=10)
            await works(client)
        finally:
            os.kill(left, signal.SIGKILL)


async def test_programs_that_a_function_started_are_killed_with_it(
    redis_url: str, client: runner.Client, tmp_path: Path
) -> None:
    async with serving(redis_url, jobs.HOSTILE, allow_abort_jobs=True, cancel_grace=0.1):
        job = await client.enqueue(jobs.start_program, str(tmp_path / "note"))
        program = await noted_pid(tmp_path / "note")
        try:
            assert await job.abort(timeout=20)
            await wait_until(lambda: not is_alive(program), description="the program has ended")
        finally:
            if is_alive(program):
                os.kill(program, signal.SIGKILL)


@pytest.mark.parametrize(
    ("task", "args"),
    [
        (jobs.close_everything, ()),
        (jobs.write_garbage, (b"x" * 64,)),
        (jobs.write_garbage, (b"\0\0\0\0\0\0\0\5begun",)),
        (jobs.write_garbage, (b"\0\0\0\0\0\0\0\4\x80\x05N.",)),
        (jobs.write_garbage, (b"\0\0\0\0\0\0\0\1p",)),
    ],
)
async def test_process_that_cannot_speak_any_more_fails_its_job(
    redis_url: str, client: runner.Client, task: Any, args: Any
) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=1):
        job = await client.enqueue(task, *args)
        with pytest.raises(ProcessDied):
            await job.result(timeout=10)
        await works(client)


async def test_process_without_streams_goes_on(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=1):
        pid = await (await client.enqueue(jobs.close_streams)).result(timeout=20)
        assert await (await client.enqueue(jobs.pid)).result(timeout=20) == pid


async def test_process_that_prints_much_is_not_held_up(
    redis_url: str, client: runner.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=1):
        job = await client.enqueue(jobs.print_much, 20_000)
        assert await job.result(timeout=20) == 20_000
    assert "19999 xxx" in capfd.readouterr().out


async def test_large_arguments_and_results_travel(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=1):
        job = await client.enqueue(jobs.large, b"x" * 15_000_000)
        assert await job.result(timeout=20) == 15_000_000
        events: list[Any] = []
    async with serving(redis_url, jobs.HOSTILE, subscribers=[events.append]):
        await client.enqueue(jobs.large_result, 100)
        ends: list[Any] = []

        def ended() -> bool:
            ends[:] = [event for event in events if isinstance(event, JobEnded)]
            return bool(ends)

        await wait_until(ended, description="the job has ended", timeout_s=30)
        assert ends[0].outcome is Outcome.SUCCEEDED
        await works(client)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (jobs.out_of_memory, "MemoryError"),
        (jobs.raise_not_an_error, "NotAnError: one"),
        (jobs.raise_unspeakable, "Unspeakable"),
        (jobs.raise_interrupt, "KeyboardInterrupt"),
    ],
)
async def test_odd_exceptions_fail_their_job_alone(
    redis_url: str, client: runner.Client, task: Any, message: str
) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=1):
        pid = await (await client.enqueue(jobs.pid)).result(timeout=20)
        job = await client.enqueue(task)
        with pytest.raises(JobFailed, match=message):
            await job.result(timeout=10)
        assert await (await client.enqueue(jobs.pid)).result(timeout=20) == pid


async def test_signals_that_a_function_has_changed_work_for_the_next(
    redis_url: str, client: runner.Client, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"max_processes": 1, "allow_abort_jobs": True}
    async with serving(redis_url, jobs.HOSTILE, **settings):
        pid = await (await client.enqueue(jobs.ignore_signals)).result(timeout=20)
        assert await (await client.enqueue(jobs.softened)).result(timeout=10) == "in time"
        job = await client.enqueue(jobs.tidy, str(tmp_path / "note"))
        assert await noted_pid(tmp_path / "note") == pid
        assert await job.abort(timeout=20)
        assert (tmp_path / "note.tidy").exists()


async def test_job_that_is_aborted_while_its_arguments_are_read_is_not_begun(
    redis_url: str, tmp_path: Path
) -> None:
    note = str(tmp_path / "read")
    settings: dict[str, Any] = {"allow_abort_jobs": True, "cancel_grace": 20}
    async with serving(redis_url, jobs.PICKLED, codec="pickle", **settings):
        async with runner.connect(redis_url, codec="pickle") as other:
            job = await other.enqueue("take_slow", jobs.Slow(note, 1), str(tmp_path / "begun"))
            pid = await noted_pid(tmp_path / "read")
            assert await job.abort(timeout=10)
        await wait_until(lambda: not is_alive(pid), description="the process has ended")
    assert not (tmp_path / "begun").exists()


async def test_stopped_process_is_killed_at_the_hard_limit(
    redis_url: str, client: runner.Client, tmp_path: Path
) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=1):
        job = await client.enqueue(jobs.stop_itself_with_limit, str(tmp_path / "note"))
        pid = await noted_pid(tmp_path / "note")
        with pytest.raises(TimeoutError):
            await job.result(timeout=20)
        assert not is_alive(pid)
        await works(client)


async def test_worker_closes_whatever_its_processes_are_at(
    redis_url: str, client: runner.Client, tmp_path: Path
) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=2, cancel_grace=0.2):
        idle = await (await client.enqueue(jobs.pid)).result(timeout=20)
        os.kill(idle, signal.SIGSTOP)
        await client.enqueue(jobs.stop_itself, str(tmp_path / "note"))
        os.kill(idle, signal.SIGCONT)
        pid = await noted_pid(tmp_path / "note")
    await wait_until(lambda: not is_alive(pid), description="the process has ended")
    await wait_until(lambda: not is_alive(idle), description="the other too")


async def test_cancellation_that_a_function_raises_by_itself_ends_its_job(
    redis_url: str, client: runner.Client
) -> None:
    events: list[Any] = []
    async with serving(
        redis_url, jobs.HOSTILE, max_processes=1, max_tries=2, subscribers=[events.append]
    ):
        await client.enqueue(jobs.raise_cancelled)
        await wait_until(
            lambda: [event for event in events if isinstance(event, JobEnded)],
            description="it has ended",
        )
        await works(client)


async def test_abort_at_the_instant_of_the_end_leaves_no_job_behind(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=2, allow_abort_jobs=True):
        ran = [await client.enqueue(jobs.same, n) for n in range(60)]

        async def abort(job: Any, number: int) -> Any:
            if number % 2:
                await wait_until(job.status, description="a look")
            await job.abort(timeout=20)
            return await asyncio.gather(job.result(timeout=10), return_exceptions=True)

        ends = await asyncio.gather(*(abort(job, n) for n, job in enumerate(ran)))
        for number, (end,) in enumerate(ends):
            assert end == number or isinstance(end, asyncio.CancelledError | JobFailed), end
        await works(client)


async def test_process_that_leaks_is_replaced_after_its_job(
    redis_url: str, client: runner.Client
) -> None:
    settings: dict[str, Any] = {"max_processes": 1, "max_memory_mb": 10_000}
    async with serving(redis_url, jobs.HOSTILE, **settings) as worker:
        first = await (await client.enqueue(jobs.hold, 1)).result(timeout=20)
        assert await (await client.enqueue(jobs.hold, 1)).result(timeout=20) == first
    settings["max_memory_mb"] = 400
    async with serving(redis_url, jobs.HOSTILE, **settings) as worker:
        pids = [
            await (await client.enqueue(jobs.hold, size)).result(timeout=20)
            for size in (1, 400, 1, 1)
        ]
        assert pids[0] == pids[1] != pids[2] == pids[3]
        assert not worker.recycled


async def test_job_that_eats_the_memory_of_its_process_fails_alone(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=2, max_memory_hard_mb=400) as worker:
        beside = await client.enqueue(jobs.busy, 1.0)
        job = await client.enqueue(jobs.eat)
        with pytest.raises(ProcessDied, match=r"it holds \d+ MB, max_memory_hard_mb is 400"):
            await job.result(timeout=30)
        assert await beside.result(timeout=20) == 1.0
        await works(client)
        assert not worker.recycled


async def test_processes_that_die_at_their_birth_fail_the_job(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, [stillborn.never], max_processes=1):
        for _ in range(5):
            job = await client.enqueue(stillborn.never)
            with pytest.raises(ProcessDied, match="status 7 before it took a job"):
                await job.result(timeout=20)


@pytest.mark.parametrize("short_of", ["processes", "descriptors"])
async def test_process_that_cannot_be_made_costs_its_own_job_alone(
    redis_url: str,
    client: runner.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    short_of: str,
) -> None:
    note, end, crowd = (tmp_path / name for name in ("note", "end", "crowd"))
    monkeypatch.setenv("CROWDED", str(crowd))
    async with serving(redis_url, [crowded.wait_for, crowded.pid], max_processes=2):
        beside = await client.enqueue(crowded.wait_for, str(note), str(end))
        forker = await noted_pid(note)
        most = resource.prlimit(forker, resource.RLIMIT_NOFILE)
        if short_of == "processes":
            crowd.touch()
        else:
            resource.prlimit(forker, resource.RLIMIT_NOFILE, (3, most[1]))
        for _ in range(2):
            job = await client.enqueue(crowded.pid)
            with pytest.raises(RemoteError, match="no process could be made: "):
                await job.result(timeout=20)
        crowd.unlink(missing_ok=True)
        resource.prlimit(forker, resource.RLIMIT_NOFILE, most)
        made = await (await client.enqueue(crowded.pid)).result(timeout=20)
        end.touch()
        assert await beside.result(timeout=20) != made
        assert is_alive(forker)


async def test_signal_without_a_name_is_told_by_its_number(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, jobs.HOSTILE, max_processes=1):
        job = await client.enqueue(jobs.die_of, signal.SIGRTMIN + 1)
        with pytest.raises(ProcessDied, match="was ended by signal 35 before"):
            await job.result(timeout=20)
        await works(client)
