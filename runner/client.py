"""The client that services hold: enqueue, wait for results, look at queues."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload
from uuid import uuid4

import msgspec
from arq.connections import ArqRedis, RedisSettings
from arq.connections import create_pool as arq_create_pool
from arq.utils import to_ms, to_unix_ms

from runner import broker, codec, keys
from runner.batch import Gathered
from runner.broker import EnqueueEntry
from runner.codec import Codec, HookCodec, JobRecord
from runner.errors import ArgumentsError, EncodeError, EnqueueError, PayloadTooLarge
from runner.job import Job, Results
from runner.tasks import BoundTask, Call, EnqueueOptions, Task, checked_id
from runner.types import DeadLetter, QueueStats, WriterStatus
from runner.writer import writer_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
    from datetime import timedelta
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")

MAX_PAYLOAD_BYTES = 16 * 1024 * 1024


class Client(ArqRedis):
    """A connection pool to Redis that enqueues jobs. A drop-in for arq's ``ArqRedis``.

    Made by `connect`. Concurrent calls of `enqueue` share round trips.

    Example:
        >>> client = await runner.connect("redis://localhost")
        >>> job = await client.enqueue(place_order, 42)
        >>> await job.result(timeout=10)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reply_to = uuid4().hex
        self.max_payload_bytes = MAX_PAYLOAD_BYTES
        self._results: Results | None = None
        self._outbox = Outbox(self)

    @property
    def codec(self) -> Codec:
        """The codec of jobs and results, made of arq's two hooks."""
        return HookCodec(self.job_serializer, self.job_deserializer)

    @overload
    async def enqueue(
        self,
        task: Task[P, R] | BoundTask[P, R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Job[R]: ...

    @overload
    async def enqueue(self, task: str, *args: Any, **kwargs: Any) -> Job[Any]: ...

    async def enqueue(self, task: Any, *args: Any, **kwargs: Any) -> Job[Any]:
        """Enqueue one job; concurrent calls travel together.

        Args:
            task: a task, a task with options (``task.options(delay=60)``), or a task's name.
            args: what the task gets behind its context.
            kwargs: the same, by name.

        Returns:
            The job; its `is_new` is False when a job with the same key was there already.

        Raises:
            ArgumentsError: the arguments do not fit the task's signature.
            EncodeError: an argument cannot travel.
            PayloadTooLarge: the encoded job exceeds ``max_payload_bytes``.
            EnqueueError: Redis refused the job.

        If the caller is cancelled while it waits, its job may be queued all the same.
        """
        if isinstance(task, str) and task:
            entry, queue = self._entry(task, args, kwargs, EnqueueOptions(), None)
            is_new = await self._outbox.send(queue, entry)
            return self._job(entry.job_id, queue, is_new=is_new)
        if not isinstance(task, Task | BoundTask):
            raise ArgumentsError(
                f"enqueue takes a task or a task's name, not {task!r}; is @task missing?",
            )
        call: Call[Any] = task.call(*args, **kwargs)
        entry, queue = self._entry_of(call)
        is_new = await self._outbox.send(queue, entry)
        return self._job(
            entry.job_id,
            queue,
            is_new=is_new,
            returns=call.task.signature.returns,
        )

    async def enqueue_many(self, calls: Iterable[Call[R]]) -> list[Job[R]]:
        """Enqueue any number of calls in few round trips (500 jobs each), in order.

        Everything is encoded before anything is sent, so a bad argument enqueues nothing.

        Raises:
            EnqueueError: Redis refused a job; the others are queued.
        """
        jobs: list[Job[R]] = []
        by_queue: dict[str, list[tuple[int, EnqueueEntry]]] = {}
        for index, call in enumerate(calls):
            entry, queue = self._entry_of(call)
            by_queue.setdefault(queue, []).append((index, entry))
            jobs.append(self._job(entry.job_id, queue, returns=call.task.signature.returns))
        for queue, indexed in by_queue.items():
            outcomes = await broker.enqueue(self, queue, [entry for _, entry in indexed])
            for (index, _), outcome in zip(indexed, outcomes, strict=True):
                if isinstance(outcome, EnqueueError):
                    raise outcome
                jobs[index].is_new = outcome
        return jobs

    async def enqueue_job(
        self,
        function: str,
        *args: Any,
        _job_id: str | None = None,
        _queue_name: str | None = None,
        _defer_until: datetime | None = None,
        _defer_by: float | timedelta | None = None,
        _expires: float | timedelta | None = None,
        _job_try: int | None = None,
        **kwargs: Any,
    ) -> Job[Any] | None:
        """Enqueue a job by name, as arq's method of this name does.

        Returns:
            The job, or None when a job with this id is there already.
        """
        queue = _queue_name or self.default_queue_name
        job_id = checked_id(_job_id) if _job_id else uuid4().hex
        if _defer_until and _defer_by:
            raise RuntimeError("use either 'defer_until' or 'defer_by' or neither, not both")
        now_ms = _now_ms()
        run_at: float | None = None
        if _defer_until is not None:
            run_at = to_unix_ms(_defer_until)
        elif _defer_by:
            run_at = now_ms + to_ms(_defer_by)
        lifetime = to_ms(_expires) or int((run_at or now_ms) - now_ms) + self.expires_extra_ms
        payload = self._encode(function, args, kwargs, now_ms, {}, attempt=_job_try)
        entry = EnqueueEntry(job_id, payload, run_at, max(lifetime, 1), _job_id is not None)
        is_new = await self._outbox.send(queue, entry)
        return self._job(job_id, queue) if is_new else None

    def job(self, job_id: str, queue: str | None = None) -> Job[Any]:
        """Return a handle on a job by its id; nothing is asked of Redis."""
        return self._job(checked_id(job_id), queue or self.default_queue_name)

    async def queue_stats(self, queue: str | None = None) -> QueueStats:
        """Read one queue's counts."""
        return await broker.queue_stats(self, queue or self.default_queue_name)

    async def writer_status(self) -> WriterStatus:
        """Read the writer's position, backlog and counts."""
        return await writer_status(self)

    async def dead_letters(
        self,
        queue: str | None = None,
        *,
        limit: int = 100,
    ) -> list[DeadLetter]:
        """Return the newest dead letters of a queue, the newest first."""
        if limit < 1:
            return []
        ids = await self.zrevrange(keys.dead(queue or self.default_queue_name), 0, limit - 1)
        if not ids:
            return []
        blobs = await self.mget([keys.DEAD_LETTER.encode() + raw for raw in ids])
        return [msgspec.msgpack.decode(blob, type=DeadLetter) for blob in blobs if blob]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Send what waits to be sent, stop listening, close the connections. Idempotent."""
        await self._outbox.drain()
        if self._results is not None:
            await self._results.close()
            self._results = None
        await super().aclose(True if close_connection_pool is None else close_connection_pool)

    async def close(self, close_connection_pool: bool | None = None) -> None:
        """Do the same under the name that arq's users know."""
        await self.aclose(close_connection_pool)

    def _job(
        self,
        job_id: str,
        queue: str,
        *,
        is_new: bool = True,
        returns: Any = Any,
    ) -> Job[Any]:
        if self._results is None:
            self._results = Results(self, self._reply_to)
        return Job(
            job_id,
            self,
            queue,
            self.job_deserializer,
            results=self._results,
            returns=returns,
            is_new=is_new,
        )

    def _entry_of(self, call: Call[Any]) -> tuple[EnqueueEntry, str]:
        return self._entry(
            call.task.name,
            call.args,
            call.kwargs,
            call.options,
            call.task,
        )

    def _entry(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: EnqueueOptions,
        task: Task[..., Any] | None,
    ) -> tuple[EnqueueEntry, str]:
        declared = task.task_options if task else None
        now_ms = _now_ms()
        run_at: float | None = None
        if options.delay:
            run_at = now_ms + options.delay * 1000
        elif options.at is not None:
            run_at = options.at.timestamp() * 1000
        expires = options.expires or (declared.expires if declared else None)
        extra = {"exp": int((run_at or now_ms) + expires * 1000)} if expires else {}
        payload = self._encode(name, args, kwargs, now_ms, extra)
        lifetime = int(max((run_at or now_ms) - now_ms, 0)) + self.expires_extra_ms
        queue = options.queue or (declared.queue if declared else None) or self.default_queue_name
        job_id = options.key or uuid4().hex
        return EnqueueEntry(job_id, payload, run_at, lifetime, options.key is not None), queue

    def _encode(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        now_ms: int,
        extra: dict[str, Any],
        *,
        attempt: int | None = None,
    ) -> bytes:
        record = JobRecord(
            task=name,
            args=args,
            kwargs=kwargs,
            attempt=attempt,
            enqueued_ms=now_ms,
            options=extra,
        )
        try:
            payload = codec.encode_job(self.codec, record)
        except EncodeError as exc:
            culprit = self._culprit(args, kwargs)
            raise EncodeError(f'unable to serialize job "{name}": {culprit}{exc}') from exc
        if len(payload) > self.max_payload_bytes:
            raise PayloadTooLarge(
                f"{name}: the job takes {len(payload):,} bytes, more than the "
                f"{self.max_payload_bytes:,} allowed; pass a reference, or raise max_payload_bytes",
            )
        return payload

    def _culprit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Name the first argument that cannot travel."""
        named = [*((f"argument {i}", v) for i, v in enumerate(args)), *kwargs.items()]
        for name, value in named:
            try:
                self.codec.dumps({"v": value})
            except EncodeError:
                return f"{name}: "
        return ""


class Outbox:
    """Join the enqueues of one tick into one script call for each queue."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._gathered = Gathered(self._send, "runner outbox")

    async def send(self, queue: str, entry: EnqueueEntry) -> bool:
        """Return True when the job is queued, False when its id is there already."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._gathered.add((queue, entry, future))
        return await future

    async def drain(self) -> None:
        """Wait until everything that was handed over has been sent."""
        await self._gathered.drain()

    async def _send(self, batch: list[tuple[str, EnqueueEntry, asyncio.Future[bool]]]) -> None:
        by_queue: dict[str, list[tuple[EnqueueEntry, asyncio.Future[bool]]]] = {}
        for queue, entry, future in batch:
            by_queue.setdefault(queue, []).append((entry, future))
        for queue, waiting in by_queue.items():
            await self._send_queue(queue, waiting)

    async def _send_queue(
        self,
        queue: str,
        waiting: Sequence[tuple[EnqueueEntry, asyncio.Future[bool]]],
    ) -> None:
        outcomes: Sequence[bool | BaseException]
        try:
            outcomes = await broker.enqueue(self._client, queue, [entry for entry, _ in waiting])
        except Exception as exc:  # noqa: BLE001  whatever it is, it belongs to the callers
            outcomes = [exc] * len(waiting)
        for (_, future), outcome in zip(waiting, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


class Connecting:
    """The value of `connect`: await it, or enter it with ``async with``."""

    def __init__(self, make: Callable[[], Awaitable[Client]]) -> None:
        self._make = make
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._make().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._make()
        return self._client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            await self._client.aclose()


def connect(
    redis: str | RedisSettings = "redis://localhost:6379",
    *,
    codec: str | Codec = "msgpack",
    queue: str = keys.DEFAULT_QUEUE,
) -> Connecting:
    """Connect to Redis and return a client.

    Args:
        redis: a URL (``redis://``, ``rediss://``, ``unix://``) or arq's `RedisSettings`.
        codec: "msgpack" (safe, the default), "pickle" (fleets in migration), or your own.
        queue: the queue of tasks that name none.

    Example:
        >>> async with runner.connect("redis://localhost") as client:
        ...     await client.enqueue(place_order, 42)
    """
    settings = RedisSettings.from_dsn(redis) if isinstance(redis, str) else redis
    return Connecting(lambda: open_client(settings, codec=codec, queue=queue))


async def open_client(
    settings: RedisSettings,
    *,
    codec: str | Codec,
    queue: str,
    expires_extra_ms: int = keys.KEEP_MS,
) -> Client:
    """Make a client by arq's own pool factory, so that every one of its settings counts."""
    from runner.codec import codec_named  # noqa: PLC0415  the parameter has the module's name

    chosen = codec_named(codec) if isinstance(codec, str) else codec
    pool = await arq_create_pool(settings)
    client = Client(connection_pool=pool.connection_pool)
    # The pool object of arq goes; its connections live on in the client, which closes them.
    client.auto_close_connection_pool = True
    client.job_serializer = chosen.dumps
    client.job_deserializer = cast(Any, chosen.loads)
    client.default_queue_name = queue
    client.expires_extra_ms = expires_extra_ms
    return client


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def utc(ms: float) -> datetime:
    """Return a Unix time in milliseconds as an aware datetime."""
    return datetime.fromtimestamp(ms / 1000, tz=UTC)
