"""Rates as people write them, and the names of limits."""

from __future__ import annotations

import re

from runner.errors import LimitError

_RATE = re.compile(r"\s*(\d+)\s*/\s*(\d*\.?\d*)\s*([a-z]+)\s*")
_UNITS_US = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_WORDS = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "day": "d"}
_LEAST_PERIOD_US = 1_000
_MOST_PERIOD_US = 366 * _UNITS_US["d"]
MOST_NAME = 200


def count_and_period(rate: str) -> tuple[int, int]:
    """Read "100/m", "5/10s" or "1/hour": how many, and in how many microseconds.

    Raises:
        LimitError: it cannot be read, or is none that could be kept.
    """
    given: object = rate
    match = _RATE.fullmatch(given) if isinstance(given, str) else None
    unit = _WORDS.get(match[3], match[3]) if match else ""
    if match is None or unit not in _UNITS_US or match[2] == ".":
        raise LimitError(
            f'a rate is a text like "100/m", "5/10s" or "1000/h" (ms, s, m, h, d), not {rate!r}',
        )
    count, period_us = int(match[1]), round(float(match[2] or 1) * _UNITS_US[unit])
    if count < 1 or not _LEAST_PERIOD_US <= period_us <= _MOST_PERIOD_US:
        raise LimitError(
            f"the rate {rate!r} must allow 1 or more in a period from 1 ms to a year; to let "
            f"nothing run, pause the task",
        )
    return count, period_us


def period_shown(period_us: int) -> str:
    """Return a period as it is written in a rate: "m", "10s"."""
    for unit, size in reversed(_UNITS_US.items()):
        if period_us % size == 0:
            return unit if period_us == size else f"{period_us // size}{unit}"
    return f"{period_us / 1000:g}ms"


def checked_name(name: object) -> str:
    """Return the name of a limit; raise `LimitError` for one that could not be told apart."""
    if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME:
        raise LimitError(f"a limit needs a name of 1 to {MOST_NAME} letters, not {name!r}")
    if "[" in name or not name.isprintable():
        raise LimitError(f"the name of a limit has no '[' and no control characters: {name!r}")
    return name
