"""Workflows: those that were started last; each drawn as a graph; cancel, run again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.dashboard.drawing import draw
from runner.dashboard.pages import Action, Page
from runner.dashboard.texts import noun, number

if TYPE_CHECKING:
    from runner.dashboard.asked import Asked
    from runner.dashboard.desk import Desk
    from runner.dashboard.pages import Shown
    from runner.workflow import NodeInfo

ROWS = 50
MOST_NODES = 2_000
"""A flow of more is not read node by node: that would take too long for a page."""
NODES_SHOWN = 200
FIRST = ("failed", "queued", "committing", "waiting", "cancelled", "skipped", "succeeded")


async def load(desk: Desk, asked: Asked) -> Shown:
    """Read a page of flows, the newest first."""
    queue = await desk.queue(asked)
    start = asked.number("start", most=10_000)
    flows = (await desk.client()).flows
    found = await flows.recent(queue=queue, limit=ROWS + 1, skip=start)
    return {
        "queue": queue,
        "queues": await desk.queues(),
        "flows": found[:ROWS],
        "start": start,
        "next": start + ROWS if len(found) > ROWS else 0,
    }


async def load_one(desk: Desk, asked: Asked) -> Shown:
    """Read one flow."""
    flow_id = asked.raw()
    client = await desk.client()
    run = client.flow(flow_id)
    status = await run.status()
    queue = await client.flows.home(flow_id)
    nodes: list[NodeInfo] = []
    if status.total <= MOST_NODES:
        nodes = await run.nodes()
    drawn = draw(nodes, root=asked.root, queue=queue) if nodes else None
    order = sorted(range(len(nodes)), key=lambda at: (FIRST.index(nodes[at].state.value), at))
    return {
        "status": status,
        "queue": queue,
        "drawing": drawn,
        "nodes": [nodes[at] for at in order[:NODES_SHOWN]],
        "node_count": len(nodes),
        "most": MOST_NODES,
    }


async def cancel(desk: Desk, asked: Asked) -> str:
    """Start nothing more of a flow."""
    flow_id = asked.id()
    stopped = await (await desk.client()).flow(flow_id).cancel()
    return f"Workflow {flow_id} is cancelled." if stopped else f"! Workflow {flow_id} had ended."


async def retry(desk: Desk, asked: Asked) -> str:
    """Run again what did not succeed."""
    flow_id = asked.id()
    count = await (await desk.client()).flow(flow_id).retry()
    return f"{number(count)} {noun(count, 'step')} of workflow {flow_id} will run again."


PAGES = (
    Page("/workflows", "Workflows", "flows.html", load),
    Page("/workflow", "Workflow", "flow.html", load_one, area="/workflows"),
)
ACTIONS = (Action("/workflows/cancel", cancel), Action("/workflows/retry", retry))
