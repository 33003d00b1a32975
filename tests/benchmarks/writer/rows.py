"""The rows of the writer's benchmark: what each measures, of which sides, and what is aimed at."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.benchmarks.processes import ProcessFailed
from tests.benchmarks.report import Goal, Outcome
from tests.benchmarks.rows import Column
from tests.benchmarks.sides import OURS
from tests.benchmarks.writer.callers import Wish
from tests.benchmarks.writer.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.benchmarks.writer.bench import Place, WriterBench
    from tests.benchmarks.writer.callers import Figures

ROWS_TIMEOUT_S: Final = 180.0
LOOK_S: Final = 0.02
BAD: Final = (0, 1, 10, 500)
UNITS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Side:
    """Ours, or a pool of so many connections."""

    name: str
    title: str
    pool: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured."""

    callers: int
    seconds: float
    jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison."""

    name: str
    title: str
    about: str
    pools: tuple[int, ...]
    columns: tuple[Column, ...]
    measure: Callable[[WriterBench, Side, Scale], Figures]

    def sides(self) -> tuple[Side, ...]:
        """Return ours and the pools, in the order of their turns."""
        pools = (Side(f"pool-{size}", _pool_title(size), size) for size in self.pools)
        return (Side(OURS, "ours, one connection"), *pools)


def _pool_title(size: int) -> str:
    return f"asyncpg, {size} connection{'s' if size > 1 else ''}"


def load(workload: str, callers: int | None = None) -> Callable[..., Figures]:
    """Return how to measure callers that each wait for their own commit."""

    def measure(bench: WriterBench, side: Side, scale: Scale) -> Figures:
        wish = Wish(
            what="load",
            pool=side.pool,
            workload=workload,
            callers=callers or scale.callers,
            seconds=scale.seconds,
        )
        with bench.fresh() as place:
            figures = _measured(bench, place, wish)
            counted = WORKLOADS[workload].counted
            if counted and bench.ask(counted, place=place) != figures["answered"]:
                raise ProcessFailed("the table does not hold what was answered")
            # The statistics of a session that has ended are there at once.
            return {**figures, "deadlocks": bench.deadlocks(place)}

    return measure


def _measured(bench: WriterBench, place: Place, wish: Wish) -> Figures:
    if wish.pool:
        return bench.call(place, wish)
    with bench.writer(place) as writer:
        before = bench.cpu_s(writer)
        figures = bench.call(place, wish)
        if "answered" in figures:
            used = bench.cpu_s(writer) - before
            figures["writer_cpu"] = used / max(figures["answered"], 1) * 1e6
        return figures


def bad_units(bench: WriterBench, side: Side, _scale: Scale) -> Figures:
    """Measure a thousand writes at once, some of them bad, until the good ones are committed."""
    figures: Figures = {}
    for bad in BAD:
        wish = Wish(what="bad", pool=side.pool, callers=UNITS, bad=bad)
        with bench.fresh() as place:
            figures[f"bad_{bad}"] = _measured(bench, place, wish)["ms"]
    figures["cost"] = figures["bad_1"] - figures["bad_0"]
    return figures


def jobs(bench: WriterBench, side: Side, scale: Scale) -> Figures:
    """Measure jobs that write, from the first enqueue to the last row."""
    wish = Wish(what="jobs", pool=side.pool, callers=scale.jobs)
    with bench.fresh() as place, bench.worker(place, pool=side.pool) as worker:
        before = bench.cpu_s(worker)
        if side.pool:
            figures = bench.call(place, wish)
            ended = _wait_for_rows(bench, place, scale.jobs)
        else:
            with bench.writer(place):
                figures = bench.call(place, wish)
                ended = _wait_for_rows(bench, place, scale.jobs)
        return {
            "rate": scale.jobs / (ended - figures["began"]),
            "connections": figures["connections"],
            "worker_cpu": (bench.cpu_s(worker) - before) / scale.jobs * 1e6,
        }


def _wait_for_rows(bench: WriterBench, place: Place, count: int) -> float:
    until = time.monotonic() + ROWS_TIMEOUT_S
    while (found := bench.ask("SELECT count(*) FROM done", place=place)) < count:
        if time.monotonic() > until:
            raise ProcessFailed(f"only {found} of {count} rows within {ROWS_TIMEOUT_S:g} s")
        time.sleep(LOOK_S)
    return time.time()


RATE: Final = Column("rate", "commits/s")
LATENCY: Final = (
    Column("p50", "p50 ms", 1, more_is_better=False),
    Column("p99", "p99 ms", 1, more_is_better=False),
)
REST: Final = (
    Column("connections", "connections", more_is_better=False),
    Column("deadlocks", "deadlocks", more_is_better=False),
    Column("callers_cpu", "callers' CPU, µs a commit", 1, more_is_better=False),
    Column("writer_cpu", "writer's CPU, µs a commit", 1, more_is_better=False),
)
POOLS: Final = (10, 50, 90)

ROWS: Final = (
    Row(
        name="inserts",
        title="Inserts",
        about="Callers at once, each inserting one row and waiting for its own commit.",
        pools=POOLS,
        columns=(RATE, *LATENCY, *REST),
        measure=load("inserts"),
    ),
    Row(
        name="updates",
        title="Updates of 1,000 hot rows",
        about="The same; each adds 1 to one of 1,000 rows.",
        pools=POOLS,
        columns=(RATE, *LATENCY, *REST),
        measure=load("updates"),
    ),
    Row(
        name="mixed",
        title="Four statements mixed",
        about=(
            "In turn an insert, an update of one of 1,000 rows, an addition to one of 16 counters, "
            "and an upsert of one of 1,000 rows."
        ),
        pools=POOLS,
        columns=(RATE, *LATENCY, *REST),
        measure=load("mixed"),
    ),
    Row(
        name="transfers",
        title="Transactions of two rows",
        about=(
            "From one of 100 accounts to another, in random order, as one transaction. The victim "
            "of a deadlock tries again, within the same call."
        ),
        pools=POOLS,
        columns=(RATE, *LATENCY, *REST),
        measure=load("transfers"),
    ),
    Row(
        name="lone",
        title="One lone caller",
        about=(
            "One caller, one insert after another. Ours goes over Redis and another process, so it "
            "cannot be as quick as a bare commit."
        ),
        pools=(1,),
        columns=(Column("p50", "p50 ms", 2), Column("p99", "p99 ms", 2), RATE),
        measure=load("inserts", 1),
    ),
    Row(
        name="jobs",
        title="Jobs that write",
        about=(
            "From the first enqueue to the last row: one worker process, and for ours one writer "
            "process. With a pool the job writes by itself, before its end: at least once."
        ),
        pools=(10,),
        columns=(
            Column("rate", "jobs/s"),
            Column("connections", "connections"),
            Column("worker_cpu", "worker's CPU, µs a job", 1),
        ),
        measure=jobs,
    ),
    Row(
        name="bad",
        title="Bad writes among good ones",
        about=(
            "A thousand inserts at once, some of which meet a row that is there: milliseconds until"
            " the last good one is answered."
        ),
        pools=(50,),
        columns=(
            *(Column(f"bad_{bad}", f"{bad} bad, ms") for bad in BAD),
            Column("cost", "what one costs, ms"),
        ),
        measure=bad_units,
    ),
)


def _ours(row: str, key: str) -> Callable[[Mapping[str, Mapping[str, Outcome]]], float | None]:
    def read(results: Mapping[str, Mapping[str, Outcome]]) -> float | None:
        outcome = results.get(row, {}).get(OURS)
        return outcome.median(key) if outcome else None

    return read


def _times(
    row: str, pool: str | None = None
) -> Callable[[Mapping[str, Mapping[str, Outcome]]], float | None]:
    """Return a reader of how many times the best pool, or one pool, ours is."""

    def read(results: Mapping[str, Mapping[str, Outcome]]) -> float | None:
        outcomes = results.get(row, {})
        ours = outcomes[OURS].median("rate") if OURS in outcomes else None
        rates = [
            rate
            for name, outcome in outcomes.items()
            if name != OURS and pool in (None, name) and (rate := outcome.median("rate"))
        ]
        return ours / max(rates) if ours and rates else None

    return read


GOALS: Final = (
    Goal("inserts, times the best pool", "≥ 12", _times("inserts"), lambda v: v >= 12),
    Goal("inserts, p99 ms", "≤ 100", _ours("inserts", "p99"), lambda v: v <= 100, 1),
    Goal("hot updates, times the best pool", "≥ 15", _times("updates"), lambda v: v >= 15),
    Goal("mixed, times the best pool", "≥ 18", _times("mixed"), lambda v: v >= 18),
    Goal("mixed /s", "≥ 35,000", _ours("mixed", "rate"), lambda v: v >= 35_000, 0),
    Goal(
        "transfers, times 90 connections",
        "≥ 200",
        _times("transfers", "pool-90"),
        lambda v: v >= 200,
        1,
    ),
    Goal("transfers, deadlocks", "0", _ours("transfers", "deadlocks"), lambda v: v == 0, 0),
    Goal("jobs that write /s", "≥ 6,000", _ours("jobs", "rate"), lambda v: v >= 6_000, 0),
    Goal("one lone caller, p50 ms", "≤ 3", _ours("lone", "p50"), lambda v: v <= 3),
    Goal("connections that write", "1", _ours("inserts", "connections"), lambda v: v == 1, 0),
    Goal("one bad unit of 1,000 costs, ms", "≤ 100", _ours("bad", "cost"), lambda v: v <= 100, 0),
)
