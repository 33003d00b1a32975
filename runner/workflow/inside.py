"""What a job sees of flows: its own, which it can let grow, and those that it waits for."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import msgspec

from runner import codec as codecs
from runner import keys
from runner.errors import DecodeError, FlowError, FlowFailed, FlowNotFound, LeaseLost, Snooze
from runner.workflow.flow import Added, Flow, flow_of
from runner.workflow.graph import FlowState
from runner.workflow.plan import Planner, filled, node_of, numbers_in, read_tree
from runner.workflow.run import converter
from runner.workflow.store import check_without, read_results, why_failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from runner.broker import Claimed
    from runner.codec import Codec
    from runner.tasks import Step
    from runner.types import Part
    from runner.workflow.store import FlowStore

R = TypeVar("R")

Given: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a job, by place and by name."""

LOOK_AGAIN_S = 60.0
"""How soon a job that waits for a flow looks by itself; the flow's end has it look at once."""

_pack = msgspec.msgpack.Encoder().encode


class JobFlow:
    """The flow of a running job: ``ctx.flow``.

    Args:
        store: the door to flows.
        claimed: the job; what it adds counts while it holds its lease.
        enqueued_ms: when the job was enqueued.
    """

    def __init__(self, store: FlowStore, claimed: Claimed, enqueued_ms: int) -> None:
        self._store = store
        self._claimed = claimed
        self._enqueued_ms = enqueued_ms
        self._place = node_of(claimed.job_id)
        self._draft: Flow | None = None
        self._numbers: dict[str, int] = {}
        self._added = 0
        self._waited = 0

    @property
    def id(self) -> str | None:
        """The id of the flow that this job is a node of, None when it is none's."""
        return None if self._place is None else self._place[0]

    async def add(
        self,
        part: Part[R] | Step[Any, R],
        *,
        after: Any = (),
        **options: Any,
    ) -> Added[R]:
        """Add nodes to the flow of this job; what comes after the job waits for them too.

        They start at once, or when what `after` names has ended: parts that this attempt has
        added. A job that runs again, and adds the same in the same order, adds nothing twice.

        Args:
            part: a call, chain, group or chord; many at once as one group.
            after: what `add` returned before.
            options: those of `Flow.add`.

        Raises:
            FlowError: the job is no node of a flow, or the flow stops.
            FlowRefused: this cannot be; nothing was added.
            LeaseLost: the job runs elsewhere.
        """
        flow_id, adder = self._own()
        draft = self._draft = self._draft or Flow(f"what {self._claimed.job_id} adds")
        known, names = len(draft), dict(draft._names)  # noqa: SLF001  a draft is ours
        try:
            added = draft.add(part, after=after, **options)
            graph = draft.graph()
        except Exception:
            del draft._nodes[known:]  # noqa: SLF001  as it was before
            draft._names = names  # noqa: SLF001
            raise
        fresh = draft._nodes[known:]  # noqa: SLF001
        if not fresh:  # an empty group
            return added
        self._added += 1
        first = await self._store.call(
            "flow_reserve", flow_id, [str(adder), self._added, len(fresh)]
        )
        if first < 0:
            raise self._stops(flow_id)
        for offset, each in enumerate(fresh):
            self._numbers[each.node.name] = first + offset
        await self._send(flow_id, adder, fresh, graph)
        return added

    async def _send(self, flow_id: str, adder: int, fresh: Sequence[Any], graph: Any) -> None:
        planner = Planner(
            flow_id=flow_id,
            encode=self._store.encode,
            queue=self._store.queue,
            now_ms=self._enqueued_ms,
            numbers=self._numbers,
        )
        claimed = self._claimed
        args: list[Any] = [claimed.job_id, claimed.token, claimed.attempt, flow_id, adder]
        for entry in planner.entries(fresh, graph, None):
            # Children are noted in Redis, where those of earlier additions are too.
            bare = _without_children(entry.plan)
            args += (entry.number, bare, entry.names, entry.payload, _pack(entry.parents))
        held = (claimed.queue, keys.held(claimed.queue))
        added = await self._store.call("flow_add", flow_id, args, *held)
        if added == -1:
            raise self._stops(flow_id)
        if added < 0:
            raise LeaseLost(f"job {claimed.job_id} runs elsewhere: what it adds is not taken")

    async def wait(self, part: Part[R]) -> R:
        """Start a flow, and return its result, without holding a slot meanwhile.

        The first time this ends the attempt, without a spent try: the job runs again, from its
        beginning, when the flow has ended, and gets the result here. So what stands before it must
        bear to run twice, and nothing may catch `Exception` round it. Any job may wait so, not
        only a node of a flow.

        Raises:
            FlowFailed: the flow failed; another try of the job runs again what failed of it.
        """
        self._waited += 1
        flow = flow_of(part)
        flow_id = awaited_id(self._claimed, self._enqueued_ms, self._waited)
        try:
            status = await self._store.status(flow_id)
        except FlowNotFound:
            resumes = (self._claimed.queue, self._claimed.job_id)
            await self._store.start(flow, flow_id, resumes=resumes, tries=self._claimed.attempt)
            status = await self._store.status(flow_id)
        if not status.has_ended:
            raise WaitForFlow(flow_id)
        if status.state is not FlowState.SUCCEEDED:
            if status.state is FlowState.FAILED and await self._tries_again(flow_id):
                raise WaitForFlow(flow_id)
            raise FlowFailed(
                f"flow {status.name} ({flow_id}) was waited for, and {status.state.value}",
                flow_id=flow_id,
                state=status.state.value,
            )
        return cast(R, await self._store.result(flow_id, converter(flow)))

    async def _tries_again(self, flow_id: str) -> bool:
        """Run what failed of a flow again, once for each try of this job."""
        if await self._store.tries(flow_id) >= self._claimed.attempt:
            return False
        try:
            await self._store.run_again(flow_id, tries=self._claimed.attempt)
        except FlowError:  # somebody else may have been first
            if (await self._store.status(flow_id)).has_ended:
                raise
        return True

    def _own(self) -> tuple[str, int]:
        if self._place is None:
            raise FlowError(
                f"job {self._claimed.job_id} is no node of a flow; start one by "
                "ctx.client.start(...), or wait for one by ctx.flow.wait(...)"
            )
        return self._place

    def _stops(self, flow_id: str) -> FlowError:
        return FlowError(f"flow {flow_id} takes nothing more: it has ended, or was stopped")


def awaited_id(claimed: Claimed, enqueued_ms: int, number: int) -> str:
    """Return the id that the same job, when it runs again, gives to the same flow.

    Args:
        claimed: the job.
        enqueued_ms: when it was enqueued.
        number: which of the flows that it waits for, counted from 1.
    """
    shown = re.sub(r"[{}:\s]", "-", claimed.job_id)[:100]
    # What is shown of two jobs may be alike.
    digest = hashlib.sha256(claimed.job_id.encode()).hexdigest()[:16]
    tag = re.search(r"\{[^{}:]+\}", claimed.queue)
    return f"{tag[0] if tag else ''}{shown}-{digest}-{enqueued_ms}-{number}"


async def has_waited(redis: Any, claimed: Claimed, enqueued_ms: int) -> bool:
    """Say whether an attempt of this job has ended to wait for a flow; none may have been spent."""
    return bool(await redis.hexists(keys.flow(awaited_id(claimed, enqueued_ms, 1)), "state"))


class WaitForFlow(Snooze):
    """Raised by `JobFlow.wait` to end the attempt until a flow has ended.

    Attributes:
        flow_id: the flow.
    """

    def __init__(self, flow_id: str) -> None:
        super().__init__(LOOK_AGAIN_S)
        self.flow_id = flow_id


async def filled_arguments(
    redis: Redis,
    codec: Codec,
    job_id: str,
    given: Given,
    holes: Sequence[Any],
) -> Given:
    """Return a node's arguments with the results of other nodes in their places.

    In the place of a node that failed, and whose failure does not matter, comes None.

    Raises:
        FlowError: the results are gone, or their nodes failed after this one was released.
        DecodeError: a result cannot be read.
    """
    place = node_of(job_id)
    if place is None:
        raise DecodeError(f"job {job_id} takes results of a flow, and is no node of one")
    trees = [None if wired is None else read_tree(wired) for _, wired in holes]
    numbers = list(dict.fromkeys(n for tree in trees if tree is not None for n in numbers_in(tree)))
    records = await read_results(redis, codec, place[0], numbers)
    without = [n for n in numbers if (record := records.get(n)) is None or not record.success]
    if without:
        await check_without(redis, place[0], without, records)
    values = {
        n: record.result if (record := records.get(n)) is not None and record.success else None
        for n in numbers
    }
    report = await _report(redis, codec, place[0]) if None in trees else None
    whole: dict[str, Any] = {"a": list(given[0]), "k": dict(given[1])}
    for (path, _), tree in zip(holes, trees, strict=True):
        _put(whole, path, report if tree is None else filled(tree, values))
    return tuple(whole["a"]), whole["k"]


def _put(whole: Any, path: Sequence[Any], value: Any) -> None:
    for step in path[:-1]:
        inner = whole[step]
        if isinstance(inner, tuple):  # of a codec that keeps them
            inner = whole[step] = list(inner)
        whole = inner
    whole[path[-1]] = value


async def _report(redis: Any, codec: Codec, flow_id: str) -> dict[str, Any]:
    """Return what a callback is told of its flow."""
    key = keys.flow(flow_id)
    name, state = await redis.hmget(key, ["name", "state"])
    failed: list[dict[str, str]] = []
    async for field, letter in redis.hscan_iter(f"{key}:states", count=500):
        if letter != b"f" or len(failed) >= 100:  # noqa: PLR2004
            continue
        names = await redis.hget(f"{key}:names", field)
        blob = await redis.hget(f"{key}:results", field)
        shown = msgspec.msgpack.decode(names)[0] if names else field.decode()
        error = ""
        if blob is not None:
            record = codecs.decode_result(codec, blob)
            if record.success:  # that of its fallback, which stood in for it
                continue
            error = why_failed(record)
        failed.append({"node": shown, "error": error})
    return {
        "flow": flow_id,
        "name": (name or b"").decode(),
        "state": (state or b"").decode(),
        "failed": failed,
    }


def _without_children(plan: bytes) -> bytes:
    flags, queue, delay_ms, fallback, owner, _ = msgspec.msgpack.decode(plan)
    return _pack((flags, queue, delay_ms, fallback, owner, ()))


__all__ = ["JobFlow", "WaitForFlow", "filled_arguments", "has_waited"]
