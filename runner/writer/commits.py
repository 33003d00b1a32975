"""Submit the units of jobs that go on, and wait until they are committed.

``submit`` ends with the unit in the stream, ``answer`` with what the writer says of it. The
writer announces every commit; an announcement only shortens the wait, because whoever waits
asks every second too.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import RedisError

from runner import keys
from runner.broker import raw_id
from runner.errors import LeaseLost, UnitChanged
from runner.scripts import load
from runner.writer.entries import CommitHeader, decode_rejection
from runner.writer.status import ZERO, exceeds

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from runner.broker import Claimed

__all__ = ["Commits", "JobCommits", "Submitted"]

logger = logging.getLogger("runner.writer")

ASK_EVERY_S = 1.0
ASKED_AT_ONCE = 500
CALL_TIMEOUT_S = 10.0
AGAIN_AFTER_S = 0.1
_TROUBLE = (RedisError, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Submitted:
    """A unit in the stream: which commit of its job it is, and its answer when there is one."""

    number: int
    entry: str
    answer: bytes | None


@dataclass(slots=True, eq=False)
class _Waiter:
    key: str
    number: int
    entry: str
    answer: asyncio.Future[bytes]
    is_new: bool = True


class Commits:
    """The commits that the jobs of one worker wait for.

    Args:
        redis: returns the connection pool of the moment.
    """

    def __init__(self, redis: Callable[[], Redis]) -> None:
        self._redis = redis
        self._waiters: set[_Waiter] = set()
        self._committed = ZERO
        self._nudge = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def of_job(self, claimed: Claimed, enqueued_ms: int) -> JobCommits:
        """Return the commits of one attempt of a job."""
        return JobCommits(self, claimed, enqueued_ms)

    async def stop(self) -> None:
        """Stop listening; whoever waits is cancelled."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiter in self._waiters:
            waiter.answer.cancel()

    async def call(self, script_keys: list[Any], args: list[Any]) -> list[Any]:
        """Run the submitting script until Redis has answered: sent again, it changes nothing."""
        trouble = False
        while True:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    reply: list[Any] = await load("commit_unit").call(
                        self._redis(), keys=script_keys, args=args
                    )
            except _TROUBLE as exc:
                if not trouble:
                    logger.warning("Redis does not take a commit (%s); trying again", exc)
                trouble = True
                await asyncio.sleep(AGAIN_AFTER_S)
            else:
                return reply

    async def wait(self, key: str, number: int, entry: str) -> bytes:
        """Return the answer that the writer leaves beside this commit."""
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(self._listen(), name="commits listen"),
                loop.create_task(self._ask(), name="commits ask"),
            ]
        waiter = _Waiter(key, number, entry, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        # It may have been committed before anybody listened for it.
        self._nudge.set()
        try:
            return await waiter.answer
        finally:
            self._waiters.discard(waiter)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis().pubsub() as pubsub:
                    await pubsub.subscribe(keys.COMMITS_CHANNEL)
                    while True:
                        message = await pubsub.get_message(timeout=ASK_EVERY_S)
                        if message and message["type"] == "message":
                            self._committed = message["data"].decode().rpartition(" ")[2]
                            self._nudge.set()
            except _TROUBLE as exc:
                logger.warning("cannot listen for commits (%s); asking for them", exc)
                await asyncio.sleep(ASK_EVERY_S)

    async def _ask(self) -> None:
        asks_all = True
        while True:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await self._ask_for(self._ready(everybody=asks_all))
            except _TROUBLE as exc:
                logger.warning("cannot ask for commits (%s); trying again", exc)
                await asyncio.sleep(AGAIN_AFTER_S)
            asks_all = False
            try:
                async with asyncio.timeout(ASK_EVERY_S):
                    await self._nudge.wait()
            except TimeoutError:
                asks_all = True
            self._nudge.clear()

    def _ready(self, *, everybody: bool) -> list[_Waiter]:
        """Return the waiters whose answers may be there: new ones, and those announced."""
        return [
            waiter
            for waiter in self._waiters
            if everybody or waiter.is_new or not exceeds(waiter.entry, self._committed)
        ]

    async def _ask_for(self, waiters: list[_Waiter]) -> None:
        for at in range(0, len(waiters), ASKED_AT_ONCE):
            part = waiters[at : at + ASKED_AT_ONCE]
            async with self._redis().pipeline(transaction=False) as pipe:
                for waiter in part:
                    pipe.hget(waiter.key, f"answer {waiter.number}")
                answers = await pipe.execute()
            for waiter, answer in zip(part, answers, strict=True):
                waiter.is_new = False
                if answer is not None and not waiter.answer.done():
                    waiter.answer.set_result(answer)


class JobCommits:
    """The commits of one attempt: fenced by its claim, numbered alike in every attempt."""

    __slots__ = ("_claimed", "_commits", "_enqueued_ms")

    def __init__(self, commits: Commits, claimed: Claimed, enqueued_ms: int) -> None:
        self._commits = commits
        self._claimed = claimed
        self._enqueued_ms = enqueued_ms

    async def submit(
        self, number: int, operations: bytes, *, max_rows: int, max_bytes: int
    ) -> Submitted:
        """Put a unit into the stream, or find the one that an earlier attempt put there.

        Raises:
            LeaseLost: the job runs elsewhere; nothing was submitted.
            UnitChanged: the earlier attempt committed something else.
        """
        claimed = self._claimed
        job_id = raw_id(claimed.job_id)
        digest = hashlib.blake2b(operations, digest_size=16).hexdigest()
        header = CommitHeader(claimed.job_id, claimed.queue, number)
        status, *rest = await self._commits.call(
            [claimed.queue, keys.held(claimed.queue), self._key, keys.UNITS],
            [
                *(job_id, claimed.token, claimed.attempt, self._enqueued_ms, number, digest),
                f"{claimed.job_id}:{self._enqueued_ms}:{number}",
                *(operations, msgspec.msgpack.encode(header), f"{max_rows} {max_bytes}"),
            ],
        )
        if status == b"lost":
            raise LeaseLost(
                f"job {claimed.job_id}: its lease is lost, it runs elsewhere; nothing was submitted"
            )
        entry = rest[0].decode()
        if status == b"changed":
            raise UnitChanged(
                f"job {claimed.job_id}: its commit number {number} differs from that of an earlier "
                f"attempt, which is the entry {entry} and stands. Up to its last commit a job must "
                f"write the same in every attempt: take times and random values from its "
                f"arguments, or move what differs behind the last commit",
                sequence=number,
                entry=entry,
            )
        return Submitted(number, entry, rest[1])

    async def answer(self, submitted: Submitted) -> bytes:
        """Return what the unit did, encoded, when it is committed.

        Raises:
            WriteRejected: Postgres refused it.
        """
        answer = submitted.answer
        if answer is None:
            answer = await self._commits.wait(self._key, submitted.number, submitted.entry)
        if answer.startswith(b"-"):
            raise decode_rejection(answer[1:])
        return answer[1:]

    @property
    def _key(self) -> str:
        return keys.commits(self._claimed.job_id)
