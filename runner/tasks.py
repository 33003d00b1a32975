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
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
    overload,
)

from runner.arguments import Signature
from runner.dependencies import call as call_with
from runner.dependencies import dependencies_of
from runner.errors import ArgumentsError, SettingsError
from runner.limits import Limit
from runner.limits import declared as declared_limits
from runner.retry import RetryPolicy
from runner.time_limits import PLACES, RunsIn, check_limits, place_of
from runner.types import PREVIOUS, Part
from runner.unique import Debounce, Rule, Throttle, Unique, check_parameters, rule_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from runner.composition import Group

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
C = TypeVar("C")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)

WhenFull: TypeAlias = Literal["raise", "wait"]
OnWriteError: TypeAlias = Literal["fail", "retry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What a task declares about its jobs; None leaves it to the worker.

    Attributes:
        name: the name under which jobs travel; the function's qualified name by default.
        retries: how often a job that raises is run again at most; None: only `Retry` and rules
            of the policy run it again, up to the worker's `max_tries`.
        policy: which errors are tried again, and how long to wait between tries.
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
        soft_timeout: seconds after which `SoftTimeLimit` is raised inside the job, to tidy up.
        runs_in: "loop", "thread" or "process"; None: a thread for a function that is not async.
        unique: which jobs of it may not stand beside each other.
        limits: its own, and those it shares.
        weight: what one of its jobs counts for its rates.
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
    # time limits
    soft_timeout: float | None = None
    runs_in: RunsIn | None = None
    # Uniqueness.
    unique: Rule | None = None
    # Limits, in the whole fleet: see runner.limits.
    limits: tuple[Limit, ...] = ()
    weight: int = 1


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
class Call(Part[R_co]):
    """A call that was written down and not made: a task, its arguments, its options."""

    task: Task[..., R_co]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: EnqueueOptions


@dataclass(frozen=True, slots=True)
class Step(Generic[T_contra, R_co]):
    """A call that lacks its first argument, which will be the result of the step before."""

    task: Task[..., R_co]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: EnqueueOptions

    def call(self) -> Call[R_co]:
        """Return the call with the result of the step before in front."""
        return Call(self.task, (PREVIOUS, *self.args), self.kwargs, self.options)


class Task(Generic[P, R]):
    """A declared function. Calling it calls the function; enqueueing it makes a job.

    It also passes for the plain coroutine function, so that arq's own `func`, `cron` and
    stock `Worker` take it.
    """

    __qualname__: str

    def __init__(
        self,
        function: Callable[Concatenate[Any, P], Any],
        options: TaskOptions,
    ) -> None:
        self.runs_in: RunsIn = place_of(options.name, function, options.runs_in)
        self.function = function
        self.task_options = options
        self.name = options.name
        self.dependencies = dependencies_of(function)
        # To call it is to call the function: workers do so themselves, which is a call less.
        self.is_plain = not self.dependencies and type(self).__call__ is Task.__call__
        self.signature = Signature(function, self.dependencies)
        if self.dependencies:
            self._check_provided()
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
        coroutine: Coroutine[Any, Any, R] = self.function(ctx, *args, **kwargs)
        return coroutine

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Write a call down, for `enqueue_many` and workflows; raise `ArgumentsError`.

        A call that lacks nothing but its first argument is a step of a chain, which gives it
        the result of the step before; `s` says so in a way that type checkers understand.
        """
        try:
            self.signature.check(self.name, args, kwargs)
        except ArgumentsError as exc:
            if exc.parameter or not self._is_step(args, kwargs):
                raise
            args = cast(Any, (PREVIOUS, *args))
        return Call(self, args, kwargs, _NO_OPTIONS)

    def _is_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Tell whether a call lacks its first argument, and nothing else is wrong with it."""
        try:
            self.signature.check(self.name, (PREVIOUS, *args), kwargs)
        except ArgumentsError:
            return False
        return True

    @overload
    def s(
        self: Callable[Concatenate[Any, T, Q], Awaitable[R]],
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Step[T, R]: ...

    @overload
    def s(
        self: Callable[Concatenate[Any, T, Q], R],
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Step[T, R]: ...

    def s(self, *args: Any, **kwargs: Any) -> Step[Any, Any]:
        """Write a step of a chain or chord down: the result before it is its first argument.

        Celery's word for it. What `call` writes down gets nothing from the step before, as
        Celery's ``si``.
        """
        # Typed as a callable, whose first parameter can be told from the others.
        this: Any = self
        this.signature.check(this.name, (PREVIOUS, *args), kwargs)
        return Step(this, args, kwargs, _NO_OPTIONS)

    @overload
    def map(self: Callable[[Any, T], Awaitable[R]], values: Iterable[T]) -> Group[R]: ...

    @overload
    def map(self: Callable[[Any, T], R], values: Iterable[T]) -> Group[R]: ...

    def map(self, values: Iterable[Any]) -> Group[Any]:
        """Return a group of one call for each value."""
        from runner.composition import group  # noqa: PLC0415  it is made of calls

        this: Any = self
        return group([this.call(value) for value in values])

    def starmap(self, arguments: Iterable[Iterable[Any]]) -> Group[R]:
        """Return a group of one call for each tuple of arguments."""
        from runner.composition import group  # noqa: PLC0415  it is made of calls

        this = cast(Task[Any, R], self)  # the arguments are checked when they are written down
        return group([this.call(*given) for given in arguments])

    def chunks(
        self: Callable[[Any, Any], Awaitable[R]], values: Iterable[Any], size: int
    ) -> Group[R]:
        """Return a group of one call for each list of at most `size` values, in order."""
        from runner.composition import group, in_chunks  # noqa: PLC0415  it is made of calls

        this = cast(Task[Any, R], self)
        return group([this.call(chunk) for chunk in in_chunks(values, size)])

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

    def _check_provided(self) -> None:
        """Refuse dependencies where nobody would provide them, and limits that look at them."""
        if self.runs_in != "loop":
            names = ", ".join(map(repr, self.dependencies))
            raise SettingsError(
                f"task {self.name!r} runs in a {self.runs_in}, where nothing provides {names}: "
                "declare it as an async function that runs in the event loop, or leave Depends out"
            )
        for limit in self.task_options.limits:
            if limit.key in self.dependencies:
                raise SettingsError(
                    f"task {self.name!r}: the key {limit.key!r} of the limit {limit.name!r} is "
                    "provided, and no argument of its jobs"
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


class SyncTask(Task[P, R]):
    """A declared function that is not async: workers run it in a thread, or in a process."""

    def __call__(self, ctx: Any, *args: P.args, **kwargs: P.kwargs) -> R:  # type: ignore[override]
        """Call the function itself; nothing is enqueued."""
        value: R = self.function(ctx, *args, **kwargs)
        return value


@dataclass(frozen=True, slots=True)
class BoundTask(Generic[P, R]):
    """A task with the options of its next calls."""

    task: Task[P, R]
    options: EnqueueOptions

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Write a call with these options down; raise `ArgumentsError`."""
        return replace(self.task.call(*args, **kwargs), options=self.options)

    def s(self, *args: Any, **kwargs: Any) -> Step[Any, R]:
        """Write a step with these options down; see `Task.s`. Checked when it is written down."""
        step: Any = self.task.s
        return replace(step(*args, **kwargs), options=self.options)


_NO_OPTIONS = EnqueueOptions()


class DeclaresMany(Protocol):
    """Makes a task of a function that takes many jobs: each job brings one item of its list."""

    @overload
    def __call__(self, function: Callable[[C, list[T]], Awaitable[None]], /) -> Task[[T], None]: ...

    @overload
    def __call__(
        self, function: Callable[[C, list[T]], Awaitable[Sequence[R | Exception]]], /
    ) -> Task[[T], R]: ...


class Declares(Protocol):
    """What `task` with options returns: it makes a task of a function."""

    # The first that fits is taken: what is awaited is no value of a plain function.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        function: Callable[Concatenate[C, P], Awaitable[R]],
        /,
    ) -> Task[P, R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[C, P], R], /) -> SyncTask[P, R]: ...


@overload
def task(  # type: ignore[overload-overlap]
    function: Callable[Concatenate[C, P], Awaitable[R]],
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
    runs_in: RunsIn | None = None,
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
    runs_in: RunsIn | None = None,
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
    a process by ``runs_in="process"``, which is the place for long computations.

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
        "runs_in": runs_in,
    }

    def declare(function: Callable[..., Any]) -> Task[..., Any]:
        called = getattr(function, "__qualname__", repr(function))
        _check(called, given)
        policy = _policy(called, retries, backoff)
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
            runs_in=runs_in,
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
            from runner.many import many_task  # noqa: PLC0415  it is a task

            return many_task(function, options, most=batch, wait_s=seconds(batch_wait))
        kind = Task if inspect.iscoroutinefunction(function) else SyncTask
        return kind(function, options)

    return declare if function is None else declare(function)


def _policy(function: str, retries: int | None, backoff: RetryPolicy | None) -> RetryPolicy:
    """Return the policy of a task, with its number of retries in it."""
    policy = RetryPolicy() if backoff is None else backoff
    if retries is None or retries == policy.retries:
        return policy
    if policy.retries is not None:
        raise SettingsError(
            f"task {function!r}: retries is {retries}, and {policy.retries} in its backoff: "
            "leave one out",
        )
    return replace(policy, retries=retries)


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
    "batch": (lambda value: _whole(value) and value > 0, "a whole number, 1 or more"),
    "batch_wait": (_seconds, "a number of seconds, 0 or more, or a timedelta"),
    # time limits
    "soft_timeout": (_some_seconds, "a number of seconds, more than 0, or a timedelta"),
    "runs_in": (lambda value: value in PLACES, '"loop", "thread" or "process"'),
}


# Options without a rule here, and who checks them.
_NO_RULE = {
    **dict.fromkeys(("unique", "debounce", "throttle"), "runner.unique.rule_of"),
    **dict.fromkeys(
        ("rate", "burst", "weight", "rate_key", "max_running", "max_running_key", "limits"),
        "runner.limits.declared",
    ),
}


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
