"""Draw flows: Mermaid and DOT, with the states of their nodes where they are known."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from runner.workflow.graph import NodeState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.workflow.graph import Graph, Node

COLOURS = {
    NodeState.QUEUED: "#fde68a",
    NodeState.COMMITTING: "#fde68a",
    NodeState.SUCCEEDED: "#bbf7d0",
    NodeState.FAILED: "#fecaca",
    NodeState.SKIPPED: "#e5e7eb",
    NodeState.CANCELLED: "#e5e7eb",
}


def to_mermaid(graph: Graph, states: Mapping[str, NodeState] | None = None) -> str:
    """Return the flow as a Mermaid flowchart, as Markdown pages show it."""
    known = states or {}
    numbers = {name: index for index, name in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for name, node in graph.nodes.items():
        shape = "(( ))" if node.is_gate else f'["{_mermaid_text(_label(node))}"]'
        state = known.get(name)
        style = f":::{state.value}" if state in COLOURS else ""
        lines.append(f"    n{numbers[name]}{shape}{style}")
    for name, node in graph.nodes.items():
        lines += [f"    n{numbers[name]} --> n{numbers[c]}" for c in graph.children[name]]
        if node.fallback_of:
            lines.append(f"    n{numbers[node.fallback_of]} -. fails .-> n{numbers[name]}")
    used = {state for state in known.values() if state in COLOURS}
    lines += [
        f"    classDef {state.value} fill:{COLOURS[state]}" for state in COLOURS if state in used
    ]
    return "\n".join(lines) + "\n"


def to_dot(graph: Graph, states: Mapping[str, NodeState] | None = None) -> str:
    """Return the flow in the language of Graphviz."""
    known = states or {}
    lines = [f"digraph {_dot_text(graph.name)} {{", "    rankdir=LR;", "    node [shape=box];"]
    for name, node in graph.nodes.items():
        if node.is_gate:
            attributes = 'shape=point, label=""'
        else:
            attributes = f"label={_dot_text(_label(node))}"
            if (colour := COLOURS.get(known.get(name, NodeState.WAITING))) is not None:
                attributes += f', style=filled, fillcolor="{colour}"'
        lines.append(f"    {_dot_text(name)} [{attributes}];")
    for name, node in graph.nodes.items():
        lines += [f"    {_dot_text(name)} -> {_dot_text(c)};" for c in graph.children[name]]
        if node.fallback_of:
            edge = f"{_dot_text(node.fallback_of)} -> {_dot_text(name)}"
            lines.append(f'    {edge} [style=dashed, label="fails"];')
    return "\n".join([*lines, "}"]) + "\n"


def _label(node: Node) -> str:
    return f"{node.name} (on {node.when})" if node.when else node.name


def _mermaid_text(text: str) -> str:
    # Everything that could end the quotes, or begin markup, as the number of its character.
    return re.sub(r'["#<>&`\\\r\n]', lambda found: f"#{ord(found[0])};", text)


def _dot_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


__all__ = ["to_dot", "to_mermaid"]
