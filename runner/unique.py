"""Say when a call is one too many: which jobs are the same, for how long, and what becomes of it.

Two calls of a task are the same when their arguments travel as the same data: `canonical` writes
them down so that neither the order of a dict or a set nor the way a call is spelled matters, and
a digest of that names the place in Redis (`lua/places.lua`) which only one of them can have.

===========  ========================  ===================================================
option       the place is free again   what a second call does meanwhile
===========  ========================  ===================================================
`Unique`     when the job has started  returns the other job, or is refused, or replaces it
             or ended, or after a time
`Debounce`   when the job has started  replaces it, and pushes its start back
`Throttle`   after a time              returns the other job, or is refused
===========  ========================  ===================================================
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from runner.codec import canonical_encoder
from runner.errors import ArgumentsError, SettingsError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

By: TypeAlias = "str | Sequence[str] | None"
Second: TypeAlias = Literal["return", "refuse", "replace"]
Until: TypeAlias = "Literal['start', 'end'] | float | timedelta"

MOST_S = 10 * 366 * 24 * 3600.0
LEAST_S = 0.001
LONG_BYTES = 64

_MARK = b"\xc1"
"""Begins what is no value of msgpack's: no value begins so."""

_encode = canonical_encoder().encode


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One of the options, as the scripts know it.

    Attributes:
        option: whose rule it is; each has places of its own.
        key: what tells jobs apart, in place of arguments.
        by: the parameters that do; None: all.
        until: what `lua/places.lua` calls the rule of a place.
        second: what becomes of a second call.
        ms: how long the place is taken, or with "debounce" the time to the start.
        most_ms: how long after the first call a debounced job starts at the latest.
    """

    option: str
    key: str | None
    by: tuple[str, ...] | None
    until: Literal["start", "end", "time", "debounce"]
    second: Second
    ms: int = 0
    most_ms: int | None = None


class Place(msgspec.Struct, frozen=True):
    """The place that one call asks for: the rule, and the digest of what tells jobs apart."""

    digest: bytes
    rule: Rule

    def fields(self) -> tuple[Any, ...]:
        """Return what the script that enqueues reads."""
        rule = self.rule
        replaces = "1" if rule.second == "replace" else ""
        most = "" if rule.most_ms is None else rule.most_ms
        return self.digest, rule.until, replaces, rule.ms, most


NO_PLACE = ("", "", "", 0, "")
"""The fields of a job that needs none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unique:
    """No second job beside the first.

    Attributes:
        by: the parameters that tell jobs apart, a name or several; None: all arguments; ():
            none, so that the task has one job.
        key: a text that tells them apart in their place.
        until: when the next one may come: at the "end" of the first, so that never two wait or
            run; at its "start", so that never two wait; or so many seconds after the first
            was enqueued, whatever has become of it.
        second: what becomes of a call meanwhile: "return" gives the job that is there, with
            `is_new` False; "refuse" raises `DuplicateJob`; "replace" puts the new job in the
            place of the one that waits, and is refused while that runs.

    Example:
        >>> @task(unique=Unique(by="account_id", until="start"))
        ... async def synchronise(ctx: Context, account_id: int, reason: str) -> None: ...
    """

    by: By = None
    key: str | None = None
    until: Until = "end"
    second: Second = "return"

    def __post_init__(self) -> None:
        self.rule()

    def rule(self) -> Rule:
        """Return the rule; raise `SettingsError` when it makes no sense."""
        by = _told_apart("unique", self.by, self.key)
        _check_second("unique", self.second, ("return", "refuse", "replace"))
        if self.until in ("start", "end"):
            until: Any = self.until
            return Rule(option="unique", key=self.key, by=by, until=until, second=self.second)
        if isinstance(self.until, str):
            raise SettingsError(
                f'unique: until is {self.until!r}, but must be "start", "end", or seconds'
                + did_you_mean(self.until, ("start", "end")),
            )
        if self.second == "replace":
            raise SettingsError(
                'unique: second="replace" goes with until="start" or "end": '
                "for so many seconds the first job counts, which may be over by then",
            )
        ms = _milliseconds("unique: until", self.until)
        return Rule(option="unique", key=self.key, by=by, until="time", second=self.second, ms=ms)


@dataclass(frozen=True, slots=True)
class Debounce:
    """Start when no further call has come for a while; the last call's arguments count.

    Each call while the job waits takes its place, and pushes the start back. A call while it
    runs begins anew. Calls that have nothing else in common are told apart by `by` or `key`.

    Attributes:
        wait: seconds from the last call to the start.
        max_wait: seconds from the first call to the start at the latest; None: without end.
        by, key: as in `Unique`.

    Example:
        >>> @task(debounce=Debounce(5, max_wait=60, by="product_id"))
        ... async def reindex(ctx: Context, product_id: int, version: int) -> None: ...
    """

    wait: float | timedelta
    _: KW_ONLY
    max_wait: float | timedelta | None = None
    by: By = None
    key: str | None = None

    def __post_init__(self) -> None:
        self.rule()

    def rule(self) -> Rule:
        """Return the rule; raise `SettingsError` when it makes no sense."""
        by = _told_apart("debounce", self.by, self.key)
        ms = _milliseconds("debounce: wait", self.wait)
        most = None
        if self.max_wait is not None:
            most = _milliseconds("debounce: max_wait", self.max_wait)
            if most < ms:
                raise SettingsError(
                    f"debounce: max_wait is {self.max_wait}, but must not be less than "
                    f"wait, which is {self.wait}",
                )
        return Rule(
            option="debounce",
            key=self.key,
            by=by,
            until="debounce",
            second="replace",
            ms=ms,
            most_ms=most,
        )


@dataclass(frozen=True, slots=True)
class Throttle:
    """At most one job in a period: the first one. The period begins when it is enqueued.

    Attributes:
        period: seconds.
        second: what becomes of the others: "return" gives the first job, with `is_new` False;
            "refuse" raises `DuplicateJob`.
        by, key: as in `Unique`.

    Example:
        >>> @task(throttle=Throttle(60, by=()))  # once a minute, whatever the arguments
        ... async def warm_cache(ctx: Context, reason: str) -> None: ...
    """

    period: float | timedelta
    _: KW_ONLY
    second: Literal["return", "refuse"] = "return"
    by: By = None
    key: str | None = None

    def __post_init__(self) -> None:
        self.rule()

    def rule(self) -> Rule:
        """Return the rule; raise `SettingsError` when it makes no sense."""
        by = _told_apart("throttle", self.by, self.key)
        _check_second("throttle", self.second, ("return", "refuse"))
        ms = _milliseconds("throttle: period", self.period)
        return Rule(option="throttle", key=self.key, by=by, until="time", second=self.second, ms=ms)


def rule_of(
    unique: bool | Unique | None,
    debounce: float | timedelta | Debounce | None,
    throttle: float | timedelta | Throttle | None,
) -> Rule | Literal[False] | None:
    """Return the rule of the three options, False for ``unique=False``, or None for none.

    Raises:
        SettingsError: there are two of them, or one is not what it must be.
    """
    options = {"unique": unique, "debounce": debounce, "throttle": throttle}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise SettingsError(f"give one of unique, debounce and throttle, not {_listed(given)}")
    if debounce is not None:
        return (debounce if isinstance(debounce, Debounce) else Debounce(debounce)).rule()
    if throttle is not None:
        return (throttle if isinstance(throttle, Throttle) else Throttle(throttle)).rule()
    if unique is None or unique is False:
        return unique
    if unique is True:
        return Unique().rule()
    if not isinstance(unique, Unique):
        raise SettingsError(f"unique is {unique!r}, but must be True, False or Unique(...)")
    return unique.rule()


def check_parameters(rule: Rule, parameters: Collection[str], *, others: bool) -> None:
    """Raise `SettingsError` when a rule names a parameter that the task does not have.

    Args:
        rule: the rule.
        parameters: the names there are.
        others: the task takes any other name, too.
    """
    for name in rule.by or ():
        if name not in parameters and not others:
            raise SettingsError(
                f"{rule.option}: by names {name!r}, which is no parameter"
                f"{did_you_mean(name, parameters)}",
            )


def place_of(rule: Rule, task: str, arguments: Callable[[], Mapping[str, Any]]) -> Place:
    """Return the place of a call.

    Args:
        rule: the rule.
        task: the task's name; each task has places of its own.
        arguments: returns the arguments by the names of their parameters, defaults among
            them; not asked where a key tells jobs apart.

    Raises:
        ArgumentsError: an argument has no form that could be compared.
    """
    if rule.key is not None:
        told: Any = rule.key
    else:
        told = arguments()
        if rule.by is not None:
            told = {name: told[name] for name in rule.by if name in told}
    try:
        written = canonical([rule.option, task, rule.key is None, told])
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise ArgumentsError(
            f"{task}: its arguments cannot be compared with those of other jobs ({exc}); let "
            f"{rule.option} go by other parameters, or give it a key",
        ) from exc
    return Place(hashlib.blake2b(written, digest_size=16).digest(), rule)


def canonical(value: Any) -> bytes:
    """Write a value so that equal ones are equal bytes, and others are not.

    Values are equal that msgpack writes alike: a list and a tuple, an enum and its value, a UUID
    and its text. 1, 1.0, True and "1" are four values. The order of dicts and sets does not
    count; a set is no list.

    Raises:
        TypeError, ValueError, OverflowError, RecursionError: it cannot travel by msgpack.
    """
    parts: list[bytes] = []
    _write(value, parts)
    return b"".join(parts)


def _write(value: Any, parts: list[bytes]) -> None:
    """Append a value; each says how long it is, so that no two sequences of values meet."""
    if isinstance(value, dict):
        pairs = sorted((_member(name), _member(item)) for name, item in value.items())
        parts.append(_MARK + b"d" + _encode(len(pairs)))
        parts.extend(part for pair in pairs for part in pair)
    elif isinstance(value, (list, tuple)):
        parts.append(_MARK + b"l" + _encode(len(value)))
        for item in value:
            _write(item, parts)
    elif isinstance(value, (set, frozenset)):
        members = sorted(map(_member, value))
        parts.append(_MARK + b"s" + _encode(len(members)))
        parts.extend(members)
    else:
        parts.append(_encode(value))


def _member(value: Any) -> bytes:
    """Write what has to be sorted; what is long by its digest, so that depth costs nothing."""
    written = canonical(value)
    if len(written) <= LONG_BYTES:
        return written
    return _MARK + b"h" + hashlib.blake2b(written, digest_size=32).digest()


def _told_apart(option: str, by: Any, key: Any) -> tuple[str, ...] | None:
    if key is not None:
        if by is not None:
            raise SettingsError(f"{option}: give either by or key, not both")
        if not isinstance(key, str) or not key:
            raise SettingsError(f"{option}: key is {key!r}, but must be a text that is not empty")
        return None
    if by is None:
        return None
    names = (by,) if isinstance(by, str) else by
    if not isinstance(names, (list, tuple)) or not all(
        isinstance(name, str) and name for name in names
    ):
        raise SettingsError(f"{option}: by is {by!r}, but must be a parameter's name, or several")
    return tuple(sorted(set(names)))


def _check_second(option: str, second: Any, choices: tuple[str, ...]) -> None:
    if second not in choices:
        wanted = ", ".join(f'"{choice}"' for choice in choices)
        hint = did_you_mean(second, choices) if isinstance(second, str) else ""
        raise SettingsError(f"{option}: second is {second!r}, but must be one of {wanted}{hint}")


def _milliseconds(name: str, given: Any) -> int:
    value = given.total_seconds() if isinstance(given, timedelta) else given
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or not LEAST_S <= value <= MOST_S
    ):
        raise SettingsError(
            f"{name} is {given!r}, but must be seconds or a timedelta, from {LEAST_S} s to "
            "ten years"
        )
    return round(value * 1000)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


__all__ = [
    "NO_PLACE",
    "Debounce",
    "Place",
    "Rule",
    "Second",
    "Throttle",
    "Unique",
    "canonical",
    "check_parameters",
    "place_of",
    "rule_of",
]
