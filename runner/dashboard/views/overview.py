"""The first page: what goes through, what waits, what went wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from runner.dashboard.charts import Bar, bars, line
from runner.dashboard.pages import Page
from runner.dashboard.texts import number, stamp
from runner.inspect import BAD
from runner.lengths import length

if TYPE_CHECKING:
    from runner.client import Client
    from runner.dashboard.asked import Asked
    from runner.dashboard.desk import Desk
    from runner.dashboard.pages import Action, Shown
    from runner.inspect import FinishedJob, Period

MINUTES, LAST = 60, 5
FAILURES, LOOKED_AT = 6, 5_000
"""The failures that are shown, and among how many jobs of a queue they are looked for."""


async def load(desk: Desk, asked: Asked) -> Shown:  # noqa: ARG001  each page's loader takes both
    """Read the overview."""
    client, queues = await desk.client(), await desk.queues()
    history, since_ms = client.history.of(*queues), await desk.begun_ms()
    loads, minutes, last, failures, writer = await asyncio.gather(
        client.queue_loads(*queues),
        history.minutes(MINUTES),
        history.last(minutes=LAST, since_ms=since_ms),
        failed_last(client, queues, FAILURES),
        client.writer_status(),
    )
    stats = await asyncio.gather(*(client.queue_stats(queue) for queue in queues))
    rates = await asyncio.gather(
        *(client.history.of(q).last(minutes=LAST, since_ms=last.start_ms) for q in queues)
    )
    workers, paused = await desk.workers(), await desk.paused()
    busiest = max((period.ended for period in minutes), default=0)
    queued = sum(stat.queued + stat.dead for stat in stats)
    return {
        "rows": list(zip(loads, rates, stats, strict=True)),
        "last": last,
        "minutes": LAST,
        "chart": bars([_bar(period) for period in minutes], title=_title(minutes)),
        "waits": line([period.wait.p95 for period in minutes], title="wait, p95, last hour"),
        "runs": line([period.run.p95 for period in minutes], title="run time, p95, last hour"),
        "busiest": busiest,
        "is_new": bool(workers) and not (busiest or failures or queued),
        "failures": failures,
        "due": sum(load.due for load in loads),
        "lag_s": max((load.lag_s for load in loads), default=0.0),
        "dead": sum(stat.dead for stat in stats),
        "writer": writer,
        "workers": workers,
        "running": sum(worker.running for worker in workers),
        "room": sum(worker.concurrency for worker in workers),
        "paused": paused,
    }


async def failed_last(
    client: Client, queues: list[str], limit: int
) -> list[tuple[str, FinishedJob]]:
    """Return the jobs that failed last in some queues, with the queue, the newest first."""
    found = await asyncio.gather(
        *(
            client.history.of(queue).finished(limit=limit, outcomes=BAD, most=LOOKED_AT)
            for queue in queues
        )
    )
    named = [(queue, job) for queue, jobs in zip(queues, found, strict=True) for job in jobs]
    named.sort(key=lambda pair: -pair[1].ended_ms)
    return named[:limit]


def _bar(period: Period) -> Bar:
    said = f"{stamp(period.start_ms)[11:16]}: {number(period.ended)} ended"
    if period.failed:
        said += f", {number(period.failed)} failed"
    if period.run.count:
        said += f", p95 {length(period.run.p95)}"
    return Bar(period.ended - period.failed, period.failed, said)


def _title(minutes: list[Period]) -> str:
    ended, failed = sum(m.ended for m in minutes), sum(m.failed for m in minutes)
    return f"Attempts by the minute in the last hour: {ended:,} ended, {failed:,} failed"


PAGES = (Page("/", "Overview", "overview.html", load),)
ACTIONS: tuple[Action, ...] = ()
