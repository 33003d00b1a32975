"""How far jobs are: written by `ctx.progress`, read by `job.progress`.

A job may say how far it is as often as it likes. The first word goes out at once; what follows
within a fifth of a second is gathered, of all jobs of a worker, and the last word of each goes out
in one call. The first word that says that all is done (``done >= total``) waits for nothing.

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
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from runner import connections, keys
from runner.errors import ArgumentsError

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Generator,
        Mapping,
    )

    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

logger = logging.getLogger("runner.progress")

TROUBLE = (RedisError, OSError, TimeoutError)
_PASSING = (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError)
EVERY_S = 0.2
YIELD_S = 0.05
SEND_TIMEOUT_S = 5.0
KEEP_MS = 3_600_000
LOOK_S = 1.0
MOST_MESSAGE = 500
MOST_NUMBER = 2**64 - 1
"""What msgpack has room for, and a page of numbers too."""
MOST_KEPT = 1_000
"""Of how many jobs the last words are kept while Redis takes none."""
AGAIN_S = 1.0
LINGER_S = EVERY_S * 1.25
"""How long a follower waits for the last word of a job that has ended short of its total."""


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
    numbers = _number("done", done), None if total is None else _number("total", total)
    # Escaped: what cannot be encoded would keep the words of other jobs back.
    text = str(message)[:MOST_MESSAGE].encode(errors="backslashreplace").decode()
    return Progress(*numbers, text, time.time_ns() // 1_000_000, attempt)


def _number(name: str, value: object) -> int | float:
    is_number = not isinstance(value, bool)
    if is_number and isinstance(value, int | float) and 0 <= value <= MOST_NUMBER:
        return int(value) if isinstance(value, int) else float(value)
    is_long = isinstance(value, int) and abs(value) > MOST_NUMBER
    raise ArgumentsError(
        f"progress: {name} is {'a number beyond 64 bits' if is_long else repr(value)}, but must be "
        f"a number from 0 to 2**64 - 1"
    )


class ProgressBoard:
    """Where the jobs of one worker say how far they are.

    One call is under way at a time, so that no word overtakes a later one of its job.

    Args:
        redis: returns the worker's pool.
    """

    def __init__(self, redis: Callable[[], Redis]) -> None:
        self._redis = redis
        self._words: dict[str, Progress] = {}
        self._done: dict[str, int] = {}  # by job, the attempt that has said that all is done
        self._sent_at = 0.0
        self._turned_at = 0.0
        self._sending: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._in_trouble = False
        self._closes = False

    async def say(self, job_id: str, progress: Progress) -> None:
        """Take the word of a job; wait only for the first one that says that all is done."""
        self._words[job_id] = progress
        now = time.monotonic()
        self._see_to_it()
        if self._is_last(job_id, progress):
            await self._send()
        elif now - self._turned_at > YIELD_S:
            # A job that does nothing else would keep the loop from sending.
            self._turned_at = now
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Send the last words; what Redis does not take now is lost. Idempotent."""
        self._closes = True
        try:
            if self._sending is not None:
                self._sending.cancel()
                await asyncio.gather(self._sending, return_exceptions=True)
                self._sending = None
            await self._send()
        finally:
            self._words.clear()
            self._closes = False

    def _see_to_it(self) -> None:
        """Let what waits be sent soon."""
        if not self._closes and (self._sending is None or self._sending.done()):
            self._sending = asyncio.create_task(self._send_soon(), name="runner progress")

    def _is_last(self, job_id: str, progress: Progress) -> bool:
        """Say whether an attempt says that all is done, and has not said so before."""
        if not _says_all(progress) or self._done.get(job_id) == progress.attempt:
            return False
        while len(self._done) >= MOST_KEPT:
            del self._done[next(iter(self._done))]
        self._done[job_id] = progress.attempt
        return True

    async def _send_soon(self) -> None:
        while self._words:
            pause_s = AGAIN_S if self._in_trouble else EVERY_S
            await asyncio.sleep(max(self._sent_at + pause_s - time.monotonic(), 0))
            await self._send()

    async def _send(self) -> None:
        async with self._turn:
            words, self._words = self._words, {}
            if not words:
                return
            self._sent_at = time.monotonic()
            try:
                await self._write(words)
            except TROUBLE as exc:
                if not self._in_trouble:
                    logger.warning("the progress of jobs waits for Redis: %s", exc)
                self._in_trouble = True
                self._put_back(words)
            except BaseException:
                self._put_back(words)  # whoever was cancelled here sent the words of others, too
                raise
            else:
                self._in_trouble = False

    async def _write(self, words: Mapping[str, Progress]) -> None:
        redis = self._redis()
        async with asyncio.timeout(SEND_TIMEOUT_S), redis.pipeline(transaction=False) as pipe:
            for job_id, word in words.items():
                blob = msgspec.msgpack.encode(word)
                pipe.set(keys.progress(job_id), blob, px=KEEP_MS)
                pipe.publish(channel(redis, job_id), blob)
            await pipe.execute()

    def _put_back(self, words: dict[str, Progress]) -> None:
        """Keep what Redis may not have, unless its job has said more by now; the newest words."""
        self._words = {**words, **self._words}
        for job_id in list(self._words)[: max(len(self._words) - MOST_KEPT, 0)]:
            del self._words[job_id]
        self._see_to_it()


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
        """Give each word that is new, until the job has ended; the last one is among them.

        While Redis is away it waits, as whoever waits for the result does.
        """
        redis = connections.another(self._redis.connection_pool)
        pubsub = redis.pubsub(ignore_subscribe_messages=True)
        ended = asyncio.ensure_future(self._ended())
        last: Progress | None = None
        listens = lingered = False
        try:
            while True:
                is_over = ended.done()
                try:
                    if not listens:
                        await pubsub.subscribe(channel(self._redis, self._job_id))
                        listens = True
                    word = await self._read()
                except _PASSING as exc:
                    logger.debug("following %s: Redis does not answer (%s)", self._job_id, exc)
                    await asyncio.sleep(EVERY_S)
                    continue
                if word is not None and word != last:
                    last = word
                    yield word
                if is_over and (lingered or _says_all(last)):
                    ended.result()
                    return
                if is_over:
                    lingered = True
                    await asyncio.sleep(LINGER_S)
                else:
                    await _heard(pubsub, ended)
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)
            await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py gives it no types
            await redis.aclose()


def _says_all(word: Progress | None) -> bool:
    return word is not None and word.total is not None and word.done >= word.total


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
