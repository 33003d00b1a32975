"""Give a task's function what it needs, for the job's life or the worker's.

A parameter that is provided is no argument: nobody passes it when a job is enqueued. It is made
when the function is called, by its provider: a plain or async function, or one that yields the
value once and cleans up behind it. What the providers of a job have opened is closed in reverse
order when its function ends, also by a cancellation. What lives as long as the worker is made when
the first job wants it, and held by a task of its own, which enters and leaves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runner.arguments import hints_of
from runner.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

logger = logging.getLogger("runner.dependencies")

Scope = Literal["job", "worker"]
Provider = Callable[..., Any]

STORE = "runner:provided"
"""Where a worker's `ctx` holds what was provided for its life."""

CLOSE_S = 30.0
"""How long one value of the worker's may take to be closed."""

_overrides: dict[Provider, Provider] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Dependency:
    """What `Depends` returns.

    Attributes:
        provider: makes the value.
        scope: whose life it shares.
    """

    provider: Provider
    scope: Scope = "job"


def Depends(provider: Provider, *, scope: Scope = "job") -> Any:  # noqa: N802  reads as a class
    """Let a task's parameter be provided: as its default, or within ``Annotated``.

    A provider takes nothing, or the context; its further parameters may be provided themselves. It
    is a function, an async function, or a generator (of either kind, decorated as a context
    manager or not) that yields once. Within a job, one provider makes one value.

    Args:
        provider: makes the value.
        scope: "job": made and closed for each job that wants it; "worker": made once, and
            closed when the worker ends; its provider gets the worker's ``ctx``.

    Example:
        >>> async def get_pool(ctx):
        ...     async with asyncpg.create_pool(URL) as pool:
        ...         yield pool
        >>> @task
        ... async def report(ctx, day: date, *, pool: Pool = Depends(get_pool, scope="worker")):
        ...     ...

    Raises:
        SettingsError: the provider cannot be called, or the scope is unknown.
    """
    if not callable(provider):
        raise SettingsError(f"Depends takes a function that provides the value, not {provider!r}")
    if scope not in ("job", "worker"):
        raise SettingsError(f'scope is {scope!r}, but must be "job" or "worker"')
    return Dependency(provider, scope)


@contextlib.contextmanager
def overriding(providers: Mapping[Provider, Provider]) -> Iterator[None]:
    """Let other providers stand in for these, in this process, until the block ends. For tests.

    Example:
        >>> with overriding({get_pool: lambda: FakePool()}):
        ...     await report(Context({}), today)
    """
    before = dict(_overrides)
    _overrides.update(providers)
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


def dependencies_of(function: Callable[..., Any]) -> dict[str, Dependency]:
    """Return what a task's function wants provided, by parameter.

    Raises:
        SettingsError: such a parameter stands before one that is an argument, or what lives as
            long as the worker needs what lives as long as a job.
    """
    found = dict(_wanted(function))
    if found:
        _check_places(function, found)
        for dependency in found.values():
            _check_scopes(dependency, ())
    return found


@functools.lru_cache(maxsize=1024)
def _wanted(function: Callable[..., Any]) -> dict[str, Dependency]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C: it says nothing of itself
        return {}
    hints = hints_of(function)
    found = {}
    for parameter in parameters:
        extras = getattr(hints.get(parameter.name), "__metadata__", ())
        for extra in (*extras, parameter.default):
            if isinstance(extra, Dependency):
                found[parameter.name] = extra
        if parameter.name not in found and "Depends(" in str(parameter.annotation):
            raise SettingsError(
                f"{_name(function)}: the annotation of {parameter.name!r} cannot be resolved where "
                f"the function is defined; import what it names, or write = Depends(...)"
            )
    return found


def _check_places(function: Callable[..., Any], found: Mapping[str, Dependency]) -> None:
    behind: str | None = None
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind in _BY_NAME:
            return
        if parameter.name in found:
            behind = parameter.name
        elif behind is not None:
            raise SettingsError(
                f"task {function.__qualname__!r}: {behind!r} is provided, so it must stand behind "
                f"{parameter.name!r}, or behind a *"
            )


def _check_scopes(dependency: Dependency, above: tuple[Dependency, ...]) -> None:
    if any(other.provider is dependency.provider for other in above):
        names = " -> ".join(_name(other.provider) for other in (*above, dependency))
        raise SettingsError(f"these providers need each other: {names}")
    for other in _wanted(dependency.provider).values():
        if dependency.scope == "worker" and other.scope == "job":
            raise SettingsError(
                f"{_name(dependency.provider)} lives as long as the worker, but needs "
                f"{_name(other.provider)}, which lives as long as a job"
            )
        _check_scopes(other, (*above, dependency))


_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


def _name(provider: Provider) -> str:
    return str(getattr(provider, "__qualname__", repr(provider)))


async def call(
    function: Callable[..., Any],
    wanted: Mapping[str, Dependency],
    ctx: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call a function with what it wants provided, but for what it is given by name."""
    store = ctx.get(STORE) if isinstance(ctx, Mapping) else None
    async with contextlib.AsyncExitStack() as stack:
        values = _Values(stack, ctx, store)
        for name, dependency in wanted.items():
            if name not in kwargs:
                kwargs[name] = await values.get(dependency)
        return await function(ctx, *args, **kwargs)


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
        provider = _overrides.get(provider, provider)
        wanted = _wanted(provider)
        kwargs = {name: await self.get(dependency) for name, dependency in wanted.items()}
        args = (self._ctx,) if _takes_context(provider) else ()
        original = getattr(provider, "__wrapped__", None)
        if inspect.isasyncgenfunction(original):  # it is a context manager already
            return await self._stack.enter_async_context(provider(*args, **kwargs))
        if inspect.isgeneratorfunction(original):
            return self._stack.enter_context(provider(*args, **kwargs))
        if inspect.isasyncgenfunction(provider):
            manager = contextlib.asynccontextmanager(provider)
            return await self._stack.enter_async_context(manager(*args, **kwargs))
        if inspect.isgeneratorfunction(provider):
            return self._stack.enter_context(contextlib.contextmanager(provider)(*args, **kwargs))
        value = provider(*args, **kwargs)
        return await value if inspect.iscoroutine(value) else value


@functools.lru_cache(maxsize=1024)
def _takes_context(provider: Provider) -> bool:
    wanted = _wanted(provider)
    try:
        parameters = inspect.signature(provider).parameters.values()
    except (TypeError, ValueError):
        return False
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(
        p.kind in places and p.name not in wanted and p.default is inspect.Parameter.empty
        for p in parameters
    )


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
        except Exception as exc:
            if held.value.done():
                logger.exception("%s could not be closed", _name(provider))
                return
            self._held.pop(provider, None)  # the next job tries again
            held.value.set_exception(exc)
            held.value.exception()  # whoever waits has it; nobody may
        finally:
            if not held.value.done():
                held.value.cancel()


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
            loop.create_task, hold(provider, self), name=f"runner provides {_name(provider)}"
        )


__all__ = ["Dependency", "Depends", "WorkersValues", "call", "dependencies_of", "overriding"]
