"""The time limits of a running function, and what becomes of a job that does not heed them.

    soft limit ──▶ SoftTimeLimit inside the function, once
    hard limit, abort, lost lease, stop ──▶ cancelled ──grace──▶ cancelled again, and given up

A function in the event loop that still waits a grace after its cancellation is an orphan: its
job is settled without it (`execution.abandon`), and what it does from then on counts for nothing.
"""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Any

from runner import failures
from runner.errors import SoftTimeLimit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from runner.execution.records import Attempt, Frames, Host

LOOK_S = 0.1
LOOKS_AFTER_A_GAP = 50
"""For how long a time limit waits for the lease thread after the process was stopped: 5 s."""


class SoftCancellation:
    """Turns a cancellation for the soft limit into `SoftTimeLimit`, on its way to a function.

    What the function waits for is cancelled as ever. It is the `Watch` of `execution.go_on`.

    Attributes:
        softening: the task was cancelled for the soft limit, and the function not yet told.
    """

    __slots__ = ("loop", "soft", "softening", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.loop = task.get_loop()
        self.soft: asyncio.TimerHandle | None = None
        self.softening = False

    def soften(self) -> None:
        """Cancel the task for the soft limit, unless somebody else is about to."""
        if self.task.cancelling():
            self._soften_later()
            return
        self.softening = True
        self.task.cancel()

    def thrown(self, exc: BaseException) -> BaseException:
        """Return what the function is thrown in the place of what its task was thrown."""
        if not self.softening:
            return exc
        self.softening = False
        others = self.task.uncancel()
        if others or not isinstance(exc, asyncio.CancelledError):
            # Another cancellation came in the same moment, and goes first.
            self._soften_later()
            return exc
        return SoftTimeLimit()

    def passed(self) -> None:
        """Try again later: what the function waited for swallowed the cancellation."""
        self.softening = False
        self.task.uncancel()
        self._soften_later()

    def _soften_later(self) -> None:
        self.soft = self.loop.call_later(LOOK_S, self.soften)


class Limits(SoftCancellation):
    """The time limits of one attempt, from the call of its function on.

    At the hard limit the job's task is cancelled, and `Attempt.timed_out` says why; what
    happens at the soft one depends on where the function runs.
    """

    __slots__ = ("attempt", "hard", "host")

    def __init__(self, host: Host, attempt: Attempt, task: asyncio.Task[Any]) -> None:
        super().__init__(task)
        self.host = host
        self.attempt = attempt
        self.hard: asyncio.TimerHandle | None = None

    def start(self, timeout_s: float | None) -> None:
        """Set the clocks going."""
        if timeout_s is not None:
            self.hard = self.loop.call_later(timeout_s, self._overrun, LOOKS_AFTER_A_GAP)
        if self.attempt.task is not None:
            soft_s = self.attempt.task.task_options.soft_timeout
            if soft_s is not None:
                self.soft = self.loop.call_later(soft_s, self.soften)

    def stop(self) -> None:
        """Stop the clocks. Idempotent."""
        if self.hard is not None:
            self.hard.cancel()
        if self.soft is not None:
            self.soft.cancel()

    def watch(self) -> None:
        """See to it that the job ends, now that it was cancelled."""

    def frames(self) -> Frames:
        """Return where the function is, the innermost last; nothing where that is not known."""
        return []

    def _overrun(self, patience: int) -> None:
        if patience and self.host.leases_are_overdue():
            # The process was stopped for a while. First the leases: the job may be lost.
            self.hard = self.loop.call_later(LOOK_S, self._overrun, patience - 1)
            return
        self.attempt.timed_out = True
        self.task.cancel()
        self.watch()


class LoopLimits(Limits):
    """The time limits of a coroutine that the job's own task drives."""

    __slots__ = ("_coroutine", "_grace")

    def __init__(
        self,
        host: Host,
        attempt: Attempt,
        task: asyncio.Task[Any],
        coroutine: Any,
    ) -> None:
        super().__init__(host, attempt, task)
        self._coroutine = coroutine
        self._grace: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Stop the clocks. Idempotent."""
        super().stop()
        if self._grace is not None:
            self._grace.cancel()

    def thrown(self, exc: BaseException) -> BaseException:
        """Return what the function is thrown in the place of what its task was thrown."""
        if self.attempt.is_discarded:
            self._coroutine.close()  # RuntimeError when it will not: no line of it runs any more
            raise exc
        given = super().thrown(exc)
        if given is not exc:
            self.attempt.softened = True
        return given

    def frames(self) -> Frames:
        """Return where the function waits."""
        return list(frames_of(self._coroutine))

    def watch(self) -> None:
        """Give the job up unless it ends within the grace, now that it was cancelled."""
        if self._grace is None:
            self._grace = self.loop.call_later(self.host.cancel_grace_s, self._give_up)

    def _give_up(self) -> None:
        frames = self.frames()
        self.attempt.is_abandoned = self.attempt.goes_on = True
        if self.attempt.context is not None:
            self.attempt.context.end()
        self.stop()
        self.task.cancel()
        self.host.abandon(self.attempt, frames)


def frames_of(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Give the frames of a coroutine that waits, with their lines, the innermost last."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            return
        yield frame, frame.f_lineno
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)


def frames_under(frame: FrameType | None) -> list[tuple[FrameType, int]]:
    """Return a running thread's frames, with their lines, the innermost last."""
    return [] if frame is None else list(traceback.walk_stack(frame))[::-1]


def shown(frames: list[tuple[FrameType, int]]) -> tuple[str, str]:
    """Return where a function hangs, as "file:line in function", and its whole stack as text."""
    stack = traceback.StackSummary.extract(frames)
    if not stack:
        return "", ""
    # Where it waits in the standard library's own code says less than who waits there.
    own = [frame for frame in stack if not failures.is_standard(frame.filename)]
    last = own[-1] if own else stack[-1]
    return f"{last.filename}:{last.lineno} in {last.name}", "".join(stack.format())


def is_soft_limit(exc: BaseException) -> bool:
    """Say whether this is the soft limit, also as `asyncio.TaskGroup` wraps it."""
    if isinstance(exc, BaseExceptionGroup):
        soft, rest = exc.split(SoftTimeLimit)
        return soft is not None and (rest is None or isinstance(rest, Exception))
    return isinstance(exc, SoftTimeLimit)


__all__ = [
    "Limits",
    "LoopLimits",
    "SoftCancellation",
    "frames_of",
    "frames_under",
    "is_soft_limit",
    "shown",
]
