"""Draw flows: Mermaid and DOT, with the states of their nodes where they are known.

Flows in flows are boxes round their nodes, which have their short names there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runner.workflow.graph import NodeState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runner.workflow.graph import Graph, Node

COLOURS = {
    NodeState.QUEUED: "#fde68a",
    NodeState.COMMITTING: "#fde68a",
    NodeState.SUCCEEDED: "#bbf7d0",
    NodeState.FAILED: "#fecaca",
    NodeState.SKIPPED: "#e5e7eb",
    NodeState.CANCELLED: "#e5e7eb",
}
INDENT = "    "


@dataclass(slots=True)
class _Box:
    """The nodes of a flow, and the flows in it by name."""

    nodes: list[Node] = field(default_factory=list)
    boxes: dict[str, _Box] = field(default_factory=dict)


def to_mermaid(graph: Graph, states: Mapping[str, NodeState] | None = None) -> str:
    """Return the flow as a Mermaid flowchart, as Markdown pages show it."""
    known = states or {}
    numbers = {name: index for index, name in enumerate(graph.nodes)}
    boxes = 0

    def inside(box: _Box, indent: str) -> Iterator[str]:
        nonlocal boxes
        for node in box.nodes:
            shape = "(( ))" if node.is_gate else f'["{_mermaid_text(_label(node))}"]'
            state = known.get(node.name)
            style = f":::{state.value}" if state in COLOURS else ""
            yield f"{indent}n{numbers[node.name]}{shape}{style}"
        for name, inner in box.boxes.items():
            yield f'{indent}subgraph f{boxes}["{_mermaid_text(name)}"]'
            boxes += 1
            yield from inside(inner, indent + INDENT)
            yield f"{indent}end"

    lines = ["flowchart LR", *inside(_boxes_of(graph), INDENT)]
    for name, node in graph.nodes.items():
        lines += [f"{INDENT}n{numbers[name]} --> n{numbers[c]}" for c in graph.children[name]]
        if node.fallback_of:
            lines.append(f"{INDENT}n{numbers[node.fallback_of]} -. fails .-> n{numbers[name]}")
    used = {state for state in known.values() if state in COLOURS}
    lines += [
        f"{INDENT}classDef {state.value} fill:{COLOURS[state]}"
        for state in COLOURS
        if state in used
    ]
    return "\n".join(lines) + "\n"


def to_dot(graph: Graph, states: Mapping[str, NodeState] | None = None) -> str:
    """Return the flow in the language of Graphviz."""
    known = states or {}
    boxes = 0

    def inside(box: _Box, indent: str) -> Iterator[str]:
        nonlocal boxes
        for node in box.nodes:
            yield f"{indent}{_dot_text(node.name)} [{_dot_looks(node, known)}];"
        for name, inner in box.boxes.items():
            yield f"{indent}subgraph cluster_{boxes} {{"
            boxes += 1
            yield f"{indent}{INDENT}label={_dot_text(name)};"
            yield from inside(inner, indent + INDENT)
            yield f"{indent}}}"

    lines = [f"digraph {_dot_text(graph.name)} {{", "    rankdir=LR;", "    node [shape=box];"]
    lines += inside(_boxes_of(graph), INDENT)
    for name, node in graph.nodes.items():
        lines += [f"{INDENT}{_dot_text(name)} -> {_dot_text(c)};" for c in graph.children[name]]
        if node.fallback_of:
            edge = f"{_dot_text(node.fallback_of)} -> {_dot_text(name)}"
            lines.append(f'{INDENT}{edge} [style=dashed, label="fails"];')
    return "\n".join([*lines, "}"]) + "\n"


def _boxes_of(graph: Graph) -> _Box:
    whole = _Box()
    for node in graph.nodes.values():
        box = whole
        for name in node.within:
            box = box.boxes.setdefault(name, _Box())
        box.nodes.append(node)
    return whole


def _dot_looks(node: Node, known: Mapping[str, NodeState]) -> str:
    if node.is_gate:
        return 'shape=point, label=""'
    looks = f"label={_dot_text(_label(node))}"
    if (colour := COLOURS.get(known.get(node.name, NodeState.WAITING))) is not None:
        looks += f', style=filled, fillcolor="{colour}"'
    return looks


def _label(node: Node) -> str:
    name = node.name.removeprefix("".join(f"{each}/" for each in node.within))
    return f"{name} (on {node.when})" if node.when else name


def _mermaid_text(text: str) -> str:
    # Everything that could end the quotes, or begin markup, as the number of its character; what
    # cannot be printed has no place in a chart.
    shown = "".join(each if each.isprintable() or each in "\r\n" else "�" for each in text)
    return re.sub(r'["#<>&`\\\r\n]', lambda found: f"#{ord(found[0])};", shown)


def _dot_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


__all__ = ["to_dot", "to_mermaid"]
