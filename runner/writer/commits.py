"""Submit the units of jobs that go on, and wait until they are committed.

``submit`` ends with the unit in the stream, ``answer`` with what the writer says of it, which
stands beside the job's other commits until the job is over.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from runner import keys
from runner.connections import TROUBLE
from runner.errors import LeaseLost, StoreWentBack, UnitChanged
from runner.scripts import load
from runner.writer.answers import Answers
from runner.writer.entries import decode_rejection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from runner.broker import Claimed

__all__ = ["Commits", "JobCommits", "Submitted"]

logger = logging.getLogger("runner.writer")

CALL_TIMEOUT_S = 10.0
AGAIN_AFTER_S = 0.1


@dataclass(frozen=True, slots=True)
class Submitted:
    """A unit in the stream: which commit of its job it is, and its answer when there is one."""

    number: int
    entry: str
    answer: bytes | None


class Commits:
    """The commits that the jobs of one worker wait for.

    Args:
        redis: returns the connection pool of the moment.
    """

    def __init__(self, redis: Callable[[], Redis]) -> None:
        self._redis = redis
        self._answers: Answers | None = None

    def of_job(self, claimed: Claimed, enqueued_ms: int, trace: str = "") -> JobCommits:
        """Return the commits of one attempt of a job; `trace` is its span."""
        return JobCommits(self, claimed, enqueued_ms, trace)

    async def stop(self) -> None:
        """Stop listening; whoever still waits hears of it."""
        answers, self._answers = self._answers, None
        if answers is not None:
            await answers.close()

    async def call(self, script_keys: list[Any], args: list[Any]) -> list[Any]:
        """Run the submitting script until Redis has answered: sent again, it changes nothing."""
        reply: list[Any] = await self._until_redis_answers(self._send, script_keys, args)
        return reply

    async def passed(self, entry: str) -> None:
        """Return when the writer has answered this entry."""
        if self._answers is None:
            self._answers = Answers(self._redis())
        await self._answers.wait(entry, timeout_s=None)

    async def read(self, key: str, number: int) -> bytes | None:
        """Return the answer that the writer left beside a commit, None when it is gone."""
        return cast("bytes | None", await self._until_redis_answers(self._ask, key, number))

    async def _ask(self, key: str, number: int) -> Any:
        return await cast("Any", self._redis().hget(key, f"answer {number}"))

    async def _send(self, script_keys: list[Any], args: list[Any]) -> Any:
        return await load("commit_unit").call(self._redis(), keys=script_keys, args=args)

    async def _until_redis_answers(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        trouble = False
        while True:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    return await call(*args)
            except TROUBLE as exc:
                if not trouble:
                    logger.warning("Redis does not take a commit (%s); trying again", exc)
                trouble = True
                await asyncio.sleep(AGAIN_AFTER_S)


class JobCommits:
    """The commits of one attempt: fenced by its claim, numbered alike in every attempt."""

    __slots__ = ("_claimed", "_commits", "_enqueued_ms", "_trace")

    def __init__(
        self, commits: Commits, claimed: Claimed, enqueued_ms: int, trace: str = ""
    ) -> None:
        self._commits = commits
        self._claimed = claimed
        self._enqueued_ms = enqueued_ms
        self._trace = trace

    async def submit(
        self, number: int, operations: bytes, *, max_rows: int, max_bytes: int
    ) -> Submitted:
        """Put a unit into the stream, or find the one that an earlier attempt put there.

        Raises:
            LeaseLost: the job runs elsewhere; nothing was submitted.
            UnitChanged: the earlier attempt committed something else.
        """
        claimed = self._claimed
        job_id = keys.raw_id(claimed.job_id)
        digest = hashlib.blake2b(operations, digest_size=16).hexdigest()
        header: tuple[Any, ...] = (claimed.job_id, claimed.queue, number)  # see `CommitHeader`
        if self._trace:
            header = (*header, self._trace)
        status, *rest = await self._commits.call(
            [claimed.queue, keys.held(claimed.queue), self._key, keys.UNITS, keys.WRITER],
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
            StoreWentBack: Redis lost the unit, or its answer.
        """
        answer = submitted.answer
        if answer is None:
            await self._commits.passed(submitted.entry)
            answer = await self._commits.read(self._key, submitted.number)
        if answer is None:
            raise StoreWentBack(
                f"job {self._claimed.job_id}: the unit {submitted.entry} was answered, but Redis "
                f"lost what it did. Run the job again"
            )
        if answer.startswith(b"-"):
            raise decode_rejection(answer[1:])
        return answer[1:]

    @property
    def _key(self) -> str:
        return keys.commits(self._claimed.job_id)
