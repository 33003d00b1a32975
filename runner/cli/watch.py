"""``runner top``, ``workers`` and ``health``: what the fleet does, and orders to it."""

from __future__ import annotations

import asyncio
import http.client
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click
import msgspec

from runner.cli import where as options
from runner.cli.load import do, load_settings
from runner.cli.queues import SPAN_MIN, queue_lines, queue_rows, queues_of
from runner.cli.tables import as_json, as_line, cut, escaped, fields_of, rate, show, table
from runner.cli.where import Place
from runner.connections import TROUBLE
from runner.lengths import length

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from runner.client import Client
    from runner.inspect import Period, WorkerInfo

WORKER_HEADS = ("WORKER", "STATE", "JOBS", "MEMORY", "DELAY", "UP", "QUEUES", "RUNS")
TASK_HEADS = ("TASK", "ENDED", "FAILED", "WAIT P50", "WAIT P95", "RUN P50", "RUN P95", "RUN P99")
MOST_TASKS = 15
LEAST_EVERY = timedelta(seconds=0.2)
HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
PROBE_TIMEOUT_S = 5.0
MOST_REPLY = 1_000


@click.group(invoke_without_command=True)
@options.at_settings
@options.as_json_flag
@click.pass_context
def workers(ctx: click.Context, path: str, queue: str, *, as_json: bool) -> None:
    """List live workers; ping, drain, resume and tell them. Set how many jobs they run at once."""
    ctx.obj = Place(path, queue)
    if ctx.invoked_subcommand is None:
        list_workers(ctx.obj, as_json=as_json)


def list_workers(place: Place, *, as_json: bool) -> None:
    """Print the workers."""
    found = place.do(lambda client, _: client.workers.list(place.queue or None))
    if as_json:
        click.echo(_json(fields_of(found)))
        return
    show(worker_lines(found))
    click.echo(f"{len(found)} worker{'' if len(found) == 1 else 's'}", err=True)


@workers.command(name="list")
@options.as_json_flag
@click.pass_obj
def list_(place: Place, *, as_json: bool) -> None:
    """List the workers that live, and what they do."""
    list_workers(place, as_json=as_json)


@workers.command()
@click.argument("names", nargs=-1)
@options.as_json_flag
@click.pass_obj
def ping(place: Place, names: tuple[str, ...], *, as_json: bool) -> None:
    """Ask workers NAMES, or all, whether they are there."""
    _tell(place, names, lambda client, told: client.workers.ping(told), as_json=as_json)


@workers.command()
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All workers.")
@options.as_json_flag
@click.pass_obj
def drain(place: Place, names: tuple[str, ...], *, everything: bool, as_json: bool) -> None:
    """Let workers NAMES claim nothing more; what runs goes on."""
    _need(names, everything=everything)
    _tell(place, names, lambda client, told: client.workers.drain(told), as_json=as_json)


@workers.command()
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All workers.")
@options.as_json_flag
@click.pass_obj
def resume(place: Place, names: tuple[str, ...], *, everything: bool, as_json: bool) -> None:
    """Let drained workers NAMES claim again."""
    _need(names, everything=everything)
    _tell(place, names, lambda client, told: client.workers.resume(told), as_json=as_json)


@workers.command()
@click.argument("jobs", type=click.IntRange(1))
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All workers.")
@options.as_json_flag
@click.pass_obj
def concurrency(
    place: Place, jobs: int, names: tuple[str, ...], *, everything: bool, as_json: bool
) -> None:
    """Let workers NAMES run JOBS at once from now on, until they end."""
    _need(names, everything=everything)
    _tell(
        place,
        names,
        lambda client, told: client.workers.concurrency(jobs, told),
        as_json=as_json,
    )


@workers.command()
@click.argument("command")
@click.argument("text", default="")
@click.option("--name", "names", multiple=True, help="Only this worker; again for others.")
@options.as_json_flag
@click.pass_obj
def tell(place: Place, command: str, text: str, names: tuple[str, ...], *, as_json: bool) -> None:
    """Tell all workers COMMAND, which one of their parts offers, with TEXT."""
    _tell(
        place,
        names,
        lambda client, told: client.workers.tell(command, text, names=told),
        as_json=as_json,
    )


@click.command()
@options.at_settings
@click.option(
    "--every", type=options.span, default="1s", show_default=True, help="How often: 0.5, 2s, 1m."
)
@click.option("--once", is_flag=True, help="Print it once, and end.")
@options.as_json_flag
def top(path: str, queue: str, *, every: timedelta, once: bool, as_json: bool) -> None:
    """Show queues, tasks and workers, live; Ctrl-C ends it. With --json one line each time."""
    if every < LEAST_EVERY:
        raise click.BadParameter("0.2 s is as often as it goes", param_hint="--every")
    settings = load_settings(path)
    names = [queue] if queue else queues_of(settings)

    async def look(client: Client) -> list[str]:
        if as_json:
            return [msgspec.json.encode(await _all_shown(client, names)).decode()]
        return await screen(client, names)

    async def go_on(client: Client) -> None:
        while True:
            try:
                lines = await look(client)
            except TROUBLE as exc:
                said = f"Redis does not answer ({exc}). Trying again."
                lines = [as_line({"error": said}) if as_json else f"{_clock()}  {said}"]
            _draw(lines)
            await asyncio.sleep(every.total_seconds())

    if once:
        show(do(settings, look))
        return
    try:
        do(settings, go_on)
    except KeyboardInterrupt:
        return


@click.command()
@click.option("--url", default="", help="Where the worker answers; default: by the settings.")
@click.option("--live", is_flag=True, help="Ask whether it lives, not whether it is ready.")
@options.settings_option
@options.as_json_flag
@click.pass_context
def health(ctx: click.Context, url: str, path: str, *, live: bool, as_json: bool) -> None:
    """Ask the worker of this machine whether it is ready. Status 0: it is; 1: it is not."""
    if not url:
        settings = load_settings(path)
        if not settings.health_port:
            raise click.ClickException(f"{path}.health_port is not set: nothing answers probes")
        url = f"http://{settings.health_host}:{settings.health_port}"
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter("give http://host:port", param_hint="--url")
    is_well, said = _asked(f"{url.rstrip('/')}/{'live' if live else 'ready'}")
    if as_json:
        click.echo(_json({"ok": is_well, "said": said}))
    else:
        click.echo(escaped(said), err=not is_well)
    ctx.exit(0 if is_well else 1)


def _draw(lines: list[str]) -> None:
    """Print lines; on a terminal over those before, in one piece, so that nothing flickers."""
    if not sys.stdout.isatty():
        show(lines)
        return
    columns, rows = shutil.get_terminal_size()
    kept = [cut(lines[0], columns), *lines[1 : rows - 1]]  # tables fit by themselves
    text = "".join(f"{line}{CLEAR_LINE}\n" for line in kept)
    click.echo(f"{HOME}{text}{CLEAR_BELOW}", nl=False)


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _asked(address: str) -> tuple[bool, str]:
    """Ask a worker; return whether all is well, and what it said."""
    try:
        with urllib.request.urlopen(address, timeout=PROBE_TIMEOUT_S) as reply:  # noqa: S310
            return True, reply.read(MOST_REPLY).decode(errors="replace").strip()
    except urllib.error.HTTPError as exc:
        return False, exc.read(MOST_REPLY).decode(errors="replace").strip()
    except (OSError, ValueError, http.client.HTTPException) as exc:
        return False, f"nobody answers at {address}: {exc}"


async def screen(client: Client, names: list[str]) -> list[str]:
    """Return the lines of ``runner top``."""
    rows = await queue_rows(client, names)
    tasks: list[tuple[str, Period]] = []
    for name in names:
        behind = f" ({name})" if names[1:] else ""
        periods = await client.history.of(name).tasks(minutes=SPAN_MIN)
        tasks += [(task + behind, period) for task, period in periods.items()]
    busy = sorted(tasks, key=lambda item: -item[1].ended)[:MOST_TASKS]
    found = await client.workers.list()
    ended = sum(row.last.per_second for row in rows)
    seconds = max((row.last.seconds for row in rows), default=0)
    lines = [
        (
            f"{_clock()}  {len(found)} worker{'' if len(found) == 1 else 's'}, "
            f"{sum(worker.running for worker in found)} running, "
            f"{rate(ended)} jobs a second in the last {length(seconds * 1000)}"
        ),
        "",
    ]
    lines += [*queue_lines(rows), "", *task_lines(busy)]
    return [*lines, "", *worker_lines(found)]


def task_lines(busy: list[tuple[str, Period]]) -> Iterable[str]:
    """Return the table of tasks."""
    rows = [_task_row(*item) for item in busy]
    return table(TASK_HEADS, rows, spare=(7, 3, 5, 6))


def worker_lines(found: list[WorkerInfo]) -> Iterable[str]:
    """Return the table of workers."""
    rows = [_worker_row(worker) for worker in found]
    return table(WORKER_HEADS, rows, flexible=(7, 6), extra=(4, 6), spare=(5, 3))


async def _all_shown(client: Client, names: list[str]) -> dict[str, Any]:
    rows = await queue_rows(client, names)
    return {
        "queues": [row.shown() for row in rows],
        "workers": fields_of(await client.workers.list()),
    }


def _worker_row(worker: WorkerInfo) -> list[str]:
    by_task = Counter(job.task for job in worker.jobs)
    up_s = max(worker.at_ms - worker.started_ms, 0) / 1000
    return [
        worker.name + (" (writer)" if worker.is_writer else ""),
        worker.state,
        f"{worker.running}/{worker.concurrency}",
        f"{worker.rss_bytes / 1e6:.0f} MB",
        length(worker.loop_delay_ms),
        length(up_s * 1000),
        ", ".join(worker.queues),
        ", ".join(f"{task} ({count})" for task, count in by_task.most_common()),
    ]


def _task_row(task: str, period: Period) -> list[str]:
    times = (period.wait.p50, period.wait.p95, period.run.p50, period.run.p95, period.run.p99)
    return [task, str(period.ended), str(period.failed), *map(length, times)]


def _need(names: tuple[str, ...], *, everything: bool) -> None:
    if bool(names) == everything:
        raise click.UsageError("name the workers, or say --all")


def _tell(
    place: Place,
    names: tuple[str, ...],
    order: Callable[[Client, list[str] | None], Awaitable[dict[str, str]]],
    *,
    as_json: bool,
) -> None:
    """Give an order, and print the answers; a named worker that is silent is an error."""
    answers = place.do(lambda client, _: order(client, list(names) or None))
    if as_json:
        click.echo(_json(answers))
    else:
        for worker, text in answers.items():
            click.echo(f"{escaped(worker)}  {escaped(text)}")
    silent = [name for name in names if name not in answers]
    if silent or not answers:
        raise click.ClickException(
            f"no answer from {', '.join(map(escaped, silent)) or 'any worker'}"
        )


_json = as_json
