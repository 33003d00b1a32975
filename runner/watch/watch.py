"""The thread that looks at a worker, whatever its loop does.

It is not the one that renews leases: that one waits for Redis, and what waits cannot look.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from runner import logs
from runner.events import (
    JobOverdue,
    LoopBlocked,
    LoopFreed,
    ProcessVitals,
    ResourceLeft,
    TasksLeft,
)
from runner.execution import now_ms
from runner.execution.limits import shown
from runner.watch import vitals
from runner.watch.blocked import BlockedLoop, Sight, sight
from runner.watch.leftovers import Leftovers
from runner.watch.overdue import Overdue
from runner.watch.recycling import RECYCLED
from runner.watch.unclosed import Unclosed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runner.bus import Bus
    from runner.events import Event
    from runner.execution import Attempt
    from runner.middleware import JobCall
    from runner.watch.recycling import Limits
    from runner.watch.settings import WatchSettings

logger = logging.getLogger("runner.watch")

LOOK_S = 0.25
"""How often the thread looks, at most; more often where `blocked_after` is short."""
HARD_S = 5.0
"""How long a process beyond its hard limit may take to hand its jobs back, and to end; more than
jobs then have to heed their cancellation (`runner.renewal.HARD_GRACE_S`)."""
SUPERVISED_VITALS_S = 2.0
NAMED = 10
"""How many of the tasks that a job has left are named."""


class Watched(Protocol):
    """What a watch needs of its worker."""

    name: str
    events: Bus
    loop: asyncio.AbstractEventLoop
    jobs_complete: int
    jobs_failed: int
    jobs_retried: int

    @property
    def patience_s(self) -> float:
        """How long jobs may take to end after SIGTERM."""
        ...

    def running(self) -> Iterable[Attempt]:
        """Return the attempts that wait for something."""
        ...

    def recycle(self, why: str) -> None:
        """Ask for a new process, or end this one gently."""
        ...

    def give_back(self, why: str) -> None:
        """Hand back what runs, and end now."""
        ...


class Supervises(Protocol):
    """The way to a supervisor, safe to use from any thread."""

    def say(self, word: str, **fields: Any) -> None:
        """Send a message, without waiting."""
        ...


class Watch:
    """Looks at one worker while it serves.

    Attributes:
        leftovers: the layer around jobs that finds the tasks they leave, None when not wanted.
        unclosed: the layer that hears what they do not close, None when not wanted.
        supervisor: hears how the process is; set before `start`.
    """

    def __init__(self, worker: Watched, settings: WatchSettings) -> None:
        self._worker = worker
        self._settings = settings
        self._limits: Limits | None = None  # until it is known which can be heeded
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._overdue: Overdue | None = None
        self._blocked: BlockedLoop | None = None
        self._began = self._vitals_at = 0.0
        self._recycled = ""  # why
        self._ends_at: float | None = None
        self._loops_thread = 0
        self.supervisor: Supervises | None = None
        self.leftovers: Leftovers | None = None
        if settings.left_tasks != "ignore":
            cancels = settings.left_tasks == "cancel"
            self.leftovers = Leftovers(cancels=cancels, left=self._left)
        self.unclosed: Unclosed | None = None
        if settings.left_resources == "report":
            self.unclosed = Unclosed(self._tell_unclosed)

    @property
    def layers(self) -> list[Leftovers | Unclosed]:
        """What it needs around each job, inside of all middleware."""
        return [layer for layer in (self.leftovers, self.unclosed) if layer is not None]

    def start(self) -> None:
        """Begin to look, at all but limits; called in the worker's loop. Idempotent."""
        for layer in self.layers:
            layer.install()
        if self._thread is not None or not self._has_work():
            return
        settings, worker = self._settings, self._worker
        self._began, self._vitals_at = time.monotonic(), 0.0  # the first look tells them
        self._recycled, self._ends_at = "", None
        self._loops_thread = threading.get_ident()
        if settings.blocked_after_s is not None:
            self._blocked = BlockedLoop(
                asyncio.get_running_loop(),
                self._loops_thread,
                settings.blocked_after_s,
                blocked=self._tell_blocked,
                over=self._tell_freed,
                stood_still=self._tell_stood_still,
            )
            logs.keep_lines(keeps=True)  # to tell whose a task is
        if settings.overdue_factor is not None:
            self._overdue = Overdue(settings.overdue_factor, worker.running)
            self._unsubscribe = worker.events.subscribe(self._overdue.hear)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._stop,), name="runner watch", daemon=True
        )
        self._thread.start()

    def heed_limits(self) -> None:
        """Look at limits from now on; called when all parts have started, before the first job.

        Idempotent: what a worker holds that serves once more is no longer what it began with.

        Raises:
            SettingsError: the process is beyond its hard limit by now.
        """
        if self._limits is not None:
            return
        limits = self._settings.limits
        self._limits = limits.heeded(vitals.memory()[0]) if limits.are_of_memory else limits

    def tell_ready(self) -> None:
        """Tell the supervisor, if any, that the worker claims from now on."""
        if self.supervisor is not None:
            self.supervisor.say("ready", stop_s=self._worker.patience_s)

    def stop(self) -> None:
        """End the thread. Idempotent; it is a daemon and need not be waited for."""
        self._stop.set()
        self._thread = self._limits = None
        if self._blocked is not None:
            self._blocked = None
            logs.keep_lines(keeps=False)
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        for layer in self.layers:
            layer.remove()

    def _has_work(self) -> bool:
        settings = self._settings
        looks = (settings.blocked_after_s, settings.overdue_factor, settings.vitals_s)
        return (
            bool(settings.limits)
            or any(look is not None for look in looks)
            or self.supervisor is not None
        )

    def _run(self, stop: threading.Event) -> None:
        after_s = self._settings.blocked_after_s
        interval_s = LOOK_S if after_s is None else min(LOOK_S, after_s / 4)
        while not stop.wait(interval_s):
            try:
                self._look()
            except Exception:
                if self._worker.loop.is_closed():  # so is the worker
                    return
                logger.exception("a look at the worker failed; looking again")

    def _look(self) -> None:
        now = time.monotonic()
        blocked = self._blocked  # the loop's thread sets it to None when it likes
        if blocked is not None:
            blocked.look()
        limits = self._limits  # as is this
        if limits:
            self._look_at_limits(limits, now)
        if self._overdue is not None:
            for attempt, running_s, usual_s in self._overdue.look():
                self._in_loop(self._tell_overdue, attempt, running_s, usual_s)
        every_s = SUPERVISED_VITALS_S if self.supervisor is not None else self._settings.vitals_s
        if every_s is not None and now - self._vitals_at >= every_s:
            self._vitals_at = now
            self._tell_vitals()

    def _look_at_limits(self, limits: Limits, now: float) -> None:
        worker = self._worker
        rss = vitals.memory()[0]
        if self._ends_at is not None:
            if now > self._ends_at:
                # The loop does not turn, or something refuses to end: their leases run out.
                logger.critical(
                    "the jobs could not be handed back: the process ends now, its loop is at\n%s",
                    sight(self._loops_thread, worker.loop).stack,
                )
                os._exit(RECYCLED)
            return
        if why := limits.broken(rss):
            self._ends_at = now + HARD_S
            if self.supervisor is not None:  # from here: the loop may stand still
                self.supervisor.say("leaving", why=why)
            self._in_loop(worker.give_back, why)
        elif not self._recycled and (
            why := limits.reached(jobs=self._jobs(), rss=rss, age_s=now - self._began)
        ):
            self._recycled = why
            self._in_loop(worker.recycle, why)

    def _jobs(self) -> int:
        worker = self._worker
        return worker.jobs_complete + worker.jobs_failed + worker.jobs_retried

    def _in_loop(self, call: Callable[..., None], *args: Any) -> None:
        self._worker.loop.call_soon_threadsafe(call, *args)

    def _emit(self, event: Event) -> None:
        if self._worker.events.wanted:
            self._worker.events.emit(event)

    def _tell_vitals(self) -> None:
        found = vitals.read()
        if self.supervisor is not None:
            self.supervisor.say(
                "vitals",
                rss=found.rss,
                threads=found.threads,
                files=found.files,
                jobs=self._jobs(),
            )
            if self._recycled and self._ends_at is None:
                # Once more: what was said while the supervisor was stopped may not have fitted in.
                self.supervisor.say("recycle", why=self._recycled)
        if self._settings.vitals_s is not None and self._worker.events.wanted:
            self._in_loop(self._emit_vitals, found)

    def _emit_vitals(self, found: vitals.Vitals) -> None:
        self._emit(
            ProcessVitals(
                worker=self._worker.name,
                at_ms=now_ms(),
                rss=found.rss,
                threads=found.threads,
                files=found.files,
                tasks=len(asyncio.all_tasks()),
                jobs=self._jobs(),
                age_s=time.monotonic() - self._began,
            )
        )

    def _tell_blocked(self, blocked_s: float, sight: Sight) -> None:
        logger.error(
            "%s blocks the event loop for %.1f s by now; it is here:\n%s",
            sight.who,
            blocked_s,
            sight.stack,
        )
        self._emit(
            LoopBlocked(
                worker=self._worker.name,
                job_id=sight.job_id,
                task=sight.job_task,
                attempt=sight.attempt,
                blocked_s=blocked_s,
                stack=sight.stack,
                at_ms=now_ms(),
            )
        )

    def _tell_freed(self, blocked_s: float) -> None:
        logger.warning("the event loop turns again, after %.1f s", blocked_s)
        self._emit(LoopFreed(worker=self._worker.name, blocked_s=blocked_s, at_ms=now_ms()))

    def _tell_stood_still(self, gap_s: float, used_s: float) -> None:
        logger.warning(
            "all threads stood still for %.1f s, with %.1f s of CPU: the process was stopped, the "
            "machine is overloaded, or a call into C held the GIL",
            gap_s,
            used_s,
        )

    def _tell_overdue(self, attempt: Attempt, running_s: float, usual_s: float) -> None:
        claimed, task = attempt.claimed, attempt.record.task
        where, stack = shown([] if attempt.limits is None else attempt.limits.frames())
        logger.warning(
            "job %s:%s runs for %.1f s by now, usual are %.1f s%s",
            claimed.job_id,
            task,
            running_s,
            usual_s,
            f"; it is at {where}" if where else "",
        )
        self._emit(
            JobOverdue(
                worker=self._worker.name,
                queue=claimed.queue,
                job_id=claimed.job_id,
                task=task,
                attempt=attempt.number,
                running_s=running_s,
                usual_s=usual_s,
                where=where,
                stack=stack,
                at_ms=now_ms(),
            )
        )

    def _tell_unclosed(self, job: JobCall | None, what: str) -> None:
        if job is None:
            logger.warning("%s; whose it was is unknown", what)
        else:
            logger.warning("job %s:%s has not closed: %s", job.job_id, job.task, what)
        self._emit(
            ResourceLeft(
                worker=self._worker.name,
                job_id="" if job is None else job.job_id,
                task="" if job is None else job.task,
                attempt=0 if job is None else job.attempt,
                what=what,
                at_ms=now_ms(),
            )
        )

    def _left(self, job: JobCall, tasks: list[asyncio.Task[Any]]) -> None:
        cancelled = self._settings.left_tasks == "cancel"
        named = tuple(_described(task) for task in tasks[:NAMED])
        logger.warning(
            "job %s:%s ended and has left %d asyncio tasks behind%s: %s",
            job.job_id,
            job.task,
            len(tasks),
            ", which are cancelled" if cancelled else "",
            "; ".join(named),
        )
        self._emit(
            TasksLeft(
                worker=self._worker.name,
                queue=job.queue,
                job_id=job.job_id,
                task=job.task,
                attempt=job.attempt,
                count=len(tasks),
                tasks=named,
                cancelled=cancelled,
                at_ms=now_ms(),
            )
        )


def _described(task: asyncio.Task[Any]) -> str:
    """Say what a task is, and the line at which it waits."""
    work: Any = task.get_coro()
    name = getattr(work, "__qualname__", repr(work))
    code, frame = getattr(work, "cr_code", None), getattr(work, "cr_frame", None)
    where = f" at {code.co_filename}:{frame.f_lineno}" if code is not None and frame else ""
    return f"{task.get_name()} ({name}{where})"


__all__ = ["Supervises", "Watch", "Watched"]
