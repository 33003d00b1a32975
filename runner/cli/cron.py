"""``runner cron``: look at schedules and change them, while workers run."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runner.cli import where
from runner.cli.load import do, function_names, load_settings
from runner.cli.tables import ago, escaped, ms_of, read_json, show, stamp, table
from runner.errors import ScheduleError
from runner.schedule import Schedule, ScheduleInfo, every, perpetual
from runner.schedule import cron as schedule
from runner.schedule.schedule import MAX_CAUGHT_UP

if TYPE_CHECKING:
    from runner.schedule import Schedules
    from runner.settings import WorkerSettings

T = TypeVar("T")
Work = Callable[["Schedules"], Awaitable[T]]

HEADS = ("NAME", "WHEN", "TIMEZONE", "TASK", "NEXT", "LAST", "RUNS", "STATE")


@click.group(invoke_without_command=True)
@where.settings_option
@where.as_json_flag
@click.pass_context
def cron(ctx: click.Context, path: str, *, as_json: bool) -> None:
    """Look at schedules and change them, while workers run.

    Schedules in the settings can be paused, resumed and run; to change one, change the settings.
    """
    ctx.obj = path
    where.or_list(ctx, as_json=as_json)


as_json = where.as_json_flag
by_name = click.argument("name")


def rules(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the arguments and options that describe a schedule."""
    options = (
        click.argument("name"),
        click.argument("task"),
        click.argument("expression", required=False),
        click.option("--every", "interval", type=float, help="Seconds, in place of EXPRESSION."),
        click.option("--perpetual", "decides", is_flag=True, help="The task decides when."),
        click.option("--otherwise", type=float, help="Seconds, when a perpetual task does not."),
        click.option("--timezone", help="Of the expression, such as Europe/Zurich. Default: UTC."),
        click.option("--args", "args_json", default="[]", help="Arguments, a JSON array."),
        click.option("--kwargs", "kwargs_json", default="{}", help="The same by name, an object."),
        click.option("--jitter", type=float, default=0, help="Seconds to spread starts over."),
        click.option("--catch-up", type=click.Choice(["skip", "once", "all"]), default="skip"),
        click.option("--catch-up-max", type=click.IntRange(1, MAX_CAUGHT_UP), default=100),
        click.option("--grace", type=float, help="Seconds that are not too late."),
        click.option("--overlap", type=click.Choice(["allow", "skip", "cancel_older"])),
        click.option("--queue", help="The queue of its jobs."),
        click.option("--expires", type=float, help="Seconds after which a run is given up."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@cron.command(name="list")
@as_json
@click.pass_obj
def list_all(path: str, *, as_json: bool) -> None:
    """List all schedules, those that are due next first."""
    infos = _do(load_settings(path), lambda schedules: schedules.list())
    if as_json:
        click.echo(json.dumps([shown(info) for info in infos], indent=2, default=str))
        return
    show(table(HEADS, [_row(info) for info in infos], flexible=(3, 0, 1), spare=(2, 5)))


@cron.command()
@rules
@as_json
@click.pass_obj
def add(path: str, /, *, as_json: bool, **given: Any) -> None:
    """Add schedule NAME: run TASK when EXPRESSION says so.

    EXPRESSION has five fields, or six with the second in front: "0 1 * * *".
    """
    settings = load_settings(path)
    made, tasks = _schedule(**given), function_names(settings)
    _tell(_do(settings, lambda schedules: schedules.add(made, tasks=tasks)), "added", as_json)


@cron.command()
@rules
@as_json
@click.pass_obj
def change(path: str, /, *, as_json: bool, **given: Any) -> None:
    """Put a schedule in the place of schedule NAME; its counts, and a pause, stay."""
    settings = load_settings(path)
    made, tasks = _schedule(**given), function_names(settings)
    _tell(_do(settings, lambda schedules: schedules.change(made, tasks=tasks)), "changed", as_json)


@cron.command()
@by_name
@as_json
@click.pass_obj
def pause(path: str, name: str, *, as_json: bool) -> None:
    """Let schedule NAME make no more runs."""

    async def work(schedules: Schedules) -> ScheduleInfo:
        await schedules.pause(name)
        return await schedules.get(name)

    _tell(_do(load_settings(path), work), "paused", as_json)


@cron.command()
@by_name
@as_json
@click.pass_obj
def resume(path: str, name: str, *, as_json: bool) -> None:
    """Let schedule NAME go on."""

    async def work(schedules: Schedules) -> ScheduleInfo:
        await schedules.resume(name)
        return await schedules.get(name)

    _tell(_do(load_settings(path), work), "resumed", as_json)


@cron.command()
@by_name
@as_json
@click.pass_obj
def run(path: str, name: str, *, as_json: bool) -> None:
    """Run the task of schedule NAME now."""
    job_id = _do(load_settings(path), lambda schedules: schedules.run(name))
    click.echo(
        json.dumps({"name": name, "job_id": job_id}) if as_json else f"queued: {escaped(job_id)}"
    )


@cron.command()
@by_name
@as_json
@click.pass_obj
def remove(path: str, name: str, *, as_json: bool) -> None:
    """Remove schedule NAME; jobs that it has made stay."""
    _do(load_settings(path), lambda schedules: schedules.remove(name))
    click.echo(
        json.dumps({"name": name, "removed": True}) if as_json else f"removed: {escaped(name)}"
    )


def shown(info: ScheduleInfo) -> dict[str, Any]:
    """Return what is printed of a schedule."""
    made = info.schedule
    return {
        # A name may be any bytes.
        "name": info.name.encode(errors="surrogateescape").decode(errors="backslashreplace"),
        "source": info.source,
        "state": _state(info),
        "when": "?" if made is None else str(made.trigger),
        "timezone": getattr(made.trigger, "timezone", "") if made else "",
        "task": "?" if made is None else made.task,
        "args": [] if made is None else list(made.args),
        "kwargs": {} if made is None else dict(made.kwargs),
        "overlap": "" if made is None else made.overlap,
        "catch_up": "" if made is None else made.catch_up,
        "jitter_s": 0 if made is None else made.jitter_ms / 1000,
        "next_due_ms": ms_of(info.next_due),
        "last_due_ms": ms_of(info.last_due),
        "last_job_id": info.last_job_id,
        "runs": info.runs,
        "skipped": info.skipped,
        "error": info.error.encode(errors="backslashreplace").decode(),
    }


def _row(info: ScheduleInfo) -> list[str]:
    facts = shown(info)
    when = [str(facts[name]) for name in ("name", "when", "timezone", "task")]
    return [*when, ago(info.next_due), ago(info.last_due), str(info.runs), facts["state"]]


def _state(info: ScheduleInfo) -> str:
    if info.error:
        return "unreadable"
    if info.paused:
        return "paused"
    return "on" if info.next_due else "ended"


def _tell(info: ScheduleInfo, what: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(shown(info), indent=2, default=str))
        return
    when = f", next at {stamp(info.next_due)}" if info.next_due else ""
    click.echo(f"{what}: {escaped(info.name)}{when}")


def _do(settings: type[WorkerSettings], work: Work[T]) -> T:
    return do(settings, lambda client: work(client.schedules))


def _schedule(
    *,
    name: str,
    task: str,
    expression: str | None,
    interval: float | None,
    decides: bool,
    otherwise: float | None,
    args_json: str,
    kwargs_json: str,
    **options: Any,
) -> Schedule:
    if (expression is not None) + (interval is not None) + decides != 1:
        raise ScheduleError("give one of EXPRESSION, --every and --perpetual")
    if otherwise is not None and not decides:
        raise ScheduleError("--otherwise goes with --perpetual")
    when: Any = expression
    if decides:
        when = perpetual(otherwise=otherwise)
    elif interval is not None:
        when = every(interval)
    return schedule(
        task,
        when,
        name=name,
        args=read_json(args_json, list, "--args", "an array", error=ScheduleError),
        kwargs=read_json(kwargs_json, dict, "--kwargs", "an object", error=ScheduleError),
        **options,
    )
