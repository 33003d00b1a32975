"""Many jobs under one handle, which grows while it is open."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Self

import msgspec

from runner.errors import FlowError, FlowNotFound
from runner.workflow.flow import Flow
from runner.workflow.graph import Node
from runner.workflow.nodes import FlowNode
from runner.workflow.plan import Planner
from runner.workflow.run import Run
from runner.workflow.store import PAGE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from types import TracebackType

    from runner.job import Results
    from runner.tasks import Call
    from runner.workflow.graph import Graph
    from runner.workflow.store import FlowStore

OPEN = "open"

_pack = msgspec.msgpack.Encoder().encode


class Batch(Run[None]):
    """A handle on many jobs that belong together, and may become more until it is closed.

    Leaving ``async with`` closes it. Its end, the counts and the callbacks are those of a flow:
    `status`, `wait`, `nodes`, `cancel` and `retry` do what they do there.

    Example:
        >>> async with await client.batch("import", on_complete=tell.s()) as batch:
        ...     async for page in pages:
        ...         await batch.add(load.call(row) for row in page)
        >>> (await batch.wait()).failed
    """

    async def add(self, calls: Iterable[Call[Any]], **options: Any) -> int:
        """Add jobs, which start at once; return how many.

        They travel in pages of 500. Where Redis goes away in the middle, some pages may be added.

        Args:
            calls: what runs.
            options: those of a node, for each of them: retries, timeout, queue, fallback.

        Raises:
            FlowError: the batch is closed, or was stopped.
            FlowNotFound: there is none, or it is kept no more.
            RedisUnavailable: Redis is away; whether the page under way was added is unknown.
        """
        added = 0
        page: list[Call[Any]] = []
        for call in calls:
            page.append(call)
            if len(page) == PAGE:
                added += await self._add(page, options)
                page = []
        return added + (await self._add(page, options) if page else 0)

    async def close(self) -> bool:
        """Take no more jobs: it ends when those it has have ended. False: it was closed before.

        Raises:
            FlowNotFound: there is none, or it is kept no more.
        """
        closed = await self._store.call("flow_close", self.id, [self.id])
        if closed < 0:
            raise FlowNotFound(f"there is no batch {self.id!r}", flow_id=self.id)
        return bool(closed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _add(self, calls: Sequence[Call[Any]], options: dict[str, Any]) -> int:
        draft = Flow("batch")
        for call in calls:
            draft.add(call, **options)
        nodes, graph = draft.nodes(), draft.graph()
        name = os.urandom(8).hex()
        first = await self._store.call("flow_reserve", self.id, [name, 0, len(nodes)])
        if first >= 0:
            args = ["", "", 0, self.id, 0, *self._entries(nodes, graph, first)]
            first = await self._store.call("flow_add", self.id, args, "", "")
        if first < 0:
            await self._store.status(self.id)  # says so when there is none
            raise FlowError(f"batch {self.id} takes nothing more: it is closed, or was stopped")
        return len(calls)

    def _entries(self, nodes: Sequence[FlowNode], graph: Graph, first: int) -> list[Any]:
        planner = Planner(
            flow_id=self.id,
            encode=self._store.encode,
            queue=self._store.queue,
            now_ms=time.time_ns() // 1_000_000,
            numbers={each.node.name: first + offset for offset, each in enumerate(nodes)},
        )
        args: list[Any] = []
        # Results are kept where others take them, and nobody can.
        for entry in planner.entries(nodes, graph, frozenset()):
            args += (entry.number, entry.plan, entry.names, entry.payload, _pack(entry.parents))
        return args


async def open_batch(
    flow: Flow,
    batch_id: str | None,
    store: FlowStore,
    results: Results,
    *,
    begin: Callable[[Flow, str | None, FlowStore], Awaitable[str]],
) -> Batch:
    """Start a flow of one node that stands for its being open, and return it as a batch."""
    flow.hold_open(FlowNode(Node(name=OPEN, is_gate=True, is_open=True), None))
    return Batch(await begin(flow, batch_id, store), store, results)


__all__ = ["Batch", "open_batch"]
