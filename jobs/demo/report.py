"""What is said when a run has ended: the tables, and whether every total is right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import ROUNDED
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rich.console import Console

    from jobs.demo.check import Difference
    from jobs.demo.watch import Connections
    from jobs.departures import Route

SHOWN_DIFFERENCES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a run did, in figures.

    Attributes:
        name: the way it went.
        departures: departures committed.
        jobs: jobs enqueued, None for a run without jobs.
        retries: attempts that were made again.
        writes: rows inserted or changed, counted as the services asked for them.
        transactions: transactions that wrote them.
        connections: connections to Postgres that were seen.
        deadlocks: deadlocks that Postgres had to break.
        seconds: from the first departure sent to the last one committed.
        refused: lines that were refused.
        kills: processes killed on purpose.
    """

    name: str
    departures: int
    jobs: int | None
    retries: int
    writes: int
    transactions: int
    connections: Connections
    deadlocks: int
    seconds: float
    refused: int
    kills: int


_LINES: tuple[tuple[str, Callable[[Account], str]], ...] = (
    ("departures", lambda a: f"{a.departures:,}"),
    ("jobs", lambda a: "none" if a.jobs is None else f"{a.jobs:,}"),
    ("retries", lambda a: f"{a.retries:,}"),
    ("bad lines refused", lambda a: f"{a.refused:,}"),
    ("writes", lambda a: f"{a.writes:,}"),
    ("transactions (batches)", lambda a: f"{a.transactions:,}"),
    ("writes in a transaction", lambda a: f"{a.writes / max(a.transactions, 1):,.1f}"),
    ("connections to Postgres, at most", lambda a: f"{a.connections.most:,}"),
    ("deadlocks", lambda a: f"{a.deadlocks:,}"),
    ("seconds", lambda a: f"{a.seconds:,.1f}"),
    ("departures a second", lambda a: f"{a.departures / a.seconds:,.0f}"),
    ("writes a second", lambda a: f"{a.writes / a.seconds:,.0f}"),
)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=ROUNDED)


def print_accounts(console: Console, accounts: Sequence[Account]) -> None:
    """Print the runs side by side."""
    table = _table("The run in figures")
    table.add_column("")
    for account in accounts:
        table.add_column(account.name, justify="right")
    for label, figure in _LINES:
        table.add_row(label, *(figure(account) for account in accounts))
    if any(account.kills for account in accounts):
        table.add_row("processes killed", *(f"{account.kills:,}" for account in accounts))
    console.print(table)


def print_connections(console: Console, connections: Connections, monitor: str) -> None:
    """Name the connections to Postgres that were seen."""
    names = ", ".join(
        f"{count} {name}" + (f" ({opened} in turn)" if opened > count else "")
        for name, count in connections.peak.most_common()
        for opened in [connections.opened[name]]
    )
    say(console, f"Connections by name: {names or 'none'}; not counted: our own {monitor}.")


def print_routes(console: Console, routes: Iterable[Route], airports: Mapping[str, str]) -> None:
    """Print the worst routes."""
    table = _table("The worst routes")
    table.add_column("from")
    table.add_column("to", no_wrap=True)
    table.add_column("flights", justify="right")
    table.add_column("mean delay", justify="right")
    for route in routes:
        dest = f"{route.dest} {airports.get(route.dest, '')}".rstrip()
        mean = f"{route.mean_delay:.1f} min"
        table.add_row(route.origin, dest, f"{route.flights:,}", mean)
    console.print(table if table.row_count else "No route has enough flights to be called bad.")


def print_differences(console: Console, differences: Sequence[Difference]) -> None:
    """Name what is off, the first twenty."""
    count = len(differences)
    say(console, f"Not exact: {count:,} difference{'s' * (count != 1)} to the file.", "bold red")
    for difference in differences[:SHOWN_DIFFERENCES]:
        say(console, f"  {difference}")
    if count > SHOWN_DIFFERENCES:
        say(console, f"  ... and {count - SHOWN_DIFFERENCES:,} more")


def say(console: Console, text: str, style: str = "") -> None:
    """Print a sentence: wrapped for a person, on one line for a log."""
    wraps = not console.is_terminal
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=wraps)


def place(path: Path) -> str:
    """Return the path as seen from where we are, when that is shorter."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
