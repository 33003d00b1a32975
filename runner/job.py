"""A handle on one job, and the one listener per client that waits for results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import arq.jobs
from arq.jobs import ResultNotFound
from redis.exceptions import RedisError

from runner import broker, codec, connections, keys, producer
from runner.batch import Gathered
from runner.codec import ResultRecord, reader_of
from runner.errors import DecodeError, EncodeError, JobFailed, JobReplaced, RedisUnavailable
from runner.progress import Following
from runner.shapes import ANYTHING, Shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from arq.jobs import Deserializer
    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

    from runner.pipe import Pipe

logger = logging.getLogger("runner.job")

R = TypeVar("R")

FIRST_LOOK_S = 1.0
"""What the first look may take beyond the caller's timeout."""

POLL_DELAY_S = 0.5
"""How often all waiters of a client are looked up together: stock workers publish nothing."""


class Results:
    """Wait for any number of results of one client over one subscription.

    A finished job's result is published to the channels registered for it. Publishing only
    shortens the wait: every half second all waiters are also looked up together, in one
    script call for each queue, so a lost message or a stock worker costs half a second.
    """

    def __init__(self, redis: Redis, client_id: str, pipe: Pipe) -> None:
        self._redis = redis
        self._pipe = pipe
        self._channel = keys.reply_channel(client_id)
        self._waiting: dict[tuple[str, str], set[asyncio.Future[bytes | None]]] = {}
        self._queues: set[str] = set()  # a message names the job, not its queue
        self._listener: asyncio.Task[None] | None = None
        self._poller: asyncio.Task[None] | None = None
        self._subscribed: asyncio.Event = asyncio.Event()
        self._closed = False
        self._asked = Gathered(self._ask, "runner results look-up")

    async def wait(self, job_id: str, queue: str, *, timeout_s: float | None) -> bytes | None:
        """Return the encoded result, or None when there is nothing to wait for.

        A result that is there is found even with a timeout of nothing.

        Raises:
            TimeoutError: the time is up.
        """
        self._start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | None] = loop.create_future()
        looked_up: asyncio.Future[None] = loop.create_future()
        self._queues.add(queue)
        waiters = self._waiting.setdefault((queue, job_id), set())
        waiters.add(future)
        try:
            async with asyncio.timeout(None if timeout_s is None else timeout_s + FIRST_LOOK_S):
                # Registered after the subscription is confirmed: what ends later is heard.
                await self._subscribed.wait()
                self._asked.add((queue, job_id, looked_up))
                await looked_up
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            waiters.discard(future)
            if not waiters:
                self._waiting.pop((queue, job_id), None)

    async def close(self) -> None:
        """Stop listening; those who still wait are cancelled. Idempotent."""
        self._closed = True
        await self._asked.drain()
        tasks = [task for task in (self._listener, self._poller) if task is not None]
        self._listener = self._poller = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiters in list(self._waiting.values()):
            for future in waiters:
                future.cancel("the client was closed")

    async def replaced_by(self, job_id: str) -> str | None:
        """Return the job that took the place of this one, None when there is none."""
        return await producer.replaced_by(self._pipe, job_id)

    def _start(self) -> None:
        if self._closed:
            raise JobFailed("this client is closed; it cannot wait for results any more")
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="runner results")
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="runner results poll")

    async def _listen(self) -> None:
        while True:
            # Beside the pool: of a bounded number of connections it would keep one for good.
            redis = connections.another(self._redis.connection_pool)
            pubsub = redis.pubsub(ignore_subscribe_messages=False)
            try:
                await self._read(pubsub)
            except (RedisError, OSError, TimeoutError) as exc:
                logger.warning("lost the subscription for results: %s; subscribing again", exc)
                await asyncio.sleep(POLL_DELAY_S)
            finally:
                # Waiters need not wait for a subscription: the poll serves them meanwhile.
                self._subscribed.set()
                with contextlib.suppress(RedisError, OSError):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
                    await redis.aclose()

    async def _read(self, pubsub: PubSub) -> None:
        await pubsub.subscribe(self._channel)
        while True:
            message = await pubsub.get_message(timeout=None)
            if message is None:
                continue
            if message["type"] == "subscribe":
                self._subscribed.set()
            elif message["type"] == "message":
                await self._heard(message["data"])

    async def _heard(self, data: bytes) -> None:
        raw_id, _, blob = data.partition(b"\0")
        job_id = raw_id.decode(errors="surrogateescape")  # anybody may publish anything
        for queue in list(self._queues):
            if (queue, job_id) not in self._waiting:
                continue
            if blob:
                self._answer((queue, job_id), blob)
            else:
                await self._look_up_all([(queue, job_id)])

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(POLL_DELAY_S)
            await self._look_up_all(self._waiting)

    async def _ask(self, asked: list[tuple[str, str, asyncio.Future[None]]]) -> None:
        """Look up what was asked for in one tick."""
        await self._look_up_all({(queue, job_id) for queue, job_id, _ in asked})
        for _, _, looked_up in asked:
            if not looked_up.done():
                looked_up.set_result(None)

    async def _look_up_all(self, wanted: Iterable[tuple[str, str]]) -> None:
        by_queue: dict[str, list[str]] = {}
        for queue, job_id in wanted:
            by_queue.setdefault(queue, []).append(job_id)
        for queue, job_ids in by_queue.items():
            for start in range(0, len(job_ids), broker.MAX_ENTRIES):
                try:
                    await self._look_up(queue, job_ids[start : start + broker.MAX_ENTRIES])
                except (RedisUnavailable, RedisError) as exc:
                    logger.debug("could not look results up: %s; the next round will", exc)

    async def _look_up(self, queue: str, job_ids: list[str]) -> None:
        answers = await producer.read_results(
            self._pipe,
            queue,
            channel=self._channel,
            job_ids=job_ids,
        )
        for job_id, answer in zip(job_ids, answers, strict=True):
            if answer != b"":
                self._answer((queue, job_id), answer)

    def _answer(self, key: tuple[str, str], answer: bytes | None) -> None:
        for future in self._waiting.get(key, ()):
            if not future.done():
                future.set_result(answer)


class Job(arq.jobs.Job, Generic[R]):
    """A handle on one job: its result, its state, its abort.

    Attributes:
        job_id: the job's id.
        is_new: False when the job was there already, and nothing was enqueued.
    """

    __slots__ = ("_results", "_returns", "is_new")

    def __init__(
        self,
        job_id: str,
        redis: Redis,
        _queue_name: str = keys.DEFAULT_QUEUE,
        _deserializer: Deserializer | None = None,
        *,
        results: Results | None = None,
        returns: Shape = ANYTHING,
        is_new: bool = True,
    ) -> None:
        super().__init__(job_id, redis, _queue_name, _deserializer)
        self._results = results
        self._returns = returns
        self.is_new = is_new

    async def result(
        self,
        timeout: float | None = None,  # noqa: ASYNC109  arq's own signature
        *,
        poll_delay: float = POLL_DELAY_S,
        pole_delay: float | None = None,
    ) -> R:
        """Wait for the result and return it, or raise what the job raised.

        Args:
            timeout: seconds to wait; None waits as long as it takes.
            poll_delay: kept for arq's callers; results are published, and the poll behind
                that is shared by all waiters.
            pole_delay: arq's deprecated spelling.

        Raises:
            TimeoutError: the time is up; the job goes on.
            ResultNotFound: the job is not in the queue and left no result.
            JobFailed: the job failed; `RemoteError` carries the remote traceback.
            EncodeError: it failed, and no exception of it could be written down.
            JobReplaced: another job took its place while it waited, a short while ago.
        """
        if pole_delay is not None:
            warnings.warn(
                '"pole_delay" is deprecated, use the correct spelling "poll_delay" instead',
                DeprecationWarning,
                stacklevel=2,
            )
            poll_delay = pole_delay
        if self._results is None:
            return cast(R, await super().result(timeout, poll_delay=poll_delay))
        blob = await self._results.wait(self.job_id, self._queue_name, timeout_s=timeout)
        if blob is None:
            successor = await self._results.replaced_by(self.job_id)
            if successor is not None:
                raise JobReplaced(
                    f"job {self.job_id!r} waited, and job {successor!r} took its place",
                    job_id=successor,
                )
            raise ResultNotFound(
                "Not waiting for job result because the job is not in queue. "
                "Is the worker function configured to keep result?",
            )
        return self._unwrap(
            codec.decode_result(reader_of(self._deserializer), blob, job_id=self.job_id)
        )

    def progress(self) -> Following:
        """Return how far the job is: await it, or follow it until the job has ended.

        Awaited it is one look, None where the job has said nothing, or not for an hour. Followed
        it gives each word that is new (of those that come in quick succession the last one),
        and ends with the job, whether that ends well or not.

        Example:
            >>> async for word in job.progress():
            ...     print(f"{word.done} of {word.total} {word.message}")
            >>> result = await job.result()
        """
        return Following(self._redis, self.job_id, self._ended)

    async def _ended(self) -> None:
        if self._results is None:
            with contextlib.suppress(Exception):
                await super().result()
            return
        await self._results.wait(self.job_id, self._queue_name, timeout_s=None)

    async def abort(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  arq's own signature
        poll_delay: float = POLL_DELAY_S,
    ) -> bool:
        """Abort the job, whether it waits or runs; return whether it was aborted.

        Only workers with ``allow_abort_jobs`` act on it. A job that is committing its writes
        has ended: for it an abort comes too late.

        Raises:
            TimeoutError: the time is up; the request stands.
            JobFailed: the job failed by itself meanwhile.
        """
        await producer.abort(self._redis, self._queue_name, self.job_id)
        try:
            await self.result(timeout, poll_delay=poll_delay)
        except asyncio.CancelledError:
            this_task = asyncio.current_task()
            if this_task is not None and this_task.cancelling():
                raise  # it is the caller who was cancelled, not the job
            return True
        except (ResultNotFound, JobReplaced):
            return False
        return False

    async def ask_to_abort(self) -> bool:
        """Ask for the job to be aborted, and wait for nothing; False when it has ended."""
        return await producer.abort(self._redis, self._queue_name, self.job_id)

    def _unwrap(self, record: ResultRecord) -> R:
        if record.success:
            try:
                return cast(R, self._returns.convert(record.result))
            except DecodeError as exc:
                raise DecodeError(
                    f"the result of {record.task} does not fit {self._returns}: {exc}; "
                    f"client.job({self.job_id!r}).result() gives it as it is",
                ) from exc
        if isinstance(record.result, (Exception, asyncio.CancelledError)):
            raise record.result
        if isinstance(record.result, str):  # the worker says why it could not write the result
            raise EncodeError(record.result)
        raise EncodeError(f"{record.task} failed with what is no exception: {record.result!r:.500}")
