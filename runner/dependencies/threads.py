"""Provide for a function that runs in a thread: there what is plain, in the loop what is async."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from runner.dependencies.declared import Dependency, Provider, name_of, wanted_by
from runner.dependencies.values import (
    NOT_CLOSED,
    WorkersValues,
    async_manager,
    overrides,
    plain_manager,
    store_of,
    takes_context,
)
from runner.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")

logger = logging.getLogger("runner.dependencies")


class Loop(Protocol):
    """The event loop, seen from the thread of a job."""

    def run(self, coroutine: Coroutine[Any, Any, T], /) -> T:
        """Run a coroutine there, unless the job is to end."""
        ...

    def finish(self, coroutine: Coroutine[Any, Any, T], /) -> T:
        """Run a coroutine there, also when the job is to end."""
        ...


def call_in_thread(
    function: Callable[..., Any],
    wanted: Mapping[str, Dependency],
    ctx: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    loop: Loop | None = None,
) -> Any:
    """Do the same with a plain function, in its thread; without a loop for what is not async.

    Raises:
        TaskError: a provider is async, and there is no loop.
    """
    failure: BaseException | None = None
    kwargs = dict(kwargs)  # the caller's; a middleware may proceed with them once more
    stack: contextlib.ExitStack[bool] = contextlib.ExitStack()
    try:
        try:
            with stack:
                values = _ThreadsValues(stack, ctx, store_of(ctx), loop)
                try:
                    for name, dependency in wanted.items():
                        if name not in kwargs:
                            kwargs[name] = values.get(dependency)
                    return function(ctx, *args, **kwargs)
                except BaseException as exc:
                    failure = exc
                    raise
        except Exception:
            if not isinstance(failure, asyncio.CancelledError):
                raise
            logger.exception(NOT_CLOSED)
        assert failure is not None
        raise failure
    finally:
        failure = None


class _ThreadsValues:
    """What was provided so far to a function in a thread, closed by its stack."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        ctx: Any,
        store: WorkersValues | None,
        loop: Loop | None,
    ) -> None:
        self._stack = stack
        self._ctx = ctx
        self._store = store
        self._loop = loop
        self._made: dict[Provider, Any] = {}

    def get(self, dependency: Dependency) -> Any:
        """Return the value; make it if it is not there yet."""
        provider = dependency.provider
        if dependency.scope == "worker" and self._store is not None:
            return self._loop_for(provider).run(self._store.get(dependency))
        if provider not in self._made:
            self._made[provider] = self._make(overrides.get(provider, provider))
        return self._made[provider]

    def _make(self, provider: Provider) -> Any:
        kwargs = {name: self.get(dependency) for name, dependency in wanted_by(provider).items()}
        args = (self._ctx,) if takes_context(provider) else ()
        value = provider(*args, **kwargs)
        if (manager := async_manager(provider, value)) is not None:
            return self._stack.enter_context(_Lent(manager, self._loop_for(provider)))
        if (plain := plain_manager(provider, value)) is not None:
            return self._stack.enter_context(plain)
        if inspect.iscoroutine(value):
            try:
                loop = self._loop_for(provider)
            except TaskError:
                value.close()
                raise
            return loop.run(value)
        return value

    def _loop_for(self, provider: Provider) -> Loop:
        if self._loop is None:
            raise TaskError(
                f"{name_of(provider)} is async, and there is no worker whose event loop would run "
                "it: give the parameter, or let a plain provider stand in (overriding)"
            )
        return self._loop


class _Lent:
    """What an async context manager provides, to a thread; a task of the loop's holds it."""

    def __init__(self, manager: AbstractAsyncContextManager[Any], loop: Loop) -> None:
        self._manager = manager
        self._loop = loop
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Any:
        return self._loop.run(self._enter())

    def __exit__(self, _kind: object, exc: BaseException | None, _traceback: object) -> None:
        self._loop.finish(self._leave(exc))

    async def _enter(self) -> Any:
        loop = asyncio.get_running_loop()
        self._value: asyncio.Future[Any] = loop.create_future()
        self._end: asyncio.Future[BaseException | None] = loop.create_future()
        self._task = loop.create_task(self._hold(), name="runner provides to a thread")
        try:
            await asyncio.wait([self._task, self._value], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            raise
        if not self._value.done():
            await self._task  # it raises
        return self._value.result()

    async def _leave(self, exc: BaseException | None) -> None:
        assert self._task is not None
        self._end.set_result(exc)
        await self._task

    async def _hold(self) -> None:
        value = await self._manager.__aenter__()
        self._value.set_result(value)
        exc = await self._end
        if exc is None:
            await self._manager.__aexit__(None, None, None)
        else:
            await self._manager.__aexit__(type(exc), exc, exc.__traceback__)
