"""The worker: arq's Worker, its loop driven by events in place of polling.

Start order, each step undone in reverse by `close`: connection to Redis, start-up hook, the parts
(see `assembly`), loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import secrets
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, cast

import uvloop
from arq.connections import ArqRedis, log_redis_info
from arq.constants import default_queue_name, expires_extra_ms
from arq.worker import Function
from redis.exceptions import ResponseError

from runner import broker, execution, keys
from runner import writer as writers
from runner.assembly import Assembled
from runner.broker import Broker, Settlement
from runner.bus import Bus
from runner.codec import Codec, codec_of
from runner.connections import TROUBLE
from runner.cycle import CYCLE_TIMEOUT_S
from runner.errors import SettingsError
from runner.execution import Ending, report
from runner.executors import MAX_THREADS, Executors
from runner.joblog import Collector
from runner.leases import Leases
from runner.limits import Gate
from runner.middleware import Middleware, all_of, around_execute
from runner.middleware import check as checked_middleware
from runner.monitor import MonitorOptions, monitor_of
from runner.parts import JOBS, Part, Parts
from runner.progress import ProgressBoard
from runner.queues import Queues, named
from runner.schedule import Schedule, Tickers, check_for_worker, functions_of, split
from runner.settling import Settler
from runner.signing import SigningKeys, chosen_codec
from runner.tasks import Task, seconds
from runner.turns import Turns
from runner.types import Outcome, Retention
from runner.wake import Waker
from runner.watch import Watch, watch_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
    from datetime import timezone as TimeZone  # noqa: N812  the parameter is called timezone

    from arq.connections import RedisSettings
    from arq.cron import CronJob
    from arq.jobs import Deserializer, Serializer
    from arq.typing import SecondsTimedelta, StartupShutdown, WorkerCoroutine
    from redis.asyncio import Redis

    from runner.broker import Claimed, CycleReply
    from runner.events import Subscriber
    from runner.execution.records import Frames
    from runner.limits import Limit
    from runner.pipe import PlainPipe
    from runner.scripts import Executes

logger = logging.getLogger("arq.worker")

LEASE_S = 15.0
MAX_CRASHES = 3
KEEP_LETTERS_S = 30 * 24 * 3600.0
KEEP_JOB_LOG_S = 30 * 24 * 3600.0
MOST_LETTERS = 100_000
LEAST_WAIT_S = 0.01
SOONEST_BACKOFF_S, LATEST_BACKOFF_S = 0.1, 5.0
LEAST_LEASE_S = 0.1
CANCEL_GRACE_S = 5.0
LOOP_END_S = 1.0


class Worker(Assembled):
    """Run jobs. Takes everything that arq's Worker takes, and what follows.

    Args:
        lease: seconds that a claim holds without renewal; a killed worker's jobs run
            elsewhere within this time.
        lanes: how many claim-and-settle cycles may overlap.
        max_crashes: how many lost leases make a job a dead letter.
        codec: "msgpack", "pickle", or a codec of your own; None takes arq's serializer
            hooks, and pickle where there are none, as arq does.
        signing_keys: sign results, and run signed jobs only: unsigned and altered ones are
            dead letters. A mapping or pairs of key id and key, or a text "id:hex,id:hex";
            the first signs, all verify.
        history: keep counters and dead letters.
        database_url: where the writes of jobs go; None: `ctx.db` is refused.
        writer: offer this worker as a candidate for the writer.
        writer_backlog_bytes: how many bytes of units may wait for the writer: from half of it on
            jobs are not claimed, unless all tasks of the worker have ``writes=False``; beyond
            it services wait. None: 64 MB, or a quarter of Redis's maxmemory if that is less.
            The elected writer's settings hold for all.
        writer_backlog_entries: how many units may wait, in the same way.
        writer_statement_timeout: seconds that one statement of the writer may take, where neither
            the database nor its role sets a statement_timeout: a unit that takes longer is
            refused alone. 0 for no bound.
        read_pool_size: connections for `ctx.db.fetch`; 0 switches reads off.
        use_uvloop: run on uvloop where no loop is there yet.
        queues: the queues to read beside `queue_name`, the most urgent first, or a mapping of
            all of them to their weights; `runner.queues` says what the later ones get.
        cron_jobs: schedules, as `runner.cron` makes them, beside arq's cron jobs; with
            `history` both are kept in Redis, and each due time is run once in the fleet.
        subscribers: plain functions that get each event of `runner.events`.
        max_threads: how many jobs may run in threads; others wait for one.
        max_processes: how many may run in processes; None: as many as the machine has cores.
        calls_per_process: how many jobs a process runs before another takes its place.
        cancel_grace: seconds that a job has to end once it is cancelled, by its time limit, an
            abort or the worker's end: beyond them it is given up, and a process killed.
        dead_letters_keep: seconds for which a dead letter is kept.
        dead_letters_max: how many dead letters a queue has at most; the oldest go first.
        middleware: what stands around the running of jobs, and the enqueueing by their client.
        max_jobs_per_process: after how many jobs the process is replaced.
        max_memory_mb: from how much resident memory on the process is replaced; what runs is
            finished.
        max_memory_hard_mb: from how much on it hands back what runs, and ends at once. Both hold
            for each process of tasks too: replaced after its job, or killed.
        max_age: seconds after which the process is replaced.
        blocked_after: seconds for which the event loop may stand still before the job that holds
            it up is reported.
        overdue_factor: how many times the usual time of its task a job may run before it is
            reported.
        left_tasks: "report" asyncio tasks that a job has left behind, "cancel" them, or "ignore".
        left_resources: "report" sockets and connections that are destroyed unclosed, or "ignore".
        vitals_interval: seconds between two events with what the process holds.
        parts: what lives with the worker, beside its own parts.
        monitor: write heartbeats, counts and times by the minute, the jobs that ended last and
            the lines that jobs log to Redis, and take orders from `Client.workers`.
        history_jobs: how many jobs that ended each queue remembers.
        job_log_lines: how many lines of each job are kept; 0: none.
        health_port: answer probes and metrics over HTTP on this port; 0: a free one; None: no.
        health_host: the address to listen on for that.
        job_log: let the writer log each job that ends in the table `runner.job_log` of Postgres.
        job_log_keep: seconds for which its rows are kept; None: the writer deletes none.

    Every other parameter is arq's own; its documentation holds.
    """

    def __init__(
        self,
        functions: Sequence[Function | Task[..., Any] | WorkerCoroutine] = (),
        *,
        queue_name: str | None = default_queue_name,
        cron_jobs: Sequence[CronJob | Schedule] | None = None,
        redis_settings: RedisSettings | None = None,
        redis_pool: ArqRedis | None = None,
        burst: bool = False,
        on_startup: StartupShutdown | None = None,
        on_shutdown: StartupShutdown | None = None,
        on_job_start: StartupShutdown | None = None,
        on_job_end: StartupShutdown | None = None,
        after_job_end: StartupShutdown | None = None,
        handle_signals: bool = True,
        job_completion_wait: int = 0,
        max_jobs: int = 10,
        job_timeout: SecondsTimedelta = 300,
        keep_result: SecondsTimedelta = 3600,
        keep_result_forever: bool = False,
        poll_delay: SecondsTimedelta = 0.5,
        queue_read_limit: int | None = None,
        max_tries: int = 5,
        health_check_interval: SecondsTimedelta = 3600,
        health_check_key: str | None = None,
        ctx: dict[Any, Any] | None = None,
        retry_jobs: bool = True,
        allow_abort_jobs: bool = False,
        max_burst_jobs: int = -1,
        job_serializer: Serializer | None = None,
        job_deserializer: Deserializer | None = None,
        expires_extra_ms: int = expires_extra_ms,
        timezone: TimeZone | None = None,
        log_results: bool = True,
        lease: SecondsTimedelta = LEASE_S,
        lanes: int = 2,
        max_crashes: int = MAX_CRASHES,
        codec: str | Codec | None = None,
        signing_keys: SigningKeys | None = None,
        history: bool = False,
        database_url: str | None = None,
        writer: bool = True,
        writer_backlog_bytes: int | None = None,
        writer_backlog_entries: int = writers.BOUND_ENTRIES,
        writer_statement_timeout: SecondsTimedelta = writers.STATEMENT_TIMEOUT_S,
        read_pool_size: int = 2,
        use_uvloop: bool = False,
        queues: Sequence[str] | Mapping[str, int] = (),
        subscribers: Sequence[Subscriber] = (),
        max_threads: int = MAX_THREADS,
        max_processes: int | None = None,
        calls_per_process: int | None = None,
        cancel_grace: SecondsTimedelta = CANCEL_GRACE_S,
        dead_letters_keep: SecondsTimedelta = KEEP_LETTERS_S,
        dead_letters_max: int = MOST_LETTERS,
        middleware: Sequence[Middleware] = (),
        max_jobs_per_process: int | None = None,
        max_memory_mb: float | None = None,
        max_memory_hard_mb: float | None = None,
        max_age: SecondsTimedelta | None = None,
        blocked_after: SecondsTimedelta | None = None,
        overdue_factor: float | None = None,
        left_tasks: str = "ignore",
        left_resources: str = "ignore",
        vitals_interval: SecondsTimedelta | None = None,
        parts: Sequence[Part] = (),
        monitor: bool = False,
        history_jobs: int = 1_000,
        job_log_lines: int = 100,
        health_port: int | None = None,
        health_host: str = "127.0.0.1",
        job_log: bool = False,
        job_log_keep: SecondsTimedelta | None = KEEP_JOB_LOG_S,
    ) -> None:
        self.events = Bus(subscribers)
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.lease_s = _lease(lease)
        chosen = chosen_codec(codec, signing_keys)
        if use_uvloop and redis_pool is None:
            ensure_uvloop()
        super().__init__(
            functions=[as_function(f) for f in (*functions_of(cron_jobs or ()), *functions)],
            queue_name=queue_name,
            cron_jobs=[job for job in cron_jobs or () if not isinstance(job, Schedule)],
            redis_settings=redis_settings,
            redis_pool=redis_pool,
            burst=burst,
            on_startup=on_startup,
            on_shutdown=on_shutdown,
            on_job_start=on_job_start,
            on_job_end=on_job_end,
            after_job_end=after_job_end,
            handle_signals=handle_signals,
            job_completion_wait=job_completion_wait,
            max_jobs=max_jobs,
            job_timeout=job_timeout,
            keep_result=keep_result,
            keep_result_forever=keep_result_forever,
            poll_delay=poll_delay,
            queue_read_limit=queue_read_limit,
            max_tries=max_tries,
            health_check_interval=health_check_interval,
            health_check_key=health_check_key,
            ctx=ctx,
            retry_jobs=retry_jobs,
            allow_abort_jobs=allow_abort_jobs,
            max_burst_jobs=max_burst_jobs,
            job_serializer=job_serializer,
            job_deserializer=job_deserializer,
            expires_extra_ms=expires_extra_ms,
            timezone=timezone,
            log_results=log_results,
        )
        self._codec_given = chosen is not None
        self.codec: Codec = chosen or codec_of(job_serializer, job_deserializer)
        self.max_crashes = max_crashes
        self.history = history
        self.database_url = database_url
        self.job_log = _job_log(self.name, database_url) if job_log else None
        self._retention = Retention(
            int(seconds(dead_letters_keep) * 1000),
            dead_letters_max,
            job_log_ms=int((seconds(job_log_keep) or 0) * 1000) if job_log else 0,
            history_jobs=history_jobs if monitor else 0,
        )
        self._bounds = writers.Bounds(writer_backlog_entries, writer_backlog_bytes)
        self._statement_timeout_s = seconds(writer_statement_timeout)
        self._offers_writer = writer and database_url is not None
        self.reads = (
            writers.ReadPool(database_url, max_size=read_pool_size)
            if database_url is not None and read_pool_size > 0
            else None
        )
        self._commits: writers.Commits | None = None
        self.candidate: writers.Candidate | None = None
        self._turns = Turns(self._begin, self._line_over, self.tasks, self)
        self._candidates_redis: Redis | None = None
        self._nudge = asyncio.Event()
        self._leases = Leases(self.lease_s, self._lease_lost)
        self._cancel_grace_s = float(seconds(cancel_grace))
        watched = watch_settings(
            max_jobs=max_jobs_per_process,
            max_memory_mb=max_memory_mb,
            max_memory_hard_mb=max_memory_hard_mb,
            max_age=seconds(max_age),
            blocked_after=seconds(blocked_after),
            overdue_factor=overdue_factor,
            left_tasks=left_tasks,
            left_resources=left_resources,
            vitals_interval=seconds(vitals_interval),
        )
        self.executors = Executors(
            self,
            self._leases,
            max_threads=max_threads,
            max_processes=max_processes,
            calls_per_process=calls_per_process,
            memory=watched.limits,
        )
        self.settler = Settler(self, self._leases, over=self._attempt_over)
        names, weights = named(self.queue_name, queues, default=default_queue_name)
        new_broker = functools.partial(
            Broker,
            lease_ms=int(self.lease_s * 1000),
            keeps=history,
            # A claim cannot tell which task it will bring.
            heeds=database_url is not None and any(map(_may_write, self.functions.values())),
            retention=self._retention,
        )
        self.cycles = self.settler.cycles = Queues(
            [new_broker(name) for name in names],
            self._engines_redis,
            weights=weights,
            start=self._start_job,
            settled=self.settler.settled,
            replied=self._replied,
            free=self._free,
            capacity=max_jobs,
            lanes=lanes,
            worker=self.name,
        )
        self._closing = False
        self._loop_ended = asyncio.Event()
        self._loop_ended.set()
        self._due: dict[str, float] = {}  # by queue, by time.monotonic
        self._pipe: PlainPipe | None = None
        self.gate = Gate(self._engines_redis, _limits_of(self.functions))
        self._waker = Waker(self.cycles.names, self._woken)
        # Without history arq's own cron jobs stay arq's: a bare worker leaves no key behind.
        self.cron_jobs, schedules = split(cron_jobs or (), self.timezone, keeps=history)
        check_for_worker(schedules, self.functions, aborts=allow_abort_jobs)
        self._tickers = Tickers(schedules, home=self.queue_name)
        self.watch = Watch(self, watched)
        self.middleware = checked_middleware(middleware)
        self.around = around_execute((*self.middleware, *self.watch.layers))
        for join in all_of(self.middleware, "join"):
            join(self.name, self.events)
        self.progress = ProgressBoard(lambda: self.pool)
        self.monitor = monitor_of(
            self,
            MonitorOptions(
                keeps=monitor,
                jobs=history_jobs,
                lines=job_log_lines,
                port=health_port,
                host=health_host,
            ),
        )
        self.parts = Parts([*self._own_parts(), *parts])

    async def main(self) -> None:
        """Connect, start, and run the loop until it is cancelled or the burst is over."""
        self.take_over_signals()
        if self._told_to_stop:
            return
        self.stopping = self.draining = self.is_quiet = self._gives_back = False
        self.allow_pick_jobs = True
        await self._connect()
        logger.info(
            "Starting worker for %d functions: %s",
            len(self.functions),
            ", ".join(self.functions),
        )
        try:
            await log_redis_info(self.pool, logger.info)
        except TROUBLE as exc:  # it answered a moment ago: the loop waits for it
            logger.warning("Redis does not answer (%s)", exc)
        self.ctx["redis"] = self.pool
        if self.on_startup:
            await self.on_startup(self.ctx)
        self._turns.adopt_context()
        await self.parts.start(self)
        try:
            self.watch.heed_limits()  # what parts hold is in every process
        except SettingsError:
            await self.parts.stop()
            raise
        idle_ms = 0 if self.burst else int(max(self._wait_s() * 4, 2) * 1000)
        self.settler.open()
        self.cycles.open(claims=self.max_burst_jobs < 0, idle_ms=idle_ms)
        self._closing = False
        self._loop_ended.clear()
        if self.events.wanted:
            self.events.emit(report.worker_started(self, self.cycles.names))
        self.watch.tell_ready()
        try:
            await self._loop()
            if not self.history:  # arq's bare Worker leaves no key of ours
                with contextlib.suppress(*TROUBLE):
                    await self.pool.delete(*self._notes())
        finally:
            self.cycles.rest()
            try:
                await self.parts.stop(down_to=JOBS)
            finally:
                self._loop_ended.set()

    @property
    def orphans(self) -> int:
        """How many functions go on in the loop though their jobs have ended."""
        return self._turns.orphans

    @property
    def stuck_threads(self) -> int:
        """How many threads are taken by functions whose jobs have ended."""
        return self.executors.threads.stuck

    def abandon(self, attempt: execution.Attempt, frames: Frames) -> None:
        """Settle a job without its function, which does not heed its cancellation."""
        self._turns.abandon(attempt, frames)

    def jobs_cancelled(self) -> None:
        """See to it that all jobs end, now that they were cancelled."""
        self._turns.watch()

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with each event of `runner.events`; return what ends that."""
        return self.events.subscribe(subscriber)

    async def _loop(self) -> None:
        backoff_s = SOONEST_BACKOFF_S
        while not self._closing:
            # Before the claim: a token that arrives from here on is not overlooked.
            self._nudge.clear()
            if self.draining and self._is_idle():
                return
            try:
                await self._poll_iteration()
                if self.burst and await self._burst_is_over():
                    return
            except TROUBLE as exc:
                does = "refuses a call" if isinstance(exc, ResponseError) else "does not answer"
                logger.warning("Redis %s (%s); trying again", does, exc)
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, LATEST_BACKOFF_S)
                continue
            backoff_s = SOONEST_BACKOFF_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s()):
                    await self._nudge.wait()

    def _is_idle(self) -> bool:
        """Say whether nothing runs, waits to run, is being claimed or settled."""
        return not (self._turns.ready or self.tasks or len(self._leases) or self.cycles.reserved)

    def nudge(self) -> None:
        """Let the loop look at what has changed."""
        self._nudge.set()

    def _wait_s(self) -> float:
        # Claims tell the time: after half a lease without one, leases are thought to have run
        # out through no fault of their holders, and nobody takes a dead worker's jobs over.
        return max(min(float(self.poll_delay_s), self.lease_s / 4), LEAST_WAIT_S)

    async def _poll_iteration(self) -> None:
        """Claim once, look for aborts, and do what is due: one plain call, which raises."""
        await self.cycles.once()
        async with asyncio.timeout(CYCLE_TIMEOUT_S):  # the pool has no limit of its own
            if self.allow_abort_jobs:
                await self._cancel_aborted_jobs()
                if self.aborting_tasks:
                    self._turns.watch(self.aborting_tasks)
            await self.heart_beat()
            await self.gate.look(self.pool)

    async def _cancel_aborted_jobs(self) -> None:
        """Cancel those of our jobs that are to be aborted; an id may be any bytes.

        arq's own also throws away what is asked for by a clock that is ahead of this one. The
        request goes with the job's end, so that it outlives a worker that dies meanwhile.
        """
        asked = await self.pool.zrange(keys.ABORT, 0, -1)
        ids = [raw.decode(errors="surrogateescape") for raw in asked]
        for job_id in ids:
            if job_id in self.job_tasks and job_id not in self.aborting_tasks:
                self.aborting_tasks.add(job_id)
                self.job_tasks[job_id].cancel()

    async def _burst_is_over(self) -> bool:
        if 0 <= self.max_burst_jobs <= self._jobs_started():
            await self._end_jobs()
            return True
        if self._turns.ready or self.tasks or len(self._leases):
            return False
        async with asyncio.timeout(CYCLE_TIMEOUT_S):
            waiting = [await broker.runnable(self.pool, name) for name in self.cycles.names]
        return not any(waiting)

    def _jobs_started(self) -> int:
        return super()._jobs_started() + self._turns.ready

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Claim and start up to so many due jobs, the oldest first.

        arq's own loop names the jobs; here the claim script chooses them, because reading
        ids and claiming them are one step.
        """
        if job_ids:
            await self.cycles.once()

    def _engines_redis(self) -> Executes:
        """Return what the engine's own calls go by; a pool that was given carries them all."""
        return self._pipe or self.pool

    def _woken(self) -> None:
        """Claim: by the short way, unless the loop's other duties may be due as well."""
        if self.allow_abort_jobs or not self.cycles.wake():
            self._nudge.set()

    def _replied(self, reply: CycleReply) -> None:
        """Set the timer for the next job that is due."""
        if self.burst:
            return
        if reply.next_due_ms is None:
            self._due.pop(reply.queue, None)
        else:
            delay_s = (reply.next_due_ms - reply.now_ms) / 1000
            self._due[reply.queue] = time.monotonic() + delay_s
        if self._due:
            self._waker.due_in(min(self._due.values()) - time.monotonic())

    def _free(self) -> int:
        """Return how many jobs may be claimed now."""
        if not self.allow_pick_jobs or self.stopping:
            return 0
        room = min(self.max_jobs - self.job_counter, self.queue_read_limit)
        if self.burst and self.max_burst_jobs >= 0:
            room = min(room, self.max_burst_jobs - self._jobs_started())
        return max(room, 0)

    def _start_job(self, claimed: Claimed) -> None:
        self.job_counter += 1
        self._leases.add(claimed)
        self._turns.add(claimed)

    def _begin(
        self,
        claimed: Claimed,
    ) -> tuple[execution.Attempt, Coroutine[Any, Any, None]]:
        attempt = execution.begin(claimed)
        stops = self.stopping or not (self.allow_pick_jobs or self.draining)
        return attempt, self._hand_back(attempt) if stops else self._run(attempt)

    def commits_of(self, attempt: execution.Attempt) -> writers.JobCommits:
        """Return what an attempt commits with before its end."""
        if self._commits is None:
            self._commits = writers.Commits(lambda: self.pool)
        return self._commits.of_job(
            attempt.claimed, attempt.record.enqueued_ms, attempt.traceparent
        )

    def limit_lease(self, attempt: execution.Attempt, timeout_s: float) -> None:
        """Renew the lease for as long as the job may run, and one lease more to end it."""
        attempt.claimed.until = time.monotonic() + timeout_s + self.lease_s

    def is_live(self) -> bool:
        """Say whether the loop runs, and goes on."""
        return not self._closing and not self._loop_ended.is_set()

    def resize(self, max_jobs: int) -> None:
        """Run so many jobs at once from now on; none of those that run is given up."""
        self.max_jobs = max_jobs
        self.cycles.resize(max_jobs)
        self._nudge.set()

    def leases_are_overdue(self) -> bool:
        """Say whether leases were not renewed in time, as after SIGSTOP."""
        return self._leases.are_overdue()

    async def _run(self, attempt: execution.Attempt) -> None:
        if self.allow_abort_jobs:
            await self._note_abort(attempt.claimed.job_id)
        await execution.run(self, attempt)

    async def _hand_back(self, attempt: execution.Attempt) -> None:
        """Give back a job that was claimed while the worker was told to stop."""
        back = Settlement(claimed=attempt.claimed, mode="back")
        self.settler.pass_in(back, attempt, Ending(Outcome.HANDED_BACK))

    def _line_over(self, attempt: execution.Attempt, exc: BaseException | None) -> None:
        """See to an attempt whose line is over, also when it never came to its settlement."""
        claimed = attempt.claimed
        if isinstance(exc, asyncio.CancelledError):
            if not attempt.released and not attempt.lost_lease:
                # Cancelled while its abort was looked up, or its limits.
                back = Settlement(claimed=claimed, mode="back", slots=attempt.slots)
                self.settler.pass_in(back, attempt, Ending(Outcome.HANDED_BACK))
        elif exc is not None:
            # Its lease runs out: a crash, so that it ends as a dead letter if it goes on so.
            logger.error("job %s could not be settled", claimed.job_id, exc_info=exc)
        if not attempt.passed_in:
            if not attempt.released:  # a limit refused it, or its lease is lost
                self.cycles.freed(self._woken)
            self.settler.release(attempt)
        if not attempt.passed_in and not attempt.is_left:
            self._leases.remove(claimed.token, claimed.job_id)
        self._attempt_over()

    def _attempt_over(self) -> None:
        if self.burst or self.draining:
            self._nudge.set()

    async def _note_abort(self, job_id: str) -> None:
        # The request goes with the job's end: an answer that is lost costs no abort.
        try:
            if await self.pool.zscore(keys.ABORT, keys.raw_id(job_id)) is not None:
                self.aborting_tasks.add(job_id)
        except TROUBLE as exc:
            # The next poll looks again, and cancels the job then.
            logger.warning("could not look up an abort of job %s: %s", job_id, exc)

    async def remember_try(self, claimed: Claimed, attempt: int) -> None:
        """Set the count of tries that have ended, as ``_job_try`` asks for; hold the job by it."""
        try:
            key = keys.retry(claimed.job_id)
            await self.pool.setex(key, keys.RETRY_TTL_S, str(attempt - 1))
        except TROUBLE as exc:
            # The job runs all the same; the next try, if any, is lifted again by its payload.
            logger.warning("could not note the try of job %s: %s", claimed.job_id, exc)
            return
        claimed.attempt = attempt

    def _lease_lost(self, lease: Claimed) -> None:
        """Hear from the lease thread that somebody else has a job now."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is the worker
            self.loop.call_soon_threadsafe(self._cancel_lost, lease)

    def _cancel_lost(self, lease: Claimed) -> None:
        self._leases.remove(lease.token, lease.job_id)
        running = self._turns.waiting(lease)
        if running is None or running[1].is_over:
            return
        task, attempt = running
        attempt.lost_lease = True
        task.cancel()
        self._turns.watch((lease.job_id,))
        if self.events.wanted:
            self.events.emit(report.lost(self, attempt))

    def give_up(self) -> None:
        """Leave what cannot be settled now to its lease."""
        self.cycles.cancel()

    async def _end_loop(self) -> None:
        """Let `main` return, also where it is a task that nobody here holds."""
        self._closing = True
        self._nudge.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOP_END_S):
                await self._loop_ended.wait()

    def _notes(self) -> list[str]:
        return [keys.settled(lane) for lane in self.cycles.lanes]

    async def _end_jobs(self) -> None:
        """Wait until every job has ended and is settled, those of a last claim too."""
        while True:
            ran = await self._turns.end()
            again = await self.settler.drain()
            if not ran and not again:
                return

    async def close(self) -> None:
        """Hand back what runs, stop what was started in reverse order, disconnect. Idempotent."""
        if not self._handle_signals:
            self.handle_sig(signal.SIGUSR1)
        self._told_to_stop = False
        if not self._pool:
            return
        self.cycles.rest()
        await self._end_loop()
        self.settler.hurry()
        await self.parts.stop()
        with contextlib.suppress(*TROUBLE):
            async with asyncio.timeout(CYCLE_TIMEOUT_S):
                for name in self.cycles.names:
                    await self.pool.zrem(keys.idle(name), self.cycles.worker)
                await self.pool.delete(self.health_check_key, *self._notes())
        if self.on_shutdown:
            await self.on_shutdown(self.ctx)
        await self._disconnect()
        if self.events.wanted:
            self.events.emit(report.worker_stopped(self))


def _lease(given: SecondsTimedelta) -> float:
    lease_s = float(seconds(given))
    if not LEAST_LEASE_S <= lease_s < math.inf:
        raise SettingsError(f"lease is {given!r}, but must be at least {LEAST_LEASE_S} s")
    return lease_s


def _job_log(worker: str, database_url: str | None) -> Collector:
    if database_url is None:
        raise SettingsError("job_log is on, but there is no database: set database_url, too")
    return Collector(worker)


def _limits_of(functions: Mapping[str, Any]) -> Iterator[tuple[str, Limit]]:
    for name, function in functions.items():
        if isinstance(function.coroutine, Task):
            for limit in function.coroutine.task_options.limits:
                yield name, limit


def _may_write(function: Any) -> bool:
    task = function.coroutine
    return not isinstance(task, Task) or task.task_options.writes


def as_function(function: Any) -> Any:
    """Return arq's Function for a task; leave everything else to arq."""
    if not isinstance(function, Task):
        return function
    options = function.task_options
    return Function(
        name=function.name,
        coroutine=cast("WorkerCoroutine", function),
        timeout_s=options.timeout,
        keep_result_s=options.keep_result,
        keep_result_forever=options.keep_result_forever,
        max_tries=None if options.retries is None else options.retries + 1,
    )


def ensure_uvloop() -> None:
    """Make a uvloop the thread's loop, unless one runs or is set already."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return
    policy = asyncio.get_event_loop_policy()
    # There is no public way to ask for the loop that is set without making one.
    if getattr(getattr(policy, "_local", None), "_loop", None) is None:
        asyncio.set_event_loop(uvloop.new_event_loop())


__all__ = ["Worker", "as_function"]
