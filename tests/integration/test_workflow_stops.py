"""Flows that are stopped, kept, forgotten and run again: what must happen to all of their parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import Context, Flow, FlowState, NodeState, broker, chain, group, keys, node, task
from runner.broker import Settlement
from runner.codec import MsgpackCodec, ResultRecord, decode_job, encode_result
from runner.errors import FlowError, FlowFailed
from runner.retry import RetryPolicy
from runner.workflow.inside import JobFlow, WaitForFlow, filled_arguments
from runner.workflow.plan import job_id_of
from tests.engine import Gate, Rig, done, raw, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client
    from runner.broker import Claimed
    from runner.composition import Group

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys("runner:held:*", "runner:units", "runner:writer"),
]

QUEUE = keys.DEFAULT_QUEUE
DAY_MS = 24 * 3600 * 1000


@task
async def work(_ctx: Context, number: int = 0) -> int:
    return number


@task
async def hold(ctx: Context, name: str = "") -> str:
    await ctx["gate"](name)
    return name


@task
async def wait_for_hold(ctx: Context, name: str) -> str:
    return f"waited for {await ctx.flow.wait(hold.call(name))}"


@task
async def tell(_ctx: Context, facts: dict[str, Any] | None = None) -> None: ...


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as client:
        yield client


@pytest.fixture
async def rig(redis_url: str) -> AsyncIterator[Rig]:
    async with raw(redis_url) as redis:
        yield Rig(redis)


def number_of(claimed: Claimed) -> int:
    return int(claimed.job_id.rpartition(":")[2])


def numbers_of(claims: list[Claimed]) -> list[int]:
    return sorted(map(number_of, claims))


def failed(claimed: Claimed, result: bytes = b"no") -> Settlement:
    return Settlement(claimed=claimed, mode="done", counter="failed", result=result, keep_ms=1000)


def back(claimed: Claimed, extra: str, mode: Any = "back") -> Settlement:
    return Settlement(claimed=claimed, mode=mode, counter="", extra=extra)


def inside(client: Client, claimed: Claimed) -> JobFlow:
    assert claimed.payload is not None
    record = decode_job(MsgpackCodec(), claimed.payload, job_id=claimed.job_id)
    return JobFlow(client.flows, claimed, record.enqueued_ms)


async def lifetimes(rig: Rig, pattern: str) -> list[int]:
    """Return for how many ms each key lives; there is one at least."""
    found = [await rig.redis.pttl(key) async for key in rig.redis.scan_iter(pattern)]
    assert found, f"there is no key {pattern}"
    return found


@pytest.mark.parametrize("mode", ["back", "again"])
async def test_node_of_a_cancelled_flow_is_not_tried_again(
    client: Client, rig: Rig, mode: str
) -> None:
    run = await client.start(chain(work.call(), work.s()))
    (claimed,) = await rig.claim()
    await run.cancel()
    await rig.claim()  # nothing stands in the queue, and what runs goes on
    assert await rig.settle(back(claimed, "3600000", mode)) == [1]
    status = await run.status()
    assert (status.state, status.cancelled) == (FlowState.CANCELLED, 1)
    assert await rig.ids() == set()
    assert not await rig.redis.exists(keys.job(claimed.job_id))


async def test_node_that_loses_its_worker_is_not_run_again_in_a_cancelled_flow(
    client: Client, rig: Rig
) -> None:
    run = await client.start(chain(work.call(), work.s()))
    (claimed,) = await rig.claim()
    await run.cancel()
    await rig.claim()
    await rig.lapse(claimed)
    assert await rig.claim() == []
    assert (await run.status()).state is FlowState.CANCELLED
    assert await rig.ids() == set()


async def test_first_failure_is_told_also_when_it_stops_the_flow(client: Client, rig: Rig) -> None:
    flow = Flow("f", fail_fast=True, on_failure=tell.call(), on_error=tell.call())
    flow.add(work.call(1))
    flow.add(work.options(delay=1000).call(2))
    run = await client.start(flow)
    (claimed,) = await rig.claim()
    await rig.settle(failed(claimed))
    claims = [*await rig.claim(), *await rig.claim()]
    assert (await run.status()).state is FlowState.FAILED
    assert numbers_of(claims) == [2, 3], "both callbacks run, each once"
    await rig.settle(*map(done, claims))
    assert await rig.ids() == set()


@pytest.mark.parametrize("snoozes", [True, False], ids=["waits in its queue", "still runs"])
async def test_flow_that_a_node_waits_for_is_cancelled_with_it(
    client: Client, rig: Rig, *, snoozes: bool
) -> None:
    run = await client.start(chain(work.call(), work.s()))
    (claimed,) = await rig.claim()
    with pytest.raises(WaitForFlow) as waits:
        await inside(client, claimed).wait(group(work.call(1), work.options(delay=1000).call(2)))
    awaited = client.flow(waits.value.flow_id)
    (under_way,) = await rig.claim()
    pause = back(claimed, f"60000 {awaited.id}")
    if snoozes:
        await rig.settle(pause)
    await run.cancel()
    for _ in range(3):
        await rig.claim()
    if not snoozes:
        await rig.settle(pause)
    await rig.settle(done(under_way))
    assert (await awaited.status()).state is FlowState.CANCELLED
    assert (await run.status()).state is FlowState.CANCELLED
    assert await rig.ids() == set()


async def test_cancelled_flow_runs_again_with_what_its_nodes_wait_for(
    redis_url: str, client: Client
) -> None:
    gate = Gate()
    tasks: list[Any] = [hold, wait_for_hold, work]
    async with serving(redis_url, tasks, ctx={"gate": gate}, allow_abort_jobs=True):
        run = await client.start(wait_for_hold.call("x"))
        await gate.runs.wait()
        await run.cancel()
        assert (await run.wait(timeout=20)).state is FlowState.CANCELLED

        async def is_idle() -> bool:
            return bool(await client.zcard(QUEUE) == 0)

        await wait_until(is_idle, description="the flow it waited for is cancelled too")
        assert gate.passed == []
        gate.opens.set()
        assert await run.retry() == 1
        assert await run.result(timeout=20) == "waited for x"
    assert gate.passed == ["x"]


async def test_flow_is_kept_as_long_as_its_next_node_is_delayed(client: Client, rig: Rig) -> None:
    later = work.options(delay=90 * 24 * 3600).s()
    await client.start(chain(work.call(), later))
    (claimed,) = await rig.claim()
    for key in [key async for key in rig.redis.scan_iter("runner:flow:*")]:
        await rig.redis.pexpire(key, 70 * DAY_MS)  # so much is left after fifty days
    await rig.settle(done(claimed))
    assert min(await lifetimes(rig, "runner:flow:*")) > 90 * DAY_MS
    assert min(await lifetimes(rig, "arq:job:*")) > 90 * DAY_MS


async def test_flow_is_kept_as_long_as_a_node_puts_itself_off(client: Client, rig: Rig) -> None:
    await client.start(chain(work.call(), work.s()))
    (claimed,) = await rig.claim()
    await rig.settle(back(claimed, str(90 * DAY_MS)))
    assert min(await lifetimes(rig, "runner:flow:*")) > 90 * DAY_MS
    assert min(await lifetimes(rig, "arq:job:*")) > 90 * DAY_MS


async def test_flow_is_kept_as_long_as_what_was_added_is_delayed(client: Client, rig: Rig) -> None:
    await client.start(chain(work.call(), work.s()))
    (claimed,) = await rig.claim()
    flow = inside(client, claimed)
    await flow.add(work.options(delay=90 * 24 * 3600).call(1))
    await flow.add(work.call(2))
    assert min(await lifetimes(rig, "runner:flow:*")) > 90 * DAY_MS


async def test_flow_that_has_expired_leaves_nothing_in_its_queue(client: Client, rig: Rig) -> None:
    run = await client.start(work.options(delay=1000).call())
    score = await rig.redis.zscore(QUEUE, f"flow:{run.id}")
    assert score < await rig.server_ms() + keys.KEEP_MS + DAY_MS, "it is looked at then"
    for key in [key async for key in rig.redis.scan_iter("runner:flow:*")]:
        await rig.redis.delete(key)
    await rig.due(f"flow:{run.id}")
    assert await rig.claim() == []
    assert f"flow:{run.id}" not in await rig.ids()


async def test_flow_without_news_stays_in_its_queue(client: Client, rig: Rig) -> None:
    run = await client.start(work.options(delay=1000).call())
    await rig.due(f"flow:{run.id}")
    assert await rig.claim() == []
    score = await rig.redis.zscore(QUEUE, f"flow:{run.id}")
    assert score > await rig.server_ms() + keys.KEEP_MS - DAY_MS


async def test_callback_that_an_earlier_end_has_queued_holds_no_flow_up(
    client: Client, rig: Rig
) -> None:
    flow = Flow("f", on_complete=tell.call(), keep_result=5)
    flow.add(work.call(1))
    run = await client.start(flow)
    (claimed,) = await rig.claim()
    await rig.settle(failed(claimed))
    (callback,) = await rig.claim()
    assert await run.retry() == 1  # as the callback may do itself
    (claimed,) = await rig.claim()
    await rig.settle(done(callback))
    await rig.settle(done(claimed))
    (callback,) = await rig.claim()
    await rig.settle(done(callback))
    assert (await run.status()).state is FlowState.SUCCEEDED
    assert max(await lifetimes(rig, "runner:flow:*")) <= 5000


async def test_what_many_wait_for_stays_small(client: Client, rig: Rig) -> None:
    run = await client.start(chain(work.call(), work.s()))
    (claimed,) = await rig.claim()
    flow = inside(client, claimed)
    first = await flow.add(work.call(1), name="first")
    await flow.add(work.map(range(2000)), after=[first])
    plan = await rig.redis.hget(f"{keys.flow(run.id)}:plan", "2")
    assert len(plan) < 60, "its children are a range"
    await rig.settle(done(claimed))
    (claimed,) = await rig.claim()
    await rig.settle(done(claimed))
    claims: list[Claimed] = []
    while page := await rig.claim(500):
        claims += page
    assert numbers_of(claims) == list(range(3, 2003))
    await rig.settle(*map(done, claims))
    assert numbers_of(await rig.claim()) == [1]


async def test_nothing_is_added_by_an_empty_group(client: Client, rig: Rig) -> None:
    run = await client.start(work.call())
    (claimed,) = await rig.claim()
    flow = inside(client, claimed)
    first = await flow.add(work.call(1))
    empty: Group[int] = group()
    nothing = await flow.add(empty, after=[first])
    await flow.add(work.call(2), after=[nothing])
    await rig.settle(done(claimed))
    assert (await run.status()).total == 3


async def test_node_that_failed_after_it_let_others_start_gives_them_no_none(
    client: Client, rig: Rig
) -> None:
    run = await client.start(chain(work.call(), work.s()))
    (claimed,) = await rig.claim()
    record = ResultRecord(
        job_id=claimed.job_id,
        queue=QUEUE,
        task="work",
        args=(),
        kwargs={},
        attempt=1,
        enqueued_ms=1,
        started_ms=1,
        finished_ms=1,
        success=False,
        result=ValueError("refused"),
    )
    await rig.settle(failed(claimed, encode_result(MsgpackCodec(), record)))
    holes = [(("a", 0), 0)]
    for is_kept in (True, False):
        with pytest.raises(FlowError, match="failed after it had let others start"):
            await filled_arguments(
                client, MsgpackCodec(), job_id_of(run.id, 1), ((None,), {}), holes
            )
        if is_kept:
            await rig.redis.hdel(f"{keys.flow(run.id)}:results", "0")
    await rig.redis.hset(f"{keys.flow(run.id)}:states", "0", "s")
    with pytest.raises(FlowError, match="are gone from Redis"):
        await filled_arguments(client, MsgpackCodec(), job_id_of(run.id, 1), ((None,), {}), holes)


async def test_flow_that_expires_while_it_is_run_again_leaves_no_key(
    client: Client, rig: Rig
) -> None:
    run = await client.start(work.call())
    (claimed,) = await rig.claim()
    await rig.settle(failed(claimed))
    store = client.flows
    stored = store.stored

    async def expires(flow_id: str) -> Any:
        found = await stored(flow_id)
        async for key in rig.redis.scan_iter("runner:flow:*"):
            await rig.redis.delete(key)
        return found

    store.stored = expires  # type: ignore[method-assign]
    with pytest.raises(FlowError, match="there is no flow"):
        await store.run_again(run.id)
    assert [key async for key in rig.redis.scan_iter("runner:flow:*")] == []


async def test_flows_in_flows_run_as_one(redis_url: str, client: Client) -> None:
    month = Flow("month")
    loaded = month.add(group(work.call(1), work.call(2)))
    month.add(total.call(loaded.result), after=[loaded], name="sum")
    year = Flow("year")
    first = year.add(month, name="january")
    second = year.add(month, name="february", after=[first])
    year.add(total.call([first["sum"].result, second["sum"].result]), after=[first, second])
    async with serving(redis_url, [work, total, count]):
        run = await client.start(year)
        assert await run.result(timeout=20) == {"total": 6}
        names = [each.name for each in await run.nodes()]
        assert names[:3] == ["january/work", "january/work-2", "january/sum"]
        drawn = await run.to_mermaid()
        assert 'subgraph f0["january"]' in drawn
        assert 'n0["work"]:::succeeded' in drawn
        counted = await client.start(chain(group(month, month), count.s()))
        assert await counted.result(timeout=20) == [{"sum": 3}, {"sum": 3}]


@task
async def total(_ctx: Context, numbers: list[int]) -> int:
    return sum(numbers)


@task
async def count(_ctx: Context, results: list[dict[str, int]]) -> list[dict[str, int]]:
    return results


async def test_failure_in_a_nested_flow_is_named_with_its_path(
    redis_url: str, client: Client
) -> None:
    inner = Flow("inner")
    bad = inner.add(broken.call())
    inner.add(work.call(bad.result), after=[bad], name="then")
    outer = Flow("outer")
    outer.add(chain(inner, count_names.s()))
    recovers = Flow("recovers")
    recovers.add(chain(node(inner, on_failure="continue"), count_names.s()))
    async with serving(redis_url, [work, broken, count_names]):
        run = await client.start(outer)
        with pytest.raises(FlowFailed) as failure:
            await run.result(timeout=20)
        assert failure.value.failed == ("inner/broken",)
        states = {each.name: each.state for each in await run.nodes()}
        assert states["inner/then"] is NodeState.SKIPPED
        assert states["count_names"] is NodeState.SKIPPED
        run = await client.start(recovers)
        assert await run.result(timeout=20) == {"count_names": ["then"]}


@task
async def broken(_ctx: Context) -> int:
    raise ValueError("broken")


@task
async def count_names(_ctx: Context, results: dict[str, Any]) -> list[str]:
    return sorted(results)


async def test_report_leaves_out_what_a_fallback_stood_in_for(
    redis_url: str, client: Client
) -> None:
    flow = Flow("f", on_complete=list_failed.s())
    flow.add(broken.call(), name="mended", fallback=work.call(1))
    flow.add(broken.call(), name="ignored", on_failure="continue")
    async with serving(redis_url, [work, broken, list_failed]):
        run = await client.start(flow)
        assert await run.result(timeout=20) == {"mended": 1, "ignored": None}

        async def was_told() -> bool:
            return bool(await client.get("failed") == b"ignored")

        await wait_until(was_told, description="the callback got a report")


@task
async def list_failed(ctx: Context, facts: dict[str, Any]) -> None:
    names = ",".join(each["node"] for each in facts["failed"])
    await ctx.client.set("failed", names, ex=60)


async def test_result_that_was_too_large_is_not_taken_for_none(
    redis_url: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "MAX_RESULT_BYTES", 20_000)
    async with serving(redis_url, [work, large, count_names]):
        run: Any = await client.start(chain(large.call(), count_names.s()))
        with pytest.raises(FlowFailed, match="count_names") as failure:
            await run.result(timeout=20)
        assert "unable to keep result" in str(failure.value.__cause__)
        alone = await client.start(large.call())
        with pytest.raises(FlowError, match="unable to keep result"):
            await alone.result(timeout=20)


@task
async def large(_ctx: Context) -> dict[str, str]:
    return {"text": "x" * 30_000}


async def test_flow_that_was_cancelled_when_all_was_done_succeeds_in_another_run(
    client: Client, rig: Rig
) -> None:
    flow = Flow("f", on_success=tell.call())
    flow.add(work.call())
    run = await client.start(flow)
    (claimed,) = await rig.claim()
    await run.cancel()
    await rig.settle(done(claimed))
    assert (await run.status()).state is FlowState.CANCELLED
    assert await run.retry() == 0, "there is nothing to run"
    status = await run.status()
    assert (status.state, status.succeeded, status.done) == (FlowState.SUCCEEDED, 1, 1)
    assert numbers_of(await rig.claim()) == [1], "its success is told"
    assert await run.retry() == 0
    assert await rig.claim() == []


async def test_shortest_deadline_is_one(client: Client, rig: Rig) -> None:
    flow = Flow("f", deadline=0.000001)
    flow.add(work.options(delay=1000).call())
    run = await client.start(flow)

    async def has_expired() -> bool:
        await rig.claim()
        return (await run.status()).state is FlowState.EXPIRED

    await wait_until(has_expired, description="the deadline came")


@task(max_running=1, max_running_key="name")
async def one_of_each(ctx: Context, name: str) -> str:
    await ctx["gate"](name)
    return name


@task
async def name_of(_ctx: Context, number: int) -> str:
    return f"name {number}"


async def test_limit_of_each_key_takes_the_result_that_is_its_key(
    redis_url: str, client: Client
) -> None:
    gate = Gate()
    parts = [chain(name_of.call(number), one_of_each.s()) for number in (1, 2, 2)]
    tasks: list[Any] = [name_of, one_of_each]
    async with serving(redis_url, tasks, ctx={"gate": gate}):
        run = await client.start(group(*parts))

        async def buckets() -> set[tuple[Any, int, int]]:
            info = await client.limits.get("one_of_each.running")
            return {(each.value, each.used, each.parked) for each in info.buckets}

        async def is_full() -> bool:
            return await buckets() == {("name 1", 1, 0), ("name 2", 1, 1)}

        await gate.runs.wait()  # its worker has declared the limit
        await wait_until(is_full, description="each name has a slot")
        gate.opens.set()
        assert await run.result(timeout=20) == ["name 1", "name 2", "name 2"]
    assert sum(used + parked for _, used, parked in await buckets()) == 0


@task
async def wait_and_return(ctx: Context, number: int) -> int:
    return await ctx.flow.wait(work.call(number))


async def test_jobs_of_ids_that_are_alike_wait_for_flows_of_their_own(
    redis_url: str, client: Client
) -> None:
    ids = ["a:b", "a-b", "a b", "{a}b", *("x" * 200 + end for end in "yz")]
    calls = [wait_and_return.options(key=each).call(at) for at, each in enumerate(ids)]
    jobs = await client.enqueue_many(calls)
    async with serving(redis_url, [work, wait_and_return]):
        assert [await job.result(timeout=20) for job in jobs] == list(range(len(ids)))


async def test_job_that_waits_for_a_flow_has_started_before_it_expires(
    redis_url: str, client: Client
) -> None:
    gate = Gate()
    tasks: list[Any] = [hold, wait_for_hold]
    async with serving(redis_url, tasks, ctx={"gate": gate}):
        job = await client.enqueue(wait_for_hold.options(expires=3), "x")
        await gate.runs.wait()
        second_s = await seconds_of(client)

        async def is_late() -> bool:
            return await seconds_of(client) > second_s + 3

        await wait_until(is_late, description="its time to start is over")
        gate.opens.set()
        assert await job.result(timeout=20) == "waited for x"


async def seconds_of(client: Any) -> float:
    seconds, micros = await client.time()
    return float(seconds + micros / 1e6)


async def test_job_is_kept_as_long_as_the_flow_that_it_waits_for(client: Client, rig: Rig) -> None:
    job = await client.enqueue(wait_and_return, 1)
    (claimed,) = await rig.claim()
    with pytest.raises(WaitForFlow) as waits:
        await inside(client, claimed).wait(work.call(1))
    await rig.redis.pexpire(keys.job(job.job_id), 60_000)  # as a stock client may have it
    await rig.settle(back(claimed, f"60000 {waits.value.flow_id}"))
    assert min(await lifetimes(rig, keys.job(job.job_id))) > DAY_MS


async def test_cancelled_flow_is_taken_out_of_a_paused_queue_too(client: Client, rig: Rig) -> None:
    run = await client.start(work.map(range(700)))
    other = await client.enqueue(work, 1)
    await client.pause(queue=QUEUE)
    await run.cancel()
    for _ in range(3):
        assert await rig.claim() == []
    assert (await run.status()).state is FlowState.CANCELLED
    assert await rig.ids() == {other.job_id}
    await client.resume(queue=QUEUE)


@dataclass(frozen=True)
class Total:
    numbers: list[int]


@task
async def add_up(_ctx: Context, numbers: list[int]) -> Total:
    return Total(numbers)


@task
async def wait_for_total(ctx: Context) -> int:
    found = await ctx.flow.wait(chain(group(work.call(1), work.call(2)), add_up.s()))
    assert isinstance(found, Total), found
    return sum(found.numbers)


async def test_what_a_job_waited_for_is_of_the_type_that_its_task_returns(
    redis_url: str, client: Client
) -> None:
    async with serving(redis_url, [work, add_up, wait_for_total]):
        job = await client.enqueue(wait_for_total)
        assert await job.result(timeout=20) == 3


@task
async def count_runs(ctx: Context) -> int:
    return int(await ctx.client.incr("runs"))


@task
async def mended_later(ctx: Context) -> int:
    if await ctx.client.incr("tries") == 1:
        raise ValueError("not mended yet")
    return 40


@task(retries=2, backoff=RetryPolicy(base=0.01))
async def wait_twice(ctx: Context) -> list[int]:
    return await ctx.flow.wait(group(count_runs.call(), mended_later.call()))


async def test_another_try_runs_what_failed_of_the_flow_that_it_waits_for(
    redis_url: str, client: Client
) -> None:
    async with serving(redis_url, [count_runs, mended_later, wait_twice]):
        job = await client.enqueue(wait_twice)
        assert await job.result(timeout=20) == [1, 40]
    await client.expire("runs", 60)
    await client.expire("tries", 60)
