"""Run claimed jobs: many that never wait in one task, and each that waits in one of its own.

Most jobs of a busy queue are over with their first step, and a task costs more than they do.
So a task takes one job after another from those that are ready, each in a context of its own,
until one of them waits for something. From then on the task is that job's: to be cancelled,
and to be `asyncio.current_task`. What else is ready has another task.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from runner.execution import Attempt, abandon, go_on, report

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Coroutine

    from runner.broker import Claimed
    from runner.execution import Host
    from runner.execution.records import Frames

    Line: TypeAlias = Coroutine[Any, Any, None]
    _Waiting: TypeAlias = tuple[Attempt, Line, Any, contextvars.Context]

logger = logging.getLogger("arq.worker")

TURN_S = 0.005
"""After how long jobs that never wait let the loop turn, so that others are settled and claimed."""

ORPHANS_AT_MOST = 100
"""Of more functions that do not heed their cancellation, the oldest is driven no further."""


class Turns:
    """The claimed jobs of one worker.

    Args:
        begin: returns the attempt of a claimed job, and its line: a coroutine not yet begun.
        over: called when a line is over, with what it raised.
        tasks: the tasks of the jobs that wait, by job id.
        host: the worker.
    """

    def __init__(
        self,
        begin: Callable[[Claimed], tuple[Attempt, Line]],
        over: Callable[[Attempt, BaseException | None], None],
        tasks: dict[str, asyncio.Task[Any]],
        host: Host,
    ) -> None:
        self._begin = begin
        self._over = over
        self._tasks = tasks
        self._ready: deque[Claimed] = deque()
        self._taker: asyncio.Task[None] | None = None  # the task that is about to begin them
        self._all: set[asyncio.Task[None]] = set()
        self._waiting: dict[str, tuple[asyncio.Task[None], Attempt]] = {}
        self._context = contextvars.copy_context()
        self._host = host
        self._orphans: dict[asyncio.Task[None], Attempt] = {}
        self._abandoned: asyncio.Event | None = None  # for who waits for the tasks to end

    @property
    def orphans(self) -> int:
        """How many functions go on in the loop whose jobs have ended without them."""
        return len(self._orphans)

    @property
    def ready(self) -> int:
        """How many jobs have not begun."""
        return len(self._ready)

    def waiting(self, claimed: Claimed) -> tuple[asyncio.Task[None], Attempt] | None:
        """Return the task and the attempt of a job that waits for something."""
        return self._waiting.get(claimed.token + claimed.job_id)

    def attempts(self) -> list[Attempt]:
        """Return the attempts that wait for something; safe to call from any thread."""
        return [attempt for _, attempt in list(self._waiting.values())]

    def adopt_context(self) -> None:
        """Let jobs begin with the context variables of the caller."""
        self._context = contextvars.copy_context()

    def add(self, claimed: Claimed) -> None:
        """Run a job as soon as the loop turns."""
        self._ready.append(claimed)
        if self._taker is None:
            self._take_up()

    async def end(self) -> bool:
        """Wait for the tasks of this moment, but not for orphans; return whether there was any."""
        tasks = set(self._all)
        self._abandoned = asyncio.Event()
        while waiting := tasks & self._all:
            self._abandoned.clear()
            ended = asyncio.ensure_future(asyncio.wait(waiting))
            abandoned = asyncio.ensure_future(self._abandoned.wait())
            try:
                await asyncio.wait([ended, abandoned], return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                abandoned.cancel()
        return bool(tasks)

    def watch(self, job_ids: Container[str] | None = None) -> None:
        """See to it that jobs end which were cancelled: these, or all."""
        for _, attempt in self._waiting.values():
            if attempt.limits is not None and (
                job_ids is None or attempt.claimed.job_id in job_ids
            ):
                attempt.limits.watch()

    def abandon(self, attempt: Attempt, frames: Frames) -> None:
        """Settle an attempt without its function, which goes on as an orphan in its task."""
        key = attempt.claimed.token + attempt.claimed.job_id
        task, _ = self._waiting.pop(key)
        if self._tasks.get(attempt.claimed.job_id) is task:
            del self._tasks[attempt.claimed.job_id]
        report.stuck(self._host, attempt, "loop", frames)
        self._all.discard(task)
        self._orphans[task] = attempt
        task.add_done_callback(self._orphan_ended)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  asyncio's own way to say so
        if len(self._orphans) > ORPHANS_AT_MOST:
            self._discard(next(iter(self._orphans)))
        settling = asyncio.get_running_loop().create_task(
            self._settle(attempt),
            name=f"runner settles {attempt.claimed.job_id} without its function",
        )
        self._all.add(settling)
        settling.add_done_callback(self._done)
        if self._abandoned is not None:
            self._abandoned.set()

    async def _settle(self, attempt: Attempt) -> None:
        try:
            await abandon(self._host, attempt)
        except (Exception, asyncio.CancelledError) as exc:
            self._over(attempt, exc)
            raise
        self._over(attempt, None)

    def _discard(self, orphan: asyncio.Task[None]) -> None:
        """Let no further line of an orphan run."""
        self._orphans.pop(orphan).is_discarded = True
        orphan.cancel()

    def _orphan_ended(self, task: asyncio.Task[None]) -> None:
        attempt = self._orphans.pop(task, None)
        if attempt is not None:
            logger.warning("job %s: its function has ended after all", attempt.ref)

    def _take_up(self) -> None:
        task = asyncio.get_running_loop().create_task(self._run(), name="runner jobs")
        self._taker = task
        self._all.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._all.discard(task)
        if not task.cancelled():
            task.exception()  # `over` has had it
        if task is self._taker:  # it was cancelled before it began
            self._taken()

    def _taken(self) -> None:
        """Begin another task for what a task has left."""
        self._taker = None
        if self._ready:
            self._take_up()

    async def _run(self) -> None:
        waiting = None
        try:
            waiting = self._run_until_one_waits()
        finally:
            self._taken()
        if waiting is not None:
            await self._wait_out(*waiting)

    def _run_until_one_waits(self) -> _Waiting | None:
        this_task = asyncio.current_task()
        assert this_task is not None
        ready, until = self._ready, time.monotonic() + TURN_S
        while ready:
            attempt, line = self._begin(ready.popleft())
            context = self._context.copy()
            try:
                waits_for = context.run(line.send, None)
            except StopIteration:
                self._over(attempt, None)
            except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  `over` has it
                self._over(attempt, exc)
            else:
                return attempt, line, waits_for, context
            # A job that cancelled its own task has cancelled this one: it takes no other.
            if this_task.cancelling() or time.monotonic() > until:
                break
        return None

    async def _wait_out(
        self,
        attempt: Attempt,
        line: Line,
        waits_for: Any,
        context: contextvars.Context,
    ) -> None:
        """Let a job that waits go on to its end, in this task."""
        task = asyncio.current_task()
        assert task is not None
        job_id, key = attempt.claimed.job_id, attempt.claimed.token + attempt.claimed.job_id
        task.set_name(job_id)
        self._waiting[key] = (task, attempt)
        self._tasks[job_id] = task
        try:
            await go_on(line, waits_for, context.run)
        except (Exception, asyncio.CancelledError) as exc:
            self._over(attempt, exc)
            raise
        else:
            self._over(attempt, None)
        finally:
            self._waiting.pop(key, None)
            if self._tasks.get(job_id) is task:
                del self._tasks[job_id]
