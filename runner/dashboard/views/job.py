"""One job: its arguments, attempts, lines, progress, writes, and what happened when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runner.dashboard.pages import Page
from runner.dashboard.timeline import moments
from runner.errors import ArgumentsError, JobNotFound

if TYPE_CHECKING:
    from runner.client import Client
    from runner.dashboard.asked import Asked
    from runner.dashboard.desk import Desk
    from runner.dashboard.pages import Action, Shown
    from runner.inspect import JobStory


async def load(desk: Desk, asked: Asked) -> Shown:
    """Read one job; where no queue is named, it is looked for in all."""
    job_id = asked.raw().strip()
    client = await desk.client()
    queues = [await desk.queue(asked)] if asked.text("queue") else await desk.queues()
    story = await _find(client, job_id, queues)
    if story.state == "running":
        started = (j for w in await desk.workers() for j in w.jobs if j.job_id == job_id)
        story = replace(story, started_ms=next((job.started_ms for job in started), 0))
    progress, lines, writes = await _beside(client, story)
    flow_id = _flow_of(job_id)
    return {
        "story": story,
        "moments": moments(story),
        "progress": progress,
        "lines": lines,
        "writes": writes,
        "flow_id": flow_id,
        "given": _given(desk, story),
    }


async def _find(client: Client, job_id: str, queues: list[str]) -> JobStory:
    for queue in queues:
        try:
            return await client.jobs.of(queue).story(job_id)
        except JobNotFound:
            continue
    raise JobNotFound(
        f"Nobody knows a job {job_id!r}: it was never enqueued, or is kept no more.",
        job_id=job_id,
    )


async def _beside(client: Client, story: JobStory) -> tuple[Any, Any, Any]:
    """Read what is kept beside a job; of an id that is no text nothing is."""
    try:
        return await asyncio.gather(
            client.progress(story.job_id, story.queue),
            client.job_log(story.job_id),
            client.writes(story.job_id, ended_ms=story.ended_ms),
        )
    except ArgumentsError:
        return None, [], []


def _given(desk: Desk, story: JobStory) -> dict[Any, Any]:
    """Return the arguments by the names of the parameters, as far as they are known."""
    task = desk.tasks.get(story.task)
    names = task.signature.names if task is not None else []
    known = dict(zip(names, story.args, strict=False))
    rest = {place: story.args[place] for place in range(len(known), len(story.args))}
    return {**known, **rest, **story.kwargs}


def _flow_of(job_id: str) -> str:
    """Return the flow that a job is a node of, or ""."""
    head, _, rest = job_id.partition(":")
    flow_id, _, node = rest.rpartition(":")
    return flow_id if head == "flow" and node.isdigit() else ""


PAGES = (Page("/job", "Job", "job.html", load, area="/jobs"),)
ACTIONS: tuple[Action, ...] = ()
