"""Tasks that take many jobs at once: one call, and each job with its own outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import Context, ManyContext, Retry, errors, task
from runner.many import ManyTask
from tests.engine import serving
from tests.integration.test_writer_support import LASTING
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys(*LASTING, "runner:held:*", "runner:writer:leader"),
]

LONG_S = 30.0


@task(batch=10, batch_wait=LONG_S)
async def double(ctx: ManyContext, numbers: list[int]) -> list[int]:
    ctx["calls"].append([job.job_id for job in ctx.jobs])
    return [2 * number for number in numbers]


@task(batch=100, batch_wait=0.05)
async def picky(ctx: ManyContext, numbers: list[int]) -> list[int | Exception]:
    ctx["calls"].append(list(numbers))
    attempts = [job.attempt for job in ctx.jobs]
    return [_outcome(number, attempt) for number, attempt in zip(numbers, attempts, strict=True)]


def _outcome(number: int, attempt: int) -> int | Exception:
    if number == 13:
        return ValueError("unlucky")
    if number == 7 and attempt == 1:
        return Retry(defer=0)
    return number


@task(batch=3, batch_wait=LONG_S)
async def broken(_ctx: ManyContext, _numbers: list[int]) -> None:
    raise ValueError("all of them")


@task(batch=2, batch_wait=LONG_S)
async def short(_ctx: ManyContext, numbers: list[int]) -> list[int]:
    return numbers[:1]


@task(batch=5, batch_wait=LONG_S)
async def write(ctx: ManyContext, numbers: list[int]) -> None:
    for job, number in zip(ctx.jobs, numbers, strict=True):
        job.db.insert("t", id=number)


@task(batch=2, batch_wait=LONG_S, timeout=0.3)
async def hang(ctx: ManyContext, _numbers: list[int]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ctx["calls"].append("over")


TASKS: list[Any] = [double, picky, broken, short, write, hang]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as client:
        yield client


@pytest.fixture
def calls() -> list[Any]:
    return []


@pytest.fixture
async def worker(redis_url: str, calls: list[Any]) -> AsyncIterator[Any]:
    async with serving(redis_url, TASKS, ctx={"calls": calls}, max_jobs=50) as worker:
        yield worker


@pytest.mark.usefixtures("worker")
async def test_one_call_takes_as_many_jobs_as_it_may(client: Client, calls: list[Any]) -> None:
    jobs = await client.enqueue_many([double.call(number) for number in range(30)])
    assert [await job.result(timeout=20) for job in jobs] == [2 * n for n in range(30)]
    assert [len(call) for call in calls] == [10, 10, 10]
    assert sorted(sum(calls, [])) == sorted(job.job_id for job in jobs)  # noqa: RUF017  three lists


@pytest.mark.usefixtures("worker")
async def test_each_job_has_its_own_outcome(client: Client, calls: list[Any]) -> None:
    jobs = await client.enqueue_many([picky.call(number) for number in (1, 7, 13)])
    assert await jobs[0].result(timeout=20) == 1
    assert await jobs[1].result(timeout=20) == 7
    with pytest.raises(errors.RemoteError, match="unlucky"):
        await jobs[2].result(timeout=20)
    assert [7] in calls, "it was tried again, alone"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("failing", "count", "why"),
    [(broken, 3, "all of them"), (short, 2, "got 2 items and returned 1")],
)
async def test_call_that_fails_fails_each_of_its_jobs(
    client: Client, failing: Any, count: int, why: str
) -> None:
    jobs = await client.enqueue_many([failing.call(number) for number in range(count)])
    for job in jobs:
        with pytest.raises(errors.RemoteError, match=why):
            await job.result(timeout=20)


async def test_each_job_writes_its_own_unit(
    redis_url: str, database_url: str, client: Client, calls: list[Any]
) -> None:
    import asyncpg  # noqa: PLC0415  one test of this file needs it

    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await connection.execute("INSERT INTO t VALUES (3)")
    given: dict[str, Any] = {"ctx": {"calls": calls}, "database_url": database_url}
    async with serving(redis_url, TASKS, **given):
        jobs = await client.enqueue_many([write.call(number) for number in range(5)])
        for number, job in enumerate(jobs):
            if number == 3:
                with pytest.raises(errors.WriteRejected):
                    await job.result(timeout=20)
            else:
                await job.result(timeout=20)
    assert await connection.fetchval("SELECT count(*) FROM t") == 5
    await connection.close()


@pytest.mark.usefixtures("worker")
async def test_call_that_nobody_waits_for_is_cancelled(client: Client, calls: list[Any]) -> None:
    jobs = await client.enqueue_many([hang.call(number) for number in range(2)])
    for job in jobs:
        with pytest.raises(TimeoutError):
            await job.result(timeout=20)
    await wait_until(lambda: calls == ["over"], description="the call was cancelled")


async def test_it_is_callable_as_a_job_calls_it() -> None:
    ctx: Any = {"calls": [], "job_id": "x"}
    untyped: Any = picky
    assert isinstance(untyped, ManyTask)
    assert await untyped.function(ManyContext([_Job(ctx)]), [1]) == [1]
    with pytest.raises(errors.ArgumentsError, match="parameter 'numbers' takes int, not str"):
        untyped.call("x")


class _Job(dict[str, Any]):
    attempt = 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"batch": 2, "batch_wait": -1}, "batch_wait is -1"),
        ({"batch_wait": 1}, "batch_wait needs batch"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], why: str) -> None:
    untyped: Any = task
    with pytest.raises(errors.SettingsError, match=why):
        untyped(**options)(_takes_a_list)


async def _takes_a_list(_ctx: Context, _items: list[int]) -> None: ...


async def _takes_more(_ctx: Context, _items: list[int], _more: int) -> None: ...


def test_function_takes_the_context_and_a_list() -> None:
    untyped: Any = task(batch=2)
    with pytest.raises(errors.SettingsError, match="nothing more"):
        untyped(_takes_more)


def _is_sync(_ctx: Context, _items: list[int]) -> None: ...


def test_function_that_takes_many_is_async() -> None:
    untyped: Any = task(batch=2)
    with pytest.raises(errors.SettingsError, match="must be an async function"):
        untyped(_is_sync)
