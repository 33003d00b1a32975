"""Say which parameters of a task's function are provided, and by what."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from runner.arguments import hints_of
from runner.errors import SettingsError

Scope = Literal["job", "worker"]
Provider = Callable[..., Any]


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


def dependencies_of(function: Callable[..., Any]) -> dict[str, Dependency]:
    """Return what a task's function wants provided, by parameter.

    Raises:
        SettingsError: such a parameter stands before one that is an argument, or what lives as
            long as the worker needs what lives as long as a job.
    """
    found = dict(wanted_by(function))
    if found:
        _check_places(function, found)
        for dependency in found.values():
            _check_scopes(dependency, ())
    return found


@functools.lru_cache(maxsize=1024)
def wanted_by(function: Callable[..., Any]) -> dict[str, Dependency]:
    """Return what a function, or a provider, wants provided, by parameter."""
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
                f"{name_of(function)}: the annotation of {parameter.name!r} cannot be resolved "
                f"where the function is defined; import what it names, or write = Depends(...)"
            )
    return found


def _annotated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what bears the annotations of what can be called."""
    if isinstance(function, functools.partial):
        return _annotated(function.func)
    if isinstance(function, type):
        init: Callable[..., Any] = inspect.getattr_static(function, "__init__")
        return init
    # What wraps a function has annotations of its own; an object has at most those of its class.
    has_own = "__annotations__" in getattr(function, "__dict__", {})
    return function if inspect.isroutine(function) or has_own else type(function).__call__


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
        names = " -> ".join(name_of(other.provider) for other in (*above, dependency))
        raise SettingsError(f"these providers need each other: {names}")
    _check_takes(dependency.provider)
    for other in wanted_by(dependency.provider).values():
        if dependency.scope == "worker" and other.scope == "job":
            raise SettingsError(
                f"{name_of(dependency.provider)} lives as long as the worker, but needs "
                f"{name_of(other.provider)}, which lives as long as a job"
            )
        _check_scopes(other, (*above, dependency))


def _check_takes(provider: Provider) -> None:
    """Refuse what wants more than the context, and what is provided itself."""
    needs = needs_of(provider)
    if needs and needs[0].kind in BY_PLACE:
        needs = needs[1:]
    if needs:
        raise SettingsError(
            f"{name_of(provider)} takes nothing or the context, but needs {needs[0].name!r}: give "
            "it a default, or let it be provided by Depends"
        )


def needs_of(provider: Provider) -> list[inspect.Parameter]:
    """Return the parameters that have no default, and are not provided."""
    try:
        parameters = inspect.signature(provider).parameters.values()
    except (TypeError, ValueError):
        return []
    wanted = wanted_by(provider)
    return [
        parameter
        for parameter in parameters
        if parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        and parameter.default is inspect.Parameter.empty
        and parameter.name not in wanted
    ]


BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


def name_of(provider: Provider) -> str:
    """Return what a provider is called."""
    return str(getattr(provider, "__qualname__", repr(provider)))
