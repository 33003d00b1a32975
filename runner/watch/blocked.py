"""Find what keeps the event loop from turning, while it does.

A thread asks the loop for a sign of life. Where none comes in time, the stack of the loop's thread
says what runs there. The frame of the attempt is among it, so the job is known for certain, and
nothing has to be written down while nothing blocks. Of a task that a job has made, the context says
whose it is.

What holds the GIL stops this thread as well. It runs again when that lets go, and before the loop's
thread has done anything else: so it still sees who it was.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import logs
from runner.execution import attempt as line

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from runner.execution import Attempt

MOST_FRAMES = 30
COMPUTED = 0.4
"""What part of a gap the loop's thread has computed that held the GIL for all of it. It has not
where the process was stopped, or the machine had no time for it."""
_ENGINE = str(Path(line.__file__).parent)


@dataclass(frozen=True, slots=True)
class Sight:
    """What was found on the loop's thread.

    Attributes:
        job_id: the job that runs there, or that made the task which does; "": it is no job.
        job_task: the name of its task.
        attempt: its number.
        is_made: it is not the job itself, but an asyncio task that it made.
        task: the name of the asyncio task, "" outside of any.
        stack: as in a traceback, from the job's function on, the innermost call last.
    """

    job_id: str
    job_task: str
    attempt: int
    is_made: bool
    task: str
    stack: str

    @property
    def who(self) -> str:
        """Who it is, in words."""
        job = f"job {self.job_id}:{self.job_task}"
        if not self.task:
            return "a callback, which is no asyncio task,"
        if not self.job_id:
            return f"asyncio task {self.task!r}, which is no job,"
        return f"asyncio task {self.task!r} of {job}" if self.is_made else job


class BlockedLoop:
    """Asks a loop for signs of life, from another thread.

    Args:
        loop: the loop, which runs in the thread `thread`.
        after_s: it counts as blocked when it has not turned for so long.
        blocked: called from the watching thread, once for each time, with the seconds so far.
        over: called in the loop's thread with the seconds in all, when it was blocked.
        stood_still: called from the watching thread with the seconds for which neither thread ran,
            and the CPU seconds that the process has used in them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        thread: int,
        after_s: float,
        *,
        blocked: Callable[[float, Sight], None],
        over: Callable[[float], None],
        stood_still: Callable[[float, float], None],
    ) -> None:
        self._loop = loop
        self._thread = thread
        self._after_s = after_s
        self._blocked = blocked
        self._over = over
        self._stood_still = stood_still
        self._asked_at: float | None = None
        self._missed_s = 0.0
        self._told = self._is_told = False  # and: the telling has ended
        self._freed_s: float | None = None
        self._clock = _clock_of(thread)
        self._looked_at = time.monotonic()
        self._cpu_s, self._loops_s = time.process_time(), self._loops_cpu_s()

    def look(self) -> None:
        """Ask, or see whether the loop has answered; called a few times within `after_s`."""
        now, cpu_s, loops_s = time.monotonic(), time.process_time(), self._loops_cpu_s()
        gap_s, used_s = now - self._looked_at, cpu_s - self._cpu_s
        computed_s = loops_s - self._loops_s
        self._looked_at, self._cpu_s, self._loops_s = now, cpu_s, loops_s
        asked_at = self._asked_at
        if gap_s >= self._after_s:
            if not self._told and computed_s >= gap_s * COMPUTED:
                # It held the GIL, and has let go of it a moment ago: look before anything else.
                seen = _Seen.of(self._thread, self._loop)
                self._told = True
                self._tell(self._ask(now - gap_s) if asked_at is None else asked_at, seen)
                return
            # This thread did not run either: what the loop has not done since is not its fault.
            self._stood_still(gap_s, used_s)
            self._missed_s = 0.0
            return
        # Where the machine is short of time, a long gap says nothing of the loop.
        self._missed_s += min(gap_s, self._after_s / 2)
        if asked_at is None:
            self._ask(now)
        elif not self._told and self._missed_s >= self._after_s:
            seen = _Seen.of(self._thread, self._loop)
            if self._asked_at == asked_at:  # or it turned just now, and this is something else
                self._tell(asked_at, seen)

    def _ask(self, now: float) -> float:
        self._asked_at, self._missed_s = now, 0.0
        self._loop.call_soon_threadsafe(self._answer)
        return now

    def _tell(self, asked_at: float, seen: _Seen) -> None:
        self._told = True
        self._blocked(time.monotonic() - asked_at, seen.sight())
        self._is_told = True
        if self._freed_s is not None:
            self._loop.call_soon_threadsafe(self._tell_over)

    def _answer(self) -> None:
        asked_at, self._asked_at = self._asked_at, None
        if self._told and asked_at is not None:
            self._freed_s = time.monotonic() - asked_at
            if self._is_told:
                self._tell_over()

    def _tell_over(self) -> None:
        """Say that it turns again, behind that it did not; in the loop's thread, once."""
        if self._freed_s is None:
            return
        freed_s, self._freed_s = self._freed_s, None
        self._told = self._is_told = False
        self._over(freed_s)

    def _loops_cpu_s(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # the thread has ended
            return 0.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """What there is on a thread at one moment, before anything is made of it: it may go on."""

    task: asyncio.Task[Any] | None
    frames: list[tuple[FrameType, int]]
    attempt: Attempt | None
    function: int  # where, in `frames`, the job's own begin

    @classmethod
    def of(cls, thread: int, loop: asyncio.AbstractEventLoop) -> _Seen:
        task, attempt, function = asyncio.current_task(loop), None, 0
        frames = _frames(sys._current_frames().get(thread))  # noqa: SLF001  there is no other way
        for index, (frame, _) in enumerate(frames):
            if frame.f_code in _LINE:
                attempt, function = frame.f_locals.get("attempt"), index + 1
        return cls(task, frames, attempt, function)

    def sight(self) -> Sight:
        """Say what that is."""
        inner = self.frames[self.function :]
        if self.attempt is not None:
            inner = list(itertools.dropwhile(_is_engine, inner)) or inner
        summary = traceback.StackSummary.extract(iter(inner), limit=-MOST_FRAMES)
        name = "" if self.task is None else self.task.get_name()
        job_id, job_task, number = self._job()
        is_made = self.attempt is None and bool(job_id)
        return Sight(job_id, job_task, number, is_made, name, "".join(summary.format()))

    def _job(self) -> tuple[str, str, int]:
        if self.attempt is not None:
            return self.attempt.claimed.job_id, self.attempt.record.task, self.attempt.number
        context = None if self.task is None else _context_of(self.task)
        return ("", "", 0) if context is None else logs.speaker_in(context)


_LINE = (line.run.__code__, line.perform.__code__)


def sight(thread: int, loop: asyncio.AbstractEventLoop) -> Sight:
    """Say what runs on a loop's thread at this moment."""
    return _Seen.of(thread, loop).sight()


def _context_of(task: asyncio.Task[Any]) -> contextvars.Context | None:
    """Return the context that a task runs in."""
    if sys.version_info >= (3, 12):
        return task.get_context()
    # Until 3.12 there is no other way to it; a task of C holds one, and few other objects.
    held = gc.get_referents(task)
    return next((one for one in held if isinstance(one, contextvars.Context)), None)


def _clock_of(thread: int) -> int:
    """Return the clock of the CPU time that a thread has used; where there is none, of all."""
    if hasattr(time, "pthread_getcpuclockid"):
        return time.pthread_getcpuclockid(thread)
    return time.CLOCK_PROCESS_CPUTIME_ID


def _is_engine(place: tuple[FrameType, int]) -> bool:
    return place[0].f_code.co_filename.startswith(_ENGINE)


def _frames(frame: FrameType | None) -> list[tuple[FrameType, int]]:
    frames = []
    while frame is not None:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    return frames[::-1]
