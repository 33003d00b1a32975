"""Give a task's function what it needs, for the job's life or the worker's.

A parameter that is provided is no argument: nobody passes it when a job is enqueued. It is made
when the function is called, by its provider: a plain or async function, or one that yields the
value once and cleans up behind it. What the providers of a job have opened is closed in reverse
order when its function ends, also by a cancellation. What lives as long as the worker is made when
the first job wants it, and held by a task of its own, which enters and leaves it.

Around a function that runs in a thread its plain providers run in that thread, and what is async
runs in the event loop, where a task of its own holds it. So nothing is closed under a function that
goes on though its job has ended.
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
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from runner.arguments import hints_of
from runner.errors import SettingsError, TaskError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

T = TypeVar("T")

logger = logging.getLogger("runner.dependencies")

Scope = Literal["job", "worker"]
Provider = Callable[..., Any]

STORE = "runner:provided"
"""Where a worker's `ctx` holds what was provided for its life."""

CLOSE_S = 30.0
"""How long one value of the worker's may take to be closed."""
GIVE_UP_S = 1.0
"""How long one has that was cancelled then."""

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
    try:
        hash(provider)
    except TypeError:
        raise SettingsError(
            f"{provider!r} has no hash, so it cannot be told apart from others: give Depends a "
            "function, or a method of it"
        ) from None
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
    hints = hints_of(_annotated(function))
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


def _annotated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what bears the annotations of what can be called."""
    if isinstance(function, functools.partial):
        return _annotated(function.func)
    if isinstance(function, type):
        init: Callable[..., Any] = inspect.getattr_static(function, "__init__")
        return init
    is_object = not inspect.isroutine(function) and not hasattr(function, "__annotations__")
    return type(function).__call__ if is_object else function


def _check_places(function: Callable[..., Any], found: Mapping[str, Dependency]) -> None:
    behind: str | None = None
    context, *parameters = inspect.signature(function).parameters.values()
    if context.name in found:
        raise SettingsError(
            f"task {function.__qualname__!r}: the first parameter is the context, and "
            f"{context.name!r} is provided: put one in front of it"
        )
    for parameter in parameters:
        if parameter.kind in _BY_NAME:
            return
        if parameter.name in found:
            behind = parameter.name
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                raise SettingsError(
                    f"task {function.__qualname__!r}: {behind!r} is provided by its name, so it "
                    "cannot stand before a /"
                )
        elif behind is not None:
            raise SettingsError(
                f"task {function.__qualname__!r}: {behind!r} is provided, so it must stand behind "
                f"{parameter.name!r}, or behind a *"
            )


def _check_scopes(dependency: Dependency, above: tuple[Dependency, ...]) -> None:
    if any(other.provider is dependency.provider for other in above):
        names = " -> ".join(_name(other.provider) for other in (*above, dependency))
        raise SettingsError(f"these providers need each other: {names}")
    _check_takes(dependency.provider)
    for other in _wanted(dependency.provider).values():
        if dependency.scope == "worker" and other.scope == "job":
            raise SettingsError(
                f"{_name(dependency.provider)} lives as long as the worker, but needs "
                f"{_name(other.provider)}, which lives as long as a job"
            )
        _check_scopes(other, (*above, dependency))


def _check_takes(provider: Provider) -> None:
    """Refuse what wants more than the context, and what is provided itself."""
    needs = _needs(provider)
    if needs and needs[0].kind in _BY_PLACE:
        needs = needs[1:]
    if needs:
        raise SettingsError(
            f"{_name(provider)} takes nothing or the context, but needs {needs[0].name!r}: give "
            "it a default, or let it be provided by Depends"
        )


def _needs(provider: Provider) -> list[inspect.Parameter]:
    """Return the parameters that have no default, and are not provided."""
    try:
        parameters = inspect.signature(provider).parameters.values()
    except (TypeError, ValueError):
        return []
    wanted = _wanted(provider)
    return [
        parameter
        for parameter in parameters
        if parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        and parameter.default is inspect.Parameter.empty
        and parameter.name not in wanted
    ]


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
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
    failure: BaseException | None = None
    stack: contextlib.AsyncExitStack[bool] = contextlib.AsyncExitStack()
    async with stack:
        values = _Values(stack, ctx, _store_of(ctx))
        try:
            for name, dependency in wanted.items():
                if name not in kwargs:
                    kwargs[name] = await values.get(dependency)
            return await function(ctx, *args, **kwargs)
        except BaseException as exc:
            failure = exc
            raise
    # A provider has swallowed it; it closes, and does not decide what becomes of the job.
    assert failure is not None
    raise failure


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
    with stack:
        values = _ThreadsValues(stack, ctx, _store_of(ctx), loop)
        try:
            for name, dependency in wanted.items():
                if name not in kwargs:
                    kwargs[name] = values.get(dependency)
            return function(ctx, *args, **kwargs)
        except BaseException as exc:
            failure = exc
            raise
    assert failure is not None
    raise failure


def _store_of(ctx: Any) -> WorkersValues | None:
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
        provider = _overrides.get(provider, provider)
        wanted = _wanted(provider)
        kwargs = {name: await self.get(dependency) for name, dependency in wanted.items()}
        args = (self._ctx,) if _takes_context(provider) else ()
        value = provider(*args, **kwargs)
        if (manager := _async_manager(provider, value)) is not None:
            return await self._stack.enter_async_context(manager)
        if (plain := _manager(provider, value)) is not None:
            return self._stack.enter_context(plain)
        return await value if inspect.iscoroutine(value) else value


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
            self._made[provider] = self._make(_overrides.get(provider, provider))
        return self._made[provider]

    def _make(self, provider: Provider) -> Any:
        kwargs = {name: self.get(dependency) for name, dependency in _wanted(provider).items()}
        args = (self._ctx,) if _takes_context(provider) else ()
        value = provider(*args, **kwargs)
        if (manager := _async_manager(provider, value)) is not None:
            return self._stack.enter_context(_Lent(manager, self._loop_for(provider)))
        if (plain := _manager(provider, value)) is not None:
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
                f"{_name(provider)} is async, and there is no worker whose event loop would run "
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


def _async_manager(provider: Provider, value: Any) -> AbstractAsyncContextManager[Any] | None:
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


def _manager(provider: Provider, value: Any) -> AbstractContextManager[Any] | None:
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
def _takes_context(provider: Provider) -> bool:
    needs = _needs(provider)
    return bool(needs) and needs[0].kind in _BY_PLACE


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
                    logger.exception("%s could not be closed", _name(provider))
                return
            self._held.pop(provider, None)  # the next job tries again
            held.value.set_exception(_as_failure(provider, exc))
            held.value.exception()  # whoever waits has it; nobody may


def _as_failure(provider: Provider, exc: BaseException) -> Exception:
    """Return what its jobs are told: a cancellation would be taken for their own."""
    if isinstance(exc, Exception):
        return exc
    failure = TaskError(f"{_name(provider)} waited for what was cancelled, or was itself")
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
            loop.create_task, hold(provider, self), name=f"runner provides {_name(provider)}"
        )


__all__ = [
    "Dependency",
    "Depends",
    "WorkersValues",
    "call",
    "call_in_thread",
    "dependencies_of",
    "overriding",
]
