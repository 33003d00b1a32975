"""Declare tasks: a function with options, callable as it is, and typed when enqueued."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import update_wrapper
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    cast,
    overload,
)

from runner.arguments import Signature
from runner.dependencies import call as call_with
from runner.dependencies import dependencies_of
from runner.errors import ArgumentsError, SettingsError
from runner.retry import RetryPolicy
from runner.unique import Debounce, Rule, Throttle, Unique, check_parameters, rule_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")

WhenFull: TypeAlias = Literal["raise", "wait"]
OnWriteError: TypeAlias = Literal["fail", "retry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What a task declares about its jobs; None leaves it to the worker.

    Attributes:
        name: the name under which jobs travel; the function's qualified name by default.
        retries: how often a job that raises is run again; None: only `Retry` runs it again,
            as in arq, up to the worker's `max_tries`.
        policy: how long to wait between tries.
        timeout: seconds an attempt may take.
        keep_result: seconds to keep a result; 0 keeps none.
        keep_result_forever: keep results without end.
        queue: the queue of the task's jobs.
        expires: seconds after which a job that has not started is given up.
        max_crashes: how many lost leases make a job a dead letter.
        on_write_error: what becomes of a job whose writes Postgres refuses: "fail" ends it,
            because the same writes would be refused again; "retry" runs it again after the
            policy's delay, as long as it has tries left.
        writes: whether it may write by ``ctx.db``: a worker whose tasks all do not claims jobs
            also while too much waits for the writer.
        unique: which jobs of it may not stand beside each other.
    """

    name: str
    retries: int | None = None
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    keep_result: float | None = None
    keep_result_forever: bool | None = None
    queue: str | None = None
    expires: float | None = None
    max_crashes: int | None = None
    on_write_error: OnWriteError = "fail"
    writes: bool = True
    # Uniqueness.
    unique: Rule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueOptions:
    """What one call may ask for beyond its arguments.

    Attributes:
        delay: seconds until the job may start.
        at: the time at which it may start; excludes `delay`.
        key: the job's id; a second job with the id of one that waits, runs, or has a result
            is not enqueued.
        queue: the queue, in place of the task's.
        expires: seconds after which a job that has not started is given up.
        max_length: how many jobs the queue may hold, those that run or are deferred among
            them, for this one to be added; 0: any number, None: as the client says.
        when_full: "raise" `QueueFull` when it holds so many, or "wait" for room.
        full_timeout: seconds to wait before `QueueFull` is raised; None: without end.
        unique: beside which jobs it may not stand; False: beside any, None: as the task says.
    """

    delay: float | None = None
    at: datetime | None = None
    key: str | None = None
    queue: str | None = None
    expires: float | None = None
    max_length: int | None = None
    when_full: WhenFull | None = None
    full_timeout: float | None = None
    # Uniqueness.
    unique: Rule | Literal[False] | None = None

    def __post_init__(self) -> None:
        if self.delay is not None and self.at is not None:
            raise ArgumentsError("give either delay or at, not both")
        if self.at is not None and self.at.tzinfo is None:
            raise ArgumentsError("at needs a time zone: datetime(..., tzinfo=...)")
        if self.key is not None:
            checked_id(self.key, "key")
        for name in ("delay", "expires", "full_timeout"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ArgumentsError(f"{name} must be a number of seconds, not {value}")
        self._check_bound()

    def _check_bound(self) -> None:
        length: object = self.max_length
        if length is not None and (type(length) is not int or length < 0):
            raise ArgumentsError(f"max_length must be a whole number, 0 or more, not {length!r}")
        if self.when_full not in (None, "raise", "wait"):
            raise ArgumentsError(f'when_full must be "raise" or "wait", not {self.when_full!r}')
        if self.full_timeout is not None and self.full_timeout < 0:
            raise ArgumentsError(f"full_timeout must be 0 or more, not {self.full_timeout}")


def checked_id(job_id: str, name: str = "job id") -> str:
    """Return the id; raise `ArgumentsError` for one that cannot stand in a key of Redis."""
    if job_id == "":
        raise ArgumentsError(f"{name} must not be empty")
    try:
        job_id.encode()
    except UnicodeEncodeError as exc:
        raise ArgumentsError(f"{name} {job_id!a} is no text: {exc}") from None
    return job_id


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A call that was written down and not made: a task, its arguments, its options."""

    task: Task[..., R]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: EnqueueOptions


class Task(Generic[P, R]):
    """A declared function. Calling it calls the function; enqueueing it makes a job.

    It also passes for the plain coroutine function, so that arq's own `func`, `cron` and
    stock `Worker` take it.
    """

    __qualname__: str

    def __init__(
        self,
        function: Callable[Concatenate[Any, P], Awaitable[R]],
        options: TaskOptions,
    ) -> None:
        if not inspect.iscoroutinefunction(function):
            raise SettingsError(f"task {options.name!r} must be an async function")
        self.function = function
        self.task_options = options
        self.name = options.name
        self.dependencies = dependencies_of(function)
        self.signature = Signature(function, self.dependencies)
        if options.unique is not None:
            self._check_rule(options.unique)
        update_wrapper(self, function)
        # With these four, inspect.iscoroutinefunction says of this object what it says of
        # the function: arq asks it before it takes a function.
        self.__code__ = function.__code__
        self.__defaults__ = function.__defaults__
        self.__kwdefaults__ = function.__kwdefaults__
        self.__annotations__ = function.__annotations__

    def __call__(self, ctx: Any, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call the function itself; nothing is enqueued. What it is not given is provided."""
        if self.dependencies:
            return call_with(self.function, self.dependencies, ctx, args, kwargs)
        return self.function(ctx, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Write a call down, for `enqueue_many` and workflows; raise `ArgumentsError`."""
        self.signature.check(self.name, args, kwargs)
        return Call(self, args, kwargs, _NO_OPTIONS)

    def options(
        self,
        *,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        key: str | None = None,
        queue: str | None = None,
        expires: float | timedelta | None = None,
        max_length: int | None = None,
        when_full: WhenFull | None = None,
        full_timeout: float | timedelta | None = None,
        # Uniqueness: one of them at most; ``unique=False`` lifts what the task declares.
        unique: bool | Unique | None = None,
        debounce: float | timedelta | Debounce | None = None,
        throttle: float | timedelta | Throttle | None = None,
    ) -> BoundTask[P, R]:
        """Return the task with options for the calls made through it.

        Example:
            >>> await client.enqueue(place_order.options(delay=60, key="order-42"), 42)

        Raises:
            ArgumentsError: an option makes no sense, or contradicts another.
        """
        rule: Rule | Literal[False] | None = None
        if (unique, debounce, throttle) != (None, None, None):
            rule = self._rule_of_call(unique, debounce, throttle, key)
        chosen = self.task_options.unique if rule is None else rule
        if chosen and chosen.until == "debounce" and (delay is not None or at is not None):
            raise ArgumentsError(f"{self.name}: debounce says when it starts, not delay or at")
        return BoundTask(
            self,
            EnqueueOptions(
                delay=seconds(delay),
                at=at,
                key=key,
                queue=queue,
                expires=seconds(expires),
                max_length=max_length,
                when_full=when_full,
                full_timeout=seconds(full_timeout),
                unique=rule,
            ),
        )

    def _check_rule(self, rule: Rule) -> None:
        signature = self.signature
        try:
            check_parameters(rule, signature.names, others=signature.takes_others)
        except SettingsError as exc:
            raise SettingsError(f"task {self.name!r}: {exc}") from None

    def _rule_of_call(
        self,
        unique: bool | Unique | None,
        debounce: float | timedelta | Debounce | None,
        throttle: float | timedelta | Throttle | None,
        key: str | None,
    ) -> Rule | Literal[False] | None:
        try:
            rule = rule_of(unique, debounce, throttle)
            if rule:
                self._check_rule(rule)
        except SettingsError as exc:
            raise ArgumentsError(str(exc)) from None
        if rule and rule.second == "replace" and key is not None:
            raise ArgumentsError(
                f"{self.name}: key names the job, and a job of that name is not replaced; "
                f"{rule.option} takes a key of its own, as in {rule.option.title()}(key=...)",
            )
        return rule


@dataclass(frozen=True, slots=True)
class BoundTask(Generic[P, R]):
    """A task with the options of its next calls."""

    task: Task[P, R]
    options: EnqueueOptions

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Write a call with these options down; raise `ArgumentsError`."""
        return replace(self.task.call(*args, **kwargs), options=self.options)


_NO_OPTIONS = EnqueueOptions()


@overload
def task(function: Callable[Concatenate[C, P], Awaitable[R]], /) -> Task[P, R]: ...


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
    # Uniqueness: one of them at most.
    unique: bool | Unique | None = None,
    debounce: float | timedelta | Debounce | None = None,
    throttle: float | timedelta | Throttle | None = None,
) -> Callable[[Callable[Concatenate[C, P], Awaitable[R]]], Task[P, R]]: ...


def task(
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
    # Uniqueness: one of them at most.
    unique: bool | Unique | None = None,
    debounce: float | timedelta | Debounce | None = None,
    throttle: float | timedelta | Throttle | None = None,
) -> Any:
    """Declare an async function whose first parameter is the context as a task.

    Example:
        >>> @task(retries=5, timeout=30)
        ... async def place_order(ctx: Context, order_id: int) -> str:
        ...     ctx.db.insert("orders", id=order_id)
        ...     return "placed"

    Raises:
        SettingsError: an option contradicts itself, or the function is not async.
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
    }

    def declare(function: Callable[..., Any]) -> Task[..., Any]:
        called = getattr(function, "__qualname__", repr(function))
        _check(called, given)
        try:
            rule = rule_of(unique, debounce, throttle)
        except SettingsError as exc:
            raise SettingsError(f"task {called!r}: {exc}") from None
        options = TaskOptions(
            name=function.__qualname__ if name is None else name,
            retries=retries,
            policy=RetryPolicy() if backoff is None else backoff,
            timeout=seconds(timeout),
            keep_result=seconds(keep_result),
            keep_result_forever=keep_result_forever,
            queue=queue,
            expires=seconds(expires),
            max_crashes=max_crashes,
            on_write_error=on_write_error or "fail",
            writes=writes,
            unique=rule or None,
        )
        return Task(function, options)

    return declare if function is None else declare(function)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _seconds(value: Any) -> bool:
    if isinstance(value, timedelta):
        return value >= timedelta(0)
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _kept_seconds(value: Any) -> bool:
    return _seconds(value) and cast(float, seconds(value)) <= MOST_KEPT_S


def _some_seconds(value: Any) -> bool:
    return _seconds(value) and value not in (0, timedelta(0))


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


MOST_KEPT_S = 100 * 365 * 24 * 3600.0
"""For how long a result may be kept: Redis counts milliseconds in 63 bits."""

KEPT_RULE = (
    "a number of seconds or a timedelta, from 0 to 100 years; keep_result_forever=True is for ever"
)

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("retries", "max_crashes"), (_whole, "a whole number, 0 or more")),
    **dict.fromkeys(
        ("timeout", "expires"),
        (_some_seconds, "a number of seconds, more than 0, or a timedelta"),
    ),
    **dict.fromkeys(("name", "queue"), (_text, "a text that is not empty")),
    **dict.fromkeys(
        ("keep_result_forever", "writes"),
        (lambda value: isinstance(value, bool), "True or False"),
    ),
    "on_write_error": (lambda value: value in ("fail", "retry"), '"fail" or "retry"'),
    "keep_result": (_kept_seconds, KEPT_RULE),
    "backoff": (lambda value: isinstance(value, RetryPolicy), "a RetryPolicy"),
}


# Options without a rule here, and who checks them.
_NO_RULE = dict.fromkeys(("unique", "debounce", "throttle"), "runner.unique.rule_of")


def _check(function: str, given: dict[str, Any]) -> None:
    for option, value in given.items():
        fits, wanted = _RULES[option]
        if value is not None and not fits(value):
            raise SettingsError(
                f"task {function!r}: {option} is {value!r}, but must be {wanted}, or None",
            )


@overload
def seconds(value: None) -> None: ...


@overload
def seconds(value: float | timedelta) -> float: ...


def seconds(value: float | timedelta | None) -> float | None:
    """Return seconds of seconds or a timedelta."""
    return value.total_seconds() if isinstance(value, timedelta) else value
