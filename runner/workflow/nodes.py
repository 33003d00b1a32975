"""The nodes of a flow as they were written down, and the same as plain data, to be stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from runner.composition import NO_OPTIONS, NodeOptions
from runner.errors import ArgumentsError, FlowRefused, did_you_mean
from runner.tasks import Call, EnqueueOptions
from runner.types import PREVIOUS, Reference, Tree
from runner.workflow.graph import Node

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runner.tasks import Task

R = TypeVar("R")

Path: TypeAlias = tuple[Any, ...]
"""Where a result goes: "a" and a place, or "k" and a name, and on into lists and dicts."""

Hole: TypeAlias = tuple[Path, "Tree | None"]
"""A path, and whose result goes there; None: the report that a callback gets."""

_OF_NODE = ("retries", "queue", "timeout", "on_failure", "release_after")
_OF_CALL = ("delay", "queue", "expires")


@dataclass(frozen=True, slots=True)
class FlowNode:
    """One node as it was written down.

    Attributes:
        call: None for a gate; where results of others go, its arguments hold None.
        holes: where they go.
    """

    node: Node
    call: Call[Any] | None
    holes: tuple[Hole, ...] = ()
    options: NodeOptions = NO_OPTIONS

    def whole_call(self) -> Call[Any]:
        """Return the call as it was written, where a report is all that it takes."""
        assert self.call is not None
        whole: dict[str, Any] = {"a": list(self.call.args), "k": dict(self.call.kwargs)}
        for path, _ in self.holes:
            _put(whole, path, PREVIOUS)
        return Call(self.call.task, tuple(whole["a"]), whole["k"], self.call.options)


class Added(Generic[R]):
    """A part of a flow, as `Flow.add` returns it.

    Attributes:
        flow: its flow.
        names: the nodes that others wait for when they wait for this part.
        nodes: the nodes whose results are its result.
    """

    __slots__ = ("flow", "names", "nodes")

    def __init__(self, flow: object, names: tuple[str, ...], nodes: Tree) -> None:
        self.flow = flow
        self.names = names
        self.nodes = nodes

    @property
    def name(self) -> str:
        """The name of the node, where there is one; those of a group with commas."""
        return ", ".join(self.names)

    @property
    def result(self) -> R:
        """What stands for its result among the arguments of calls that are added later.

        The type is that of the result; the value comes when the job is claimed.
        """
        return cast(R, Reference(self.nodes, self.flow))

    def __getitem__(self, key: Any) -> Added[Any]:
        """Return a part of it: of a flow by name, of a group by place."""
        if isinstance(self.nodes, str):
            raise ArgumentsError(f"{self.name} is one call, and has no part {key!r}")
        try:
            part: Tree = cast("Any", self.nodes)[key]
        except (LookupError, TypeError):
            known = list(self.nodes) if isinstance(self.nodes, dict) else range(len(self.nodes))
            raise ArgumentsError(f"there is no part {key!r} among {known!r}") from None
        return Added(self.flow, tuple(dict.fromkeys(leaves(part))), part)

    def __repr__(self) -> str:
        return f"<{self.name} of {self.flow!r}>"


def leaves(tree: Tree | None) -> Iterator[str]:
    """Give the names in a tree, in order."""
    if isinstance(tree, str):
        yield tree
    elif tree is not None:
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(each)


def renamed(tree: Tree, scope: str) -> Tree:
    """Return a tree of a flow that is nested under a name."""
    if isinstance(tree, str):
        return f"{scope}/{tree}"
    if isinstance(tree, dict):
        return {key: renamed(each, scope) for key, each in tree.items()}
    return tuple(renamed(each, scope) for each in tree)


def _put(whole: Any, path: Path | list[Any], value: Any) -> None:
    """Put a value at a path; lists and dicts on the way are copied, for they may be shared."""
    for step in path[:-1]:
        inner = whole[step]
        # A codec may have kept a tuple.
        whole[step] = dict(inner) if isinstance(inner, dict) else list(inner)
        whole = whole[step]
    whole[path[-1]] = value


def data_of(each: FlowNode) -> dict[str, Any]:
    """Return a node as plain data; what it does not ask for is left out."""
    node, call = each.node, each.call
    found: dict[str, Any] = {"name": node.name}
    if call is not None:
        found["task"] = call.task.name
        found |= _without_empty(args=list(call.args), kwargs=call.kwargs)
        found |= _without_empty(takes=[[list(path), tree_data(tree)] for path, tree in each.holes])
        asked = {name: getattr(call.options, name) for name in _OF_CALL}
        asked["at"] = None if call.options.at is None else call.options.at.isoformat()
        found |= _without_empty(call={k: v for k, v in asked.items() if v is not None})
        asked = {name: getattr(each.options, name) for name in _OF_NODE}
        found |= _without_empty(options={k: v for k, v in asked.items() if v is not None})
    return found | _without_empty(
        after=list(node.after), fallback_of=node.fallback_of, within=list(node.within)
    )


def node_from(
    data: Mapping[str, Any], tasks: Mapping[str, Task[..., Any]], *, flow: str, when: Any = ""
) -> FlowNode:
    """Return a node from plain data; raise `FlowRefused` for a task that is not there."""
    name, options = data["name"], NodeOptions(**data.get("options", {}))
    holes = tuple((tuple(path), tree_from(tree)) for path, tree in data.get("takes", ()))
    node = Node(
        name=name,
        after=tuple(data.get("after", ())),
        uses=tuple(dict.fromkeys(used for _, tree in holes for used in leaves(tree))),
        is_gate="task" not in data,
        goes_on=options.on_failure == "continue",
        fallback_of=data.get("fallback_of", ""),
        when=when,
        within=tuple(data.get("within", ())),
    )
    if node.is_gate:
        return FlowNode(node, None)
    task = tasks.get(data["task"])
    if task is None:
        hint = did_you_mean(data["task"], tasks)
        raise FlowRefused(
            f"{flow}: there is no task {data['task']!r} for {name!r}{hint}",
            path=(name, data["task"]),
        )
    asked = dict(data.get("call", {}))
    if "at" in asked:
        asked["at"] = datetime.fromisoformat(asked["at"])
    args, kwargs = tuple(data.get("args", ())), dict(data.get("kwargs", {}))
    return FlowNode(node, Call(task, args, kwargs, EnqueueOptions(**asked)), holes, options)


def tree_data(tree: Tree | None) -> Any:
    """Return a tree of names as lists and dicts."""
    if tree is None or isinstance(tree, str):
        return tree
    if isinstance(tree, dict):
        return {key: tree_data(each) for key, each in tree.items()}
    return [tree_data(each) for each in tree]


def tree_from(data: Any) -> Any:
    """Return a tree of names from lists and dicts."""
    if data is None or isinstance(data, str):
        return data
    if isinstance(data, dict):
        return {key: tree_from(each) for key, each in data.items()}
    return tuple(tree_from(each) for each in data)


def _without_empty(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


__all__ = [
    "Added",
    "FlowNode",
    "Hole",
    "Path",
    "data_of",
    "leaves",
    "node_from",
    "renamed",
    "tree_data",
    "tree_from",
]
