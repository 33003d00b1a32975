"""Flows in flows: their nodes, what they wait for and return, and how they are drawn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import Context, Flow, chain, group, node, task
from runner.errors import ArgumentsError, FlowRefused
from runner.workflow.flow import flow_of
from runner.workflow.graph import FlowState, NodeState, interpret
from runner.workflow.plan import filled, numbers_in, read_tree, wire_tree


@task
async def load(_ctx: Context, day: int) -> int:
    return day


@task
async def rank(_ctx: Context, facts: Any) -> str:
    return str(facts)


@task
async def tell(_ctx: Context, facts: dict[str, Any]) -> None: ...


def month(days: int = 2) -> Flow:
    """Return a flow of some loads, and a rank behind them."""
    flow = Flow("month")
    loaded = flow.add(load.map(range(days)))
    flow.add(rank.call(loaded.result), after=[loaded], name="best")
    return flow


def edges(flow: Flow) -> dict[str, tuple[str, ...]]:
    return {each.node.name: each.node.after for each in flow.nodes()}


def holes(flow: Flow) -> dict[str, Any]:
    return {each.node.name: dict(each.holes) for each in flow.nodes() if each.holes}


def test_nodes_of_a_nested_flow_have_its_name_in_front() -> None:
    flow = Flow("year")
    first = flow.add(load.call(0), name="first")
    nested = flow.add(month(), after=[first])
    flow.add(rank.call(nested.result), after=[nested], name="last")
    assert edges(flow) == {
        "first": (),
        "month/load": ("first",),
        "month/load-2": ("first",),
        "month/best": ("month/load", "month/load-2"),
        "last": ("month/best",),
    }
    assert holes(flow) == {
        "month/best": {("a", 0): ("month/load", "month/load-2")},
        "last": {("a", 0): {"best": "month/best"}},
    }
    assert flow.graph().sinks() == ["last"]


def test_flows_are_steps_of_a_chain_and_members_of_a_group() -> None:
    flow = flow_of(chain(group(month(1), month(1)), rank.s(), month(1)))
    assert edges(flow) == {
        "month/load": (),
        "month/best": ("month/load",),
        "month-2/load": (),
        "month-2/best": ("month-2/load",),
        "rank": ("month/best", "month-2/best"),
        "month-3/load": ("rank",),
        "month-3/best": ("month-3/load",),
    }
    assert holes(flow)["rank"] == {("a", 0): ({"best": "month/best"}, {"best": "month-2/best"})}
    assert flow.returns == {"best": "month-3/best"}


def test_flows_nest_as_deep_as_one_likes() -> None:
    flow = month(1)
    for name in ("quarter", "year"):
        outer = Flow(name)
        outer.add(flow)
        flow = outer
    assert edges(flow) == {
        "quarter/month/load": (),
        "quarter/month/best": ("quarter/month/load",),
    }
    (first, _) = flow.nodes()
    assert first.node.within == ("quarter", "month")


def test_flow_is_taken_as_it_is_when_it_is_added() -> None:
    inner = month(1)
    outer = Flow("year")
    outer.add(inner, name="january")
    inner.add(load.call(9), name="late")
    outer.add(inner, name="february")
    assert "january/late" not in edges(outer)
    assert edges(outer)["february/late"] == ()


def test_one_gate_stands_between_many_and_a_flow_that_many_begin() -> None:
    flow = flow_of(chain(load.map(range(50)), month(50)))
    graph = flow.graph()
    assert edges(flow)["month/load"] == ("join",)
    assert sum(map(len, graph.children.values())) == 50 + 50 + 50


def test_parts_of_a_result_can_be_taken_by_name_and_place() -> None:
    flow = Flow("year")
    both = flow.add(group(month(1), load.call(5)))
    flow.add(rank.call(both[0]["best"].result), after=both[0]["best"], name="one")
    flow.add(rank.s(), after=[both[1]], name="two")
    assert edges(flow)["one"] == ("month/best",)
    assert edges(flow)["two"] == ("load",)
    assert holes(flow)["one"] == {("a", 0): "month/best"}
    with pytest.raises(ArgumentsError, match="no part 'worst' among"):
        both[0]["worst"]
    with pytest.raises(ArgumentsError, match="no part 7 among"):
        both[7]
    with pytest.raises(ArgumentsError, match="is one call"):
        both[1][0]


def test_options_are_those_of_all_its_calls_where_they_have_none() -> None:
    inner = Flow("inner")
    inner.add(load.call(1), retries=1, name="a")
    inner.add(load.call(2), name="b", after="a")
    flow = Flow("outer")
    flow.add(node(inner, retries=5, on_failure="continue"), queue="slow", fallback=load.call(0))
    by_name = {each.node.name: each for each in flow.nodes()}
    assert [by_name[f"inner/{name}"].options.retries for name in "ab"] == [1, 5]
    assert all(by_name[f"inner/{name}"].node.goes_on for name in "ab")
    assert all(by_name[f"inner/{name}"].options.queue == "slow" for name in "ab")
    assert by_name["inner/a:fallback"].node.fallback_of == "inner/a"
    assert flow.graph().fallbacks["inner/b"] == "inner/b:fallback"


def test_fallbacks_of_a_nested_flow_come_along() -> None:
    inner = Flow("inner")
    inner.add(chain(load.call(3), node(load.s(), fallback=load.s())))
    flow = Flow("outer")
    flow.add(chain(inner, rank.s()))
    ended = interpret(flow.graph(), lambda name: name != "inner/load-2")
    assert ended.state is FlowState.SUCCEEDED
    assert ended.final()["inner/load-2:fallback"] is NodeState.SUCCEEDED
    assert holes(flow)["inner/load-2:fallback"] == {("a", 0): "inner/load"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fail_fast": True}, "fail_fast"),
        ({"deadline": 1}, "deadline"),
        ({"on_error": tell.s(), "on_complete": tell.s()}, "on_error, on_complete"),
    ],
)
def test_what_only_a_whole_can_have_is_refused(options: dict[str, Any], named: str) -> None:
    inner = Flow("inner", **options)
    inner.add(load.call(1))
    with pytest.raises(FlowRefused, match=named) as refused:
        Flow("outer").add(inner)
    assert refused.value.path == ("outer", "inner")


def test_flow_is_no_part_of_itself() -> None:
    flow = month()
    with pytest.raises(FlowRefused, match="part of itself"):
        flow.add(flow)
    with pytest.raises(FlowRefused, match="part of itself"):
        flow.add(chain(load.call(1), flow))


def test_wrong_flow_in_a_flow_is_refused_with_the_path() -> None:
    inner = Flow("inner")
    inner.add(load.call(1), name="a", after="b")
    inner.add(load.call(2), name="b", after="a")
    outer = Flow("outer")
    outer.add(inner)
    with pytest.raises(FlowRefused, match=r"inner/[ab] → inner/[ab] → inner/[ab]"):
        outer.graph()
    twice = Flow("twice")
    twice.add(month(1), name="m")
    twice.add(month(1), name="m")
    with pytest.raises(FlowRefused, match="two nodes have this name"):
        twice.graph()


def test_empty_flow_gives_an_empty_dict() -> None:
    flow = flow_of(chain(load.call(1), Flow("nothing"), rank.s()))
    assert edges(flow) == {"load": (), "rank": ("load",)}
    assert holes(flow) == {"rank": {("a", 0): {}}}


def test_results_nested_in_dicts_travel_as_numbers() -> None:
    tree: Any = {"a": "x", "b": ("x", "y", {"c": "z"})}
    wired = wire_tree(tree, {"x": 0, "y": 1, "z": 2})
    assert wired == {"a": 0, "b": [0, 1, {"c": 2}]}
    assert list(numbers_in(read_tree(wired))) == [0, 0, 1, 2]
    given = filled(read_tree(wired), {0: "X", 1: "Y", 2: "Z"})
    assert given == {"a": "X", "b": ["X", "Y", {"c": "Z"}]}


def test_nested_flows_are_drawn_as_boxes() -> None:
    inner = Flow('say "no"\n<b>')
    inner.add(load.call(1), name="a")
    flow = Flow("outer")
    flow.add(chain(load.call(0), inner, rank.s()))
    assert flow.to_mermaid().splitlines() == [
        "flowchart LR",
        '    n0["load"]',
        '    n2["rank"]',
        '    subgraph f0["say #34;no#34;#10;#60;b#62;"]',
        '        n1["a"]',
        "    end",
        "    n0 --> n1",
        "    n1 --> n2",
    ]
    dot = flow.to_dot()
    assert "    subgraph cluster_0 {" in dot
    assert '        label="say \\"no\\"\\n<b>";' in dot
    assert '[label="a"];' in dot


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    """Draw a flow of calls that wait for earlier ones, some with a fallback, or that go on."""
    flow = Flow("inner")
    for number in range(draw(st.integers(1, 8))):
        earlier = st.sets(st.integers(0, number - 1), max_size=3) if number else st.just(set())
        flow.add(
            load.call(number),
            name=f"n{number}",
            after=[f"n{parent}" for parent in draw(earlier)],
            on_failure=draw(st.sampled_from([None, "continue"])),
            fallback=draw(st.sampled_from([None, load.call(0)])),
        )
    return flow


@given(flow=flows(), fails=st.sets(st.integers(0, 7)), both=st.booleans())
def test_nested_flow_ends_as_it_does_alone(flow: Flow, fails: set[int], *, both: bool) -> None:
    failing = {f"n{number}" for number in fails} | ({"n3:fallback"} if both else set())
    outer = Flow("outer")
    outer.add(chain(load.call(0), flow, tell.call({})))
    alone = interpret(flow.graph(), lambda name: name not in failing)
    nested = interpret(outer.graph(), lambda name: name.removeprefix("inner/") not in failing)
    final = nested.final()
    assert {f"inner/{name}": state for name, state in alone.final().items()} == {
        name: state for name, state in final.items() if name.startswith("inner/")
    }
    assert alone.state is nested.state
