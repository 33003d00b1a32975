"""What is read of a flow that grows while it is read, and of names that are alike."""

from __future__ import annotations

from typing import Any

from runner import NodeState
from runner.workflow.stored import stored_of

FACTS = {"name": "f", "state": "running"}


def plan(flags: str = "", owner: int = -1, children: tuple[int, ...] = ()) -> Any:
    return (flags, "arq:queue", 0, -1, owner, children)


def test_names_that_are_alike_become_different_ones() -> None:
    names: dict[int, Any] = {0: ("a", "t"), 1: ("a#2", "t"), 2: ("a", "t"), 3: ("a#2", "t")}
    stored = stored_of(FACTS, dict.fromkeys(names, plan()), names, {2: b"s"})
    assert len(stored.numbers) == 4
    assert sorted(stored.numbers.values()) == [0, 1, 2, 3]
    assert stored.states[next(n for n, at in stored.numbers.items() if at == 2)] is (
        NodeState.SUCCEEDED
    )


def test_fallback_whose_node_was_not_there_yet_is_read() -> None:
    names: dict[int, Any] = {0: ("a", "t"), 7: ("b:fallback", "t", "inner")}
    stored = stored_of(FACTS, {0: plan(children=(6, 6)), 7: plan(owner=6)}, names, {})
    assert list(stored.graph.nodes) == ["a", "b:fallback"]
    assert stored.graph.nodes["b:fallback"].within == ("inner",)
