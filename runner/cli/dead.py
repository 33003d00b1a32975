"""``runner dead``: look at dead letters, and give their jobs another life."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import click

from runner.cli import where as options
from runner.cli.tables import (
    as_json,
    confirm,
    escaped,
    listed,
    moment,
    read_json,
    since,
    table,
)
from runner.cli.tables import show as show_lines
from runner.cli.where import Place
from runner.errors import ArgumentsError
from runner.execution.records import NO_LETTER
from runner.letters import LetterFilter
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.client import Client
    from runner.letters import LetterPage, Requeued
    from runner.types import AttemptError, DeadLetter

HEADS = ("JOB", "TASK", "AGO", "OUTCOME", "TRY", "ERROR")
ENDINGS = [outcome.value for outcome in Outcome if outcome not in NO_LETTER]


@click.group(invoke_without_command=True)
@options.at_settings
@options.as_json_flag
@click.pass_context
def dead(ctx: click.Context, path: str, queue: str, *, as_json: bool) -> None:
    """Look at dead letters, and requeue or purge them.

    A dead letter is what is left of a job that ended for good without success.
    """
    ctx.obj = Place(path, queue)
    options.or_list(ctx, as_json=as_json)


def filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which letters are meant."""
    given = (
        click.option("--task", help="The task's name."),
        click.option("--error", help="The class of the error, such as ConnectionError."),
        click.option("--text", help="What the error's message holds."),
        click.option(
            "--outcome",
            type=click.Choice(ENDINGS),
            metavar="OUTCOME",
            help="How the job ended, such as failed or timed_out.",
        ),
        click.option("--since", type=options.time, help="Died then or later: a time, or 2h."),
        click.option("--until", type=options.time, help="Died before: a time, or 2h."),
        options.by_arg,
    )
    for option in reversed(given):
        command = option(command)
    return command


@dead.command(name="list")
@filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@click.option("--after", default="", help="Where to go on, as the page before says.")
@options.as_json_flag
@click.pass_obj
def list_letters(place: Place, /, limit: int, after: str, *, as_json: bool, **given: Any) -> None:
    """List dead letters, the newest first."""
    meant = _filter(place, given)

    async def work(client: Client, queue: str) -> tuple[LetterPage, int]:
        letters = client.dead.of(queue)
        return await letters.list(meant, limit=limit, after=after), await letters.count()

    page, count = place.do(work)
    if as_json:
        letters = [listed(shown(letter)) for letter in page.letters]
        click.echo(_json({"letters": letters, "after": page.after, "count": count}))
        return
    rows = [_row(letter) for letter in page.letters]
    show_lines(table(HEADS, rows, flexible=(5, 1), extra=(4, 3), spare=(2,)))
    click.echo(f"{len(page.letters)} shown, {count} in all", err=True)
    if page.after:
        click.echo(f'more: --after "{page.after}"', err=True)


@dead.command()
@click.argument("job_id")
@options.as_json_flag
@click.pass_obj
def show(place: Place, job_id: str, *, as_json: bool) -> None:
    """Show the letter of JOB_ID, with the errors of all its attempts."""
    letter = place.do(lambda client, queue: client.dead.of(queue).show(job_id))
    if as_json:
        click.echo(_json(shown(letter)))
        return
    show_lines(told(letter))


@dead.command()
@click.argument("job_ids", nargs=-1)
@filters
@click.option("--all", "everything", is_flag=True, help="All letters of the queue.")
@click.option("--new-args", help="Positional arguments in place of the old, a JSON array.")
@click.option("--new-kwargs", help="The same by name, all of them, a JSON object.")
@click.option("--delay", type=options.span, help="Run them after so long: 90, 30m, 2h.")
@options.as_json_flag
@click.pass_obj
def requeue(
    place: Place,
    /,
    job_ids: tuple[str, ...],
    *,
    everything: bool,
    new_args: str | None,
    new_kwargs: str | None,
    delay: Any,
    as_json: bool,
    **given: Any,
) -> None:
    """Put jobs back into their queue: JOB_IDS, or those that fit the options.

    They get all their tries again, and keep their errors.
    """
    which = _which(place, job_ids, given, everything=everything)
    edit: dict[str, Any] = {}
    if new_args is not None:
        edit["args"] = read_json(new_args, list, "--new-args", "an array", error=ArgumentsError)
    if new_kwargs is not None:
        edit["kwargs"] = read_json(
            new_kwargs, dict, "--new-kwargs", "an object", error=ArgumentsError
        )

    async def work(client: Client, queue: str) -> Requeued:
        letters = client.dead.of(queue)
        task = None
        if edit and isinstance(which, str):
            # With its task known, new arguments are checked before anything is queued.
            task = place.task((await letters.show(which)).task)
        known = None if isinstance(task, str) else task
        return await letters.requeue(which, delay=delay, task=known, **edit)

    said = place.do(work)
    if as_json:
        click.echo(_json({"requeued": said.count, "gone": said.gone, "refused": said.refused}))
    else:
        click.echo(f"requeued: {said.count}")
        _tell_rest(said)
    if said.stayed:
        raise SystemExit(1)


@dead.command()
@click.argument("job_ids", nargs=-1)
@filters
@click.option("--all", "everything", is_flag=True, help="All letters of the queue.")
@options.yes_flag
@options.as_json_flag
@click.pass_obj
def purge(
    place: Place,
    /,
    job_ids: tuple[str, ...],
    *,
    everything: bool,
    yes: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Remove letters for good: JOB_IDS, or those that fit the options."""
    which = _which(place, job_ids, given, everything=everything)
    what = "these letters" if job_ids else "all letters that fit"
    confirm(f"Remove {what}? They cannot be brought back.", yes=yes)
    removed = place.do(lambda client, queue: client.dead.of(queue).purge(which))
    click.echo(_json({"purged": removed}) if as_json else f"purged: {removed}")


def shown(letter: DeadLetter) -> dict[str, Any]:
    """Return what is printed of a letter as JSON."""
    names = (
        "job_id queue task args kwargs attempt requeued outcome error_type error traceback "
        "worker enqueued_ms started_ms died_ms"
    )
    fields: dict[str, Any] = {name: getattr(letter, name) for name in names.split()}
    fields["payload_bytes"] = len(letter.payload)
    fields["errors"] = [
        {name: getattr(error, name) for name in error.__struct_fields__} for error in letter.errors
    ]
    return fields


def told(letter: DeadLetter) -> list[str]:
    """Return the lines that show a letter to a person."""
    facts = {
        "job": letter.job_id,
        "task": letter.task,
        "queue": letter.queue,
        "args": repr(tuple(letter.args)),
        "kwargs": repr(letter.kwargs),
        "outcome": letter.outcome,
        "attempt": str(letter.attempt),
        "requeued": f"{letter.requeued} times" if letter.requeued else "",
        "worker": letter.worker,
        "enqueued": moment(letter.enqueued_ms),
        "started": moment(letter.started_ms),
        "died": moment(letter.died_ms),
        "payload": f"{len(letter.payload):,} bytes",
    }
    lines = [f"{name:>9}  {escaped(text)}" for name, text in facts.items() if text]
    for error in letter.errors:
        lines += ["", *_told_error(error)]
    lines += ["", f"the last error: {_error(letter.error_type, letter.error)}"]
    return lines + _indented(letter.traceback)


def told_errors(errors: tuple[AttemptError, ...]) -> list[str]:
    """Return the lines that show what went wrong before."""
    return [line for error in errors for line in ("", *_told_error(error))]


def _told_error(error: AttemptError) -> list[str]:
    by = f", {escaped(error.worker)}" if error.worker else ""
    head = f"attempt {error.attempt}, {error.outcome}, {moment(error.ended_ms)}{by}"
    return [head, f"    {_error(error.error_type, error.error)}", *_indented(error.traceback)]


def _error(kind: str, message: str) -> str:
    return escaped(": ".join(part for part in (kind, message) if part))


def _indented(traceback: str) -> list[str]:
    lines = textwrap.indent(traceback.rstrip(), "    ").splitlines()
    return [escaped(line) for line in lines]


def _row(letter: DeadLetter) -> list[str]:
    return [
        letter.job_id,
        letter.task,
        since(letter.died_ms),
        letter.outcome,
        str(letter.attempt),
        _error(letter.error_type.rpartition(".")[2], letter.error),
    ]


def _filter(place: Place, given: dict[str, Any]) -> LetterFilter:
    names = ("error", "text", "outcome", "since", "until")
    return LetterFilter(
        task=place.task(given["task"]),
        arguments=options.arguments(given["args"]) or None,
        known=place.tasks(),
        **{name: given[name] for name in names},
    )


def _which(
    place: Place, job_ids: tuple[str, ...], given: dict[str, Any], *, everything: bool
) -> str | tuple[str, ...] | LetterFilter:
    """Return which letters are meant; nothing said is never all."""
    filtered = any(given.values())
    if bool(job_ids) + filtered + everything != 1:
        raise ArgumentsError(
            "say which letters: their job ids, or options such as --task, or --all"
        )
    if not job_ids:
        return _filter(place, given)
    return job_ids[0] if len(job_ids) == 1 else job_ids


def _tell_rest(said: Requeued) -> None:
    if said.gone:
        click.echo(f"gone meanwhile: {said.gone}", err=True)
    for job_id, why in list(said.refused.items())[:10]:
        click.echo(f"{escaped(job_id)}: {escaped(why)}", err=True)
    if said.stayed > 10:  # noqa: PLR2004  as many as were shown
        click.echo(f"… {said.stayed - 10} more stay", err=True)


_json = as_json
