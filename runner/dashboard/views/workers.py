"""Workers: what they run; drain them, resume them, set how many jobs they run at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.dashboard.pages import Action, NotThere, Page
from runner.errors import ArgumentsError

if TYPE_CHECKING:
    from runner.dashboard.asked import Asked
    from runner.dashboard.desk import Desk
    from runner.dashboard.pages import Shown


GONE = "There is no worker {!r}: it has ended, or is silent for ten seconds."


async def load(desk: Desk, asked: Asked) -> Shown:  # noqa: ARG001  each page's loader takes both
    """Read the list of workers."""
    workers = await desk.workers()
    return {
        "workers": workers,
        "running": sum(worker.running for worker in workers),
        "room": sum(worker.concurrency for worker in workers),
    }


async def load_one(desk: Desk, asked: Asked) -> Shown:
    """Read one worker."""
    name = asked.raw("name")
    for worker in await desk.workers():
        if worker.name == name:
            return {"worker": worker}
    raise NotThere(GONE.format(name))


async def drain(desk: Desk, asked: Asked) -> str:
    """Let a worker claim nothing more."""
    name = await _listed(desk, asked)
    return _told(name, await (await desk.client()).workers.drain([name]))


async def resume(desk: Desk, asked: Asked) -> str:
    """Let a drained worker claim again."""
    name = await _listed(desk, asked)
    return _told(name, await (await desk.client()).workers.resume([name]))


async def concurrency(desk: Desk, asked: Asked) -> str:
    """Set how many jobs a worker runs at once."""
    name, jobs = await _listed(desk, asked), asked.number("jobs")
    if not jobs:
        raise ArgumentsError("Give a whole number of jobs, 1 or more.")
    return _told(name, await (await desk.client()).workers.concurrency(jobs, [name]))


async def _listed(desk: Desk, asked: Asked) -> str:
    """Return the name of a worker; of one that has ended nobody waits for an answer."""
    name = asked.id("name")
    if all(worker.name != name for worker in await desk.workers()):
        raise NotThere(GONE.format(name))
    return name


def _told(name: str, answers: dict[str, str]) -> str:
    if name not in answers:
        return f"! {name} did not answer: it may have ended, or its event loop is blocked."
    return f"{name}: {answers[name]}."


PAGES = (
    Page("/workers", "Workers", "workers.html", load),
    Page("/worker", "Worker", "worker.html", load_one, area="/workers"),
)
ACTIONS = (
    Action("/workers/drain", drain),
    Action("/workers/resume", resume),
    Action("/workers/concurrency", concurrency),
)
