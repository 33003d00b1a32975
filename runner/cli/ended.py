"""``runner jobs finished``, ``show`` and ``logs``: jobs one by one, and those that have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runner import failures
from runner.cli import where as options
from runner.cli.dead import shown as letter_shown
from runner.cli.dead import told_errors
from runner.cli.tables import as_json, escaped, fields_of, moment, ms_of, since, table, told
from runner.cli.tables import show as show_lines
from runner.errors import JobNotFound, LetterNotFound
from runner.lengths import length
from runner.types import Outcome

if TYPE_CHECKING:
    from arq.jobs import JobResult

    from runner.cli.where import Place
    from runner.client import Client
    from runner.inspect import FinishedJob, JobInfo
    from runner.types import AttemptError

HEADS = ("JOB", "TASK", "OUTCOME", "TRY", "AGO", "TOOK", "ERROR")


@click.command()
@click.option("--task", help="The task's name.")
@click.option(
    "--outcome",
    "outcomes",
    multiple=True,
    type=click.Choice([outcome.value for outcome in Outcome]),
    metavar="OUTCOME",
    help="How they ended, such as failed or timed_out. Repeatable.",
)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@options.as_json_flag
@click.pass_obj
def finished(
    place: Place, *, task: str | None, outcomes: tuple[str, ...], limit: int, as_json: bool
) -> None:
    """List the jobs that ended last, as far as workers remember them."""
    found = place.do(
        lambda client, queue: client.history.of(queue).finished(
            limit=limit, task=task, outcomes=outcomes
        )
    )
    if as_json:
        click.echo(_json(fields_of(found)))
        return
    show_lines(
        table(HEADS, [_row(job) for job in found], flexible=(6, 1), extra=(3, 5), spare=(4,))
    )
    click.echo(f"{len(found)} shown", err=True)


@click.command()
@click.argument("job_id")
@options.as_json_flag
@click.pass_obj
def show(place: Place, job_id: str, *, as_json: bool) -> None:
    """Show job JOB_ID: one that waits or runs, or what is left of one that has ended."""
    facts, errors = place.do(lambda client, queue: look(client, queue, job_id))
    if as_json:
        click.echo(_json(facts))
        return
    show_lines(told(facts, without=("errors", "traceback")))
    show_lines(told_errors(errors))


@click.command()
@click.argument("job_id")
@options.as_json_flag
@click.pass_obj
def logs(place: Place, job_id: str, *, as_json: bool) -> None:
    """Print the last lines that job JOB_ID has logged; they are kept for a day."""
    lines = place.do(lambda client, _: client.job_log(job_id))
    if as_json:
        click.echo(_json(fields_of(lines)))
        return
    for line in lines:
        head, *rest = line.message.splitlines() or [""]
        click.echo(f"{moment(line.at_ms)}  {line.level:<8} {escaped(head)}")
        for text in rest:
            click.echo(f"    {escaped(text)}")
    if not lines:
        click.echo("no lines are kept of this job", err=True)


async def look(
    client: Client, queue: str, job_id: str
) -> tuple[dict[str, Any], tuple[AttemptError, ...]]:
    """Return what is known of a job, in its queue or behind its end; raise `JobNotFound`."""
    progress = await client.progress(job_id, queue)
    more: dict[str, Any] = {}
    if progress is not None:
        total = "" if progress.total is None else f" of {progress.total}"
        more["progress"] = f"{progress.done}{total} {progress.message}".rstrip()
    try:
        job = await client.jobs.of(queue).show(job_id)
    except JobNotFound:
        facts, errors = await _ended(client, queue, job_id)
        if not facts:
            raise
        return {**facts, **more}, errors
    return {**shown(job), **more}, job.errors


async def _ended(
    client: Client, queue: str, job_id: str
) -> tuple[dict[str, Any], tuple[AttemptError, ...]]:
    """Return what is left of a job: its dead letter, or its result; or nothing."""
    try:
        letter = await client.dead.of(queue).show(job_id)
    except LetterNotFound:
        result = await client.job(job_id, queue).result_info()
        return ({} if result is None else _result_shown(job_id, result)), ()
    return {"state": "dead letter", **letter_shown(letter)}, letter.errors


def shown(job: JobInfo) -> dict[str, Any]:
    """Return what is printed of a job in its queue."""
    return {
        "job_id": job.job_id,
        "queue": job.queue,
        "task": job.task,
        "args": list(job.args),
        "kwargs": job.kwargs,
        "state": job.state.value,
        "attempt": job.attempt,
        "crashes": job.crashes,
        "due_ms": ms_of(job.due),
        "enqueued_ms": ms_of(job.enqueued),
        "worker": job.worker,
        "error": job.error,
        "errors": [
            {name: getattr(error, name) for name in error.__struct_fields__} for error in job.errors
        ],
    }


def _result_shown(job_id: str, result: JobResult) -> dict[str, Any]:
    """Return what is printed of a job that has a result."""
    value = result.result
    error_type, error = failures.named(value) if isinstance(value, BaseException) else ("", value)
    if result.success:
        error_type = error = ""
    return {
        "job_id": job_id,
        "queue": result.queue_name,
        "task": result.function,
        "args": list(result.args),
        "kwargs": result.kwargs,
        "state": "succeeded" if result.success else "failed",
        "attempt": result.job_try,
        "enqueued_ms": ms_of(result.enqueue_time),
        "started_ms": ms_of(result.start_time),
        "ended_ms": ms_of(result.finish_time),
        "result": value if result.success else None,
        "error_type": error_type,
        "error": error,
    }


def _row(job: FinishedJob) -> list[str]:
    return [
        job.job_id,
        job.task,
        job.outcome,
        str(job.attempt),
        since(job.ended_ms),
        length(max(job.ended_ms - job.started_ms, 0)) if job.started_ms else "",
        job.error,
    ]


_json = as_json
