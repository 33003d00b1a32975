"""``runner limits``, ``pause``, ``resume``, ``paused``: change what may run, while workers run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from runner.cli import tables
from runner.cli import where as options
from runner.cli.load import do, function_names, load_settings, tasks_by
from runner.cli.tables import escaped
from runner.errors import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runner.client import Client
    from runner.limits import LimitInfo

T = TypeVar("T")

COLUMNS = ("limit", "rule", "declared", "key", "used", "parked", "reserved")

settings = options.settings_option
as_json = options.as_json_flag


@click.group(invoke_without_command=True)
@settings
@as_json
@click.pass_context
def limits(ctx: click.Context, path: str, *, as_json: bool) -> None:
    """Look at limits and change them, in all workers at once.

    A task's own limits are called TASK.rate and TASK.running.
    """
    ctx.obj = path
    options.or_list(ctx, as_json=as_json)


@limits.command(name="list")
@as_json
@click.pass_obj
def list_all(path: str, *, as_json: bool) -> None:
    """List all limits, and what waits for them."""
    infos = _do(path, lambda client: client.limits.list())
    if as_json:
        _print([shown(info) for info in infos])
        return
    rows = [[str(shown(info)[column]) for column in COLUMNS] for info in infos]
    heads = [column.upper() for column in COLUMNS]
    tables.show(tables.table(heads, rows, flexible=(0,), spare=(2, 6)))


@limits.command()
@click.argument("name")
@click.option("--value", help="One value of the limit's key.")
@as_json
@click.pass_obj
def show(path: str, name: str, *, value: str | None, as_json: bool) -> None:
    """Show limit NAME with the values of its key that were used last."""
    info = _do(path, lambda client: client.limits.get(name, value=value))
    if as_json:
        _print(shown(info))
        return
    click.echo(_line(info))
    if info.key is None:
        return
    rows = [[b.value, str(b.used), str(b.parked), str(b.reserved)] for b in info.buckets]
    tables.show(tables.table([info.key.upper(), "USED", "PARKED", "RESERVED"], rows, flexible=(0,)))


@limits.command(name="set")
@click.argument("name", required=False)
@click.option("--task", help="In place of NAME: a task, also one that declares no limit.")
@click.option("--rate", help='Such as "100/m".')
@click.option("--burst", type=int, help="With --rate: the tokens of a bucket.")
@click.option("--max-running", type=int, help="Or how many jobs may run at once.")
@click.option("--key", help="The parameter with a limit for each value, where none is declared.")
@as_json
@click.pass_obj
def set_one(path: str, /, *, as_json: bool, **given: Any) -> None:
    """Set limit NAME from now on, until it is cleared."""
    _note_unknown(path, given["task"])
    declared = tasks_by(load_settings(path)).get(given["task"] or "")
    if declared is not None and given["key"]:
        declared.signature.check_parameter(declared.name, given["key"])
    info = _do(path, lambda client: client.limits.set(**given))
    if as_json:
        _print(shown(info))
    else:
        click.echo(_line(info))


@limits.command()
@click.argument("name")
@as_json
@click.pass_obj
def clear(path: str, name: str, *, as_json: bool) -> None:
    """Let what the code says of limit NAME hold again."""
    info = _do(path, lambda client: client.limits.clear(name))
    if as_json:
        _print(None if info is None else shown(info))
    else:
        click.echo(f"{name}: no limit" if info is None else _line(info))


def named(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name what is paused."""
    for option in (
        as_json,
        click.option("--task", help="A task, in all queues."),
        click.option("--queue", help="A queue."),
        settings,
    ):
        command = option(command)
    return command


@click.command()
@named
def pause(path: str, *, queue: str | None, task: str | None, as_json: bool) -> None:
    """Pause a queue or a task in all workers; what runs goes on."""
    _note_unknown(path, task)
    changed = _do(path, lambda client: client.pause(queue=queue, task=task))
    _tell(queue, task, paused=True, changed=changed, as_json=as_json)


@click.command()
@named
def resume(path: str, *, queue: str | None, task: str | None, as_json: bool) -> None:
    """Let a queue or a task go on."""
    changed = _do(path, lambda client: client.resume(queue=queue, task=task))
    _tell(queue, task, paused=False, changed=changed, as_json=as_json)


@click.command()
@settings
@as_json
def paused(path: str, *, as_json: bool) -> None:
    """List the queues and tasks that are paused."""
    found = _do(path, lambda client: client.paused())
    if as_json:
        _print({"queues": found.queues, "tasks": found.tasks})
        return
    for kind, names in (("queue", found.queues), ("task", found.tasks)):
        for name in names:
            click.echo(f"{kind} {name}")
    if not (found.queues or found.tasks):
        click.echo("nothing is paused", err=True)


def shown(info: LimitInfo) -> dict[str, Any]:
    """Return what is printed of a limit."""
    return {
        "limit": info.name,
        "rule": str(info.rule),
        "declared": "" if info.declared is None else str(info.declared),
        "is_set": info.is_set,
        "task": info.task,
        "key": info.key or "",
        "used": info.used,
        "parked": info.parked,
        "reserved": info.reserved,
        "values": info.bucket_count,
        "buckets": [
            {"value": b.value, "used": b.used, "parked": b.parked, "reserved": b.reserved}
            for b in info.buckets
        ],
    }


def _line(info: LimitInfo) -> str:
    code = "the code declares none" if info.declared is None else f"the code says {info.declared}"
    holds = f"{info.name}: {info.rule}" + (f", {code}" if info.is_set else "")
    return f"{holds}; used {info.used}, parked {info.parked}, reserved {info.reserved}"


def _note_unknown(path: str, task: str | None) -> None:
    """Say that the settings name no such task: those of other workers may, so it is done."""
    names = function_names(load_settings(path))
    if task is not None and task not in names:
        hint = did_you_mean(task, names)
        click.echo(f"note: {path} names no task {escaped(repr(task))}{hint}", err=True)


def _tell(
    queue: str | None, task: str | None, *, paused: bool, changed: bool, as_json: bool
) -> None:
    name, what = queue or task, "paused" if paused else "resumed"
    if as_json:
        kind = "queue" if queue else "task"
        _print({kind: name, "is_paused": paused, "changed": changed})
    else:
        click.echo(f"{what}: {name}" if changed else f"{name} was {what} already")


def _print(value: Any) -> None:
    click.echo(tables.as_json(value))


def _do(path: str, work: Callable[[Client], Awaitable[T]]) -> T:
    return do(load_settings(path), work)
