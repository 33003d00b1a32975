"""Find what keeps the event loop from turning, while it does.

A thread asks the loop for a sign of life. Where none comes in time, the stack of the loop's thread
says what runs there. The frame of the attempt is among it, so the job is known for certain, and
nothing has to be written down while nothing blocks.

What holds the GIL stops this thread as well: it says so afterwards, without a stack.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.execution import attempt as line

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from runner.execution import Attempt

MOST_FRAMES = 30
_ENGINE = str(Path(line.__file__).parent)


@dataclass(frozen=True, slots=True)
class Sight:
    """What was found on the loop's thread.

    Attributes:
        attempt: of the job that runs there; None: it is not inside a job.
        task: the name of the asyncio task, "" outside of any.
        stack: as in a traceback, from the job's function on, the innermost call last.
    """

    attempt: Attempt | None
    task: str
    stack: str


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
        self._told = False
        self._looked_at = time.monotonic()
        self._cpu_s = time.process_time()

    def look(self) -> None:
        """Ask, or see whether the loop has answered; called a few times within `after_s`."""
        now, cpu_s = time.monotonic(), time.process_time()
        gap_s, used_s = now - self._looked_at, cpu_s - self._cpu_s
        self._looked_at, self._cpu_s = now, cpu_s
        if gap_s >= self._after_s:
            # This thread did not run either: what the loop has not done since is not its fault.
            self._stood_still(gap_s, used_s)
            self._missed_s = 0.0
            return
        # Where the machine is short of time, a long gap says nothing of the loop.
        self._missed_s += min(gap_s, self._after_s / 2)
        if self._asked_at is None:
            self._asked_at, self._missed_s = now, 0.0
            self._loop.call_soon_threadsafe(self._answer)
        elif not self._told and self._missed_s >= self._after_s:
            self._told = True
            self._blocked(now - self._asked_at, sight(self._thread, self._loop))

    def _answer(self) -> None:
        asked_at, self._asked_at = self._asked_at, None
        if self._told and asked_at is not None:
            self._told = False
            self._over(time.monotonic() - asked_at)


def sight(thread: int, loop: asyncio.AbstractEventLoop) -> Sight:
    """Say what runs on a loop's thread at this moment."""
    frames = _frames(sys._current_frames().get(thread))  # noqa: SLF001  there is no other way
    attempt, inner = None, frames
    for index, frame in enumerate(frames):
        if frame.f_code is line.perform.__code__:
            attempt, inner = frame.f_locals.get("attempt"), frames[index + 1 :]
    if attempt is not None:
        inner = list(itertools.dropwhile(_is_engine, inner)) or inner
    task = asyncio.current_task(loop)
    summary = traceback.StackSummary.extract(
        ((frame, frame.f_lineno) for frame in inner), limit=-MOST_FRAMES
    )
    return Sight(attempt, "" if task is None else task.get_name(), "".join(summary.format()))


def _is_engine(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_ENGINE)


def _frames(frame: FrameType | None) -> list[FrameType]:
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]
