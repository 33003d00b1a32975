"""Find the asyncio tasks that a job has left behind when its function ended.

A task belongs to the job in whose context it was made, also when another task of that job made it.
The loop's task factory notes that, and is set only where this is switched on. What a library of the
worker itself starts in a job's context (a reader of a connection, say) is not the job's.
"""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.middleware import Middleware

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.middleware import Execute, JobCall

_OURS = str(Path(__file__).parents[1])
_tasks_of_job: ContextVar[weakref.WeakSet[asyncio.Task[Any]] | None] = ContextVar(
    "runner_tasks_of_job", default=None
)


class Leftovers(Middleware):
    """Looks after each job for tasks that it has made and that go on.

    A task that was told to stop (`Task.cancel`) and is about to is not one of them.

    Args:
        cancels: cancel them.
        left: called with the job, and the tasks.
    """

    def __init__(
        self, *, cancels: bool, left: Callable[[JobCall, list[asyncio.Task[Any]]], None]
    ) -> None:
        self._cancels = cancels
        self._left = left
        self._noting: _Noting | None = None

    def install(self) -> None:
        """Let the running loop note who makes which task. Idempotent."""
        if self._noting is not None:
            return
        loop = asyncio.get_running_loop()
        noting = loop.get_task_factory()
        if not isinstance(noting, _Noting):
            noting = _Noting(loop, noting)
            loop.set_task_factory(noting)
        noting.users += 1
        self._noting = noting

    def remove(self) -> None:
        """Give the loop its own task factory back, behind its last worker. Idempotent."""
        noting, self._noting = self._noting, None
        if noting is None:
            return
        noting.users -= 1
        # Somebody may have put another in front of it: then it stays, and costs little.
        current: Any = noting.loop.get_task_factory()
        if not noting.users and current is noting:
            noting.loop.set_task_factory(noting.before)

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        """Run the job, and see what is left of it."""
        tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        _tasks_of_job.set(tasks)
        try:
            return await proceed(job)
        finally:
            _tasks_of_job.set(None)
            left = [task for task in tasks if not task.done() and not task.cancelling()]
            if left:
                if self._cancels:
                    for task in left:
                        task.cancel()
                self._left(job, left)


class _Noting:
    """Makes the tasks of a loop, and notes whose they are."""

    def __init__(self, loop: asyncio.AbstractEventLoop, before: Any) -> None:
        self.loop = loop
        self.before = before
        self.users = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, work: Any, **given: Any) -> Any:
        if self.before is None:
            task: Any = asyncio.Task(work, loop=loop, **given)
        else:
            task = self.before(loop, work, **given)
        tasks = _tasks_of_job.get()
        if tasks is not None and not _is_ours(work):
            tasks.add(task)
        return task


def _is_ours(work: Any) -> bool:
    code = getattr(work, "cr_code", None)
    return code is not None and code.co_filename.startswith(_OURS)
