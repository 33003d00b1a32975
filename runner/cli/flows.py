"""``runner flows``: workflows, how far they are, and what failed in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runner.cli import where as options
from runner.cli.tables import as_json, confirm, ms_of, show, since, table, told
from runner.cli.where import Place
from runner.lengths import length
from runner.workflow import FlowState

if TYPE_CHECKING:
    from runner.client import Client
    from runner.workflow import FlowStatus, NodeInfo

HEADS = ("FLOW", "NAME", "STATE", "DONE", "FAILED", "AGO", "TOOK")
NODE_HEADS = ("NODE", "STATE", "TASK", "AFTER", "ERROR")

by_id = click.argument("flow_id")


@click.group(invoke_without_command=True)
@options.at_settings
@options.as_json_flag
@click.pass_context
def flows(ctx: click.Context, path: str, queue: str, *, as_json: bool) -> None:
    """Look at workflows, stop them, or run their failed parts again.

    A flow is listed in the queue of its first node.
    """
    ctx.obj = Place(path, queue)
    options.or_list(ctx, as_json=as_json)


@flows.command(name="list")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in FlowState]),
    help="What they have come to. Repeatable.",
)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@options.as_json_flag
@click.pass_obj
def list_flows(place: Place, *, states: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List flows, those that were started last first."""
    wanted = frozenset(map(FlowState, states))
    found = place.do(
        lambda client, queue: client.flows.recent(queue=queue, limit=limit, states=wanted)
    )
    if as_json:
        click.echo(_json([shown(status) for status in found]))
        return
    show(table(HEADS, [_row(status) for status in found], flexible=(1,), extra=(6,), spare=(5, 4)))
    click.echo(f"{len(found)} shown", err=True)


@flows.command(name="show")
@by_id
@options.as_json_flag
@click.pass_obj
def show_flow(place: Place, flow_id: str, *, as_json: bool) -> None:
    """Show flow FLOW_ID and its nodes."""

    async def work(client: Client, _: str) -> tuple[FlowStatus, list[NodeInfo]]:
        flow = client.flow(flow_id)
        return await flow.status(), await flow.nodes()

    status, nodes = place.do(work)
    if as_json:
        click.echo(_json({**shown(status), "nodes": [node_shown(node) for node in nodes]}))
        return
    show(told(shown(status)))
    click.echo()
    show(table(NODE_HEADS, [_node_row(node) for node in nodes], flexible=(4, 3, 2), spare=(3,)))


@flows.command()
@by_id
@click.option("--as", "language", type=click.Choice(["mermaid", "dot"]), default="mermaid")
@options.as_json_flag
@click.pass_obj
def draw(place: Place, flow_id: str, *, language: str, as_json: bool) -> None:
    """Draw flow FLOW_ID, for a Markdown page or for Graphviz."""

    async def work(client: Client, _: str) -> str:
        flow = client.flow(flow_id)
        return await (flow.to_dot() if language == "dot" else flow.to_mermaid())

    drawn: str = place.do(work)
    click.echo(_json({language: drawn}) if as_json else drawn.rstrip())


@flows.command()
@by_id
@options.yes_flag
@options.as_json_flag
@click.pass_obj
def cancel(place: Place, flow_id: str, *, yes: bool, as_json: bool) -> None:
    """Start nothing more of flow FLOW_ID, and abort what runs of it."""
    confirm(f"Stop flow {flow_id!r}?", yes=yes)
    stopped = place.do(lambda client, _: client.flow(flow_id).cancel())
    if as_json:
        click.echo(_json({"flow": flow_id, "cancelled": stopped}))
    else:
        click.echo(f"stopped: {flow_id}" if stopped else f"{flow_id} had ended already")


@flows.command()
@by_id
@options.as_json_flag
@click.pass_obj
def retry(place: Place, flow_id: str, *, as_json: bool) -> None:
    """Run again what did not succeed of flow FLOW_ID, with the results there are."""
    count = place.do(lambda client, _: client.flow(flow_id).retry())
    click.echo(_json({"flow": flow_id, "nodes": count}) if as_json else f"nodes to run: {count}")


def shown(status: FlowStatus) -> dict[str, Any]:
    """Return what is printed of a flow."""
    return {
        "flow": status.id,
        "name": status.name,
        "state": status.state.value,
        "done": status.done,
        "expected": status.expected,
        "total": status.total,
        "succeeded": status.succeeded,
        "failed": status.failed,
        "skipped": status.skipped,
        "cancelled": status.cancelled,
        "queued": status.queued,
        "started_ms": ms_of(status.started),
        "ended_ms": ms_of(status.ended),
        "problem": status.problem,
    }


def node_shown(node: NodeInfo) -> dict[str, Any]:
    """Return what is printed of a node."""
    return {
        "node": node.name,
        "task": node.task,
        "state": node.state.value,
        "job_id": node.job_id,
        "after": list(node.after),
        "error": node.error,
    }


def _row(status: FlowStatus) -> list[str]:
    took_s = (status.ended - status.started).total_seconds() if status.ended else None
    return [
        status.id,
        status.name,
        status.state.value,
        f"{status.done}/{status.expected}",
        str(status.failed),
        since(status.started),
        "" if took_s is None else length(took_s * 1000),
    ]


def _node_row(node: NodeInfo) -> list[str]:
    return [node.name, node.state.value, node.task, ", ".join(node.after), node.error]


_json = as_json
