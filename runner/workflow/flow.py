"""Write a flow down: nodes, what they wait for, and whose results they take."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from runner.composition import (
    Chain,
    Chord,
    Group,
    NodeOptions,
    OnFailure,
    Optioned,
    ReleaseAfter,
)
from runner.errors import ArgumentsError, FlowRefused
from runner.tasks import Call, Step, seconds
from runner.types import PREVIOUS, Part, Reference, Tree
from runner.workflow import drawing
from runner.workflow.graph import Graph, Node, When
from runner.workflow.nodes import (
    Added,
    FlowNode,
    data_of,
    leaves,
    node_from,
    renamed,
    tree_data,
    tree_from,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import timedelta

    from runner.tasks import Task
    from runner.workflow.nodes import Hole, Path

R = TypeVar("R")

KEEP_RESULT_S = 3600.0
VERSION = 1
"""Of the definitions that `Flow.to_dict` gives."""

GATE = "join"
_CONTAINERS = (list, tuple, dict)
_NOT_FOR_NODES = ("key", "max_length", "when_full", "full_timeout", "unique")


@dataclass(frozen=True, slots=True)
class _Placed:
    """What became of a part: the nodes that end it, and those whose results are its result."""

    exits: tuple[str, ...]
    tree: Tree


After: TypeAlias = "Added[Any] | str | Iterable[Added[Any] | str]"


class Flow(Part[dict[str, Any]]):
    """A workflow: calls, what each waits for, and whose results it takes.

    Args:
        name: what it is called where flows are shown.
        fail_fast: stop at the first failure that matters; by default what can finish does.
        deadline: seconds from its start, or a timedelta, after which it is stopped.
        on_success: a call for when all went well; written by ``task.s()`` it gets a report, a
            dict of the flow's id, name, state, and the names of failed nodes.
        on_error: the same for when it failed, or its deadline came.
        on_complete: the same for every end.
        on_failure: the same for the first failure that matters; the flow goes on.
        keep_result: seconds, or a timedelta, for which it can be looked at when it has ended.

    It is a part too: in another flow, a chain, a group or a chord it is copied as it is then, with
    its name in front of those of its nodes. Its result there is that of a flow, a dict by name.

    Example:
        >>> flow = Flow("month-end", on_error=alert.s())
        >>> loaded = flow.add(load.call(day))
        >>> ranked = flow.add(rank.call(loaded.result), after=[loaded])
        >>> run = await client.start(flow)
    """

    def __init__(
        self,
        name: str = "flow",
        *,
        fail_fast: bool = False,
        deadline: float | timedelta | None = None,
        on_success: Call[Any] | Step[Any, Any] | None = None,
        on_error: Call[Any] | Step[Any, Any] | None = None,
        on_complete: Call[Any] | Step[Any, Any] | None = None,
        on_failure: Call[Any] | Step[Any, Any] | None = None,
        keep_result: float | timedelta = KEEP_RESULT_S,
    ) -> None:
        self.name = name
        self.fail_fast = fail_fast
        self.deadline_s = seconds(deadline)
        self.keep_result_s = seconds(keep_result)
        for given, value in (("deadline", self.deadline_s), ("keep_result", self.keep_result_s)):
            if value is not None and not 0 < value < math.inf:
                raise ArgumentsError(f"{given} must be more than 0 s, not {value!r}")
        self.returns: Tree | None = None
        """Whose results are the flow's; None: of the nodes that nothing waits for, by name."""
        self._callbacks: dict[When, Call[Any] | Step[Any, Any]] = {}
        callbacks: tuple[tuple[When, Any], ...] = (
            ("success", on_success),
            ("error", on_error),
            ("complete", on_complete),
            ("failure", on_failure),
        )
        for when, callback in callbacks:
            if callback is None:
                continue
            if not isinstance(callback, Call | Step):
                raise ArgumentsError(f"on_{when} takes task.call(...), not {callback!r}")
            self._callbacks[when] = callback
        self._nodes: list[FlowNode] = []
        self._names: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<flow {self.name}: {len(self._nodes)} nodes>"

    def __len__(self) -> int:
        return len(self._nodes)

    def add(
        self,
        part: Part[R] | Step[Any, R],
        *,
        after: After = (),
        name: str | None = None,
        retries: int | None = None,
        queue: str | None = None,
        timeout: float | timedelta | None = None,
        on_failure: OnFailure | None = None,
        fallback: Call[Any] | Step[Any, Any] | None = None,
        release_after: ReleaseAfter | None = None,
    ) -> Added[R]:
        """Add a call, or a chain, group, chord or flow; the options are those of `runner.node`.

        Args:
            part: what runs; a step (``task.s()``) gets the result of what is named by `after`, a
                list when there is more than one.
            after: the parts, or the names of nodes, that must have ended before.
            name: the name of the node, or in front of those of a flow; by default that of the task
                or the flow, and a number.
            retries: how often it is run again when it raises, in place of the task's.
            queue: the queue of its job.
            timeout: seconds an attempt may take, or a timedelta.
            on_failure: "fail" or "continue".
            fallback: a call that runs in its place when it has failed.
            release_after: "committed" or "submitted".

        Raises:
            ArgumentsError: this makes no part of a flow.
            FlowRefused: it takes the result of a node of another flow, or is a flow that has what
                only a whole can have.
        """
        options = NodeOptions(
            name=name,
            retries=retries,
            queue=queue,
            timeout=seconds(timeout),
            on_failure=on_failure,
            fallback=fallback,
            release_after=release_after,
        )
        given = (after,) if isinstance(after, Added | str) else tuple(after)
        placed = self._place(part, _results_of(given), self._sources(given), options)
        return Added(self, placed.exits, placed.tree)

    def hold_open(self, gate: FlowNode) -> None:
        """Put a gate first that is closed by hand; the flow does not end before."""
        self._names[gate.node.name] = 1
        self._nodes.insert(0, gate)

    def nodes(self) -> list[FlowNode]:
        """Return all nodes, callbacks behind the others."""
        return [*self._nodes, *self._callback_nodes()]

    def graph(self) -> Graph:
        """Return the checked graph; raise `FlowRefused`, naming the path, for one that is wrong."""
        return Graph((each.node for each in self.nodes()), self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the definition as plain data, to be stored: JSON where its arguments are."""
        return {
            "version": VERSION,
            "name": self.name,
            "fail_fast": self.fail_fast,
            "deadline": self.deadline_s,
            "keep_result": self.keep_result_s,
            "returns": tree_data(self.returns),
            "nodes": [data_of(each) for each in self._nodes],
            "callbacks": {each.node.when: data_of(each) for each in self._callback_nodes()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tasks: Iterable[Task[..., Any]]) -> Self:
        """Return a flow from what `to_dict` gave, here or in another version of the program.

        Args:
            data: the definition.
            tasks: those it may name.

        Raises:
            FlowRefused: it names a task that is not there, or is no definition of a flow.
        """
        known = {task.name: task for task in tasks}
        try:
            if data["version"] != VERSION:
                raise FlowRefused(
                    f"this version reads definitions {VERSION}, not {data['version']}"
                )
            flow = cls(
                data["name"],
                fail_fast=data["fail_fast"],
                deadline=data["deadline"],
                keep_result=data["keep_result"],
            )
            flow.returns = tree_from(data["returns"])
            flow._nodes = [node_from(each, known, flow=flow.name) for each in data["nodes"]]
            for when, each in data["callbacks"].items():
                callback = node_from(each, known, flow=flow.name, when=when)
                flow._callbacks[when] = callback.whole_call()
        except (LookupError, TypeError, ValueError) as exc:
            raise FlowRefused(f"this is no definition of a flow: {exc!r}") from exc
        scopes = (each.node.within[0] for each in flow._nodes if each.node.within)
        flow._names = dict.fromkeys((*(each.node.name for each in flow._nodes), *scopes), 1)
        return flow

    def to_mermaid(self) -> str:
        """Draw the flow as a Mermaid flowchart."""
        return drawing.to_mermaid(self.graph())

    def to_dot(self) -> str:
        """Draw the flow in the language of Graphviz."""
        return drawing.to_dot(self.graph())

    def _sources(self, given: tuple[Any, ...]) -> tuple[str, ...]:
        names: list[str] = []
        for each in given:
            if isinstance(each, str):
                names.append(each)
            elif isinstance(each, Added):
                if each.flow is not self:
                    raise FlowRefused(
                        f"{self.name}: {each.name!r} is a part of another flow", path=(each.name,)
                    )
                names += each.names
            else:
                raise ArgumentsError(f"after takes what add returned, or names, not {each!r}")
        return tuple(dict.fromkeys(names))

    def _place(
        self,
        part: Any,
        previous: Tree | None,
        sources: tuple[str, ...],
        options: NodeOptions,
    ) -> _Placed:
        if isinstance(part, Optioned):
            return self._place(part.part, previous, sources, options.over(part.options))
        if isinstance(part, Step):
            part = part.call()
        if isinstance(part, Call):
            return self._place_call(part, previous, sources, options)
        if isinstance(part, Flow):
            return self._place_flow(part, sources, options)
        if options.name is not None:
            raise ArgumentsError(f"name={options.name!r} is for one call, and this has several")
        if isinstance(part, Chord):
            part = Chain((part.header, part.callback))
        if isinstance(part, Chain):
            placed = _Placed(sources, ())
            for step in part.steps:
                placed = self._place(step, previous, sources, options)
                previous, sources = placed.tree, placed.exits
            return placed
        if isinstance(part, Group):
            return self._place_group(part, previous, sources, options)
        raise ArgumentsError(
            f"a flow is made of task.call(...), chain, group, chord and flows, not of {part!r}"
        )

    def _place_group(
        self,
        part: Group[Any],
        previous: Tree | None,
        sources: tuple[str, ...],
        options: NodeOptions,
    ) -> _Placed:
        sources = self._gated(sources, len(part.members))
        placed = [self._place(member, previous, sources, options) for member in part.members]
        exits = tuple(dict.fromkeys(name for each in placed for name in each.exits))
        return _Placed(exits if placed else sources, tuple(each.tree for each in placed))

    def _gated(self, sources: tuple[str, ...], count: int) -> tuple[str, ...]:
        """Put a gate between many and many: the edges would be their product."""
        if len(sources) < 2 or count < 2:  # noqa: PLR2004
            return sources
        name = self._new_name(GATE)
        self._nodes.append(FlowNode(Node(name=name, after=sources, is_gate=True), None))
        return (name,)

    def _place_call(
        self,
        call: Call[Any],
        previous: Tree | None,
        sources: tuple[str, ...],
        options: NodeOptions,
    ) -> _Placed:
        name = self._new_name(call.task.name) if options.name is None else options.name
        self._names.setdefault(name, 1)
        goes_on = options.on_failure == "continue"
        placed = self._node(call, previous, options, name=name, after=sources, goes_on=goes_on)
        self._nodes.append(placed)
        if options.fallback is not None:
            self._add_fallback(options.fallback, previous, placed.node)
        return _Placed((name,), name)

    def _place_flow(self, part: Flow, sources: tuple[str, ...], options: NodeOptions) -> _Placed:
        """Put a copy of a flow among the nodes, with its name in front of theirs."""
        self._check_nests(part)
        scope = self._new_name(part.name) if options.name is None else options.name
        self._names.setdefault(scope, 1)
        inner = [each.node for each in part._nodes]
        sources = self._gated(sources, sum(not n.after and n.is_ordinary for n in inner))
        has_fallback = {node.fallback_of for node in inner}
        for each in part._nodes:
            outer = replace(options, name=None)
            if each.node.name in has_fallback:
                outer = replace(outer, fallback=None)
            self._adopt(each, scope, sources, outer)
        waited_for = {name for node in inner for name in node.after}
        sinks = [n for n in inner if n.is_ordinary and n.name not in waited_for]
        exits = tuple(f"{scope}/{node.name}" for node in sinks)
        by_name: Tree = {node.name: node.name for node in sinks if not node.is_gate}
        tree = by_name if part.returns is None else part.returns
        return _Placed(exits if inner else sources, renamed(tree, scope))

    def _check_nests(self, part: Flow) -> None:
        if part is self:
            raise FlowRefused(f"{self.name}: a flow cannot be a part of itself", path=(self.name,))
        given = [f"on_{when}" for when in part._callbacks]
        given += ["fail_fast"] * part.fail_fast + ["deadline"] * (part.deadline_s is not None)
        if given:
            raise FlowRefused(
                f"{self.name}: {part.name!r} cannot be a part of it with {', '.join(given)} of "
                "its own: give them to the whole, or let a job wait for it by ctx.flow.wait(...)",
                path=(self.name, part.name),
            )

    def _adopt(
        self, each: FlowNode, scope: str, sources: tuple[str, ...], outer: NodeOptions
    ) -> None:
        """Copy a node of a flow that is nested in this one."""
        node, front = each.node, f"{scope}/"
        options = each.options if node.fallback_of else outer.over(each.options)
        name = front + node.name
        within = (scope, *node.within)
        self._names.setdefault(name, 1)
        copied = replace(
            node,
            name=name,
            after=tuple(front + parent for parent in node.after)
            or (sources if node.is_ordinary else ()),
            uses=tuple(front + used for used in node.uses),
            goes_on=options.on_failure == "continue",
            fallback_of=node.fallback_of and front + node.fallback_of,
            within=within,
        )
        holes = tuple((path, tree and renamed(tree, scope)) for path, tree in each.holes)
        self._nodes.append(FlowNode(copied, each.call, holes, options))
        if options.fallback is not None and each.options.fallback is None and each.call is not None:
            self._add_fallback(options.fallback, None, copied)

    def _add_fallback(
        self, fallback: Call[Any] | Step[Any, Any], previous: Tree | None, of: Node
    ) -> None:
        call = fallback.call() if isinstance(fallback, Step) else fallback
        name = self._new_name(f"{of.name}:fallback")
        facts: dict[str, Any] = {"name": name, "fallback_of": of.name, "within": of.within}
        self._nodes.append(self._node(call, previous, NodeOptions(), **facts))

    def _node(
        self,
        call: Call[Any],
        previous: Tree | None,
        options: NodeOptions,
        **facts: Any,
    ) -> FlowNode:
        for option in _NOT_FOR_NODES:
            if getattr(call.options, option) is not None:
                raise ArgumentsError(f"{facts['name']}: a node of a flow takes no {option}")
        holes: list[Hole] = []
        args, kwargs = call.args, call.kwargs
        if any(map(_may_refer, args)) or any(map(_may_refer, kwargs.values())):
            args = tuple(self._cut(value, ("a", i), holes) for i, value in enumerate(args))
            kwargs = {key: self._cut(value, ("k", key), holes) for key, value in kwargs.items()}
        is_callback = bool(facts.get("when"))
        filled: list[Hole] = []
        for path, tree in holes:
            if tree == "":
                if previous is None and not is_callback:
                    raise ArgumentsError(
                        f"{facts['name']}: there is no step before it, whose result would be its "
                        "argument: write task.call(...)"
                    )
                tree = previous  # noqa: PLW2901  the hole is filled
            filled.append((path, tree))
        uses = tuple(dict.fromkeys(name for _, tree in filled for name in leaves(tree)))
        plain = Call(call.task, args, kwargs, call.options)
        return FlowNode(Node(uses=uses, **facts), plain, tuple(filled), options)

    def _cut(self, value: Any, path: Path, holes: list[Hole]) -> Any:
        """Return a value with None in the places of references, and note these."""
        if isinstance(value, Reference):
            if value is not PREVIOUS and value.flow is not self:
                raise FlowRefused(
                    f"{self.name}: a result of another flow cannot be used", path=(self.name,)
                )
            holes.append((path, value.nodes))
            return None
        if type(value) not in _CONTAINERS or not _may_refer(value):
            return value
        if isinstance(value, dict):
            return {key: self._cut(each, (*path, key), holes) for key, each in value.items()}
        return type(value)(self._cut(each, (*path, i), holes) for i, each in enumerate(value))

    def _new_name(self, base: str) -> str:
        count = self._names.get(base, 0)
        name = base
        while name in self._names:
            count += 1
            name = f"{base}-{count}"
        self._names[base] = max(count, 1)
        self._names.setdefault(name, 1)
        return name

    def _callback_nodes(self) -> Iterator[FlowNode]:
        for when, callback in self._callbacks.items():
            call = callback.call() if isinstance(callback, Step) else callback
            name = f"on_{when}"
            while name in self._names:
                name += "_"
            yield self._node(call, None, NodeOptions(), name=name, when=when)


def _results_of(given: tuple[Any, ...]) -> Tree | None:
    """Return whose results a step gets that comes after these; None where there are none."""
    trees = tuple(each.nodes if isinstance(each, Added) else each for each in given)
    if len(trees) == 1:
        found: Tree = trees[0]
        return found
    return trees or None


def _may_refer(value: Any) -> bool:
    """Tell quickly whether a value may hold a reference: most hold none."""
    kind = type(value)
    if kind is Reference:
        return True
    if kind is dict:
        return any(map(_may_refer, value.values()))
    return kind in (list, tuple) and any(map(_may_refer, value))


def flow_of(part: Part[Any]) -> Flow:
    """Return a flow as it is, and a part as a flow whose result is the part's."""
    if isinstance(part, Flow):
        return part
    flow = Flow(_name_of(part))
    flow.returns = flow.add(part).nodes
    return flow


def _name_of(part: Any) -> str:
    while isinstance(part, Optioned):
        part = part.part
    return part.task.name if isinstance(part, Call) else type(part).__name__.lower()


__all__ = ["Added", "Flow", "FlowNode", "flow_of", "leaves"]
