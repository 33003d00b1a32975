"""Make what is provided, for the life of a job or of the worker, and close it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runner.dependencies.declared import (
    BY_PLACE,
    Dependency,
    Provider,
    name_of,
    needs_of,
    wanted_by,
)
from runner.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

logger = logging.getLogger("runner.dependencies")

STORE = "runner:provided"
"""Where a worker's `ctx` holds what was provided for its life."""

NOT_CLOSED = "what was provided to a job that was told to end could not be closed"

CLOSE_S = 30.0
"""How long one value of the worker's may take to be closed."""
GIVE_UP_S = 1.0
"""How long one has that was cancelled then."""

overrides: dict[Provider, Provider] = {}


@contextlib.contextmanager
def overriding(providers: Mapping[Provider, Provider]) -> Iterator[None]:
    """Let other providers stand in for these, in this process, until the block ends. For tests.

    Example:
        >>> with overriding({get_pool: lambda: FakePool()}):
        ...     await report(Context({}), today)
    """
    before = dict(overrides)
    overrides.update(providers)
    try:
        yield
    finally:
        overrides.clear()
        overrides.update(before)


async def call(
    function: Callable[..., Any],
    wanted: Mapping[str, Dependency],
    ctx: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call a function with what it wants provided, but for what it is given by name."""
    failure: BaseException | None = None
    stack: contextlib.AsyncExitStack[bool] = contextlib.AsyncExitStack()
    try:
        try:
            async with stack:
                values = _Values(stack, ctx, store_of(ctx))
                try:
                    for name, dependency in wanted.items():
                        if name not in kwargs:
                            kwargs[name] = await values.get(dependency)
                    return await function(ctx, *args, **kwargs)
                except BaseException as exc:
                    failure = exc
                    raise
        except Exception:
            if not isinstance(failure, asyncio.CancelledError):
                raise
            # Whoever told the job to end hears that it did: a worker that stops hands it back.
            logger.exception(NOT_CLOSED)
        # A provider has swallowed it; it closes, and does not decide what becomes of the job.
        assert failure is not None
        raise failure
    finally:
        failure = None  # its traceback holds this frame: what the job has dropped would be kept


def store_of(ctx: Any) -> WorkersValues | None:
    """Return where a context's worker holds its values, None where there is no worker."""
    return ctx.get(STORE) if isinstance(ctx, Mapping) else None


class _Values:
    """What was provided so far in one life, closed by its stack."""

    def __init__(
        self, stack: contextlib.AsyncExitStack, ctx: Any, store: WorkersValues | None
    ) -> None:
        self._stack = stack
        self._ctx = ctx
        self._store = store
        self._made: dict[Provider, Any] = {}

    async def get(self, dependency: Dependency) -> Any:
        """Return the value; make it if it is not there yet."""
        if dependency.scope == "worker" and self._store is not None:
            return await self._store.get(dependency)
        if dependency.provider not in self._made:
            self._made[dependency.provider] = await self._make(dependency.provider)
        return self._made[dependency.provider]

    async def _make(self, provider: Provider) -> Any:
        provider = overrides.get(provider, provider)
        wanted = wanted_by(provider)
        kwargs = {name: await self.get(dependency) for name, dependency in wanted.items()}
        args = (self._ctx,) if takes_context(provider) else ()
        value = provider(*args, **kwargs)
        if (manager := async_manager(provider, value)) is not None:
            return await self._stack.enter_async_context(manager)
        if (plain := plain_manager(provider, value)) is not None:
            return self._stack.enter_context(plain)
        return await value if inspect.iscoroutine(value) else value


def async_manager(provider: Provider, value: Any) -> AbstractAsyncContextManager[Any] | None:
    """Return what enters and leaves what an async generator provides; None: it is none."""
    original = getattr(provider, "__wrapped__", None)
    if not (inspect.isasyncgenfunction(provider) or inspect.isasyncgenfunction(original)):
        return None
    # Decorated as a context manager it is one already.
    is_manager = hasattr(value, "__aenter__")
    manager: AbstractAsyncContextManager[Any] = (
        value if is_manager else contextlib.asynccontextmanager(lambda: value)()
    )
    return manager


def plain_manager(provider: Provider, value: Any) -> AbstractContextManager[Any] | None:
    """Do the same for a plain generator."""
    original = getattr(provider, "__wrapped__", None)
    if not (inspect.isgeneratorfunction(provider) or inspect.isgeneratorfunction(original)):
        return None
    is_manager = hasattr(value, "__enter__")
    manager: AbstractContextManager[Any] = (
        value if is_manager else contextlib.contextmanager(lambda: value)()
    )
    return manager


@functools.lru_cache(maxsize=1024)
def takes_context(provider: Provider) -> bool:
    """Say whether a provider wants the context."""
    needs = needs_of(provider)
    return bool(needs) and needs[0].kind in BY_PLACE


class WorkersValues:
    """What was provided for the life of one worker.

    Each value is held by a task of its own: what was entered in a task is left in that task.
    """

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self._held: dict[Provider, _Held] = {}
        self._made: list[_Held] = []  # what another one needs is made before it

    async def get(self, dependency: Dependency) -> Any:
        """Return the value; make it if it is not there yet.

        Who is cancelled meanwhile does not cancel the making: others wait for it too.
        """
        held = self._held.get(dependency.provider)
        if held is None:
            held = self._held[dependency.provider] = _Held(self._hold, dependency.provider)
        return await asyncio.shield(held.value)

    async def close(self) -> None:
        """Close all values, the last first; one that does not close does not keep the others."""
        for held in reversed(self._made):
            held.end.set()
            _, late = await asyncio.wait([held.task], timeout=CLOSE_S)
            if late:
                logger.error("%s does not end: it is cancelled", held.task.get_name())
                held.task.cancel()
                await asyncio.wait([held.task], timeout=GIVE_UP_S)
        unmade = [held.task for held in self._held.values() if held not in self._made]
        for task in unmade:
            task.cancel()
        await asyncio.gather(*unmade, return_exceptions=True)
        self._held.clear()
        self._made.clear()

    async def _hold(self, provider: Provider, held: _Held) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                values = _Values(stack, self._ctx, self)
                value = await values.get(Dependency(provider))
                self._made.append(held)
                held.value.set_result(value)
                await held.end.wait()
        except (Exception, asyncio.CancelledError) as exc:
            given_up = held.task.cancelling() > 0
            if held.value.done():
                if not given_up:
                    logger.exception("%s could not be closed", name_of(provider))
                return
            self._held.pop(provider, None)  # the next job tries again
            held.value.set_exception(_as_failure(provider, exc))
            held.value.exception()  # whoever waits has it; nobody may


def _as_failure(provider: Provider, exc: BaseException) -> Exception:
    """Return what its jobs are told: a cancellation would be taken for their own."""
    if isinstance(exc, Exception):
        return exc
    failure = TaskError(f"{name_of(provider)} waited for what was cancelled, or was itself")
    failure.__cause__ = exc
    return failure


class _Held:
    """One value of a worker's, and the task that holds it."""

    __slots__ = ("end", "task", "value")

    def __init__(
        self, hold: Callable[[Provider, _Held], Coroutine[Any, Any, None]], provider: Provider
    ) -> None:
        loop = asyncio.get_running_loop()
        self.value: asyncio.Future[Any] = loop.create_future()
        self.end = asyncio.Event()
        # Not in the context of the job that happens to want it first.
        self.task = contextvars.Context().run(
            loop.create_task, hold(provider, self), name=f"runner provides {name_of(provider)}"
        )
