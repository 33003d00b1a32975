"""Middleware stands around functions in threads and processes too, in the event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import runner
from runner import Context, JobTiming, Middleware, Outcome, Propagation, Timing, task
from runner.errors import RemoteError
from runner.events import JobEnded, JobStarted, TasksLeft
from tests import timing_jobs as jobs
from tests.engine import serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner.middleware import Execute, JobCall

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys("runner:*"),
]

TENANT: ContextVar[str] = ContextVar("tenant_elsewhere", default="nobody")


@task
def add(_ctx: Context, left: int, right: int = 0) -> int:
    return left + right


@task
def who(_ctx: Context) -> str:
    return TENANT.get()


@task
def insert(ctx: Context, number: int) -> None:
    ctx.db.insert("t", id=number)


@task
def leave_a_task(ctx: Context) -> None:
    async def start() -> None:
        ctx["held"].append(asyncio.create_task(asyncio.Event().wait(), name="left"))

    ctx.run(start())


@task(timeout=0.2)
def overrun(ctx: Context) -> None:
    while not ctx.cancelled:
        ctx["looks"].wait(0.01)


@task
def hold(ctx: Context) -> None:
    ctx["held"].set()
    assert ctx["opens"].wait(30)


@task(expires=0.2)
def brief(_ctx: Context) -> None: ...


class Notes(Middleware):
    """Notes what it sees, and in which thread."""

    def __init__(self) -> None:
        self.notes: list[Any] = []
        self.threads: set[str] = set()

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        self.threads.add(threading.current_thread().name)
        self.notes.append((job.task, job.args))
        try:
            result = await proceed(job)
        except BaseException as exc:
            self.notes.append(type(exc).__name__)
            raise
        self.notes.append(result)
        return result


class Write(Middleware):
    """Writes before and behind the function, as an audit would."""

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        job.ctx.db.insert("t", id=1)
        result = await proceed(job)
        job.ctx.db.insert("t", id=3)
        return result


class Twice(Middleware):
    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        first = await proceed(job)
        return first + await proceed(dataclasses.replace(job, args=(10,)))


class Hold(Middleware):
    """Waits where nothing of the job runs yet."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        self.waits.set()
        await asyncio.Event().wait()
        return await proceed(job)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as client:
        yield client


@pytest.mark.parametrize("adding", [add, jobs.add], ids=["thread", "process"])
async def test_it_stands_around_in_the_loop(
    redis_url: str, client: runner.Client, adding: Any
) -> None:
    notes, timings = Notes(), list[JobTiming]()
    layers = [Timing(timings.append), notes]
    async with serving(redis_url, [adding], middleware=layers):
        job = await client.enqueue(adding, 1, 2)
        assert await job.result(timeout=20) == 3
    assert notes.notes == [("add", (1, 2)), 3]
    assert notes.threads == {threading.current_thread().name}
    assert [(timing.job_id, timing.error_type) for timing in timings] == [(job.job_id, "")]


@pytest.mark.parametrize("adding", [add, jobs.add], ids=["thread", "process"])
async def test_it_may_change_arguments_and_proceed_twice(
    redis_url: str, client: runner.Client, adding: Any
) -> None:
    events: list[Any] = []
    settings: dict[str, Any] = {"middleware": [Twice()], "subscribers": [events.append]}
    async with serving(redis_url, [adding], max_threads=1, max_processes=1, **settings):
        assert await (await client.enqueue(adding, 1)).result(timeout=20) == 11
        assert await (await client.enqueue(adding, 2)).result(timeout=20) == 12
    assert [type(event) for event in events if isinstance(event, JobStarted | JobEnded)] == [
        *(JobStarted, JobEnded),
        *(JobStarted, JobEnded),
    ]


async def test_what_a_process_raises_comes_through(redis_url: str, client: runner.Client) -> None:
    notes = Notes()
    async with serving(redis_url, [jobs.fail], middleware=[notes]):
        with pytest.raises(RemoteError, match="broken in a process"):
            await (await client.enqueue(jobs.fail)).result(timeout=20)
    assert notes.notes == [("fail", ()), "ValueError"]


async def test_context_variables_reach_the_thread(redis_url: str, client: runner.Client) -> None:
    propagation = Propagation(TENANT)
    async with (
        runner.connect(redis_url, middleware=[propagation]) as sender,
        serving(redis_url, [who], middleware=[propagation]),
    ):
        TENANT.set("acme")
        assert await (await sender.enqueue(who)).result(timeout=10) == "acme"
        assert await (await client.enqueue(who)).result(timeout=10) == "nobody"


async def test_its_writes_are_committed_with_those_of_the_thread(
    redis_url: str, database_url: str, client: runner.Client
) -> None:
    database = await asyncpg.connect(database_url)
    try:
        await database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        settings: dict[str, Any] = {"middleware": [Write()], "database_url": database_url}
        async with serving(redis_url, [insert], **settings):
            await (await client.enqueue(insert, 2)).result(timeout=30)
        rows = await database.fetch("SELECT id FROM t ORDER BY id")
        assert [row["id"] for row in rows] == [1, 2, 3]
    finally:
        await database.close()


async def test_its_writes_around_a_process_are_refused(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, [jobs.add], middleware=[Write()]):
        with pytest.raises(RemoteError, match="let the function write"):
            await (await client.enqueue(jobs.add, 1)).result(timeout=20)


async def test_job_that_waits_in_it_is_aborted(redis_url: str, client: runner.Client) -> None:
    layer = Hold()
    events: list[Any] = []
    settings: dict[str, Any] = {"allow_abort_jobs": True, "subscribers": [events.append]}
    async with serving(redis_url, [add], middleware=[layer], **settings):
        job = await client.enqueue(add, 1)
        await layer.waits.wait()
        assert await job.abort(timeout=10)
    (end,) = [event for event in events if isinstance(event, JobEnded)]
    assert end.outcome is Outcome.ABORTED


async def test_time_limit_of_a_thread_comes_through(redis_url: str, client: runner.Client) -> None:
    notes, looks = Notes(), threading.Event()
    async with serving(redis_url, [overrun], middleware=[notes], ctx={"looks": looks}) as worker:
        with pytest.raises(TimeoutError):
            await (await client.enqueue(overrun)).result(timeout=10)
        await wait_until(lambda: worker.stuck_threads == 0, description="the thread is free")
    assert notes.notes == [("overrun", ()), "CancelledError"]


async def test_job_that_expires_while_it_waits_is_no_failure_to_it(
    redis_url: str, client: runner.Client
) -> None:
    notes = Notes()
    bolt: dict[str, Any] = {"held": threading.Event(), "opens": threading.Event()}
    async with serving(redis_url, [hold, brief], middleware=[notes], max_threads=1, ctx=bolt):
        try:
            await client.enqueue(hold)
            await wait_until(bolt["held"].is_set, description="the thread is taken")
            late = await client.enqueue(brief)
            await wait_until(lambda: ("brief", ()) in notes.notes, description="it waits")
            due = asyncio.get_running_loop().time() + 0.3
            await wait_until(
                lambda: asyncio.get_running_loop().time() > due, description="it is too late"
            )
        finally:
            bolt["opens"].set()
        with pytest.raises(runner.errors.JobExpired):
            await late.result(timeout=10)
    assert "NotStarted" in notes.notes


async def test_tasks_that_a_thread_leaves_are_named(redis_url: str, client: runner.Client) -> None:
    events: list[Any] = []
    held: list[asyncio.Task[Any]] = []
    settings: dict[str, Any] = {"left_tasks": "cancel", "subscribers": [events.append]}
    async with serving(redis_url, [leave_a_task], ctx={"held": held}, **settings):
        job = await client.enqueue(leave_a_task)
        await job.result(timeout=10)
        await wait_until(held[0].done, description="the task is cancelled")
    (event,) = [event for event in events if isinstance(event, TasksLeft)]
    assert (event.job_id, event.count) == (job.job_id, 1)
