"""The scripts of flows by themselves: empty, replayed, in conflict, and in the middle of things."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import Context, Flow, FlowState, chain, chord, group, keys, task
from runner.broker import Settlement
from runner.errors import FlowError, LeaseLost, RedisOutOfMemory
from runner.workflow.inside import JobFlow
from runner.workflow.plan import job_id_of
from runner.workflow.store import FlowStore
from tests.engine import Rig, done, raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client
    from runner.broker import Claimed
    from tests.servers import ChaosServers

pytestmark = pytest.mark.lasting_keys("runner:held:*")

QUEUE = keys.DEFAULT_QUEUE


@task
async def work(_ctx: Context, number: int = 0) -> int:
    return number


@task
async def join(_ctx: Context, numbers: list[int]) -> int:
    return sum(numbers)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as client:
        yield client


@pytest.fixture
async def rig(redis_url: str) -> AsyncIterator[Rig]:
    async with raw(redis_url) as redis:
        yield Rig(redis)


def numbers_of(claims: list[Claimed]) -> list[int]:
    return sorted(int(claimed.job_id.rpartition(":")[2]) for claimed in claims)


def failed(claimed: Claimed) -> Settlement:
    return Settlement(claimed=claimed, mode="done", counter="failed", result=b"no", keep_ms=1000)


async def test_wide_fan_out_is_released_in_order(client: Client, rig: Rig) -> None:
    await client.start(chain(work.call(), group(*(work.call(n) for n in range(1200)))))
    (first,) = await rig.claim(500)
    await rig.settle(done(first))
    claims = [*await rig.claim(500), *await rig.claim(500), *await rig.claim(500)]
    assert [int(c.job_id.rpartition(":")[2]) for c in claims] == list(range(1, 1201))
    assert await rig.claim(500) == []


async def test_join_is_queued_by_the_call_that_settles_the_last_member(
    client: Client, rig: Rig
) -> None:
    run = await client.start(chord(work.map(range(3)), join.s()))
    claims = await rig.claim(10)
    assert numbers_of(claims) == [0, 1, 2]
    assert await rig.settle(done(claims[0]), done(claims[2])) == [1, 1]
    assert await rig.claim(10) == []
    assert await rig.settle(done(claims[1])) == [1]
    assert numbers_of(await rig.claim(10)) == [3]
    assert (await run.status()).queued == 1


async def test_batch_of_ends_that_is_sent_again_counts_once(client: Client, rig: Rig) -> None:
    run = await client.start(chord(work.map(range(3)), join.s()))
    claims = await rig.claim(10)
    replies = [
        await rig.broker.cycle(
            rig.redis,
            token="r:test:again",
            settlements=[done(claims[0]), done(claims[1])],
            limit=0,
            batch="r:test:first",
            lane="lane",
        )
        for _ in range(3)
    ]
    assert [reply.statuses for reply in replies] == [[1, 1], [2, 2], [2, 2]]
    assert await rig.claim(10) == []
    assert (await run.status()).succeeded == 2
    await rig.redis.delete(keys.settled("lane"))


async def test_end_behind_a_lost_lease_counts_once(client: Client, rig: Rig) -> None:
    run = await client.start(chain(work.call(), work.s()))
    (first,) = await rig.claim()
    await rig.lapse(first)
    (second,) = await rig.claim()
    assert await rig.settle(done(first)) == [0]
    assert (await run.status()).succeeded == 0
    assert await rig.settle(done(second)) == [1]
    assert (await run.status()).succeeded == 1


async def test_end_and_claim_of_what_follows_are_one_call(client: Client, rig: Rig) -> None:
    await client.start(chain(work.call(), work.s()))
    (first,) = await rig.claim()
    reply = await rig.broker.cycle(
        rig.redis, token="r:test:next", settlements=[done(first)], limit=10
    )
    assert numbers_of(reply.claimed) == [1]


async def test_flow_whose_keys_are_gone_is_forgotten(client: Client, rig: Rig) -> None:
    run = await client.start(chain(work.call(), work.s()))
    (first,) = await rig.claim()
    await rig.redis.delete(keys.flow(run.id))
    assert await rig.settle(done(first)) == [1]
    assert await rig.claim() == []


async def test_hostile_flow_does_not_stop_a_batch(client: Client, rig: Rig) -> None:
    run = await client.start(chain(work.call(), work.s()))
    (node,) = await rig.claim()
    plain = await rig.claim_one("plain")
    await rig.redis.delete(f"{keys.flow(run.id)}:states")
    await rig.redis.set(f"{keys.flow(run.id)}:states", "no hash", px=60_000)
    assert await rig.settle(done(node), done(plain)) == [1, 1]
    assert "WRONGTYPE" in (await run.status()).problem


@pytest.mark.parametrize("job_id", ["flow:", "flow:x", "flow:x:y", "flow:x:1", "flow::1"])
async def test_job_that_only_looks_like_a_node_is_a_job(rig: Rig, job_id: str) -> None:
    claimed = await rig.claim_one(job_id)
    assert claimed.payload is not None
    assert await rig.settle(done(claimed)) == [1]


async def test_start_that_is_sent_again_starts_nothing(client: Client, rig: Rig) -> None:
    flow = Flow("f")
    flow.add(work.call(1))
    for _ in range(2):
        await client.start(flow, flow_id="once")
    assert numbers_of(await rig.claim(10)) == [0]


async def test_flow_of_which_a_part_has_expired_is_not_started(client: Client, rig: Rig) -> None:
    class Slow(FlowStore):
        async def _make_effective(self, flow_id: str, plan: Any) -> None:
            await rig.redis.delete(f"{keys.flow(flow_id)}:plan")
            await super()._make_effective(flow_id, plan)

    store = client.flows
    store.__class__ = Slow
    flow = Flow("f")
    flow.add(work.call(1))
    with pytest.raises(FlowError, match="was not started"):
        await store.start(flow)
    assert await rig.claim(10) == []


async def test_stopped_flow_is_swept_in_pages(client: Client, rig: Rig) -> None:
    run = await client.start(work.map(range(1200)))
    claims = await rig.claim(2)
    assert await run.cancel()
    for _ in range(3):  # a page in each call, and in front of what waits
        claims += await rig.claim(1)
    status = await run.status()
    left = len(claims)
    assert left <= 5
    assert (status.cancelled, status.queued) == (1200 - left, left)
    assert status.state is FlowState.RUNNING
    aborted = {raw_id.decode() for raw_id in await rig.redis.zrange(keys.ABORT, 0, -1)}
    assert aborted == {claimed.job_id for claimed in claims}
    await rig.settle(*map(done, claims))
    assert (await run.status()).state is FlowState.CANCELLED
    assert await rig.ids() == set()


async def test_failures_of_one_call_count_in_order(client: Client, rig: Rig) -> None:
    run = await client.start(chord(work.map(range(2)), join.s()))
    claims = await rig.claim(10)
    await rig.settle(failed(claims[0]), done(claims[1]))
    status = await run.status()
    assert (status.state, status.failed, status.skipped) == (FlowState.FAILED, 1, 1)


def inside(client: Client, claimed: Claimed) -> JobFlow:
    return JobFlow(client.flows, claimed, 1_700_000_000_000)


async def test_node_adds_only_while_it_holds_its_job(client: Client, rig: Rig) -> None:
    await client.start(work.call())
    (first,) = await rig.claim()
    await rig.lapse(first)
    (second,) = await rig.claim()
    with pytest.raises(LeaseLost):
        await inside(client, first).add(work.call(1))
    await inside(client, second).add(work.call(1))
    assert numbers_of(await rig.claim()) == [1]


async def test_node_adds_nothing_to_a_flow_that_stops(client: Client, rig: Rig) -> None:
    run = await client.start(work.call())
    (claimed,) = await rig.claim()
    await run.cancel()
    with pytest.raises(FlowError, match="takes nothing more"):
        await inside(client, claimed).add(work.call(1))


async def test_attempt_that_adds_something_else_is_told(client: Client, rig: Rig) -> None:
    await client.start(work.call())
    (claimed,) = await rig.claim()
    await inside(client, claimed).add(work.map([1, 2]))
    await inside(client, claimed).add(work.map([1, 2]))
    with pytest.raises(FlowError, match="has added something else before"):
        await inside(client, claimed).add(work.map([1, 2, 3]))
    assert numbers_of(await rig.claim()) == [1, 2]


async def test_what_was_added_may_wait_for_what_has_failed(client: Client, rig: Rig) -> None:
    run = await client.start(chain(work.call(), work.s()))
    (adder,) = await rig.claim()
    flow = inside(client, adder)
    bad = await flow.add(work.call(1))
    (claimed,) = await rig.claim()
    await rig.settle(failed(claimed))
    await flow.add(work.call(2), after=[bad])
    await rig.settle(done(adder))
    status = await run.status()
    assert (status.state, status.skipped) == (FlowState.FAILED, 2)


async def test_two_who_run_a_failed_part_again_are_told_apart(client: Client, rig: Rig) -> None:
    run = await client.start(chain(work.call(), work.s()))
    (claimed,) = await rig.claim()
    await rig.settle(failed(claimed))
    args = ["token", run.id, 0, 1, b"\x92\x00\x00"]
    store = client.flows
    await rig.redis.hset(keys.flow(run.id), "again", "another")
    assert await store.call("flow_reset", run.id, ["token", run.id]) == 0
    assert await store.call("flow_again", run.id, [*args, "failed", 0], QUEUE) == 0
    assert await run.retry() == 2
    assert numbers_of(await rig.claim()) == [0]
    assert await store.call("flow_again", run.id, [*args, "failed", 0], QUEUE) == 0


async def test_deadline_is_where_the_flow_stands(client: Client, rig: Rig) -> None:
    flow = Flow("f", deadline=1000)
    flow.add(work.call())
    run = await client.start(flow)
    (claimed,) = await rig.claim()
    await rig.due(f"flow:{run.id}")
    assert await rig.claim() == [], "it is not due yet: the score was set by somebody else"
    await rig.redis.hset(keys.flow(run.id), "deadline", 1)
    await rig.due(f"flow:{run.id}")
    await rig.claim()
    await rig.settle(done(claimed))
    assert (await run.status()).state is FlowState.EXPIRED


async def test_full_redis_starts_no_flow_and_holds_none_up(chaos_servers: ChaosServers) -> None:
    async with (
        runner.connect(chaos_servers.redis_url) as client,
        raw(chaos_servers.redis_url) as redis,
    ):
        rig = Rig(redis)
        run = await client.start(chord(work.map(range(3)), join.s()))
        claims = await rig.claim(10)
        await redis.config_set("maxmemory", 1)
        with pytest.raises(RedisOutOfMemory, match="left as it was"):
            await client.start(chord(work.map(range(3)), join.s()))
        assert await rig.settle(*map(done, claims)) == [1, 1, 1]
        status = await run.status()
        assert (status.succeeded, status.queued, status.problem) == (3, 1, "")
        await redis.config_set("maxmemory", 0)
        (last,) = await rig.claim()
        await rig.settle(done(last))
        assert (await run.status()).state is FlowState.SUCCEEDED


def test_ids_of_jobs_name_flow_and_number() -> None:
    assert job_id_of("{q}abc", 7) == "flow:{q}abc:7"
