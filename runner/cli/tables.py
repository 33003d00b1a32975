"""What commands print: tables and times for people; and how they read JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from runner.lengths import coarse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from runner.errors import RunnerError

T = TypeVar("T")

NARROWEST, ROOMY = 12, 24
"""To how many characters a column may be cut, and what it should have."""
GAP = 2
_NUMBERS = re.compile(r"(?:[\d.,/]+(?: (?:ms|s|min|h|d|MB))?)?")
_COLOURS = {
    **dict.fromkeys(("succeeded", "running", "on", "queued"), "green"),
    **dict.fromkeys(("retrying", "retried", "draining", "paused", "stopping", "waiting"), "yellow"),
    **dict.fromkeys(("failed", "timed_out", "too_many_tries", "too_many_crashes"), "red"),
    **dict.fromkeys(("unreadable", "undecodable", "unknown_task", "expired"), "red"),
}


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    flexible: Sequence[int] = (),
    extra: Sequence[int] = (),
    spare: Sequence[int] = (),
    width: int | None = None,
) -> Iterable[str]:
    """Give the lines of a table; columns of numbers stand on the right.

    Args:
        heads: the columns.
        rows: texts; control characters in them are escaped.
        flexible: columns that are cut where the table is too wide, the first one first; below
            what they should have the last one first.
        extra: columns that are left out before a flexible one is cut below what it should have,
            the first one first.
        spare: columns that are left out where all that is not enough.
        width: characters of a line; None: those of the terminal, and what is no terminal has room.
    """
    cells = [[escaped(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    room = _room() if width is None else width
    shown = list(range(len(widths)))
    if room:
        for left_out, least in ((extra, ROOMY), (spare, NARROWEST)):
            cut_widths = [min(w, least) if c in flexible else w for c, w in enumerate(widths)]
            for column in left_out:
                if _sum(cut_widths, shown) > room:
                    shown.remove(column)
        for least, columns in ((ROOMY, flexible), (NARROWEST, tuple(reversed(flexible)))):
            for column in (column for column in columns if column in shown):
                over = max(_sum(widths, shown) - room, 0)
                widths[column] = max(widths[column] - over, min(widths[column], least))
    right = {c for c in shown if cells and all(_NUMBERS.fullmatch(row[c]) for row in cells)}
    yield _line(heads, shown, widths, right, is_head=True)
    for row in cells:
        yield _line(row, shown, widths, right, is_head=False)


def _line(
    cells: Sequence[str],
    shown: Sequence[int],
    widths: Sequence[int],
    right: set[int],
    *,
    is_head: bool,
) -> str:
    texts = []
    for column in shown:
        text = cut(cells[column], widths[column])
        pad = " " * (widths[column] - len(text))
        if column == shown[-1] and column not in right:
            pad = ""
        text = _styled(text, is_head=is_head)
        texts.append(pad + text if column in right else text + pad)
    return (" " * GAP).join(texts).rstrip()


def _styled(text: str, *, is_head: bool) -> str:
    """Return a text with colour, on a terminal whose owner wants any."""
    if not text or os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return text
    if is_head:
        return click.style(text, bold=True)
    colour = _COLOURS.get(text)
    return text if colour is None else click.style(text, fg=colour)


def _sum(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[column] for column in shown) + GAP * (len(shown) - 1)


def _room() -> int:
    """Return how many characters a line of the terminal has; 0 for what is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def show(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        click.echo(line)


def cut(text: str, width: int) -> str:
    """Return a text that is not longer."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def rate(per_second: float) -> str:
    """Return how many there are by the second; a few are not none."""
    return f"{per_second:.1f}" if per_second >= 0.1 or not per_second else f"{per_second:.2f}"  # noqa: PLR2004


def ago(when: datetime | float | None) -> str:
    """Return how long ago a time was, or in how long it will be; "" for none.

    Args:
        when: a time, or Unix time in milliseconds.
    """
    if not when:
        return ""
    past_ms = _past_ms(when)
    return f"{coarse(past_ms)} ago" if past_ms >= 0 else f"in {coarse(-past_ms)}"


def since(when: datetime | float | None) -> str:
    """Return the same of a time that is past, for a column whose head says "ago"."""
    return coarse(max(_past_ms(when), 0)) if when else ""


def _past_ms(when: datetime | float) -> float:
    at_ms = when.timestamp() * 1000 if isinstance(when, datetime) else when
    return time.time() * 1000 - at_ms


def escaped(text: str) -> str:
    """Return text that does nothing to a terminal: what jobs say is theirs."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode()
        for char in text.encode(errors="backslashreplace").decode()
    )


def as_json(value: Any) -> str:
    """Return indented JSON; what JSON does not know as text."""
    return json.dumps(value, indent=2, default=str)


def as_line(value: Any) -> str:
    """Return JSON on one line."""
    return json.dumps(value, default=str)


def fields_of(value: Any) -> Any:
    """Return a record as a dict with the names of its fields, also one that travels as an array."""
    if isinstance(value, msgspec.Struct):
        return {name: fields_of(getattr(value, name)) for name in value.__struct_fields__}
    return [fields_of(each) for each in value] if isinstance(value, (list, tuple)) else value


def moment(unix_ms: float) -> str:
    """Return a time in UTC, to the second; "" for none."""
    if not unix_ms:
        return ""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def ms_of(when: datetime | None) -> int:
    """Return a time as JSON has it everywhere, Unix time in milliseconds; 0 for none."""
    return 0 if when is None else round(when.timestamp() * 1000)


def listed(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what a list has of a job: its earlier errors are not read there, so it has none."""
    return {name: value for name, value in facts.items() if name != "errors"}


def told(facts: Mapping[str, Any], *, without: Sequence[str] = ()) -> list[str]:
    """Return lines that show to a person what JSON has; what is empty is left out."""
    said = {
        name.removesuffix("_ms"): moment(value) + " UTC" if name.endswith("_ms") else str(value)
        for name, value in facts.items()
        if name not in without and value not in ("", None) and (value or not name.endswith("_ms"))
    }
    width = max(map(len, said), default=0)
    return [f"{name:>{width}}  {escaped(text)}" for name, text in said.items()]


def stamp(when: datetime | None) -> str:
    """Return a time with its zone, to the millisecond; "" for none."""
    return "" if when is None else when.isoformat(timespec="milliseconds")


def read_json(text: str, kind: type[T], option: str, wanted: str, *, error: type[RunnerError]) -> T:
    """Read an option that is JSON; raise `error`, naming the option."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise error(f"{option} is no JSON: {exc}") from None
    if not isinstance(value, kind):
        raise error(f"{option} must be {wanted}, not {text}")
    return value


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed, unless `yes`; where nobody can answer, refuse."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.ClickException(f"{question} Say --yes: nobody is here to answer.")
    click.confirm(question, abort=True)
