"""Random flows with random failures on real workers end as the reference says."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runner
from runner import Context, Flow, FlowState, NodeState, keys, task
from runner.workflow.graph import interpret
from tests.engine import serving
from tests.support import run_apart

if TYPE_CHECKING:
    from runner import Client

EXAMPLES = int(os.environ.get("EXAMPLES", "60"))

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.lasting_keys("runner:held:*", "runner:units", "runner:writer"),
]

Plan = list[dict[str, Any]]


@task
async def work(ctx: Context, name: str, *, fails: bool, parts: list[Any] | None = None) -> str:
    """Note when it ran, and with what; give way to others as often as its name says."""
    ctx["ran"].append((ctx.job_id.rpartition(":")[0], name, parts))
    for _ in range(len(name) % 3):
        await asyncio.sleep(0)
    if fails and ctx.flow.id not in ctx.get("mended", ()):
        raise ValueError(name)
    return name


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw nodes that wait for earlier ones, some of which fail, go on, or have a fallback."""
    nodes: Plan = []
    for number in range(draw(st.integers(1, 14))):
        earlier = st.sets(st.integers(0, number - 1), max_size=5) if number else st.just(set())
        nodes.append(
            {
                "name": f"n{number}",
                "after": sorted(draw(earlier)),
                "fails": draw(st.integers(0, 3)) == 0,
                "goes_on": draw(st.integers(0, 3)) == 0,
                "fallback": draw(st.sampled_from([None, None, None, "works", "fails"])),
            }
        )
    return nodes


def flow_of_plan(plan: Plan) -> Flow:
    flow = Flow("random", keep_result=60)
    added: list[Any] = []
    for each in plan:
        parents = [added[number] for number in each["after"]]
        parts = [parent.result for parent in parents]
        fallback = each["fallback"]
        added.append(
            flow.add(
                work.call(each["name"], fails=each["fails"], parts=parts),
                name=each["name"],
                after=parents,
                on_failure="continue" if each["goes_on"] else None,
                fallback=fallback
                and work.call(f"{each['name']}:fallback", fails=fallback == "fails"),
            )
        )
    return flow


def fails_of(plan: Plan) -> set[str]:
    failing = {each["name"] for each in plan if each["fails"]}
    return failing | {f"{e['name']}:fallback" for e in plan if e["fallback"] == "fails"}


async def check(client: Client, plan: Plan, ran: list[Any]) -> None:
    flow = flow_of_plan(plan)
    fails = fails_of(plan)
    reference = interpret(flow.graph(), lambda name: name not in fails)
    run = await client.start(flow)
    status = await run.wait(timeout=30)
    assert status.state is reference.state
    assert {n.name: n.state for n in await run.nodes()} == reference.final()
    mine = [(name, parts) for job, name, parts in ran if job == f"flow:{run.id}"]
    names = [name for name, _ in mine]
    ended = {NodeState.SUCCEEDED, NodeState.FAILED}
    assert sorted(names) == sorted(n for n, s in reference.final().items() if s in ended)
    assert len(set(names)) == len(names), "nothing ran twice"
    value = {e["name"]: value_of(e) for e in plan}
    for name, parts in mine:
        parents = flow.graph().nodes[name].after
        for parent in parents:
            assert names.index(parent) < names.index(name), "a node runs after its parents"
        if parts is not None:
            assert parts == [value[parent] for parent in parents]
    if status.state is FlowState.SUCCEEDED:
        expected = {name: value[name] for name in flow.graph().sinks()}
        assert await run.result(timeout=1) == expected


@pytest.mark.parametrize("ends", ["fails fast", "is cancelled"])
def test_flows_that_are_stopped_end(redis_url: str, ends: str) -> None:
    @settings(max_examples=max(EXAMPLES // 3, 5), deadline=None)
    @given(st.lists(plans(), min_size=1, max_size=6), st.integers(0, 6))
    def example(flows: list[Plan], turns: int) -> None:
        run_apart(stopped(redis_url, flows, turns, cancels=ends == "is cancelled"))

    example()


async def stopped(url: str, flows: list[Plan], turns: int, *, cancels: bool) -> None:
    ran: list[Any] = []
    async with runner.connect(url) as client, serving(url, [work], ctx={"ran": ran}):
        await asyncio.gather(
            *(check_stopped(client, plan, ran, turns, cancels=cancels) for plan in flows)
        )
        assert await client.zcard(keys.DEFAULT_QUEUE) == 0


async def check_stopped(
    client: Client, plan: Plan, ran: list[Any], turns: int, *, cancels: bool
) -> None:
    """See that a flow ends, whenever it is stopped, and that no node ran that could not."""
    flow = flow_of_plan(plan)
    flow.fail_fast = not cancels
    run = await client.start(flow)
    for _ in range(turns):
        await asyncio.sleep(0)
    was_stopped = cancels and await run.cancel()
    status = await run.wait(timeout=30)
    states = {each.name: each.state for each in await run.nodes()}
    names = [name for job, name, _ in ran if job == f"flow:{run.id}"]
    ended = {NodeState.SUCCEEDED, NodeState.FAILED}
    assert sorted(names) == sorted(n for n, state in states.items() if state in ended)
    assert len(set(names)) == len(names)
    graph = flow.graph()
    assert all(states[parent] in ended for name in names for parent in graph.nodes[name].after)
    fatal = [
        each["name"]
        for each in plan
        if states[each["name"]] is NodeState.FAILED
        and not each["goes_on"]
        and states.get(f"{each['name']}:fallback") is not NodeState.SUCCEEDED
    ]
    if was_stopped:
        assert status.state is FlowState.CANCELLED
    else:
        assert status.state is (FlowState.FAILED if fatal else FlowState.SUCCEEDED)


def test_failed_parts_run_again_to_a_good_end(redis_url: str) -> None:
    @settings(max_examples=max(EXAMPLES // 3, 5), deadline=None)
    @given(st.lists(plans(), min_size=1, max_size=6))
    def example(flows: list[Plan]) -> None:
        run_apart(mended(redis_url, flows))

    example()


async def mended(url: str, flows: list[Plan]) -> None:
    ctx: dict[str, Any] = {"ran": [], "mended": set()}
    async with runner.connect(url) as client, serving(url, [work], ctx=ctx):
        await asyncio.gather(*(check_again(client, plan, ctx) for plan in flows))


async def check_again(client: Client, plan: Plan, ctx: dict[str, Any]) -> None:
    """See that another run runs what did not succeed, once, and leaves the rest alone."""
    run = await client.start(flow_of_plan(plan))
    status = await run.wait(timeout=30)
    before = {each.name: each.state for each in await run.nodes()}
    ctx["mended"].add(run.id)
    again = {each["name"] for each in plan if is_to_run_again(each, before)}
    assert await run.retry() == len(again)
    assert bool(again) == (status.state is FlowState.FAILED)
    status = await run.wait(timeout=30)
    assert status.state is FlowState.SUCCEEDED
    after = {each.name: each.state for each in await run.nodes()}
    for each in plan:
        name = each["name"]
        assert after[name] is (NodeState.SUCCEEDED if name in again else before[name])
        runs = [ran for job, ran, _ in ctx["ran"] if job == f"flow:{run.id}" and ran == name]
        assert len(runs) == (before[name] is not NodeState.SKIPPED) + (name in again)
    assert status.succeeded == sum(s is NodeState.SUCCEEDED for s in after.values())
    assert status.failed == sum(s is NodeState.FAILED for s in after.values())
    assert (status.skipped, status.done) == (0, status.expected)


def is_to_run_again(each: dict[str, Any], states: dict[str, NodeState]) -> bool:
    if states[each["name"]] is NodeState.FAILED:
        return not each["goes_on"] and each["fallback"] != "works"
    return states[each["name"]] is NodeState.SKIPPED


def value_of(each: dict[str, Any]) -> str | None:
    """Return what those that take this node's result get."""
    if not each["fails"]:
        return str(each["name"])
    return f"{each['name']}:fallback" if each["fallback"] == "works" else None


def test_random_flows_end_as_the_reference_says(redis_url: str) -> None:
    many = st.lists(plans(), min_size=1, max_size=8)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(many, st.integers(1, 3), st.integers(1, 20))
    def example(flows: list[Plan], lanes: int, max_jobs: int) -> None:
        run_apart(several(redis_url, flows, lanes, max_jobs))

    example()


async def several(url: str, flows: list[Plan], lanes: int, max_jobs: int) -> None:
    ran: list[Any] = []
    given_: dict[str, Any] = {"ctx": {"ran": ran}, "lanes": lanes, "max_jobs": max_jobs}
    async with (
        runner.connect(url) as client,
        serving(url, [work], **given_),
        serving(url, [work], **given_),
    ):
        await asyncio.gather(*(check(client, plan, ran) for plan in flows))
