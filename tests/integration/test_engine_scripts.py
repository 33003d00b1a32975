"""Each Lua script on a real server: happy path, nothing to do, conflict, replay."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from runner import broker, keys, producer
from runner.broker import Settlement
from runner.errors import EnqueueError, QueueFull
from runner.producer import EnqueueEntry
from runner.scripts import load
from tests.engine import LEASE_MS, LIFETIME_MS, Rig, done, payload, raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import ChaosServers

# The hash of who holds what has no expiry while there are claims.
pytestmark = [pytest.mark.timeout(30), pytest.mark.lasting_keys("runner:held:*", keys.WRITER)]

QUEUE = keys.DEFAULT_QUEUE


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    async with raw(redis_url) as client:
        yield client


@pytest.fixture
async def rig(redis: Any) -> Rig:
    return Rig(redis)


@asynccontextmanager
async def full(redis: Any) -> AsyncIterator[None]:
    """Let the server be out of memory, without filling it."""
    await redis.config_set("maxmemory-policy", "noeviction")
    await redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await redis.config_set("maxmemory", 0)


# enqueue


async def test_enqueued_job_is_due_at_once_and_has_its_payload(rig: Rig, redis: Any) -> None:
    assert await rig.put("j") == [True]
    assert await redis.get(keys.job("j")) == payload("j")
    assert 0 < await redis.pttl(keys.job("j")) <= LIFETIME_MS
    score = await redis.zscore(QUEUE, "j")
    assert score is not None
    assert score <= await rig.server_ms()


async def test_enqueue_of_nothing_does_nothing(rig: Rig, redis: Any) -> None:
    assert await rig.put() == []
    assert await load("enqueue").call(redis, keys=[QUEUE, "i", "w"], args=[]) == []
    assert await redis.dbsize() == 0


async def test_enqueue_keeps_the_order_of_one_call(rig: Rig) -> None:
    names = [f"{(7 * n) % 200:03}" for n in range(200)]
    await rig.put(*names)
    assert [claimed.job_id for claimed in await rig.claim(200)] == names


async def test_enqueue_refuses_an_id_that_waits(rig: Rig, redis: Any) -> None:
    await rig.put("j")
    await redis.set(keys.job("j"), b"first")
    assert await rig.put("j", "k") == [False, True]
    assert await redis.get(keys.job("j")) == b"first"


async def test_enqueue_refuses_an_id_whose_result_is_kept(rig: Rig, redis: Any) -> None:
    await redis.set(keys.result("j"), b"kept")
    assert await rig.put("j") == [False]
    assert await rig.ids() == set()


async def test_enqueue_stops_at_the_queues_bound(rig: Rig, redis: Any) -> None:
    entries = [EnqueueEntry(i, payload(i), None, LIFETIME_MS, False, 2) for i in "abc"]
    outcomes = await producer.enqueue(redis, QUEUE, entries)
    assert outcomes[:2] == [True, True]
    assert isinstance(outcomes[2], QueueFull)
    assert await rig.ids() == {"a", "b"}


async def test_enqueue_refuses_a_bad_entry_alone(rig: Rig, redis: Any) -> None:
    entries = [
        EnqueueEntry(i, payload(i), None, lifetime, False)
        for i, lifetime in (("a", LIFETIME_MS), ("bad", -1), ("c", LIFETIME_MS))
    ]
    outcomes = await producer.enqueue(redis, QUEUE, entries)
    assert outcomes[0] is True
    assert outcomes[2] is True
    assert isinstance(outcomes[1], EnqueueError)
    assert await rig.ids() == {"a", "c"}


async def test_enqueue_out_of_memory_is_an_error_for_each_entry(
    chaos_servers: ChaosServers,
) -> None:
    async with raw(chaos_servers.redis_url) as redis:
        rig = Rig(redis)
        async with full(redis):
            outcomes = await rig.put("a", "b")
        assert all(isinstance(outcome, EnqueueError) for outcome in outcomes)
        assert await redis.dbsize() == 0


async def test_enqueue_wakes_as_many_workers_as_wait(rig: Rig, redis: Any) -> None:
    now = await rig.server_ms()
    await redis.zadd(keys.idle(QUEUE), {"a": now + 60_000, "b": now + 60_000, "gone": now - 1})
    await redis.pexpire(keys.idle(QUEUE), 60_000)
    await rig.put(*"vwxyz")
    assert await redis.llen(keys.wake(QUEUE)) == 2
    assert 0 < await redis.pttl(keys.wake(QUEUE)) <= 5000


async def test_enqueue_without_idle_workers_leaves_no_token(rig: Rig, redis: Any) -> None:
    await rig.put("j")
    assert await redis.exists(keys.wake(QUEUE)) == 0


# claim


async def test_claim_holds_a_job_until_its_lease_ends(rig: Rig, redis: Any) -> None:
    before = await rig.server_ms()
    claimed = await rig.claim_one(token="r:me:1")
    assert (claimed.payload, claimed.attempt, claimed.crashes) == (payload("j"), 1, 0)
    assert await redis.get(keys.in_progress("j")) == b"r:me:1"
    assert 0 < await redis.pttl(keys.in_progress("j")) <= LEASE_MS
    assert await redis.exists(keys.retry("j")) == 0  # it counts the tries that have ended
    score = await redis.zscore(QUEUE, "j")
    assert score is not None
    assert before + LEASE_MS - 1 <= score <= await rig.server_ms() + LEASE_MS
    held = await redis.hget(keys.held(QUEUE), "j")
    assert held is not None
    assert held.split()[:2] == [b"r:me:1", b"0"]


async def test_claim_of_an_empty_queue_leaves_no_key(rig: Rig, redis: Any) -> None:
    assert await rig.claim() == []
    assert await redis.dbsize() == 0


async def test_claim_takes_no_more_than_asked_and_says_that_more_is_due(
    rig: Rig, redis: Any
) -> None:
    await rig.put(*"abc")
    reply = await rig.broker.cycle(redis, token="r:t:1", settlements=[], limit=2)
    assert [claimed.job_id for claimed in reply.claimed] == ["a", "b"]
    assert reply.more
    reply = await rig.broker.cycle(redis, token="r:t:2", settlements=[], limit=2)
    assert [claimed.job_id for claimed in reply.claimed] == ["c"]
    assert not reply.more


async def test_claim_leaves_a_deferred_job_and_says_when_it_is_due(rig: Rig, redis: Any) -> None:
    run_at = await rig.server_ms() + 5000
    await rig.put("later", run_at_ms=run_at)
    reply = await rig.broker.cycle(redis, token="r:t:1", settlements=[], limit=5)
    assert reply.claimed == []
    assert reply.next_due_ms == pytest.approx(run_at, abs=1)


async def test_claim_twice_gives_a_job_once(rig: Rig) -> None:
    await rig.claim_one()
    assert await rig.claim() == []


async def test_claim_pages_past_jobs_that_stock_workers_run(rig: Rig, redis: Any) -> None:
    stock = [f"stock{n}" for n in range(1500)]
    async with redis.pipeline(transaction=False) as pipe:
        for job_id in stock:
            pipe.set(keys.in_progress(job_id), b"1", px=60_000)
        pipe.zadd(QUEUE, dict.fromkeys(stock, 5))
        await pipe.execute()
    await rig.put(*"abc")
    assert {claimed.job_id for claimed in await rig.claim(10)} == {"a", "b", "c"}
    scores = await redis.zmscore(QUEUE, stock)
    assert set(scores) == {5.0}


async def test_claim_looks_ahead_within_a_bound(rig: Rig, redis: Any) -> None:
    stock = [f"stock{n}" for n in range(6000)]
    async with redis.pipeline(transaction=False) as pipe:
        pipe.mset({keys.in_progress(job_id): b"1" for job_id in stock})
        pipe.zadd(QUEUE, dict.fromkeys(stock, 5))
        await pipe.execute()
    await rig.put("behind")
    assert await rig.claim(10) == []


async def test_claim_puts_the_score_of_an_aborted_running_job_right(rig: Rig, redis: Any) -> None:
    await rig.claim_one("running")
    await rig.due("running")
    await rig.put("next")
    assert [claimed.job_id for claimed in await rig.claim()] == ["next"]
    score = await redis.zscore(QUEUE, "running")
    assert score is not None
    assert score > await rig.server_ms()


async def test_claim_at_the_last_moment_of_a_lease_does_not_prolong_it(
    rig: Rig, redis: Any
) -> None:
    await rig.claim_one()
    await redis.pexpire(keys.in_progress("j"), 40)
    await rig.due("j")
    assert await rig.claim() == []
    score = await redis.zscore(QUEUE, "j")
    assert score is not None
    assert score <= await rig.server_ms() + 45


async def test_claim_never_touches_a_job_whose_unit_is_committing(rig: Rig, redis: Any) -> None:
    await rig.put("j")
    await redis.set(keys.in_progress("j"), keys.COMMITTING + "1-1")
    await rig.due("j")
    assert await rig.claim() == []
    assert await redis.zscore(QUEUE, "j") == keys.FAR_OFF_MS
    assert await redis.pttl(keys.in_progress("j")) == -1


async def test_claim_after_a_lost_lease_counts_a_crash_and_no_try(rig: Rig, redis: Any) -> None:
    first = await rig.claim_one()
    await rig.lapse(first)
    (second,) = await rig.claim()
    assert (second.attempt, second.crashes) == (1, 1)
    assert second.run_at_ms == pytest.approx(first.run_at_ms, abs=0.01)
    assert await redis.hget(keys.counters(QUEUE), "crashed") == b"1"


async def test_claim_waits_one_interval_after_a_time_in_which_nobody_could_renew(
    rig: Rig, redis: Any
) -> None:
    first = await rig.claim_one()
    await rig.lapse(first)
    long_ago = int(await rig.server_ms()) - LEASE_MS
    await redis.set(keys.clock(QUEUE), f"{long_ago} 0", px=60_000)
    assert await rig.claim() == []
    assert await rig.renew(first) == [1]


async def test_renewal_of_one_does_not_end_the_grace_of_another(rig: Rig, redis: Any) -> None:
    mine, other = await rig.claim_one("mine"), await rig.claim_one("other")
    await rig.lapse(mine, other)
    long_ago = int(await rig.server_ms()) - LEASE_MS
    await redis.set(keys.clock(QUEUE), f"{long_ago} 0", px=60_000)
    assert await rig.renew(mine) == [1]
    assert await rig.claim() == []
    assert await rig.renew(other) == [1]


async def test_claim_removes_a_ghost_that_has_a_result(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    await rig.settle(done(claimed))
    await rig.due("j")  # what a stock abort does after the end
    await redis.zadd(keys.ABORT, {"j": 1})
    assert await rig.claim() == []
    assert await rig.ids() == set()
    assert await redis.get(keys.result("j")) == b"result"
    assert await redis.zscore(keys.ABORT, "j") is None


async def test_claim_removes_a_ghost_that_left_no_result(rig: Rig, redis: Any) -> None:
    await redis.zadd(keys.ABORT, {"j": 1})
    await rig.due("j")
    assert await rig.claim() == []
    assert await rig.ids() == set()


async def test_claim_hands_out_an_id_whose_payload_is_gone(rig: Rig, redis: Any) -> None:
    await rig.put("j")
    await redis.delete(keys.job("j"))
    (claimed,) = await rig.claim()
    assert claimed.payload is None


@pytest.mark.parametrize("key", [keys.job("bad"), keys.retry("bad"), keys.waiters("bad")])
async def test_claim_and_end_survive_a_key_of_the_wrong_type(
    rig: Rig, redis: Any, key: str
) -> None:
    await rig.put("a", "bad", "c")
    await redis.delete(key)
    await redis.lpush(key, "not what it should be")
    claims = await rig.claim()
    assert [claimed.job_id for claimed in claims] == ["a", "bad", "c"]
    statuses = await rig.settle(*(done(claimed) for claimed in claims))
    assert (statuses[0], statuses[2]) == (1, 1)
    assert await rig.ids() == set()
    await redis.delete(key)


async def test_claim_out_of_memory_takes_nothing(chaos_servers: ChaosServers) -> None:
    async with raw(chaos_servers.redis_url) as redis:
        rig = Rig(redis)
        await rig.put("j")
        async with full(redis):
            reply = await rig.broker.cycle(redis, token="r:test:x", settlements=[], limit=5)
            assert (reply.claimed, reply.problem.partition(" ")[0]) == ([], "OOM")
            assert await redis.exists(keys.held(QUEUE), keys.in_progress("j")) == 0
        (claimed,) = await rig.claim()
        assert (claimed.attempt, claimed.crashes) == (1, 0)


async def test_claim_registers_an_idle_worker_while_slots_are_free(rig: Rig, redis: Any) -> None:
    async def cycle(limit: int) -> None:
        await rig.broker.cycle(
            redis, token=f"r:t:{limit}", settlements=[], limit=limit, worker="w", idle_ms=2000
        )

    await cycle(2)
    assert await redis.zcard(keys.idle(QUEUE)) == 1
    assert 0 < await redis.pttl(keys.idle(QUEUE)) <= 2000
    await rig.put("a")
    await cycle(1)
    assert await redis.zcard(keys.idle(QUEUE)) == 0


async def test_claim_that_leaves_due_jobs_wakes_the_next_worker(rig: Rig, redis: Any) -> None:
    await rig.put("a", "b")
    now = await rig.server_ms()
    await redis.zadd(keys.idle(QUEUE), {"other": now + 60_000})
    await redis.pexpire(keys.idle(QUEUE), 60_000)
    await rig.broker.cycle(redis, token="r:t:1", settlements=[], limit=1, worker="w", idle_ms=2000)
    assert await redis.llen(keys.wake(QUEUE)) == 1


# settle


async def test_end_of_a_job_leaves_its_result_and_nothing_else(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    assert await rig.settle(done(claimed)) == [1]
    await rig.claim()  # the clock goes with the last claim
    left = {key.decode() for key in await redis.keys()}
    assert left == {keys.result("j"), keys.counters(QUEUE)}
    assert 0 < await redis.pttl(keys.result("j")) <= 60_000
    assert await redis.hgetall(keys.counters(QUEUE)) == {b"succeeded": b"1"}


async def test_bare_worker_leaves_no_key_of_ours(redis: Any) -> None:
    rig = Rig(redis, keeps=False)
    claimed = await rig.claim_one()
    failed = replace(done(claimed), counter="failed", letter=b"letter")
    await rig.settle(failed)
    await rig.claim()
    assert {key.decode() for key in await redis.keys()} == {keys.result("j")}


@pytest.mark.parametrize(("keep_ms", "ttl"), [(0, -2), (-1, -1), (5000, 5000)])
async def test_result_is_kept_as_long_as_asked(
    rig: Rig, redis: Any, keep_ms: int, ttl: int
) -> None:
    claimed = await rig.claim_one()
    await rig.settle(done(claimed, keep_ms=keep_ms))
    assert await redis.pttl(keys.result("j")) == pytest.approx(ttl, abs=500 if ttl > 0 else 0)


async def test_end_of_a_cron_job_keeps_its_in_progress_key_for_a_while(
    rig: Rig, redis: Any
) -> None:
    claimed = await rig.claim_one()
    await rig.settle(replace(done(claimed), extra="60000"))
    assert LEASE_MS < await redis.pttl(keys.in_progress("j")) <= 60_000


async def test_end_of_a_job_clears_its_abort(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    await redis.zadd(keys.ABORT, {"j": 1, "other": 1})
    await rig.settle(done(claimed))
    assert await redis.zrange(keys.ABORT, 0, -1) == [b"other"]


async def test_end_tells_those_who_wait(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    channel = f"runner:reply:test-{id(rig)}"
    async with redis.pubsub(ignore_subscribe_messages=True) as listener:
        await listener.subscribe(channel)
        assert await producer.read_results(redis, QUEUE, channel=channel, job_ids=["j"]) == [b""]
        await rig.settle(done(claimed, result=b"blob"))
        message: Any = None
        async with asyncio.timeout(5):
            while message is None:
                message = await listener.get_message(timeout=1)
    assert message["data"] == b"j\0blob"
    assert await redis.exists(keys.waiters("j")) == 0


async def test_retry_with_a_delay_spends_a_try(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    await rig.settle(Settlement(claimed=claimed, mode="again", counter="retried", extra="5000"))
    score = await redis.zscore(QUEUE, "j")
    assert score == pytest.approx(await rig.server_ms() + 5000, abs=500)
    await rig.due("j")
    (again,) = await rig.claim()
    assert (again.attempt, again.crashes) == (2, 0)


async def test_retry_without_a_delay_takes_its_old_place(rig: Rig) -> None:
    first = await rig.claim_one("first")
    await rig.put("second")
    await rig.settle(Settlement(claimed=first, mode="again"))
    assert [claimed.job_id for claimed in await rig.claim()] == ["first", "second"]


async def test_handed_back_job_gets_its_try_back(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    for _ in range(6):
        await rig.settle(Settlement(claimed=claimed, mode="back"))
        assert await redis.exists(keys.retry("j"), keys.held(QUEUE), keys.in_progress("j")) == 0
        (claimed,) = await rig.claim()
    assert (claimed.attempt, claimed.crashes) == (1, 0)


async def test_end_out_of_memory_is_settled_in_full(chaos_servers: ChaosServers) -> None:
    async with raw(chaos_servers.redis_url) as redis:
        rig = Rig(redis)
        await rig.put(*(f"j{n}" for n in range(50)))
        claims = await rig.claim(50)
        async with full(redis):
            assert await rig.settle(*(done(claimed) for claimed in claims)) == [1] * 50
        assert len(await redis.keys(keys.RESULT + "*")) == 50
        assert await rig.ids() == set()


@pytest.mark.parametrize("mode", ["again", "back"])
async def test_job_that_runs_again_does_not_stop_a_batch_when_out_of_memory(
    chaos_servers: ChaosServers, mode: Any
) -> None:
    async with raw(chaos_servers.redis_url) as redis:
        rig = Rig(redis)
        await rig.put("again", "done")
        again, ended = await rig.claim()
        async with full(redis):
            statuses = await rig.settle(
                Settlement(claimed=again, mode=mode, extra="1000"), done(ended)
            )
        assert statuses[1] == 1
        assert await redis.exists(keys.result("done")) == 1
        assert await rig.ids() == {"again"}


async def test_submitted_unit_and_the_mark_of_its_job_are_one_step(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    await redis.pexpire(keys.job("j"), 60_000)
    settled = replace(done(claimed), mode="submit", unit_id="u", operations=b"ops", header=b"head")
    assert await rig.settle(settled) == [1]
    ((entry, fields),) = await redis.xrange(keys.UNITS)
    assert fields == {b"u": b"u", b"o": b"ops", b"j": b"head", b"r": b"result"}
    assert await redis.get(keys.in_progress("j")) == keys.COMMITTING.encode() + entry
    assert await redis.pttl(keys.in_progress("j")) == -1
    assert await redis.pttl(keys.job("j")) == -1
    assert await redis.zscore(QUEUE, "j") == keys.FAR_OFF_MS
    assert await rig.settle(settled) == [0]
    assert await redis.xlen(keys.UNITS) == 1
    await redis.delete(keys.UNITS)


async def test_submitted_unit_clears_its_abort(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one("j")
    await redis.zadd(keys.ABORT, {"j": 1, "another": 1})
    settled = replace(done(claimed), mode="submit", unit_id="u", operations=b"o", header=b"h")
    assert await rig.settle(settled) == [1]
    assert await redis.zrange(keys.ABORT, 0, -1) == [b"another"]
    await redis.delete(keys.UNITS)


async def test_refused_unit_changes_nothing(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    await redis.set(keys.UNITS, "not a stream", px=60_000)
    settled = replace(done(claimed), mode="submit", unit_id="u", operations=b"o", header=b"h")
    (status,) = await rig.settle(settled)
    assert isinstance(status, str)
    assert await redis.get(keys.in_progress("j")) == claimed.token.encode()
    await redis.delete(keys.UNITS)
    assert await rig.settle(settled) == [1]
    await redis.delete(keys.UNITS)


async def test_dead_letter_is_kept_with_its_time(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    await redis.zadd(keys.dead(QUEUE), {"older than letters live": 1})
    await rig.settle(replace(done(claimed), counter="failed", letter=b"letter"))
    assert await redis.get(keys.dead_letter("j")) == b"letter"
    assert await redis.zrange(keys.dead(QUEUE), 0, -1) == [b"j"]
    assert 0 < await redis.pttl(keys.dead(QUEUE)) <= keys.KEEP_MS
    assert 0 < await redis.pttl(keys.dead_letter("j")) <= keys.KEEP_MS


async def test_end_that_is_sent_again_changes_nothing(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    await rig.settle(done(claimed, result=b"first"))
    assert await rig.settle(done(claimed, result=b"second")) == [0]
    assert await redis.get(keys.result("j")) == b"first"
    assert await redis.hget(keys.counters(QUEUE), "succeeded") == b"1"


async def test_retry_that_is_sent_again_changes_nothing(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    again = Settlement(claimed=claimed, mode="again", extra="1000")
    assert await rig.settle(again) == [1]
    score = await redis.zscore(QUEUE, "j")
    assert await rig.settle(again) == [0]
    assert await redis.zscore(QUEUE, "j") == score


ENDINGS: list[dict[str, Any]] = [
    {"keep_ms": 0},
    {"keep_ms": 60_000},
    {"counter": "failed", "letter": b"letter"},
    {"extra": "60000"},
    {"mode": "again", "counter": "retried"},
    {"mode": "back", "counter": ""},
    {"mode": "submit", "unit_id": "u", "operations": b"o", "header": b"h"},
]


@pytest.mark.parametrize("ending", ENDINGS)
async def test_batch_whose_answer_was_lost_is_known_when_it_is_sent_again(
    rig: Rig, redis: Any, ending: dict[str, Any]
) -> None:
    async def send(token: str, *settlements: Settlement) -> list[int | str]:
        reply = await rig.broker.cycle(
            redis, token=token, settlements=settlements, limit=0, batch="r:t:1", lane="l:0"
        )
        return reply.statuses

    await rig.put("j", "lost")
    claimed, lost = await rig.claim()
    await redis.set(keys.in_progress("lost"), "somebody else's")
    batch = (replace(done(claimed), **ending), done(lost))
    assert await send("r:t:1", *batch) == [1, 0]
    before = await everything(redis)
    assert 0 < await redis.pttl(keys.settled("l:0")) <= 3_600_000
    for number in (2, 3):
        assert await send(f"r:t:{number}", *batch) == [2, 0]
    assert await everything(redis) == before
    await redis.delete(keys.UNITS)


async def test_first_sending_that_arrives_after_the_second_changes_nothing(
    rig: Rig, redis: Any
) -> None:
    claimed = await rig.claim_one()
    for token, status in (("r:t:2", 1), ("r:t:1", 2), ("r:t:3", 2)):
        reply = await rig.broker.cycle(
            redis, token=token, settlements=[done(claimed)], limit=0, batch="r:t:1", lane="l:0"
        )
        assert reply.statuses == [status]
    assert await redis.hget(keys.counters(QUEUE), "succeeded") == b"1"


async def test_next_batch_of_a_lane_is_not_taken_for_the_last(rig: Rig, redis: Any) -> None:
    async def send(token: str, batch: str, settlement: Settlement) -> list[int | str]:
        reply = await rig.broker.cycle(
            redis, token=token, settlements=[settlement], limit=0, batch=batch, lane="l:0"
        )
        return reply.statuses

    first, second = await rig.claim_one("first"), await rig.claim_one("second")
    assert await send("r:t:1", "r:t:1", done(first)) == [1]
    # Its first sending never arrived; what is remembered is another batch.
    assert await send("r:t:3", "r:t:2", done(second)) == [1]
    assert await send("r:t:4", "r:t:1", done(first)) == [0]


async def everything(redis: Any) -> dict[bytes, Any]:
    """Read all keys with their values, but for the time of the last claim."""
    names = set(await redis.keys()) - {keys.clock(QUEUE).encode()}
    return {name: await redis.dump(name) for name in names}


async def test_many_ends_and_their_waiters_are_one_batch(rig: Rig, redis: Any) -> None:
    names = [f"{number:03}" for number in range(500)]
    await rig.put(*names)
    claims = await rig.claim(500)
    await redis.zadd(keys.ABORT, {"007": 1, "other": 1})
    await producer.read_results(redis, QUEUE, channel="nobody", job_ids=["250"])
    assert await rig.settle(*(done(claimed) for claimed in claims)) == [1] * 500
    assert await redis.exists(*(keys.result(name) for name in names)) == 500
    assert await redis.exists(keys.waiters("250"), keys.held(QUEUE), QUEUE) == 0
    assert await redis.keys(keys.JOB + "*") + await redis.keys(keys.IN_PROGRESS + "*") == []
    assert await redis.zrange(keys.ABORT, 0, -1) == [b"other"]


async def test_second_try_leaves_no_count_of_tries(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    await rig.settle(Settlement(claimed=claimed, mode="again"))
    assert await redis.get(keys.retry("j")) == b"1"
    (again,) = await rig.claim()
    assert await rig.settle(done(again)) == [1]
    assert await redis.exists(keys.retry("j")) == 0


async def test_end_and_claim_travel_together(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one("a")
    await rig.put("b")
    reply = await rig.broker.cycle(redis, token="r:t:9", settlements=[done(claimed)], limit=1)
    assert reply.statuses == [1]
    assert [c.job_id for c in reply.claimed] == ["b"]


# The fence, on the eight states in which the end of an attempt can find its job.


async def _right_token(_rig: Rig, _redis: Any) -> None:
    """Nothing has happened since the claim."""


async def _lapsed_and_unclaimed(rig: Rig, redis: Any) -> None:
    await redis.delete(keys.in_progress("j"))
    await rig.due("j")


async def _claimed_by_another_of_ours(rig: Rig, redis: Any) -> None:
    await redis.delete(keys.in_progress("j"))
    await rig.due("j")
    assert len(await rig.claim()) == 1


async def _claimed_by_another_whose_lease_is_over_too(rig: Rig, redis: Any) -> None:
    await _claimed_by_another_of_ours(rig, redis)
    await _lapsed_and_unclaimed(rig, redis)


async def _run_by_stock(_rig: Rig, redis: Any) -> None:
    await redis.set(keys.in_progress("j"), b"1")
    await redis.incr(keys.retry("j"))


async def _finished_by_stock(_rig: Rig, redis: Any) -> None:
    await redis.delete(keys.in_progress("j"), keys.retry("j"), keys.job("j"))
    await redis.zrem(QUEUE, "j")


async def _to_be_retried_by_stock(_rig: Rig, redis: Any) -> None:
    await redis.incr(keys.retry("j"))
    await redis.delete(keys.in_progress("j"))


async def _held_was_lost_in_a_failover(_rig: Rig, redis: Any) -> None:
    await redis.delete(keys.in_progress("j"), keys.held(QUEUE))


FENCE = [
    (_right_token, 1),
    (_lapsed_and_unclaimed, 1),
    (_claimed_by_another_of_ours, 0),
    (_claimed_by_another_whose_lease_is_over_too, 0),
    (_run_by_stock, 0),
    (_finished_by_stock, 0),
    (_to_be_retried_by_stock, 0),
    (_held_was_lost_in_a_failover, 0),
]
fence_cases = pytest.mark.parametrize(
    ("happens", "status"), FENCE, ids=[case.__name__.strip("_") for case, _ in FENCE]
)


@fence_cases
async def test_fence_at_the_end(rig: Rig, redis: Any, happens: Any, status: int) -> None:
    claimed = await rig.claim_one()
    await happens(rig, redis)
    before = await redis.zscore(QUEUE, "j")
    assert await rig.settle(done(claimed)) == [status]
    assert await redis.exists(keys.result("j")) == status
    assert await redis.zscore(QUEUE, "j") == (None if status else before)


@fence_cases
async def test_fence_at_a_renewal(rig: Rig, redis: Any, happens: Any, status: int) -> None:
    claimed = await rig.claim_one()
    await happens(rig, redis)
    before = await redis.zscore(QUEUE, "j")
    assert await rig.renew(claimed) == [status]
    if status:
        assert await redis.get(keys.in_progress("j")) == claimed.token.encode()
    else:
        assert await redis.zscore(QUEUE, "j") == before


# renew, results, wake


async def test_renewal_prolongs_a_lease(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    await redis.pexpire(keys.in_progress("j"), 1000)
    await rig.due("j")
    assert await rig.renew(claimed) == [1]
    assert await redis.pttl(keys.in_progress("j")) > 1000
    score = await redis.zscore(QUEUE, "j")
    assert score is not None
    assert score > await rig.server_ms() + 1000


async def test_renewal_of_a_finished_job_does_not_bring_it_back(rig: Rig) -> None:
    claimed = await rig.claim_one()
    await rig.settle(done(claimed))
    assert await rig.renew(claimed) == [0]
    assert await rig.ids() == set()


async def test_renewal_of_nothing_is_fine(rig: Rig) -> None:
    assert await rig.renew() == []


async def test_renewal_works_out_of_memory(chaos_servers: ChaosServers) -> None:
    async with raw(chaos_servers.redis_url) as redis:
        rig = Rig(redis)
        claimed = await rig.claim_one()
        await redis.pexpire(keys.in_progress("j"), 1000)
        async with full(redis):
            assert await rig.renew(claimed) == [1]
        assert await redis.pttl(keys.in_progress("j")) > 1000


async def test_results_are_read_awaited_or_denied(rig: Rig, redis: Any) -> None:
    ended = await rig.claim_one("ended")
    await rig.settle(done(ended, result=b"blob"))
    await rig.put("queued")
    answers = await producer.read_results(
        redis, QUEUE, channel="c", job_ids=["ended", "queued", "never"]
    )
    assert answers == [b"blob", b"", None]
    assert await redis.smembers(keys.waiters("queued")) == {b"c"}
    assert 0 < await redis.pttl(keys.waiters("queued")) <= producer.WAITER_TTL_MS
    assert await redis.exists(keys.waiters("ended"), keys.waiters("never")) == 0


async def test_results_of_no_ids_are_none(redis: Any) -> None:
    assert await producer.read_results(redis, QUEUE, channel="c", job_ids=[]) == []


async def test_results_with_a_key_of_the_wrong_type_serve_the_others(rig: Rig, redis: Any) -> None:
    ended = await rig.claim_one("ended")
    await rig.settle(done(ended, result=b"blob"))
    await redis.lpush(keys.result("bad"), "a list")
    answers = await producer.read_results(redis, QUEUE, channel="c", job_ids=["bad", "ended"])
    assert answers == [None, b"blob"]


async def test_wake_tokens_do_not_pile_up(rig: Rig, redis: Any) -> None:
    now = await rig.server_ms()
    await redis.zadd(keys.idle(QUEUE), {"a": now + 60_000})
    await redis.pexpire(keys.idle(QUEUE), 60_000)
    for name in "abc":
        await rig.put(name)
    assert await redis.llen(keys.wake(QUEUE)) == 1


async def test_job_due_soon_wakes_one_worker_to_set_its_timer(rig: Rig, redis: Any) -> None:
    now = await rig.server_ms()
    await redis.zadd(keys.idle(QUEUE), {"a": now + 60_000, "b": now + 60_000})
    await redis.pexpire(keys.idle(QUEUE), 60_000)
    await rig.put("x", "y", run_at_ms=now + 1000)
    assert await redis.llen(keys.wake(QUEUE)) == 1


async def test_script_runs_on_a_server_that_does_not_know_it(
    chaos_servers: ChaosServers,
) -> None:
    async with raw(chaos_servers.redis_url) as redis:
        rig = Rig(redis)
        await redis.script_flush()
        assert await rig.put("j") == [True]
        await redis.script_flush()
        assert len(await rig.claim()) == 1


async def test_batch_of_five_hundred_fits_one_call(rig: Rig) -> None:
    names = [f"j{n:03}" for n in range(broker.MAX_ENTRIES)]
    await rig.put(*names)
    claims = await rig.claim(broker.MAX_ENTRIES)
    assert len(claims) == broker.MAX_ENTRIES
    assert await rig.renew(*claims) == [1] * broker.MAX_ENTRIES
    assert await rig.settle(*(done(claimed) for claimed in claims)) == [1] * broker.MAX_ENTRIES


@pytest.mark.parametrize("leftover", ["", "junk", "r:other:1 2 junk", "r:other:1 -1 0", b"\xff"])
async def test_claim_takes_a_job_whose_mark_is_none_of_ours(
    rig: Rig, leftover: str | bytes
) -> None:
    await rig.put("odd", "even")
    await rig.redis.hset(keys.held(rig.queue), "odd", leftover)
    claimed = await rig.claim()
    assert {job.job_id: job.crashes for job in claimed} == {"odd": 0, "even": 0}
    assert await rig.settle(*map(done, claimed)) == [1, 1]


async def test_count_that_cannot_be_written_costs_no_claim(rig: Rig) -> None:
    await rig.put("a")
    claimed = await rig.claim()
    await rig.put("b")
    await rig.redis.hset(keys.counters(rig.queue), "succeeded", "junk")
    reply = await rig.broker.cycle(
        rig.redis, token="r:test:x", settlements=[*map(done, claimed)], limit=5
    )
    assert reply.statuses == [1]
    assert [job.job_id for job in reply.claimed] == ["b"]


async def test_keys_of_a_wrong_type_stop_neither_enqueue_nor_claim(rig: Rig) -> None:
    for key in (keys.clock(rig.queue), keys.idle(rig.queue), keys.wake(rig.queue)):
        await rig.redis.hset(key, "odd", "odd")
        await rig.redis.expire(key, 60)
    assert await rig.put("a") == [True]
    (claimed,) = await rig.claim()
    assert await rig.settle(done(claimed)) == [1]
