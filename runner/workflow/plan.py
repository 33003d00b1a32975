"""Turn a flow into what is stored of it: numbers in the place of names, payloads of its jobs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from runner.codec import JobRecord, encode_job, signs
from runner.errors import FlowRefused
from runner.workflow.flow import leaves

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from runner.codec import Codec
    from runner.tasks import Call, Task
    from runner.types import Tree
    from runner.workflow.flow import Flow, FlowNode
    from runner.workflow.graph import Graph

MOST_NODES = 100_000
A_TIME_MS = 1_000_000_000_000
"""From here on a delay is a time: Unix time in ms, and a delay of 30 years."""
JOB_PREFIX = "flow:"
"""How the ids of nodes' jobs begin; ``lua/flow.lua`` knows a node by it."""

REFERENCES = "refs"
TIMEOUT = "timeout"
RETRIES = "retries"
WITHIN = "within"
"""The options of a node's payload; `WITHIN` are the seconds in which it must start once queued."""

_ID = re.compile(r"(\{[^{}:]+\})?[^{}:\s]{1,200}")

RUN = ".."
"""Begins three values of a tree: this, and the first and last of numbers in a row."""

_pack = msgspec.msgpack.Encoder().encode


class Encodes(Protocol):
    """What encodes one job: the client, for its codec and bounds are the fleet's."""

    def __call__(
        self,
        name: str,
        job_id: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        now_ms: int,
        extra: dict[str, Any],
        task: Task[..., Any] | None = None,
    ) -> bytes:
        """Return the payload; raise `EncodeError` or `PayloadTooLarge`."""
        ...


def plain_encoder(codec: Codec) -> Encodes:
    """Return what encodes jobs without a client, for a worker that has none of ours."""

    def encode(
        name: str,
        job_id: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        now_ms: int,
        extra: dict[str, Any],
        task: Task[..., Any] | None = None,
    ) -> bytes:
        del task
        options = {**extra, "id": job_id} if signs(codec) else extra
        return encode_job(codec, JobRecord(name, args, kwargs, None, now_ms, options))

    return encode


class Entry(NamedTuple):
    """One node on its way into Redis.

    Attributes:
        plan: packed flags, queue, delay, fallback, owner, children; see ``lua/flow.lua``.
        names: its packed name and task.
        payload: its encoded job, b"" for a gate.
        parents: the numbers of the nodes that must end before it.
    """

    number: int
    plan: bytes
    names: bytes
    payload: bytes
    parents: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Numbers nodes, and encodes them.

    Attributes:
        flow_id: the flow's id.
        encode: encodes a job.
        queue: the queue of tasks that name none.
        now_ms: when the flow was made.
        numbers: of each node its number.
    """

    flow_id: str
    encode: Encodes
    queue: str
    now_ms: int
    numbers: Mapping[str, int]

    def entries(
        self, nodes: Iterable[FlowNode], graph: Graph, kept: frozenset[str] | None
    ) -> Iterator[Entry]:
        """Encode nodes, one after the other; `kept` None keeps the results of all."""
        for each in nodes:
            yield self._entry(each, graph, keeps=kept is None or each.node.name in kept)

    def _entry(self, each: FlowNode, graph: Graph, *, keeps: bool) -> Entry:
        node, call, numbers = each.node, each.call, self.numbers
        number = numbers[node.name]
        fallback = graph.fallbacks.get(node.name)
        early = each.options.release_after == "submitted"
        flags = (
            ("g", node.is_gate),
            ("k", keeps and not node.is_gate),
            ("c", node.goes_on),
            ("e", early),
            ("b", bool(node.when)),
            ("o", node.is_open),
        )
        plan = (
            "".join(letter for letter, is_set in flags if is_set),
            self.queue_of(each),
            0 if call is None else delay_of(call),
            -1 if fallback is None else numbers[fallback],
            numbers[node.fallback_of] if node.fallback_of else -1,
            ranges(numbers[child] for child in graph.children[node.name]),
        )
        return Entry(
            number=number,
            plan=_pack(plan),
            names=_pack((node.name, "" if call is None else call.task.name)),
            payload=b"" if call is None else self._payload(each, call, number),
            parents=tuple(numbers[name] for name in dict.fromkeys(node.after)),
        )

    def queue_of(self, each: FlowNode) -> str:
        """Return the queue of a node's job."""
        if each.call is None:
            return self.queue
        call = each.call
        return (
            each.options.queue or call.options.queue or call.task.task_options.queue or self.queue
        )

    def _payload(self, each: FlowNode, call: Call[Any], number: int) -> bytes:
        options = each.options
        extra: dict[str, Any] = {}
        if each.holes:
            extra[REFERENCES] = [
                (list(path), None if tree is None else wire_tree(tree, self.numbers))
                for path, tree in each.holes
            ]
        if options.timeout is not None:
            extra[TIMEOUT] = options.timeout
        if options.retries is not None:
            extra[RETRIES] = options.retries
        within = call.options.expires or call.task.task_options.expires
        if within:
            extra[WITHIN] = within
        return self.encode(
            call.task.name,
            job_id_of(self.flow_id, number),
            call.args,
            call.kwargs,
            now_ms=self.now_ms,
            extra=extra,
            task=call.task,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole flow, ready to be stored.

    Attributes:
        entries: its nodes.
        roots: those without parents, as first, last, …
        facts: what is stored of the flow itself, field by field.
        home: the queue in which the flow stands while it runs: one that workers of it read.
        deadline_ms: how long it may take, 0 for any time.
        delay_ms: the longest delay of a node.
    """

    entries: list[Entry]
    roots: bytes
    facts: dict[str, Any]
    home: str
    deadline_ms: int
    delay_ms: int


def plan_of(flow: Flow, flow_id: str, *, encode: Encodes, queue: str, now_ms: int) -> Plan:
    """Check a flow and encode it.

    Raises:
        FlowRefused: its definition makes no sense; the message names the path.
        EncodeError: an argument cannot travel.
        PayloadTooLarge: an encoded job is too large.
    """
    nodes = flow.nodes()
    if len(nodes) > MOST_NODES:
        raise FlowRefused(
            f"{flow.name}: {len(nodes):,} nodes are more than {MOST_NODES:,}; let a node take "
            "more than one item: task.chunks(items, 100)",
            path=(),
        )
    graph = flow.graph()
    numbers = {each.node.name: number for number, each in enumerate(nodes)}
    planner = Planner(flow_id=flow_id, encode=encode, queue=queue, now_ms=now_ms, numbers=numbers)
    returns = flow.returns
    sinks = graph.sinks()
    wanted = sinks if returns is None else list(leaves(returns))
    kept = frozenset((*wanted, *(name for each in nodes for name in each.node.uses)))
    # A fallback's result is kept where that of the node is, in whose place it runs.
    kept |= {graph.fallbacks[name] for name in kept if name in graph.fallbacks}
    facts: dict[str, Any] = {
        "name": flow.name,
        "fast": int(flow.fail_fast),
        "keep": int(flow.keep_result_s * 1000),
        "left": sum(each.node.is_ordinary for each in nodes),
        "ordinary": sum(each.node.is_ordinary for each in nodes),
        "returns": _pack(
            {name: numbers[name] for name in sinks if not graph.nodes[name].is_gate}
            if returns is None
            else wire_tree(returns, numbers)
        ),
    }
    for each in nodes:
        if each.node.when:
            facts[f"on_{each.node.when}"] = numbers[each.node.name]
    delays = (
        delay if delay < A_TIME_MS else delay - now_ms
        for delay in (delay_of(each.call) for each in nodes if each.call is not None)
    )
    return Plan(
        entries=list(planner.entries(nodes, graph, kept)),
        roots=_pack(ranges(numbers[name] for name in graph.roots())),
        facts=facts,
        home=next((planner.queue_of(each) for each in nodes if each.call is not None), queue),
        deadline_ms=int((flow.deadline_s or 0) * 1000),
        delay_ms=max(delays, default=0),
    )


def job_id_of(flow_id: str, number: int) -> str:
    """Return the id of a node's job."""
    return f"{JOB_PREFIX}{flow_id}:{number}"


def node_of(job_id: str) -> tuple[str, int] | None:
    """Return flow and number of a node's job; None for a job that is no node's."""
    if not job_id.startswith(JOB_PREFIX):
        return None
    flow_id, _, number = job_id[len(JOB_PREFIX) :].rpartition(":")
    return (flow_id, int(number)) if flow_id and number.isdigit() else None


def checked_flow_id(flow_id: str) -> str:
    """Return the id; raise `FlowRefused` for one that cannot be."""
    if not _ID.fullmatch(str(flow_id)):
        raise FlowRefused(
            f"the id of a flow is a text of up to 200 letters without spaces, colons and braces, "
            f"not {flow_id!r}"
        )
    return flow_id


def delay_of(call: Call[Any]) -> int:
    """Return how long a node waits once it could run, in ms; or a time, which is much more."""
    if call.options.at is not None:
        return int(call.options.at.timestamp() * 1000)
    return int((call.options.delay or 0) * 1000)


def ranges(numbers: Iterable[int]) -> list[int]:
    """Return numbers as first, last, first, last, …, each range without gaps."""
    found: list[int] = []
    for number in sorted(set(numbers)):
        if found and found[-1] == number - 1:
            found[-1] = number
        else:
            found += (number, number)
    return found


def wire_tree(tree: Tree, numbers: Mapping[str, int]) -> Any:
    """Return a tree with numbers for names; those in a row become one value."""
    if isinstance(tree, str):
        return numbers[tree]
    given = [wire_tree(each, numbers) for each in tree]
    wired: list[Any] = []
    start = 0
    for end in range(1, len(given) + 1):
        if end < len(given) and _in_a_row(given[end - 1], given[end]):
            continue
        if end - start > 2:  # noqa: PLR2004  two numbers are shorter than what stands for them
            wired.append([RUN, given[start], given[end - 1]])
        else:
            wired += given[start:end]
        start = end
    return wired


def read_tree(wired: Any) -> Any:
    """Return nested lists of numbers, as `wire_tree` had them."""
    if isinstance(wired, int):
        return wired
    found: list[Any] = []
    for each in wired:
        if isinstance(each, list | tuple) and each and each[0] == RUN:
            found += range(each[1], each[2] + 1)
        else:
            found.append(read_tree(each))
    return found


def numbers_in(tree: Any) -> Iterator[int]:
    """Give the numbers of a tree that `read_tree` returned."""
    if isinstance(tree, int):
        yield tree
    else:
        for each in tree:
            yield from numbers_in(each)


def filled(tree: Any, values: Mapping[int, Any]) -> Any:
    """Return the tree with values in the places of numbers."""
    if isinstance(tree, int):
        return values[tree]
    return [filled(each, values) for each in tree]


def _in_a_row(left: Any, right: Any) -> bool:
    return type(left) is int and type(right) is int and right == left + 1


__all__ = [
    "Entry",
    "Plan",
    "Planner",
    "checked_flow_id",
    "filled",
    "job_id_of",
    "node_of",
    "numbers_in",
    "plain_encoder",
    "plan_of",
    "ranges",
    "read_tree",
]
