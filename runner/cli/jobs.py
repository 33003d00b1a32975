"""``runner jobs`` and ``runner purge``: the jobs in a queue, and what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runner.cli import ended
from runner.cli import where as options
from runner.cli.ended import shown
from runner.cli.enqueue import enqueue
from runner.cli.tables import ago, as_json, confirm, listed, table
from runner.cli.tables import show as show_lines
from runner.cli.where import Place
from runner.errors import ArgumentsError
from runner.inspect import JobFilter, JobState

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.client import Client
    from runner.inspect import Cancelled, JobInfo, JobPage

HEADS = ("JOB", "TASK", "STATE", "TRY", "DUE", "ENQUEUED", "ARGUMENTS")


@click.group(invoke_without_command=True)
@options.at_settings
@options.as_json_flag
@click.pass_context
def jobs(ctx: click.Context, path: str, queue: str, *, as_json: bool) -> None:
    """Look at jobs, enqueue them, cancel them, or run them now."""
    ctx.obj = Place(path, queue)
    options.or_list(ctx, as_json=as_json)


def filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which jobs are meant."""
    given = (
        click.option("--task", help="The task's name."),
        click.option(
            "--state",
            "states",
            multiple=True,
            type=click.Choice([state.value for state in JobState]),
            help="What they wait for. Repeatable.",
        ),
        click.option("--older", type=options.span, help="Enqueued so long ago, or before: 2h."),
        click.option("--newer", type=options.span, help="Enqueued since: 90, 30m, 2h, 7d."),
        options.by_arg,
    )
    for option in reversed(given):
        command = option(command)
    return command


@jobs.command(name="list")
@filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@click.option("--after", default="", help="Where to go on, as the page before says.")
@options.as_json_flag
@click.pass_obj
def list_jobs(place: Place, /, limit: int, after: str, *, as_json: bool, **given: Any) -> None:
    """List jobs, those that are due first."""
    meant = _filter(place, given)

    async def work(client: Client, queue: str) -> tuple[JobPage, int]:
        return (
            await client.jobs.of(queue).list(meant, limit=limit, after=after),
            await client.zcard(queue),
        )

    page, count = place.do(work)
    if as_json:
        found = [listed(shown(job)) for job in page.jobs]
        click.echo(_json({"jobs": found, "after": page.after, "count": count}))
        return
    show_lines(table(HEADS, [_row(job) for job in page.jobs], flexible=(6, 1), extra=(5, 3)))
    click.echo(f"{len(page.jobs)} shown, {count} in the queue", err=True)
    if page.after:
        click.echo(f'more: --after "{page.after}"', err=True)


@jobs.command()
@click.argument("job_ids", nargs=-1)
@filters
@click.option("--all", "everything", is_flag=True, help="All jobs of the queue.")
@options.yes_flag
@options.as_json_flag
@click.pass_obj
def cancel(
    place: Place,
    /,
    job_ids: tuple[str, ...],
    *,
    everything: bool,
    yes: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Take jobs that do not run out of the queue: JOB_IDS, or those that fit the options.

    Who waits for one hears that it was cancelled.
    """
    which = _which(place, job_ids, given, everything=everything)
    what = "these jobs" if job_ids else "all jobs that fit"
    confirm(f"Cancel {what}?", yes=yes)
    said = place.do(lambda client, queue: client.jobs.of(queue).cancel(which))
    _tell_cancelled(said, "cancelled", as_json=as_json)


@jobs.command()
@click.argument("job_ids", nargs=-1)
@filters
@click.option("--all", "everything", is_flag=True, help="All jobs of the queue.")
@options.as_json_flag
@click.pass_obj
def retry(
    place: Place,
    /,
    job_ids: tuple[str, ...],
    *,
    everything: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run jobs now that wait for a time or for another try: JOB_IDS, or those that fit."""
    which = _which(place, job_ids, given, everything=everything)
    moved = place.do(lambda client, queue: client.jobs.of(queue).retry_now(which))
    click.echo(_json({"moved": moved}) if as_json else f"due now: {moved}")
    if job_ids and not moved:
        click.echo("for a job that has failed for good: runner dead requeue", err=True)


@click.command()
@click.argument("queue")
@click.option(
    "--settings",
    "path",
    default="settings.WorkerSettings",
    show_default=True,
    help="The class that the workers use, for its redis_settings and codec.",
)
@options.yes_flag
@options.as_json_flag
def purge(path: str, queue: str, *, yes: bool, as_json: bool) -> None:
    """Take all jobs that do not run out of QUEUE. Who waits for one hears of it."""
    confirm(f"Take all waiting jobs out of queue {queue!r}? They are lost.", yes=yes)
    said = Place(path, queue).do(lambda client, name: client.jobs.of(name).purge())
    _tell_cancelled(said, "purged", as_json=as_json)


def _row(job: JobInfo) -> list[str]:
    named = [f"{name}={value!r}" for name, value in job.kwargs.items()]
    return [
        job.job_id,
        job.task or "?",
        job.state.value,
        str(job.attempt),
        "" if job.state is JobState.RUNNING else ago(job.due),
        ago(job.enqueued),
        ", ".join([*map(repr, job.args), *named]) or job.error,
    ]


def _tell_cancelled(said: Cancelled, what: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(_json({what: said.count, "running": said.running, "gone": said.gone}))
        return
    click.echo(f"{what}: {said.count}")
    if said.running:
        click.echo(f"left alone, because they run: {said.running}", err=True)
    if said.gone:
        click.echo(f"not in the queue: {said.gone}", err=True)


def _filter(place: Place, given: dict[str, Any]) -> JobFilter:
    return JobFilter(
        task=place.task(given["task"]),
        states=given["states"],
        older=given["older"],
        newer=given["newer"],
        arguments=options.arguments(given["args"]) or None,
        known=place.tasks(),
    )


def _which(
    place: Place, job_ids: tuple[str, ...], given: dict[str, Any], *, everything: bool
) -> str | tuple[str, ...] | JobFilter:
    """Return which jobs are meant; nothing said is never all."""
    if bool(job_ids) + any(given.values()) + everything != 1:
        raise ArgumentsError("say which jobs: their ids, or options such as --task, or --all")
    if not job_ids:
        return _filter(place, given)
    return job_ids[0] if len(job_ids) == 1 else job_ids


for _command in (ended.show, ended.logs, ended.finished, enqueue):
    jobs.add_command(_command)

_json = as_json
