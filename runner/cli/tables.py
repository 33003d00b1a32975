"""What commands print: tables and times for people; and how they read JSON."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runner.errors import RunnerError

T = TypeVar("T")

NARROWEST = 12


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, flexible: int | None = None
) -> Iterable[str]:
    """Give the lines of a table.

    Args:
        heads: the columns.
        rows: texts; control characters in them are escaped.
        flexible: the column that is cut so that the table fits a terminal.
    """
    cells = [[escaped(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    if flexible is not None and sys.stdout.isatty():
        others = sum(widths) - widths[flexible] + 2 * (len(widths) - 1)
        room = max(shutil.get_terminal_size().columns - others, NARROWEST)
        widths[flexible] = min(widths[flexible], room)
    for row in (list(heads), *cells):
        shown = (cut(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(shown).rstrip()


def cut(text: str, width: int) -> str:
    """Return a text that is not longer."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def escaped(text: str) -> str:
    """Return text that does nothing to a terminal: what jobs say is theirs."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode()
        for char in text.encode(errors="backslashreplace").decode()
    )


def as_json(value: Any) -> str:
    """Return indented JSON; what JSON does not know as text."""
    return json.dumps(value, indent=2, default=str)


def moment(unix_ms: float) -> str:
    """Return a time in UTC, to the second; "" for none."""
    if not unix_ms:
        return ""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def stamp(when: datetime | None) -> str:
    """Return a time with its zone, to the millisecond; "" for none."""
    return "" if when is None else when.isoformat(timespec="milliseconds")


def read_json(text: str, kind: type[T], option: str, wanted: str, *, error: type[RunnerError]) -> T:
    """Read an option that is JSON; raise `error`, naming the option."""
    try:
        value = json.loads(text)
    except ValueError as exc:
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
