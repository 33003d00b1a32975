"""Jobs: search those in a queue, and those that have ended; cancel them, run them now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.dashboard.pages import Action, Page
from runner.dashboard.texts import noun, number
from runner.errors import ArgumentsError
from runner.inspect import BAD, JobFilter, JobState
from runner.letters.filters import read_argument
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.dashboard.asked import Asked
    from runner.dashboard.desk import Desk
    from runner.dashboard.pages import Shown

ROWS = 50
LOOKS, CLOSE_LOOKS = 6, 2
"""What a search looks at before it asks whether to go on, by 500 jobs; one by state, argument or
age has to read each of them."""
FINISHED, MOST_FINISHED = "finished", 20_000
STATES = tuple(state.value for state in JobState)
AGES_S = {"": None, "minute": 60.0, "hour": 3_600.0, "day": 86_400.0}
TABS = (
    ("", "In the queue"),
    ("running", "Running"),
    ("queued", "Queued"),
    ("retrying", "Retrying"),
    ("deferred", "Deferred"),
    ("parked", "Parked"),
    ("committing", "Committing"),
    (FINISHED, "Finished"),
)
SEARCHED = ("state", "task", "arg", "older")
ENDS = tuple(outcome.value for outcome in Outcome)


async def load(desk: Desk, asked: Asked) -> Shown:
    """Read a page of jobs."""
    queue = await desk.queue(asked)
    client = await desk.client()
    values: Shown = {
        "queue": queue,
        "queues": await desk.queues(),
        "tabs": TABS,
        "search": {name: asked.text(name) for name in SEARCHED} | {"queue": queue},
        "state": asked.text("state"),
        "names": await desk.names_of_tasks(),
        "is_paused": queue in (await desk.paused()).queues,
        "stats": await client.queue_stats(queue),
        "ends": ENDS,
    }
    if asked.text("state") == FINISHED:
        return values | await _finished(desk, asked, queue)
    meant = filter_of(desk, asked)
    looks = CLOSE_LOOKS if meant.sorts_out else LOOKS
    page = await client.jobs.of(queue).list(
        meant, limit=ROWS, after=asked.text("after"), most_looks=looks
    )
    return values | {"jobs": page.jobs, "after": page.after, "cut": page.cut, "looked": looks * 500}


def filter_of(desk: Desk, asked: Asked) -> JobFilter:
    """Return which jobs a search is about; raise `ArgumentsError` when it makes no sense."""
    state = asked.text("state")
    if state and state not in STATES:
        raise ArgumentsError(f"there is no state {state!r}")
    return JobFilter(
        task=desk.task(asked.text("task")),
        states=(state,) if state else (),
        older=AGES_S.get(asked.text("older")),
        arguments=argument(asked.text("arg")) or None,
        known=tuple(desk.tasks.values()),
    )


def argument(text: str) -> Mapping[str | int, Any]:
    """Read ``name=value``: the value is JSON, or else text; a whole number names a place."""
    if not text:
        return {}
    name, value = read_argument(text)
    return {name: value}


async def _finished(desk: Desk, asked: Asked, queue: str) -> Shown:
    client, start = await desk.client(), asked.number("start")
    outcome, task = asked.text("outcome"), asked.text("task")
    found = await client.history.of(queue).finished(
        limit=ROWS + 1,
        skip=start,
        task=task or None,
        outcomes=BAD if outcome == "bad" else (outcome,) if outcome else (),
        most=MOST_FINISHED if outcome or task else None,
    )
    return {
        "finished": found[:ROWS],
        "outcome": outcome,
        "start": start,
        "next": start + ROWS if len(found) > ROWS else 0,
    }


async def cancel(desk: Desk, asked: Asked) -> str:
    """Take a job that does not run out of its queue."""
    job_id, queue = asked.id(), await desk.queue(asked)
    client = await desk.client()
    said = await client.jobs.of(queue).cancel(job_id)
    if said.count:
        return f"Job {job_id} is cancelled."
    return f"! Job {job_id} runs, and was left alone." if said.running else _gone(job_id)


async def abort(desk: Desk, asked: Asked) -> str:
    """Ask the worker that runs a job to abort it, if its workers allow that."""
    job_id, queue = asked.id(), await desk.queue(asked)
    client = await desk.client()
    if not await client.job(job_id, queue).ask_to_abort():
        return _gone(job_id)
    return f"Job {job_id} is asked to end; workers with allow_abort_jobs do that."


async def run_now(desk: Desk, asked: Asked) -> str:
    """Let a job that waits for a time, or for another try, run now."""
    job_id, queue = asked.id(), await desk.queue(asked)
    client = await desk.client()
    moved = await client.jobs.of(queue).retry_now(job_id)
    return f"Job {job_id} is due now." if moved else f"! Job {job_id} does not wait for a time."


async def cancel_all(desk: Desk, asked: Asked) -> str:
    """Take all jobs that a search finds, and that do not run, out of their queue."""
    queue = await desk.queue(asked)
    client = await desk.client()
    said = await client.jobs.of(queue).cancel(filter_of(desk, asked))
    rest = f"; {_jobs(said.running)} running, and left alone" if said.running else ""
    return f"{_jobs(said.count)} cancelled{rest}."


async def run_all_now(desk: Desk, asked: Asked) -> str:
    """Let all jobs that a search finds run now."""
    queue = await desk.queue(asked)
    client = await desk.client()
    moved = await client.jobs.of(queue).retry_now(filter_of(desk, asked))
    return f"{_jobs(moved)} due now."


def _jobs(count: int) -> str:
    return f"{number(count)} {noun(count, 'job is', 'jobs are')}"


def _gone(job_id: str) -> str:
    return f"! Job {job_id} is not in the queue any more."


PAGES = (Page("/jobs", "Jobs", "jobs.html", load),)
ACTIONS = (
    Action("/jobs/cancel", cancel),
    Action("/jobs/run", run_now),
    Action("/jobs/abort", abort),
    Action("/jobs/cancel-all", cancel_all),
    Action("/jobs/run-all", run_all_now),
)
