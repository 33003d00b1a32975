"""The rows: what each measures, of which sides, and how its figures are read."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from redis import Redis

from tests.benchmarks.bench import address_of
from tests.benchmarks.processes import Process, memory_mb, wait_for_lines
from tests.benchmarks.sides import OURS, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.benchmarks.bench import Bench
    from tests.benchmarks.sides import Side

PAIR: Final = (OURS, "arq")
ONE_WAY_MS: Final = 0.5
CROWD: Final = 1_000


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a row: its key, its heading, and how many decimals it is worth."""

    key: str
    title: str
    decimals: int = 0
    more_is_better: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison. `pair_only`: only ours and stock arq; `naps_only`: who can sleep at once."""

    name: str
    title: str
    about: str
    columns: tuple[Column, ...]
    measure: Callable[[Bench, Side], dict[str, float]]
    pair_only: bool = False
    naps_only: bool = False

    def takes(self, side: Side) -> bool:
        """Say whether a side has a place in this row."""
        if self.pair_only:
            return side.name in PAIR
        return side.naps or not self.naps_only


def drain(bench: Bench, side: Side) -> dict[str, float]:
    """Drain a full queue of no-op jobs with one worker."""
    queued = bench.fill(side)
    with bench.worker(side) as worker:
        return bench.watch(side, [worker], queued)


def enqueue(bench: Bench, side: Side) -> dict[str, float]:
    """Enqueue in three ways; no worker runs."""
    bench.fresh()
    figures: dict[str, float] = bench.produce(
        side, "enqueue", jobs=bench.scale.jobs, limit_s=bench.scale.enqueue_s
    )
    return figures


def latency(bench: Bench, side: Side) -> dict[str, float]:
    """Wait for starts and results on an idle worker; read its memory then."""
    bench.fresh()
    starts = bench.file("starts")
    with bench.worker(side, BENCH_STARTS=str(starts)) as worker:
        figures: dict[str, float] = bench.produce(
            side,
            "latency",
            starts=str(starts),
            jobs=bench.scale.latency_jobs,
            limit_s=bench.scale.latency_s,
        )
        worker.check()
        figures["idle"] = memory_mb(worker.pid)
    return figures


def deferred(bench: Bench, side: Side) -> dict[str, float]:
    """Let jobs become due on an idle worker, and see how late they start."""
    bench.fresh()
    starts = bench.file("starts")
    with bench.worker(side, BENCH_STARTS=str(starts)) as worker:
        figures: dict[str, float] = bench.produce(
            side,
            "deferred",
            starts=str(starts),
            jobs=bench.scale.latency_jobs,
            limit_s=bench.scale.latency_s,
        )
        worker.check()
    return figures


def naps(bench: Bench, side: Side) -> dict[str, float]:
    """Drain jobs that sleep for 10 ms, a thousand at once."""
    queued = bench.fill(side, task="nap", jobs=max(bench.scale.jobs // 2, 1))
    with bench.worker(side, concurrency=CROWD) as worker:
        return bench.watch(side, [worker], queued)


def workers(bench: Bench, side: Side) -> dict[str, float]:
    """Drain with more and more workers, which are all up before the first job is there."""
    figures: dict[str, float] = {}
    for count in bench.scale.fleets:
        bench.fresh()
        with bench.fleet(side, count) as fleet:
            bench.hold(fleet)
            queued = bench.fill(side)
            bench.release(fleet)
            drained = bench.watch(side, fleet, queued)
        figures[f"rate_{count}"] = drained["rate"]
        figures[f"commands_{count}"] = drained["commands"]
    return figures


def distant(bench: Bench, side: Side) -> dict[str, float]:
    """Drain with 1 ms more between the worker and Redis, and right after without."""
    queued = bench.fill(side)
    with far_away(bench) as url, bench.worker(side, url=url) as worker:
        far = bench.watch(side, [worker], queued)
    near = drain(bench, side)
    return {**far, "near": near["rate"], "share": far["rate"] / near["rate"]}


def logs(bench: Bench, side: Side) -> dict[str, float]:
    """Drain with logs at INFO, which go to a file."""
    queued = bench.fill(side)
    with bench.worker(side, BENCH_LOG="INFO") as worker:
        figures = bench.watch(side, [worker], queued)
        figures["lines"] = worker.log.read_bytes().count(b"\n") / figures["done"]
    return figures


@contextlib.contextmanager
def far_away(bench: Bench) -> Iterator[str]:
    """Run the proxy, and lend the address of the server behind it."""
    host, port = address_of(bench.url)
    command = (sys.executable, "-m", "tests.benchmarks.proxy", host, str(port), str(ONE_WAY_MS))
    log = bench.file("proxy.log")
    with Process(command, folder=ROOT, environment={}, log=log) as process:
        wait_for_lines(log, 1, timeout_s=10, check=[process])
        yield f"redis://127.0.0.1:{int(log.read_text())}/0"


def proxy_figures(bench: Bench) -> str:
    """Measure the proxy itself: what it adds, and what it can carry."""
    with far_away(bench) as url:
        near, near_flow = _wire(bench.url)
        far, far_flow = _wire(url)
    return (
        f"The proxy adds {far - near:.2f} ms to a round trip (median of 500: {near:.2f} ms without "
        f"it, {far:.2f} ms with it), and carries {far_flow:,.0f} SETs a second of 100 bytes in "
        f"pipelines of 500 ({near_flow:,.0f} without it)."
    )


def _wire(url: str) -> tuple[float, float]:
    with Redis.from_url(url, socket_timeout=30) as redis:
        spent_ms = []
        for _ in range(500):
            started = time.perf_counter()
            redis.ping()
            spent_ms.append((time.perf_counter() - started) * 1000)
        started = time.perf_counter()
        for _ in range(40):
            pipe = redis.pipeline(transaction=False)
            for number in range(500):
                pipe.set(f"bench:{number}", b"x" * 100)
            pipe.execute()
        return statistics.median(spent_ms), 20_000 / (time.perf_counter() - started)


RATE: Final = Column("rate", "jobs/s")
CPU: Final = Column("cpu", "worker CPU, s per 10,000", 2, more_is_better=False)
SERVER_CPU: Final = Column("server_cpu", "server CPU, s per 10,000", 2, more_is_better=False)
COMMANDS: Final = Column("commands", "Redis commands a job", 1, more_is_better=False)
PACKETS: Final = Column("packets", "packets to Redis a job", 2, more_is_better=False)
PEAK: Final = Column("peak", "peak memory, MB", 0, more_is_better=False)
FLEETS: Final = (1, 2, 20, 40)

ROWS: Final = (
    Row(
        name="drain",
        title="Drain of no-op jobs",
        about=(
            "All jobs are queued first, each side by its quickest way; then one worker is started, "
            "concurrency 100, results kept. Timed from just before the first job is done to the "
            "last, seen from outside in Redis, so starting is not part of it. Commands are "
            "Redis's own count and include those inside scripts; packets are reads that the "
            "server made from its connections."
        ),
        columns=(RATE, CPU, SERVER_CPU, COMMANDS, PACKETS, PEAK),
        measure=drain,
    ),
    Row(
        name="enqueue",
        title="Enqueue",
        about=(
            "No worker runs. One by one: each call is awaited before the next. Gather: 100 calls "
            "at once. Bulk: all jobs in one call, with building the calls. Bare: a redis-py SET "
            "of 100 bytes, awaited one by one, in blocks of 100 in turn with the enqueues."
        ),
        columns=(
            Column("one", "one by one /s"),
            Column("bare", "bare SET /s"),
            Column("of_bare", "one by one ÷ bare SET", 2),
            Column("gather", "gather 100 /s"),
            Column("bulk", "bulk /s"),
        ),
        measure=enqueue,
    ),
    Row(
        name="latency",
        title="Latency on an idle worker",
        about=(
            "One warm worker, one job at a time. Pickup: from before the enqueue to the job's "
            "first line, both by the machine's clock, 20 to 40 ms between jobs. Result: from "
            "before the enqueue until the client has the result, without pauses. Memory: "
            "resident, after that."
        ),
        columns=(
            Column("pickup_p50", "pickup p50, ms", 2, more_is_better=False),
            Column("pickup_p99", "pickup p99, ms", 2, more_is_better=False),
            Column("result_p50", "enqueue → result p50, ms", 2, more_is_better=False),
            Column("idle", "idle memory, MB", 0, more_is_better=False),
        ),
        measure=latency,
    ),
    Row(
        name="deferred",
        title="Deferred jobs on an idle worker",
        about=(
            "One warm worker that waits; jobs are deferred by 100 to 150 ms, one at a time. Late: "
            "from the time at which a job was to run to its first line, by the machine's clock. "
            "Early: the share of jobs that began before their time."
        ),
        columns=(
            Column("late_p50", "late p50, ms", 2, more_is_better=False),
            Column("late_p99", "late p99, ms", 2, more_is_better=False),
            Column("late_most", "latest, ms", 2, more_is_better=False),
            Column("early", "early", 2, more_is_better=False),
        ),
        measure=deferred,
        pair_only=True,
    ),
    Row(
        name="naps",
        title="Jobs that sleep 10 ms, concurrency 1,000",
        about="As the drain, with half of its jobs. The limit of the sleeping itself is 100,000/s.",
        columns=(RATE, CPU, PEAK),
        measure=naps,
        naps_only=True,
    ),
    Row(
        name="workers",
        title="More workers on one queue",
        about=(
            "All workers are started on an empty queue and stopped by SIGSTOP when they are up; "
            "then the jobs are queued and the workers are released together. Total of all workers."
        ),
        columns=(
            *(Column(f"rate_{count}", f"{count}: jobs/s") for count in FLEETS),
            *(
                Column(f"commands_{count}", f"{count}: commands a job", 1, more_is_better=False)
                for count in FLEETS
            ),
        ),
        measure=workers,
        pair_only=True,
    ),
    Row(
        name="distant",
        title="Drain with 1 ms of added network latency",
        about=(
            "As the drain, with a proxy between worker and Redis that holds every byte back for "
            "0.5 ms in each direction; each is followed by a drain without it."
        ),
        columns=(
            RATE,
            Column("near", "without the proxy, jobs/s"),
            Column("share", "with ÷ without", 2),
            CPU,
        ),
        measure=distant,
        pair_only=True,
    ),
    Row(
        name="logs",
        title="Drain with logs at INFO, to a file",
        about="As the drain; in all other rows workers log from WARNING up.",
        columns=(RATE, CPU, Column("lines", "lines a job", 1)),
        measure=logs,
        pair_only=True,
    ),
)
