"""``runner jobs enqueue``: a job by the name of its task, with arguments in JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runner.cli import where as options
from runner.cli.load import function_names
from runner.cli.tables import as_json, escaped, read_json
from runner.errors import ArgumentsError, TaskNotFound, did_you_mean
from runner.tasks import Task

if TYPE_CHECKING:
    from datetime import timedelta

    from runner.cli.where import Place
    from runner.client import Client
    from runner.job import Job


@click.command()
@click.argument("task")
@click.option("--args", "args_json", default="[]", help="Positional arguments, a JSON array.")
@click.option("--kwargs", "kwargs_json", default="{}", help="The same by name, a JSON object.")
@click.option("--delay", type=options.span, help="Run it after so long: 90, 30m, 2h.")
@click.option("--key", help="The job's id: a second job with it is not enqueued.")
@click.option("--wait", type=options.span, help="Wait so long for the result, and print it.")
@click.option("--undeclared", is_flag=True, help="Also a task that the settings do not name.")
@options.as_json_flag
@click.pass_obj
def enqueue(
    place: Place, /, *, wait: timedelta | None, as_json: bool, undeclared: bool, **given: Any
) -> None:
    """Enqueue a job of TASK.

    With --wait the status is 0 when the job has succeeded, and 1 when it has failed, or is not
    over in time.
    """
    _check_known(place, given["task"], undeclared=undeclared)

    async def work(client: Client, _: str) -> dict[str, Any]:
        job = await _enqueued(client, place, **given)
        if job is None:
            return {"job_id": given["key"], "is_new": False}
        said = {"job_id": job.job_id, "is_new": job.is_new}
        return said if wait is None else {**said, **await _outcome(job, wait)}

    said = place.do(work)
    if as_json:
        click.echo(_json(said))
    else:
        click.echo(f"{'enqueued' if said['is_new'] else 'there already'}: {said['job_id']}")
        if "result" in said:
            click.echo(f"result: {escaped(repr(said['result']))}")
        if "error" in said:
            click.echo(escaped(said["error"]), err=True)
    if "error" in said:
        raise SystemExit(1)


def _check_known(place: Place, task: str, *, undeclared: bool) -> None:
    names = function_names(place.settings())
    if task not in names and not undeclared:
        raise TaskNotFound(
            f"the settings name no task {task!r}{did_you_mean(task, names)}; with --undeclared "
            f"it is enqueued all the same",
        )


async def _enqueued(
    client: Client,
    place: Place,
    *,
    task: str,
    args_json: str,
    kwargs_json: str,
    delay: timedelta | None,
    key: str | None,
) -> Job[Any] | None:
    """Enqueue it; return None where a job with this key is there."""
    args = read_json(args_json, list, "--args", "an array", error=ArgumentsError)
    kwargs = read_json(kwargs_json, dict, "--kwargs", "an object", error=ArgumentsError)
    queue = place.queue or None
    declared = place.task(task)
    if isinstance(declared, Task):
        bound = declared.options(delay=delay, key=key, queue=queue)
        return await client.enqueue(bound, *args, **kwargs)
    if any(name.startswith("_") for name in kwargs):
        raise ArgumentsError("the names of arguments do not begin with _ here")
    return await client.enqueue_job(
        task, *args, _job_id=key, _queue_name=queue, _defer_by=delay, **kwargs
    )


async def _outcome(job: Job[Any], wait: timedelta) -> dict[str, Any]:
    try:
        return {"result": await job.result(timeout=wait.total_seconds())}
    except TimeoutError:
        return {"error": f"the job was not over within {wait.total_seconds():g} s"}
    except Exception as exc:  # noqa: BLE001  whatever the task has raised
        return {"error": f"{type(exc).__name__}: {exc}"}


_json = as_json
