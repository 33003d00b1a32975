"""Run a coroutine from inside a task, step by step.

A job that never waits needs no task of its own: it takes one step, and is over. Only its first
step is taken by hand. From there on `go_on` passes what the coroutine waits for on to the task
around it, and what the task is sent, a cancellation for example, back to the coroutine.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator


@types.coroutine
def go_on(
    coroutine: Coroutine[Any, Any, Any],
    waits_for: Any,
    run: Callable[..., Any] | None = None,
) -> Generator[Any, Any, Any]:
    """Await a coroutine whose first step was taken by hand, and return its value.

    Args:
        coroutine: it has begun, and is not over.
        waits_for: what its first step came back with.
        run: calls each of its steps; the `run` of a `contextvars.Context`.
    """
    while True:
        step: Callable[[Any], Any]
        try:
            given = yield waits_for
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as exc:  # noqa: BLE001  all that is thrown in goes to the coroutine
            step, given = coroutine.throw, exc
        else:
            step = coroutine.send
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
