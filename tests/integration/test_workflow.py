"""Flows on real workers: order, results, failures, growth, cancelling, and running again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence  # noqa: TC003  an annotation that is looked at when jobs run
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import (
    Context,
    Flow,
    FlowState,
    NodeState,
    chain,
    chord,
    errors,
    group,
    keys,
    node,
    task,
)
from runner.errors import FlowError, FlowFailed, FlowNotFound, FlowRefused
from tests.engine import Gate, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys("runner:held:*", "runner:units", "runner:writer"),
]


@task
async def add(_ctx: Context, left: int, right: int = 1) -> int:
    return left + right


@task
async def total(_ctx: Context, numbers: Sequence[int | None]) -> int:
    return sum(number or 0 for number in numbers)


@task
async def fail(_ctx: Context, why: str = "broken") -> int:
    raise ValueError(why)


@task
async def flaky(ctx: Context) -> int:
    if not await ctx.client.exists("mended"):
        raise ValueError("not mended yet")
    return 40


@task(keep_result=0)
async def forgotten(_ctx: Context) -> int:
    return 7


@task
async def hold(ctx: Context, name: str = "") -> str:
    await ctx["gate"](name)
    return name


@task
async def note(ctx: Context, facts: dict[str, Any] | None = None) -> None:
    ctx["notes"].append(facts)


@task
async def grow(ctx: Context, count: int) -> int:
    parts = await ctx.flow.add(add.map(range(count)))
    summed = await ctx.flow.add(total.call(parts.result), after=[parts])
    await ctx.flow.add(keep.call(summed.result), after=[summed])
    if ctx.attempt == 1:
        raise runner.Retry(defer=0)
    return count


@task
async def keep(ctx: Context, value: int) -> None:
    ctx["notes"].append(value)


@task
async def wait_for(ctx: Context, numbers: list[int]) -> int:
    ctx["notes"].append(ctx.attempt)
    return 1000 + await ctx.flow.wait(chord(add.map(numbers), total.s()))


@task
async def wait_for_failure(ctx: Context) -> str:
    try:
        await ctx.flow.wait(fail.call())
    except FlowFailed as failed:
        return failed.state
    return "no"


TASKS: list[Any] = [
    *(add, total, fail, flaky, forgotten, hold, note, grow, keep, wait_for, wait_for_failure)
]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as client:
        yield client


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def notes() -> list[Any]:
    return []


@pytest.fixture
async def worker(redis_url: str, gate: Gate, notes: list[Any]) -> AsyncIterator[Any]:
    ctx = {"gate": gate, "notes": notes}
    async with serving(redis_url, TASKS, ctx=ctx, allow_abort_jobs=True, max_jobs=20) as worker:
        yield worker


async def states(run: Any) -> dict[str, NodeState]:
    return {each.name: each.state for each in await run.nodes()}


@pytest.mark.usefixtures("worker")
async def test_chain_hands_results_on(client: Client) -> None:
    run = await client.start(chain(add.call(1), add.s(10), add.s(100)))
    assert await run.result(timeout=20) == 112
    status = await run.status()
    assert (status.state, status.done, status.total) == (FlowState.SUCCEEDED, 3, 3)
    assert status.fraction == 1


@pytest.mark.usefixtures("worker")
async def test_chord_gets_the_results_in_the_order_of_its_members(client: Client) -> None:
    run = await client.start(chord(add.map(range(1500)), total.s()))
    assert await run.result(timeout=30) == sum(range(1501)) - 0
    again = client.flow(run.id)
    assert await again.result(timeout=1) == sum(range(1501))


@pytest.mark.usefixtures("worker")
async def test_group_returns_a_list_nested_as_it_is(client: Client) -> None:
    run = await client.start(group(group(add.call(1), add.call(2)), chain(add.call(3), add.s())))
    assert await run.result(timeout=20) == [[2, 3], 5]


@pytest.mark.usefixtures("worker")
async def test_groups_follow_each_other(client: Client) -> None:
    run = await client.start(chain(add.map(range(20)), group(total.s(), total.s()), total.s()))
    assert await run.result(timeout=20) == 2 * sum(range(21))


@pytest.mark.usefixtures("worker")
async def test_flow_returns_the_results_at_its_end_by_name(client: Client) -> None:
    flow = Flow("month-end")
    one = flow.add(add.call(1))
    two = flow.add(add.call(one.result, right=5), after=[one], name="two")
    flow.add(total.call([one.result, two.result]), after=[one, two])
    flow.add(add.call(0), after="two", name="side")
    run = await client.start(flow)
    assert await run.result(timeout=20) == {"total": 9, "side": 1}


@pytest.mark.usefixtures("worker")
async def test_result_that_is_not_kept_reaches_those_that_take_it(client: Client) -> None:
    run = await client.start(chain(forgotten.call(), add.s()))
    assert await run.result(timeout=20) == 8
    assert not await client.exists(keys.result(f"flow:{run.id}:0"))


@pytest.mark.usefixtures("worker")
async def test_failure_skips_what_comes_after_and_the_flow_says_why(client: Client) -> None:
    flow = Flow("f")
    bad = flow.add(fail.call("no such day"))
    flow.add(add.call(bad.result), after=[bad])
    flow.add(add.call(1), name="other")
    run = await client.start(flow)
    with pytest.raises(FlowFailed, match="failed at fail") as failed:
        await run.result(timeout=20)
    assert failed.value.failed == ("fail",)
    assert isinstance(failed.value.__cause__, errors.RemoteError)
    nodes = {each.name: each for each in await run.nodes()}
    assert nodes["fail"].error == "ValueError: no such day"
    assert nodes["add"].state is NodeState.SKIPPED
    assert nodes["other"].state is NodeState.SUCCEEDED


@pytest.mark.usefixtures("worker")
async def test_failure_that_does_not_matter_gives_none(client: Client) -> None:
    members = node(group(add.call(1), fail.call(), add.call(2)), on_failure="continue")
    run = await client.start(chord(members, total.s()))
    assert await run.result(timeout=20) == 5


@pytest.mark.usefixtures("worker")
async def test_fallback_stands_in(client: Client) -> None:
    run = await client.start(chain(node(fail.call(), fallback=add.call(1)), add.s(10)))
    assert await run.result(timeout=20) == 12
    assert await states(run) == {
        "fail": NodeState.FAILED,
        "fail:fallback": NodeState.SUCCEEDED,
        "add": NodeState.SUCCEEDED,
    }


@pytest.mark.usefixtures("worker")
async def test_node_has_retries_and_a_time_limit_of_its_own(client: Client) -> None:
    flow = Flow("f")
    flow.add(hold.call(), timeout=0.05, name="slow")
    flow.add(flaky.call(), retries=1000)
    run = await client.start(flow)
    await wait_until(
        lambda: client.get(keys.retry(f"flow:{run.id}:1")), description="it is tried again"
    )
    await client.set("mended", 1)
    status = await run.wait(timeout=20)
    assert status.state is FlowState.FAILED
    assert await states(run) == {"slow": NodeState.FAILED, "flaky": NodeState.SUCCEEDED}


@pytest.mark.usefixtures("worker")
async def test_callbacks_get_a_report(client: Client, notes: list[Any]) -> None:
    flow = Flow("f", on_success=note.call(), on_error=note.s(), on_complete=note.s())
    flow.add(fail.call())
    run = await client.start(flow)
    await run.wait(timeout=20)
    await wait_until(lambda: len(notes) == 2, description="both callbacks ran")
    error = [{"node": "fail", "error": "ValueError: broken"}]
    expected = {"flow": run.id, "name": "f", "state": "failed", "failed": error}
    assert notes == [expected, expected]
    assert (await states(run))["on_success"] is NodeState.SKIPPED


@pytest.mark.usefixtures("worker")
async def test_fail_fast_takes_out_what_waits(client: Client, gate: Gate) -> None:
    flow = Flow("f", fail_fast=True)
    flow.add(hold.call("a"))
    flow.add(add.options(delay=1000).call(1), name="later")
    flow.add(fail.call())
    run = await client.start(flow)
    status = await run.wait(timeout=20)  # the job that runs is aborted
    assert status.state is FlowState.FAILED
    assert (await states(run))["later"] is NodeState.CANCELLED
    assert gate.passed == []
    assert await client.zcard(keys.DEFAULT_QUEUE) == 0


@pytest.mark.usefixtures("worker")
async def test_cancelled_flow_starts_nothing_more(client: Client, gate: Gate) -> None:
    run = await client.start(chain(hold.call("a"), add.call(1)))
    await gate.runs.wait()
    assert await run.cancel()
    assert (await run.wait(timeout=20)).state is FlowState.CANCELLED
    assert not await run.cancel(), "it has ended"
    assert (await states(run))["add"] is NodeState.SKIPPED
    with pytest.raises(FlowFailed, match="was cancelled"):
        await run.result(timeout=1)


@pytest.mark.usefixtures("worker")
async def test_deadline_ends_a_flow(client: Client) -> None:
    flow = Flow("f", deadline=0.1)
    flow.add(add.options(delay=1000).call(1))
    run = await client.start(flow)
    with pytest.raises(FlowFailed, match="deadline"):
        await run.result(timeout=20)


@pytest.mark.usefixtures("worker")
async def test_failed_part_runs_again_with_the_results_there_are(
    client: Client, notes: list[Any]
) -> None:
    flow = Flow("f", on_complete=note.call())
    one = flow.add(add.call(1))
    bad = flow.add(flaky.call(), fallback=fail.call())
    flow.add(total.call([one.result, bad.result]), after=[one, bad])
    run = await client.start(flow)
    with pytest.raises(FlowFailed):
        await run.result(timeout=20)
    await client.set("mended", 1)
    assert await run.retry() == 2
    assert await run.result(timeout=20) == {"total": 42}
    assert await run.retry() == 0, "nothing is left to run"
    status = await run.status()
    assert (status.succeeded, status.failed, status.skipped) == (3, 0, 0)
    await wait_until(lambda: len(notes) == 2, description="its end was told twice")


@pytest.mark.usefixtures("worker")
async def test_flow_that_runs_is_not_run_again(client: Client, gate: Gate) -> None:
    run = await client.start(hold.call())
    with pytest.raises(FlowError, match="runs"):
        await run.retry()
    gate.opens.set()
    await run.result(timeout=20)


@pytest.mark.usefixtures("worker")
async def test_job_lets_its_flow_grow_once_however_often_it_runs(
    client: Client, notes: list[Any]
) -> None:
    flow = Flow("f")
    grown = flow.add(grow.call(5))
    flow.add(note.call({"end": True}), after=[grown])
    run = await client.start(flow)
    await run.result(timeout=20)
    assert notes == [15, {"end": True}], "what comes after waits for what was added"
    status = await run.status()
    assert (status.total, status.succeeded, status.done) == (9, 9, 9)
    assert len([n for n in await run.nodes() if n.task == "add"]) == 5


@pytest.mark.usefixtures("worker")
async def test_job_waits_for_a_flow_without_a_slot(client: Client, notes: list[Any]) -> None:
    job = await client.enqueue(wait_for, [1, 2, 3])
    assert await job.result(timeout=20) == 1009
    assert notes == [1, 1], "it ran twice, and no try was spent"


@pytest.mark.usefixtures("worker")
async def test_job_hears_of_the_failure_of_a_flow_it_waits_for(client: Client) -> None:
    job = await client.enqueue(wait_for_failure)
    assert await job.result(timeout=20) == "failed"


@pytest.mark.usefixtures("worker")
async def test_lone_job_has_no_flow_to_grow(client: Client) -> None:
    job = await client.enqueue(grow, 1)
    with pytest.raises(errors.RemoteError, match="is no node of a flow"):
        await job.result(timeout=20)


@pytest.mark.usefixtures("worker")
async def test_flow_of_one_id_is_started_once(client: Client) -> None:
    first = await client.start(add.call(1), flow_id="november")
    second = await client.start(add.call(1), flow_id="november")
    assert await first.result(timeout=20) == await second.result(timeout=20) == 2
    assert (await first.status()).started == (await second.status()).started


async def test_definition_that_makes_no_sense_starts_nothing(client: Client) -> None:
    flow = Flow("f")
    flow.add(add.call(1), after="b", name="a")
    flow.add(add.call(1), after="a", name="b")
    with pytest.raises(FlowRefused, match="wait for each other: "):
        await client.start(flow)
    assert await client.keys("*") == []


@pytest.mark.parametrize("flow_id", ["", "a:b", "a b", "{x", "x" * 201])
async def test_id_that_cannot_be_is_refused(client: Client, flow_id: str) -> None:
    with pytest.raises(FlowRefused, match="the id of a flow"):
        await client.start(add.call(1), flow_id=flow_id)


async def test_flow_that_is_not_there_is_not_found(client: Client) -> None:
    run = client.flow("nothing")
    for asked in (run.status, run.nodes, run.result, run.cancel, run.retry):
        with pytest.raises(FlowNotFound, match="nothing"):
            await asked()


async def test_starter_that_is_killed_leaves_nothing_that_runs(client: Client) -> None:
    store = client.flows
    await store._put("half", _entries(chord(add.map(range(700)), total.s())))
    assert await client.zcard(keys.DEFAULT_QUEUE) == 0
    left = [key async for key in client.scan_iter("*")]
    assert left
    for key in left:
        assert 0 < await client.pttl(key) <= 600_000
    with pytest.raises(FlowNotFound):
        await client.flow("half").status()


def _entries(part: Any) -> Any:
    from runner.codec import MsgpackCodec  # noqa: PLC0415
    from runner.workflow.flow import flow_of  # noqa: PLC0415
    from runner.workflow.plan import plain_encoder, plan_of  # noqa: PLC0415

    encode = plain_encoder(MsgpackCodec())
    return plan_of(flow_of(part), "half", encode=encode, queue="q", now_ms=1).entries


@pytest.mark.usefixtures("worker")
async def test_progress_ends_with_the_flow(client: Client, gate: Gate) -> None:
    run = await client.start(chain(add.call(1), hold.call("x")))
    assert (await run.progress).state is FlowState.RUNNING
    seen = []
    async for status in run.progress:
        seen.append(status)
        gate.opens.set()
    assert seen[-1].state is FlowState.SUCCEEDED
    assert [s.done for s in seen] == sorted(s.done for s in seen)


@pytest.mark.usefixtures("worker")
async def test_run_draws_itself_with_states(client: Client) -> None:
    run = await client.start(chain(fail.call(), add.call(1)))
    await run.wait(timeout=20)
    drawn = await run.to_mermaid()
    assert 'n0["fail"]:::failed' in drawn
    assert 'n1["add"]:::skipped' in drawn
    assert '"fail" -> "add"' in await run.to_dot()


async def test_ended_flow_expires(client: Client, worker: Any) -> None:
    flow = Flow("f", keep_result=5)
    flow.add(add.call(1))
    run = await client.start(flow)
    await run.result(timeout=20)
    left = [key async for key in client.scan_iter("runner:flow:*")]
    assert left
    for key in left:
        assert 0 < await client.pttl(key) <= 5000
    assert worker.jobs_complete == 1


async def test_nodes_run_in_the_queues_they_ask_for(
    redis_url: str, client: Client, notes: list[Any]
) -> None:
    flow = Flow("f")
    one = flow.add(add.call(1), queue="other")
    flow.add(keep.call(one.result), after=[one])
    other = serving(redis_url, TASKS, queue_name="other")
    here = serving(redis_url, TASKS, ctx={"notes": notes})
    async with other, here:
        run = await client.start(flow)
        await run.result(timeout=20)
    assert notes == [2]


async def test_flow_is_cancelled_where_its_jobs_are(redis_url: str, client: Client) -> None:
    flow = Flow("f")
    flow.add(add.options(delay=1000).call(1), queue="other")
    run = await client.start(flow)
    await run.cancel()
    async with serving(redis_url, TASKS, queue_name="other"):  # nobody reads the client's queue
        assert (await run.wait(timeout=20)).state is FlowState.CANCELLED


async def test_many_callers_wait_for_one_end(client: Client, worker: Any) -> None:
    del worker
    run = await client.start(chain(add.call(1), add.s()))
    others = [client.flow(run.id).result(timeout=20) for _ in range(20)]
    assert await asyncio.gather(*others) == [3] * 20


async def test_batch_grows_until_it_is_closed(
    client: Client, worker: Any, notes: list[Any]
) -> None:
    del worker
    async with await client.batch("import", on_success=note.s(), on_failure=note.call()) as batch:
        assert await batch.add(add.call(number) for number in range(1200)) == 1200
        await wait_until(lambda: succeeded(batch, 1200), description="they run while it is open")
        assert not (await batch.status()).has_ended
        await batch.add([add.call(1)])
    status = await batch.wait(timeout=20)
    assert (status.state, status.succeeded) == (FlowState.SUCCEEDED, 1201)
    await wait_until(lambda: notes, description="its success was told")
    assert [facts["name"] for facts in notes] == ["import"]
    with pytest.raises(FlowError, match="takes nothing more"):
        await batch.add([add.call(1)])
    assert not await batch.close(), "it was closed before"


async def succeeded(batch: Any, count: int) -> bool:
    return bool((await batch.status()).succeeded == count)


async def test_first_failure_of_a_batch_is_told_at_once(
    client: Client, worker: Any, notes: list[Any]
) -> None:
    del worker
    batch = await client.batch("import", on_failure=note.s(), on_complete=note.call({"over": 1}))
    await batch.add([fail.call(), fail.call(), add.call(1)])
    await wait_until(lambda: len(notes) == 1, description="the first failure was told")
    assert notes[0]["state"] == "running"
    await batch.close()
    status = await batch.wait(timeout=20)
    assert (status.state, status.succeeded, status.failed) == (FlowState.FAILED, 1, 2)
    await wait_until(lambda: len(notes) == 2, description="its end was told")
    assert notes[1] == {"over": 1}
    for key in [key async for key in client.scan_iter("runner:flow:*")]:
        assert 0 < await client.pttl(key) <= 3_600_000


async def test_batch_is_opened_once_and_may_be_empty(client: Client) -> None:
    first = await client.batch(batch_id="november")
    second = await client.batch(batch_id="november")
    assert await first.close()
    assert (await second.wait(timeout=5)).state is FlowState.SUCCEEDED
    with pytest.raises(FlowNotFound):
        await runner.Batch("nothing", client.flows, client._waiting_results()).close()


async def test_batch_can_be_cancelled_and_run_again(
    client: Client, worker: Any, gate: Gate
) -> None:
    del worker
    batch = await client.batch()
    await batch.add([hold.call("a"), add.options(delay=1000).call(1)])
    await gate.runs.wait()
    await batch.cancel()
    assert (await batch.wait(timeout=20)).state is FlowState.CANCELLED
    gate.opens.set()
    assert await batch.retry() == 3
    await wait_until(lambda: gate.passed == ["a"], description="the job ran again")
    await batch.add([add.call(1)])  # it was never closed
    await wait_until(lambda: succeeded(batch, 2), description="what was added ran")
    assert await batch.close()


async def test_flow_hears_of_jobs_that_are_taken_out_of_their_queue(client: Client) -> None:
    run = await client.start(chain(add.call(1), add.s()))
    await client.jobs.purge()
    assert (await run.wait(timeout=5)).state is FlowState.FAILED
    assert await states(run) == {"add": NodeState.FAILED, "add-2": NodeState.SKIPPED}
    assert await client.zcard(keys.DEFAULT_QUEUE) == 0


@task(max_running=2, rate="1000/s")
async def limited(ctx: Context, number: int) -> int:
    ctx["notes"].append(number)
    await asyncio.sleep(0)
    return number


async def test_limits_hold_for_nodes(redis_url: str, client: Client, notes: list[Any]) -> None:
    tasks: list[Any] = [*TASKS, limited]
    async with serving(redis_url, tasks, ctx={"notes": notes}, max_jobs=20):
        run = await client.start(chord(limited.map(range(50)), total.s()))
        assert await run.result(timeout=30) == sum(range(50))
    assert sorted(notes) == list(range(50))


@task
def in_a_thread(_ctx: Context, number: int, right: int = 0) -> int:
    return number + right


async def test_functions_in_threads_are_nodes_too(redis_url: str, client: Client) -> None:
    tasks: list[Any] = [*TASKS, in_a_thread]
    async with serving(redis_url, tasks):
        first = in_a_thread.call(1)

        run = await client.start(chain(first, in_a_thread.s(10), add.s(100)))
        assert await run.result(timeout=30) == 111
