"""Make rows of the job log: bounded, and nothing in them that Postgres would refuse.

What jobs are called with is anybody's: texts with NUL and half characters, numbers beyond every
type, nesting without end. A row that Postgres refuses would take the rows beside it along.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from runner import failures

if TYPE_CHECKING:
    from runner.execution import Attempt

MOST_NAME = 200
"""The characters of an id or a name: an entry of an index has 2,700 bytes at most."""
MOST_ERROR = 2_000
MOST_TEXT = 500
MOST_ITEMS = 50
MOST_VALUES = 500
"""Of all that a job is called with; what is beyond stands as "…"."""
MOST_CHARS = 4_000
"""Of all texts that a job is called with, together."""
MOST_DEPTH = 8
MOST_INT = 2**63
CUT = "…"

_encode = msgspec.json.Encoder().encode
_CONTAINERS = (Mapping, Sequence, AbstractSet)
_SCALARS = (str, bytes, bytearray, memoryview)
_PLAINLY = (dt.datetime, dt.date, dt.time, dt.timedelta, UUID, Decimal)


def text(value: str, most: int = MOST_TEXT) -> str:
    """Return a text that Postgres takes, and that is no longer than `most` characters."""
    if len(value) > most:
        value = value[: most - 1] + CUT
    if "\0" in value:
        value = value.replace("\0", "\\x00")
    if value.isascii():
        return value
    return value.encode(errors="backslashreplace").decode()


def identity(job_id: str) -> str:
    """Return an id as rows have it: one that is too long ends with a digest of all of it."""
    if len(job_id) <= MOST_NAME:
        return text(job_id, MOST_NAME)
    digest = hashlib.blake2b(job_id.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return text(job_id, MOST_NAME - len(digest)) + digest


def moment(unix_ms: float) -> dt.datetime | None:
    """Return a time, None for none, and for one that no calendar has."""
    try:
        return dt.datetime.fromtimestamp(unix_ms / 1000, dt.UTC) if unix_ms > 0 else None
    except (OverflowError, ValueError, OSError):
        return None


def arguments(attempt: Attempt) -> str:
    """Return what a job was called with as JSON: an object by name, or by place from 0."""
    record = attempt.record
    named: list[tuple[str, Any]]
    if attempt.task is None:
        named = [*((str(place), value) for place, value in enumerate(record.args))]
        named += record.kwargs.items()
    else:
        named = [*attempt.task.signature.named(record.args, record.kwargs)]
    return as_json(dict(named))


def as_json(values: Mapping[str, Any]) -> str:
    """Return values as JSON, cut to what a row may hold."""
    return _encode(_Plain().object(values, 0)).decode()


def error_of(result: object) -> tuple[str, str]:
    """Return the class of an exception and what it says."""
    if not isinstance(result, BaseException):
        return "", ""
    kind = text(type(result).__qualname__, MOST_NAME)
    return kind, text(failures.message_of(result), MOST_ERROR)


class _Plain:
    """Turns values into what JSON of Postgres can hold, as many as there is room for."""

    def __init__(self) -> None:
        self._left = MOST_VALUES
        self._room = MOST_CHARS

    def object(self, values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for name, value in values.items():
            if self._left <= 0 or len(plain) >= MOST_ITEMS:
                plain[CUT] = len(values) - len(plain)
                break
            key = self._text(name if isinstance(name, str) else _shown(name), MOST_NAME)
            plain[key] = self.value(value, depth + 1)
        return plain

    def value(self, value: Any, depth: int) -> Any:
        """Return a value as JSON has it; a container as far as there is room."""
        self._left -= 1
        if self._left < 0:
            return CUT
        if isinstance(value, Enum):
            value = value.value
        if not isinstance(value, _CONTAINERS) or isinstance(value, _SCALARS):
            return self._scalar(value)
        if depth >= MOST_DEPTH:
            return CUT
        if isinstance(value, Mapping):
            return self.object(value, depth)
        return self._list(value, depth)

    def _scalar(self, value: Any) -> Any:
        match value:
            case None | bool():
                return value
            case str():
                return self._text(str(value), MOST_TEXT)
            case int() if -MOST_INT <= value < MOST_INT:
                return int(value)
            case float() if math.isfinite(value):
                return float(value)
            case bytes() | bytearray() | memoryview():
                return f"<{len(value)} bytes>"
        return _shown(value)

    def _text(self, value: str, most: int) -> str:
        cut = text(value, max(min(most, self._room), 1))
        self._room -= len(cut)
        return cut

    def _list(self, values: Any, depth: int) -> list[Any]:
        plain: list[Any] = []
        for value in values:
            if self._left <= 0 or len(plain) >= MOST_ITEMS:
                plain.append(f"{CUT} {len(values) - len(plain)} more")
                break
            plain.append(self.value(value, depth + 1))
        return plain


def _shown(value: Any) -> str:
    """Return a short text for what JSON has no word for; no code of users is run."""
    if isinstance(value, int) and not isinstance(value, bool):
        # To write down a number of thousands of digits takes long, or is refused.
        small = value.bit_length() < 1_000  # noqa: PLR2004  three hundred digits
        return str(value) if small else f"<a number of {value.bit_length()} bits>"
    if type(value) in _PLAINLY or value is None or isinstance(value, float):
        return text(str(value), MOST_NAME)
    return text(f"<{type(value).__qualname__}>", MOST_NAME)
