"""The engine's heart: settle what has ended and claim what is due, in overlapping cycles.

A cycle is one script call. Completions of the same moment travel together, and whatever
ends while a call is under way goes with the next. Two cycles overlap, each for half of the
slots, so that the loop works while Redis does. Every claim has a token of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import math
import os
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.exceptions import ResponseError

from runner import broker
from runner.connections import TROUBLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runner.broker import Broker, Claimed, CycleReply, Settlement
    from runner.scripts import Executes

_Pending: TypeAlias = "tuple[Settlement, Settling | None]"

logger = logging.getLogger("runner.cycle")

CYCLE_TIMEOUT_S = 10.0
"""A call that takes longer has an unknown outcome; it is sent again, and the fence decides."""

RETRY_DELAYS_S = (0.05, 0.1, 0.2, 0.5, 1.0)

UNHEARD_AT_MOST = 1000
"""Claims without an answer that are remembered: the first, which may have run after all."""


class Settling(asyncio.Future[int | str]):
    """The status of a settlement: a waiter that is cancelled learns of it when it is there.

    A shield would do the same, for a task and two futures more on each job.
    """

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ARG002  asyncio's signature
        """Refuse: the settlement goes on, and its waiter is cancelled behind it."""
        return False

    def give_up(self) -> None:
        """Cancel it after all, when the worker gives up what is still to be settled."""
        super().cancel()


class Cycles:
    """Run cycles whenever there is something to settle or to claim.

    Args:
        redis: returns what runs commands at the moment.
        start: called with each claimed job.
        settled: called with what was handed in without a future, and its status; None says that
            it was given up.
        replied: called with each reply, after its jobs have started.
        room: returns how many jobs may be claimed now; it knows what is `reserved`.
        capacity: how many jobs may run at once.
        lanes: how many cycles may overlap.
        worker: the name under which the worker registers as idle.
    """

    def __init__(
        self,
        broker: Broker,
        redis: Callable[[], Executes],
        *,
        start: Callable[[Claimed], None],
        settled: Callable[[Settlement, int | str | None], None],
        replied: Callable[[CycleReply], None],
        room: Callable[[], int],
        capacity: int,
        lanes: int,
        worker: str,
    ) -> None:
        self.broker = broker
        self.worker = worker
        self.claims = False
        """Whether cycles that settle also claim; off outside the worker's loop."""
        self.idle_ms = 0
        """How long an idle registration lasts; 0: the worker cannot be woken."""
        self._redis = redis
        self._start = start
        self._settled = settled
        self._replied = replied
        self._room = room
        lanes = max(1, min(lanes, capacity))
        self._share = -(-capacity // lanes)
        self.reserved = 0
        """Slots promised to claims that are under way."""
        self.backlog = False
        """Whether the last claim left due jobs behind."""
        self._woken = False  # there may be jobs that are due; no claim was sent since
        self._active: dict[asyncio.Task[None], str] = {}  # the lane of each
        self._calls: set[asyncio.Task[CycleReply]] = set()
        self._waiting: deque[_Pending] = deque()
        self._kick_due = False
        # That of the worker: a job that hands in is not to lend its own to those that follow.
        self._context = contextvars.copy_context()
        self._troubles = 0
        self._problem = ""  # what Redis said against the last claims
        self._unheard: list[str] = []  # claims without an answer
        self._until = math.inf  # when Redis may go on to refuse no longer, in the loop's time
        self._given_up = False
        self.lanes: list[str] = []
        """Where Redis remembers what was settled last."""
        self._free_lanes: list[str] = []
        self._take_names(lanes)

    def hand_in(self, settlement: Settlement) -> Settling:
        """Let the next cycle settle one attempt; its status comes by the future.

        It is tried again while Redis is away. When the waiter is cancelled, the settlement
        goes on.
        """
        future = Settling(loop=asyncio.get_running_loop())
        self._put(settlement, future)
        return future

    def pass_in(self, settlement: Settlement) -> None:
        """Do the same where nobody waits: `settled` is called with the status."""
        self._put(settlement, None)

    def _put(self, settlement: Settlement, future: Settling | None) -> None:
        if self._given_up:
            self._tell(settlement, future, None)
            return
        self._waiting.append((settlement, future))
        if not self._kick_due:
            # After the callbacks of this moment, so that what ends together travels together.
            self._kick_due = True
            asyncio.get_running_loop().call_soon(self._kick, context=self._context)

    async def once(self) -> CycleReply:
        """Claim once, now; raise what that raises.

        A cancelled caller does not cancel the call: what it claims would belong to nobody
        until the lease is over. Its jobs are started, or handed back by a worker that stops.
        """
        call = asyncio.get_running_loop().create_task(
            self._run([], self._reserve(), token=self._name()),
            name="runner claim",
        )
        self._calls.add(call)
        call.add_done_callback(self._call_done)
        return await asyncio.shield(call)

    async def drain(self) -> None:
        """Wait until nothing is left to settle."""
        while self._waiting or self._active or self._calls:
            self._kick()
            await asyncio.gather(*self._active, *self._calls, return_exceptions=True)
            await asyncio.sleep(0)

    def kick(self) -> None:
        """Begin what there is to do; called when slots became free."""
        self._kick()

    def wake(self) -> None:
        """Claim as soon as a lane and a slot are free: jobs may be due."""
        self._woken = True
        self._kick()

    def look(self) -> None:
        """Ask whether jobs are due, and claim none yet: `backlog` says so then."""
        if self.claims and not self._active:
            self._begin([], 0)

    def resize(self, capacity: int) -> None:
        """Share so many slots among the lanes from now on."""
        self._share = -(-capacity // len(self.lanes))

    def cancel(self) -> None:
        """Give up what is still to be settled: the leases run out, and others take over."""
        self.claims = False
        self._given_up = True
        for task in (*self._active, *self._calls):
            task.cancel()
        self._drop(self._waiting)
        self._waiting.clear()

    def give_up_at(self, until: float) -> None:
        """Leave what Redis still refuses then to its lease; by the loop's time."""
        self._until = until

    def reopen(self) -> None:
        """Settle again after `cancel`: a closed worker may start another time."""
        self._given_up = False
        self._until = math.inf
        self._context = contextvars.copy_context()
        if self._process != os.getpid():
            self._take_names(len(self.lanes))

    def _take_names(self, lanes: int) -> None:
        """Take names that no other has; what was made before a fork would share its own."""
        name = secrets.token_hex(6)
        self._process = os.getpid()
        self._prefix = f"r:{self.worker}:{name}"
        self._numbers = itertools.count(1)
        self.lanes = [f"{name}:{number}" for number in range(lanes)]
        self._free_lanes = list(self.lanes)

    def _drop(self, batch: Iterable[_Pending]) -> None:
        for settlement, future in batch:
            self._tell(settlement, future, None)

    def _tell(
        self,
        settlement: Settlement,
        future: Settling | None,
        status: int | str | None,
    ) -> None:
        if future is None:
            self._settled(settlement, status)
        elif future.done():
            pass
        elif status is None:
            future.give_up()
        else:
            future.set_result(status)

    def _kick(self) -> None:
        self._kick_due = False
        while self._free_lanes and self._has_work():
            self._begin(self._load(), self._reserve() if self.claims else 0)

    def _begin(self, batch: list[_Pending], limit: int) -> None:
        lane = self._free_lanes.pop()
        task = asyncio.get_running_loop().create_task(
            self._lane(batch, limit, lane), name="runner cycle", context=self._context
        )
        self._active[task] = lane
        task.add_done_callback(self._lane_done)

    def _has_work(self) -> bool:
        if self._waiting:
            return True
        return self.claims and (self.backlog or self._woken) and self._limit() > 0

    def _lane_done(self, task: asyncio.Task[None]) -> None:
        self._free_lanes.append(self._active.pop(task))
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("a cycle of the engine failed; its jobs are settled again", exc_info=exc)
        self._kick()

    def _call_done(self, call: asyncio.Task[CycleReply]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # the caller has it, unless it was cancelled

    def _limit(self) -> int:
        return max(0, min(self._room(), self._share, broker.MAX_ENTRIES))

    def _reserve(self) -> int:
        """Return how many jobs the next cycle may claim, and promise them their slots."""
        limit = self._limit()
        self.reserved += limit
        if limit:
            self._woken = False
        return limit

    def _load(self) -> list[_Pending]:
        """Take what the next cycle settles.

        While more is due, no more than it may claim: a cycle that settled the jobs of all lanes
        would leave the others nothing, and from then on Redis and the worker wait for each other.
        """
        waiting, size = self._waiting, 0
        most = min(self._share, broker.MAX_ENTRIES) if self.backlog else broker.MAX_ENTRIES
        batch: list[_Pending] = []
        while waiting and len(batch) < most:
            size += waiting[0][0].size
            if batch and size > broker.MAX_BYTES:
                break
            batch.append(waiting.popleft())
        return batch

    async def _lane(self, batch: list[_Pending], limit: int, lane: str) -> None:
        """Send a batch until it is answered.

        Whether a call without an answer ran is unknown. It is sent again, and nothing else
        travels in its lane before: Redis remembers the last batch of each.
        """
        token = name = self._name()
        try:
            while True:
                try:
                    await self._run(batch, limit, token=token, name=name, lane=lane)
                except TROUBLE as exc:
                    if isinstance(exc, ResponseError) and self._is_too_late():
                        logger.error("Redis refuses the ends of %d jobs (%s)", len(batch), exc)  # noqa: TRY400  the message says it
                        return self._drop(batch)
                    await self._wait_for_redis(exc)
                else:
                    return None
                if not batch:
                    return None
                token, limit = self._name(), self._reserve() if self.claims else 0
        except BaseException:
            if self._given_up:
                self._drop(batch)
            else:
                self._waiting.extendleft(reversed(batch))
            raise

    def _is_too_late(self) -> bool:
        return asyncio.get_running_loop().time() >= self._until

    async def _wait_for_redis(self, exc: Exception) -> None:
        if self._troubles == 0:
            does = "refuses" if isinstance(exc, ResponseError) else "does not answer"
            logger.warning("Redis %s (%s); finished jobs wait for it", does, exc)
        delay_s = RETRY_DELAYS_S[min(self._troubles, len(RETRY_DELAYS_S) - 1)]
        self._troubles += 1
        await asyncio.sleep(delay_s)

    def _name(self) -> str:
        return f"{self._prefix}:{next(self._numbers)}"

    async def _run(
        self,
        batch: list[_Pending],
        limit: int,
        *,
        token: str,
        name: str = "",
        lane: str = "",
    ) -> CycleReply:
        idle = self.worker if self.idle_ms and limit else ""
        is_unheard = False
        try:
            async with asyncio.timeout(CYCLE_TIMEOUT_S):
                if self._unheard:
                    await self._give_back()
                is_unheard = limit > 0
                reply = await self.broker.cycle(
                    self._redis(),
                    token=token,
                    settlements=[settlement for settlement, _ in batch],
                    limit=limit,
                    worker=idle,
                    idle_ms=self.idle_ms,
                    batch=name,
                    lane=lane,
                )
            is_unheard = False
        finally:
            self.reserved -= limit
            if is_unheard and len(self._unheard) < UNHEARD_AT_MOST:
                self._unheard.append(token)
        if self._troubles:
            logger.info("Redis answers again")
            self._troubles = 0
        self._take(reply, batch)
        return reply

    async def _give_back(self) -> None:
        """Let Redis know which claims nobody heard of: their jobs run nowhere."""
        tokens, self._unheard = self._unheard, []
        try:
            given = await self.broker.give_back(self._redis(), tokens)
        except ResponseError as exc:
            self._unheard[:0] = tokens  # it is no reason to keep back the call behind it
            logger.warning("could not give back what was claimed without an answer: %s", exc)
        except BaseException:
            self._unheard[:0] = tokens
            raise
        else:
            if given:
                logger.info("gave %d jobs back that were claimed without an answer", given)

    def _note_problem(self, problem: str) -> None:
        """Say what keeps jobs from being claimed: once, and when it is over."""
        if problem:
            logger.error("cannot claim jobs from queue %r: %s", self.broker.queue, problem)
        else:
            logger.info("jobs are claimed from queue %r again", self.broker.queue)
        self._problem = problem

    def _take(self, reply: CycleReply, batch: list[_Pending]) -> None:
        self.backlog = reply.more
        if reply.problem != self._problem:
            self._note_problem(reply.problem)
        for claimed in reply.claimed:
            self._start(claimed)
        for (settlement, future), status in zip(batch, reply.statuses, strict=True):
            if future is None:
                self._settled(settlement, status)
            elif not future.done():
                future.set_result(status)
        self._replied(reply)
        if reply.more:
            self._kick()
