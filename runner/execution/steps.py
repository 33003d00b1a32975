"""Run a coroutine from inside a task, step by step.

A job that never waits needs no task of its own: it takes one step, and is over. Only its first
step is taken by hand. From there on `go_on` passes what the coroutine waits for on to the task
around it, and what the task is sent, a cancellation for example, back to the coroutine.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator


class Watch(Protocol):
    """What stands between a task and the coroutine that it drives.

    Attributes:
        softening: a cancellation of its own is on its way.
    """

    softening: bool

    def thrown(self, exc: BaseException) -> BaseException:
        """Return what the coroutine is thrown in the place of what its task was thrown."""
        ...

    def passed(self) -> None:
        """Hear that its cancellation was swallowed by what the coroutine waited for."""
        ...


@types.coroutine
def go_on(
    coroutine: Coroutine[Any, Any, Any],
    waits_for: Any,
    run: Callable[..., Any] | None = None,
    watch: Watch | None = None,
) -> Generator[Any, Any, Any]:
    """Await a coroutine whose first step was taken by hand, and return its value.

    Args:
        coroutine: it has begun, and is not over.
        waits_for: what its first step came back with.
        run: calls each of its steps; the `run` of a `contextvars.Context`.
        watch: decides what the coroutine is thrown.
    """
    while True:
        step: Callable[[Any], Any]
        try:
            given = yield waits_for
        except GeneratorExit:
            if run is None:
                coroutine.close()
            else:
                run(coroutine.close)
            raise
        except BaseException as exc:  # noqa: BLE001  all that is thrown in goes to the coroutine
            step, given = coroutine.throw, exc if watch is None else watch.thrown(exc)
        else:
            step = coroutine.send
            if watch is not None and watch.softening:
                watch.passed()
        try:
            waits_for = step(given) if run is None else run(step, given)
        except StopIteration as stop:
            return stop.value


def as_coroutine(awaitable: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    """Return something whose steps can be taken: most often what was given."""
    if isinstance(awaitable, types.CoroutineType):
        return awaitable
    return _awaited(awaitable)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
