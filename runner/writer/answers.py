"""Wait for what becomes of units: any number of callers of a process over one subscription.

The writer announces each batch by ``previous last look…``: everything after the entry
``previous`` up to ``last`` is answered, and committed as it was asked for but for the entries
named behind, about which there is more to read: they were refused, or rows come back. ``*``
in their place means that there were too many to name. So in the ordinary case a unit costs
its caller no reading.

Announcements follow on each other, so that a lost one shows at the next; what was lost is
asked for, as it is after a new subscription, and after a second without news.
"""

from __future__ import annotations

import asyncio
import bisect
import collections
import contextlib
import logging
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from runner import connections, keys
from runner.batch import Gathered
from runner.connections import TROUBLE
from runner.errors import (
    CommitTimeout,
    DecodeError,
    ResultTooLarge,
    StoreWentBack,
    WriterUnavailable,
)
from runner.scripts import load
from runner.writer.entries import decode_rejection
from runner.writer.status import split_id
from runner.writer.tally import read_tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

__all__ = ["Answer", "Answers", "EntryId", "Waiter", "decode_answer"]

logger = logging.getLogger("runner.writer")

EntryId: TypeAlias = tuple[int, int]
"""An entry's id as two numbers, in the order of which entries are applied."""

QUIET_S = 1.0
"""After so long without an announcement, those who wait are asked about."""

AGAIN_S = 0.25
ASK_TIMEOUT_S = 10.0
ASKED_AT_ONCE = 500
REMEMBERED = 256
DEAF_AFTER = 3
_AT = attrgetter("at")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a committed unit gave back.

    Attributes:
        entry: the id of its entry in the stream.
        counts: for each operation the rows it touched, None where that is not known; () for
            a unit that did not ask.
        rows: for each operation its rows; () for a unit that did not ask.
    """

    entry: str
    counts: tuple[int | None, ...] = ()
    rows: tuple[Any, ...] = ()


def decode_answer(entry: str, data: bytes) -> Answer:
    """Read what the writer kept; raise `ResultTooLarge` when the rows are too many to travel."""
    told = read_tally(data, entry)
    return Answer(entry, told.counts, told.rows)


class Waiter:
    """One who waits for one entry.

    Attributes:
        at: the entry.
        future: done when the answer is there, or nobody wants it any more.
    """

    __slots__ = ("at", "future")

    def __init__(self, at: EntryId, future: asyncio.Future[Any]) -> None:
        self.at = at
        self.future = future

    @property
    def entry(self) -> str:
        """The entry's id as Redis writes it."""
        return f"{self.at[0]}-{self.at[1]}"

    def committed(self, answer: Answer | None = None) -> None:
        """Hear that the unit is committed; None: it did not ask for more."""
        if not self.future.done():
            self.future.set_result(answer or Answer(self.entry))

    def failed(self, why: BaseException) -> None:
        """Hear that it never will be, or that this cannot be known."""
        if not self.future.done():
            self.future.set_exception(why)

    def lost(self) -> None:
        """Hear that Redis lost the entry before it was applied."""
        self.failed(
            StoreWentBack(
                f"Redis lost the unit {self.entry}, as after a failover: submit it again, "
                f"under the same id where it has one"
            )
        )


class Answers:
    """Waits for entries of one Redis; nothing is started before the first wait.

    Args:
        redis: a client that does not decode replies. It stays its owner's.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._channel = keys.commits_channel(keys.database_number(redis))
        self._open: list[Waiter] = []  # in the order of the entries
        self._again: list[tuple[Waiter, bool]] = []  # to be asked about at the next tick
        self._asked: set[Waiter] = set()
        self._asking: Gathered[tuple[Waiter, bool]] = Gathered(self._ask, "runner answers asked")
        # What was announced: all up to `last`; with names, what came after `known_from`.
        self._is_following = False
        self._last: EntryId = (0, 0)
        self._known_from: EntryId = (0, 0)
        self._named: set[EntryId] = set()
        self._batches: collections.deque[tuple[EntryId, frozenset[EntryId]]] = collections.deque()
        self._seen: EntryId = (0, 0)  # as far as the writer was when it was last asked
        self._behind = 0
        self._listener: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(self, entry: str, *, timeout_s: float | None) -> Answer:
        """Return when the unit of this entry is committed.

        A caller that is cancelled, or whose time is up, leaves nothing behind; its unit is
        still on its way.

        Raises:
            WriteRejected: Postgres refused the unit.
            CommitTimeout: the time is up; a `TimeoutError` too.
            StoreWentBack: Redis lost the unit before it was applied.
            WriterUnavailable: the client was closed meanwhile.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.follow(Waiter(split_id(entry), future))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError as exc:
            raise CommitTimeout(
                f"the unit {entry} was not committed within {timeout_s} s: it is still on its way",
            ) from exc

    def follow(self, waiter: Waiter) -> None:
        """Let a waiter hear of its entry; it may do so before this returns."""
        self._start()
        at = waiter.at
        if not self._is_following or at > self._last:
            if not self._open or self._open[-1].at <= at:
                self._open.append(waiter)
            else:
                bisect.insort(self._open, waiter, key=_AT)
        elif at > self._known_from and at not in self._named:
            waiter.committed()
        else:
            self._ask_for([waiter])

    async def close(self) -> None:
        """Stop listening; whoever still waits hears of it. Idempotent."""
        self._closed = True
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
        await self._asking.drain()
        for waiter in (*self._open, *(waiter for waiter, _ in self._again), *self._asked):
            waiter.failed(
                WriterUnavailable(
                    f"the client was closed while it waited for the unit {waiter.entry}, which "
                    f"is still on its way"
                )
            )
        self._open, self._again = [], []

    def _start(self) -> None:
        if self._closed:
            raise WriterUnavailable("this client is closed; it cannot wait for units any more")
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen(), name="runner answers")

    async def _listen(self) -> None:
        while True:
            # Beside the pool: of a bounded number of connections it would keep one for good.
            redis = connections.another(self._redis.connection_pool)
            pubsub = redis.pubsub()
            try:
                await self._read(pubsub)
            except (*TROUBLE, ValueError) as exc:
                logger.warning("lost the announcements of commits: %s; subscribing again", exc)
                await asyncio.sleep(AGAIN_S)
            finally:
                self._is_following = False
                with contextlib.suppress(*TROUBLE):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
                    await redis.aclose()

    async def _read(self, pubsub: PubSub) -> None:
        now = asyncio.get_running_loop().time
        await pubsub.subscribe(self._channel)
        looked_at = heard_at = now()
        while True:
            message = await pubsub.get_message(timeout=QUIET_S)
            if message is not None and message["type"] == "subscribe":
                await self._catch_up()
            elif message is not None and message["type"] == "message":
                self._heard(message["data"])
                heard_at = now()
            if now() - looked_at >= QUIET_S:
                looked_at = now()
                self._tick(is_quiet=looked_at - heard_at >= QUIET_S)

    async def _catch_up(self) -> None:
        """Ask where the writer is before its announcements count, and for all who wait."""
        (answered, *_) = await self._call(0, [])
        self._forget(answered)
        self._is_following = True
        self._seen, self._behind = answered, 0
        waiting, self._open = self._open, []
        self._ask_for(waiting, verify=True)

    def _heard(self, data: bytes) -> None:
        """Take one announcement."""
        previous, last, *look = data.decode().split(" ")
        before, until = split_id(previous), split_id(last)
        if until <= self._last:
            return  # repeated
        passed = self._pass(until)
        if before > self._last or "*" in look:
            self._forget(until)
            self._ask_for(passed)
            return
        self._last = until
        named = frozenset(split_id(entry) for entry in look)
        self._remember(until, named)
        if named:
            self._ask_for([waiter for waiter in passed if waiter.at in named])
            passed = [waiter for waiter in passed if waiter.at not in named]
        for waiter in passed:
            waiter.committed()

    def _pass(self, until: EntryId) -> list[Waiter]:
        """Take those out who wait for entries up to this one."""
        count = bisect.bisect_right(self._open, until, key=_AT)
        passed = self._open[:count]
        del self._open[:count]
        return passed

    def _remember(self, until: EntryId, named: frozenset[EntryId]) -> None:
        """Keep what was announced, for those whose entry's id comes after the announcement."""
        self._named |= named
        self._batches.append((until, named))
        if len(self._batches) > REMEMBERED:
            self._known_from, forgotten = self._batches.popleft()
            self._named -= forgotten

    def _forget(self, last: EntryId) -> None:
        self._last = self._known_from = last
        self._named.clear()
        self._batches.clear()

    def _tick(self, *, is_quiet: bool) -> None:
        """Ask, once a second at most, for those who heard nothing."""
        self._behind = self._behind + 1 if is_quiet and self._seen > self._last else 0
        if self._behind >= DEAF_AFTER:
            # The writer goes on, and not a word of it arrives here.
            raise ConnectionError("not a word arrives")
        again, self._again = self._again, []
        for waiter, verify in again:
            self._ask_for([waiter], verify=verify)
        waiting, self._open = self._open, []
        if is_quiet:
            self._ask_for(waiting)
        else:
            self._open = [waiter for waiter in waiting if not waiter.future.done()]

    def _ask_for(self, waiters: Iterable[Waiter], *, verify: bool = False) -> None:
        for waiter in waiters:
            if not waiter.future.done():
                self._asked.add(waiter)
                self._asking.add((waiter, verify))

    async def _ask(self, batch: list[tuple[Waiter, bool]]) -> None:
        for start in range(0, len(batch), ASKED_AT_ONCE):
            part = batch[start : start + ASKED_AT_ONCE]
            verify = any(verified for _, verified in part)
            waiters = [waiter for waiter, _ in part]
            try:
                answered, *statuses = await self._call(
                    int(verify), [waiter.entry for waiter in waiters]
                )
            except TROUBLE as exc:
                logger.debug("could not ask for units: %s; the next round will", exc)
                self._again += part
            else:
                self._seen = answered
                for waiter, status in zip(waiters, statuses, strict=True):
                    self._tell(waiter, status)
            self._asked.difference_update(waiters)

    def _tell(self, waiter: Waiter, status: Any) -> None:
        if status == 1:
            waiter.committed()
        elif status == -1:
            waiter.lost()
        elif status == 0:
            if waiter.at > self._last:
                self.follow(waiter)
            else:
                self._again.append((waiter, False))
        elif isinstance(status, bytes):
            waiter.at = split_id(status.decode())
            self.follow(waiter)
        else:
            _tell_more(waiter, *status)

    async def _call(self, verify: int, entries: Sequence[str]) -> tuple[EntryId, *tuple[Any, ...]]:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            answered, *statuses = await load("answers").call(
                self._redis, keys=[keys.UNITS, keys.WRITER], args=[verify, *entries]
            )
        return (split_id(answered.decode()) if answered else (0, 0), *statuses)


def _tell_more(waiter: Waiter, failed: bytes | None, answer: bytes | None) -> None:
    try:
        if failed is not None:
            waiter.failed(decode_rejection(failed))
        elif answer is not None:
            waiter.committed(decode_answer(waiter.entry, answer))
    except (DecodeError, ResultTooLarge) as exc:
        waiter.failed(exc)
    except (msgspec.MsgspecError, ValueError, TypeError) as exc:
        waiter.failed(DecodeError(f"cannot read the answer of the unit {waiter.entry}: {exc}"))
