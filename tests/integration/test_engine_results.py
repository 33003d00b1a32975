"""How a result reaches those who wait for it, whoever ran the job and whatever goes wrong."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
from arq.connections import RedisSettings
from arq.jobs import ResultNotFound

import runner
from runner import Client, Context, keys, task
from runner.errors import ArgumentsError, DecodeError, RemoteError
from tests.engine import Gate, Rig, StockWorker, done, drain, raw, serving, started
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import ChaosServers

pytestmark = [pytest.mark.timeout(30), pytest.mark.lasting_keys("runner:held:*")]

QUEUE = keys.DEFAULT_QUEUE


@dataclass
class Receipt:
    number: int
    day: date


@task
async def pay(_ctx: Context, number: int) -> Receipt:
    return Receipt(number, date(2024, 5, 1))


@task
async def lie(_ctx: Context) -> int:
    return "not a number"  # type: ignore[return-value]


@task
async def broken(_ctx: Context) -> None:
    raise LookupError("no such row")


@task
async def echo(_ctx: Context, text: str) -> str:
    return text


@task
async def wait_at(ctx: Context) -> str:
    await ctx["gate"]()
    return "through"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


def listening(client: Client) -> bool:
    return client._results is not None and client._results._subscribed.is_set()


async def waiters(client: Client, job_id: str) -> int:
    number: int = await cast(Any, client.scard(keys.waiters(job_id)))
    return number


async def test_result_that_is_there_already_is_returned(redis_url: str, client: Client) -> None:
    job = await client.enqueue(echo, "early")
    await drain(redis_url, [echo])
    assert await job.result() == "early"
    assert await job.result(timeout=0) == "early"


async def test_waiter_hears_of_a_result_at_once(redis_url: str, client: Client) -> None:
    """Well before the poll that stands behind it would look."""
    gate = Gate()
    job = await client.enqueue(wait_at)
    async with serving(redis_url, [wait_at], ctx={"gate": gate}):
        waiting = asyncio.create_task(job.result(timeout=10))
        await wait_until(lambda: waiters(client, job.job_id), description="it is registered")
        poller = client._results
        assert poller is not None
        assert poller._poller is not None
        poller._poller.cancel()  # from here on only the message can bring it
        gate.opens.set()
        assert await waiting == "through"


async def test_result_has_the_type_that_the_task_returns(redis_url: str, client: Client) -> None:
    job = await client.enqueue(pay, 7)
    await drain(redis_url, [pay])
    assert await job.result(timeout=1) == Receipt(7, date(2024, 5, 1))


async def test_result_of_another_type_is_an_error(redis_url: str, client: Client) -> None:
    job = await client.enqueue(lie)
    await drain(redis_url, [lie])
    with pytest.raises(DecodeError, match="Expected `int`"):
        await job.result(timeout=1)


async def test_result_is_read_by_another_client(redis_url: str, client: Client) -> None:
    job = await client.enqueue(echo, "shared")
    async with runner.connect(redis_url) as other:
        waiting = asyncio.create_task(other.job(job.job_id).result(timeout=10))
        await wait_until(lambda: waiters(client, job.job_id), description="it is registered")
        await drain(redis_url, [echo])
        assert await waiting == "shared"


async def test_result_is_read_by_another_process(redis_url: str, client: Client) -> None:
    job = await client.enqueue(echo, "far away")
    program = (
        "import asyncio, sys, runner\n"
        "async def main():\n"
        "    async with runner.connect(sys.argv[1]) as client:\n"
        "        print(await client.job(sys.argv[2]).result(timeout=20))\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, redis_url, job.job_id, stdout=asyncio.subprocess.PIPE
    )
    await drain(redis_url, [echo])
    out, _ = await process.communicate()
    assert out.decode().strip() == "far away"


async def test_large_result_comes_whole(redis_url: str, client: Client) -> None:
    """Too large for the message: it says only that the result is there."""
    text = "x" * 200_000
    job = await client.enqueue(echo, text)
    waiting = asyncio.create_task(job.result(timeout=10))
    await wait_until(lambda: waiters(client, job.job_id), description="it is registered")
    await drain(redis_url, [echo])
    assert await waiting == text


async def test_many_waiters_of_one_job_get_its_result(redis_url: str, client: Client) -> None:
    job = await client.enqueue(echo, "all")
    waiting = [asyncio.create_task(job.result(timeout=10)) for _ in range(50)]
    await wait_until(lambda: waiters(client, job.job_id), description="they are registered")
    await drain(redis_url, [echo])
    assert await asyncio.gather(*waiting) == ["all"] * 50


async def test_many_jobs_are_awaited_by_one_client(redis_url: str, client: Client) -> None:
    texts = [str(n) for n in range(1500)]
    jobs = await client.enqueue_many([echo.call(text) for text in texts])
    async with serving(redis_url, [echo], max_jobs=100):
        assert await asyncio.gather(*(job.result(timeout=20) for job in jobs)) == texts


async def test_waiting_has_a_time_limit(client: Client) -> None:
    job = await client.enqueue(echo, "never run")
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(TimeoutError):
        await job.result(timeout=0.1)
    assert loop.time() - began < 1
    assert client._results is not None
    assert client._results._waiting == {}


async def test_cancelled_waiter_leaves_nothing_behind(client: Client) -> None:
    job = await client.enqueue(echo, "never run")
    waiting = asyncio.create_task(job.result())
    await wait_until(lambda: waiters(client, job.job_id), description="it is registered")
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert client._results is not None
    assert client._results._waiting == {}
    assert 0 < await client.pttl(keys.waiters(job.job_id)) <= 60_000


async def test_job_that_left_no_result_is_not_waited_for(redis_url: str, client: Client) -> None:
    job = await client.enqueue(echo, "gone")
    waiting = asyncio.create_task(job.result(timeout=10))
    await wait_until(lambda: waiters(client, job.job_id), description="it is registered")
    await drain(redis_url, [echo], keep_result=0)
    with pytest.raises(ResultNotFound):
        await waiting
    with pytest.raises(ResultNotFound):
        await job.result()


async def test_unknown_job_is_not_waited_for(client: Client) -> None:
    with pytest.raises(ResultNotFound):
        await client.job("never enqueued").result()


async def test_failure_carries_the_remote_traceback(redis_url: str, client: Client) -> None:
    job = await client.enqueue(broken)
    await drain(redis_url, [broken])
    with pytest.raises(RemoteError, match="LookupError: no such row") as failed:
        await job.result(timeout=1)
    assert failed.value.type_name == "LookupError"
    assert 'raise LookupError("no such row")' in failed.value.remote_traceback


async def test_result_that_cannot_be_read_is_an_error(redis_url: str, client: Client) -> None:
    job = await client.enqueue(echo, "x")
    await drain(redis_url, [echo])
    await client.set(keys.result(job.job_id), b"\x80\x04 not msgpack", px=60_000)
    with pytest.raises(DecodeError, match="unable to deserialize job result"):
        await job.result(timeout=1)


@pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")
async def test_stock_worker_says_nothing_and_its_result_comes_by_the_poll(redis_url: str) -> None:
    async def echo_stock(_ctx: Any, text: str) -> str:
        return text

    async with runner.connect(redis_url, codec="pickle") as client:
        job = await client.enqueue(echo_stock.__qualname__, "from afar")
        waiting = asyncio.create_task(job.result(timeout=10))
        await wait_until(lambda: waiters(client, job.job_id), description="it is registered")
        settings = RedisSettings.from_dsn(redis_url)
        stock = StockWorker([echo_stock], redis_settings=settings, handle_signals=False)
        async with started(stock):
            assert await waiting == "from afar"


async def test_waiter_survives_a_lost_subscription(redis_url: str, client: Client) -> None:
    gate = Gate()
    job = await client.enqueue(wait_at)
    async with serving(redis_url, [wait_at], ctx={"gate": gate}), raw(redis_url) as redis:
        waiting = asyncio.create_task(job.result(timeout=10))
        await wait_until(lambda: waiters(client, job.job_id), description="it is registered")
        (mine,) = [
            connected["id"]
            for connected in await redis.client_list(_type="pubsub")
            if connected["db"] == redis_url.rpartition("/")[2]
        ]
        assert await redis.client_kill_filter(_id=mine) == 1
        gate.opens.set()
        assert await waiting == "through"


async def test_waiter_survives_a_restart_of_redis(chaos_servers: ChaosServers) -> None:
    async with runner.connect(chaos_servers.redis_url) as client:
        job = await client.enqueue(echo, "still here")
        waiting = asyncio.create_task(job.result(timeout=20))
        await wait_until(lambda: waiters(client, job.job_id), description="it is registered")
        await chaos_servers.restart_redis(kill=True)
        rig = Rig(client)
        (claimed,) = await rig.claim()
        blob = client.codec.dumps(
            {"t": 1, "f": "echo", "a": [], "k": {}, "et": 0, "s": True, "r": "still here"}
            | {"st": 0, "ft": 0, "q": QUEUE, "id": job.job_id}
        )
        await rig.settle(done(claimed, result=blob))
        assert await waiting == "still here"


async def test_client_waits_for_results_again_after_its_waiters_are_gone(
    redis_url: str, client: Client
) -> None:
    for text in ("one", "two"):
        job = await client.enqueue(echo, text)
        waiting = asyncio.create_task(job.result(timeout=10))
        await wait_until(partial(waiters, client, job.job_id), description="registered")
        await drain(redis_url, [echo])
        assert await waiting == text


async def test_id_that_is_no_text_is_refused_and_hurts_nobody(
    redis_url: str, client: Client
) -> None:
    with pytest.raises(ArgumentsError, match="job id"):
        client.job("\ud800")
    job = await client.enqueue(echo, "fine")
    await drain(redis_url, [echo])
    assert await job.result(timeout=1) == "fine"


async def test_closed_client_no_longer_waits(redis_url: str) -> None:
    async with runner.connect(redis_url) as client:
        job = await client.enqueue(echo, "never run")
        waiting = asyncio.create_task(job.result())
        await wait_until(lambda: waiters(client, job.job_id), description="it is registered")
    await asyncio.wait([waiting], timeout=5)
    assert waiting.cancelled()
