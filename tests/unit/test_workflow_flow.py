"""Writing flows down: chains, groups and chords become nodes, edges, and places for results."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from runner import Context, Flow, chain, chord, group, node, task
from runner.codec import MsgpackCodec
from runner.errors import ArgumentsError, EncodeError, FlowRefused
from runner.workflow.flow import flow_of
from runner.workflow.plan import (
    filled,
    numbers_in,
    plain_encoder,
    plan_of,
    ranges,
    read_tree,
    wire_tree,
)


@task
async def load(_ctx: Context, day: int) -> list[int]:
    return [day]


@task
async def total(_ctx: Context, parts: list[list[int]], *, scale: int = 1) -> int:
    return scale * sum(sum(part) for part in parts)


@task
async def show(_ctx: Context, value: int, title: str = "") -> str:
    return f"{title}{value}"


@task
async def merge(_ctx: Context, texts: list[str]) -> str:
    return "".join(texts)


@task
async def ping(_ctx: Context) -> None: ...


@task
async def report(_ctx: Context, facts: dict[str, Any]) -> None: ...


def edges(flow: Flow) -> dict[str, tuple[str, ...]]:
    return {each.node.name: each.node.after for each in flow.nodes()}


def holes(flow: Flow) -> dict[str, Any]:
    return {each.node.name: dict(each.holes) for each in flow.nodes() if each.holes}


def test_chord_waits_for_all_members_and_takes_the_list_of_their_results() -> None:
    flow = flow_of(chord(load.map([1, 2, 3]), total.s(scale=2)))
    names = ("load", "load-2", "load-3")
    assert edges(flow) == {"load": (), "load-2": (), "load-3": (), "total": names}
    assert holes(flow) == {"total": {("a", 0): names}}
    assert flow.returns == "total"
    call = flow.nodes()[-1].call
    assert call is not None
    assert call.args == (None,)


def test_chain_gives_each_step_the_result_before_it() -> None:
    flow = flow_of(chain(total.call([]), show.s("is "), ping.call()))
    assert edges(flow) == {"total": (), "show": ("total",), "ping": ("show",)}
    assert holes(flow) == {"show": {("a", 0): "total"}}


def test_call_that_lacks_its_first_argument_is_a_step() -> None:
    flow = flow_of(chain(total.call([]), show.call(title="is ")))  # type: ignore[call-arg]
    assert holes(flow) == {"show": {("a", 0): "total"}}


def test_step_cannot_be_first() -> None:
    with pytest.raises(ArgumentsError, match="no step before"):
        flow_of(chain(show.s(), ping.call()))


def test_parts_nest() -> None:
    inner = chord([chain(total.call([]), show.s()), show.call(1)], merge.s())
    then: Any = group(inner, ping.call())
    flow = flow_of(chain(group(load.call(1), load.call(2)), then))
    found = edges(flow)
    assert found["join"] == ("load", "load-2")
    assert found["total"] == found["ping"] == ("join",)
    assert found["merge"] == ("show", "show-2")
    assert holes(flow)["merge"] == {("a", 0): ("show", "show-2")}
    assert flow.returns == ("merge", "ping")


def test_groups_one_after_the_other_have_a_gate_between_them_and_not_a_product() -> None:
    flow = flow_of(chain(load.map(range(100)), load.map(range(100))))
    graph = flow.graph()
    assert len(graph.nodes) == 201
    assert sum(map(len, graph.children.values())) == 200


def test_empty_group_gives_an_empty_list() -> None:
    flow = flow_of(chain(ping.call(), load.map([]), total.s()))
    assert edges(flow) == {"ping": (), "total": ("ping",)}
    assert holes(flow) == {"total": {("a", 0): ()}}


def test_chunks_and_starmap() -> None:
    assert [c.args for c in load.starmap([(1,), (2,)]).members] == [(1,), (2,)]
    chunks = total.chunks([[1], [2], [3]], 2)
    assert [call.args for call in chunks.members] == [([[1], [2]],), ([[3]],)]
    with pytest.raises(ArgumentsError, match="size"):
        total.chunks([], 0)


def test_flow_connects_what_it_is_told_to() -> None:
    flow = Flow("month-end", on_error=report.s(), on_complete=ping.call())
    days = flow.add(load.map([1, 2]))
    ranked = flow.add(total.call(days.result), after=[days], name="rank")
    flow.add(show.call(ranked.result, title="x"), after="rank")
    assert edges(flow) == {
        "load": (),
        "load-2": (),
        "rank": ("load", "load-2"),
        "show": ("rank",),
        "on_error": (),
        "on_complete": (),
    }
    assert flow.graph().sinks() == ["show"]


def test_step_takes_the_results_of_what_it_comes_after() -> None:
    flow = Flow()
    days = flow.add(load.map([1, 2]))
    one = flow.add(total.s(), after=days)
    two = flow.add(total.call([]), name="two")
    flow.add(merge.s(), after=[one, "two"])
    assert holes(flow) == {
        "total": {("a", 0): ("load", "load-2")},
        "merge": {("a", 0): ("total", "two")},
    }
    assert two.name == "two"


def test_results_are_found_inside_of_lists_and_dicts() -> None:
    flow = Flow()
    one = flow.add(total.call([]))
    two = flow.add(total.call([]))
    flow.add(report.call({"both": [one.result, {"two": two.result}], "n": 1}), after=[one, two])
    assert holes(flow)["report"] == {
        ("a", 0, "both", 0): "total",
        ("a", 0, "both", 1, "two"): "total-2",
    }


def test_result_of_a_node_that_is_not_before_is_refused() -> None:
    flow = Flow("f")
    one = flow.add(total.call([]))
    flow.add(show.call(one.result))
    with pytest.raises(FlowRefused, match="'show' takes the result of 'total'"):
        flow.graph()


def test_parts_of_another_flow_are_refused() -> None:
    other = Flow("other").add(total.call([]))
    with pytest.raises(FlowRefused, match="another flow"):
        Flow().add(show.call(other.result))
    with pytest.raises(FlowRefused, match="another flow"):
        Flow().add(ping.call(), after=[other])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"name": ""}, "name"),
        ({"retries": -1}, "retries"),
        ({"retries": True}, "retries"),
        ({"timeout": 0}, "timeout"),
        ({"on_failure": "ignore"}, "on_failure"),
        ({"release_after": "now"}, "release_after"),
        ({"fallback": ping}, "fallback"),
        ({"fallback": ping.call(), "release_after": "submitted"}, "fallback"),
        ({"after": [3]}, "after takes"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ArgumentsError, match=why):
        Flow().add(ping.call(), **options)


@pytest.mark.parametrize("option", [{"key": "k"}, {"max_length": 5}])
def test_options_of_a_lone_job_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ArgumentsError, match="a node of a flow takes no"):
        Flow().add(ping.options(**option).call())


@pytest.mark.parametrize("given", [{"deadline": 0}, {"keep_result": -1}, {"on_error": ping}])
def test_flow_whose_settings_make_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentsError):
        Flow(**given)


def test_name_is_for_one_call() -> None:
    with pytest.raises(ArgumentsError, match="several"):
        Flow().add(load.map([1, 2]), name="x")


@pytest.mark.parametrize(
    ("compose", "parts"), [(chain, ()), (group, (1,)), (group, ([1],)), (chord, ([3], ping.call()))]
)
def test_what_is_no_part_is_refused(compose: Any, parts: tuple[Any, ...]) -> None:
    with pytest.raises(ArgumentsError):
        compose(*parts)


def test_inner_options_go_before_outer_ones() -> None:
    flow = Flow()
    flow.add(group(node(load.call(1), retries=1), load.call(2)), retries=5, queue="q")
    assert [(n.options.retries, n.options.queue) for n in flow.nodes()] == [(1, "q"), (5, "q")]


def test_fallback_is_a_node_of_its_own() -> None:
    flow = Flow()
    flow.add(chain(total.call([]), node(show.s(), fallback=show.s("instead "))))
    assert flow.graph().fallbacks == {"show": "show:fallback"}
    assert holes(flow)["show:fallback"] == {("a", 0): "total"}


@pytest.mark.parametrize("dumps", [MsgpackCodec().dumps, pickle.dumps])
def test_reference_does_not_travel_outside_of_a_flow(dumps: Any) -> None:
    added = Flow().add(total.call([]))
    with pytest.raises((EncodeError, TypeError), match=r"Reference|result of another"):
        dumps({"a": [added.result]})


@pytest.mark.parametrize(
    ("numbers", "found"),
    [([], []), ([3], [3, 3]), ([1, 2, 3, 7, 9, 8], [1, 3, 7, 9]), ([5, 5], [5, 5])],
)
def test_ranges(numbers: list[int], found: list[int]) -> None:
    assert ranges(numbers) == found


@pytest.mark.parametrize(
    ("tree", "wired"),
    [
        ("n4", 4),
        ((), []),
        (("n1", "n2"), [1, 2]),
        (tuple(f"n{i}" for i in range(10)), [["..", 0, 9]]),
        (("n9", ("n1", "n2", "n3"), "n4", "n5", "n6"), [9, [["..", 1, 3]], ["..", 4, 6]]),
    ],
)
def test_tree_travels_short_and_comes_back(tree: Any, wired: Any) -> None:
    numbers = {f"n{i}": i for i in range(10)}
    assert wire_tree(tree, numbers) == wired
    back = read_tree(wired)
    assert filled(back, {i: f"n{i}" for i in range(10)}) == _as_lists(tree)
    assert set(numbers_in(back)) <= set(range(10))


def _as_lists(tree: Any) -> Any:
    return tree if isinstance(tree, str) else [_as_lists(each) for each in tree]


def plan(flow: Flow) -> Any:
    return plan_of(flow, "f", encode=plain_encoder(MsgpackCodec()), queue="q", now_ms=1)


def test_callback_of_ten_thousand_carries_no_list_of_them() -> None:
    made = plan(flow_of(chord(load.map(range(10_000)), total.s())))
    assert len(made.entries) == 10_001
    assert max(len(entry.payload) + len(entry.plan) for entry in made.entries) < 200


def test_payload_says_what_the_node_asks_for() -> None:
    flow = Flow()
    flow.add(load.options(expires=5).call(1), retries=2, timeout=7)
    (entry,) = plan(flow).entries
    fields = MsgpackCodec().loads(entry.payload)
    assert fields["x"] == {"timeout": 7, "retries": 2, "within": 5}


def test_delays_are_counted_from_when_the_node_is_ready() -> None:
    flow = Flow()
    flow.add(ping.options(delay=30).call())
    flow.add(ping.options(at=datetime(2030, 1, 1, tzinfo=UTC)).call())
    assert plan(flow).delay_ms == 1_893_456_000_000 - 1


def month_end() -> Flow:
    flow = Flow("month-end", deadline=60, on_error=report.s(), on_complete=ping.call())
    days = flow.add(load.map([1, 2]), retries=3, on_failure="continue")
    flow.add(
        node(total.call(days.result, scale=2), fallback=total.call([])), after=[days], name="rank"
    )
    at = datetime(2030, 1, 1, tzinfo=UTC)
    flow.add(chain(show.options(delay=5).call(1), merge.options(at=at).call([])), queue="slow")
    inner = Flow("inner")
    inner.add(group(ping.call(), ping.call()))
    outer = flow.add(inner, after=days)
    flow.add(show.call(7, title="end"), after=outer, release_after="submitted", timeout=2)
    return flow


def test_definition_comes_back_from_plain_data() -> None:
    flow = month_end()
    data = json.loads(json.dumps(flow.to_dict()))
    found = Flow.from_dict(data, [load, total, show, merge, ping, report])
    assert found.to_dict() == flow.to_dict()
    assert found.to_mermaid() == flow.to_mermaid()
    encode = plain_encoder(MsgpackCodec())
    plans = [plan_of(f, "x", encode=encode, queue="q", now_ms=1) for f in (flow, found)]
    assert plans[0] == plans[1], "it runs as the one that was written down"
    found.add(ping.call())
    assert "ping" in edges(found)
    inner = Flow("inner")
    inner.add(ping.call())
    found.add(inner)
    assert "inner-2/ping" in edges(found), "a name that is taken is not taken twice"
    outer = Flow("outer")
    assert flow_of(chain(Flow.from_dict(bare().to_dict(), [load]), ping.call())).returns == "ping"
    outer.add(Flow.from_dict(bare().to_dict(), [load]), fallback=load.call(0))
    assert len(outer) == 2


def bare() -> Flow:
    flow = Flow("bare")
    flow.add(load.call(1), fallback=load.call(2))
    return flow


def test_task_that_is_not_there_is_named_with_its_node() -> None:
    with pytest.raises(FlowRefused, match="no task 'total' for 'rank'") as refused:
        Flow.from_dict(month_end().to_dict(), [load, show, merge, ping, report])
    assert refused.value.path == ("rank", "total")


@pytest.mark.parametrize(
    "data", [{}, {"version": 2}, {**Flow("f").to_dict(), "nodes": [{}]}, {"version": 1}]
)
def test_what_is_no_definition_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(FlowRefused, match="definition"):
        Flow.from_dict(data, [load])
