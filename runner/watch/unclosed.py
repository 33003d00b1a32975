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

_FILTER: Any = ("always", None, ResourceWarning, None, 0)

_job: ContextVar[JobCall | None] = ContextVar("runner_job", default=None)


class Unclosed(Middleware):
    """Hears Python's warnings of what is destroyed unclosed, in this process.

    Args:
        left: called with the job, None when it is not known, and what Python says. It may be
            called at any moment of any thread.
    """

    def __init__(self, left: Callable[[JobCall | None, str], None]) -> None:
        self._left = left
        self._show: Any = None
        self._collecting = False

    def install(self) -> None:
        """Begin to hear them. Idempotent."""
        if self._show is None:
            self._show = warnings.showwarning
            warnings.showwarning = self._hear
            warnings.filters.insert(0, _FILTER)  # type: ignore[attr-defined]
            gc.callbacks.append(self._note_collection)

    def remove(self) -> None:
        """Let Python do with them as before. Idempotent."""
        if self._show is not None:
            if warnings.showwarning == self._hear:
                warnings.showwarning = self._show
            if _FILTER in warnings.filters:
                warnings.filters.remove(_FILTER)  # type: ignore[attr-defined]
            gc.callbacks.remove(self._note_collection)
            self._show = None

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        """Run the job, and let what is destroyed meanwhile be its own."""
        _job.set(job)
        try:
            return await proceed(job)
        finally:
            _job.set(None)

    def _hear(
        self,
        message: Warning | str,
        category: type[Warning],
        *place: Any,
        **more: Any,
    ) -> None:
        if not issubclass(category, ResourceWarning):
            self._show(message, category, *place, **more)
            return
        self._left(None if self._collecting else _job.get(), str(message))

    def _note_collection(self, phase: str, _info: dict[str, int]) -> None:
        self._collecting = phase == "start"
