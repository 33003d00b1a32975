"""Declare tasks: `task`, what it takes, and what it makes of which function."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from runner.errors import SettingsError
from runner.limits import declared as declared_limits
from runner.many import many_task
from runner.options import OnWriteError, TaskOptions, check_options, policy_of, seconds
from runner.tasks import SyncTask, Task
from runner.time_limits import check_limits
from runner.unique import Debounce, Throttle, Unique, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from datetime import timedelta

    from runner.limits import Limit
    from runner.retry import RetryPolicy
    from runner.time_limits import Executor

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")
T = TypeVar("T")


class DeclaresMany(Protocol):
    """Makes a task of a function that takes many jobs: each job brings one item of its list."""

    @overload
    def __call__(
        self, function: Callable[[C, list[T]], Coroutine[Any, Any, None]], /
    ) -> Task[[T], None]: ...

    @overload
    def __call__(
        self, function: Callable[[C, list[T]], Coroutine[Any, Any, Sequence[R | Exception]]], /
    ) -> Task[[T], R]: ...


class Declares(Protocol):
    """What `task` with options returns: it makes a task of a function."""

    # The first that fits is taken: what is awaited is no value of a plain function.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        function: Callable[Concatenate[C, P], Coroutine[Any, Any, R]],
        /,
    ) -> Task[P, R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[C, P], R], /) -> SyncTask[P, R]: ...


# What is taken is what an async function gives, and no other awaitable: then both forms have the
# same parameter when types are inferred, and mypy takes the first also where a type holds Any.
@overload
def task(  # type: ignore[overload-overlap]
    function: Callable[Concatenate[C, P], Coroutine[Any, Any, R]],
    /,
) -> Task[P, R]: ...


@overload
def task(function: Callable[Concatenate[C, P], R], /) -> SyncTask[P, R]: ...


@overload
def task(
    *,
    batch: int,
    batch_wait: float | timedelta | None = None,
    **options: Any,
) -> DeclaresMany: ...


@overload
def task(
    *,
    name: str | None = None,
    retries: int | None = None,
    backoff: RetryPolicy | None = None,
    timeout: float | timedelta | None = None,
    keep_result: float | timedelta | None = None,
    keep_result_forever: bool | None = None,
    queue: str | None = None,
    expires: float | timedelta | None = None,
    max_crashes: int | None = None,
    on_write_error: OnWriteError | None = None,
    writes: bool = True,
    # time limits
    soft_timeout: float | timedelta | None = None,
    executor: Executor | None = None,
    # Uniqueness: one of them at most.
    unique: bool | Unique | None = None,
    debounce: float | timedelta | Debounce | None = None,
    throttle: float | timedelta | Throttle | None = None,
    # Limits, in the whole fleet: see runner.limits.
    rate: str | None = None,
    burst: int | None = None,
    weight: int | None = None,
    rate_key: str | None = None,
    max_running: int | None = None,
    max_running_key: str | None = None,
    limits: Sequence[Limit] = (),
) -> Declares: ...


def task(  # type: ignore[misc]  # with `batch` the rest are these by name
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retries: int | None = None,
    backoff: RetryPolicy | None = None,
    timeout: float | timedelta | None = None,
    keep_result: float | timedelta | None = None,
    keep_result_forever: bool | None = None,
    queue: str | None = None,
    expires: float | timedelta | None = None,
    max_crashes: int | None = None,
    on_write_error: OnWriteError | None = None,
    writes: bool = True,
    # Many jobs in one call: how many items it gets at most, and how long the first waits.
    batch: int | None = None,
    batch_wait: float | timedelta | None = None,
    # time limits
    soft_timeout: float | timedelta | None = None,
    executor: Executor | None = None,
    # Uniqueness: one of them at most.
    unique: bool | Unique | None = None,
    debounce: float | timedelta | Debounce | None = None,
    throttle: float | timedelta | Throttle | None = None,
    # Limits, in the whole fleet: see runner.limits.
    rate: str | None = None,
    burst: int | None = None,
    weight: int | None = None,
    rate_key: str | None = None,
    max_running: int | None = None,
    max_running_key: str | None = None,
    limits: Sequence[Limit] = (),
) -> Any:
    """Declare a function whose first parameter is the context as a task.

    An async function runs in the worker's event loop. One that is not runs in a thread, or in
    a process by ``executor="process"``, which is the place for long computations.

    Example:
        >>> @task(retries=5, timeout=30)
        ... async def place_order(ctx: Context, order_id: int) -> str:
        ...     ctx.db.insert("orders", id=order_id)
        ...     return "placed"

        With `batch` one call takes many jobs; see `runner.many`.

    Raises:
        SettingsError: an option contradicts itself, or another, or the function.
    """
    given = {
        "name": name,
        "retries": retries,
        "backoff": backoff,
        "timeout": timeout,
        "keep_result": keep_result,
        "keep_result_forever": keep_result_forever,
        "queue": queue,
        "expires": expires,
        "max_crashes": max_crashes,
        "on_write_error": on_write_error,
        "writes": writes,
        "batch": batch,
        "batch_wait": batch_wait,
        # time limits
        "soft_timeout": soft_timeout,
        "executor": executor,
    }

    def declare(function: Callable[..., Any]) -> Task[..., Any]:
        called = getattr(function, "__qualname__", repr(function))
        check_options(called, given)
        policy = policy_of(called, retries, backoff)
        try:
            rule = rule_of(unique, debounce, throttle)
        except SettingsError as exc:
            raise SettingsError(f"task {called!r}: {exc}") from None
        options = TaskOptions(
            name=function.__qualname__ if name is None else name,
            retries=policy.most_retries,
            policy=policy,
            timeout=seconds(timeout),
            keep_result=seconds(keep_result),
            keep_result_forever=keep_result_forever,
            queue=queue,
            expires=seconds(expires),
            max_crashes=max_crashes,
            on_write_error=on_write_error or "fail",
            writes=writes,
            # time limits
            soft_timeout=seconds(soft_timeout),
            executor=executor,
            unique=rule or None,
            limits=declared_limits(
                function.__qualname__ if name is None else name,
                function,
                rate=rate,
                burst=burst,
                weight=weight,
                rate_key=rate_key,
                max_running=max_running,
                max_running_key=max_running_key,
                limits=limits,
            ),
            weight=1 if weight is None else weight,
        )
        check_limits(
            options.name,
            timeout_s=options.timeout,
            soft_timeout_s=options.soft_timeout,
        )
        if batch is not None or batch_wait is not None:
            return many_task(function, options, most=batch, wait_s=seconds(batch_wait))
        kind = Task if inspect.iscoroutinefunction(function) else SyncTask
        return kind(function, options)

    return declare if function is None else declare(function)


__all__ = ["Declares", "DeclaresMany", "task"]
