"""The worker's side: wait for the next due time, and offer its runs.

Each worker does the same, and none is special. A timer of the loop ends at the next due time in
the book; who looks first takes the turn, offers the runs, and gives it back. No worker's own
clock has a say: due times and the time are Redis's, and waiting is done by elapsed time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from typing import TYPE_CHECKING

from runner import producer
from runner.connections import TROUBLE
from runner.errors import ScheduleConflict
from runner.schedule.book import FLEET_MS, UNREADABLE_MS, Book
from runner.schedule.missed import Runs, runs_of
from runner.schedule.records import DueSchedule, Look, Offer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runner.schedule.schedule import Schedule

logger = logging.getLogger("runner.schedule")

LOOK_TIMEOUT_S = 10.0
LEAVE_TIMEOUT_S = 1.0
MOST_WAIT_S = 1.0
"""A schedule that was added meanwhile is found within this time."""

RENEW_S = 30.0
RETIRE_AFTER_S = 60.0
AGAIN_S = 1.0


class Ticker:
    """See to the schedules of one queue, beside the other workers that do.

    Args:
        book: the queue's book.
        schedules: those of its settings.
        tasks: the names of the tasks that it runs.
        aborts: its jobs can be aborted, as "cancel_older" needs.
    """

    def __init__(
        self,
        book: Book,
        *,
        schedules: Sequence[Schedule],
        tasks: Sequence[str],
        aborts: bool,
    ) -> None:
        self._book = book
        self._worker = secrets.token_hex(6)
        self._schedules = list(schedules)
        self._tasks = sorted(tasks)
        self._aborts = aborts
        self._digest = _digest(self._tasks, schedules)
        self._started = time.monotonic()
        self._enlisted: float | None = None
        self._fleet: frozenset[str] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Tick in a task of its own. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="runner schedules")

    async def stop(self) -> None:
        """Stop ticking; what is due is left to the other workers. Idempotent."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._enlisted is not None:
            self._enlisted = None
            # A worker that could not say so is forgotten after two minutes.
            with contextlib.suppress(*TROUBLE):
                async with asyncio.timeout(LEAVE_TIMEOUT_S):
                    await self._book.leave(self._worker, self._digest)

    async def once(self) -> None:
        """Do what is due now, for a worker that ends when the queue is empty."""
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            await self.open()
            while await self.tick() == 0:
                pass

    async def open(self) -> None:
        """Write the settings' schedules into the book, and make the runs of a start."""
        statuses = await self._write()
        now_ms = await self._book.now_ms()
        offers = [
            Offer("startup", schedule.name, schedule, (now_ms,), 0, None, now_ms)
            for schedule, status in zip(self._schedules, statuses, strict=True)
            if schedule.run_at_startup and not isinstance(status, str)
        ]
        if offers:
            await self._book.offer(self._worker, offers)

    async def _write(self) -> list[int | str]:
        statuses = await self._book.put("settings", self._schedules)
        for schedule, status in zip(self._schedules, statuses, strict=True):
            if isinstance(status, str):
                logger.error("%s", conflict(schedule.name, status))
        return statuses

    async def tick(self) -> float:
        """See to what is due now; return the seconds until there may be more."""
        look = await self._book.look(self._worker)
        if not look.due and look.again_ms is None and self._schedules:
            logger.warning("Redis has lost the schedules: those of the settings are written again")
            await self._write()
            return 0.0
        if not look.due:
            return _wait_s(look)
        offers = [self._offer(due, look.now_ms) for due in look.due]
        await self._cancel_older(look.due, offers)
        statuses = await self._book.offer(self._worker, offers)
        refused = False
        for offer, status in zip(offers, statuses, strict=True):
            if isinstance(status, str):
                logger.error("Redis refused the runs of schedule %r: %s", offer.name, status)
            refused = refused or isinstance(status, str) or status < -1
        return AGAIN_S if refused else 0.0

    async def _run(self) -> None:
        is_open = False
        while True:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    if not is_open:
                        await self.open()
                        is_open = True
                    await self._keep_enlisted()
                    wait_s = await self.tick()
            except TROUBLE as exc:
                logger.warning("schedules: Redis does not answer (%s); trying again", exc)
                wait_s = AGAIN_S
            except Exception:
                # One schedule that breaks the rules must not end all the others.
                logger.exception("schedules: this look failed; trying again")
                wait_s = AGAIN_S
            await asyncio.sleep(wait_s)

    def _offer(self, due: DueSchedule, now_ms: int) -> Offer:
        schedule, error = due.schedule, due.error
        runs = Runs((), None)
        if schedule is not None:
            try:
                runs = _runs(schedule, due.due_ms, now_ms)
            except Exception as exc:  # noqa: BLE001  a time that is none: the others are run
                schedule, error = None, repr(exc)
        if schedule is None:
            logger.error("schedule %r is not run: %s", due.name, error)
            again_ms = now_ms + UNREADABLE_MS
            return Offer("postpone", due.name, None, (), due.due_ms, again_ms, now_ms)
        if not runs.due_ms:
            logger.info("schedule %r: missed due times are skipped", due.name)
        return Offer("due", due.name, schedule, runs.due_ms, due.due_ms, runs.next_ms, now_ms)

    async def _cancel_older(self, due: Sequence[DueSchedule], offers: Sequence[Offer]) -> None:
        """Abort the runs before, ahead of the new ones.

        Who is killed in between leaves the rest to the next: it aborts the same job again.
        """
        for found, offer in zip(due, offers, strict=True):
            schedule = offer.schedule
            if schedule is None or schedule.overlap != "cancel_older" or not found.last_job:
                continue
            if not self._aborts:
                logger.error(
                    "schedule %r cancels older runs: its workers need allow_abort_jobs", found.name
                )
            elif offer.due_ms:
                queue = schedule.queue or self._book.queue
                await producer.abort(self._book.redis, queue, found.last_job)

    async def _keep_enlisted(self) -> None:
        now = time.monotonic()
        if self._enlisted is not None and now < self._enlisted + RENEW_S:
            return
        names = [schedule.name for schedule in self._schedules]
        known = await self._book.enlist(self._worker, self._digest, self._tasks, names)
        if self._enlisted is not None and not known:
            # Redis has lost it; and schedules, maybe, of which others are left.
            await self._write()
        self._enlisted = now
        if now >= self._started + RETIRE_AFTER_S:
            await self.retire()

    async def retire(self) -> None:
        """Forget schedules of settings that no live worker has any more."""
        fleet = await self._book.fleet()
        if not fleet.complete or fleet.digests == self._fleet:
            return
        stale = [n for n in await self._book.of_settings() if n not in fleet.schedules]
        if stale:
            logger.info(
                "schedules that settings do not have any more: %s", ", ".join(map(ascii, stale))
            )
            await self._book.remove("settings", stale)
        self._fleet = fleet.digests


class Tickers:
    """The tickers of one worker, one for each queue that it reads.

    Args:
        schedules: those of its settings.
        home: the queue in whose book they are.
    """

    def __init__(self, schedules: Sequence[Schedule], *, home: str) -> None:
        self.schedules = schedules
        self._home = home
        self._tickers: list[Ticker] = []

    async def start(
        self, books: Sequence[Book], *, tasks: Iterable[str], aborts: bool, burst: bool
    ) -> None:
        """Start them; in a burst do what is due, and no more."""
        names = list(tasks)
        for book in books:
            schedules = self.schedules if book.queue == self._home else ()
            ticker = Ticker(book, schedules=schedules, tasks=names, aborts=aborts)
            if burst:
                await ticker.once()
            else:
                self._tickers.append(ticker)
                ticker.start()

    async def stop(self) -> None:
        """Stop them. Idempotent."""
        tickers, self._tickers = self._tickers, []
        for ticker in tickers:
            await ticker.stop()


def conflict(name: str, source: str) -> ScheduleConflict:
    """Return the error that says whose a schedule is."""
    if source == "settings":
        message = (
            f"schedule {name!r} comes from the workers' settings: change it there; "
            "it can be paused, resumed and run from here"
        )
    else:
        message = (
            f"schedule {name!r} was added at run time: remove that one "
            f"(runner cron remove {name}), or take another name"
        )
    return ScheduleConflict(message, name=name, source=source)


def _runs(schedule: Schedule, due_ms: int, now_ms: int) -> Runs:
    return runs_of(
        schedule.trigger,
        due_ms=due_ms,
        now_ms=now_ms,
        grace_ms=schedule.grace_ms,
        catch_up=schedule.catch_up,
        most=schedule.catch_up_max,
    )


def _wait_s(look: Look) -> float:
    if look.again_ms is None:
        return MOST_WAIT_S
    # One ms more: Redis's time is cut to whole ones.
    return min(max(look.again_ms - look.now_ms + 1, 1) / 1000, MOST_WAIT_S)


def _digest(tasks: Sequence[str], schedules: Sequence[Schedule]) -> str:
    text = "\0".join([*tasks, "\1", *sorted(schedule.name for schedule in schedules)])
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


assert FLEET_MS > 2 * RENEW_S * 1000
