"""Dead letters: read them, requeue them, purge them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from runner.dashboard.pages import Action, Page
from runner.dashboard.texts import noun, number
from runner.dashboard.views.jobs import AGES_S, argument
from runner.letters import LetterFilter

if TYPE_CHECKING:
    from runner.dashboard.asked import Asked
    from runner.dashboard.desk import Desk
    from runner.dashboard.pages import Shown

ROWS = 50
LOOKS = 2
"""What a search looks at before it asks whether to go on: two thousand letters."""
FIELDS = ("task", "error", "text", "newer", "arg")


async def load(desk: Desk, asked: Asked) -> Shown:
    """Read a page of dead letters."""
    queue = await desk.queue(asked)
    letters = (await desk.client()).dead.of(queue)
    page = await letters.list(
        filter_of(desk, asked), limit=ROWS, after=asked.text("after"), most_looks=LOOKS
    )
    return {
        "queue": queue,
        "queues": await desk.queues(),
        "letters": page.letters,
        "after": page.after,
        "cut": page.cut,
        "count": await letters.count(),
        "names": await desk.names_of_tasks(),
        "fields": {name: asked.text(name) for name in FIELDS},
        "is_filtered": any(asked.text(name) for name in FIELDS),
        "looked": LOOKS * (500 if asked.text("arg") else 1_000),
    }


def filter_of(desk: Desk, asked: Asked) -> LetterFilter:
    """Return which letters a search is about; raise `ArgumentsError` when it makes no sense."""
    newer_s = AGES_S.get(asked.text("newer"))
    return LetterFilter(
        task=desk.task(asked.text("task")),
        error=asked.text("error") or None,
        text=asked.text("text") or None,
        since=None if newer_s is None else datetime.now(UTC) - timedelta(seconds=newer_s),
        arguments=argument(asked.text("arg")) or None,
        known=tuple(desk.tasks.values()),
    )


async def requeue(desk: Desk, asked: Asked) -> str:
    """Put a dead job back into its queue."""
    job_id, queue = asked.id(), await desk.queue(asked)
    await (await desk.client()).dead.of(queue).requeue(job_id)
    return f"Job {job_id} is in its queue again."


async def purge(desk: Desk, asked: Asked) -> str:
    """Remove a letter for good."""
    job_id, queue = asked.id(), await desk.queue(asked)
    removed = await (await desk.client()).dead.of(queue).purge(job_id)
    return (
        f"The letter of job {job_id} is gone." if removed else f"! There is no letter of {job_id}."
    )


async def requeue_all(desk: Desk, asked: Asked) -> str:
    """Put all dead jobs that a search finds back into their queue."""
    queue = await desk.queue(asked)
    said = await (await desk.client()).dead.of(queue).requeue(filter_of(desk, asked))
    told = f"{number(said.count)} {noun(said.count, 'job is', 'jobs are')} in the queue again."
    if not said.stayed:
        return told
    why = next(iter(said.refused.values()))
    return f"! {told} {number(said.stayed)} {noun(said.stayed, 'stays', 'stay')}: {why}"


async def purge_all(desk: Desk, asked: Asked) -> str:
    """Remove all letters that a search finds."""
    queue = await desk.queue(asked)
    removed = await (await desk.client()).dead.of(queue).purge(filter_of(desk, asked))
    return f"{number(removed)} {noun(removed, 'letter is', 'letters are')} gone."


PAGES = (Page("/dead", "Dead letters", "dead.html", load),)
ACTIONS = (
    Action("/dead/requeue", requeue),
    Action("/dead/purge", purge),
    Action("/dead/requeue-all", requeue_all),
    Action("/dead/purge-all", purge_all),
)
