"""Unique, debounced and throttled jobs against a real Redis: who is let in, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from arq import func
from arq.connections import RedisSettings

import runner
from runner import (
    Client,
    Context,
    Debounce,
    DuplicateJob,
    JobReplaced,
    Retry,
    Snooze,
    Throttle,
    Unique,
    cron,
    every,
    keys,
    perpetual,
    task,
)
from runner.broker import Settlement
from runner.errors import EnqueueError, QueueFull
from runner.schedule import Book, Ticker
from runner.worker import as_function
from tests.engine import Gate, Rig, StockWorker, done, drain, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import ChaosServers

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys("runner:held:*", "runner:schedules:*", "runner:schedule:*"),
]

QUEUE = keys.DEFAULT_QUEUE
PLACES = keys.places(QUEUE)


@task(unique=True)
async def sync(ctx: Context, account: int, reason: str = "") -> str:
    ctx["seen"].append((account, reason))
    return reason


@task(unique=Unique(by="account", until="start"))
async def refresh(ctx: Context, account: int, reason: str = "") -> str:
    ctx["seen"].append((account, reason))
    return reason


@task(unique=Unique(by="account", second="replace"))
async def latest(ctx: Context, account: int, version: int) -> int:
    ctx["seen"].append((account, version))
    return version


@task(debounce=Debounce(3600, max_wait=7200, by="account"))
async def index(ctx: Context, account: int, version: int) -> int:
    ctx["seen"].append((account, version))
    return version


@task(unique=True)
async def hold(ctx: Context, number: int = 0) -> int:
    await ctx["gate"]()
    return number


@task
async def plain(_ctx: Context, number: int = 0) -> int:
    return number


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@pytest.fixture
def rig(client: Client) -> Rig:
    return Rig(client)


def bare(client: Client) -> Any:
    """Return the client for commands whose types redis-py does not know."""
    return client


async def lapsed(client: Client, job_id: str) -> bool:
    """Say whether a job is over."""
    return not await client.exists(keys.job(job_id))


async def due_ms(client: Client, job_id: str) -> float:
    score: float | None = await client.zscore(QUEUE, job_id)
    assert score is not None
    return score


# Until the end.


async def test_second_call_gets_the_job_that_waits(redis_url: str, client: Client) -> None:
    first = await client.enqueue(sync, 1, "first")
    second = await client.enqueue(sync, reason="first", account=1)
    other = await client.enqueue(sync, 2, "first")
    assert (first.is_new, second.is_new, other.is_new) == (True, False, True)
    assert second.job_id == first.job_id != other.job_id
    assert await client.zcard(QUEUE) == 2
    seen: list[Any] = []
    await drain(redis_url, [sync], ctx={"seen": seen})
    assert seen == [(1, "first"), (2, "first")]
    assert await second.result(timeout=1) == "first"


async def test_second_call_gets_the_job_that_runs(redis_url: str, client: Client) -> None:
    gate = Gate()
    async with serving(redis_url, [hold], ctx={"gate": gate}):
        first = await client.enqueue(hold)
        await gate.runs.wait()
        second = await client.enqueue(hold)
        assert (second.job_id, second.is_new) == (first.job_id, False)
        gate.opens.set()
        assert await second.result(timeout=10) == 0
        third = await client.enqueue(hold)
        assert third.is_new
        assert await third.result(timeout=10) == 0


async def test_place_is_free_when_a_job_is_a_dead_letter(redis_url: str, client: Client) -> None:
    @task(name="failing", unique=True)
    async def failing(_ctx: Context) -> None:
        raise ValueError("no")

    first = await client.enqueue(failing)
    await drain(redis_url, [failing])
    assert [letter.job_id for letter in await client.dead_letters()] == [first.job_id]
    assert (await client.enqueue(failing)).is_new


async def test_place_is_free_when_a_job_was_aborted(redis_url: str, client: Client) -> None:
    first = await client.enqueue(sync.options(delay=3600), 1)
    async with serving(redis_url, [sync], allow_abort_jobs=True):
        assert await first.abort(timeout=10)
    assert (await client.enqueue(sync, 1)).is_new


async def test_place_is_free_when_a_job_has_expired(redis_url: str, client: Client) -> None:
    first = await client.enqueue(sync.options(expires=0.001), 1)
    await asyncio.sleep(0.005)
    seen: list[Any] = []
    assert not (await client.enqueue(sync, 1)).is_new, "nobody has looked at it yet"
    await drain(redis_url, [sync], ctx={"seen": seen})
    assert seen == []
    assert await lapsed(client, first.job_id)
    assert (await client.enqueue(sync, 1)).is_new


async def test_place_is_free_when_the_payload_is_gone(client: Client) -> None:
    first = await client.enqueue(sync, 1)
    await client.delete(keys.job(first.job_id))
    assert (await client.enqueue(sync, 1)).is_new


@pytest.mark.parametrize("control", [Retry(3600), Snooze(3600)], ids=["retried", "snoozed"])
async def test_job_that_will_run_again_keeps_its_place(
    redis_url: str, client: Client, control: Exception
) -> None:
    @task(name="again", unique=True)
    async def again(_ctx: Context) -> None:
        raise control

    first = await client.enqueue(again)
    async with serving(redis_url, [again]):

        async def put_back() -> bool:
            return await due_ms(client, first.job_id) > (await Rig(client).server_ms()) + 1e6

        await wait_until(put_back, description="the job waits again")
    second = await client.enqueue(again)
    assert (second.job_id, second.is_new) == (first.job_id, False)


async def test_deferred_job_has_its_place(client: Client) -> None:
    first = await client.enqueue(sync.options(delay=3600), 1)
    second = await client.enqueue(sync, 1)
    assert (second.job_id, second.is_new) == (first.job_id, False)
    assert await due_ms(client, first.job_id) > await Rig(client).server_ms() + 1e6


async def test_job_that_commits_has_not_ended(client: Client, rig: Rig) -> None:
    first = await client.enqueue(hold)
    started = await client.enqueue(refresh, 1)
    claims = {claimed.job_id: claimed for claimed in await rig.claim()}
    for job in (first, started):
        await rig.settle(
            Settlement(claimed=claims[job.job_id], mode="submit", unit_id="u", operations=b"o")
        )
        marker = await client.get(keys.in_progress(job.job_id))
        assert marker.startswith(keys.COMMITTING.encode())
    second = await client.enqueue(hold)
    assert (second.job_id, second.is_new) == (first.job_id, False)
    assert (await client.enqueue(refresh, 1)).is_new, "it has started long ago"
    await client.delete(keys.UNITS, keys.WRITER)


async def test_lost_lease_keeps_the_place(client: Client, rig: Rig) -> None:
    first = await client.enqueue(hold)
    (claimed,) = await rig.claim()
    await rig.lapse(claimed)
    assert not (await client.enqueue(hold)).is_new
    (again,) = await rig.claim()
    assert again.job_id == first.job_id
    assert await rig.settle(done(again)) == [1]
    assert (await client.enqueue(hold)).is_new


@pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")
async def test_stock_worker_frees_the_place_of_what_it_has_run(redis_url: str) -> None:
    @task(name="counted", unique=True)
    async def counted(_ctx: Any, number: int) -> int:
        return number

    async with runner.connect(redis_url, codec="pickle") as client:
        first = await client.enqueue(counted, 1)
        assert not (await client.enqueue(counted, 1)).is_new
        settings = RedisSettings.from_dsn(redis_url)
        worker = StockWorker(
            [func(counted, name="counted")],
            redis_settings=settings,
            burst=True,
            poll_delay=0,
            handle_signals=False,
        )
        await worker.main()
        await worker.close()
        assert await first.result(timeout=1) == 1
        assert (await client.enqueue(counted, 1)).is_new


# Until the start, and for a time.


async def test_until_the_start_one_waits_beside_one_that_runs(client: Client, rig: Rig) -> None:
    first = await client.enqueue(refresh, 1, "a")
    assert (await client.enqueue(refresh, 1, "b")).job_id == first.job_id
    (running,) = await rig.claim()
    second = await client.enqueue(refresh, 1, "c")
    third = await client.enqueue(refresh, 1, "d")
    assert (second.is_new, third.is_new) == (True, False)
    assert third.job_id == second.job_id
    await rig.settle(done(running))
    assert not (await client.enqueue(refresh, 1, "e")).is_new


async def test_for_a_time_a_job_that_is_over_counts(redis_url: str, client: Client) -> None:
    timed = sync.options(unique=Unique(until=3600))
    first = await client.enqueue(timed, 1)
    await drain(redis_url, [sync], ctx={"seen": []})
    second = await client.enqueue(timed, 1)
    assert (second.job_id, second.is_new) == (first.job_id, False)
    assert await second.result(timeout=1) == ""


async def test_throttled_job_runs_once_in_a_period(redis_url: str, client: Client) -> None:
    throttled = plain.options(throttle=Throttle(0.2, by=(), second="refuse"))
    taken: list[runner.Job[int]] = []
    while len(taken) < 3:
        with contextlib.suppress(DuplicateJob):
            taken.append(await client.enqueue(throttled, len(taken)))
    scores = [await due_ms(client, job.job_id) for job in taken]
    assert all(late - early >= 199 for early, late in itertools.pairwise(scores))
    await drain(redis_url, [plain])


async def test_throttle_gives_the_first_job(client: Client) -> None:
    throttled = plain.options(throttle=3600)
    first, second = await client.enqueue(throttled, 1), await client.enqueue(throttled, 1)
    assert (second.job_id, second.is_new) == (first.job_id, False)
    assert (await client.enqueue(throttled, 2)).is_new


async def test_options_do_not_see_each_others_jobs(client: Client) -> None:
    calls: list[Any] = [
        plain,
        plain.options(unique=True),
        plain.options(unique=Unique(by=())),
        plain.options(unique=Unique(key="k")),
        plain.options(throttle=3600),
        plain.options(debounce=3600),
        plain.options(queue="other", unique=True),
    ]
    assert all([(await client.enqueue(call, 1)).is_new for call in calls])


async def test_call_lifts_what_its_task_declares(client: Client) -> None:
    await client.enqueue(sync, 1)
    assert (await client.enqueue(sync.options(unique=False), 1)).is_new
    assert (await client.enqueue("sync", 1)).is_new, "a name alone tells nothing of its task"


# Refused.


async def test_refused_call_names_the_job_that_is_there(client: Client, rig: Rig) -> None:
    refusing = sync.options(unique=Unique(second="refuse"))
    first = await client.enqueue(refusing, 1)
    with pytest.raises(DuplicateJob, match="is there") as caught:
        await client.enqueue(refusing, 1)
    assert (caught.value.job_id, caught.value.running) == (first.job_id, False)
    await rig.claim()
    with pytest.raises(DuplicateJob, match="runs") as caught:
        await client.enqueue(refusing, 1)
    assert caught.value.running
    assert await client.zcard(QUEUE) == 1
    assert len(await client.keys("arq:job:*")) == 1


async def test_duplicates_in_one_batch_are_found(client: Client) -> None:
    jobs = await client.enqueue_many([sync.call(n % 700) for n in range(1_400)])
    assert [job.is_new for job in jobs] == [True] * 700 + [False] * 700
    assert [job.job_id for job in jobs[:700]] == [job.job_id for job in jobs[700:]]
    assert await client.zcard(QUEUE) == 700


async def test_batch_says_which_were_refused(client: Client) -> None:
    refusing = sync.options(unique=Unique(second="refuse"))
    with pytest.raises(DuplicateJob, match="2 of 4 jobs are queued") as caught:
        await client.enqueue_many([refusing.call(n) for n in (1, 1, 2, 2)])
    assert caught.value.refused == (1, 3)
    ids = {raw.decode() for raw in await client.zrange(QUEUE, 0, -1)}
    assert set(caught.value.queued) == ids
    assert caught.value.job_id in ids


async def script_calls(client: Client) -> int:
    stats: dict[str, Any] = await client.info("commandstats")
    return sum(stats.get(name, {}).get("calls", 0) for name in ("cmdstat_evalsha", "cmdstat_eval"))


async def test_calls_of_one_tick_are_one_round_trip(chaos_servers: ChaosServers) -> None:
    async with runner.connect(chaos_servers.redis_url) as client:
        await client.enqueue(sync, 0)  # the server knows the script from here on
        before = await script_calls(client)
        jobs: list[Any] = await asyncio.gather(
            *(client.enqueue(sync, 1) for _ in range(20)),
            *(client.enqueue(plain, n) for n in range(20)),
            client.enqueue(plain.options(key="k")),
            client.enqueue(plain.options(key="k")),
        )
        assert await script_calls(client) - before == 1
        assert sum(job.is_new for job in jobs) == 22


# Replaced.


async def test_waiting_job_is_replaced(redis_url: str, client: Client) -> None:
    first = await client.enqueue(latest, 1, 1)
    second = await client.enqueue(latest, 1, 2)
    assert (first.is_new, second.is_new) == (True, True)
    assert await Rig(client).ids() == {second.job_id}
    assert await lapsed(client, first.job_id)
    seen: list[Any] = []
    await drain(redis_url, [latest], ctx={"seen": seen})
    assert seen == [(1, 2)]
    with pytest.raises(JobReplaced) as caught:
        await first.result(timeout=5)
    assert caught.value.job_id == second.job_id
    assert await client.job(caught.value.job_id).result(timeout=1) == 2


async def test_who_waits_for_a_replaced_job_hears_of_it(client: Client) -> None:
    first = await client.enqueue(latest, 1, 1)
    waiting = asyncio.create_task(first.result(timeout=30))

    async def registered() -> bool:
        return bool(await client.exists(keys.waiters(first.job_id)))

    await wait_until(registered, description="the caller waits")
    second = await client.enqueue(latest, 1, 2)
    with pytest.raises(JobReplaced, match=second.job_id):
        await waiting


async def test_replaced_job_is_not_there_to_be_aborted(client: Client) -> None:
    first = await client.enqueue(latest, 1, 1)
    second = await client.enqueue(latest, 1, 2)
    assert await first.abort(timeout=5) is False
    assert await Rig(client).ids() == {second.job_id}
    assert not await client.exists(keys.ABORT)


async def test_running_job_is_not_replaced(client: Client, rig: Rig) -> None:
    first = await client.enqueue(latest, 1, 1)
    (claimed,) = await rig.claim()
    with pytest.raises(DuplicateJob) as caught:
        await client.enqueue(latest, 1, 2)
    assert (caught.value.job_id, caught.value.running) == (first.job_id, True)
    # Not even when its lease is over: its worker may live, and what it has done counts.
    await client.delete(keys.in_progress(first.job_id))
    with pytest.raises(DuplicateJob):
        await client.enqueue(latest, 1, 2)
    assert await rig.settle(done(claimed)) == [1]
    assert (await client.enqueue(latest, 1, 2)).is_new


async def test_until_the_start_the_new_job_waits_beside_one_that_runs(
    client: Client, rig: Rig
) -> None:
    soon = latest.options(unique=Unique(by="account", until="start", second="replace"))
    first = await client.enqueue(soon, 1, 1)
    await rig.claim()
    second = await client.enqueue(soon, 1, 2)
    third = await client.enqueue(soon, 1, 3)
    assert second.is_new
    assert third.is_new
    assert await rig.ids() == {first.job_id, third.job_id}


async def test_job_that_waits_for_another_try_is_replaced(client: Client, rig: Rig) -> None:
    first = await client.enqueue(latest, 1, 1)
    (claimed,) = await rig.claim()
    await rig.lapse(claimed)
    (claimed,) = await rig.claim()
    assert claimed.crashes == 1
    await rig.settle(Settlement(claimed=claimed, mode="again", extra="3600000"))
    second = await client.enqueue(latest, 1, 2)
    assert await rig.ids() == {second.job_id}
    assert await bare(client).hgetall(keys.held(QUEUE)) == {}
    assert not await client.exists(keys.retry(first.job_id), keys.job(first.job_id))


async def test_replacement_needs_no_room(client: Client) -> None:
    await client.enqueue(latest, 1, 1)
    bounded = latest.options(max_length=1)
    second = await client.enqueue(bounded, 1, 2)
    assert await Rig(client).ids() == {second.job_id}
    with pytest.raises(QueueFull):
        await client.enqueue(bounded, 2, 1)


async def test_full_queue_gives_the_job_that_is_there(client: Client) -> None:
    first = await client.enqueue(sync.options(max_length=1), 1)
    assert (await client.enqueue(sync.options(max_length=1), 1)).job_id == first.job_id
    with pytest.raises(QueueFull):
        await client.enqueue(sync.options(max_length=1), 2)
    assert await bare(client).hlen(PLACES) == 1, "who is refused has no place"


async def test_who_waits_for_room_meets_the_job_that_came_meanwhile(client: Client) -> None:
    filler = await client.enqueue(plain)
    call = client.enqueue(sync.options(max_length=1, when_full="wait"), 1)
    waiting = asyncio.ensure_future(call)
    await wait_until(lambda: client._outbox._lines, description="it stands in line")
    meanwhile = await client.enqueue(sync.options(delay=60), 1)
    assert meanwhile.is_new
    await client.zrem(QUEUE, filler.job_id, meanwhile.job_id)
    job = await waiting
    assert (job.job_id, job.is_new) == (meanwhile.job_id, False)


# Debounced.


async def test_each_call_pushes_the_start_back(client: Client, rig: Rig) -> None:
    soon = index.options(debounce=Debounce(3600, by="account"))
    first = await client.enqueue(soon, 1, 1)
    assert await due_ms(client, first.job_id) == pytest.approx(
        await rig.server_ms() + 3_600_000, abs=5000
    )
    before = await rig.server_ms()
    second = await client.enqueue(soon, 1, 2)
    assert second.is_new
    assert await rig.ids() == {second.job_id}
    assert await due_ms(client, second.job_id) >= before + 3_600_000


async def test_last_arguments_win(redis_url: str, client: Client, rig: Rig) -> None:
    await asyncio.gather(*(client.enqueue(index, 1, version) for version in range(50)))
    (job_id,) = await rig.ids()
    await rig.due(job_id)
    seen: list[Any] = []
    await drain(redis_url, [index], ctx={"seen": seen})
    assert seen == [(1, 49)]


async def test_start_is_not_pushed_beyond_the_longest_wait(client: Client) -> None:
    await client.enqueue(index, 1, 0)
    (place,) = await bare(client).hgetall(PLACES)
    since, over, job_id = (await bare(client).hget(PLACES, place)).split(b" ")
    # As if the first call had come long ago.
    long_ago = int(since) - 6_000_000
    await bare(client).hset(PLACES, place, b"%d %s %s" % (long_ago, over, job_id))
    second = await client.enqueue(index, 1, 1)
    assert await due_ms(client, second.job_id) == long_ago + 7_200_000
    third = await client.enqueue(index, 1, 2)
    assert await due_ms(client, third.job_id) == long_ago + 7_200_000


async def test_call_while_it_runs_begins_anew(client: Client, rig: Rig) -> None:
    first = await client.enqueue(index, 1, 1)
    await rig.due(first.job_id)
    (claimed,) = await rig.claim()
    second = await client.enqueue(index, 1, 2)
    assert await rig.ids() == {first.job_id, second.job_id}
    assert await rig.settle(done(claimed)) == [1]
    third = await client.enqueue(index, 1, 3)
    assert await rig.ids() == {third.job_id}


async def test_debounced_job_runs_by_itself(redis_url: str, client: Client) -> None:
    seen: list[Any] = []
    async with serving(redis_url, [index], ctx={"seen": seen}):
        soon = index.options(debounce=Debounce(0.1, by="account"))
        jobs = [await client.enqueue(soon, 1, version) for version in range(20)]
        assert await jobs[-1].result(timeout=10) == 19
    assert seen[-1] == (1, 19)
    assert len(seen) < 20


# Many at once, and what is left behind.


@pytest.mark.parametrize("second", ["return", "refuse", "replace"])
async def test_ten_clients_at_once_let_one_in(redis_url: str, second: Any) -> None:
    chosen = sync.options(unique=Unique(second=second))
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(runner.connect(redis_url)) for _ in range(10)]
        outcomes = await asyncio.gather(
            *(client.enqueue(chosen, n) for n in range(40) for client in clients),
            return_exceptions=True,
        )
        assert await clients[0].zcard(QUEUE) == 40
        assert len(await clients[0].keys("arq:job:*")) == 40
        assert await bare(clients[0]).hlen(PLACES) == 40
    new = [job for job in outcomes if isinstance(job, runner.Job) and job.is_new]
    refused = [error for error in outcomes if isinstance(error, DuplicateJob)]
    assert len(new) == (400 if second == "replace" else 40)
    assert len(refused) == (360 if second == "refuse" else 0)


async def test_places_of_jobs_that_are_over_do_not_pile_up(client: Client, rig: Rig) -> None:
    for start in range(0, 3_000, 100):
        await client.enqueue_many([sync.call(n) for n in range(start, start + 100)])
        await rig.settle(*(done(claimed, keep_ms=0) for claimed in await rig.claim(100)))
    assert await bare(client).hlen(PLACES) <= 300
    ttl_ms = await client.pttl(PLACES)
    assert client.expires_extra_ms <= ttl_ms <= client.expires_extra_ms + 3_600_000


async def test_places_last_as_long_as_the_longest_job(client: Client) -> None:
    await client.enqueue(sync.options(delay=90 * 24 * 3600), 1)
    longest = await client.pttl(PLACES)
    assert longest > 90 * 24 * 3600 * 1000
    await client.enqueue(sync, 2)
    assert await client.pttl(PLACES) > longest - 60_000


async def test_rubbish_in_a_place_is_no_job(client: Client) -> None:
    await client.enqueue(sync, 1)
    (digest,) = await bare(client).hkeys(PLACES)
    for rubbish in (b"", b"x", b"1 2", b"1 x job", "ä".encode() * 100):
        await bare(client).hset(PLACES, digest, rubbish)
        assert (await client.enqueue(sync, 1)).is_new


async def test_places_that_are_no_hash_refuse_unique_jobs_alone(client: Client) -> None:
    await client.set(PLACES, "x", ex=60)
    outcomes = await asyncio.gather(
        client.enqueue(sync, 1), client.enqueue(plain, 1), return_exceptions=True
    )
    assert isinstance(outcomes[0], EnqueueError)
    assert isinstance(outcomes[1], runner.Job)
    assert await client.zcard(QUEUE) == 1


async def test_id_of_arqs_own_call_means_what_it_did(client: Client) -> None:
    assert await client.enqueue_job("sync", 1, _job_id="k") is not None
    assert await client.enqueue_job("sync", 1, _job_id="k") is None
    unique = await client.enqueue(sync.options(key="k"), 1)
    assert (unique.job_id, unique.is_new) == ("k", False)
    assert not await client.exists(PLACES)


async def test_call_that_is_made_again_under_its_id_is_not_doubled(client: Client) -> None:
    first = await client.enqueue(sync, 1)
    again = await client.enqueue(sync.options(key=first.job_id), 1)
    assert (again.job_id, again.is_new) == (first.job_id, False)
    assert await client.zcard(QUEUE) == 1


async def test_places_survive_a_crash_of_redis(chaos_servers: ChaosServers) -> None:
    async with runner.connect(chaos_servers.redis_url) as client:
        first = await client.enqueue(sync, 1)
        debounced = await client.enqueue(index, 1, 1)
        await chaos_servers.restart_redis(kill=True)

        async def enqueued() -> runner.Job[str] | None:
            with contextlib.suppress(runner.errors.RedisUnavailable):
                return await client.enqueue(sync, 1)
            return None

        second = await wait_until(enqueued, description="Redis is back")
        assert second is not None
        assert (second.job_id, second.is_new) == (first.job_id, False)
        replacement = await client.enqueue(index, 1, 2)
        assert await Rig(client).ids() == {first.job_id, replacement.job_id}
        assert await lapsed(client, debounced.job_id)


@pytest.mark.parametrize("settings", [{"codec": "pickle"}, {"signing_keys": {"a": b"k" * 32}}])
async def test_every_codec_tells_arguments_apart(redis_url: str, settings: dict[str, Any]) -> None:
    async with runner.connect(redis_url, **settings) as client:
        await client.enqueue(latest, 1, 1)
        last = await client.enqueue(latest, 1, 2)
        seen: list[Any] = []
        await drain(redis_url, [latest], ctx={"seen": seen}, **settings)
        assert seen == [(1, 2)]
        assert await last.result(timeout=1) == 2


# Runs of schedules.


def ticker(client: Client, *functions: Any, schedules: Any = ()) -> Ticker:
    known = {function.name: as_function(function) for function in functions}
    book = Book(client, client.codec, QUEUE, lifetime_ms=60_000, functions=known)
    return Ticker(book, schedules=schedules, tasks=list(known), aborts=False)


async def tick(one: Ticker, client: Client, name: str, due: int) -> None:
    """Let a schedule be due at this time, and look at it."""
    await bare(client).hset(keys.schedule_book(QUEUE) + name, "due", str(due))
    await client.zadd(keys.schedules(QUEUE), {name: due})
    await one.tick()


async def test_run_of_a_schedule_gives_way_to_the_job_that_is_there(
    client: Client, rig: Rig
) -> None:
    schedule = cron(sync, every(hours=1), args=(1,), grace=7200)
    one = ticker(client, sync, schedules=[schedule])
    await one.open()
    first = await client.enqueue(sync, 1)
    now = int(await rig.server_ms())
    await tick(one, client, "sync", now - 1000)
    assert await rig.ids() == {first.job_id}
    assert (await client.schedules.get("sync")).skipped == 1
    (claimed,) = await rig.claim()
    await rig.settle(done(claimed))
    await tick(one, client, "sync", now - 500)
    (run_id,) = await rig.ids()
    assert run_id.startswith("cron:sync:")
    second = await client.enqueue(sync, 1)
    assert (second.job_id, second.is_new) == (run_id, False)


async def test_run_of_a_schedule_replaces_what_waits(client: Client, rig: Rig) -> None:
    schedule = cron(latest, every(hours=1), args=(1, 9), grace=7200)
    one = ticker(client, latest, schedules=[schedule])
    await one.open()
    await client.enqueue(latest, 1, 1)
    await tick(one, client, "latest", int(await rig.server_ms()) - 1000)
    (run_id,) = await rig.ids()
    assert run_id.startswith("cron:latest:")


async def test_perpetual_run_waits_for_its_place(client: Client, rig: Rig) -> None:
    one = ticker(client, sync, schedules=[cron(sync, perpetual(), args=(1,))])
    await one.open()
    await client.enqueue(sync, 1)
    await one.tick()
    (claimed,) = await rig.claim()
    await rig.settle(done(claimed))

    async def runs() -> bool:
        await one.tick()
        return bool(await rig.ids())

    await wait_until(runs, description="the run is made when the place is free")
    assert (await client.schedules.get("sync")).runs == 1


async def test_run_of_a_debounced_task_is_due_as_its_schedule_says(
    client: Client, rig: Rig
) -> None:
    one = ticker(client, index, schedules=[cron(index, every(hours=1), args=(1, 9), grace=7200)])
    await one.open()
    waiting = await client.enqueue(index, 1, 1)
    now = int(await rig.server_ms())
    await tick(one, client, "index", now - 1000)
    (run_id,) = await rig.ids() - {waiting.job_id}
    assert await due_ms(client, run_id) <= await rig.server_ms()
