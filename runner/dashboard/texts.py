"""Figures, times and values as people read them; bounded, whatever the value is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from runner.lengths import coarse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MOST_CELL = 120
MOST_TOLD = 20_000
MOST_ITEMS = 200
MOST_DEPTH = 8
LEAST = 0.01
NOTHING = "\N{EN DASH}"

_BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def number(value: float) -> str:
    """Return a count with its thousands apart; a fraction with one digit, below one with two."""
    if value % 1:
        return f"{value:,.1f}" if value >= 1 else f"{value:.2f}" if value >= LEAST else f"<{LEAST}"
    return f"{value:,.0f}"


def noun(count: float, one: str, many: str = "") -> str:
    """Return the word for so many of them: unit, units."""
    return one if count == 1 else many or f"{one}s"


def lately(seconds: int, minutes: int) -> str:
    """Return what span of time a figure is of: the last minutes, or as long as there is any."""
    whole = seconds > (minutes - 1) * 60
    return f"last {minutes} minutes" if whole else f"last {coarse(seconds * 1000)}"


def size(count: float) -> str:
    """Return a number of bytes: 12 MB."""
    for unit, one in _BYTES:
        if count >= one:
            return f"{count / one:.1f} {unit}" if count < 10 * one else f"{count / one:.0f} {unit}"
    return f"{count:.0f} B"


def away(ms: float, now_ms: float) -> str:
    """Return how far a time is: "3 s ago", "in 2.0 min"."""
    apart = now_ms - ms
    if abs(apart) < 1_000:  # noqa: PLR2004  a second
        return "now"
    return f"{coarse(apart)} ago" if apart > 0 else f"in {coarse(-apart)}"


def stamp(ms: float) -> str:
    """Return a time in UTC, to the millisecond; "" for none."""
    if not ms:
        return ""
    try:
        moment = datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return str(ms)  # a time that no calendar has
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d} UTC"


def visible(text: str) -> str:
    """Return text whose control characters, and bytes that are no text, can be seen."""
    safe = text.encode(errors="backslashreplace").decode()
    if safe.isprintable():
        return safe
    return "".join(
        char if char.isprintable() or char in "\n\t" else f"\\u{ord(char):04x}" for char in safe
    )


def cut(text: str, most: int = MOST_CELL) -> str:
    """Return visible text on one line that is not longer."""
    line = visible(text[: most + 1]).replace("\n", " ")
    return line if len(line) <= most else f"{line[: most - 1]}…"


def call(args: Sequence[Any], kwargs: Mapping[str, Any], most: int = MOST_CELL) -> str:
    """Return arguments as they stand in a call, on one line that is not longer."""
    parts: list[str] = []
    left = most
    for name, value in _named(args, kwargs):
        text = f"{name}={brief(value, left)}" if name else brief(value, left)
        parts.append(text)
        left -= len(text) + 2
        if left <= 0:
            break
    return cut(", ".join(parts), most)


def brief(value: Any, most: int) -> str:
    """Return a value on one line; no more of it is looked at than is shown."""
    return cut("".join(_Teller(most + 1, indents=False).pieces(value)), max(most, 8))


def told(value: Any, most: int = MOST_TOLD) -> str:
    """Return a value on lines of its own parts, cut where it is too long."""
    text = "".join(_Teller(most, indents=True).pieces(value))
    return visible(text if len(text) <= most else f"{text[:most]}\n…")


def _named(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for value in args:
        yield "", value
    yield from kwargs.items()


class _Teller:
    """Writes a value down, and stops when enough is written."""

    def __init__(self, most: int, *, indents: bool) -> None:
        self.left = most
        self.indents = indents

    def pieces(self, value: Any, depth: int = 0) -> Iterator[str]:
        if self.left <= 0:
            return
        if isinstance(value, dict):
            yield from self._items("{}", list(value.items())[:MOST_ITEMS], len(value), depth)
        elif isinstance(value, list | tuple | set | frozenset):
            brackets = "()" if isinstance(value, tuple) else "[]"
            items = [(None, each) for _, each in zip(range(MOST_ITEMS), value, strict=False)]
            yield from self._items(brackets, items, len(value), depth)
        else:
            yield self._took(self._leaf(value))

    def _items(
        self, brackets: str, items: list[tuple[Any, Any]], count: int, depth: int
    ) -> Iterator[str]:
        if not items:
            yield self._took(brackets)
            return
        if depth >= MOST_DEPTH:
            yield self._took(f"{brackets[0]}…{brackets[1]}")
            return
        apart = "\n" + "  " * (depth + 1) if self.indents else ""
        yield self._took(brackets[0])
        for index, (key, each) in enumerate(items):
            if self.left <= 0:
                return
            yield self._took(("" if not index else "," if self.indents else ", ") + apart)
            if key is not None or brackets == "{}":
                yield self._took(f"{self._leaf(key)}: ")
            yield from self.pieces(each, depth + 1)
        if count > len(items):
            yield self._took(f",{apart or ' '}… {count - len(items):,} more")
        yield self._took(("\n" + "  " * depth if self.indents else "") + brackets[1])

    def _leaf(self, value: Any) -> str:
        if isinstance(value, str | bytes | bytearray):
            part = value[: max(self.left, 1)]
            more = "" if len(part) == len(value) else f"… ({len(value):,} in all)"
            return f"{part!r}{more}"
        try:
            return repr(value)
        except Exception as exc:  # noqa: BLE001  a value's own __repr__, or a number too long to write
            return f"<{type(value).__qualname__}: {type(exc).__name__}>"

    def _took(self, text: str) -> str:
        self.left -= len(text)
        return text


__all__ = [
    "NOTHING",
    "away",
    "brief",
    "call",
    "cut",
    "lately",
    "number",
    "size",
    "stamp",
    "told",
    "visible",
]
