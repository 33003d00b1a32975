"""What a worker tells Prometheus, in its names and its text format.

Counts and times are the worker's own since it started: summed up over workers they are the
fleet's. Queues, limits and the writer are read from Redis when somebody asks: any worker's figure
will do.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING

from runner.inspect.latency import BOUNDS_MS
from runner.monitor.tally import Counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from runner.inspect.queues import QueueLoad
    from runner.inspect.workers import WorkerInfo
    from runner.limits import LimitInfo
    from runner.monitor.watched import Holds
    from runner.types import WriterStatus

NOTHING: Mapping[tuple[str, str], int] = MappingProxyType({})
_LE = (*(f"{bound_ms / 1000:g}" for bound_ms in BOUNDS_MS), "+Inf")
_HISTOGRAMS = (
    ("runner_job_wait_seconds", "From the time a job was due to its start.", "waited"),
    ("runner_job_run_seconds", "From start to end of an attempt.", "ran"),
)
LOOP_DELAY = "How late its event loop was, at worst in the last 15 seconds."
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
    tasks: int,
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
            yield _attempts(totals)
            yield from _worker(worker, holds, tasks, lost)
            yield from _queues(loads)
            yield from _limits(decisions, limits)
            if writer is not None:
                yield from _writer(writer)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Worker())
    return generate_latest(registry).decode() + _histograms(totals)


def _attempts(totals: Totals) -> Metric:
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415  an extra

    ended = CounterMetricFamily(
        "runner_attempts",
        "Attempts that ended, by what became of them.",
        labels=("queue", "task", "outcome"),
    )
    for labels, cell in totals.cells.items():
        ended.add_metric(labels, cell.count)
    return ended


def _histograms(totals: Totals) -> str:
    """Return the times by task, as text.

    Two hundred tasks have 17,000 lines, for which the library takes a tenth of a second: so long
    the loop would stand still at each scrape.
    """
    lines: list[str] = []
    by_task = totals.by_task()
    for name, text, which in _HISTOGRAMS:
        lines.append(f"# HELP {name} {text}\n# TYPE {name} histogram\n")
        for (queue, task), cell in by_task.items():
            labels = f'queue="{_escaped(queue)}",task="{_escaped(task)}"'
            counts, below = getattr(cell, which), 0
            head = f'{name}_bucket{{{labels},le="'
            for index, le in enumerate(_LE):
                below += counts.get(index, 0)
                lines.append(f'{head}{le}"}} {below}\n')
            lines.append(
                f"{name}_count{{{labels}}} {below}\n"
                f"{name}_sum{{{labels}}} {getattr(cell, f'{which}_ms') / 1000}\n"
            )
    return "".join(lines)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _worker(worker: WorkerInfo, holds: Holds, tasks: int, lost: int) -> Iterator[Metric]:
    from prometheus_client.core import (  # noqa: PLC0415  an extra
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    yield CounterMetricFamily("runner_leases_lost", "Leases that somebody else has now.", lost)
    for name, text, value in (
        ("runner_jobs_running", "Jobs that this worker has.", worker.running),
        ("runner_concurrency", "How many jobs it runs at once, at most.", worker.concurrency),
        ("runner_memory_bytes", "Its resident memory.", worker.rss_bytes),
        ("runner_loop_delay_seconds", LOOP_DELAY, worker.loop_delay_ms / 1000),
        ("runner_threads", "Threads of its process.", holds.threads),
        ("runner_open_files", "Open files, sockets and pipes of its process.", holds.files),
        ("runner_asyncio_tasks", "asyncio tasks in its event loop.", tasks),
        ("runner_start_time_seconds", "When it started, Unix time.", worker.started_ms / 1000),
        ("runner_draining", "1 while it claims nothing.", int(worker.state != "running")),
        ("runner_writer_leader", "1 while it is the elected writer.", int(worker.is_writer)),
    ):
        yield GaugeMetricFamily(name, text, value)


def _queues(loads: Sequence[QueueLoad]) -> Iterator[Metric]:
    from prometheus_client.core import (  # noqa: PLC0415  an extra
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    depth = GaugeMetricFamily(
        "runner_queue_jobs", "Jobs in a queue, by state.", labels=("queue", "state")
    )
    lag = GaugeMetricFamily(
        "runner_queue_lag_seconds",
        "For how long the oldest job that is due has waited.",
        labels=("queue",),
    )
    paused = GaugeMetricFamily(
        "runner_queue_paused", "1 while nobody claims from a queue.", labels=("queue",)
    )
    crashes = CounterMetricFamily(
        "runner_queue_crashes",
        "Leases that were lost, also by workers that were killed.",
        labels=("queue",),
    )
    for load in loads:
        for state in ("due", "later", "running"):
            depth.add_metric((load.queue, state), getattr(load, state))
        lag.add_metric((load.queue,), load.lag_s)
        paused.add_metric((load.queue,), int(load.is_paused))
        crashes.add_metric((load.queue,), load.crashed)
    yield from (depth, lag, paused, crashes)


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
        ("runner_writer_errors", "Times that an error kept a writer from its work.", status.errors),
    ):
        yield CounterMetricFamily(name, text, count)
    for name, text, value in (
        ("runner_writer_backlog_units", "Units that wait for the writer.", status.backlog),
        ("runner_writer_backlog_bytes", "Their bytes.", status.backlog_bytes),
        ("runner_writer_lag_seconds", "Age of the oldest of them.", status.lag_s),
        ("runner_writer_elected", "1 while some process is the writer.", int(bool(status.leader))),
    ):
        yield GaugeMetricFamily(name, text, value)
