"""The service that watches one worker: two ticks a second, and an end.

Each tick writes down what was counted since the last one, in one call for each queue that had
work; every second tick says what the worker does. How late a tick comes is the loop's delay. What
Redis did not answer to is sent again under its number, which Redis counts once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from runner import keys
from runner.connections import TROUBLE
from runner.errors import SettingsError
from runner.execution import now_ms
from runner.inspect.queues import queue_loads
from runner.limits import Limits
from runner.monitor import metrics
from runner.monitor.beat import CALL_TIMEOUT_S, beat, info_of, leave, obey
from runner.monitor.joblog import JobLog
from runner.monitor.probes import Probes, Reply
from runner.monitor.tally import Tally
from runner.scripts import load
from runner.writer import writer_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runner.inspect.queues import QueueLoad
    from runner.limits import LimitInfo
    from runner.monitor.tally import Counted
    from runner.monitor.watched import Watched
    from runner.types import WriterStatus

logger = logging.getLogger("runner.monitor")

_FOR_NOW = (OutOfMemoryError, ReadOnlyError)
"""What Redis refuses, and may take a little later."""
TICK_S = 0.5
BEATS_EVERY = 2
STOP_TIMEOUT_S = 2.0
MOST_UNSENT = 1_000
"""How many calls with counts wait while Redis takes none."""
DELAYS = 30
"""The loop's delay is the worst of so many ticks: a scrape hears of what lies between two."""
SILENT_S = 15.0
"""For how long Redis may be silent before the worker says that it is not ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorOptions:
    """What is watched.

    Attributes:
        keeps: write history and heartbeats to Redis, and take orders.
        jobs: how many jobs that ended each queue remembers.
        lines: how many lines of each job are kept; 0: none.
        port: where probes and metrics are answered; 0: a free one; None: nowhere. In a fleet the
            first worker answers there, the next at the port behind it, and so on.
        host: the address to listen on.
    """

    keeps: bool = True
    jobs: int = 1_000
    lines: int = 100
    port: int | None = None
    host: str = "127.0.0.1"


class _Counts(NamedTuple):
    """What one call adds to the history of a queue: the fields of a minute, and jobs that ended."""

    queue: str
    number: int
    totals: dict[str, int]
    by_task: dict[str, int]
    jobs: int
    piece: bytes


def monitor_of(worker: Watched, options: MonitorOptions) -> Monitor | None:
    """Return what watches a worker, None where nothing is asked for."""
    wanted = options.keeps or options.port is not None
    return Monitor(worker, options) if wanted else None


class Monitor:
    """Watch one worker.

    Attributes:
        probes: the HTTP server, None without a port.
    """

    def __init__(self, worker: Watched, options: MonitorOptions) -> None:
        self._worker = worker
        self._options = options
        self._tally = Tally(worker.name, worker.functions, most=options.jobs)
        self._totals = metrics.Totals()
        self._log: JobLog | None = None
        self._task: asyncio.Task[None] | None = None
        self._obeying: set[asyncio.Task[None]] = set()
        self._unwatch: Any = None
        self._started_ms = 0
        self._delay_s = 0.0  # at worst since the last beat
        self._delays: deque[float] = deque([0.0], maxlen=DELAYS)
        self._unsent: deque[_Counts] = deque()
        self._number = 0
        self._name = f"{worker.name}:{secrets.token_hex(4)}"  # a worker's own may be used again
        self._answered_at = 0.0  # by the loop's time, when Redis last did
        self._in_trouble = False
        self._has_begun = False
        self.probes: Probes | None = None

    async def start(self) -> None:
        """Begin to watch, and listen. Idempotent.

        Raises:
            SettingsError: the port is taken.
        """
        if self._task is not None:
            return
        self._started_ms, self._has_begun = now_ms(), False
        self._answered_at = asyncio.get_running_loop().time()
        if self._options.port is not None:
            await self._listen(self._options.port)
        self._unwatch = self._worker.events.watch(self._tally, is_ours=True)
        if self._options.keeps and self._options.lines:
            self._log = JobLog(self._worker.name, self._options.lines)
            self._log.open()
        self._task = asyncio.create_task(self._run(), name="runner monitor")

    async def _listen(self, port: int) -> None:
        """Answer over HTTP; each place of a fleet has a port of its own."""
        self.probes = Probes(
            {"/live": self._live, "/ready": self._ready}
            | {"/lag": self._lag_of, "/metrics": self._metrics}
        )
        place = self._worker.place if port else 0
        at = port + place - 1 if place else port
        try:
            await self.probes.start(self._options.host, at, shares=place > 0)
        except OSError as exc:
            raise SettingsError(
                f"health_port: nothing can listen at {self._options.host}:{at} ({exc}); choose "
                f"another port, or None",
            ) from exc

    async def stop(self) -> None:
        """Write down the last counts, say that the worker has ended, stop listening. Idempotent."""
        if self._task is None:
            return
        tasks = [self._task, *self._obeying]
        self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._unwatch()
        if self._log is not None:
            self._log.close()
        if self.probes is not None:
            await self.probes.stop()
            self.probes = None
        with contextlib.suppress(*TROUBLE):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._write()
                await self._write_lines()
                if self._options.keeps:
                    await leave(self._worker.pool, self._worker)
        self._log = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        while True:
            is_well = await self._does(self._write)
            is_well = await self._does(self._write_lines) and is_well
            if number % BEATS_EVERY == 0:
                is_well = await self._does(self._beat) and is_well
            if is_well and self._in_trouble:
                logger.info("Redis answers again")
            self._in_trouble = not is_well
            number += 1
            self._is_live()
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self._delays.append(max(loop.time() - due, 0.0))
            self._delay_s = max(self._delay_s, self._delays[-1])

    async def _does(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Do one thing of a tick; say whether Redis let it. No other thing waits for it."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await step()
        except TROUBLE as exc:
            if isinstance(exc, ResponseError):
                self._answered_at = asyncio.get_running_loop().time()
            if not self._in_trouble:
                says = "refuses a call" if isinstance(exc, ResponseError) else "does not answer"
                logger.warning("monitoring: Redis %s (%s); trying again", says, exc)
            self._in_trouble = True
            return False
        except Exception:
            logger.exception("monitoring failed; it goes on")
        return True

    async def _write(self) -> None:
        """Write down what was counted: what gets no answer waits, and what is refused is lost."""
        counted, finished = self._tally.take()
        self._totals.add(counted)
        if not self._options.keeps:
            return
        for queue in dict.fromkeys(cell.queue for cell in counted):
            self._number += 1
            fields = _fields([cell for cell in counted if cell.queue == queue])
            listed = finished.get(queue, (0, b""))
            self._unsent.append(_Counts(queue, self._number, *fields, *listed))
        while len(self._unsent) > MOST_UNSENT:
            lost = self._unsent.popleft()
            logger.error("%d counts of %s are lost: Redis took none", len(lost.totals), lost.queue)
        while self._unsent:
            try:
                await self._add(self._unsent[0])
            except (ResponseError, UnicodeError) as exc:
                if isinstance(exc, _FOR_NOW):
                    raise
                queue = self._unsent[0].queue
                logger.error("the history of %r is refused: %s", queue, exc)  # noqa: TRY400  no fault of ours
            self._unsent.popleft()

    async def _write_lines(self) -> None:
        """Write down what jobs have logged."""
        if self._log is not None:
            await self._log.flush_to(self._worker.pool)

    async def _add(self, counts: _Counts) -> None:
        await load("history_add").call(
            self._worker.pool,
            keys=[
                *(counts.queue, keys.finished(counts.queue)),
                *(keys.counted(self._name, counts.queue), keys.refused(counts.queue)),
            ],
            args=[
                *(counts.number, self._options.jobs),
                *(len(counts.totals), len(counts.by_task), counts.jobs, counts.piece),
                *(part for pair in counts.totals.items() for part in pair),
                *(part for pair in counts.by_task.items() for part in pair),
            ],
        )

    async def _beat(self) -> None:
        worker, redis = self._worker, self._worker.pool
        delay_s, self._delay_s = self._delay_s, 0.0
        if self._options.keeps:
            orders = await beat(redis, worker, started_ms=self._started_ms, delay_s=delay_s)
            for order in orders:  # beside the beat: a part may take its time
                task = asyncio.create_task(obey(redis, worker, order), name="runner obeys")
                self._obeying.add(task)
                task.add_done_callback(self._obeying.discard)
        else:
            await redis.ping()
        self._answered_at = asyncio.get_running_loop().time()

    async def _live(self) -> Reply:
        """Answer: whoever hears this from the loop knows that it turns."""
        if self._is_live():
            return Reply(200, "live\n")
        return Reply(503, "the loop has ended\n") if self._has_begun else Reply(200, "starting\n")

    def _is_live(self) -> bool:
        """Say whether the worker's loop goes on, and note that it does."""
        is_live = self._worker.is_live()
        self._has_begun = self._has_begun or is_live
        return is_live

    async def _ready(self) -> Reply:
        silent_s = asyncio.get_running_loop().time() - self._answered_at
        if not self._is_live() or self._worker.stopping:
            return Reply(503, "stopping\n" if self._has_begun else "starting\n")
        if not self._worker.allow_pick_jobs:
            return Reply(503, "draining\n")
        if silent_s > SILENT_S:
            return Reply(503, f"Redis has been silent for {silent_s:.0f} s\n")
        return Reply(200, "ready\n")

    async def _lag_of(self) -> Reply:
        """Answer with seconds that the oldest job has waited that could run: one number."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                loads = await queue_loads(self._worker.pool, self._worker.cycles.names)
        except TROUBLE as exc:
            return Reply(503, f"Redis does not answer: {type(exc).__name__}\n")
        # Whoever adds workers by it would add them in vain to a queue that is paused.
        lag_s = max((load.lag_s for load in loads if not load.is_paused), default=0.0)
        return Reply(200, f"{lag_s:.3f}\n")

    async def _metrics(self) -> Reply:
        """Answer in Prometheus's text format; without Redis with what the worker knows itself."""
        if not metrics.is_there():
            return Reply(501, "metrics need: pip install 'arq-runner[metrics]'\n")
        loads: list[QueueLoad] = []
        limits: list[LimitInfo] = []
        writer: WriterStatus | None = None
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                loads = await queue_loads(self._worker.pool, self._worker.cycles.names)
                limits = await Limits(self._worker.pool).list()
                if self._worker.database_url is not None:
                    writer = await writer_status(self._worker.pool)
        except TROUBLE as exc:
            logger.warning("metrics without queues: Redis does not answer (%s)", exc)
        info = info_of(self._worker, started_ms=self._started_ms, delay_s=max(self._delays))
        text = metrics.exposition(
            self._totals,
            info,
            holds=self._worker.vitals(),
            tasks=len(asyncio.all_tasks()),
            lost=self._tally.leases_lost,
            loads=loads,
            writer=writer,
            decisions=self._worker.gate.decisions,
            limits=limits,
        )
        return Reply(200, text, metrics.KIND)


def _fields(cells: list[Counted]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the fields of a minute, and those by task."""
    totals: dict[str, int] = {}
    by_task: dict[str, int] = {}
    for cell in cells:
        fields = {cell.outcome: cell.count} if cell.count else {}
        if cell.ran:
            fields |= {f"w{index}": count for index, count in cell.waited.items()}
            fields |= {f"r{index}": count for index, count in cell.ran.items()}
            fields |= {"ws": cell.waited_ms, "rs": cell.ran_ms}
        for name, count in fields.items():
            totals[name] = totals.get(name, 0) + count
            named = f"{name} {cell.task}"
            by_task[named] = by_task.get(named, 0) + count
    return totals, by_task
