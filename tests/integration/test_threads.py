"""Functions in threads: their context, their limits, and what goes on when a job has ended."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import runner
from runner import Context, Outcome, SoftTimeLimit, keys, task
from runner.errors import AttemptOver, RemoteError
from runner.events import JobEnded, JobStarted, JobStuck
from tests.engine import lease_is_renewed, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys("runner:held:*", "runner:units", "runner:writer*", "runner:answers*"),
]

STARTED: contextvars.ContextVar[str] = contextvars.ContextVar("STARTED", default="")


@dataclass
class Bolt:
    """A job's way to say that it is in its thread, and to wait there until it may go on."""

    is_in: threading.Event = field(default_factory=threading.Event)
    opens: threading.Event = field(default_factory=threading.Event)
    said: list[Any] = field(default_factory=list)

    def wait(self) -> None:
        self.is_in.set()
        # In one call into C, as a driver that waits for a server; bounded, should a test fail.
        assert self.opens.wait(30)


@task
def add(_ctx: Context, one: int, *, two: int = 0) -> int:
    return one + two


@task
def where(_ctx: Context) -> list[str]:
    return [threading.current_thread().name, STARTED.get()]


@task
def fail(_ctx: Context) -> None:
    raise ValueError("broken in a thread")


@task
def leave(_ctx: Context) -> None:
    raise SystemExit(3)


@task
def bolted(ctx: Context) -> str:
    ctx["bolt"].wait()
    ctx["bolt"].said.append(ctx.cancelled)
    return "passed"


@task(timeout=0.2, backoff=runner.RetryPolicy(retries=1, base=0, retry_on_timeout=True))
def overrun(ctx: Context) -> None:
    ctx["bolt"].wait()
    try:
        ctx.db.insert("t", id=1)
    except AttemptOver as exc:
        ctx["bolt"].said.append(exc)
    try:
        ctx.run(ctx.db.commit())
    except asyncio.CancelledError as exc:
        ctx["bolt"].said.append(exc)


@task(timeout=30, soft_timeout=0.2)
def tidy(ctx: Context) -> str:
    try:
        while not ctx["bolt"].opens.is_set():
            time.sleep(0.001)
    except SoftTimeLimit:
        return "tidy"
    return "never"


@task(timeout=30, soft_timeout=0.2)
def late(ctx: Context) -> None:
    while not ctx["bolt"].opens.is_set():
        time.sleep(0.001)


@task(timeout=30, soft_timeout=0.2)
def awaits(ctx: Context) -> str:
    try:
        ctx.run(asyncio.Event().wait())
    except SoftTimeLimit:
        return "tidy"
    return "never"


@task(soft_timeout=0.01, timeout=30)
def close_to_its_limit(_ctx: Context, number: int) -> int:
    """End at about the time of the soft limit: before it, with it, or behind it."""
    until = time.monotonic() + 0.01
    while time.monotonic() < until:
        pass
    return number


@task
def enqueue(ctx: Context) -> int:
    job = ctx.run(ctx.client.enqueue(add, 1, two=2))
    return ctx.run(job.result(timeout=10))


@task
def write(ctx: Context, number: int) -> int:
    ctx.db.insert("t", id=number)
    counts = ctx.run(ctx.db.commit()).counts
    ctx.db.insert("t", id=number + 1)
    return counts[0] or 0


@task
async def runs_in_the_loop(ctx: Context) -> None:
    ctx.run(asyncio.sleep(0))


@task(expires=0.2)
def expires(_ctx: Context) -> None: ...


TASKS: list[Any] = [
    *(add, where, fail, leave, bolted, overrun, tidy, late, awaits, close_to_its_limit),
    *(enqueue, write, runs_in_the_loop, expires),
]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as client:
        yield client


@pytest.fixture
async def bolt() -> AsyncIterator[Bolt]:
    bolt = Bolt()
    yield bolt
    bolt.opens.set()


async def test_arguments_and_results_pass(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, TASKS):
        job = await client.enqueue(add, 1, two=2)
        assert await job.result(timeout=10) == 3


async def test_context_variables_pass_into_the_thread(
    redis_url: str, client: runner.Client
) -> None:
    async def bind(_ctx: Any) -> None:
        STARTED.set("in the hook")

    async with serving(redis_url, TASKS, on_job_start=bind):
        name, seen = await (await client.enqueue(where)).result(timeout=10)
    assert name.startswith("runner job thread")
    assert seen == "in the hook"


@pytest.mark.parametrize(
    ("failing", "message"), [(fail, "ValueError: broken in a thread"), (leave, "SystemExit: 3")]
)
async def test_what_a_function_raises_fails_its_job_alone(
    redis_url: str, client: runner.Client, failing: Any, message: str
) -> None:
    async with serving(redis_url, TASKS):
        job = await client.enqueue(failing)
        with pytest.raises(RemoteError, match=message):
            await job.result(timeout=10)
        assert await (await client.enqueue(add, 1)).result(timeout=10) == 1


async def test_function_reaches_the_loop_by_run(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, TASKS):
        assert await (await client.enqueue(enqueue)).result(timeout=10) == 3
        job = await client.enqueue(runs_in_the_loop)
        with pytest.raises(RemoteError, match="an async function awaits"):
            await job.result(timeout=10)


async def test_writes_of_a_thread_are_committed_with_its_job(
    redis_url: str, database_url: str, client: runner.Client
) -> None:
    database = await asyncpg.connect(database_url)
    try:
        await database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        async with serving(redis_url, TASKS, database_url=database_url):
            assert await (await client.enqueue(write, 7)).result(timeout=30) == 1
        rows = await database.fetch("SELECT id FROM t ORDER BY id")
        assert [row["id"] for row in rows] == [7, 8]
    finally:
        await database.close()


@pytest.mark.lasting_keys("runner:schedule*")
async def test_schedules_of_both_forms_run_in_threads(
    redis_url: str, client: runner.Client, bolt: Bolt
) -> None:
    bolt.opens.set()
    schedules: list[Any] = [
        runner.cron(bolted, runner.every(1), run_at_startup=True),
        runner.cron(bolted, hour=3, run_at_startup=True, job_id="arqs", keep_result=60),
    ]
    async with serving(redis_url, TASKS, cron_jobs=schedules, ctx={"bolt": bolt}):
        await wait_until(lambda: len(bolt.said) > 1, description="both have run")
        assert await client.job("arqs").result(timeout=10) == "passed"


async def test_many_jobs_share_few_threads(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, TASKS, max_threads=8, max_jobs=300):
        jobs = await client.enqueue_many([where.call() for _ in range(200)])
        names = {(await job.result(timeout=30))[0] for job in jobs}
    assert len(names) <= 8


async def test_jobs_that_wait_for_a_thread_keep_their_leases(
    redis_url: str, client: runner.Client, bolt: Bolt
) -> None:
    settings = {"max_threads": 1, "lease": 1, "ctx": {"bolt": bolt}}
    events: list[Any] = []
    async with serving(redis_url, TASKS, subscribers=[events.append], **settings):
        first = await client.enqueue(bolted)
        await wait_until(bolt.is_in.is_set, description="the thread is taken")
        waits = await client.enqueue(add, 1)
        await lease_is_renewed(client, waits.job_id)
        assert [event.job_id for event in events if isinstance(event, JobStarted)] == [first.job_id]
        bolt.opens.set()
        assert await waits.result(timeout=10) == 1


async def test_job_that_waits_for_a_thread_too_long_expires(
    redis_url: str, client: runner.Client, bolt: Bolt
) -> None:
    async with serving(redis_url, TASKS, max_threads=1, ctx={"bolt": bolt}):
        await client.enqueue(bolted)
        await wait_until(bolt.is_in.is_set, description="the thread is taken")
        job = await client.enqueue(expires)
        due = time.time() + 0.3
        await wait_until(lambda: time.time() > due, description="it is too late to start")
        bolt.opens.set()
        with pytest.raises(runner.errors.JobExpired):
            await job.result(timeout=10)


async def test_hard_limit_ends_the_job_and_not_the_thread(
    redis_url: str, client: runner.Client, bolt: Bolt
) -> None:
    events: list[Any] = []
    settings = {"max_threads": 1, "ctx": {"bolt": bolt}, "subscribers": [events.append]}
    async with serving(redis_url, TASKS, **settings) as worker:
        job = await client.enqueue(overrun)
        with pytest.raises(TimeoutError):
            await job.result(timeout=10)
        assert worker.stuck_threads == 1
        stuck = next(event for event in events if isinstance(event, JobStuck))
        assert (stuck.job_id, stuck.executor) == (job.job_id, "thread")
        assert stuck.where.startswith(__file__)
        assert "assert self.opens.wait(30)" in stuck.stack
        # Its place is taken until it returns: what comes next waits.
        waits = await client.enqueue(add, 1)
        await wait_until(lambda: worker.job_counter == 1, description="it is claimed")
        bolt.opens.set()
        assert await waits.result(timeout=10) == 1
        assert worker.stuck_threads == 0
    written, committed = bolt.said
    assert isinstance(written, AttemptOver)
    assert isinstance(committed, asyncio.CancelledError)
    ends = [event for event in events if isinstance(event, JobEnded)]
    assert [end.outcome for end in ends if end.job_id == job.job_id] == [Outcome.TIMED_OUT]


@pytest.mark.parametrize("function", [tidy, awaits])
async def test_soft_limit_is_raised_in_the_thread(
    redis_url: str, client: runner.Client, bolt: Bolt, function: Any
) -> None:
    async with serving(redis_url, TASKS, ctx={"bolt": bolt}):
        job = await client.enqueue(function)
        assert await job.result(timeout=10) == "tidy"


async def test_soft_limit_that_escapes_ends_the_job_as_timed_out(
    redis_url: str, client: runner.Client, bolt: Bolt
) -> None:
    async with serving(redis_url, TASKS, ctx={"bolt": bolt}) as worker:
        job = await client.enqueue(late)
        with pytest.raises(TimeoutError, match="soft time limit"):
            await job.result(timeout=10)
        assert worker.stuck_threads == 0


async def test_soft_limit_never_strikes_the_next_job(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, TASKS, max_threads=2, max_jobs=50):
        calls: list[Any] = [close_to_its_limit.call(n) for n in range(100)]
        jobs = await client.enqueue_many(calls)
        ends = await asyncio.gather(
            *(job.result(timeout=30) for job in jobs), return_exceptions=True
        )
        odd = [end for end in ends if not isinstance(end, int | TimeoutError)]
        assert odd == []
        plain = await client.enqueue_many([add.call(n) for n in range(20)])
        assert [await job.result(timeout=10) for job in plain] == list(range(20))


async def test_aborted_job_ends_and_its_thread_hears_of_it(
    redis_url: str, client: runner.Client, bolt: Bolt
) -> None:
    async with serving(redis_url, TASKS, allow_abort_jobs=True, ctx={"bolt": bolt}) as worker:
        job = await client.enqueue(bolted)
        await wait_until(bolt.is_in.is_set, description="it is in its thread")
        assert await job.abort(timeout=10) is True
        assert worker.stuck_threads == 1
        bolt.opens.set()
        await wait_until(lambda: worker.stuck_threads == 0, description="the thread is free")
    assert bolt.said == [True]


async def test_job_that_waits_for_a_thread_is_aborted(
    redis_url: str, client: runner.Client, bolt: Bolt
) -> None:
    settings = {"max_threads": 1, "allow_abort_jobs": True, "ctx": {"bolt": bolt}}
    async with serving(redis_url, TASKS, **settings) as worker:
        await client.enqueue(bolted)
        await wait_until(bolt.is_in.is_set, description="the thread is taken")
        waits = await client.enqueue(add, 1)
        await wait_until(lambda: worker.job_counter == 2, description="it is claimed")
        assert await waits.abort(timeout=10) is True
        assert worker.stuck_threads == 0
        bolt.opens.set()


async def test_worker_that_stops_lets_a_thread_end_within_the_grace(
    redis_url: str, client: runner.Client, bolt: Bolt
) -> None:
    events: list[Any] = []
    settings = {"ctx": {"bolt": bolt}, "subscribers": [events.append], "cancel_grace": 20}
    async with serving(redis_url, TASKS, **settings) as worker:
        job = await client.enqueue(bolted)
        await wait_until(bolt.is_in.is_set, description="it is in its thread")
        closing = asyncio.create_task(worker.close())
        await wait_until(lambda: worker.stopping, description="the worker stops")
        bolt.opens.set()
        await closing
    assert await job.result(timeout=5) == "passed"
    assert [event.outcome for event in events if isinstance(event, JobEnded)] == [Outcome.SUCCEEDED]


async def test_thread_beyond_the_grace_keeps_its_lease_after_the_worker_has_closed(
    redis_url: str, client: runner.Client, bolt: Bolt
) -> None:
    events: list[Any] = []
    settings = {"ctx": {"bolt": bolt}, "subscribers": [events.append], "cancel_grace": 0.1}
    async with serving(redis_url, TASKS, lease=1, **settings):
        job = await client.enqueue(bolted)
        await wait_until(bolt.is_in.is_set, description="it is in its thread")
    assert [event for event in events if isinstance(event, JobEnded)] == []
    await lease_is_renewed(client, job.job_id)
    bolt.opens.set()

    async def is_free() -> bool:
        return not await client.exists(keys.in_progress(job.job_id))

    await wait_until(is_free, description="the lease has run out")
    async with serving(redis_url, TASKS, lease=1, ctx={"bolt": bolt}):
        assert await job.result(timeout=10) == "passed"


async def test_waiting_jobs_are_handed_back_by_a_worker_that_stops(
    redis_url: str, client: runner.Client, bolt: Bolt
) -> None:
    events: list[Any] = []
    settings = {"max_threads": 1, "ctx": {"bolt": bolt}, "subscribers": [events.append]}
    async with serving(redis_url, TASKS, cancel_grace=0.1, **settings) as worker:
        await client.enqueue(bolted)
        await wait_until(bolt.is_in.is_set, description="the thread is taken")
        waits = await client.enqueue(add, 1)
        await wait_until(lambda: worker.job_counter == 2, description="it is claimed")
    ends = [(event.job_id, event.outcome) for event in events if isinstance(event, JobEnded)]
    assert ends == [(waits.job_id, Outcome.HANDED_BACK)]
