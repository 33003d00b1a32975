"""Tasks: how each one does; pause it, enqueue it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from runner.dashboard.pages import Action, NotThere, Page
from runner.errors import ArgumentsError
from runner.inspect import JobFilter
from runner.types import UNKNOWN

if TYPE_CHECKING:
    from runner.client import Client
    from runner.dashboard.asked import Asked
    from runner.dashboard.desk import Desk
    from runner.dashboard.pages import Shown
    from runner.inspect import FinishedJob, JobInfo
    from runner.tasks import Task

LAST = 5
ROWS = 100
QUEUED, ENDED, LOOKS, LOOKED_AT = 10, 20, 4, 10_000


async def load(desk: Desk, asked: Asked) -> Shown:
    """Read the list of tasks: those that did most first."""
    client, queues = await desk.client(), await desk.queues()
    periods = await client.history.of(*queues).tasks(minutes=LAST, since_ms=await desk.begun_ms())
    paused = set((await desk.paused()).tasks)
    names = sorted({*await desk.names_of_tasks(), *periods, *paused})
    wanted = asked.text("q").lower()
    found = [name for name in names if wanted in name.lower()]
    found.sort(key=lambda name: -periods[name].ended if name in periods else 0)
    start = asked.number("start")
    return {
        "rows": [(name, periods.get(name)) for name in found[start : start + ROWS]],
        "paused": paused,
        "unknown": UNKNOWN,  # workers count jobs under it whose task nobody has; none to pause
        "minutes": LAST,
        "seconds": next((period.seconds for period in periods.values()), LAST * 60),
        "count": len(found),
        "start": start,
        "next": start + ROWS if start + ROWS < len(found) else 0,
    }


async def load_one(desk: Desk, asked: Asked) -> Shown:
    """Read one task."""
    name = asked.raw("name")
    client, queues = await desk.client(), await desk.queues()
    queue = await desk.queue(asked)
    workers = [worker for worker in await desk.workers() if name in worker.tasks]
    paused = (await desk.paused()).tasks
    period, (queued, cut), ended = await asyncio.gather(
        client.history.of(*queues).task(name, minutes=LAST, since_ms=await desk.begun_ms()),
        _queued(client, queues, name),
        _ended(client, queues, name),
    )
    is_known = workers or period.ended or queued or ended or name in desk.tasks or name in paused
    if not is_known:
        raise NotThere(f"Nobody here knows a task {name!r}.")
    return {
        "name": name,
        "period": period,
        "minutes": LAST,
        "queue": queue,
        "queues": queues,
        "queued": queued,
        "cut": cut,
        "ended": ended,
        "workers": workers,
        "is_paused": name in paused,
        "signature": _signature(desk.tasks.get(name)),
    }


async def pause(desk: Desk, asked: Asked) -> str:
    """Pause a task."""
    name = asked.id("name")
    client = await desk.client()
    return f"{name} is paused." if await client.pause(task=name) else f"{name} was paused already."


async def resume(desk: Desk, asked: Asked) -> str:
    """Let a task go on."""
    name = asked.id("name")
    client = await desk.client()
    return f"{name} goes on." if await client.resume(task=name) else f"{name} was not paused."


async def pause_queue(desk: Desk, asked: Asked) -> str:
    """Pause a queue."""
    queue = await desk.queue(asked)
    client = await desk.client()
    done = await client.pause(queue=queue)
    return f"Queue {queue} is paused." if done else f"Queue {queue} was paused already."


async def resume_queue(desk: Desk, asked: Asked) -> str:
    """Let a queue go on, also one that no worker reads at the moment."""
    name = asked.text("queue")
    queue = name if name in (await desk.paused()).queues else await desk.queue(asked)
    client = await desk.client()
    done = await client.resume(queue=queue)
    return f"Queue {queue} goes on." if done else f"Queue {queue} was not paused."


async def enqueue(desk: Desk, asked: Asked) -> str:
    """Enqueue a job by name, with arguments as JSON: an array, an object, or both as one array."""
    name, queue = asked.id("name"), await desk.queue(asked)
    args, kwargs = arguments(asked.fields.get("arguments", ""))
    client = await desk.client()
    task = desk.tasks.get(name)
    if task is not None:
        job = await client.enqueue(task.options(queue=queue), *args, **kwargs)
    else:
        made = await client.enqueue_job(name, *args, _queue_name=queue, **kwargs)
        assert made is not None  # its id is new
        job = made
    return f"Enqueued {name}: job {job.job_id}."


def arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Read the arguments of a call: a JSON array, by place; or an object, by name.

    Raises:
        ArgumentsError: it is neither.
    """
    try:
        given = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as exc:
        raise ArgumentsError(f"The arguments are no JSON: {exc}") from None
    if isinstance(given, list):
        return given, {}
    if isinstance(given, dict):
        if any(name.startswith("_") for name in given):
            raise ArgumentsError("The names of arguments do not begin with _ here.")
        return [], given
    raise ArgumentsError("The arguments must be a JSON array, or an object with their names.")


async def _queued(
    client: Client, queues: list[str], name: str
) -> tuple[list[tuple[str, JobInfo]], bool]:
    """Return jobs of a task that wait or run, with their queues; whether there may be more."""
    wanted = JobFilter(task=name)
    pages = await asyncio.gather(
        *(client.jobs.of(queue).list(wanted, limit=QUEUED, most_looks=LOOKS) for queue in queues)
    )
    found = [(queue, job) for queue, page in zip(queues, pages, strict=True) for job in page.jobs]
    return found[:QUEUED], any(page.cut for page in pages)


async def _ended(client: Client, queues: list[str], name: str) -> list[tuple[str, FinishedJob]]:
    """Return the jobs of a task that ended last, with their queues, the newest first."""
    lists = await asyncio.gather(
        *(
            client.history.of(queue).finished(limit=ENDED, task=name, most=LOOKED_AT)
            for queue in queues
        )
    )
    found = [(queue, job) for queue, jobs in zip(queues, lists, strict=True) for job in jobs]
    found.sort(key=lambda pair: -pair[1].ended_ms)
    return found[:ENDED]


def _signature(task: Task[..., Any] | None) -> str:
    return "" if task is None else f"{task.name}{task.signature}"


PAGES = (
    Page("/tasks", "Tasks", "tasks.html", load),
    Page("/task", "Task", "task.html", load_one, area="/tasks"),
)
ACTIONS = (
    Action("/tasks/pause", pause),
    Action("/tasks/resume", resume),
    Action("/tasks/enqueue", enqueue),
    Action("/queues/pause", pause_queue),
    Action("/queues/resume", resume_queue),
)
