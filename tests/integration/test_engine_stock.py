"""Our worker and client beside stock arq's, on one queue, in both directions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from arq.connections import RedisSettings
from arq.jobs import Job as StockJob
from arq.jobs import JobStatus, ResultNotFound
from arq.worker import JobExecutionFailed, func
from arq.worker import Retry as StockRetry

import runner
from runner import keys
from runner.codec import MsgpackCodec
from tests.engine import Gate, Rig, StockWorker, drain, raw, serving, started, stock_client
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arq.connections import ArqRedis

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys("runner:held:*"),
    pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed client session:ResourceWarning"),
]

QUEUE = keys.DEFAULT_QUEUE


async def add(_ctx: Any, a: int, b: int = 0) -> int:
    return a + b


async def fail(_ctx: Any) -> None:
    raise ValueError("broken")


async def wait_at(ctx: Any) -> str:
    await ctx["gate"]()
    return "through"


async def twice(ctx: Any) -> int:
    if ctx["job_try"] < 2:
        raise StockRetry(defer=0.01)
    return int(ctx["job_try"])


@pytest.fixture
async def stock(redis_url: str) -> AsyncIterator[ArqRedis]:
    async with stock_client(redis_url) as pool:
        yield pool


def stock_worker(url: str, functions: list[Any], **settings: Any) -> Any:
    given = {"poll_delay": 0.05, "handle_signals": False, **settings}
    return StockWorker(functions, redis_settings=RedisSettings.from_dsn(url), **given)


async def enqueued(stock: ArqRedis, name: str, *args: Any, **kwargs: Any) -> StockJob:
    job = await stock.enqueue_job(name, *args, **kwargs)
    assert job is not None
    return job


# A stock client before our worker.


async def test_stock_client_gets_the_result_of_our_worker(redis_url: str, stock: ArqRedis) -> None:
    job = await enqueued(stock, "add", 1, b=2)
    await drain(redis_url, [add], codec="pickle")
    assert await job.result(timeout=1) == 3
    assert await job.status() is JobStatus.complete
    info = await job.result_info()
    assert info is not None
    assert (info.success, info.function, info.args, info.kwargs) == (True, "add", (1,), {"b": 2})
    assert (info.job_try, info.queue_name, info.job_id) == (1, QUEUE, job.job_id)


async def test_stock_client_gets_the_exception_itself(redis_url: str, stock: ArqRedis) -> None:
    job = await enqueued(stock, "fail")
    await drain(redis_url, [fail], codec="pickle")
    with pytest.raises(ValueError, match="broken"):
        await job.result(timeout=1)


async def test_stock_client_gets_arqs_failure_for_an_unknown_function(
    redis_url: str, stock: ArqRedis
) -> None:
    job = await enqueued(stock, "ad")
    await drain(redis_url, [add], codec="pickle")
    with pytest.raises(JobExecutionFailed, match="function 'ad' not found") as failed:
        await job.result(timeout=1)
    assert type(failed.value) is JobExecutionFailed


async def test_stock_client_sees_a_job_through_its_states(redis_url: str, stock: ArqRedis) -> None:
    gate = Gate()
    deferred = await enqueued(stock, "add", 1, _defer_by=60)
    assert await deferred.status() is JobStatus.deferred
    job = await enqueued(stock, "wait_at")
    assert await job.status() is JobStatus.queued
    info = await job.info()
    assert info is not None
    assert info.function == "wait_at"
    async with serving(redis_url, [wait_at, add], codec="pickle", ctx={"gate": gate}):
        await gate.runs.wait()
        assert await job.status() is JobStatus.in_progress
        assert {queued.job_id for queued in await stock.queued_jobs()} == {
            job.job_id,
            deferred.job_id,
        }
        gate.opens.set()
        assert await job.result(timeout=5, poll_delay=0.05) == "through"
    assert await job.status() is JobStatus.complete
    assert [result.job_id for result in await stock.all_job_results()] == [job.job_id]


async def test_stock_client_reads_our_clients_jobs(redis_url: str, stock: ArqRedis) -> None:
    async with runner.connect(redis_url, codec="pickle") as client:
        task = runner.task(add)
        ours = await client.enqueue(task.options(expires=60, delay=5), 1, b=2)
    (queued,) = await stock.queued_jobs()
    assert (queued.function, queued.args, queued.kwargs) == ("add", (1,), {"b": 2})
    assert queued.job_id == ours.job_id


async def test_stock_client_aborts_a_job_that_runs_with_us(redis_url: str, stock: ArqRedis) -> None:
    gate = Gate()
    job = await enqueued(stock, "wait_at")
    settings = {"codec": "pickle", "allow_abort_jobs": True, "ctx": {"gate": gate}}
    async with serving(redis_url, [wait_at], **settings):
        await gate.runs.wait()
        assert await job.abort(timeout=5, poll_delay=0.05) is True
    assert gate.passed == []
    assert await stock.zcard(QUEUE) == 0


async def test_stock_client_aborts_a_job_of_ours_with_the_safe_codec(redis_url: str) -> None:
    codec = MsgpackCodec()
    hooks: dict[str, Any] = {"job_serializer": codec.dumps, "job_deserializer": codec.loads}
    async with stock_client(redis_url, **hooks) as stock:
        job = await enqueued(stock, "add", 1, _defer_by=60)
        async with serving(redis_url, [add], allow_abort_jobs=True):
            assert await job.abort(timeout=5, poll_delay=0.05) is True


async def test_abort_close_to_the_end_leaves_no_ghost(redis_url: str, stock: ArqRedis) -> None:
    """The steps of arq's abort, with the end of the job between its look and its writes."""
    job = await enqueued(stock, "add", 1)
    await drain(redis_url, [add], codec="pickle")
    await stock.zadd(QUEUE, {job.job_id: 1})
    await stock.zadd(keys.ABORT, {job.job_id: 1})
    await drain(redis_url, [add], codec="pickle", allow_abort_jobs=True)
    assert await job.result(timeout=1) == 1
    assert await stock.zcard(QUEUE) == 0


async def test_stock_client_is_told_that_an_id_is_taken(redis_url: str, stock: ArqRedis) -> None:
    gate = Gate()
    await enqueued(stock, "wait_at", _job_id="one")
    async with serving(redis_url, [wait_at], codec="pickle", ctx={"gate": gate}):
        await gate.runs.wait()
        assert await stock.enqueue_job("wait_at", _job_id="one") is None
        gate.opens.set()
        await wait_until(lambda: stock.exists(keys.result("one")), description="it has ended")
        assert await stock.enqueue_job("wait_at", _job_id="one") is None


# Our client before a stock worker.


async def test_our_client_gets_the_result_of_a_stock_worker(redis_url: str) -> None:
    async with runner.connect(redis_url, codec="pickle") as client:
        job = await client.enqueue("add", 1, b=2)
        async with started(stock_worker(redis_url, [add])):
            assert await job.result(timeout=10) == 3
        assert await job.status() is JobStatus.complete
        failed = await client.enqueue("fail")
        async with started(stock_worker(redis_url, [fail])):
            with pytest.raises(ValueError, match="broken"):
                await failed.result(timeout=10)


async def test_declared_task_runs_in_a_stock_worker(redis_url: str) -> None:
    declared = runner.task(add)
    async with runner.connect(redis_url, codec="pickle") as client:
        job = await client.enqueue(declared, 20, 22)
        async with started(stock_worker(redis_url, [declared])):
            assert await job.result(timeout=10) == 42


async def test_our_client_learns_that_a_stock_worker_kept_no_result(redis_url: str) -> None:
    async with runner.connect(redis_url, codec="pickle") as client:
        job = await client.enqueue("add", 1)
        async with started(stock_worker(redis_url, [add], keep_result=0)):
            with pytest.raises(ResultNotFound):
                await job.result(timeout=10)


# Both kinds of worker on one queue.


async def test_job_that_one_kind_runs_the_other_leaves_alone(
    redis_url: str, stock: ArqRedis
) -> None:
    gate = Gate()
    job = await enqueued(stock, "wait_at")
    theirs = stock_worker(redis_url, [wait_at, add], ctx={"gate": gate})
    async with started(theirs):
        await gate.runs.wait()
        async with serving(redis_url, [wait_at, add], codec="pickle") as ours:
            other = await enqueued(stock, "add", 1)
            assert await other.result(timeout=5, poll_delay=0.05) == 1
            gate.opens.set()
            assert await job.result(timeout=5, poll_delay=0.05) == "through"
    assert len(gate.passed) == 1
    assert ours.jobs_complete + theirs.jobs_complete == 2


async def test_jobs_behind_those_that_stock_workers_run_start_with_us(
    redis_url: str, stock: ArqRedis
) -> None:
    gate = Gate()
    for _ in range(30):
        await enqueued(stock, "wait_at")
    theirs = stock_worker(redis_url, [wait_at], ctx={"gate": gate}, max_jobs=30)
    async with started(theirs):
        await wait_until(lambda: len(theirs.tasks) == 30, description="all their slots are taken")
        jobs = [await enqueued(stock, "add", n) for n in range(20)]
        async with serving(redis_url, [add], codec="pickle", max_jobs=10):
            results = [await job.result(timeout=5, poll_delay=0.02) for job in jobs]
        gate.opens.set()
        await wait_until(lambda: not theirs.tasks, description="theirs have ended")
    assert results == list(range(20))


async def test_five_thousand_jobs_in_a_mixed_fleet_each_run_once(
    redis_url: str, stock: ArqRedis
) -> None:
    runs: list[tuple[str, int]] = []

    async def note(ctx: Any, number: int) -> int:
        runs.append((ctx["job_id"], ctx["job_try"]))
        await asyncio.sleep(0.001)
        if number % 20 == 0 and ctx["job_try"] == 1:
            raise StockRetry(defer=0.01)
        return number

    async with runner.connect(redis_url, codec="pickle") as client:
        functions = [func(note, name="note")]
        theirs = stock_worker(redis_url, functions, max_jobs=20)
        async with (
            started(theirs),
            serving(redis_url, functions, codec="pickle", max_jobs=5) as ours,
        ):
            jobs: list[StockJob] = []
            for start in range(0, 5000, 20):
                # A few at a time, so that both kinds of worker find some.
                jobs += await asyncio.gather(
                    *(client.enqueue("note", n) for n in range(start, start + 10)),
                    *(enqueued(stock, "note", n) for n in range(start + 10, start + 20)),
                )
            await wait_until(
                lambda: _empty(client),
                description="the queue is empty",
                timeout_s=30,
            )
        assert await Rig(client).claim() == []
        results = {await job.result(timeout=1) for job in jobs}
    assert results == set(range(5000))
    assert len(runs) == len(set(runs)) == 5250
    assert theirs.jobs_complete > 0
    assert ours.jobs_complete > 0
    assert theirs.jobs_complete + ours.jobs_complete == 5000


async def _empty(client: Any) -> bool:
    return not await client.zcard(QUEUE)


async def test_retry_of_one_kind_is_counted_by_the_other(redis_url: str, stock: ArqRedis) -> None:
    job = await enqueued(stock, "twice")
    theirs = stock_worker(redis_url, [twice], burst=True, max_burst_jobs=1)
    async with started(theirs):
        await wait_until(lambda: theirs.jobs_retried, description="their try is over")
        await wait_until(lambda: _free(redis_url, job.job_id), description="and settled")
    await drain(redis_url, [twice], codec="pickle")
    assert await job.result(timeout=1) == 2


async def _free(url: str, job_id: str) -> bool:
    async with raw(url) as redis:
        return not await redis.exists(keys.in_progress(job_id))
