"""The graph of a flow, without Redis: what is refused, what runs, and how it ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import FlowRefused
from runner.workflow.drawing import to_dot, to_mermaid
from runner.workflow.graph import FlowState, Graph, Machine, Node, NodeState, interpret

S, F, K, C = (
    NodeState.SUCCEEDED,
    NodeState.FAILED,
    NodeState.SKIPPED,
    NodeState.CANCELLED,
)


def node(name: str, *after: str, **facts: Any) -> Node:
    return Node(name=name, after=after, **facts)


DIAMOND = (node("a"), node("b", "a"), node("c", "a"), node("d", "b", "c"))


@pytest.mark.parametrize(
    ("nodes", "problem", "path"),
    [
        ((), "needs a node", ()),
        ((node("a"), node("a")), "two nodes have this name: a", ("a",)),
        ((node("a", "b"),), "there is no node 'b': a → b", ("a", "b")),
        ((node("rank"), node("b", "rnak")), "did you mean 'rank'", ("b", "rnak")),
        ((node("a", "a"),), "wait for each other: a → a", ("a", "a")),
        (
            (node("a", "c"), node("b", "a"), node("c", "b")),
            "wait for each other",
            ("b", "c", "a", "b"),
        ),
        (
            (node("a"), node("b", uses=("a",))),
            "'b' takes the result of 'a', which need not have ended by then",
            ("b", "a"),
        ),
        ((node("a"), node("b", "a", uses=("x",))), "there is no node 'x'", ("b", "x")),
        (
            (node("a"), node("f", fallback_of="a"), node("b", "f")),
            "a fallback or callback cannot be waited for",
            ("b", "f"),
        ),
        ((node("a"), node("f", fallback_of="x")), "the fallback of no node", ("f", "x")),
        ((node("only", when="complete"),), "needs a node", ()),
    ],
)
def test_definition_that_makes_no_sense_is_refused_with_the_path(
    nodes: tuple[Node, ...], problem: str, path: tuple[str, ...]
) -> None:
    with pytest.raises(FlowRefused) as refused:
        Graph(nodes, "month-end")
    assert str(refused.value).startswith("month-end: ")
    assert problem in str(refused.value)
    assert set(refused.value.path) == set(path)


def test_path_of_a_cycle_leads_back_along_the_edges() -> None:
    nodes = [node("start"), node("a", "start", "c"), node("b", "a"), node("c", "b")]
    with pytest.raises(FlowRefused) as refused:
        Graph(nodes)
    path = refused.value.path
    assert path[0] == path[-1]
    assert len(path) == 4
    parents = {n.name: n.after for n in nodes}
    assert all(left in parents[right] for left, right in pairwise(path))


def test_long_cycle_is_named_in_short() -> None:
    nodes = [node(f"n{i}", f"n{i - 1}" if i else "n99") for i in range(100)]
    with pytest.raises(FlowRefused, match=r"… 8[0-9] more …") as refused:
        Graph(nodes)
    assert len(refused.value.path) == 101


@pytest.mark.parametrize(
    ("nodes", "uses"),
    [
        ((node("a"), node("b", "a"), node("c", "b", uses=("a",))), "an ancestor further up"),
        (
            (node("a"), node("g", "a", is_gate=True), node("c", "g", uses=("a",))),
            "one behind a gate",
        ),
        (
            (node("a"), node("b", "a"), node("f", fallback_of="b", uses=("a",))),
            "of a fallback, what its node may use",
        ),
        ((node("a"), node("n", when="success", uses=("a",))), "of a callback, any"),
    ],
)
def test_result_that_must_be_there_may_be_used(nodes: tuple[Node, ...], uses: str) -> None:
    assert Graph(nodes).order, uses


@pytest.mark.parametrize(
    ("nodes", "fails", "states", "state"),
    [
        (DIAMOND, "", {"a": S, "b": S, "c": S, "d": S}, FlowState.SUCCEEDED),
        (DIAMOND, "a", {"a": F, "b": K, "c": K, "d": K}, FlowState.FAILED),
        (DIAMOND, "b", {"a": S, "b": F, "c": S, "d": K}, FlowState.FAILED),
        (DIAMOND, "d", {"a": S, "b": S, "c": S, "d": F}, FlowState.FAILED),
        # A failure that does not matter.
        (
            (node("a"), node("b", "a", goes_on=True), node("c", "b")),
            "b",
            {"a": S, "b": F, "c": S},
            FlowState.SUCCEEDED,
        ),
        # What is skipped is skipped, whatever it says of its failures.
        (
            (node("a"), node("b", "a", goes_on=True), node("c", "b")),
            "a",
            {"a": F, "b": K, "c": K},
            FlowState.FAILED,
        ),
        # A fallback that is not needed, that helps, that fails, and of a node that is skipped.
        (
            (node("a"), node("f", fallback_of="a"), node("b", "a")),
            "",
            {"a": S, "f": K, "b": S},
            FlowState.SUCCEEDED,
        ),
        (
            (node("a"), node("f", fallback_of="a"), node("b", "a")),
            "a",
            {"a": F, "f": S, "b": S},
            FlowState.SUCCEEDED,
        ),
        (
            (node("a"), node("f", fallback_of="a"), node("b", "a")),
            "af",
            {"a": F, "f": F, "b": K},
            FlowState.FAILED,
        ),
        (
            (node("a", goes_on=True), node("f", fallback_of="a"), node("b", "a")),
            "af",
            {"a": F, "f": F, "b": S},
            FlowState.SUCCEEDED,
        ),
        (
            (node("z"), node("a", "z"), node("f", fallback_of="a")),
            "z",
            {"z": F, "a": K, "f": K},
            FlowState.FAILED,
        ),
        # Gates.
        (
            (node("a"), node("b"), node("g", "a", "b", is_gate=True), node("c", "g")),
            "",
            {"a": S, "b": S, "g": S, "c": S},
            FlowState.SUCCEEDED,
        ),
        (
            (node("a"), node("b"), node("g", "a", "b", is_gate=True), node("c", "g")),
            "a",
            {"a": F, "b": S, "g": K, "c": K},
            FlowState.FAILED,
        ),
        ((node("g", is_gate=True),), "", {"g": S}, FlowState.SUCCEEDED),
    ],
)
def test_what_becomes_of_nodes(
    nodes: tuple[Node, ...], fails: str, states: dict[str, NodeState], state: FlowState
) -> None:
    machine = interpret(Graph(nodes), lambda name: name not in fails)
    assert (machine.final(), machine.state) == (states, state)


def test_fail_fast_takes_nothing_more_up() -> None:
    nodes = (node("a"), node("b"), node("c", "b"), node("d"))
    machine = Machine(Graph(nodes), fail_fast=True)
    assert machine.start() == ["a", "b", "d"]
    assert machine.end("a", ok=False) == []
    assert machine.end("b", ok=True) == []
    assert machine.final()["d"] is NodeState.QUEUED
    machine.cancel("d")
    assert machine.state is FlowState.FAILED
    assert machine.final() == {"a": F, "b": S, "c": K, "d": C}


def test_fallback_keeps_a_flow_that_fails_fast() -> None:
    nodes = (node("a"), node("f", fallback_of="a"), node("b", "a"))
    machine = interpret(Graph(nodes), lambda name: name != "a", fail_fast=True)
    assert machine.state is FlowState.SUCCEEDED


def test_node_that_ends_twice_counts_once() -> None:
    machine = Machine(Graph((node("a"), node("b"), node("c", "a", "b"))))
    machine.start()
    assert machine.end("a", ok=True) == []
    assert machine.end("a", ok=True) == []
    assert machine.end("c", ok=True) == [], "it was not queued yet"
    assert machine.end("b", ok=True) == ["c"]


@pytest.mark.parametrize(
    ("fails", "stops", "called"),
    [
        ("", False, ["s", "c"]),
        ("a", False, ["e", "c"]),
        ("", True, ["c"]),
    ],
)
def test_callbacks_are_those_of_the_end(fails: str, stops: bool, called: list[str]) -> None:
    nodes = (
        node("a"),
        node("s", when="success"),
        node("e", when="error"),
        node("c", when="complete"),
    )
    machine = Machine(Graph(nodes))
    (first,) = machine.start()
    if stops:
        machine.stop(FlowState.CANCELLED)
    machine.end(first, ok=first not in fails)
    assert machine.callbacks == called


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    count = draw(st.integers(1, 12))
    nodes: list[Node] = []
    for number in range(count):
        parents = draw(st.sets(st.integers(0, number - 1), max_size=4)) if number else set()
        nodes.append(
            Node(
                name=f"n{number}",
                after=tuple(f"n{parent}" for parent in sorted(parents)),
                goes_on=draw(st.integers(0, 4)) == 0,
                is_gate=draw(st.integers(0, 6)) == 0,
            )
        )
    nodes += [
        Node(name=f"{each.name}f", fallback_of=each.name)
        for each in nodes
        if not each.is_gate and draw(st.integers(0, 4)) == 0
    ]
    return Graph(draw(st.permutations(nodes)))


@given(graphs(), st.sets(st.integers(0, 11)), st.randoms(use_true_random=False))
def test_end_does_not_depend_on_the_order_in_which_nodes_end(
    graph: Graph, fails: set[int], random: Any
) -> None:
    def succeeds(name: str) -> bool:
        return int(name.strip("nf")) not in fails or (name.endswith("f") and len(fails) % 2 == 0)

    machine = Machine(graph)
    queued = machine.start()
    ran: list[str] = []
    while queued:
        name = queued.pop(random.randrange(len(queued)))
        for parent in graph.nodes[name].after:
            assert machine.states[parent] in (S, F), "a node runs after all its parents"
        ran.append(name)
        queued += machine.end(name, ok=succeeds(name))
    reference = interpret(graph, succeeds)
    assert machine.final() == reference.final()
    assert machine.state is reference.state is not FlowState.RUNNING
    assert len(set(ran)) == len(ran), "no node runs twice"


@given(graphs(), st.randoms(use_true_random=False), st.integers(0, 12))
def test_stopped_flow_ends_when_what_is_queued_has_ended(
    graph: Graph, random: Any, steps: int
) -> None:
    machine = Machine(graph)
    queued = machine.start()
    for _ in range(steps):
        if queued:
            name = queued.pop(random.randrange(len(queued)))
            queued += machine.end(name, ok=random.random() < 0.8)
    machine.stop(FlowState.CANCELLED)
    for name in queued:
        assert machine.end(name, ok=True) == []
    assert machine.state is not FlowState.RUNNING


def test_drawing_names_nodes_edges_and_states() -> None:
    nodes = (node('say "hi"'), node("b", 'say "hi"'), node("f", fallback_of="b"))
    graph = Graph(nodes, "greet")
    assert to_mermaid(graph, {"b": F}).splitlines() == [
        "flowchart LR",
        '    n0["say #34;hi#34;"]',
        '    n1["b"]:::failed',
        '    n2["f"]',
        "    n0 --> n1",
        "    n1 -. fails .-> n2",
        "    classDef failed fill:#fecaca",
    ]
    dot = to_dot(graph, {"b": F})
    assert dot.startswith('digraph "greet" {')
    assert '"say \\"hi\\"" -> "b";' in dot
    assert '"b" [label="b", style=filled, fillcolor="#fecaca"];' in dot
    assert '"b" -> "f" [style=dashed, label="fails"];' in dot


def test_wide_graph_is_checked_in_time_linear_in_its_edges() -> None:
    members = [node(f"m{i}") for i in range(10_000)]
    names = tuple(each.name for each in members)
    graph = Graph([*members, Node(name="join", after=names, uses=names)])
    assert graph.sinks() == ["join"]
    assert len(graph.roots()) == 10_000
