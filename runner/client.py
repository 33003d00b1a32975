"""The client that services hold: enqueue, wait for results, look at queues."""

from __future__ import annotations

import asyncio
import copy
import functools
import math
import os
import time
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload
from uuid import uuid4

from arq.connections import ArqRedis
from arq.utils import to_ms, to_unix_ms
from redis.exceptions import RedisError

from runner import broker, codec, connections
from runner.codec import Codec, JobRecord
from runner.errors import (
    ArgumentsError,
    EncodeError,
    EnqueueError,
    PayloadTooLarge,
    RedisUnavailable,
)
from runner.inspect import History, LogLine, QueuedJobs, QueueLoad, Workers, job_log, queue_loads
from runner.job import Job, Results
from runner.letters import DeadLetters
from runner.limits import Limits, Paused, Pauses
from runner.middleware import CARRIED, EnqueueCall, Middleware, around_enqueue, carriers
from runner.middleware.batch import Batch
from runner.outbox import Outbox, Until
from runner.pipe import Pipe
from runner.producer import EnqueueEntry, Other
from runner.schedule import Book, Schedules
from runner.shapes import ANYTHING, Shape
from runner.tasks import BoundTask, Call, EnqueueOptions, Task, checked_id
from runner.unique import PLACE, noted, place_of
from runner.workflow import StartsFlows
from runner.writer import writer_status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from runner.progress import Following
    from runner.types import DeadLetter, QueueStats, WriterStatus
    from runner.writer import JobWrites

P = ParamSpec("P")
R = TypeVar("R")

MAX_PAYLOAD_BYTES = 16 * 1024 * 1024

_NO_OPTIONS = EnqueueOptions()


class Client(StartsFlows, ArqRedis):  # type: ignore[misc]  # redis-py's own bases contradict
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
        self.bound = EnqueueOptions()
        """The bound of queues for calls that name none: three of the options count."""
        self._hooks: tuple[Any, Any] = (None, None)
        self._codec: Codec = codec.codec_of()
        self._results: Results | None = None
        self._pipe = Pipe(self)
        self._outbox = Outbox(self._pipe)
        self._middleware: tuple[Middleware, ...] = ()
        self._around: Any = None
        self._carriers: tuple[Any, ...] = ()

    @property
    def middleware(self) -> tuple[Middleware, ...]:
        """What stands around each call that enqueues, the outermost first."""
        return self._middleware

    @middleware.setter
    def middleware(self, middleware: tuple[Middleware, ...]) -> None:
        self._middleware = middleware
        self._around = around_enqueue(middleware, self._enqueue_call)
        self._carriers = carriers(middleware)

    @property
    def codec(self) -> Codec:
        """The codec of jobs and results, behind arq's two hooks."""
        hooks = self._hooks
        if self.job_serializer is not hooks[0] or self.job_deserializer is not hooks[1]:
            # Found once, and again when somebody sets arq's attributes.
            self._hooks = (self.job_serializer, self.job_deserializer)
            self._codec = codec.codec_of(*self._hooks)
        return self._codec

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
            The job; its `is_new` is False when it was there already: a job with the same
            key, or the one that a unique job may not stand beside.

        Raises:
            ArgumentsError: the arguments do not fit the task's signature.
            EncodeError: an argument cannot travel.
            PayloadTooLarge: the encoded job exceeds ``max_payload_bytes``.
            QueueFull: the queue holds its ``max_length``; the job is not queued.
            DuplicateJob: a job is there that this one may not stand beside.
            RedisOutOfMemory: Redis holds its ``maxmemory``; the job is not queued.
            EnqueueError: Redis refused the job for another reason.
            RedisUnavailable: Redis is away. Where its ``may_have_run`` says so, the job may be
                queued: to enqueue it again with ``key=error.job_id`` never doubles it, as long
                as its result is kept.

        If the caller is cancelled while it waits, its job may be queued all the same; while
        it waits for room in a full queue, it is not.
        """
        declared: Task[..., Any] | None
        if isinstance(task, Task):
            name, declared, options = task.name, task, _NO_OPTIONS
        elif isinstance(task, BoundTask):
            name, declared, options = task.task.name, task.task, task.options
        elif isinstance(task, str) and task:
            name, declared, options = task, None, _NO_OPTIONS
        else:
            raise ArgumentsError(
                f"enqueue takes a task or a task's name, not {task!r}; is @task missing?",
            )
        if self._around is not None:
            call = EnqueueCall(
                task=name, args=args, kwargs=kwargs, options=options, declared=declared
            )
            return cast("Job[Any]", await self._around(call))
        return await self._enqueue(name, args, kwargs, options, declared)

    async def _enqueue_call(self, call: EnqueueCall) -> Job[Any]:
        """Enqueue what came through the middleware."""
        return await self._enqueue(
            call.task, call.args, call.kwargs, call.options, call.declared, carried=call.carried
        )

    async def _enqueue(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: EnqueueOptions,
        declared: Task[..., Any] | None,
        *,
        carried: dict[str, Any] | None = None,
    ) -> Job[Any]:
        returns = ANYTHING
        if declared is not None:
            declared.signature.check(name, args, kwargs)
            returns = declared.signature.returns
        entry, queue = self._entry(name, args, kwargs, options, declared, carried=carried)
        until = self._until(entry, options) if entry.max_length else None
        try:
            outcome = await self._outbox.send(queue, entry, until)
        except RedisUnavailable as exc:
            raise _of_one(exc, entry.job_id) from exc.__cause__
        if isinstance(outcome, Other):
            return self._job(outcome.job_id, queue, is_new=False, returns=returns)
        return self._job(entry.job_id, queue, is_new=outcome, returns=returns)

    async def enqueue_many(self, calls: Iterable[Call[R]]) -> list[Job[R]]:
        """Enqueue any number of calls in few round trips (500 jobs each), in order.

        Everything is encoded before anything is sent, so a bad argument enqueues nothing.
        In a bounded queue the first calls get the room there is. With ``when_full="wait"``
        the rest follows as room comes; a job that waits for its own queue may wait for itself.

        Raises:
            QueueFull: a queue had no room for all, and ``queued`` and ``refused`` say which
                got in: of one queue's calls always the first ones.
            DuplicateJob: a job is there that one of these may not stand beside; the others
                are queued, and the same two say which.
            EnqueueError: Redis refused a job; the same two say which.
            RedisUnavailable: Redis went away; what became of the jobs that were under way is
                unknown where its ``may_have_run`` says so.
        """
        if self._around is not None:
            return await Batch(self._middleware, self._enqueue_all).enqueue(calls)
        return await self._enqueue_all([(call, None) for call in calls])

    async def _enqueue_all(
        self, calls: Sequence[tuple[Call[Any], dict[str, Any] | None]]
    ) -> list[Job[Any]]:
        jobs: list[Job[Any]] = []
        parts: dict[tuple[str, Until], list[tuple[int, EnqueueEntry]]] = {}
        now = asyncio.get_running_loop().time()
        for index, (call, carried) in enumerate(calls):
            entry, queue = self._entry_of(call, carried)
            until = self._until(entry, call.options, now)
            parts.setdefault((queue, until), []).append((index, entry))
            jobs.append(self._job(entry.job_id, queue, returns=call.task.signature.returns))
        sent = [
            self._outbox.send_many(queue, [entry for _, entry in part], until)
            for (queue, until), part in parts.items()
        ]
        failures: dict[int, BaseException] = {}
        for part, outcomes in zip(parts.values(), await asyncio.gather(*sent), strict=True):
            for (index, _), outcome in zip(part, outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    failures[index] = outcome
                elif isinstance(outcome, Other):
                    jobs[index].job_id, jobs[index].is_new = outcome.job_id, False
                else:
                    jobs[index].is_new = outcome
        if failures:
            raise _partly(jobs, failures)
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

        Raises:
            QueueFull: this client's bound leaves no room; arq knows no bounds.
            RedisError: redis-py's own errors, as from arq.
        """
        if _defer_until and _defer_by:
            raise RuntimeError("use either 'defer_until' or 'defer_by' or neither, not both")
        now_ms = _now_ms()
        run_at = None if _defer_until is None else to_unix_ms(_defer_until)
        delay_ms = to_ms(_defer_by) if _defer_by else 0
        if delay_ms < 0:  # arq takes that, for a time that is over
            run_at, delay_ms = now_ms + delay_ms, 0
        put = functools.partial(
            self._enqueue_for_arq,
            now_ms=now_ms,
            run_at=run_at,
            delay_ms=delay_ms,
            expires_ms=to_ms(_expires),
            attempt=_job_try,
        )
        queue = _name_of_queue(_queue_name or self.default_queue_name)
        key = checked_id(_job_id) if _job_id else None
        if self._around is None:
            return await put(function, args, kwargs, queue=queue, key=key)

        async def last(call: EnqueueCall) -> Job[Any] | None:
            return await put(
                call.task,
                call.args,
                call.kwargs,
                queue=call.options.queue or queue,
                key=call.options.key,
                carried=call.carried,
            )

        around = around_enqueue(self._middleware, last)
        assert around is not None
        options = EnqueueOptions(key=key, queue=queue)
        return await around(EnqueueCall(task=function, args=args, kwargs=kwargs, options=options))

    async def _enqueue_for_arq(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        queue: str,
        key: str | None,
        now_ms: int,
        run_at: float | None,
        delay_ms: float,
        expires_ms: int | None,
        attempt: int | None,
        carried: dict[str, Any] | None = None,
    ) -> Job[Any] | None:
        job_id = key or _new_id()
        payload = self._encode(
            name,
            job_id,
            args,
            kwargs,
            now_ms=now_ms,
            extra={CARRIED: carried} if carried else {},
            attempt=attempt,
        )
        waits_ms = delay_ms if run_at is None else run_at - now_ms
        lifetime = expires_ms or int(waits_ms) + self.expires_extra_ms
        entry = EnqueueEntry(
            job_id,
            payload,
            run_at,
            max(lifetime, 1),
            key is not None,
            self.bound.max_length or 0,
            delay_ms=delay_ms,
        )
        try:
            outcome = await self._outbox.send(queue, entry, self._until(entry, _NO_OPTIONS))
        except (RedisUnavailable, EnqueueError) as exc:
            if isinstance(exc.__cause__, (RedisError, OSError)):
                raise exc.__cause__ from None
            raise
        return self._job(job_id, queue) if outcome is True else None

    def job(self, job_id: str, queue: str | None = None) -> Job[Any]:
        """Return a handle on a job by its id; nothing is asked of Redis."""
        return self._job(checked_id(job_id), queue or self.default_queue_name)

    @property
    def schedules(self) -> Schedules:
        """The schedules of this client's queue: list, add, change, pause, run, remove."""
        queue = self.default_queue_name
        return Schedules(Book(self, self.codec, queue, lifetime_ms=self.expires_extra_ms))

    @property
    def limits(self) -> Limits:
        """The limits of the whole fleet: list, set, clear."""
        return Limits(self)

    async def pause(self, *, queue: str | None = None, task: str | None = None) -> bool:
        """Pause a queue or a task, at once in all workers; what runs goes on.

        From a paused queue nothing is claimed. Jobs of a paused task are parked, and come back in
        order. Stock arq workers know no pause.

        Returns:
            False when it was paused already.
        """
        return await Pauses(self).change(queue=queue, task=task, paused=True)

    async def resume(self, *, queue: str | None = None, task: str | None = None) -> bool:
        """Let a queue or a task go on; return False when it was not paused."""
        return await Pauses(self).change(queue=queue, task=task, paused=False)

    async def paused(self) -> Paused:
        """Return the queues and tasks that are paused."""
        return await Pauses(self).paused()

    async def queue_stats(self, queue: str | None = None) -> QueueStats:
        """Read one queue's counts."""
        return await broker.queue_stats(self, queue or self.default_queue_name)

    async def queue_loads(self, *queues: str) -> list[QueueLoad]:
        """Read what waits in some queues and for how long; none named: this client's."""
        return await queue_loads(self, queues or (self.default_queue_name,))

    @property
    def history(self) -> History:
        """What has happened in this client's queue: counts, times, jobs that ended."""
        return History(self, self.default_queue_name)

    @property
    def workers(self) -> Workers:
        """The workers that live: list, ping, drain, resume, set their concurrency."""
        return Workers(self)

    def progress(self, job_id: str, queue: str | None = None) -> Following:
        """Return how far a job is: await it, or follow it; see `Job.progress`."""
        return self.job(job_id, queue).progress()

    async def job_log(self, job_id: str) -> list[LogLine]:
        """Return the last lines that a job has logged, the oldest first; kept for a day."""
        return await job_log(self, checked_id(job_id))

    async def writer_status(self) -> WriterStatus:
        """Read the writer's position, backlog and counts."""
        return await writer_status(self)

    async def writes(self, job_id: str, *, ended_ms: int = 0) -> list[JobWrites]:
        """Return what a job gave the writer to write, as far as the stream still has it.

        Args:
            job_id: the job.
            ended_ms: when it ended, Unix time in milliseconds; 0: it has not.
        """
        from runner.writer import writes_of  # noqa: PLC0415  services need not read units

        return await writes_of(self, job_id, ended_ms=ended_ms)

    @property
    def dead(self) -> DeadLetters:
        """The dead letters of this client's queue: list, show, requeue, purge."""
        queue = self.default_queue_name
        return DeadLetters(self, self.codec, queue, lifetime_ms=self.expires_extra_ms)

    @property
    def jobs(self) -> QueuedJobs:
        """The jobs in this client's queue: list, show, cancel, run now, purge."""
        return QueuedJobs(self, self.codec, self.default_queue_name)

    async def dead_letters(
        self,
        queue: str | None = None,
        *,
        limit: int = 100,
    ) -> list[DeadLetter]:
        """Return the newest dead letters of a queue, the newest first; `dead` does more."""
        return (await self.dead.of(queue or self.default_queue_name).list(limit=limit)).letters

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Send what waits to be sent, stop listening, close the connections. Idempotent."""
        await self._outbox.close()
        if self._results is not None:
            await self._results.close()
            self._results = None
        await self._pipe.close()
        closes_pool = True if close_connection_pool is None else close_connection_pool
        await super().aclose(closes_pool)
        if closes_pool:
            await connections.close_sentinels(self.connection_pool)

    async def close(self, close_connection_pool: bool | None = None) -> None:
        """Do the same under the name that arq's users know."""
        await self.aclose(close_connection_pool)

    def _job(
        self,
        job_id: str,
        queue: str,
        *,
        is_new: bool = True,
        returns: Shape = ANYTHING,
    ) -> Job[Any]:
        return Job(
            job_id,
            self,
            queue,
            self.job_deserializer,
            results=self._waiting_results(),
            returns=returns,
            is_new=is_new,
        )

    def _waiting_results(self) -> Results:
        if self._results is None:
            self._results = Results(self, self._reply_to, self._pipe)
        return self._results

    def _entry_of(
        self, call: Call[Any], carried: dict[str, Any] | None
    ) -> tuple[EnqueueEntry, str]:
        return self._entry(
            call.task.name,
            call.args,
            call.kwargs,
            call.options,
            call.task,
            carried=carried,
        )

    def _entry(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: EnqueueOptions,
        task: Task[..., Any] | None,
        *,
        carried: dict[str, Any] | None = None,
    ) -> tuple[EnqueueEntry, str]:
        declared = task.task_options if task else None
        now_ms = _now_ms()
        run_at: float | None = None
        delay_ms: float = 0
        if options.delay:
            delay_ms = max(options.delay * 1000, 0)
        elif options.at is not None:
            run_at = options.at.timestamp() * 1000
        due_ms = run_at or now_ms + delay_ms
        rule = options.unique
        if rule is None and declared is not None:
            rule = declared.unique
        if rule and rule.until == "debounce":
            due_ms = now_ms + rule.ms
        expires = options.expires or (declared.expires if declared else None)
        extra: dict[str, Any] = {"exp": int(due_ms + expires * 1000)} if expires else {}
        if carried:
            extra[CARRIED] = carried
        job_id = options.key or _new_id()

        def encode() -> bytes:
            return self._encode(name, job_id, args, kwargs, now_ms=now_ms, extra=extra, task=task)

        place = None
        if rule and task is not None:
            try:
                place = place_of(rule, name, lambda: task.signature.bound(args, kwargs))
            except ArgumentsError:
                encode()  # what cannot travel says so itself
                raise
            if (said := noted(place)) is not None:
                extra[PLACE] = said
        payload = encode()
        lifetime = int(max(due_ms - now_ms, 0)) + self.expires_extra_ms
        queue = _name_of_queue(
            options.queue or (declared.queue if declared else None) or self.default_queue_name,
        )
        max_length = self.bound.max_length if options.max_length is None else options.max_length
        may_exist = options.key is not None
        entry = EnqueueEntry(
            job_id, payload, run_at, lifetime, may_exist, max_length or 0, place, delay_ms
        )
        return entry, queue

    def _until(
        self,
        entry: EnqueueEntry,
        options: EnqueueOptions,
        now: float | None = None,
    ) -> Until:
        """Return until when a call waits for room, in the loop's time."""
        if not entry.max_length:
            return None
        timeout_s = options.full_timeout
        if timeout_s is None:
            timeout_s = self.bound.full_timeout
        if (options.when_full or self.bound.when_full) != "wait" or timeout_s == 0:
            return None
        if timeout_s is None:
            return math.inf
        return timeout_s + (asyncio.get_running_loop().time() if now is None else now)

    def _encode(
        self,
        name: str,
        job_id: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        now_ms: int,
        extra: dict[str, Any],
        attempt: int | None = None,
        task: Task[..., Any] | None = None,
    ) -> bytes:
        if self._carriers:
            carried = dict(extra.get(CARRIED, ()))
            for carry in self._carriers:
                carry(name, carried)
            if carried:
                extra[CARRIED] = carried
        chosen = self.codec
        if codec.signs(chosen):
            extra["id"] = job_id
        record = JobRecord(
            task=name,
            args=args,
            kwargs=kwargs,
            attempt=attempt,
            enqueued_ms=now_ms,
            options=extra,
        )
        try:
            payload = codec.encode_job(chosen, record)
        except EncodeError as exc:
            culprit = self._culprit(task, args, kwargs, extra.get(CARRIED, {}))
            raise EncodeError(f'unable to serialize job "{name}": {culprit}{exc}') from exc
        if len(payload) > self.max_payload_bytes:
            raise PayloadTooLarge(
                f"{name}: the job takes {len(payload):,} bytes, more than the "
                f"{self.max_payload_bytes:,} allowed; pass a reference, or raise max_payload_bytes",
            )
        return payload

    def _culprit(
        self,
        task: Task[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        carried: Mapping[str, Any],
    ) -> str:
        """Name the first argument that cannot travel, or what middleware lets travel with it."""
        named: Iterable[tuple[str, Any]]
        if task is None:
            named = [*((f"argument {i}", v) for i, v in enumerate(args)), *kwargs.items()]
        else:
            named = [(f"parameter {n!r}", v) for n, v in task.signature.named(args, kwargs)]
        named = [*named, *((f"what middleware lets travel, {n!r}", v) for n, v in carried.items())]
        for name, value in named:
            try:
                self.codec.dumps({"v": value})
            except EncodeError:
                return f"{name}: "
        return ""


def _of_one(error: RedisUnavailable, job_id: str) -> RedisUnavailable:
    """Return the error of one caller: what came may have come to many."""
    hint = f"; if it must run, enqueue it again with key={job_id!r}" if error.may_have_run else ""
    return RedisUnavailable(f"{error}{hint}", may_have_run=error.may_have_run, job_id=job_id)


def _partly(jobs: Sequence[Job[Any]], failures: dict[int, BaseException]) -> BaseException:
    """Return the first failure of a batch, and let it say what became of the others."""
    refused = tuple(sorted(failures))
    first = failures[refused[0]]
    queued = tuple(job.job_id for index, job in enumerate(jobs) if index not in failures)
    if not isinstance(first, EnqueueError):
        first.add_note(f"{len(queued)} of {len(jobs)} jobs are known to be queued")
        return first
    message = f"{len(queued)} of {len(jobs)} jobs are queued: {first}"
    error = copy.copy(first)  # other callers may have the same one
    error.args, error.queued, error.refused = (message,), queued, refused
    return error


def _name_of_queue(queue: object) -> str:
    if not isinstance(queue, str):
        raise ArgumentsError(f"the name of a queue is a text, not {queue!r}")
    return queue


def _new_id() -> str:
    """Return 32 hexadecimal digits by chance, as arq's ids are: a fifth of what a UUID costs."""
    return os.urandom(16).hex()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
