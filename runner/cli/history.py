"""``runner history``: look through the job log in Postgres."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from runner.cli import where as options
from runner.cli.load import load_settings
from runner.cli.tables import as_json as to_json
from runner.cli.tables import ms_of, since, table, told
from runner.cli.tables import show as show_lines
from runner.errors import SettingsError
from runner.joblog import JobLog
from runner.lengths import length
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from runner.joblog import LoggedJob

HEADS = ("FINISHED (UTC)", "AGO", "JOB", "TASK", "OUTCOME", "TRY", "TOOK", "ERROR", "ARGUMENTS")


@click.group()
@click.option(
    "--settings",
    "path",
    default="settings.WorkerSettings",
    show_default=True,
    help="The class that the workers use, for its database_url.",
)
@click.pass_context
def history(ctx: click.Context, path: str) -> None:
    """Look through the jobs that ended, in Postgres. Workers with job_log = True log them."""
    ctx.obj = path


@history.command()
@click.option("--task", help="The task's name.")
@click.option(
    "--outcome",
    "outcomes",
    multiple=True,
    metavar="OUTCOME",
    type=click.Choice([outcome.value for outcome in Outcome]),
    help="How they ended: succeeded, failed, timed_out, … Repeatable.",
)
@click.option("--queue", help="The queue's name.")
@click.option("--since", type=options.time, help="Ended then or later: a time, or 30m, 2h, 7d ago.")
@click.option("--until", type=options.time, help="Ended before then.")
@click.option("--error", help="Part of the error's class or message.")
@options.by_arg
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@options.as_json_flag
@click.pass_obj
def search(  # noqa: PLR0917  click gives them by name
    path: str,
    task: str | None,
    outcomes: tuple[str, ...],
    queue: str | None,
    since: datetime | None,
    until: datetime | None,
    error: str | None,
    args: tuple[str, ...],
    limit: int,
    *,
    as_json: bool,
) -> None:
    """List jobs that fit all that is given, those first that ended last."""
    arguments = {str(name): value for name, value in options.arguments(args).items()}

    async def work(log: JobLog) -> list[LoggedJob]:
        return await log.search(
            task=task,
            outcomes=outcomes,
            queue=queue,
            since=since,
            until=until,
            error=error,
            arguments=arguments,
            limit=limit,
        )

    found = _do(path, work)
    if as_json:
        click.echo(to_json([_shown(job) for job in found]))
        return
    show_lines(table(HEADS, [_row(job) for job in found], flexible=(8, 7, 3), extra=(6, 5, 0, 8)))
    more = ", perhaps more: raise --limit" if len(found) == limit else ""
    click.echo(f"{len(found)} shown{more}", err=True)


@history.command()
@click.argument("job_id")
@options.as_json_flag
@click.pass_obj
def show(path: str, job_id: str, *, as_json: bool) -> None:
    """Show what is kept of job JOB_ID."""
    rows = [_shown(job) for job in _do(path, lambda log: log.of(job_id))]
    if as_json:
        click.echo(to_json(rows))
        return
    for number, row in enumerate(rows):
        if number:
            click.echo()
        show_lines(told(row))


def _do(path: str, work: Callable[[JobLog], Awaitable[list[LoggedJob]]]) -> list[LoggedJob]:
    settings = load_settings(path)
    if settings.database_url is None:
        raise SettingsError(f"{settings.__name__}.database_url is not set: there is no job log")
    database_url = settings.database_url

    async def opened() -> list[LoggedJob]:
        async with JobLog(database_url) as log:
            return await work(log)

    return asyncio.run(opened())


def _shown(job: LoggedJob) -> dict[str, Any]:
    """Return what is printed of a job, by the names that other commands have."""
    return {
        "job_id": job.job_id,
        "queue": job.queue,
        "task": job.task,
        "arguments": job.arguments,
        "outcome": job.outcome,
        "attempt": job.attempt,
        "error_type": job.error_type,
        "error": job.error,
        "worker": job.worker,
        "enqueued_ms": ms_of(job.enqueued_at),
        "started_ms": ms_of(job.started_at),
        "ended_ms": ms_of(job.ended_at),
    }


def _row(job: LoggedJob) -> tuple[str, ...]:
    took = (
        ""
        if job.started_at is None
        else length((job.ended_at - job.started_at).total_seconds() * 1000)
    )
    return (
        job.ended_at.strftime("%Y-%m-%d %H:%M:%S"),
        since(job.ended_at),
        job.job_id,
        job.task,
        job.outcome,
        str(job.attempt),
        took,
        f"{job.error_type}: {job.error}"[:80] if job.error_type else "",
        ", ".join(f"{name}={value!r}" for name, value in job.arguments.items()),
    )
