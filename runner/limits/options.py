"""What tasks declare of limits, and limits that several tasks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from runner.errors import LimitError
from runner.limits.bucket import Bucket
from runner.limits.running import Running, RunningLimit
from runner.limits.texts import checked_name, count_and_period
from runner.limits.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Rule: TypeAlias = Window | Bucket | Running

RATE, RUNNING = ".rate", ".running"
"""A task's own limits are named after it."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A rate that several tasks may share.

    Args:
        name: tasks with limits of one name share them, in all workers.
        rate: such as "100/m"; without `burst` no window of a minute ever holds more than 100.
        burst: the tokens of a bucket that is filled at the rate (see `Bucket`); None: a window.
        key: the parameter of the tasks whose every value has a rate of its own; None: one for all.

    Example:
        >>> mail = RateLimit("mail", "100/m")
        >>> @task(limits=[mail])
        ... async def welcome(ctx: Context, address: str) -> None: ...
        >>> @task(limits=[mail], weight=10)
        ... async def newsletter(ctx: Context, part: int) -> None: ...
    """

    name: str
    rate: str
    burst: int | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        checked_name(self.name)
        self.rule  # noqa: B018  it raises what is wrong with it

    @property
    def rule(self) -> Window | Bucket:
        """The rule."""
        return rule_of(self.rate, self.burst)


Limit: TypeAlias = RateLimit | RunningLimit


def rule_of(rate: str, burst: int | None = None) -> Window | Bucket:
    """Return a rate's rule: a window, or with `burst` a bucket; raise `LimitError`."""
    count, period_us = count_and_period(rate)
    return Window(count, period_us) if burst is None else Bucket(count, period_us, burst)


def declared(
    task: str,
    function: Callable[..., Any],
    *,
    rate: str | None,
    burst: int | None,
    weight: int | None,
    rate_key: str | None,
    max_running: int | None,
    max_running_key: str | None,
    limits: Sequence[Limit],
) -> tuple[Limit, ...]:
    """Return the limits of a task, its own ones first.

    Raises:
        LimitError: they contradict themselves, or what they name is no parameter of the function.
    """
    _check_alone(task, rate, {"burst": burst, "rate_key": rate_key}, "rate")
    _check_alone(task, max_running, {"max_running_key": max_running_key}, "max_running")
    if not isinstance(limits, list | tuple) or not all(
        isinstance(limit, RateLimit | RunningLimit) for limit in limits
    ):
        raise LimitError(f"task {task!r}: limits is a list of RateLimit and RunningLimit")
    found: list[Limit] = []
    if rate is not None:
        found.append(RateLimit(task + RATE, rate, burst, rate_key))
    if max_running is not None:
        found.append(RunningLimit(task + RUNNING, max_running, max_running_key))
    found += limits
    _check_weight(task, found, weight)
    _check_names(task, found, function)
    return tuple(found)


def check_alike(limits: Iterable[tuple[str, Limit]]) -> dict[str, Limit]:
    """Return limits of (task, limit) by name; raise `LimitError` where two of a name differ."""
    found: dict[str, tuple[str, Limit]] = {}
    for task, limit in limits:
        other = found.setdefault(limit.name, (task, limit))
        if other[1] != limit:
            raise LimitError(
                f"the tasks {other[0]!r} and {task!r} declare the limit {limit.name!r} "
                f"differently, as {other[1]} and {limit}; let them share one value",
            )
    return {name: limit for name, (_, limit) in found.items()}


def _check_alone(task: str, leader: object, others: dict[str, object], name: str) -> None:
    lone = [option for option, value in others.items() if value is not None]
    if leader is None and lone:
        raise LimitError(f"task {task!r}: {lone[0]} goes with {name}, which is missing")


def _check_weight(task: str, limits: Sequence[Limit], weight: int | None) -> None:
    if weight is None:
        return
    if type(weight) is not int or weight < 1:
        raise LimitError(f"task {task!r}: weight must be a whole number, 1 or more, not {weight!r}")
    rates = [limit for limit in limits if isinstance(limit, RateLimit)]
    if not rates:
        raise LimitError(f"task {task!r}: weight goes with a rate, and there is none")
    for limit in rates:
        if weight > limit.rule.most:
            raise LimitError(
                f"task {task!r}: a weight of {weight} never fits into {limit.name!r}, which holds "
                f"{limit.rule.most} at most",
            )


def _check_names(task: str, limits: Sequence[Limit], function: Callable[..., Any]) -> None:
    names = [limit.name for limit in limits]
    for name in names:
        if names.count(name) > 1:
            raise LimitError(f"task {task!r} has two limits called {name!r}")
    if all(limit.key is None for limit in limits):
        return
    code = function.__code__
    first = 1 if code.co_argcount else 0
    parameters = code.co_varnames[first : code.co_argcount + code.co_kwonlyargcount]
    for limit in limits:
        if limit.key is not None and limit.key not in parameters:
            raise LimitError(
                f"task {task!r}: the key {limit.key!r} of the limit {limit.name!r} is none of its "
                f"parameters {', '.join(parameters) or '(none)'}",
            )
