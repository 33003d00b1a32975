"""What a client does with flows: start them, open batches, return handles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from runner.middleware import FlowCall, Middleware, around_start
from runner.workflow.batch import Batch, open_batch
from runner.workflow.flow import KEEP_RESULT_S, Flow, flow_of
from runner.workflow.run import Run, converter
from runner.workflow.store import FlowStore

if TYPE_CHECKING:
    from datetime import timedelta

    from redis.asyncio import Redis

    from runner.codec import Codec
    from runner.job import Results
    from runner.tasks import Call, Step, Task
    from runner.types import Part

R = TypeVar("R")


class StartsFlows:
    """The part of a client that speaks of flows."""

    default_queue_name: str
    expires_extra_ms: int
    _middleware: tuple[Middleware, ...]

    @property
    def codec(self) -> Codec:
        """The codec of jobs and results."""
        raise NotImplementedError

    def _waiting_results(self) -> Results:
        raise NotImplementedError

    def _encode(
        self,
        name: str,
        job_id: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        now_ms: int,
        extra: dict[str, Any],
        attempt: int | None = None,
        task: Task[..., Any] | None = None,
    ) -> bytes:
        raise NotImplementedError

    @property
    def flows(self) -> FlowStore:
        """The door to flows in Redis; `start` and `flow` are what users want."""
        return FlowStore(
            cast("Redis", self),
            self.codec,
            self._encode,
            queue=self.default_queue_name,
            lifetime_ms=self.expires_extra_ms,
        )

    async def start(self, flow: Part[R], *, flow_id: str | None = None) -> Run[R]:
        """Start a flow, or a chain, group or chord as one, and return a handle on it.

        It is stored in bounded calls, and made effective by one last step: a caller that is
        killed before leaves nothing that runs.

        Args:
            flow: what to start.
            flow_id: its id; a flow that was started under this id is not started again.

        Raises:
            FlowRefused: the definition makes no sense; the message names the path.
            EncodeError: an argument cannot travel.
            PayloadTooLarge: an encoded job exceeds ``max_payload_bytes``.
            RedisOutOfMemory: Redis holds its ``maxmemory``; nothing was started.
            RedisUnavailable: Redis is away; under a `flow_id` of yours it is safe to start it
                again.
        """
        whole = flow_of(flow)
        store = self.flows
        started = await self._begin(whole, flow_id, store)
        return Run(started, store, self._waiting_results(), converter(whole))

    async def batch(
        self,
        name: str = "batch",
        *,
        batch_id: str | None = None,
        on_success: Call[Any] | Step[Any, Any] | None = None,
        on_failure: Call[Any] | Step[Any, Any] | None = None,
        on_complete: Call[Any] | Step[Any, Any] | None = None,
        keep_result: float | timedelta = KEEP_RESULT_S,
    ) -> Batch:
        """Open a batch: many jobs under one handle, which grows until it is closed.

        Args:
            name: what it is called where flows are shown.
            batch_id: its id; a batch that was opened under this id is not opened again.
            on_success: a call for when it is closed and all its jobs ended well.
            on_failure: a call for the first job that fails.
            on_complete: a call for when it is closed and all its jobs have ended.
            keep_result: seconds, or a timedelta, for which it can be looked at then.

        Raises:
            RedisOutOfMemory: Redis holds its ``maxmemory``.
            RedisUnavailable: Redis is away.
        """
        whole = Flow(
            name,
            on_success=on_success,
            on_failure=on_failure,
            on_complete=on_complete,
            keep_result=keep_result,
        )
        store = self.flows
        return await open_batch(whole, batch_id, store, self._waiting_results(), begin=self._begin)

    async def _begin(self, flow: Flow, flow_id: str | None, store: FlowStore) -> str:
        """Start a flow through the middleware."""

        async def put(call: FlowCall) -> str:
            return await store.start(flow, call.flow_id)

        around = around_start(self._middleware, put)
        return await (put if around is None else around)(FlowCall(name=flow.name, flow_id=flow_id))

    def flow(self, flow_id: str) -> Run[Any]:
        """Return a handle on a flow by its id; nothing is asked of Redis."""
        return Run(flow_id, self.flows, self._waiting_results())


__all__ = ["StartsFlows"]
