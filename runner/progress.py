"""How far jobs are: written by `ctx.progress`, read by `job.progress`.

A job may say how far it is as often as it likes. The first word goes out at once; what follows
within a fifth of a second is gathered, of all jobs of a worker, and the last word of each goes out
in one call. What says that all is done (``done >= total``) waits for nothing.

Followers hear each word by publish and subscribe. Publishing only shortens the wait: a follower
also looks once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import RedisError

from runner import connections, keys
from runner.errors import ArgumentsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator

    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

logger = logging.getLogger("runner.progress")

TROUBLE = (RedisError, OSError, TimeoutError)
EVERY_S = 0.2
YIELD_S = 0.05
SEND_TIMEOUT_S = 5.0
KEEP_MS = 3_600_000
LOOK_S = 1.0
MOST_MESSAGE = 500


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far a job is.

    Attributes:
        done: how much is done, in the job's own unit.
        total: of how much; None where nobody knows.
        message: what the job says to it.
        at_ms: when, Unix time in milliseconds.
        attempt: the number of the attempt that said so.
    """

    done: int | float  # an int stays one on its way
    total: int | float | None = None
    message: str = ""
    at_ms: int = 0
    attempt: int = 1

    @property
    def part(self) -> float | None:
        """The part that is done, 0 to 1; None where the total is not known."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total else None


def checked(done: float, total: float | None, message: str, attempt: int) -> Progress:
    """Return the word of a job; raise `ArgumentsError` when it makes no sense."""
    for name, value in (("done", done), ("total", total)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None and name == "total":
            continue
        if value is None or not is_number or not value >= 0:
            raise ArgumentsError(f"progress: {name} is {value!r}, but must be a number from 0")
    at_ms = time.time_ns() // 1_000_000
    return Progress(done, total, str(message)[:MOST_MESSAGE], at_ms, attempt)


class ProgressBoard:
    """Where the jobs of one worker say how far they are.

    Args:
        redis: returns the worker's pool.
    """

    def __init__(self, redis: Callable[[], Redis]) -> None:
        self._redis = redis
        self._words: dict[str, Progress] = {}
        self._sent_at = 0.0
        self._turned_at = 0.0
        self._sending: asyncio.Task[None] | None = None

    async def say(self, job_id: str, progress: Progress) -> None:
        """Take the word of a job; wait only for one that says that all is done."""
        self._words[job_id] = progress
        now = time.monotonic()
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_soon(), name="runner progress")
        if progress.total is not None and progress.done >= progress.total:
            await self._send()
        elif now - self._turned_at > YIELD_S:
            # A job that does nothing else would keep the loop from sending.
            self._turned_at = now
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Send the last words. Idempotent."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
            self._sending = None
        await self._send()

    async def _send_soon(self) -> None:
        while self._words:
            await asyncio.sleep(max(self._sent_at + EVERY_S - time.monotonic(), 0))
            await self._send()

    async def _send(self) -> None:
        words, self._words = self._words, {}
        if not words:
            return
        self._sent_at = time.monotonic()
        redis = self._redis()
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S), redis.pipeline(transaction=False) as pipe:
                for job_id, word in words.items():
                    blob = msgspec.msgpack.encode(word)
                    pipe.set(keys.progress(job_id), blob, px=KEEP_MS)
                    pipe.publish(channel(redis, job_id), blob)
                await pipe.execute()
        except TROUBLE as exc:
            # Nothing rests on it, and the next word says more.
            logger.warning("the progress of %d jobs could not be sent: %s", len(words), exc)


class Following:
    """The value of `job.progress()`: await it, or follow it with ``async for``.

    Args:
        ended: waits until the job has ended; what it raises is raised by the follower.
    """

    def __init__(self, redis: Redis, job_id: str, ended: Callable[[], Awaitable[Any]]) -> None:
        self._redis = redis
        self._job_id = job_id
        self._ended = ended

    def __await__(self) -> Generator[Any, None, Progress | None]:
        return self._read().__await__()

    def __aiter__(self) -> AsyncIterator[Progress]:
        return self._follow()

    async def _read(self) -> Progress | None:
        blob = await self._redis.get(keys.progress(self._job_id))
        return None if blob is None else msgspec.msgpack.decode(blob, type=Progress)

    async def _follow(self) -> AsyncGenerator[Progress, None]:
        """Give each word that is new, until the job has ended; the last one is among them."""
        redis = connections.another(self._redis.connection_pool)
        pubsub = redis.pubsub(ignore_subscribe_messages=True)
        ended = asyncio.ensure_future(self._ended())
        last: Progress | None = None
        try:
            await pubsub.subscribe(channel(self._redis, self._job_id))
            while True:
                is_over = ended.done()
                word = await self._read()
                if word is not None and word != last:
                    last = word
                    yield word
                if is_over:
                    ended.result()
                    return
                await _heard(pubsub, ended)
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)
            await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py gives it no types
            await redis.aclose()


async def _heard(pubsub: PubSub, ended: asyncio.Future[Any]) -> None:
    """Wait for a message, the end of the job, or a second."""
    message = asyncio.ensure_future(pubsub.get_message(timeout=LOOK_S))
    try:
        await asyncio.wait({message, ended}, return_when=asyncio.FIRST_COMPLETED)
        if message.done():
            with contextlib.suppress(*TROUBLE):
                if message.result() is None and not ended.done():
                    await asyncio.sleep(0)
    finally:
        if not message.done():
            message.cancel()
            await asyncio.gather(message, return_exceptions=True)


def channel(redis: Redis, job_id: str) -> bytes:
    """Return the channel of a job's words; channels know no database numbers."""
    return keys.progress(f"{keys.database_number(redis)}:{job_id}")
