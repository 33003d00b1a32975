"""Flows in Redis: the one door to them."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from runner import codec as codecs
from runner import failures, keys
from runner.errors import (
    DecodeError,
    FlowError,
    FlowNotFound,
    RedisOutOfMemory,
    RedisUnavailable,
)
from runner.scripts import load
from runner.workflow.graph import FlowState, NodeState
from runner.workflow.plan import (
    checked_flow_id,
    filled,
    job_id_of,
    node_of,
    numbers_in,
    plan_of,
    ranges,
    read_tree,
)
from runner.workflow.stored import (
    COUNTED,
    COUNTS,
    FACTS,
    FlowStatus,
    NodeInfo,
    Stored,
    part_to_run,
    status_of,
    stored_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from redis.asyncio import Redis

    from runner.codec import Codec, ResultRecord
    from runner.workflow.flow import Flow
    from runner.workflow.plan import Encodes, Entry, Plan

PAGE = 500
"""Nodes stored or read in one call: about 5 ms of the server's time."""

PAGE_BYTES = 4_000_000
RAN = (NodeState.FAILED, NodeState.CANCELLED)
LISTED = 200
"""Flows read in one call when they are listed."""
LEFTOVER_MS = 10 * 60 * 1000
"""How long nodes are kept of a flow that is not started."""


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


class FlowStore:
    """Start flows, read them, stop them, and run their failed parts again.

    Args:
        redis: the connection pool.
        codec: the codec of the fleet's jobs and results.
        encode: encodes a job.
        queue: the queue of tasks that name none.
        lifetime_ms: how long a flow is kept after its last progress.
    """

    def __init__(
        self, redis: Redis, codec: Codec, encode: Encodes, *, queue: str, lifetime_ms: int
    ) -> None:
        # Its methods are typed as those of both of redis-py's clients at once.
        self.redis: Any = redis
        self.codec = codec
        self.encode = encode
        self.queue = queue
        self.lifetime_ms = lifetime_ms

    async def start(
        self,
        flow: Flow,
        flow_id: str | None = None,
        *,
        resumes: tuple[str, str] | None = None,
        tries: int = 0,
    ) -> str:
        """Store a flow in bounded calls, and start it by one last step; return its id.

        Until that step nothing of it runs, and what was stored expires. Under the id of a flow
        that was started before, nothing is started.

        Args:
            flow: what to start.
            flow_id: its id, when it is to be started once under it.
            resumes: the queue and id of a job that waits for its end.
            tries: the number of that job's try.
        """
        chosen = self.new_id() if flow_id is None else checked_flow_id(flow_id)
        plan = plan_of(
            flow, chosen, encode=self.encode, queue=self.queue, now_ms=time.time_ns() // 1_000_000
        )
        if resumes is not None:
            plan.facts["resumes_queue"], plan.facts["resumes"] = resumes
            plan.facts["tries"] = tries
        if await self._put(chosen, plan.entries):
            await self._make_effective(chosen, plan)
        return chosen

    async def call(self, script: str, flow_id: str, args: Sequence[Any], *more: str) -> Any:
        """Run a script on a flow, and tell what Redis says against it in our words.

        Args:
            script: its name.
            flow_id: whose key is the first, or the only one.
            args: its arguments.
            more: its other keys.

        Raises:
            RedisOutOfMemory: Redis holds its ``maxmemory``.
            RedisUnavailable: Redis is away, or did not answer; the script may have run.
            FlowError: Redis refused it for another reason.
        """
        try:
            return await load(script).call(self.redis, keys=[keys.flow(flow_id), *more], args=args)
        except (RedisConnectionError, RedisTimeoutError, OSError) as exc:
            raise RedisUnavailable(
                f"Redis did not answer for flow {flow_id}: {exc}", may_have_run=True
            ) from exc
        except OutOfMemoryError as exc:
            raise RedisOutOfMemory(
                f"Redis is full, flow {flow_id} is left as it was: raise its maxmemory"
            ) from exc
        except ResponseError as exc:
            raise FlowError(f"Redis refused it for flow {flow_id}: {exc}") from exc

    def new_id(self) -> str:
        """Return an id by chance, in the cluster slot of the queue where that has a tag."""
        tag = re.search(r"\{[^{}:]+\}", self.queue)
        return f"{tag[0] if tag else ''}{os.urandom(12).hex()}"

    async def _put(self, flow_id: str, entries: Sequence[Entry]) -> bool:
        for part in _parts(entries):
            args: list[Any] = [LEFTOVER_MS]
            for entry in part:
                waits = len(entry.parents)
                args += (entry.number, entry.plan, entry.names, entry.payload)
                args.append(waits if waits > 1 else "")
            if await self.call("flow_put", flow_id, args) < 0:
                return False  # started before, or by somebody else
        return True

    async def _make_effective(self, flow_id: str, plan: Plan) -> None:
        facts = [value for pair in plan.facts.items() for value in pair]
        args = [
            flow_id,
            len(plan.entries),
            plan.deadline_ms,
            self.lifetime_ms + plan.delay_ms,
            plan.roots,
            *facts,
        ]
        started = await self.call("flow_start", flow_id, args, plan.home)
        if started < 0:
            raise FlowError(
                f"flow {flow_id} was not started: to store it took longer than "
                f"{LEFTOVER_MS // 60_000} minutes, or another flow is stored under this id; "
                "start it again"
            )

    async def status(self, flow_id: str) -> FlowStatus:
        """Read how far a flow is; raise `FlowNotFound`."""
        return status_of(flow_id, await self._facts(flow_id))

    async def _facts(self, flow_id: str) -> dict[str, str]:
        names = (*FACTS, *COUNTS)
        values = await self.redis.hmget(keys.flow(flow_id), list(names))
        facts = _facts_of(names, values)
        if "state" not in facts:
            raise FlowNotFound(
                f"there is no flow {flow_id!r}: it was never started, or it is kept no more "
                "(keep_result)",
                flow_id=flow_id,
            )
        return facts

    async def recent(
        self,
        *,
        queue: str | None = None,
        limit: int = 50,
        states: Collection[FlowState] = (),
        skip: int = 0,
    ) -> list[FlowStatus]:
        """Return the flows that were started last, the newest first.

        Args:
            queue: that of their first nodes; None: this client's.
            limit: how many at most; the last 10,000 of a queue are known.
            states: those that have come to one of these; none: all.
            skip: how many of those to leave out.
        """
        found: list[FlowStatus] = []
        key, start = keys.flows(queue or self.queue), 0
        names = (*FACTS, *COUNTS)
        while len(found) < skip + limit:
            flow_ids = await self.redis.zrevrange(key, start, start + LISTED - 1)
            async with self.redis.pipeline(transaction=False) as pipe:
                for flow_id in flow_ids:
                    pipe.hmget(keys.FLOW.encode() + flow_id, names)
                pages = await pipe.execute()
            for flow_id, values in zip(flow_ids, pages, strict=True):
                facts = _facts_of(names, values)
                # Of what is kept no more its place in the list is left.
                if "state" in facts and (not states or FlowState(facts["state"]) in states):
                    found.append(status_of(flow_id.decode(), facts))
            if len(flow_ids) < LISTED:
                break
            start += LISTED
        return found[skip : skip + limit]

    async def home(self, flow_id: str) -> str:
        """Return the queue in which a flow stands while it runs; raise `FlowNotFound`."""
        return (await self._facts(flow_id))["home"]

    async def nodes(self, flow_id: str) -> list[NodeInfo]:
        """Read all nodes of a flow in the order in which they were added; raise `FlowNotFound`."""
        stored = await self.stored(flow_id)
        failed = [n for n, state in stored.states.items() if state is NodeState.FAILED]
        errors = await self._errors(flow_id, stored, failed)
        return [
            NodeInfo(
                name=name,
                task=stored.tasks[name],
                state=stored.states[name],
                job_id=job_id_of(flow_id, stored.numbers[name]),
                after=node.after,
                error=errors.get(name, ""),
                is_gate=node.is_gate,
                fallback_of=node.fallback_of,
                when=node.when,
            )
            for name, node in stored.graph.nodes.items()
        ]

    async def _errors(self, flow_id: str, stored: Stored, names: list[str]) -> dict[str, str]:
        records = await self.records(flow_id, [stored.numbers[name] for name in names])
        errors = {}
        for name in names:
            record = records.get(stored.numbers[name])
            if record is not None and not record.success:
                errors[name] = why_failed(record)
        return errors

    async def stored(self, flow_id: str) -> Stored:
        """Read the nodes of a flow; raise `FlowNotFound`."""
        facts = await self._facts(flow_id)
        key = keys.flow(flow_id)
        count = int(facts.get("next") or 0)
        plans: dict[int, Any] = {}
        names: dict[int, Any] = {}
        letters: dict[int, bytes] = {}
        for start in range(0, count, PAGE):
            numbers = list(range(start, min(start + PAGE, count)))
            async with self.redis.pipeline(transaction=False) as pipe:
                for part in (":plan", ":names", ":states"):
                    pipe.hmget(key + part, numbers)
                page = await pipe.execute()
            for number, plan, name, letter in zip(numbers, *page, strict=True):
                if plan is not None and name is not None:
                    plans[number], names[number] = _unpack(plan), _unpack(name)
                    if letter is not None:
                        letters[number] = letter
        return stored_of(facts, plans, names, letters)

    async def records(self, flow_id: str, numbers: Sequence[int]) -> dict[int, ResultRecord]:
        """Read kept results, in bounded calls; those that are not there are left out.

        Raises:
            DecodeError: one cannot be read, or was signed for a job of another flow.
        """
        return await read_results(self.redis, self.codec, flow_id, numbers)

    async def result(self, flow_id: str, convert: Callable[[int, Any], Any] | None = None) -> Any:
        """Return the results of a flow that has succeeded.

        Args:
            flow_id: its id.
            convert: turns plain data into what the node of a number returns.

        Raises:
            FlowError: a result was too large to be kept, or is gone.
            FlowNotFound: there is no such flow.
        """
        raw = await self.redis.hget(keys.flow(flow_id), "returns")
        if raw is None:
            raise FlowNotFound(f"the result of flow {flow_id} is kept no more", flow_id=flow_id)
        tree = read_tree(_unpack(raw))
        numbers = list(dict.fromkeys(numbers_in(tree)))
        records = await self.records(flow_id, numbers)
        without = [n for n in numbers if n not in records or not records[n].success]
        if without:
            await check_without(self.redis, flow_id, without, records)
        values: dict[int, Any] = {}
        for number in numbers:
            record = records.get(number)
            value = record.result if record is not None and record.success else None
            values[number] = value if convert is None else convert(number, value)
        return filled(tree, values)

    async def stop(self, flow_id: str) -> bool:
        """Stop a flow; False when it had ended, or stops already. Raises `FlowNotFound`."""
        stopped = await self.call("flow_stop", flow_id, [flow_id, FlowState.CANCELLED.value])
        if stopped < 0:
            await self._facts(flow_id)
        return bool(stopped == 1)

    async def tries(self, flow_id: str) -> int:
        """Return the number of the try, of the job that waits for it, which this flow runs for."""
        return int(await self.redis.hget(keys.flow(flow_id), "tries") or 0)

    async def run_again(self, flow_id: str, *, tries: int | None = None) -> int:
        """Run what did not succeed of a flow that has ended; return how many nodes that is.

        Args:
            flow_id: its id.
            tries: the number of the try of the job that waits for it.

        Raises:
            FlowError: it runs, or somebody else does the same.
            FlowNotFound: there is no such flow.
        """
        facts = await self._facts(flow_id)
        if facts["state"] == FlowState.RUNNING.value:
            raise FlowError(f"flow {flow_id} runs: its failed part can be run again when it ended")
        stored = await self.stored(flow_id)
        again = part_to_run(stored)
        if not again and facts["state"] == FlowState.SUCCEEDED.value:
            return 0
        token = os.urandom(8).hex()
        key = keys.flow(flow_id)
        await self.redis.hset(key, "again", token)
        if not await self.redis.hexists(key, "state"):
            await self.redis.delete(key)  # it has expired meanwhile, and would stay so for ever
            await self._facts(flow_id)
        await self._reset(flow_id, token, stored, again)
        ordinary = [name for name in again if stored.graph.nodes[name].is_ordinary]
        ready = [
            stored.numbers[name]
            for name in ordinary
            if not again & set(stored.graph.nodes[name].after)
            and not stored.graph.nodes[name].is_open
        ]
        # Of fallbacks that were not needed nobody says that they were skipped.
        rest = [
            state
            for name, state in stored.states.items()
            if name not in again
            and (state is not NodeState.SKIPPED or stored.graph.nodes[name].is_ordinary)
        ]
        args: list[Any] = [token, flow_id, 0, len(ordinary), _pack(ranges(ready))]
        for field, state in COUNTED:
            args += (field, sum(each is state for each in rest))
        if tries is not None:
            args += ("tries", tries)
        if await self.call("flow_again", flow_id, args, facts["home"]) != 1:
            raise FlowError(f"somebody else runs the failed part of flow {flow_id} again")
        return len(ordinary)

    async def _reset(self, flow_id: str, token: str, stored: Stored, again: set[str]) -> None:
        key = keys.flow(flow_id)
        names = [name for name in stored.graph.nodes if name in again]
        for start in range(0, len(names), PAGE):
            page = names[start : start + PAGE]
            payloads = await self.redis.hmget(
                f"{key}:jobs", [str(stored.numbers[name]) for name in page]
            )
            args: list[Any] = [token, flow_id]
            for name, payload in zip(page, payloads, strict=True):
                # One that was cancelled may have waited for a flow of its own, and a callback may
                # have run at the end before.
                ran = stored.states[name] in RAN or bool(stored.graph.nodes[name].when)
                number = stored.numbers[name]
                waits = len(again & set(stored.graph.nodes[name].after))
                args += (number, self._renewed(flow_id, number, payload) if ran else b"", waits)
            if not await self.call("flow_reset", flow_id, args):
                raise FlowError(f"somebody else runs the failed part of flow {flow_id} again")

    def _renewed(self, flow_id: str, number: int, payload: bytes | None) -> bytes:
        """Return the job as one that is enqueued now: its writes are another unit then."""
        if payload is None:
            raise FlowError(f"flow {flow_id} cannot run again: its jobs are kept no more")
        record = codecs.decode_job(self.codec, payload, job_id=job_id_of(flow_id, number))
        fresh = msgspec.structs.replace(record, enqueued_ms=time.time_ns() // 1_000_000)
        return codecs.encode_job(self.codec, fresh)


async def read_results(
    redis: Redis, codec: Codec, flow_id: str, numbers: Sequence[int]
) -> dict[int, ResultRecord]:
    """Read the kept results of nodes, a page at a time; raise `DecodeError`."""
    key = f"{keys.flow(flow_id)}:results"
    untyped: Any = redis
    records: dict[int, ResultRecord] = {}
    for start in range(0, len(numbers), PAGE):
        page = numbers[start : start + PAGE]
        blobs = await untyped.hmget(key, [str(number) for number in page])
        for number, blob in zip(page, blobs, strict=True):
            if blob is not None:
                records[number] = _record(codec, flow_id, blob)
    return records


async def check_without(
    redis: Any, flow_id: str, numbers: Sequence[int], records: Mapping[int, ResultRecord]
) -> None:
    """Raise `FlowError` unless None may stand for these nodes, which left no good result."""
    key = keys.flow(flow_id)
    gone: list[int] = []
    failed: list[int] = []
    kept_not: list[int] = []
    for start in range(0, len(numbers), PAGE):
        page = numbers[start : start + PAGE]
        fields = [str(number) for number in page]
        letters = await redis.hmget(f"{key}:states", fields)
        plans = await redis.hmget(f"{key}:plan", fields)
        for number, letter, plan in zip(page, letters, plans, strict=True):
            if letter not in (b"f", b"k"):
                (kept_not if number in records else gone).append(number)
            elif plan is None or "c" not in _unpack(plan)[0]:
                failed.append(number)
    if gone:
        raise FlowError(
            f"the results of {len(gone)} nodes of flow {flow_id} are gone from Redis, of node "
            f"{gone[0]} for one"
        )
    if kept_not:
        raise FlowError(
            f"there is no result of node {kept_not[0]} of flow {flow_id}: "
            f"{why_failed(records[kept_not[0]])}"
        )
    if failed:
        raise FlowError(
            f"node {failed[0]} of flow {flow_id}, whose result is asked for, failed after it had "
            "let others start"
        )


def why_failed(record: ResultRecord) -> str:
    """Return what a result says that is none."""
    if not isinstance(record.result, BaseException):
        return str(record.result)  # what is kept in the place of one that was too large
    kind, message = failures.named(record.result)
    return f"{kind}: {message}"


def _facts_of(names: Sequence[str], values: Sequence[bytes | None]) -> dict[str, str]:
    return {n: v.decode() for n, v in zip(names, values, strict=True) if v is not None}


def _record(codec: Codec, flow_id: str, blob: bytes) -> ResultRecord:
    record = codecs.decode_result(codec, blob)
    whose = node_of(record.job_id)
    if codecs.signs(codec) and (whose is None or whose[0] != flow_id):
        # A fallback's result stands for its node's, so the number may be another.
        raise DecodeError(f"this result was signed for another job: {record.job_id!a}")
    return record


def _parts(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Cut entries so that no call blocks Redis for long."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        part.append(entry)
        size += len(entry.payload) + len(entry.plan)
        if len(part) >= PAGE or size >= PAGE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


__all__ = ["FlowStore", "check_without", "read_results", "why_failed"]
