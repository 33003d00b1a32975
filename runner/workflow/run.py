"""A handle on a flow that was started."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from runner.errors import DecodeError, FlowFailed
from runner.workflow import drawing
from runner.workflow.graph import FlowState, NodeState
from runner.workflow.plan import JOB_PREFIX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator

    from runner.job import Results
    from runner.workflow.flow import Flow
    from runner.workflow.store import FlowStore
    from runner.workflow.stored import FlowStatus, NodeInfo

R = TypeVar("R")

PROGRESS_S = 0.2
LOOK_S = 0.05
SHOWN_FAILURES = 100


class Progress:
    """How far a flow is: await it for now, or loop over it until the flow has ended.

    Example:
        >>> async for status in run.progress:
        ...     print(f"{status.fraction:.0%}")
    """

    def __init__(self, store: FlowStore, flow_id: str) -> None:
        self._store = store
        self._flow_id = flow_id

    def __await__(self) -> Generator[Any, None, FlowStatus]:
        return self._store.status(self._flow_id).__await__()

    async def __aiter__(self) -> AsyncIterator[FlowStatus]:
        """Give the status whenever it has changed, and that of the end last."""
        last: FlowStatus | None = None
        while True:
            status = await self._store.status(self._flow_id)
            if status != last:
                yield status
            if status.has_ended:
                return
            last = status
            await asyncio.sleep(PROGRESS_S)


class Run(Generic[R]):
    """A handle on a flow: its result, its state, its end.

    Attributes:
        id: the flow's id; `Client.flow` gives a handle by it.
    """

    def __init__(
        self,
        flow_id: str,
        store: FlowStore,
        results: Results,
        convert: Callable[[int, Any], Any] | None = None,
    ) -> None:
        self.id = flow_id
        self._store = store
        self._results = results
        self._convert = convert

    def __repr__(self) -> str:
        return f"<flow run {self.id}>"

    async def result(
        self,
        timeout: float | None = None,  # noqa: ASYNC109  as `Job.result` has it
    ) -> R:
        """Wait for the end and return the result: a part's, or a dict by name for a `Flow`.

        In the place of a node that failed, and whose failure does not matter, stands None.

        Args:
            timeout: seconds to wait; None waits as long as it takes.

        Raises:
            TimeoutError: the time is up; the flow goes on.
            FlowFailed: it failed, was cancelled, or its deadline came.
            FlowNotFound: there is no such flow, or it is kept no more.
        """
        status = await self.wait(timeout)
        if status.state is not FlowState.SUCCEEDED:
            raise await self._failure(status)
        return cast(R, await self._store.result(self.id, self._convert))

    async def wait(
        self,
        timeout: float | None = None,  # noqa: ASYNC109  as `Job.result` has it
    ) -> FlowStatus:
        """Wait until the flow has ended, however it does; callbacks may still run then.

        Raises:
            TimeoutError: the time is up; the flow goes on.
            FlowNotFound: there is no such flow, or it is kept no more.
        """
        async with asyncio.timeout(timeout):
            while True:
                status = await self._store.status(self.id)
                if status.has_ended:
                    return status
                # The flow stands in its queue under an id of its own: its end is told as a
                # job's result is.
                home = await self._store.home(self.id)
                told = await self._results.wait(f"{JOB_PREFIX}{self.id}", home, timeout_s=None)
                if told is None:  # nothing stands there: it has ended a moment ago
                    await asyncio.sleep(LOOK_S)

    async def status(self) -> FlowStatus:
        """Read how far it is; raise `FlowNotFound`."""
        return await self._store.status(self.id)

    async def nodes(self) -> list[NodeInfo]:
        """Read all nodes, in the order in which they were added; raise `FlowNotFound`."""
        return await self._store.nodes(self.id)

    @property
    def progress(self) -> Progress:
        """How far it is: ``await run.progress``, or ``async for status in run.progress``."""
        return Progress(self._store, self.id)

    async def cancel(self) -> bool:
        """Start nothing more of it, and abort what runs; return False when it had ended.

        What waits in queues is taken out by the next worker that claims. Jobs that run are aborted
        by workers with ``allow_abort_jobs``; others run to their end, and the flow ends then.
        """
        return await self._store.stop(self.id)

    async def retry(self) -> int:
        """Run again what did not succeed of a flow that has ended, with the results there are.

        Returns:
            How many nodes that is.

        Raises:
            FlowError: it runs, or somebody else does the same.
            FlowNotFound: there is no such flow, or it is kept no more.
        """
        return await self._store.run_again(self.id)

    async def to_mermaid(self) -> str:
        """Draw it as a Mermaid flowchart, coloured by the states of its nodes."""
        stored = await self._store.stored(self.id)
        return drawing.to_mermaid(stored.graph, stored.states)

    async def to_dot(self) -> str:
        """Draw it in the language of Graphviz, coloured by the states of its nodes."""
        stored = await self._store.stored(self.id)
        return drawing.to_dot(stored.graph, stored.states)

    async def _failure(self, status: FlowStatus) -> FlowFailed:
        stored = await self._store.stored(self.id)
        failed = [n for n, state in stored.states.items() if state is NodeState.FAILED]
        shown = tuple(failed[:SHOWN_FAILURES])
        what = {"expired": "took longer than its deadline"}.get(
            status.state.value, f"was {status.state.value}"
        )
        if status.state is FlowState.FAILED:
            what = f"failed at {', '.join(shown[:5])}" + (" …" if len(failed) > 5 else "")  # noqa: PLR2004
        failure = FlowFailed(
            f"flow {status.name} ({self.id}) {what}",
            flow_id=self.id,
            state=status.state.value,
            failed=shown,
        )
        records = await self._store.records(self.id, [stored.numbers[n] for n in shown[:1]])
        for record in records.values():
            if isinstance(record.result, BaseException):
                failure.__cause__ = record.result
        return failure


def converter(flow: Flow) -> Callable[[int, Any], Any]:
    """Return what turns the plain result of a node into what its task is annotated to return."""
    nodes = flow.nodes()
    # A fallback may return something else than the node in whose place it runs.
    replaced = {each.node.fallback_of for each in nodes}

    def convert(number: int, value: Any) -> Any:
        if number >= len(nodes):  # under this id another flow was started
            return value
        each = nodes[number]
        if value is None or each.call is None or each.node.name in replaced:
            return value
        try:
            return each.call.task.signature.returns.convert(value)
        except DecodeError as exc:
            raise DecodeError(f"the result of node {each.node.name} does not fit: {exc}") from exc

    return convert


__all__ = ["Progress", "Run", "converter"]
