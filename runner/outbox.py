"""Send jobs on their way: the calls of one tick together, and those that wait for room in line."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from runner import broker, producer
from runner.errors import EnqueueError, QueueFull, RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.pipe import Pipe
    from runner.producer import EnqueueEntry, Queued

SOONEST_LOOK_S, LATEST_LOOK_S = 0.005, 0.25
LOOK_TIMEOUT_S = 10.0

Until: TypeAlias = "float | None"
"""How long to wait for room, in the loop's time: None not at all, infinity without end."""


@dataclass(slots=True)
class _Sent:
    """An entry that somebody waits for."""

    queue: str
    entry: EnqueueEntry
    until: Until
    future: asyncio.Future[Queued]

    def answer(self, outcome: Queued | BaseException) -> None:
        if self.future.done():
            return  # its caller was cancelled
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class Outbox:
    """Join the enqueues of one tick into one script call for each queue.

    While a call is under way the next batch gathers, so batches grow with the load, and a
    lone entry waits for nothing. No task is needed for it: the loop sends at the end of the
    tick, and the reply answers those who wait, so that a cancelled caller drops only its own
    future. An entry that finds its queue full and may wait joins the line of that queue and
    bound.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._lines: dict[tuple[str, int], Line] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[_Sent] = []
        self._is_scheduled = False
        self._under_way = 0
        self._emptied: asyncio.Future[None] | None = None

    def send(
        self,
        queue: str,
        entry: EnqueueEntry,
        until: Until = None,
    ) -> asyncio.Future[Queued]:
        """Return what will say what became of the entry (`producer.Queued`).

        It raises:
            DuplicateJob: another job is in its place.
            QueueFull: the queue had no room, or none in time; the job is not queued.
            EnqueueError: Redis refused the job.
            RedisUnavailable: there was no connection, or no answer.
        """
        loop = asyncio.get_running_loop()
        sent = _Sent(queue, entry, until, loop.create_future())
        line = None if until is None else self._lines.get((queue, entry.max_length))
        if line is not None and line.is_open:
            line.join(sent)  # behind those who came before
            return sent.future
        if loop is not self._loop:
            self._move_to(loop)
        self._waiting.append(sent)
        if not self._under_way and not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._send_waiting)
        return sent.future

    async def send_many(
        self,
        queue: str,
        entries: Sequence[EnqueueEntry],
        until: Until = None,
    ) -> list[Queued | BaseException]:
        """Send any number of entries in order; return for each what `send` returns or raises.

        Once one has found the queue full and may not wait, none behind it with the same
        bound is sent: what is queued are always the first ones.
        """
        outcomes: list[Queued | BaseException] = []
        full: dict[int, QueueFull] = {}
        for start in range(0, len(entries), broker.MAX_ENTRIES):
            part = entries[start : start + broker.MAX_ENTRIES]
            if until is not None:
                waiting = [self.send(queue, entry, until) for entry in part]
                outcomes += await asyncio.gather(*waiting, return_exceptions=True)
                continue
            sent = [entry for entry in part if entry.max_length not in full]
            try:
                answers = iter(await producer.enqueue(self._pipe, queue, sent))
            except Exception as exc:  # noqa: BLE001  whatever it is, it belongs to the caller
                return outcomes + [exc] * (len(entries) - len(outcomes))
            outcomes += [full.get(e.max_length) or next(answers) for e in part]
            for outcome in outcomes[start:]:
                if isinstance(outcome, QueueFull):
                    full[outcome.max_length] = outcome
        return outcomes

    async def close(self) -> None:
        """Send what was handed over; who waits for room hears that there was none. Idempotent."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            while self._waiting or self._under_way:
                if self._emptied is None or self._emptied.done():
                    self._emptied = loop.create_future()
                await asyncio.wait((self._emptied,))
        for line in list(self._lines.values()):
            await line.close()
        self._lines.clear()

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin anew in another loop: those who waited in the old one have gone with it."""
        self._loop = loop
        self._waiting, self._lines = [], {}
        self._is_scheduled, self._under_way, self._emptied = False, 0, None

    def _send_waiting(self) -> None:
        self._is_scheduled = False
        batch, self._waiting = self._waiting, []
        if len(batch) == 1:
            parts = [(batch[0].queue, batch)]
        else:
            by_queue: dict[str, list[_Sent]] = {}
            for sent in batch:
                by_queue.setdefault(sent.queue, []).append(sent)
            parts = [
                (queue, of_queue[start : start + broker.MAX_ENTRIES])
                for queue, of_queue in by_queue.items()
                for start in range(0, len(of_queue), broker.MAX_ENTRIES)
            ]
        self._under_way += len(parts)
        for queue, part in parts:
            self._pipe.send_script(
                partial(self._answer, queue, part, self._loop),
                *producer.enqueue_call(queue, [sent.entry for sent in part]),
            )

    def _answer(
        self,
        queue: str,
        part: list[_Sent],
        loop: asyncio.AbstractEventLoop | None,
        reply: Any,
    ) -> None:
        if loop is not self._loop:
            return
        outcomes: Sequence[Queued | BaseException]
        try:
            outcomes = producer.enqueue_outcomes(queue, [sent.entry for sent in part], reply)
        except Exception as exc:  # noqa: BLE001  a reply that is none of the script's: tell it
            outcomes = [exc] * len(part)
        for sent, outcome in zip(part, outcomes, strict=True):
            if isinstance(outcome, QueueFull) and sent.until is not None:
                self._line_of(sent).join(sent)
                continue
            if isinstance(outcome, RedisUnavailable):
                self._pipe.renew()  # a replica says so inside of the script's reply
            sent.answer(outcome)
        self._under_way -= 1
        if self._under_way:
            return
        if self._waiting and not self._is_scheduled:
            self._send_waiting()
        elif self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _line_of(self, sent: _Sent) -> Line:
        key = (sent.queue, sent.entry.max_length)
        line = self._lines.get(key)
        if line is None:
            # Lines that are over go when a new one is made: their number stays small.
            self._lines = {k: other for k, other in self._lines.items() if other.is_open}
            line = self._lines[key] = Line(self._pipe, *key)
        return line


class Line:
    """Those who wait for room in one queue: first come, first served.

    One task asks for the queue's length, more and more seldom while nothing moves, and
    sends as many as there is room for. An entry is either in the line or under way, never
    both, so one that gives up in the line is not queued, and none is sent twice.
    """

    def __init__(self, pipe: Pipe, queue: str, max_length: int) -> None:
        self._pipe = pipe
        self._queue = queue
        self._max_length = max_length
        self._waiting: deque[_Sent] = deque()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether anybody stands in the line, or is under way from it."""
        return self._task is not None and not self._task.done()

    def join(self, sent: _Sent) -> None:
        """Wait at the end of the line."""
        self._waiting.append(sent)
        if not self.is_open:
            self._task = asyncio.create_task(self._serve(), name=f"runner line of {self._queue}")

    async def close(self) -> None:
        """Finish what is under way, and send those who wait away. Idempotent."""
        self._closing.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _serve(self) -> None:
        now = asyncio.get_running_loop().time
        delay_s = SOONEST_LOOK_S
        look_at = now() + delay_s
        try:
            while self._thin_out():
                await self._pause(look_at - now())
                if now() < look_at or not self._thin_out():
                    continue  # somebody's time is up, no more
                moved = await self._move()
                delay_s = SOONEST_LOOK_S if moved else min(delay_s * 2, LATEST_LOOK_S)
                look_at = now() + delay_s * random.uniform(0.5, 1)  # noqa: S311  jitter
        except Exception as exc:  # noqa: BLE001  whatever it is, it belongs to the callers
            self._dismiss(exc)

    async def _pause(self, delay_s: float) -> None:
        """Wait so long, or until the first one's time is up, or the client is closed."""
        now = asyncio.get_running_loop().time()
        soonest = min(sent.until or math.inf for sent in self._waiting)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(min(delay_s, soonest - now), 0)):
                await self._closing.wait()

    def _thin_out(self) -> bool:
        """Let go who was cancelled or has waited long enough; tell whether anybody is left."""
        if self._closing.is_set():
            self._dismiss(
                EnqueueError(f"the client was closed before queue {self._queue!r} had room"),
            )
        now = asyncio.get_running_loop().time()
        staying: deque[_Sent] = deque()
        for sent in self._waiting:
            if sent.until is not None and sent.until <= now:
                sent.answer(producer.queue_full(self._queue, self._max_length))
            elif not sent.future.done():
                staying.append(sent)
        self._waiting = staying
        return bool(staying)

    async def _move(self) -> bool:
        """Send as many as there is room for; tell whether any was taken."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                length = await self._pipe.execute_command("ZCARD", self._queue)
        except TimeoutError as exc:
            raise RedisUnavailable(f"Redis does not say how long {self._queue!r} is") from exc
        room = min(self._max_length - length, broker.MAX_ENTRIES, len(self._waiting))
        if room < 1:
            return False
        moving = [self._waiting.popleft() for _ in range(room)]
        try:
            outcomes = await producer.enqueue(
                self._pipe, self._queue, [sent.entry for sent in moving]
            )
        except Exception as exc:
            for sent in moving:
                sent.answer(exc)
            raise
        refused = []
        for sent, outcome in zip(moving, outcomes, strict=True):
            if isinstance(outcome, QueueFull):
                refused.append(sent)
            else:
                sent.answer(outcome)
        self._waiting.extendleft(reversed(refused))
        return len(refused) < len(moving)

    def _dismiss(self, why: BaseException) -> None:
        while self._waiting:
            self._waiting.popleft().answer(why)


__all__ = ["Outbox", "Until"]
