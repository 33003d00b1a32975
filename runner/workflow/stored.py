"""What Redis has of a flow, and what follows from it: pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from runner.workflow.graph import FlowState, Graph, Node, NodeState, When

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowStatus:
    """How far a flow is.

    Attributes:
        id: its id.
        name: its name.
        state: what it has come to.
        total: its nodes, with joins, fallbacks and callbacks.
        done: how many of `expected` have ended, or will not run.
        expected: the nodes that the flow waits for: neither fallbacks nor callbacks.
        succeeded: jobs of it that ended well.
        failed: jobs that failed.
        skipped: nodes that did not run because another failed.
        cancelled: jobs that were taken out of their queues.
        queued: jobs that wait in their queues or run.
        started: when it was started.
        ended: when it ended, None while it runs.
        problem: what Redis said against it, when something did.
    """

    id: str
    name: str
    state: FlowState
    total: int
    done: int
    expected: int
    succeeded: int
    failed: int
    skipped: int
    cancelled: int
    queued: int
    started: datetime
    ended: datetime | None
    problem: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more, but for callbacks."""
        return self.state is not FlowState.RUNNING

    @property
    def fraction(self) -> float:
        """How much of it is done, from 0 to 1."""
        return 1.0 if self.has_ended else self.done / max(self.expected, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """One node of a flow, and what became of it.

    Attributes:
        name: its name.
        task: the name of its task, "" of a join.
        state: what it has come to.
        job_id: the id of its job.
        after: the names of the nodes that it waits for.
        error: why it failed, as far as that is kept.
        is_gate: it is a join, without a job.
        fallback_of: the node in whose place it runs, when that has failed; "" for most.
        when: of a callback, at which end of the flow it runs; "" for nodes.
    """

    name: str
    task: str
    state: NodeState
    job_id: str
    after: tuple[str, ...]
    error: str = ""
    is_gate: bool = False
    fallback_of: str = ""
    when: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """The nodes of a flow as Redis has them.

    Attributes:
        graph: by names.
        numbers: of each name its number.
        tasks: of each name its task.
        states: of each name what it has come to.
    """

    graph: Graph
    numbers: dict[str, int]
    tasks: dict[str, str]
    states: dict[str, NodeState]


_LETTERS = {
    b"s": NodeState.SUCCEEDED,
    b"f": NodeState.FAILED,
    b"k": NodeState.SKIPPED,
    b"c": NodeState.CANCELLED,
    b"w": NodeState.COMMITTING,
}

FACTS = (
    *("state", "name", "started", "ended", "problem", "home", "stop"),
    *("on_success", "on_error", "on_complete", "on_failure", "fatal"),
)
COUNTS = (
    *("total", "ordinary", "left", "next", "open"),
    *("succeeded", "failed", "skipped", "cancelled"),
)
COUNTED = (
    ("succeeded", NodeState.SUCCEEDED),
    ("failed", NodeState.FAILED),
    ("skipped", NodeState.SKIPPED),
    ("cancelled", NodeState.CANCELLED),
)


def status_of(flow_id: str, facts: Mapping[str, str]) -> FlowStatus:
    """Read a status from what is stored of the flow itself."""
    ended = facts.get("ended")
    count = {name: int(facts.get(name) or 0) for name in COUNTS}
    return FlowStatus(
        id=flow_id,
        name=facts.get("name", ""),
        state=FlowState(facts["state"]),
        total=count["total"],
        done=count["ordinary"] - max(count["left"], 0),
        expected=count["ordinary"],
        succeeded=count["succeeded"],
        failed=count["failed"],
        skipped=count["skipped"],
        cancelled=count["cancelled"],
        queued=max(count["open"], 0),
        started=_time_of(facts["started"]),
        ended=None if ended is None else _time_of(ended),
        problem=facts.get("problem", ""),
    )


def _time_of(text: str) -> datetime:
    return datetime.fromtimestamp(int(text) / 1000, UTC)


def stored_of(
    facts: Mapping[str, str],
    plans: dict[int, Any],
    names: dict[int, Any],
    letters: dict[int, bytes],
) -> Stored:
    """Make a graph of what Redis has: by numbers there, by names here."""
    name_of: dict[int, str] = {}
    taken: set[str] = set()
    for number, (name, *_) in names.items():
        # Nodes that were added at run time may have the names of others.
        while name in taken:
            name = f"{name}#{number}"  # noqa: PLW2901
        name_of[number] = name
        taken.add(name)
    parents: dict[int, list[str]] = {number: [] for number in plans}
    for number, plan in plans.items():
        for child in _between(plan[5]):
            if child in parents:
                parents[child].append(name_of[number])
    callbacks: dict[str | None, When] = {
        facts.get("on_success"): "success",
        facts.get("on_error"): "error",
        facts.get("on_complete"): "complete",
        facts.get("on_failure"): "failure",
    }
    nodes = [
        Node(
            name=name_of[number],
            after=tuple(parents[number]),
            is_gate="g" in plan[0],
            goes_on="c" in plan[0],
            is_open="o" in plan[0],
            # Of what is added meanwhile, a page may hold the end and not the beginning.
            fallback_of=name_of.get(plan[4], ""),
            when=callbacks.get(str(number), "complete") if "b" in plan[0] else "",
            within=tuple(names[number][2:]),
        )
        for number, plan in plans.items()
    ]
    graph = Graph(nodes, facts.get("name", "flow"))
    known = {name_of[number]: _LETTERS[letter] for number, letter in letters.items()}
    return Stored(
        graph=graph,
        numbers={name: number for number, name in name_of.items()},
        tasks={name_of[number]: task for number, (_, task, *_) in names.items()},
        states=_states(graph, known, facts),
    )


def _states(
    graph: Graph, known: dict[str, NodeState], facts: Mapping[str, str]
) -> dict[str, NodeState]:
    """Return the state of every node; of those that have not ended it follows from the others."""
    states: dict[str, NodeState] = {}
    state, stops = FlowState(facts["state"]), "stop" in facts
    has_ended = state is not FlowState.RUNNING
    for name in graph.order:
        node = graph.nodes[name]
        if name in known:
            states[name] = known[name]
        elif node.when:
            if _is_called(node, state, has_failed="fatal" in facts):
                states[name] = NodeState.QUEUED
            else:
                states[name] = NodeState.SKIPPED if has_ended else NodeState.WAITING
        elif has_ended:
            states[name] = NodeState.SKIPPED
        elif node.is_open:
            states[name] = NodeState.WAITING
        elif node.fallback_of:
            stands_in = known.get(node.fallback_of) is NodeState.FAILED and not stops
            states[name] = NodeState.QUEUED if stands_in else NodeState.WAITING
        else:
            over = all(_is_over(graph, known, parent) for parent in node.after)
            states[name] = NodeState.QUEUED if over else NodeState.WAITING
    return {name: states[name] for name in graph.nodes}


def _is_called(node: Node, state: FlowState, *, has_failed: bool) -> bool:
    """Tell whether a callback is queued, or was."""
    match node.when:
        case "success":
            return state is FlowState.SUCCEEDED
        case "error":
            return state in (FlowState.FAILED, FlowState.EXPIRED)
        case "failure":
            return has_failed
        case _:
            return state is not FlowState.RUNNING


def _is_over(graph: Graph, known: dict[str, NodeState], name: str) -> bool:
    """Tell whether a node has ended for those that wait for it: its fallback too, if it failed."""
    if known.get(name) is NodeState.FAILED and name in graph.fallbacks:
        return graph.fallbacks[name] in known
    return name in known


def part_to_run(stored: Stored) -> set[str]:
    """Return what did not succeed: failures that matter, and all that was not run."""
    graph, states = stored.graph, stored.states
    fine = (NodeState.SUCCEEDED, NodeState.COMMITTING)
    again: set[str] = set()
    for name, node in graph.nodes.items():
        if not node.is_ordinary or states[name] in fine:
            continue
        fallback = graph.fallbacks.get(name)
        recovered = fallback is not None and states[fallback] in fine
        if states[name] is NodeState.FAILED and (node.goes_on or recovered):
            continue
        again.add(name)
        if fallback is not None:
            again.add(fallback)
    if again:
        again |= {name for name, node in graph.nodes.items() if node.when}
    return again


def _between(numbers: Iterable[int]) -> Iterator[int]:
    bounds = list(numbers)
    for first, last in zip(bounds[::2], bounds[1::2], strict=True):
        yield from range(first, last + 1)


__all__ = [
    "COUNTED",
    "COUNTS",
    "FACTS",
    "FlowStatus",
    "NodeInfo",
    "Stored",
    "part_to_run",
    "status_of",
    "stored_of",
]
