"""The graph of a flow, and what becomes of its nodes: pure, without Redis.

    waiting ──all parents ended──▶ queued ──▶ succeeded
       │                              ├─────▶ failed ──▶ its fallback stands in
       ├─ a parent failed ─▶ skipped  └─────▶ cancelled (the flow was stopped)

`Graph` checks a definition, `Machine` is the reference for what the scripts do in Redis
(``lua/flow.lua``): told how nodes end, it says which are queued then, and how the flow ends.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from runner.errors import FlowRefused, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

When: TypeAlias = Literal["", "success", "error", "complete", "failure"]

SHOWN_PATH = 12
"""How many nodes of a path an error names."""


class NodeState(enum.Enum):
    """What a node of a flow has come to."""

    WAITING = "waiting"
    QUEUED = "queued"
    COMMITTING = "committing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class FlowState(enum.Enum):
    """What a flow has come to."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node, by names.

    Attributes:
        name: its name, of which there is one.
        after: the nodes that must have ended.
        uses: the nodes whose results it takes.
        is_gate: it has no job, and succeeds when its parents have: it joins many with many.
        goes_on: its failure does not matter to what comes after it, nor to the flow.
        fallback_of: the node in whose place it runs, when that has failed; "" for most.
        when: of a callback, at which end of the flow it runs, or at its first "failure"; "" for
            nodes.
        is_open: a gate that is closed by hand: the flow may grow until then.
    """

    name: str
    after: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    is_gate: bool = False
    goes_on: bool = False
    fallback_of: str = ""
    when: When = ""
    is_open: bool = False

    @property
    def is_ordinary(self) -> bool:
        """Whether the flow waits for it: neither a fallback nor a callback."""
        return not self.fallback_of and not self.when


class Graph:
    """A checked definition.

    Args:
        nodes: in the order in which they were added.
        name: the flow's, for messages.

    Attributes:
        nodes: by name.
        children: of each node those that wait for it, in order.
        fallbacks: of each node that has one, the name of its fallback.
        order: every node behind its parents.

    Raises:
        FlowRefused: there is no node, two have one name, one waits for a node that is not
            there, some wait for each other, or one uses the result of a node that need not
            have ended before it.
    """

    def __init__(self, nodes: Iterable[Node], name: str = "flow") -> None:
        self.name = name
        self.nodes: dict[str, Node] = {}
        for node in nodes:
            if node.name in self.nodes:
                raise self._refused("two nodes have this name", node.name)
            self.nodes[node.name] = node
        if not any(node.is_ordinary for node in self.nodes.values()):
            raise FlowRefused(f"{name}: a flow needs a node", path=())
        self.fallbacks = {n.fallback_of: n.name for n in self.nodes.values() if n.fallback_of}
        self.children: dict[str, list[str]] = {each: [] for each in self.nodes}
        self._connect()
        self.order = self._sorted()
        self._check_uses()

    def sinks(self) -> list[str]:
        """Return the nodes that nothing waits for."""
        return [n.name for n in self.nodes.values() if n.is_ordinary and not self.children[n.name]]

    def roots(self) -> list[str]:
        """Return the nodes that wait for nothing."""
        return [
            n.name for n in self.nodes.values() if n.is_ordinary and not n.after and not n.is_open
        ]

    def _refused(self, problem: str, *path: str) -> FlowRefused:
        shown = path
        if len(path) > SHOWN_PATH:
            half = SHOWN_PATH // 2
            shown = (*path[:half], f"… {len(path) - 2 * half} more …", *path[-half:])
        return FlowRefused(f"{self.name}: {problem}: {' → '.join(shown)}", path=path)

    def _connect(self) -> None:
        for node in self.nodes.values():
            for parent in dict.fromkeys(node.after):
                if parent not in self.nodes:
                    hint = did_you_mean(parent, self.nodes)
                    raise self._refused(f"there is no node {parent!r}{hint}", node.name, parent)
                if not self.nodes[parent].is_ordinary:
                    raise self._refused(
                        "a fallback or callback cannot be waited for; wait for the node it "
                        "belongs to",
                        node.name,
                        parent,
                    )
                self.children[parent].append(node.name)
            if node.fallback_of and node.fallback_of not in self.nodes:
                raise self._refused("it is the fallback of no node", node.name, node.fallback_of)

    def _sorted(self) -> tuple[str, ...]:
        waits = {name: len(set(node.after)) for name, node in self.nodes.items()}
        ready = deque(name for name, count in waits.items() if not count)
        order: list[str] = []
        while ready:
            name = ready.popleft()
            order.append(name)
            for child in self.children[name]:
                waits[child] -= 1
                if not waits[child]:
                    ready.append(child)
        if len(order) < len(self.nodes):
            raise self._refused("these wait for each other", *self._cycle(waits))
        return tuple(order)

    def _cycle(self, waits: Mapping[str, int]) -> list[str]:
        """Return a path from a node back to itself."""
        name = next(name for name, count in waits.items() if count)
        path: list[str] = []
        while name not in path:
            path.append(name)
            # Every node that is left has a parent that is left.
            name = next(parent for parent in self.nodes[name].after if waits[parent])
        return [*reversed(path[path.index(name) :]), path[-1]]

    def _check_uses(self) -> None:
        """Raise for a result that need not be there; most uses are of parents."""
        for node in self.nodes.values():
            if node.when:
                known = set(self.nodes)  # all have ended
            else:
                stands_for = self.nodes[node.fallback_of] if node.fallback_of else node
                known = set(stands_for.after)
            missing = [used for used in node.uses if used not in known]
            if not missing:
                continue
            ancestors = self._ancestors(node)
            for used in missing:
                if used not in self.nodes:
                    raise self._refused(f"there is no node {used!r}", node.name, used)
                if used not in ancestors:
                    raise self._refused(
                        f"{node.name!r} takes the result of {used!r}, which need not have ended "
                        f"by then: add after=[{used!r}]",
                        node.name,
                        used,
                    )

    def _ancestors(self, node: Node) -> set[str]:
        stands_for = self.nodes[node.fallback_of] if node.fallback_of else node
        found: set[str] = set()
        waiting = list(stands_for.after)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(self.nodes[name].after)
        return found


class Machine:
    """A flow that runs, as far as its graph knows: the reference for the scripts.

    Args:
        graph: the flow.
        fail_fast: stop at the first failure that matters.

    Attributes:
        state: what the flow has come to.
        states: what the nodes have come to; of those not in it nothing is known yet.
        callbacks: the callbacks that its end, or its first failure, has queued.
    """

    def __init__(self, graph: Graph, *, fail_fast: bool = False) -> None:
        self.graph = graph
        self.fail_fast = fail_fast
        self.state = FlowState.RUNNING
        self.stopping: FlowState | None = None
        self.states: dict[str, NodeState] = {}
        self.callbacks: list[str] = []
        self._waits = {name: len(set(node.after)) for name, node in graph.nodes.items()}
        self._doomed: set[str] = set()
        self._left = sum(node.is_ordinary for node in graph.nodes.values())
        self._open: set[str] = set()
        self._failed = False

    def start(self) -> list[str]:
        """Return the nodes that are queued at once."""
        return self._follow([], self.graph.roots())

    def end(self, name: str, *, ok: bool) -> list[str]:
        """Note how a queued node ended; return those that are queued then."""
        if name not in self._open:
            return []
        self._open.discard(name)
        self.states[name] = NodeState.SUCCEEDED if ok else NodeState.FAILED
        return self._follow([(name, ok, False)], [])

    def cancel(self, name: str) -> None:
        """Note that a queued node of a flow that stops was taken out of its queue."""
        if name in self._open:
            self._open.discard(name)
            self.states[name] = NodeState.CANCELLED
            self._look_for_end()

    def stop(self, state: FlowState) -> None:
        """Take nothing more up; the flow ends so when what is queued has ended."""
        if self.state is FlowState.RUNNING and self.stopping is None:
            self.stopping = state
            self._look_for_end()

    def final(self) -> dict[str, NodeState]:
        """Return what became of every node of a flow that has ended: the rest was skipped."""
        return {name: self.states.get(name, NodeState.SKIPPED) for name in self.graph.nodes}

    def _follow(self, ends: list[tuple[str, bool, bool]], ready: list[str]) -> list[str]:
        queued: list[str] = []
        self._see_to(ready, ends, queued)
        at = 0
        while at < len(ends):
            name, ok, is_skip = ends[at]
            at += 1
            fallback = self.graph.fallbacks.get(name)
            if not ok and not is_skip and fallback and self.stopping is None:
                queued.append(fallback)
                continue
            self._see_to(self._count_down(name, ok=ok, is_skip=is_skip), ends, queued)
        if self.stopping is not None:
            queued = []
        for name in queued:
            self.states[name] = NodeState.QUEUED
            self._open.add(name)
        self._look_for_end()
        return queued

    def _count_down(self, name: str, *, ok: bool, is_skip: bool) -> list[str]:
        """Note the end of a node, or of its fallback; return children that waited for it last."""
        node = self.graph.nodes[name]
        node = self.graph.nodes[node.fallback_of] if node.fallback_of else node
        self._left -= 1
        is_bad = not ok and (is_skip or not node.goes_on)
        if is_bad and not is_skip:
            if not self._failed:
                self.callbacks += [n.name for n in self.graph.nodes.values() if n.when == "failure"]
            self._failed = True
            if self.fail_fast and self.stopping is None:
                self.stopping = FlowState.FAILED
        if self.stopping is not None:
            return []
        ready = []
        for child in self.graph.children[node.name]:
            self._waits[child] -= 1
            if is_bad:
                self._doomed.add(child)
            if not self._waits[child]:
                ready.append(child)
        return ready

    def _see_to(
        self, ready: list[str], ends: list[tuple[str, bool, bool]], queued: list[str]
    ) -> None:
        for name in ready:
            if name in self._doomed:
                self.states[name] = NodeState.SKIPPED
                ends.append((name, False, True))
            elif self.graph.nodes[name].is_gate:
                self.states[name] = NodeState.SUCCEEDED
                ends.append((name, True, False))
            else:
                queued.append(name)

    def _look_for_end(self) -> None:
        if self.state is not FlowState.RUNNING:
            return
        if self.stopping is not None:
            if self._open:
                return
            self.state = self.stopping
        elif self._left:
            return
        else:
            self.state = FlowState.FAILED if self._failed else FlowState.SUCCEEDED
        wanted = {"complete"}
        if self.state is FlowState.SUCCEEDED:
            wanted.add("success")
        elif self.state is not FlowState.CANCELLED:
            wanted.add("error")
        self.callbacks += [n.name for n in self.graph.nodes.values() if n.when in wanted]


def interpret(graph: Graph, succeeds: Callable[[str], bool], *, fail_fast: bool = False) -> Machine:
    """Run a flow to its end, one node after the other in the order they were queued."""
    machine = Machine(graph, fail_fast=fail_fast)
    queued = deque(machine.start())
    while queued:
        name = queued.popleft()
        if machine.stopping is not None:
            machine.cancel(name)
        else:
            queued.extend(machine.end(name, ok=succeeds(name)))
    return machine


__all__ = ["FlowState", "Graph", "Machine", "Node", "NodeState", "interpret"]
