"""What a client sends, in how many round trips, and what it refuses."""

from __future__ import annotations

import asyncio
import gc
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from arq.jobs import JobStatus
from redis.asyncio import ConnectionPool

import runner
import runner.client as client_module
from runner import Call, Client, Context, RedisSettings, keys, task
from runner.errors import ArgumentsError, EncodeError, EnqueueError, PayloadTooLarge
from tests.engine import Rig, drain, raw
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import ChaosServers

pytestmark = [pytest.mark.timeout(30), pytest.mark.lasting_keys("runner:held:*")]

QUEUE = keys.DEFAULT_QUEUE


@dataclass
class Item:
    sku: str
    count: int


@task
async def place(_ctx: Context, order: int, items: list[Item], *, note: str = "") -> int:
    return sum(item.count for item in items) + order + len(note)


@task(queue="other")
async def elsewhere(_ctx: Context) -> str:
    return "there"


@task(expires=60)
async def soon_or_never(_ctx: Context) -> None: ...


@task
async def count(_ctx: Context, number: int) -> int:
    return number


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


async def score_of(client: Client, job_id: str) -> float:
    score: float | None = await client.zscore(QUEUE, job_id)
    assert score is not None
    return score


def now_ms() -> float:
    return datetime.now(tz=UTC).timestamp() * 1000


async def test_typed_call_arrives_with_its_arguments(redis_url: str, client: Client) -> None:
    job = await client.enqueue(place, 1, [Item("a", 2), Item("b", 3)], note="now")
    assert job.is_new
    await drain(redis_url, [place])
    assert await job.result(timeout=1) == 9


async def test_call_by_name_arrives(redis_url: str, client: Client) -> None:
    job = await client.enqueue("count", 5)
    await drain(redis_url, [count])
    assert await job.result(timeout=1) == 5


async def test_arqs_own_call_arrives(redis_url: str, client: Client) -> None:
    job = await client.enqueue_job("count", number=6)
    assert job is not None
    await drain(redis_url, [count])
    assert await job.result(timeout=1) == 6


async def test_many_calls_arrive_in_order(client: Client) -> None:
    jobs = await client.enqueue_many([count.call(n) for n in range(1200)])
    claims = [claimed for _ in range(3) for claimed in await Rig(client).claim(500)]
    assert [job.job_id for job in jobs] == [claimed.job_id for claimed in claims]


async def test_many_of_nothing_is_nothing(client: Client) -> None:
    assert await client.enqueue_many([]) == []


async def test_many_go_to_the_queues_of_their_tasks(client: Client) -> None:
    calls: list[Call[Any]] = [count.call(1), elsewhere.call(), count.call(2)]
    await client.enqueue_many(calls)
    assert await client.zcard(QUEUE) == 2
    assert await client.zcard("other") == 1


async def test_job_in_the_queue_of_its_task_is_found_there(redis_url: str, client: Client) -> None:
    job = await client.enqueue(elsewhere)
    await drain(redis_url, [elsewhere], queue_name="other")
    assert await job.result(timeout=1) == "there"


async def test_key_that_waits_is_not_enqueued_twice(client: Client) -> None:
    first = await client.enqueue(count.options(key="k"), 1)
    second = await client.enqueue(count.options(key="k"), 2)
    assert (first.is_new, second.is_new) == (True, False)
    assert first.job_id == second.job_id == "k"
    assert await client.enqueue_job("count", 3, _job_id="k") is None
    assert await client.zcard(QUEUE) == 1


async def test_key_twice_in_one_tick_is_enqueued_once(client: Client) -> None:
    jobs = await asyncio.gather(*(client.enqueue(count.options(key="k"), n) for n in range(5)))
    assert sorted(job.is_new for job in jobs) == [False] * 4 + [True]
    calls = [count.options(key="m").call(n) for n in range(3)]
    assert [job.is_new for job in await client.enqueue_many(calls)] == [True, False, False]


async def test_delay_and_time_set_when_a_job_is_due(client: Client) -> None:
    delayed = await client.enqueue(count.options(delay=timedelta(minutes=1)), 1)
    at = datetime.now(tz=UTC) + timedelta(hours=1)
    timed = await client.enqueue(count.options(at=at), 1)
    assert await score_of(client, delayed.job_id) == pytest.approx(now_ms() + 60_000, abs=5000)
    assert await score_of(client, timed.job_id) == pytest.approx(at.timestamp() * 1000, abs=1)
    assert await delayed.status() is JobStatus.deferred


@pytest.mark.parametrize("off_ms", [-3_600_000, 0, 3_600_000], ids=["behind", "right", "ahead"])
async def test_delay_counts_by_the_clock_of_redis(
    client: Client, monkeypatch: pytest.MonkeyPatch, off_ms: int
) -> None:
    real_ms = client_module._now_ms
    monkeypatch.setattr(client_module, "_now_ms", lambda: real_ms() + off_ms)

    async def waits_ms(job: Any) -> float:
        second, micros = await client.time()
        return float(await client.zscore(QUEUE, job.job_id) - second * 1000 - micros / 1000)

    assert -5_000 < await waits_ms(await client.enqueue(count, 1)) < 0
    for job in (
        await client.enqueue(count.options(delay=60), 1),
        await client.enqueue(count.options(delay=60, unique=True), 3),
        (await client.enqueue_many([count.options(delay=60).call(2)]))[0],
        await client.enqueue_job("count", 4, _defer_by=60),
    ):
        assert job is not None
        assert 55_000 < await waits_ms(job) <= 60_001
        assert await client.pttl(keys.job(job.job_id)) > 60_000


async def test_expiry_counts_from_the_time_a_job_is_due(client: Client) -> None:
    await client.enqueue(soon_or_never.options(key="k", delay=100))
    fields = client.codec.loads(await client.get(keys.job("k")))
    assert fields["x"]["exp"] == pytest.approx(now_ms() + 160_000, abs=5000)


async def test_payload_lives_longer_than_its_delay(client: Client) -> None:
    job = await client.enqueue(count.options(delay=timedelta(days=90)), 1)
    assert await client.pttl(keys.job(job.job_id)) > timedelta(days=119) / timedelta(milliseconds=1)


# Round trips


async def script_calls(client: Client) -> int:
    stats: dict[str, Any] = await client.info("commandstats")
    return sum(stats.get(name, {}).get("calls", 0) for name in ("cmdstat_evalsha", "cmdstat_eval"))


async def test_calls_of_one_tick_share_a_round_trip(chaos_servers: ChaosServers) -> None:
    async with runner.connect(chaos_servers.redis_url) as client:
        await client.enqueue(count, 0)  # the server knows the script from here on
        before = await script_calls(client)
        await asyncio.gather(*(client.enqueue(count, n) for n in range(400)))
        assert await script_calls(client) - before == 1
        await client.enqueue(count, 1)
        assert await script_calls(client) - before == 2


async def test_calls_under_way_gather_into_few_round_trips(chaos_servers: ChaosServers) -> None:
    """While one call is on its way the next batch grows."""

    async def caller(client: Client) -> None:
        for number in range(20):
            await client.enqueue(count, number)

    async with runner.connect(chaos_servers.redis_url) as client:
        await client.enqueue(count, 0)
        before = await script_calls(client)
        await asyncio.gather(*(caller(client) for _ in range(50)))
        assert await client.zcard(QUEUE) == 1001
        assert await script_calls(client) - before <= 60


async def test_cancelled_caller_drops_only_its_own_call(client: Client) -> None:
    callers = [asyncio.create_task(client.enqueue(count, n)) for n in range(5)]
    await asyncio.sleep(0)
    callers[0].cancel()
    done = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert all(isinstance(job, runner.Job) for job in done[1:])
    assert await client.zcard(QUEUE) >= 4


async def test_client_that_closes_sends_what_it_was_given(redis_url: str) -> None:
    async with runner.connect(redis_url) as client:
        calls = [asyncio.create_task(client.enqueue(count, n)) for n in range(3)]
        await asyncio.sleep(0)
    assert all(job.is_new for job in await asyncio.gather(*calls))
    async with raw(redis_url) as redis:
        assert await redis.zcard(QUEUE) == 3


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # nobody closes in the first loop
def test_client_enqueues_in_the_next_loop_too(redis_url: str) -> None:
    """Also where a call was under way when the first loop ended."""
    client = Client(connection_pool=ConnectionPool.from_url(redis_url))

    async def leave() -> None:
        await client.enqueue_job("count", 1)
        call = asyncio.create_task(client.enqueue_job("count", 2))
        await asyncio.sleep(0)
        call.cancel()

    async def go_on() -> int:
        await client.connection_pool.disconnect()
        await client.enqueue_job("count", 3)
        length: int = await client.zcard(QUEUE)
        await client.aclose()
        return length

    asyncio.run(leave())
    assert asyncio.run(go_on()) in {2, 3}
    gc.collect()  # the first loop's transports, here and not in another test


# What is refused


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((), {}, "number"),
        ((1, 2), {}, "too many positional"),
        ((), {"nummber": 1}, "nummber|number"),
        ((1,), {"number": 1}, "number"),
    ],
)
async def test_arguments_that_do_not_fit_are_named(
    client: Client, args: tuple[Any, ...], kwargs: dict[str, Any], named: str
) -> None:
    with pytest.raises(ArgumentsError, match=rf"count\(number.*{named}"):
        await client.enqueue(count, *args, **kwargs)
    assert await client.dbsize() == 0


@pytest.mark.parametrize("what", [print, "", None, 3])
async def test_what_is_no_task_is_refused(client: Client, what: Any) -> None:
    with pytest.raises(ArgumentsError):
        await client.enqueue(what)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "a object cannot travel"),
        (2**70, "ints"),
        ("\udcff", "surrogates"),
        (1 + 2j, "complex"),
    ],
)
async def test_argument_that_cannot_travel_is_named(client: Client, value: Any, why: str) -> None:
    with pytest.raises(EncodeError, match=f'"place": note: .*{why}'):
        await client.enqueue("place", 1, [], note=value)
    with pytest.raises(EncodeError, match=f'"place": argument 1: .*{why}'):
        await client.enqueue("place", 1, value)
    assert await client.dbsize() == 0


@pytest.mark.parametrize("queue", [["q"], b"q", 7])
async def test_queue_that_is_no_text_is_refused(client: Client, queue: Any) -> None:
    with pytest.raises(ArgumentsError, match="queue"):
        await client.enqueue(count.options(queue=queue), 1)
    with pytest.raises(ArgumentsError, match="queue"):
        await client.enqueue_job("count", 1, _queue_name=queue)


async def test_endless_argument_is_refused(client: Client) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError):
        await client.enqueue("count", endless)


async def test_bad_call_among_many_enqueues_nothing(client: Client) -> None:
    calls = [count.call(1), count.call(2**70)]
    with pytest.raises(EncodeError):
        await client.enqueue_many(calls)
    assert await client.dbsize() == 0


async def test_job_that_is_too_large_is_refused(client: Client) -> None:
    client.max_payload_bytes = 1000
    with pytest.raises(PayloadTooLarge, match=r"count: the job takes 2,.* bytes"):
        await client.enqueue("count", "x" * 2000)
    assert (await client.enqueue("count", "x" * 500)).is_new


@pytest.mark.parametrize("key", ["\ud800", "k\udcff"])
async def test_key_that_is_no_text_is_refused_and_hurts_nobody(client: Client, key: str) -> None:
    calls: list[Any] = [
        client.enqueue(count, 1),
        _enqueue_key(client, key),
        _enqueue_id(client, key),
    ]
    good, bad, by_name = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(good, runner.Job)
    assert isinstance(bad, ArgumentsError)
    assert isinstance(by_name, ArgumentsError)


async def _enqueue_key(client: Client, key: str) -> Any:
    return await client.enqueue(count.options(key=key), 2)


async def _enqueue_id(client: Client, key: str) -> Any:
    return await client.enqueue_job("count", 2, _job_id=key)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_time_without_end_is_refused(bad: float) -> None:
    with pytest.raises(ArgumentsError, match="delay"):
        count.options(delay=bad)
    with pytest.raises(ArgumentsError, match="expires"):
        count.options(expires=bad)


async def test_time_beyond_any_calendar_is_an_error_of_that_job(client: Client) -> None:
    with pytest.raises(EnqueueError):
        await client.enqueue(count.options(delay=1e30), 1)
    assert await client.dbsize() == 0


async def test_wrong_type_of_queue_key_is_an_error(client: Client) -> None:
    await client.set(QUEUE, "not a set")
    with pytest.raises(EnqueueError, match="WRONGTYPE"):
        await client.enqueue(count, 1)
    assert {key.decode() for key in await client.keys()} == {QUEUE}


async def test_unknown_codec_is_refused() -> None:
    with pytest.raises(runner.errors.SettingsError, match="did you mean 'pickle'"):
        await runner.connect("redis://localhost:1", codec="pickel")


# What it shows


async def test_dead_letters_come_newest_first_and_as_many_as_asked(
    redis_url: str, client: Client
) -> None:
    assert await client.dead_letters() == []
    for number in range(3):
        await client.enqueue(f"missing-{number}")
        await drain(redis_url, [count])
    assert [letter.task for letter in await client.dead_letters()] == [
        "missing-2",
        "missing-1",
        "missing-0",
    ]
    assert [letter.task for letter in await client.dead_letters(limit=1)] == ["missing-2"]
    assert await client.dead_letters(limit=0) == []


async def test_queue_stats_count_what_happened(redis_url: str, client: Client) -> None:
    await client.enqueue(count, 1)
    await client.enqueue("missing")
    await drain(redis_url, [count])
    await client.enqueue_many([count.call(n) for n in range(3)])
    assert len(await Rig(client).claim(2)) == 2
    stats = await client.queue_stats()
    assert (stats.queued, stats.running) == (3, 2)
    assert (stats.succeeded, stats.failed, stats.dead) == (1, 1, 1)


async def test_stats_of_an_unknown_queue_are_zero(client: Client) -> None:
    stats = await client.queue_stats("never heard of it")
    assert (stats.queued, stats.running, stats.succeeded, stats.dead) == (0, 0, 0, 0)


# Connecting


async def test_connect_takes_settings_or_a_url(redis_url: str) -> None:
    async with runner.connect(RedisSettings.from_dsn(redis_url), queue="mine") as client:
        await client.enqueue(count, 1)
        assert await client.zcard("mine") == 1
    client = await runner.connect(redis_url)
    await client.aclose()
    await client.aclose()


async def test_closed_client_holds_no_connection(redis_url: str) -> None:
    name = f"test-{uuid4().hex}"
    async with raw(redis_url) as redis:
        async with runner.connect(redis_url) as client:
            await client.client_setname(name)
            await client.enqueue(count, 1)
        await wait_until(
            lambda: _no_client(redis, name), description="the server has no such connection"
        )


async def _no_client(redis: Any, name: str) -> bool:
    return name not in {connected["name"] for connected in await redis.client_list()}
