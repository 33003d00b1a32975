"""Time zones by name, and the moments at which their clocks are put forward or back."""

from __future__ import annotations

import functools
import os
import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from runner.errors import ScheduleError, did_you_mean

_OFFSET = re.compile(r"^([+-])(\d\d):(\d\d)$")
_MARK = "zoneinfo/"


@functools.lru_cache(maxsize=512)
def zone(name: str) -> tzinfo:
    """Return the zone of a name such as "Europe/Zurich", or of an offset such as "+05:30".

    Raises:
        ScheduleError: there is no such zone.
    """
    if name in ("UTC", "Etc/UTC", "Z"):
        return UTC
    if match := _OFFSET.match(name):
        sign = 1 if match[1] == "+" else -1
        minutes = int(match[2]) * 60 + int(match[3])
        if minutes < 24 * 60:
            return timezone(sign * timedelta(minutes=minutes))
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        hint = did_you_mean(name, available_timezones())
        raise ScheduleError(f"there is no time zone {name!r}{hint}") from None


def name_of(given: tzinfo | None) -> str:
    """Return the name under which `zone` finds a tzinfo; None is the zone of this machine.

    A zone without a name, as of another library, counts with its offset of this moment.
    """
    if given is None:
        return _local_name()
    if given is UTC:
        return "UTC"
    name = getattr(given, "key", None) or getattr(given, "zone", None)
    if isinstance(name, str):
        return name
    return _offset_name(datetime.now(given))


def offset_at(second: int, where: tzinfo) -> int:
    """Return how many seconds local time is ahead of UTC at a Unix time."""
    ahead = datetime.fromtimestamp(second, where).utcoffset()
    assert ahead is not None  # the datetime has a zone
    return int(ahead.total_seconds())


def change_between(before: int, after: int, where: tzinfo, *, offset: int) -> int:
    """Return the first second after `before` whose offset is not this one.

    Args:
        before: a Unix time; the offset holds from the second behind it, if not earlier.
        after: a later one with another offset, and one change of the clocks between them.
        where: the zone.
        offset: seconds ahead of UTC.
    """
    while after - before > 1:
        middle = (before + after) // 2
        if offset_at(middle, where) == offset:
            before = middle
        else:
            after = middle
    return after


def _local_name() -> str:
    named = os.environ.get("TZ", "").removeprefix(":")
    for name in (named, str(Path("/etc/localtime").resolve()).partition(_MARK)[2]):
        if name:
            try:
                zone(name)
            except ScheduleError:
                continue
            return name
    return _offset_name(datetime.now().astimezone())


def _offset_name(moment: datetime) -> str:
    ahead = moment.utcoffset() or timedelta()
    minutes = round(ahead.total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
