"""``runner queues``: what waits, for how long, and how it went; queues that are paused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import msgspec

from runner.cli import where as options
from runner.cli.tables import as_json, escaped, rate, show, table
from runner.cli.where import Place
from runner.inspect import begun_ms
from runner.lengths import length
from runner.queues import named

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runner.client import Client
    from runner.inspect import Period, QueueLoad
    from runner.settings import WorkerSettings

HEADS = ("QUEUE", "DUE", "LATER", "RUNNING", "LAG", "JOBS/S", "FAILED", "WAIT P95", "RUN P95", "")
SPAN_MIN = 2


@dataclass(frozen=True, slots=True)
class QueueRow:
    """What is shown of one queue: what waits, and how it went."""

    load: QueueLoad
    last: Period

    def shown(self) -> dict[str, Any]:
        """Return what is printed as JSON."""
        return {**msgspec.to_builtins(self.load), "last": msgspec.to_builtins(self.last)}

    def cells(self) -> list[str]:
        """Return the row of a table."""
        load, last = self.load, self.last
        return [
            load.queue,
            str(load.due),
            str(load.later),
            str(load.running),
            length(load.lag_s * 1000),
            rate(last.per_second),
            str(last.failed),
            length(last.wait.p95),
            length(last.run.p95),
            "paused" if load.is_paused else "",
        ]


@click.group(invoke_without_command=True)
@options.at_settings
@options.as_json_flag
@click.pass_context
def queues(ctx: click.Context, path: str, queue: str, *, as_json: bool) -> None:
    """Show what waits in each queue; pause and resume it. Also for how long, and how it went."""
    ctx.obj = Place(path, queue)
    if ctx.invoked_subcommand is None:
        list_queues(ctx.obj, as_json=as_json)


def list_queues(place: Place, *, as_json: bool) -> None:
    """Print the queues."""
    names = [place.queue] if place.queue else queues_of(place.settings())
    rows = place.do(lambda client, _: queue_rows(client, names))
    if as_json:
        click.echo(_json([row.shown() for row in rows]))
    else:
        show(queue_lines(rows))


@queues.command(name="list")
@options.as_json_flag
@click.pass_obj
def list_all(place: Place, *, as_json: bool) -> None:
    """Show what waits in each queue, for how long, and how it went in the last minutes."""
    list_queues(place, as_json=as_json)


@queues.command()
@click.argument("names", nargs=-1, required=True)
@options.as_json_flag
@click.pass_obj
def pause(place: Place, names: tuple[str, ...], *, as_json: bool) -> None:
    """Let no worker claim from queues NAMES; what runs goes on."""
    _change(place, names, paused=True, as_json=as_json)


@queues.command()
@click.argument("names", nargs=-1, required=True)
@options.as_json_flag
@click.pass_obj
def resume(place: Place, names: tuple[str, ...], *, as_json: bool) -> None:
    """Let workers claim from queues NAMES again."""
    _change(place, names, paused=False, as_json=as_json)


def _change(place: Place, names: tuple[str, ...], *, paused: bool, as_json: bool) -> None:
    async def work(client: Client, _: str) -> dict[str, bool]:
        change = client.pause if paused else client.resume
        return {name: await change(queue=name) for name in names}

    what = "paused" if paused else "resumed"
    changed = place.do(work)
    if as_json:
        said = [{"queue": n, "is_paused": paused, "changed": c} for n, c in changed.items()]
        click.echo(_json(said))
        return
    for name, is_new in changed.items():
        click.echo(f"{what}: {escaped(name)}" if is_new else f"{escaped(name)} was {what} already")


def queues_of(settings: type[WorkerSettings]) -> list[str]:
    """Return the queues that the workers read."""
    names, _ = named(settings.queue_name, settings.queues, default=settings.queue_name)
    return names


async def queue_rows(client: Client, names: list[str]) -> list[QueueRow]:
    """Read what waits and what happened in some queues."""
    loads = await client.queue_loads(*names)
    since_ms = begun_ms(await client.workers.list())
    return [
        QueueRow(
            load, await client.history.of(load.queue).last(minutes=SPAN_MIN, since_ms=since_ms)
        )
        for load in loads
    ]


def queue_lines(rows: list[QueueRow]) -> Iterable[str]:
    """Return the table of queues."""
    return table(HEADS, [row.cells() for row in rows], spare=(8, 3, 2))


_json = as_json
