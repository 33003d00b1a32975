"""What is provided reaches functions in threads and of many jobs, and outlives no function."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import Context, Depends, ManyContext, Outcome, task
from runner.errors import RemoteError
from runner.events import Event, JobEnded, TasksLeft
from tests.engine import serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:*")]

NOTES: list[str] = []
THREADS: dict[str, str] = {}
HELD: dict[str, threading.Event] = {}


@pytest.fixture(autouse=True)
def _clean() -> None:
    NOTES.clear()
    THREADS.clear()
    HELD.update(runs=threading.Event(), ends=threading.Event())


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


def note(what: str) -> None:
    NOTES.append(what)
    THREADS[what] = threading.current_thread().name


async def get_pool(ctx: dict[Any, Any]) -> AsyncIterator[str]:
    assert "job_id" not in ctx
    note("pool opens")
    yield "pool"
    note("pool closes")


async def get_connection(
    _ctx: Context, pool: str = Depends(get_pool, scope="worker")
) -> AsyncIterator[str]:
    opened_by = asyncio.current_task()
    note("connection opens")
    try:
        yield f"connection of {pool}"
    except BaseException as exc:
        note(f"connection sees {type(exc).__name__}")
        raise
    finally:
        await asyncio.sleep(0)
        assert asyncio.current_task() is opened_by
        note("connection closes")


def get_session(connection: str = Depends(get_connection)) -> Iterator[str]:
    note("session opens")
    yield f"session on {connection}"
    note("session closes")


async def get_word(ctx: Context) -> str:
    return f"word of {ctx.job_id}"


@task
def plain(
    _ctx: Context,
    number: int,
    session: str = Depends(get_session),
    connection: str = Depends(get_connection),
    word: str = Depends(get_word),
) -> list[Any]:
    note("function")
    return [number, session, connection, word]


@task
def fails(_ctx: Context, session: str = Depends(get_session)) -> None:
    raise ValueError(session)


@task(timeout=0.3)
def overruns(ctx: Context, _session: str = Depends(get_session)) -> None:
    HELD["runs"].set()
    assert HELD["ends"].wait(30)
    NOTES.append(f"function ends, cancelled: {ctx.cancelled}")


@task(timeout=30)
def waits_in_the_loop(ctx: Context, _session: str = Depends(get_session)) -> None:
    HELD["runs"].set()
    ctx.run(asyncio.sleep(30))


async def get_broken() -> AsyncIterator[str]:
    """Fail to close, as what rolls back on a connection does that has gone."""
    try:
        yield "connection"
    finally:
        raise ConnectionError("it cannot be closed")


def get_broken_in_a_thread() -> Iterator[str]:
    try:
        yield "connection"
    finally:
        raise ConnectionError("it cannot be closed")


@task
async def waits(_ctx: Context, _connection: str = Depends(get_broken)) -> None:
    HELD["runs"].set()
    await asyncio.sleep(30)


@task
def waits_in_a_thread(ctx: Context, _connection: str = Depends(get_broken_in_a_thread)) -> None:
    HELD["runs"].set()
    ctx.run(asyncio.sleep(30))


@task(timeout=0.2)
async def waits_too_long(_ctx: Context, _connection: str = Depends(get_broken)) -> None:
    await asyncio.sleep(30)


async def get_translator() -> AsyncIterator[None]:
    try:
        yield
    except KeyError as exc:
        raise LookupError("the service is closed") from exc


@task
async def translated(_ctx: Context, _translator: None = Depends(get_translator)) -> None:
    raise KeyError("closed")


IN_A_JOB = ["connection opens", "session opens", "function", "session closes", "connection closes"]


async def test_function_in_a_thread_is_provided(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, [plain]):
        for number in (1, 2):
            job = await client.enqueue(plain, number)
            assert await job.result(timeout=10) == [
                number,
                "session on connection of pool",
                "connection of pool",
                f"word of {job.job_id}",
            ]
    assert NOTES[1:-1] == [*IN_A_JOB, *IN_A_JOB]
    assert (NOTES[0], NOTES[-1]) == ("pool opens", "pool closes")
    loop = threading.current_thread().name
    for what in ("pool opens", "connection opens", "connection closes", "pool closes"):
        assert THREADS[what] == loop
    for what in ("session opens", "session closes"):
        assert THREADS[what] == THREADS["function"] != loop


async def test_what_a_thread_was_provided_sees_its_failure(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, [fails]):
        with pytest.raises(RemoteError, match="session on connection of pool"):
            await (await client.enqueue(fails)).result(timeout=10)
    assert NOTES[-3:] == ["connection sees ValueError", "connection closes", "pool closes"]


async def test_nothing_is_closed_under_a_function_that_goes_on(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, [overruns]) as worker:
        job = await client.enqueue(overruns)
        with pytest.raises(TimeoutError):
            await job.result(timeout=10)
        assert HELD["runs"].is_set()
        assert worker.stuck_threads == 1
        assert "session closes" not in NOTES
        HELD["ends"].set()
        await wait_until(lambda: worker.stuck_threads == 0, description="the function returned")
    assert NOTES[3:] == [
        "function ends, cancelled: True",
        "session closes",
        "connection closes",
        "pool closes",
    ]


async def test_what_a_thread_was_provided_is_closed_when_its_job_is_aborted(
    redis_url: str, client: runner.Client
) -> None:
    events: list[Any] = []
    settings: dict[str, Any] = {"allow_abort_jobs": True, "subscribers": [events.append]}
    async with serving(redis_url, [waits_in_the_loop], **settings) as worker:
        job = await client.enqueue(waits_in_the_loop)
        await wait_until(HELD["runs"].is_set, description="the function runs")
        assert await job.abort(timeout=10)
        await wait_until(lambda: worker.stuck_threads == 0, description="the function returned")
    (end,) = [event for event in events if isinstance(event, JobEnded)]
    assert end.outcome is Outcome.ABORTED
    assert NOTES[-3:] == ["connection sees CancelledError", "connection closes", "pool closes"]


@task(batch=3, batch_wait=5)
async def store(ctx: ManyContext, rows: list[int], *, session: str = Depends(get_session)) -> Any:
    NOTES.append(f"{session} stores {sorted(rows)} of {len(ctx.jobs)}")
    return [row * 2 for row in rows]


async def test_call_for_many_jobs_is_provided_once(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, [store]):
        jobs = await client.enqueue_many([store.call(number) for number in (1, 2, 3)])
        assert [await job.result(timeout=10) for job in jobs] == [2, 4, 6]
    assert NOTES == [
        "pool opens",
        "connection opens",
        "session opens",
        "session on connection of pool stores [1, 2, 3] of 3",
        "session closes",
        "connection closes",
        "pool closes",
    ]


async def test_provider_that_waits_for_what_is_cancelled_fails_its_job_alone(
    redis_url: str, client: runner.Client
) -> None:
    times = iter((True, False))

    async def unsteady() -> AsyncIterator[str]:
        if next(times):
            ended = asyncio.create_task(asyncio.Event().wait())
            ended.cancel()
            await ended
        yield "steady"

    @task
    async def use(_ctx: Context, value: str = Depends(unsteady, scope="worker")) -> str:
        return value

    async with serving(redis_url, [use]):
        with pytest.raises(RemoteError, match="waited for what was cancelled"):
            await (await client.enqueue(use)).result(timeout=10)
        assert await (await client.enqueue(use)).result(timeout=10) == "steady"


@pytest.mark.parametrize("executor", ["loop", "thread"])
async def test_tasks_of_what_is_the_worker_s_are_not_the_job_s(
    redis_url: str, client: runner.Client, executor: str
) -> None:
    async def pool() -> AsyncIterator[asyncio.Task[Any]]:
        keeper = asyncio.create_task(asyncio.Event().wait())
        yield keeper
        NOTES.append(f"cancelled: {keeper.cancelled()}")
        keeper.cancel()

    @task
    async def in_the_loop(
        _ctx: Context, keeper: asyncio.Task[Any] = Depends(pool, scope="worker")
    ) -> bool:
        return keeper.done()

    @task
    def in_a_thread(
        _ctx: Context, keeper: asyncio.Task[Any] = Depends(pool, scope="worker")
    ) -> bool:
        return keeper.done()

    used: Any = in_the_loop if executor == "loop" else in_a_thread
    events: list[Any] = []
    settings: dict[str, Any] = {"left_tasks": "cancel", "subscribers": [events.append]}
    async with serving(redis_url, [used], **settings):
        for _ in range(2):
            assert await (await client.enqueue(used)).result(timeout=10) is False
    assert [event for event in events if isinstance(event, TasksLeft)] == []
    assert NOTES == ["cancelled: False"]


async def test_value_of_the_worker_that_does_not_close_is_given_up(
    redis_url: str, client: runner.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.dependencies.values.CLOSE_S", 0.05)

    async def stuck() -> AsyncIterator[str]:
        yield "value"
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            NOTES.append("given up")

    @task
    async def use(_ctx: Context, value: str = Depends(stuck, scope="worker")) -> str:
        return value

    async with serving(redis_url, [use]):
        assert await (await client.enqueue(use)).result(timeout=10) == "value"
    assert NOTES == ["given up"]


@pytest.mark.parametrize("waiting", [waits, waits_in_a_thread])
async def test_job_told_to_end_ends_so_whatever_does_not_close(
    redis_url: str, client: runner.Client, caplog: pytest.LogCaptureFixture, waiting: Any
) -> None:
    ends: list[Outcome] = []

    def hear(event: Event) -> None:
        if isinstance(event, JobEnded):
            ends.append(event.outcome)

    settings: dict[str, Any] = {"subscribers": [hear], "allow_abort_jobs": True}
    async with serving(redis_url, [waiting], **settings):
        job = await client.enqueue(waiting)
        await wait_until(HELD["runs"].is_set, description="the job runs")
        assert await job.abort(timeout=10)
        HELD["runs"].clear()
        await client.enqueue(waiting)
        await wait_until(HELD["runs"].is_set, description="the job runs")
    assert ends == [Outcome.ABORTED, Outcome.HANDED_BACK]
    assert caplog.text.count("ConnectionError: it cannot be closed") == 2
    assert await client.zcard("arq:queue") == 1


async def test_time_limit_stands_whatever_does_not_close(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, [waits_too_long]):
        with pytest.raises(TimeoutError):
            await (await client.enqueue(waits_too_long)).result(timeout=10)


async def test_provider_may_raise_another_error_in_the_place_of_a_failure(
    redis_url: str, client: runner.Client
) -> None:
    """Also one that says what is to follow, such as `Retry`."""
    async with serving(redis_url, [translated]):
        with pytest.raises(RemoteError, match="the service is closed"):
            await (await client.enqueue(translated)).result(timeout=10)
