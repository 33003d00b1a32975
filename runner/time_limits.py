"""What a task declares about where it runs and for how long: checked where it is declared."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from runner.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

Executor: TypeAlias = Literal["loop", "thread", "process"]
"""Where the function of a task runs."""

EXECUTORS = ("loop", "thread", "process")


def executor_of(name: str, function: Callable[..., Any], executor: Executor | None) -> Executor:
    """Return where a function runs: the event loop if it is async, a thread if it is not.

    Raises:
        SettingsError: it cannot run there, or is no function that returns a value.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise SettingsError(f"task {name!r} is a generator: a task returns a value, or awaits")
    is_async = inspect.iscoroutinefunction(function)
    if not is_async and not inspect.isfunction(function):
        raise SettingsError(f"task {name!r} must be a function, not {type(function).__name__}")
    if executor is None:
        return "loop" if is_async else "thread"
    if is_async and executor == "thread":
        raise SettingsError(
            f'task {name!r} is async, so it runs in the event loop, or with executor="process"',
        )
    if not is_async and executor == "loop":
        raise SettingsError(
            f"task {name!r} is not async and would block the event loop: "
            f'leave executor out for a thread, or say "process"',
        )
    if executor == "process" and "<" in function.__qualname__:
        raise SettingsError(
            f"task {name!r} is to run in a process, which finds it by its module and name: "
            f"declare it at the top of a module",
        )
    return executor


def check_limits(name: str, *, timeout_s: float | None, soft_timeout_s: float | None) -> None:
    """Raise `SettingsError` when the soft limit leaves no time before the hard one."""
    if timeout_s is None or soft_timeout_s is None or soft_timeout_s < timeout_s:
        return
    raise SettingsError(
        f"task {name!r}: soft_timeout is {soft_timeout_s:g} s, but must be less than "
        f"its timeout, {timeout_s:g} s: between the two it tidies up",
    )


__all__ = ["EXECUTORS", "Executor", "check_limits", "executor_of"]
