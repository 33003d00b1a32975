"""Tasks: a function with options, callable as it is, and typed when enqueued."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import update_wrapper
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    TypeVar,
    cast,
    overload,
)

from runner.arguments import Signature
from runner.dependencies import call as call_with
from runner.dependencies import call_in_thread, dependencies_of
from runner.errors import ArgumentsError, SettingsError
from runner.options import (
    KEPT_RULE,
    MOST_KEPT_S,
    EnqueueOptions,
    OnWriteError,
    TaskOptions,
    WhenFull,
    checked_id,
    seconds,
)
from runner.time_limits import executor_of
from runner.types import PREVIOUS, Part
from runner.unique import Debounce, Rule, Throttle, Unique, check_parameters, rule_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from datetime import datetime, timedelta

    from runner.composition import Group
    from runner.dependencies import Loop
    from runner.time_limits import Executor

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
C = TypeVar("C")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


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
        self.executor: Executor = executor_of(options.name, function, options.executor)
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
        self: Callable[Concatenate[Any, T, Q], Coroutine[Any, Any, R]],
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
    def map(self: Callable[[Any, T], Coroutine[Any, Any, R]], values: Iterable[T]) -> Group[R]: ...

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
        if self.executor == "process":
            names = ", ".join(map(repr, self.dependencies))
            raise SettingsError(
                f"task {self.name!r} runs in a process, where nothing provides {names}: let it "
                "run in the event loop or a thread, or leave Depends out"
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
        """Call the function itself; nothing is enqueued. What it is not given is provided."""
        if self.dependencies:
            provided: R = call_in_thread(self.function, self.dependencies, ctx, args, kwargs)
            return provided
        value: R = self.function(ctx, *args, **kwargs)
        return value

    def call_in_thread(
        self, ctx: Any, args: tuple[Any, ...], kwargs: dict[str, Any], loop: Loop
    ) -> R:
        """Call it in a worker's thread, from where the event loop can be reached."""
        if self.dependencies:
            provided: R = call_in_thread(
                self.function, self.dependencies, ctx, args, kwargs, loop=loop
            )
            return provided
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


__all__ = [
    "KEPT_RULE",
    "MOST_KEPT_S",
    "BoundTask",
    "Call",
    "EnqueueOptions",
    "OnWriteError",
    "Step",
    "SyncTask",
    "Task",
    "TaskOptions",
    "WhenFull",
    "checked_id",
    "seconds",
]
