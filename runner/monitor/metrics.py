"""What a worker tells Prometheus, in its names and its text format.

Counts and times are the worker's own since it started: summed up over workers they are the
fleet's. Queues, limits and the writer are read from Redis when somebody asks: any worker's figure
will do.
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING

from runner.inspect.latency import BOUNDS_MS
from runner.monitor.tally import Counted

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from runner.inspect.queues import QueueLoad
    from runner.inspect.workers import WorkerInfo
    from runner.limits import LimitInfo
    from runner.monitor.watched import Holds
    from runner.types import WriterStatus

NOTHING: Mapping[tuple[str, str], int] = MappingProxyType({})
KIND = "text/plain; version=0.0.4; charset=utf-8"


class Totals:
    """All that one worker has counted, by queue, task and outcome."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str, str], Counted] = {}

    def add(self, counted: Iterable[Counted]) -> None:
        """Add what was counted since the last time."""
        for cell in counted:
            key = (cell.queue, cell.task, cell.outcome)
            known = self.cells.get(key)
            if known is None:
                known = self.cells[key] = Counted(*key)
            known.add(cell)

    def by_task(self) -> dict[tuple[str, str], Counted]:
        """Return the same without regard to outcomes."""
        sums: dict[tuple[str, str], Counted] = {}
        for (queue, task, _), cell in self.cells.items():
            known = sums.setdefault((queue, task), Counted(queue, task, ""))
            known.add(cell)
        return sums


def is_there() -> bool:
    """Say whether the library that writes the format is installed."""
    return find_spec("prometheus_client") is not None


def exposition(
    totals: Totals,
    worker: WorkerInfo,
    *,
    holds: Holds,
    lost: int,
    loads: Sequence[QueueLoad],
    writer: WriterStatus | None,
    decisions: Mapping[tuple[str, str], int] = NOTHING,
    limits: Sequence[LimitInfo] = (),
) -> str:
    """Return all metrics as text."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415  an extra
    from prometheus_client.registry import Collector  # noqa: PLC0415  the same

    class Worker(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _jobs(totals)
            yield from _worker(worker, holds, lost)
            yield from _queues(loads)
            yield from _limits(decisions, limits)
            if writer is not None:
                yield from _writer(writer)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Worker())
    return generate_latest(registry).decode()


def _jobs(totals: Totals) -> Iterator[Metric]:
    from prometheus_client.core import (  # noqa: PLC0415  an extra
        CounterMetricFamily,
        HistogramMetricFamily,
    )

    ended = CounterMetricFamily(
        "runner_attempts",
        "Attempts that ended, by what became of them.",
        labels=("queue", "task", "outcome"),
    )
    for labels, cell in totals.cells.items():
        ended.add_metric(labels, cell.count)
    yield ended
    wait = HistogramMetricFamily(
        "runner_job_wait_seconds",
        "From the time a job was due to its start.",
        labels=("queue", "task"),
    )
    run = HistogramMetricFamily(
        "runner_job_run_seconds", "From start to end of an attempt.", labels=("queue", "task")
    )
    for names, cell in totals.by_task().items():
        wait.add_metric(names, _buckets(cell.waited), cell.waited_ms / 1000)
        run.add_metric(names, _buckets(cell.ran), cell.ran_ms / 1000)
    yield from (wait, run)


def _buckets(counts: Counter[int]) -> list[tuple[str, float]]:
    below, buckets = 0, list[tuple[str, float]]()
    for index, bound_ms in enumerate(BOUNDS_MS):
        below += counts.get(index, 0)
        buckets.append((f"{bound_ms / 1000:g}", below))
    return [*buckets, ("+Inf", below + counts.get(len(BOUNDS_MS), 0))]


def _worker(worker: WorkerInfo, holds: Holds, lost: int) -> Iterator[Metric]:
    from prometheus_client.core import (  # noqa: PLC0415  an extra
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    yield CounterMetricFamily("runner_leases_lost", "Leases that somebody else has now.", lost)
    for name, text, value in (
        ("runner_jobs_running", "Jobs that this worker has.", worker.running),
        ("runner_concurrency", "How many jobs it runs at once, at most.", worker.concurrency),
        ("runner_memory_bytes", "Its resident memory.", worker.rss_bytes),
        ("runner_threads", "Threads of its process.", holds.threads),
        ("runner_open_files", "Open files, sockets and pipes of its process.", holds.files),
        ("runner_asyncio_tasks", "asyncio tasks in its event loop.", len(asyncio.all_tasks())),
        ("runner_loop_delay_seconds", "How late its event loop was.", worker.loop_delay_ms / 1000),
        ("runner_start_time_seconds", "When it started, Unix time.", worker.started_ms / 1000),
        ("runner_draining", "1 while it claims nothing.", int(worker.state != "running")),
        ("runner_writer_leader", "1 while it is the elected writer.", int(worker.is_writer)),
    ):
        yield GaugeMetricFamily(name, text, value)


def _queues(loads: Sequence[QueueLoad]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415  an extra

    depth = GaugeMetricFamily(
        "runner_queue_jobs", "Jobs in a queue, by state.", labels=("queue", "state")
    )
    lag = GaugeMetricFamily(
        "runner_queue_lag_seconds",
        "For how long the oldest job that is due has waited.",
        labels=("queue",),
    )
    for load in loads:
        for state in ("due", "later", "running"):
            depth.add_metric((load.queue, state), getattr(load, state))
        lag.add_metric((load.queue,), load.lag_s)
    yield from (depth, lag)


def _limits(
    decisions: Mapping[tuple[str, str], int], limits: Sequence[LimitInfo]
) -> Iterator[Metric]:
    from prometheus_client.core import (  # noqa: PLC0415  an extra
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    decided = CounterMetricFamily(
        "runner_limit_decisions",
        "Attempts that a limit has admitted, delayed or parked.",
        labels=("limit", "decision"),
    )
    for labels, count in sorted(decisions.items()):
        decided.add_metric(labels, count)
    yield decided
    for name, text, what in (
        ("runner_limit_used", "Slots that are taken, or what a rate counts now.", "used"),
        ("runner_limit_parked_jobs", "Jobs that wait for a slot.", "parked"),
        ("runner_limit_delayed_jobs", "Jobs that wait for their time.", "reserved"),
    ):
        gauge = GaugeMetricFamily(name, text, labels=("limit",))
        for info in limits:
            gauge.add_metric((info.name,), getattr(info, what))
        yield gauge


def _writer(status: WriterStatus) -> Iterator[Metric]:
    from prometheus_client.core import (  # noqa: PLC0415  an extra
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    for name, text, count in (
        ("runner_writer_units", "Units committed.", status.units),
        ("runner_writer_operations", "Operations committed.", status.operations),
        ("runner_writer_batches", "Transactions that committed units.", status.batches),
        ("runner_writer_rejected", "Units that Postgres refused.", status.rejected),
    ):
        yield CounterMetricFamily(name, text, count)
    for name, text, value in (
        ("runner_writer_backlog_units", "Units that wait for the writer.", status.backlog),
        ("runner_writer_backlog_bytes", "Their bytes.", status.backlog_bytes),
        ("runner_writer_lag_seconds", "Age of the oldest of them.", status.lag_s),
    ):
        yield GaugeMetricFamily(name, text, value)
