"""The writer: who it is, how far it is, what waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.dashboard.pages import Page
from runner.letters import LetterFilter

if TYPE_CHECKING:
    from runner.dashboard.asked import Asked
    from runner.dashboard.desk import Desk
    from runner.dashboard.pages import Action, Shown

REFUSED, LOOKS = 10, 1


async def load(desk: Desk, asked: Asked) -> Shown:
    """Read the state of the writer, and the last jobs whose writes Postgres refused."""
    client, queue = await desk.client(), await desk.queue(asked)
    refused = LetterFilter(error="WriteRejected")
    page = await client.dead.of(queue).list(refused, limit=REFUSED, most_looks=LOOKS)
    status = await client.writer_status()
    return {
        "status": status,
        "candidates": [worker for worker in await desk.workers() if worker.is_writer],
        "batch": status.units / status.batches if status.batches else 0.0,
        "refused": page.letters,
        "queue": queue,
    }


PAGES = (Page("/writer", "Writer", "writer.html", load),)
ACTIONS: tuple[Action, ...] = ()
