"""The values behind a task's options and a call's, and the rules that they have to fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, overload

from runner.errors import ArgumentsError, SettingsError
from runner.retry import RetryPolicy
from runner.time_limits import EXECUTORS, Executor

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.limits import Limit
    from runner.unique import Rule

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
        executor: "loop", "thread" or "process"; None: a thread for a function that is not async.
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
    executor: Executor | None = None
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


def policy_of(function: str, retries: int | None, backoff: RetryPolicy | None) -> RetryPolicy:
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

RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
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
    "executor": (lambda value: value in EXECUTORS, '"loop", "thread" or "process"'),
}


# Options without a rule here, and who checks them.
NO_RULE = {
    **dict.fromkeys(("unique", "debounce", "throttle"), "runner.unique.rule_of"),
    **dict.fromkeys(
        ("rate", "burst", "weight", "rate_key", "max_running", "max_running_key", "limits"),
        "runner.limits.declared",
    ),
}


def check_options(function: str, given: dict[str, Any]) -> None:
    """Raise `SettingsError` for an option that is not what it must be."""
    for option, value in given.items():
        fits, wanted = RULES[option]
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
