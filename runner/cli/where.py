"""The options that commands share: which settings, which queue, which arguments and times."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from runner.cli.load import do, load_settings, tasks_by
from runner.errors import ArgumentsError
from runner.letters.filters import read_argument

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from runner.client import Client
    from runner.settings import WorkerSettings
    from runner.tasks import Task

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
MOST_SPAN = timedelta(days=50 * 365)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command looks: a settings class, and a queue, "" for that of the settings."""

    path: str
    queue: str

    def settings(self) -> type[WorkerSettings]:
        """Import the settings."""
        return load_settings(self.path)

    def do(self, work: Callable[[Client, str], Awaitable[Any]]) -> Any:
        """Do something with a client and the queue's name."""
        settings = self.settings()
        queue = self.queue or settings.queue_name
        return do(settings, lambda client: work(client, queue))

    def tasks(self) -> list[Task[..., Any]]:
        """Return the declared tasks."""
        return list(tasks_by(self.settings()).values())

    def task(self, name: str | None) -> Task[..., Any] | str | None:
        """Return the declared task of that name, so that its parameters are known; or the name."""
        return None if name is None else tasks_by(self.settings()).get(name, name)


settings_option = click.option(
    "--settings",
    "path",
    default="settings.WorkerSettings",
    show_default=True,
    help="The class that the workers use, for its redis_settings, queues and codec.",
)


def at_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a group the options that say where to look."""
    queue = click.option("--queue", default="", help="The queue; default: that of the settings.")
    return settings_option(queue(command))


def time(text: str) -> datetime:
    """Read a time: ISO 8601, UTC where it names no zone; or how long ago, such as 30m, 2h, 7d."""
    try:
        if ago := span_of(text):
            return datetime.now(UTC) - ago
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no time: give 2026-11-22T18:00, or how long ago, such as 30m, 2h, 7d",
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def span(text: str) -> timedelta:
    """Read a length of time: 90, 90s, 30m, 2h, 7d."""
    read = span_of(f"{text}s" if text.replace(".", "", 1).isdigit() else text)
    if read is None:
        shown = text if len(text) < 30 else f"{text[:30]}…"  # noqa: PLR2004  enough to know it by
        raise click.BadParameter(f"{shown!r} is no length of time: give 90, 90s, 30m, 2h or 7d")
    if read > MOST_SPAN:
        raise click.BadParameter(f"{text!r} is more than fifty years")
    return read


def span_of(text: str) -> timedelta | None:
    """Read a length of time such as 30m, None when it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    try:
        return timedelta(**{_UNITS[found[2]]: float(found[1])}) if found else None
    except OverflowError:
        return None  # longer than anything


def arguments(given: tuple[str, ...]) -> Mapping[str | int, Any]:
    """Read ``--arg name=value``: a value is JSON, or else text; a whole number names a place."""
    wanted: dict[str | int, Any] = {}
    for text in given:
        try:
            name, value = read_argument(text)
        except ArgumentsError as exc:
            raise click.BadParameter(str(exc), param_hint="--arg") from None
        wanted[name] = value
    return wanted


by_arg = click.option(
    "--arg",
    "args",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument has this value (JSON, or text). NAME may be a place, from 0. Repeatable.",
)


def or_list(ctx: click.Context, *, as_json: bool) -> None:
    """Run the command `list` of a group where none is named."""
    if ctx.invoked_subcommand is None and isinstance(ctx.command, click.Group):
        command, words = ctx.command.commands["list"], ["--json"] if as_json else []
        with command.make_context("list", words, parent=ctx) as inner:
            command.invoke(inner)


as_json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_flag = click.option("--yes", is_flag=True, help="Do not ask.")
