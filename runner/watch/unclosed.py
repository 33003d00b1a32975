"""Find the sockets and connections that a job has dropped without closing them.

Python warns when an object that holds a descriptor is destroyed unclosed: a socket, a file, a
transport of asyncio or uvloop, a connection of asyncpg or redis-py. Such a thing is lost for
certain: nobody holds it. Where it is destroyed in the context of a job, as it is when a function's
variables go with its end, it is that job's. What the garbage collector finds later, in whatever job
runs by then, is told without one. What is still held, by a pool or in a global, is not seen here.
"""

from __future__ import annotations

import gc
import warnings
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from runner.middleware import Middleware

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.middleware import Execute, JobCall

    Left = Callable[["JobCall | None", str], None]

_FILTER: Any = ("always", None, ResourceWarning, None, 0)

_job: ContextVar[tuple[Left, JobCall] | None] = ContextVar("runner_job", default=None)


class Unclosed(Middleware):
    """Hears Python's warnings of what is destroyed unclosed, in this process.

    Args:
        left: called with the job, None when it is not known, and what Python says. It may be
            called at any moment of any thread.
    """

    def __init__(self, left: Left) -> None:
        self._left = left

    def install(self) -> None:
        """Begin to hear them. Idempotent."""
        if self._left not in _hearing.listeners:
            _hearing.begin(self._left)

    def remove(self) -> None:
        """Let Python do with them as before, behind the last worker. Idempotent."""
        if self._left in _hearing.listeners:
            _hearing.end(self._left)

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        """Run the job, and let what is destroyed meanwhile be its own."""
        _job.set((self._left, job))
        try:
            return await proceed(job)
        finally:
            _job.set(None)


class _Hearing:
    """What hears the warnings of this process, for all of its workers."""

    def __init__(self) -> None:
        self.listeners: list[Left] = []
        self._show: Any = None
        self._collecting = False

    def begin(self, left: Left) -> None:
        self.listeners.append(left)
        if len(self.listeners) == 1:
            if warnings.showwarning != self._hear:  # else somebody has put it back
                self._show = warnings.showwarning
                warnings.showwarning = self._hear
            warnings.filters.insert(0, _FILTER)  # type: ignore[attr-defined]
            gc.callbacks.append(self._note_collection)

    def end(self, left: Left) -> None:
        self.listeners.remove(left)
        if self.listeners:
            return
        if warnings.showwarning == self._hear:  # or somebody has put another in front of it
            warnings.showwarning = self._show
        if _FILTER in warnings.filters:
            warnings.filters.remove(_FILTER)  # type: ignore[attr-defined]
        gc.callbacks.remove(self._note_collection)

    def _hear(
        self,
        message: Warning | str,
        category: type[Warning],
        *place: Any,
        **more: Any,
    ) -> None:
        listeners = self.listeners
        if not (listeners and issubclass(category, ResourceWarning)):
            self._show(message, category, *place, **more)
            return
        owner = None if self._collecting else _job.get()
        if owner is None:
            listeners[0](None, str(message))  # whose worker's is not known either
        else:
            left, job = owner
            left(job, str(message))

    def _note_collection(self, phase: str, _info: dict[str, int]) -> None:
        self._collecting = phase == "start"


_hearing = _Hearing()
