"""What the person at the terminal sees while departures are recorded.

On a terminal, a bar for each airline and one for the writer, drawn again four times a second.
Elsewhere (a file, a pipe, CI), a line every few seconds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

DRAW_EVERY_S = 0.25
LINE_EVERY_S = 3.0

_DONE, _SENT, _AHEAD = "green", "yellow", "bright_black"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Where a screen reads what it shows; everything is read anew for each drawing.

    Attributes:
        title: what is going on.
        names: the airlines and their names.
        totals: how many departures each airline has.
        sent: how many of them have left their service.
        committed: how many of them are in Postgres.
        writer: the label behind the writer's bar, None for a run without a writer.
        foot: the line below the bars.
    """

    title: str
    names: Mapping[str, str]
    totals: Mapping[str, int]
    sent: Callable[[], Mapping[str, int]]
    committed: Callable[[], Mapping[str, int]]
    writer: Callable[[], str] | None
    foot: Callable[[], str]


class Screen(Protocol):
    """Shows a run; `with` it, `keep_drawing` in a task, `say` at any time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def say(self, text: str) -> None:
        """Print a line that stays."""

    async def keep_drawing(self) -> None:
        """Draw until cancelled."""


def open_screen(console: Console, view: View) -> Screen:
    """Return the screen that fits the console."""
    return LiveScreen(console, view) if console.is_terminal else PlainScreen(console, view)


@dataclass(slots=True)
class PlainScreen:
    """Lines for a log."""

    console: Console
    view: View

    def __enter__(self) -> Self:
        self.console.print(self.view.title, highlight=False, soft_wrap=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._line()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)

    async def keep_drawing(self) -> None:
        """Print a line every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(LINE_EVERY_S)
            self._line()

    def _line(self) -> None:
        done = sum(self.view.committed().values())
        total = sum(self.view.totals.values())
        self.say(f"{done:,} of {total:,} committed · {self.view.foot()}")


@dataclass(slots=True)
class LiveScreen:
    """Bars on a terminal, drawn in place."""

    console: Console
    view: View
    _live: Live = field(init=False)

    def __post_init__(self) -> None:
        self._live = Live(console=self.console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._draw()
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(Text(text, style="magenta"), highlight=False)

    async def keep_drawing(self) -> None:
        """Draw a few times a second, until cancelled."""
        while True:
            self._draw()
            await asyncio.sleep(DRAW_EVERY_S)

    def _draw(self) -> None:
        self._live.update(draw(self.view), refresh=True)


def draw(view: View) -> RenderableType:
    """Return the bars and the line below them."""
    sent, committed = view.sent(), view.committed()
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(ratio=1)
    table.add_column(justify="right", no_wrap=True)
    for carrier, total in view.totals.items():
        done = committed.get(carrier, 0)
        bar = Bar(done=done, sent=sent.get(carrier, 0), total=total)
        table.add_row(carrier, view.names[carrier], bar, f"{done:,}/{total:,}")
    if view.writer is not None:
        done, total = sum(committed.values()), sum(view.totals.values())
        bar = Bar(done=done, sent=sum(sent.values()), total=total, style="cyan")
        table.add_row("→", "the one writer", bar, view.writer())
    legend = Text.assemble(
        *(("━ ", _DONE), "committed   ", ("━ ", _SENT), "sent, not yet committed   "),
        *(("━ ", _AHEAD), "to come"),
    )
    return Group(Text(view.title, style="bold", no_wrap=True), table, legend, Text(view.foot()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar in three parts, as wide as its column: done, sent, and still to come."""

    done: int
    sent: int
    total: int
    style: str = _DONE

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text(options.max_width)

    def text(self, width: int) -> Text:
        """Return the bar at this width; a part that is not empty is at least seen when full."""
        done = width * min(self.done, self.total) // self.total if self.total else width
        sent = (
            width * min(max(self.sent, self.done), self.total) // self.total
            if self.total
            else width
        )
        return Text.assemble(
            ("━" * done, self.style),
            ("━" * (sent - done), _SENT),
            ("━" * (width - sent), _AHEAD),
            no_wrap=True,
        )
