"""Decide whether and when an attempt is followed by another: a pure value, and a pure function."""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeAlias, cast

from arq.worker import RetryJob

from runner.errors import (
    ArgumentsError,
    Cancel,
    CodecError,
    Retry,
    SettingsError,
    Snooze,
    TaskError,
    UnitError,
)

Kinds: TypeAlias = "type[BaseException] | Iterable[type[BaseException]]"
_Tuple: TypeAlias = tuple[type[BaseException], ...]


class Backoff(enum.Enum):
    """How the delay grows from one try to the next."""

    CONSTANT = "constant"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"


class GiveUp(enum.Enum):
    """What a rule says of errors after which no other try makes sense: `give_up`."""

    GIVE_UP = "give_up"


give_up: Final = GiveUp.GIVE_UP


@dataclass(frozen=True, slots=True)
class Rule:
    """What a policy does about some classes of exceptions; `on` makes one.

    Attributes:
        kinds: the classes; their subclasses count too.
        gives_up: such an error is final.
        retries: how often it is tried again; None: as the policy says.
        backoff: the delays; None: those of the policy.
    """

    kinds: tuple[type[BaseException], ...]
    gives_up: bool = False
    retries: int | None = None
    backoff: RetryPolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Which errors are tried again, how often, and after how long.

    Attributes:
        backoff: how the delay grows.
        base: the first delay in seconds.
        cap: the longest delay in seconds.
        jitter: the part of a delay that is random, 0 to 1: with 1 the delay lies anywhere
            between nothing and its full length ("full jitter": Marc Brooker, "Exponential
            Backoff And Jitter", AWS Architecture Blog, 2015).
        retries: how often a job is run again; None: only where a rule says so.
        rules: what differs for some classes, see `on`. The first that fits an error decides.
        give_up_on: classes that are never tried again; shorter than rules.
        retry_on: when given, only these classes, and those of rules, are tried again.
        retry_on_timeout: an attempt that overran its time limit is tried again too.

    Example:
        >>> policy = RetryPolicy(
        ...     retries=5,
        ...     rules=(on(ConnectionError, retries=20), on(LookupError, give_up)),
        ... )
        >>> RetryPolicy(base=2, cap=60).delay(attempt=3, random=0.5)
        6.0
    """

    backoff: Backoff = Backoff.EXPONENTIAL
    base: float = 1.0
    cap: float = 600.0
    jitter: float = 0.5
    retries: int | None = None
    rules: tuple[Rule, ...] = ()
    give_up_on: Kinds = ()
    retry_on: Kinds | None = None
    retry_on_timeout: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.base <= self.cap < math.inf):
            raise SettingsError("a retry policy needs 0 <= base <= cap")
        if not 0 <= self.jitter <= 1:
            raise SettingsError("jitter lies between 0 and 1")
        _check_count(self.retries)
        rules: Any = self.rules
        if isinstance(rules, Rule) or not all(isinstance(rule, Rule) for rule in rules):
            raise SettingsError("rules takes a tuple of on(...)")
        object.__setattr__(self, "rules", tuple(rules))
        object.__setattr__(self, "give_up_on", _kinds(self.give_up_on, "give_up_on"))
        if self.retry_on is not None:
            object.__setattr__(self, "retry_on", _kinds(self.retry_on, "retry_on"))

    @property
    def most_retries(self) -> int | None:
        """How often a job may be run again at most, as far as the policy says so."""
        said = [self.retries, *(rule.retries for rule in self.rules)]
        return max((count for count in said if count is not None), default=None)

    def rule_for(self, exc: BaseException) -> Rule | None:
        """Return what decides about this error; None: the policy's own numbers do."""
        for rule in self.rules:
            if isinstance(exc, rule.kinds):
                return rule
        if isinstance(exc, cast(_Tuple, self.give_up_on)):
            return _GIVES_UP
        if self.retry_on is None:
            return None
        return _TRIES_AGAIN if isinstance(exc, cast(_Tuple, self.retry_on)) else _GIVES_UP

    def delay(self, *, attempt: int, random: float) -> float:
        """Return the seconds to wait after a failed attempt.

        Args:
            attempt: the number of the attempt that failed, counted from 1.
            random: a number from 0 to 1 that spreads jobs which failed together.
        """
        match self.backoff:
            case Backoff.CONSTANT:
                full = self.base
            case Backoff.LINEAR:
                full = self.base * attempt
            case Backoff.EXPONENTIAL:
                # 2**1024 does not fit a float; the cap is reached long before.
                full = self.base * 2.0 ** min(attempt - 1, 1000)
        full = min(full, self.cap)
        return min(full * (1 - self.jitter) + full * self.jitter * random, full)


def on(
    kinds: Kinds,
    action: GiveUp | None = None,
    /,
    *,
    retries: int | None = None,
    delay: float | timedelta | None = None,
    backoff: RetryPolicy | None = None,
) -> Rule:
    """Say what a policy does about some classes of exceptions.

    Args:
        kinds: a class, or several.
        action: `give_up`: such an error is final.
        retries: how often it is tried again; None: as often as the policy says, and where that
            says nothing, as often as the worker's `max_tries` allows.
        delay: the same seconds before each try, without jitter.
        backoff: delays of its own, in place of `delay`.

    Example:
        >>> rules = (
        ...     on(RateLimited, delay=60),
        ...     on(ConnectionError, retries=20, backoff=RetryPolicy(base=0.5, cap=30)),
        ...     on((ValueError, LookupError), give_up),
        ... )

    Raises:
        SettingsError: it contradicts itself.
    """
    named = _kinds(kinds, "on")
    if not named:
        raise SettingsError("on() takes at least one class of exceptions")
    if action not in (None, give_up):
        raise SettingsError(f"on() takes give_up, or nothing, behind the classes, not {action!r}")
    if action is give_up and (retries, delay, backoff) != (None, None, None):
        raise SettingsError("on(..., give_up) takes no retries, delay or backoff")
    if delay is not None and backoff is not None:
        raise SettingsError("give either delay or backoff, not both")
    _check_count(retries)
    if backoff is not None and _decides(backoff):
        raise SettingsError(
            "the backoff of a rule is a RetryPolicy with delays alone: give retries to on()",
        )
    if delay is not None:
        backoff = _after(_seconds(delay))
    return Rule(named, action is give_up, retries, backoff)


class Verdict(enum.Enum):
    """What follows an attempt that raised."""

    AGAIN = "again"
    SNOOZE = "snooze"
    CANCEL = "cancel"
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows an attempt that raised, and when.

    Attributes:
        delay_s: until the next try; None: the job takes its old place in the queue.
        fault: the error that takes the place of the one that was raised, or None.
    """

    verdict: Verdict
    delay_s: float | None = None
    fault: BaseException | None = None


PERMANENT = (ArgumentsError, CodecError, UnitError)
"""Errors that nobody tries again: the same bytes will not fit the next time either."""

_GIVE_UP = Decision(Verdict.GIVE_UP)


def decide(
    exc: BaseException,
    *,
    attempt: int,
    policy: RetryPolicy | None,
    max_tries: int,
    random: float,
    overran: bool = False,
) -> Decision:
    """Decide what follows an attempt that raised. The only place that does.

    A group of exceptions, as `asyncio.TaskGroup` raises it, is decided by each of them, and the
    gravest verdict counts: what is final for one is final for all; else the longest delay. A
    policy that names a class of groups decides about them as about other errors.

    Args:
        exc: what was raised.
        attempt: the number of the attempt, counted from 1.
        policy: the task's; None: only `Retry` runs it again.
        max_tries: how often the job may be tried. `Retry` is not held to it here: a try too
            many ends where it would begin, as in arq.
        random: a number from 0 to 1 that spreads jobs which failed together.
        overran: the attempt was ended by its time limit.
    """
    if isinstance(exc, BaseExceptionGroup) and not _is_named(policy, exc):
        about = functools.partial(
            decide,
            attempt=attempt,
            policy=policy,
            max_tries=max_tries,
            random=random,
            overran=overran,
        )
        return max(map(about, exc.exceptions), key=_gravity)
    match exc:
        case Snooze():
            return _snoozed(exc)
        case Cancel():
            return Decision(Verdict.CANCEL)
        case Retry():
            return Decision(Verdict.AGAIN, (exc.defer_score or 0) / 1000 or None)
        case RetryJob():
            return Decision(Verdict.AGAIN)
    delay_s = None
    is_final = isinstance(exc, PERMANENT)
    if policy is not None and not is_final and (policy.retry_on_timeout or not overran):
        delay_s = _delay(policy, exc, attempt, max_tries, random=random, overran=overran)
    return _GIVE_UP if delay_s is None else Decision(Verdict.AGAIN, delay_s)


_GRAVITY = (Verdict.SNOOZE, Verdict.AGAIN, Verdict.GIVE_UP, Verdict.CANCEL)


def _is_named(policy: RetryPolicy | None, exc: BaseException) -> bool:
    """Tell whether a policy says something of this class of groups itself."""
    if policy is None:
        return False
    lists = [cast(_Tuple, policy.give_up_on), cast(_Tuple, policy.retry_on or ())]
    kinds = [kind for named in (*(rule.kinds for rule in policy.rules), *lists) for kind in named]
    return any(issubclass(kind, BaseExceptionGroup) and isinstance(exc, kind) for kind in kinds)


def _gravity(decision: Decision) -> tuple[int, float]:
    return _GRAVITY.index(decision.verdict), decision.delay_s or 0


def _delay(
    policy: RetryPolicy,
    exc: BaseException,
    attempt: int,
    max_tries: int,
    *,
    random: float,
    overran: bool,
) -> float | None:
    """Return the seconds until a policy tries a job again, None when it gives it up."""
    rule = policy.rule_for(exc)
    if rule is None and overran:
        rule = _TRIES_AGAIN
    retries = _retries(policy, rule, max_tries)
    if attempt > retries or attempt >= max_tries:
        return None
    delays = rule.backoff if rule is not None and rule.backoff is not None else policy
    return delays.delay(attempt=attempt, random=random)


def _retries(policy: RetryPolicy, rule: Rule | None, max_tries: int) -> int:
    """Return how often a job is run again after errors of one kind."""
    if rule is None:
        return policy.retries or 0
    if rule.gives_up:
        return 0
    if rule.retries is not None:
        return rule.retries
    return max_tries - 1 if policy.retries is None else policy.retries


def _snoozed(exc: Snooze) -> Decision:
    """Return when a snoozing job runs again: a time that is none is the task's own fault."""
    delay_s: Any = exc.defer.total_seconds() if isinstance(exc.defer, timedelta) else exc.defer
    if isinstance(delay_s, int | float) and math.isfinite(delay_s):
        return Decision(Verdict.SNOOZE, delay_s)
    fault = TaskError(f"Snooze takes seconds or a timedelta, not {exc.defer!r}")
    fault.__cause__ = exc
    return Decision(Verdict.GIVE_UP, fault=fault)


def _after(delay_s: float) -> RetryPolicy:
    return RetryPolicy(backoff=Backoff.CONSTANT, base=delay_s, cap=delay_s, jitter=0)


def _seconds(value: Any) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError(f"delay takes seconds or a timedelta, not {value!r}")
    return float(value)


def _decides(policy: object) -> bool:
    """Whether a policy says more than how long to wait, or is none at all."""
    if not isinstance(policy, RetryPolicy):
        return True
    named = policy.rules or policy.give_up_on or policy.retry_on is not None
    return bool(named) or policy.retries is not None or policy.retry_on_timeout


def _check_count(retries: Any) -> None:
    if retries is not None and (type(retries) is not int or retries < 0):
        raise SettingsError(f"retries takes a whole number, 0 or more, or None, not {retries!r}")


def _kinds(given: Any, where: str) -> tuple[type[BaseException], ...]:
    kinds: tuple[Any, ...] = tuple(given) if isinstance(given, Iterable) else (given,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise SettingsError(f"{where} takes classes of exceptions, not {kind!r}")
    return kinds


_GIVES_UP = Rule((), gives_up=True)
_TRIES_AGAIN = Rule(())
