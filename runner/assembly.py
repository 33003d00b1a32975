"""What a worker is made of: its connection to Redis, and its own parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arq.connections import create_pool

from runner import connections
from runner import writer as writers
from runner.connection import open_client
from runner.cycle import CYCLE_TIMEOUT_S
from runner.dependencies import STORE, WorkersValues
from runner.execution import report
from runner.middleware import all_of
from runner.parts import JOBS, Made, Part
from runner.pipe import PlainPipe
from runner.renewal import Renewed
from runner.schedule import Book
from runner.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from redis.asyncio import Redis

    from runner.codec import Codec
    from runner.errors import WriteRejected
    from runner.executors import Executors
    from runner.joblog import Collector
    from runner.leases import Leases
    from runner.limits import Gate
    from runner.middleware import Middleware
    from runner.monitor import Monitor
    from runner.progress import ProgressBoard
    from runner.queues import Queues
    from runner.schedule import Tickers
    from runner.types import Retention
    from runner.wake import Waker
    from runner.writer.entries import Unit
    from runner.writer.told import Told

IMPORTS_S = 90.0
"""How long the process of the executors may take to start: it imports the tasks' modules."""


class Assembled(Renewed):
    """A worker as far as it is put together and taken apart.

    Attributes:
        candidate: the writer's, while the worker stands for election.
        middleware: of the client that the worker makes.
    """

    codec: Codec
    cycles: Queues
    history: bool
    job_log: Collector | None
    database_url: str | None
    reads: writers.ReadPool | None
    candidate: writers.Candidate | None
    executors: Executors
    gate: Gate
    middleware: tuple[Middleware, ...]
    monitor: Monitor | None
    progress: ProgressBoard
    _bounds: writers.Bounds
    _candidates_redis: Redis | None
    _codec_given: bool
    _commits: writers.Commits | None
    _leases: Leases
    _offers_writer: bool
    _statement_timeout_s: float
    _pipe: PlainPipe | None
    _retention: Retention
    _tickers: Tickers
    _unwatch: Callable[[], None]
    _waker: Waker

    async def _end_jobs(self) -> None:
        raise NotImplementedError

    def _own_parts(self) -> list[Part]:
        """Return the worker's own parts; `main` and `close` are this list, up and down.

        Jobs end within `job_completion_wait` and `cancel_grace`, and each value that is provided
        within limits of its own.
        """
        leases, watch, monitor = self._leases, self.watch, self.monitor
        return [
            Made(
                "monitor",
                start=monitor.start if monitor is not None else None,
                stop=monitor.stop if monitor is not None else None,
            ),
            Made("reads", stop=self.reads.close if self.reads is not None else None),
            Made("leases", start=self._start_leases, stop=leases.stop),
            Made("watch", start=watch.start, stop=watch.stop),
            Made("writer", start=self._start_candidate, stop=self._stop_candidate),
            Made("job log", start=self._start_job_log, stop=self._stop_job_log),
            Made("provided", start=self._start_providing, stop=self._stop_providing, stop_s=None),
            Made("limits", start=lambda: self.gate.declare(self.pool), stop=self.gate.drain),
            Made(
                "executors",
                start=self.executors.start,
                stop=self.executors.stop,
                start_s=IMPORTS_S,
            ),
            Made("progress", stop=self.progress.close),
            Made(JOBS, stop=self._end_jobs, stop_s=None),
            Made("schedules", start=self._start_schedules, stop=self._tickers.stop, needs=[JOBS]),
            Made("wake", start=self._start_waker, stop=self._waker.stop, needs=[JOBS]),
        ]

    def _start_leases(self) -> None:
        self._leases.start(self.pool.connection_pool)

    async def _start_schedules(self) -> None:
        if self.history or self._tickers.schedules:
            await self._tickers.start(
                [self._book(name) for name in self.cycles.names],
                tasks=self.functions,
                aborts=self.allow_abort_jobs,
                burst=self.burst,
            )

    def _start_waker(self) -> None:
        if not self.burst:
            self._waker.start(self.pool)

    def _start_providing(self) -> None:
        if any(
            isinstance(f.coroutine, Task) and f.coroutine.dependencies
            for f in self.functions.values()
        ):
            self.ctx[STORE] = WorkersValues(self.ctx)

    async def _stop_providing(self) -> None:
        if (values := self.ctx.pop(STORE, None)) is not None:
            await values.close()

    def _book(self, queue: str) -> Book:
        return Book(
            self.pool,
            self.codec,
            queue,
            lifetime_ms=self.expires_extra_ms,
            functions=self.functions,
        )

    async def _connect(self) -> None:
        # Enqueueing by jobs goes through middleware in a client of ours alone.
        if self._pool is None and (self._codec_given or self.middleware):
            assert self.redis_settings is not None
            self._pool = await open_client(
                self.redis_settings,
                codec=self.codec,
                queue=self.queue_name,
                expires_extra_ms=self.expires_extra_ms,
                middleware=self.middleware,
            )
            self._pipe = PlainPipe(self._pool, timeout_s=CYCLE_TIMEOUT_S)
        elif self._pool is None:
            self._pool = await create_pool(
                self.redis_settings,
                job_deserializer=self.job_deserializer,
                job_serializer=self.job_serializer,
                default_queue_name=self.queue_name,
                expires_extra_ms=self.expires_extra_ms,
            )
            connections.let_callers_wait(self._pool)

    async def _disconnect(self) -> None:
        if self._pipe is not None:
            await self._pipe.close()
            self._pipe = None
        await self.pool.aclose(close_connection_pool=True)
        await connections.close_sentinels(self.pool.connection_pool)
        self._pool = None

    async def _start_candidate(self) -> None:
        if self._offers_writer and self.candidate is None:
            assert self.database_url is not None
            # Beside the pool: it reads and waits all the time.
            self._candidates_redis = connections.another(self.pool.connection_pool)
            self.candidate = writers.Candidate(
                redis=self._candidates_redis,
                database_url=self.database_url,
                codec=self.codec,
                bounds=self._bounds,
                retention=self._retention,
                statement_timeout_s=self._statement_timeout_s,
                told=self._told(),
            )
            await self.candidate.start()

    async def _start_job_log(self) -> None:
        if self.job_log is not None:
            await self.job_log.start(self.pool)
            self._unwatch = self.events.watch(self.job_log, is_ours=True)

    async def _stop_job_log(self) -> None:
        if self.job_log is not None:
            self._unwatch()
            await self.job_log.stop()

    def _told(self) -> Sequence[Told]:
        """Return who hears what the writer in this process commits."""
        heard = (self._tell_refused, *all_of(self.middleware, "committed"))
        return heard if self.job_log is None else (*heard, self.job_log.told)

    def _tell_refused(
        self, units: Sequence[Unit], refused: Mapping[str, WriteRejected], _began_ns: int
    ) -> None:
        if not (refused and self.events.wanted):
            return
        for unit in units:
            if unit.entry in refused:
                self.events.emit(report.refused(self.name, unit, refused[unit.entry]))

    async def _stop_candidate(self) -> None:
        if self.candidate is not None:
            await self.candidate.stop()
            self.candidate = None
        if self._candidates_redis is not None:
            await self._candidates_redis.aclose()
            self._candidates_redis = None
        if self._commits is not None:
            await self._commits.stop()
            self._commits = None
