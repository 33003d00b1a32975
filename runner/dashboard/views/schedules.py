"""Schedules: when they are due; run them now, pause them, let them go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.dashboard.pages import Action, Page

if TYPE_CHECKING:
    from runner.dashboard.asked import Asked
    from runner.dashboard.desk import Desk
    from runner.dashboard.pages import Shown
    from runner.schedule import Schedules

ROWS = 100


async def load(desk: Desk, asked: Asked) -> Shown:
    """Read a page of schedules, those that are due next first."""
    queue, start = await desk.queue(asked), asked.number("start")
    infos, count = await (await _of(desk, queue)).page(start=start, limit=ROWS)
    return {
        "queue": queue,
        "queues": await desk.queues(),
        "infos": infos,
        "count": count,
        "start": start,
        "next": start + ROWS if start + ROWS < count else 0,
    }


async def run(desk: Desk, asked: Asked) -> str:
    """Run a schedule's task now."""
    name, queue = asked.id("name"), await desk.queue(asked)
    job_id = await (await _of(desk, queue)).run(name)
    return f"{name} runs now: job {job_id}."


async def pause(desk: Desk, asked: Asked) -> str:
    """Let a schedule make no more runs."""
    name, queue = asked.id("name"), await desk.queue(asked)
    await (await _of(desk, queue)).pause(name)
    return f"{name} is paused."


async def resume(desk: Desk, asked: Asked) -> str:
    """Let a schedule go on."""
    name, queue = asked.id("name"), await desk.queue(asked)
    await (await _of(desk, queue)).resume(name)
    return f"{name} goes on."


async def _of(desk: Desk, queue: str) -> Schedules:
    return (await desk.client()).schedules.of(queue)


PAGES = (Page("/schedules", "Schedules", "schedules.html", load),)
ACTIONS = (
    Action("/schedules/run", run),
    Action("/schedules/pause", pause),
    Action("/schedules/resume", resume),
)
