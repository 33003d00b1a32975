"""A fleet with keys: what is not signed by one of them is never read, and never run."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from arq.connections import RedisSettings
from arq.jobs import DeserializationError, JobStatus, SerializationError

import runner
from runner import Context, keys, task
from runner.codec import HookCodec, MsgpackCodec, PickleCodec
from runner.errors import DecodeError, RemoteError, SettingsError, WriteRejected
from runner.signing import SignedCodec
from tests.engine import StockWorker, drain, payload, raw, serving, started, stock_client
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client, DeadLetter

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:held:*")]

OLD, NEW = ("2026-05", b"o" * 32), ("2026-11", b"n" * 32)
KEYS = [NEW, OLD]
TEXT = f"{NEW[0]}:{NEW[1].hex()},{OLD[0]}:{OLD[1].hex()}"
QUEUE = keys.DEFAULT_QUEUE


@dataclass
class Order:
    number: int
    at: datetime


@task
async def double(_ctx: Context, order: Order) -> Order:
    return Order(order.number * 2, order.at)


@task
async def fail(_ctx: Context) -> None:
    raise ValueError("broken")


@task
async def mark(ctx: Context) -> None:
    ctx["ran"].append(ctx.job_id)


async def twice(_ctx: dict[Any, Any], number: int) -> int:
    """Double a number, as a function of stock arq."""
    return number * 2


ORDER = Order(21, datetime(2026, 11, 2, tzinfo=UTC))


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url, signing_keys=KEYS) as connected:
        yield connected


async def letter_of(client: Client) -> DeadLetter:
    (letter,) = await client.dead_letters()
    return letter


async def refused(redis_url: str, client: Client, **settings: Any) -> DeadLetter:
    """Let a worker with keys meet what is in the queue, and return the letter that it leaves."""
    ran: list[str] = []
    await drain(redis_url, [mark, double], ctx={"ran": ran}, **{"signing_keys": KEYS, **settings})
    assert ran == []
    letter = await letter_of(client)
    assert letter.outcome == "undecodable"
    assert await client.zcard(QUEUE) == 0
    return letter


@pytest.mark.parametrize("name", ["msgpack", "pickle"])
async def test_signed_job_runs_and_its_signed_result_is_read(redis_url: str, name: str) -> None:
    async with runner.connect(redis_url, codec=name, signing_keys=TEXT) as client:
        job = await client.enqueue(double, ORDER)
        assert (await client.get(keys.job(job.job_id)))[:2] == b"\xc1j"
        await drain(redis_url, [double], codec=name, signing_keys=dict(KEYS))
        assert await job.result(timeout=5) == Order(42, ORDER.at)
        assert (await client.get(keys.result(job.job_id)))[:2] == b"\xc1r"
        assert await job.status() is JobStatus.complete


async def test_signed_failure_is_read(redis_url: str, client: Client) -> None:
    job = await client.enqueue(fail)
    await drain(redis_url, [fail], signing_keys=KEYS)
    with pytest.raises(RemoteError, match="ValueError: broken"):
        await job.result(timeout=5)


async def test_unsigned_job_is_a_dead_letter(redis_url: str, client: Client) -> None:
    async with runner.connect(redis_url) as without_keys:
        job = await without_keys.enqueue(mark)
        unsigned = await client.get(keys.job(job.job_id))
        letter = await refused(redis_url, client)
        assert (letter.job_id, letter.payload) == (job.job_id, unsigned)
        assert "only signed bytes" in letter.traceback
        # The result is signed, and says what went wrong to those who have the keys.
        with pytest.raises(DeserializationError):
            await client.job(job.job_id).result(timeout=5)


async def test_hostile_pickle_is_never_unpickled(redis_url: str, client: Client) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.exit, ("the bytes were believed",))

    async with raw(redis_url) as redis:
        await redis.set(keys.job("bomb"), pickle.dumps(Bomb()), px=60_000)
        await redis.zadd(QUEUE, {"bomb": 1})
    await refused(redis_url, client, codec="pickle")


async def test_altered_job_is_a_dead_letter(redis_url: str, client: Client) -> None:
    job = await client.enqueue(mark)
    whole = bytearray(await client.get(keys.job(job.job_id)))
    whole[-1] ^= 1
    await client.set(keys.job(job.job_id), bytes(whole), px=60_000)
    assert "signature is wrong" in (await refused(redis_url, client)).traceback


async def test_result_replayed_as_a_job_is_a_dead_letter(redis_url: str, client: Client) -> None:
    job = await client.enqueue(mark)
    await drain(redis_url, [mark], ctx={"ran": []}, signing_keys=KEYS)
    result = await client.get(keys.result(job.job_id))
    await client.set(keys.job("replayed"), result, px=60_000)
    await client.zadd(QUEUE, {"replayed": 1})
    assert "not signed as a job" in (await refused(redis_url, client)).traceback


async def test_job_replayed_under_another_id_is_a_dead_letter(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(mark.options(delay=3600))
    await client.copy(keys.job(job.job_id), keys.job("other"))
    await client.zrem(QUEUE, job.job_id)
    await client.zadd(QUEUE, {"other": 1})
    assert "under another id" in (await refused(redis_url, client)).traceback


async def test_result_under_another_jobs_key_is_not_believed(
    redis_url: str, client: Client
) -> None:
    one, other = await client.enqueue_many([double.call(ORDER), double.call(Order(0, ORDER.at))])
    await drain(redis_url, [double], signing_keys=KEYS)
    await client.copy(keys.result(one.job_id), keys.result(other.job_id), replace=True)
    assert (await one.result(timeout=5)).number == 42
    with pytest.raises(DecodeError, match="another job"):
        await other.result(timeout=5)


async def test_unknown_key_is_a_dead_letter(redis_url: str, client: Client) -> None:
    await client.enqueue(mark)
    letter = await refused(redis_url, client, signing_keys=[OLD])
    assert "'2026-11'" in letter.traceback
    assert "2026-05" in letter.traceback


async def test_keys_change_without_losing_a_job(redis_url: str) -> None:
    """Old key, both with the old first, both with the new first, new key: jobs pass each step."""
    steps = [[OLD], [OLD, NEW], [NEW, OLD], [NEW]]
    waiting: list[Any] = []
    for signers, verifiers in itertools.pairwise(steps):
        async with runner.connect(redis_url, signing_keys=signers) as client:
            if signers == [NEW, OLD]:
                waiting.clear()  # what the old key signed is done by now
            waiting.append(await client.enqueue(double, ORDER))
            await drain(redis_url, [double], signing_keys=verifiers)
            async with runner.connect(redis_url, signing_keys=verifiers) as reader:
                for job in waiting:
                    assert (await reader.job(job.job_id).result(timeout=5))["number"] == 42
                assert await reader.dead_letters() == []


async def test_worker_without_keys_does_not_run_signed_jobs(redis_url: str, client: Client) -> None:
    await client.enqueue(mark)
    letter = await refused(redis_url, client, signing_keys=None)
    assert "give the signing_keys" in letter.traceback


# Stock arq beside it: our codec's methods are its hooks.


@pytest.mark.parametrize("inner", [MsgpackCodec(), PickleCodec(), HookCodec()])
async def test_stock_client_with_our_hooks_is_served(redis_url: str, inner: Any) -> None:
    signed = SignedCodec(inner, KEYS)
    hooks: dict[str, Any] = {"job_serializer": signed.dumps, "job_deserializer": signed.loads}
    async with stock_client(redis_url, **hooks) as stock:
        job = await stock.enqueue_job("twice", 21)
        assert job is not None
        assert [waiting.function for waiting in await stock.queued_jobs()] == ["twice"]
        await drain(redis_url, [twice], codec=signed)
        assert await job.result(timeout=5) == 42
        info = await job.result_info()
        assert info is not None
        assert (info.success, info.function) == (True, "twice")
        assert [result.result for result in await stock.all_job_results()] == [42]


async def test_worker_with_our_hooks_in_arqs_places_verifies(redis_url: str) -> None:
    signed = SignedCodec(MsgpackCodec(), KEYS)
    async with raw(redis_url) as redis:
        await redis.set(keys.job("unsigned"), payload("twice"), px=60_000)
        await redis.zadd(QUEUE, {"unsigned": 1})
    worker = await drain(
        redis_url,
        [twice],
        codec=None,
        job_serializer=signed.dumps,
        job_deserializer=signed.loads,
    )
    assert worker.codec is signed
    assert (worker.jobs_complete, worker.jobs_failed) == (0, 1)


@pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")  # arq's own
async def test_stock_worker_with_our_hooks_takes_no_result_for_a_job(
    redis_url: str, client: Client
) -> None:
    signed = SignedCodec(MsgpackCodec(), KEYS)
    worker = StockWorker(
        [twice],
        redis_settings=RedisSettings.from_dsn(redis_url),
        handle_signals=False,
        poll_delay=0.01,
        job_serializer=signed.dumps,
        job_deserializer=signed.loads_job,
    )
    async with started(worker):
        job = await client.enqueue_job("twice", 21)
        assert job is not None
        assert await job.result(timeout=5) == 42
        await client.copy(keys.result(job.job_id), keys.job("replayed"))
        await client.zadd(QUEUE, {"replayed": 1})
        await wait_until(
            lambda: worker.jobs_failed and all(job.done() for job in worker.tasks.values()),
            description="the replayed result has failed",
        )
        assert worker.jobs_complete == 1


# Settings.


def test_settings_take_keys_and_refuse_what_is_none() -> None:
    class Settings(runner.WorkerSettings):
        functions = (double,)
        signing_keys = TEXT

    assert Settings.signing_keys == TEXT
    with pytest.raises(SettingsError, match="not hexadecimal"):

        class Broken(runner.WorkerSettings):
            signing_keys = "a:zz"

    with pytest.raises(SettingsError, match="did you mean 'signing_keys'"):

        class Misspelt(runner.WorkerSettings):
            signing_key = TEXT

    with pytest.raises(SettingsError, match="leave the hooks out"):

        class Both(runner.WorkerSettings):
            signing_keys = TEXT
            job_serializer = staticmethod(pickle.dumps)


def test_client_refuses_keys_that_are_none() -> None:
    with pytest.raises(SettingsError, match="holds no key"):
        runner.connect("redis://localhost", signing_keys="")


def test_worker_with_keys_and_no_codec_is_refused() -> None:
    with pytest.raises(SettingsError, match="needs a codec"):
        runner.Worker([double], signing_keys=TEXT)


async def test_result_that_cannot_travel_is_a_signed_apology(redis_url: str) -> None:
    async def odd(_ctx: dict[Any, Any]) -> object:
        return object()

    async with runner.connect(redis_url, signing_keys=KEYS) as client:
        job = await client.enqueue("odd")
        async with serving(redis_url, [runner.func(odd, name="odd")], signing_keys=KEYS):  # type: ignore[arg-type]
            with pytest.raises(SerializationError, match="unable to serialize"):
                await job.result(timeout=10)


# The writer settles with the worker's codec.


@task
async def book(ctx: Context, number: int) -> int:
    ctx.db.insert("signed_orders", id=number)
    return number


@pytest.mark.lasting_keys("runner:*")
async def test_writer_signs_what_it_settles(
    redis_url: str, database_url: str, client: Client
) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("CREATE TABLE signed_orders (id bigint PRIMARY KEY)")
        settings = {"database_url": database_url, "signing_keys": KEYS}
        async with serving(redis_url, [book], **settings):
            first = await client.enqueue(book, 1)
            assert await first.result(timeout=20) == 1
            again = await client.enqueue(book, 1)
            with pytest.raises(WriteRejected) as caught:
                await again.result(timeout=20)
        assert caught.value.sqlstate == "23505"
        for job in (first, again):
            assert (await client.get(keys.result(job.job_id)))[:2] == b"\xc1r"
        assert await connection.fetchval("SELECT count(*) FROM signed_orders") == 1
    finally:
        await connection.close()
