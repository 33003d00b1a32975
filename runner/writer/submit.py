"""Send the units of one process to the writer's stream: those of a moment in one call, in order.

    waiting ──▶ under way ──▶ in the stream ──▶ committed, or refused
       ▲            │ no room
       └────────────┘

One call is under way at a time, so units are applied in the order in which they were handed
over. A call whose reply was lost is repeated under its number until Redis answers.
"""

from __future__ import annotations

import asyncio
import collections
import enum
import itertools
import logging
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from redis.exceptions import (
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from runner import keys
from runner.errors import CommitTimeout, UnitChanged, WriterBacklogFull, WriterUnavailable
from runner.scripts import load
from runner.writer.answers import Waiter
from runner.writer.status import split_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio import Redis

    from runner.writer.answers import Answer, Answers

__all__ = ["OURS", "SentUnit", "Stage", "Submitter"]

logger = logging.getLogger("runner.writer")

OURS = ":u"
"""Ends the ids of units without a job; those of jobs end with a number."""

UNITS_AT_ONCE = 500
BYTES_AT_ONCE = 4_000_000
CALL_TIMEOUT_S = 10.0
SWEEP_S = 0.05
SOONEST_LOOK_S, LATEST_LOOK_S = 0.005, 0.25
RETRY_DELAYS_S = (0.05, 0.1, 0.2, 0.5, 1.0)

_PASSING = (
    OSError,
    TimeoutError,
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    TryAgainError,
)
"""What a Redis raises that is away, starts, or is being replaced by its replica."""


_NO_ROOM = {
    b"full": "too much waits for the writer",
    b"OOM": "Redis holds as much as its maxmemory allows",
    b"READONLY": "this Redis takes no writes",
}
"""Why the script leaves units for later, and what to say of it."""


_NOWHERE = (0, 0)


class Stage(enum.Enum):
    """How far a unit has come."""

    WAITING = "waiting"
    UNDER_WAY = "under way"
    IN_STREAM = "in the stream"


class SentUnit(Waiter):
    """One unit on its way, and its caller.

    Attributes:
        unit_id: names the unit, whoever submits it and how often.
        operations: the encoded unit.
        digest: of the operations, for an id that the caller chose; else "".
        since: when it was made, in the loop's time.
        timeout_s: how long the caller waits for the answer.
        waits: whether the future is for the answer; else for the entry's id.
        stage: how far it has come.
        trace: ties what the writer does to the caller's trace, as W3C writes it, or "".
    """

    __slots__ = (
        "digest",
        "operations",
        "since",
        "stage",
        "submitter",
        "timeout_s",
        "trace",
        "unit_id",
        "waits",
    )

    def __init__(
        self,
        submitter: Submitter,
        unit_id: str,
        operations: bytes,
        *,
        digest: str = "",
        waits: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        # Not by the base's: thousands of these are made in a second.
        loop = submitter.loop
        self.at = _NOWHERE
        self.future = loop.create_future()
        self.submitter = submitter
        self.unit_id = unit_id
        self.operations = operations
        self.digest = digest
        self.waits = waits
        self.since = loop.time()
        self.timeout_s = timeout_s
        self.stage = Stage.WAITING
        self.trace = "" if submitter.traceparent is None else submitter.traceparent()

    @property
    def name(self) -> str:
        """The id by which the caller may submit the unit again."""
        return self.unit_id.removesuffix(OURS)

    def entered(self, at: tuple[int, int]) -> None:
        """Hear that the unit is in the stream."""
        self.at = at
        self.stage = Stage.IN_STREAM
        if self.waits:
            self.submitter.answers.follow(self)
        elif not self.future.done():
            self.future.set_result(self.entry)

    def committed(self, answer: Answer | None = None) -> None:
        """Hear that the unit is committed."""
        if not self.future.done():
            self.future.set_result(answer)

    def lost(self) -> None:
        """Hear that Redis lost the entry: the same unit goes there once more."""
        if not self.future.done():
            logger.warning("Redis lost the unit %s: submitting it again", self.unit_id)
            self.digest = ""  # nothing is known of it there
            self.stage = Stage.WAITING
            try:
                self.submitter.send(self)
            except WriterUnavailable as exc:
                self.failed(exc)

    def expire(self, now: float, no_room: str) -> bool:
        """Give up when the caller's time is up; tell whether it is."""
        is_late = self.timeout_s is not None and now - self.since >= self.timeout_s
        if self.stage is not Stage.WAITING:
            if is_late:
                self.failed(
                    CommitTimeout(
                        f"the unit {self.name} was not committed in time: it is still on its way. "
                        f"Submitted again under this id it is applied once",
                        unit=self.name,
                    )
                )
            return is_late
        if no_room and (is_late or now - self.since >= self.submitter.full_timeout_s):
            self.failed(
                WriterBacklogFull(
                    f"{no_room}, and did so for as long as this caller may wait; nothing was "
                    f"submitted. Is the writer running, and Postgres with it?",
                    unit=self.name,
                )
            )
            return True
        if is_late:
            self.failed(WriterUnavailable("Redis did not answer in time; nothing was submitted"))
        return is_late


class Submitter:
    """Sends the units of one client, and lets each caller hear what became of its own.

    Args:
        redis: a client that does not decode replies. It stays its owner's.
        answers: where to wait for commits.
        full_timeout_s: how long a unit waits for room before it is given up.
        percent: how much of the room for what waits its units may fill.
        traceparent: returns what ties a unit to the trace of its caller, who calls `send` now.
    """

    def __init__(
        self,
        redis: Redis,
        answers: Answers,
        *,
        full_timeout_s: float,
        percent: int = 100,
        traceparent: Callable[[], str] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.answers = answers
        self.full_timeout_s = full_timeout_s
        self._redis = redis
        self._client = uuid4().hex
        self.traceparent = traceparent
        self._percent = percent
        self._keys = [keys.UNITS, keys.WRITER, keys.sent(self._client)]
        self._calls = itertools.count(1)
        self._units = itertools.count(1)
        self._waiting: collections.deque[SentUnit] = collections.deque()
        self._alive: list[SentUnit] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._no_room = ""  # why the last call left units behind
        self._closed = False

    def new_id(self) -> str:
        """Return an id that no other unit has."""
        return f"{self._client}-{next(self._units)}:{time.time_ns() // 1_000_000}"

    def send(self, unit: SentUnit) -> None:
        """Let a unit travel with the next call."""
        if self._closed:
            raise WriterUnavailable("this database is closed: open it with runner.database(…)")
        self._waiting.append(unit)
        self._alive.append(unit)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)
        if self._task is None or self._task.done():
            self._task = self.loop.create_task(self._send_all(), name="runner submit")

    async def close(self, *, timeout_s: float) -> None:
        """Send what was handed over, for as long as given; then give the rest up. Idempotent."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for unit in self._alive:
            if unit.stage is not Stage.IN_STREAM:
                unit.failed(
                    WriterUnavailable(
                        f"the database was closed while the unit {unit.name} was {unit.stage.value}"
                    )
                )
        self._alive.clear()
        self._waiting.clear()

    async def _send_all(self) -> None:
        delay_s = SOONEST_LOOK_S
        while self._waiting:
            batch = self._load()
            if not batch:
                continue
            left = await self._send(batch)
            if left:
                self._waiting.extendleft(reversed(left))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, LATEST_LOOK_S)
            else:
                self._no_room = ""
            if len(left) < len(batch):
                delay_s = SOONEST_LOOK_S
        self._no_room = ""

    def _load(self) -> list[SentUnit]:
        """Take what the next call carries; whose caller has gone is not sent."""
        batch: list[SentUnit] = []
        size = 0
        while self._waiting and len(batch) < UNITS_AT_ONCE and size < BYTES_AT_ONCE:
            unit = self._waiting.popleft()
            if not unit.future.done():
                unit.stage = Stage.UNDER_WAY
                size += len(unit.operations)
                batch.append(unit)
        return batch

    async def _send(self, batch: list[SentUnit]) -> list[SentUnit]:
        """Send units; return those for which there was no room."""
        args: list[Any] = [next(self._calls), self._percent]
        for unit in batch:
            args += (unit.unit_id, unit.operations, unit.digest, unit.trace)
        try:
            first, added, why, *known = await self._call(args)
        except Exception as exc:  # noqa: BLE001  whatever it is, it belongs to the callers
            if not isinstance(exc, OutOfMemoryError):
                _fail(batch, f"Redis refused the unit: {exc}", exc)
                return []
            first, added, why, known = b"", 0, b"OOM", []
        left = _enter(batch, first, added, known)
        if not left:
            return []
        reason = why.split(b" ")[0]
        if reason not in _NO_ROOM:
            _fail(left, f"Redis refused the unit: {why.decode()}", None)
            return []
        for unit in left:
            unit.stage = Stage.WAITING
        self._no_room = _NO_ROOM[reason]
        return left

    async def _call(self, args: list[Any]) -> list[Any]:
        """Call until Redis answers: a call that is repeated adds nothing."""
        for troubles in itertools.count():
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    reply: list[Any] = await load("submit").call(
                        self._redis, keys=self._keys, args=args
                    )
            except _PASSING as exc:
                if troubles == 0:
                    logger.warning("Redis does not answer (%s); units wait for it", exc)
                await asyncio.sleep(RETRY_DELAYS_S[min(troubles, len(RETRY_DELAYS_S) - 1)])
            else:
                return reply
        raise AssertionError("the loop has no end")

    def _sweep(self) -> None:
        """Let those go whose time is up, and forget those who have their answer."""
        now, no_room = self.loop.time(), self._no_room
        self._alive = [
            unit for unit in self._alive if not unit.future.done() and not unit.expire(now, no_room)
        ]
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep) if self._alive else None


def _enter(
    batch: Sequence[SentUnit], first: bytes, added: int, known: Sequence[Any]
) -> list[SentUnit]:
    """Tell units their entries; return those that are not in the stream."""
    ms, sequence = split_id(first.decode()) if first else (0, 0)
    if not known:
        for index in range(added):
            batch[index].entered((ms, sequence + index))
        return list(batch[added:])
    entries = dict(zip(known[::2], known[1::2], strict=True))
    index = 0
    for index, unit in enumerate(batch):
        entry = entries.get(index)
        if entry is None:
            if added == 0:
                return list(batch[index:])
            unit.entered((ms, sequence))
            sequence, added = sequence + 1, added - 1
        elif entry:
            unit.entered(split_id(entry.decode()))
        else:
            unit.failed(
                UnitChanged(
                    f"the id {unit.name!r} was used for other writes a short while ago: give "
                    f"every unit an id of its own"
                )
            )
    return []


def _fail(units: Sequence[SentUnit], message: str, cause: BaseException | None) -> None:
    for unit in units:
        error = WriterUnavailable(message)
        error.__cause__ = cause
        unit.failed(error)
