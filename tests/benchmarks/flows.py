"""What flows cost, beside Celery's chord and streaQ's: ``python -m tests.benchmarks.flows``.

Everything stands in Redis before the worker starts, as in the other rows; time is that between the
first line of the first node and that of the last, which both write down themselves.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runner import embedded
from tests.benchmarks import report
from tests.benchmarks.__main__ import (
    FULL,
    QUICK,
    Wish,
    introduction,
    prepare_all,
    section_of,
    sides_table,
    take_turns,
)
from tests.benchmarks.bench import Bench
from tests.benchmarks.environments import HOME
from tests.benchmarks.processes import Process, ProcessFailed
from tests.benchmarks.report import Goal, Outcome, say
from tests.benchmarks.rows import Column, Row, drain
from tests.benchmarks.sides import OURS, Side, read_sides

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PEERS: Final = ("celery", "streaq")
"""The peers that have chords and chains of their own."""

JOBS, QUICK_JOBS = 10_000, 300
ROUNDS, QUICK_ROUNDS = 5, 1
NARROW: Final = 10
"""So many narrow chords stand beside one wide one."""

CHAIN: Final = 10
"""A chain has a tenth of the nodes of a chord."""

FLOW_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.002
SLOW_US: Final = 1000


def chord(bench: Bench, side: Side) -> dict[str, float]:
    """Run one wide chord, and drain as many plain jobs after it."""
    members = bench.scale.jobs
    wide = run(bench, side, "chord", members)
    plain = drain(bench, side)
    return {**wide, "plain": plain["rate"], "share": wide["rate"] / plain["rate"]}


def width(bench: Bench, side: Side) -> dict[str, float]:
    """Run one wide chord, and ten narrow ones of as many members together."""
    members = max(bench.scale.jobs // NARROW, 2)
    narrow = run(bench, side, "chord", members, times=NARROW)
    wide = run(bench, side, "chord", members * NARROW)
    return {
        "growth": wide["cpu_us"] / max(narrow["cpu_us"], 0.1),
        "narrow": narrow["cpu_us"],
        "wide": wide["cpu_us"],
    }


def chain(bench: Bench, side: Side) -> dict[str, float]:
    """Run steps one after the other."""
    steps = max(bench.scale.jobs // CHAIN, 2)
    figures = run(bench, side, "chain", steps)
    return {**figures, "step_ms": 1000 / figures["rate"]}


def run(bench: Bench, side: Side, shape: str, size: int, times: int = 1) -> dict[str, float]:
    """Start flows, let one worker run them, and return what a node took.

    Raises:
        ProcessFailed: the side cannot start it, or it did not end in time.
    """
    bench.fresh()
    redis: Any = bench.redis
    redis.config_set("slowlog-log-slower-than", SLOW_US)
    redis.config_set("slowlog-max-len", 10_000)
    redis.slowlog_reset()
    starts = bench.file("starts")
    started: dict[str, float] = bench.produce(side, "flow", shape=shape, size=size, times=times)
    with bench.worker(side, BENCH_STARTS=str(starts)) as worker:
        wait_for(starts, 1, worker)
        before = bench.read([worker])
        wait_for(starts, 2 * times, worker)
        after = bench.read([worker])
    lines = sorted(int(line.split()[1]) for line in starts.read_text().splitlines())
    if len(lines) != 2 * times:
        raise ProcessFailed(f"{times} flows wrote {len(lines)} lines: something ran twice")
    nodes = (size + (shape == "chord")) * times
    worker_s = after.worker_cpu_s - before.worker_cpu_s
    server_s = after.server_cpu_s - before.server_cpu_s
    slow = [entry["duration"] for entry in redis.slowlog_get(10_000)]
    return {
        "rate": nodes / ((lines[-1] - lines[0]) / 1e9),
        "start_s": started["start"],
        "cpu": worker_s / nodes * 10_000,
        "server_cpu": server_s / nodes * 10_000,
        "cpu_us": (worker_s + server_s) / nodes * 1e6,
        "commands": (after.commands - before.commands) / nodes,
        "held_ms": max(slow, default=0) / 1000,
    }


def wait_for(path: Path, count: int, worker: Process) -> None:
    """Wait until a file has so many lines, looking often: counts are read right after.

    Raises:
        ProcessFailed: the worker has ended, or the time is up.
    """
    until = time.monotonic() + FLOW_TIMEOUT_S
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        worker.check()
        if time.monotonic() > until:
            raise ProcessFailed(f"not done within {FLOW_TIMEOUT_S:g} s:\n{worker.tail()}")
        time.sleep(POLL_S)


CPU: Final = Column("cpu", "worker CPU, s per 10,000", 2, more_is_better=False)
SERVER_CPU: Final = Column("server_cpu", "server CPU, s per 10,000", 2, more_is_better=False)
COMMANDS: Final = Column("commands", "Redis commands a node", 1, more_is_better=False)

ROWS: Final = (
    Row(
        name="flows-chord",
        title="Flows: one wide chord",
        about=(
            "A group of no-op jobs that return a number, and one job that gets the list of all and "
            "counts it; streaQ has no such list, its last job only waits. The chord is started "
            "first (start), then one worker, concurrency 100. Beside it a drain of as many plain "
            "no-op jobs. Longest call: the longest that one command or script held the server, "
            "1 ms at least."
        ),
        columns=(
            Column("rate", "nodes/s"),
            Column("plain", "plain jobs/s"),
            Column("share", "chord ÷ plain", 2),
            Column("start_s", "start, s", 2, more_is_better=False),
            CPU,
            SERVER_CPU,
            COMMANDS,
            Column("held_ms", "longest call, ms", 1, more_is_better=False),
        ),
        measure=chord,
    ),
    Row(
        name="flows-width",
        title="Flows: what a node costs in narrow and in wide chords",
        about=(
            f"One wide chord, and {NARROW} chords of a tenth of its width at the same time: "
            "processor time of worker and server for each node."
        ),
        columns=(
            Column("growth", "wide ÷ narrow", 2, more_is_better=False),
            Column("narrow", "narrow, CPU µs a node", 1, more_is_better=False),
            Column("wide", "wide, CPU µs a node", 1, more_is_better=False),
        ),
        measure=width,
    ),
    Row(
        name="flows-chain",
        title="Flows: one long chain",
        about=(
            "No-op steps one after the other, each of which gets the number of the one before and "
            f"adds one; a {CHAIN}th as many as the chord has members."
        ),
        columns=(
            Column("step_ms", "ms a step", 2, more_is_better=False),
            Column("start_s", "start, s", 2, more_is_better=False),
            CPU,
            SERVER_CPU,
            COMMANDS,
        ),
        measure=chain,
    ),
)


def _ours(row: str, key: str) -> Any:
    def read(results: Mapping[str, Mapping[str, Outcome]]) -> float | None:
        outcome = results.get(row, {}).get(OURS)
        return outcome.median(key) if outcome else None

    return read


GOALS: Final = (
    Goal(
        "chord, members ÷ plain jobs drained",
        "≥ 0.6",
        _ours("flows-chord", "share"),
        lambda v: v >= 0.6,
    ),
    Goal("chord, start, s", "≤ 1", _ours("flows-chord", "start_s"), lambda v: v <= 1),
    Goal("wide ÷ narrow, CPU", "≤ 1.2", _ours("flows-width", "growth"), lambda v: v <= 1.2),
    Goal("chain, ms a step", "≤ 3", _ours("flows-chain", "step_ms"), lambda v: v <= 3),
)


def measure(bench: Bench, wish: Wish) -> int:
    """Run all rows on one server; return the exit status."""
    say(head := introduction(bench, wish))
    unusable = prepare_all(bench, wish.sides)
    usable = [side for side in wish.sides if side.name not in unusable]
    say(about_sides := sides_table(bench, wish.sides, unusable))
    names = {side.name: side for side in wish.sides}
    results: dict[str, dict[str, Outcome]] = {}
    sections: dict[str, str] = {}
    for row in wish.rows:
        results[row.name] = {
            side.name: Outcome(failure=unusable.get(side.name, "")) for side in wish.sides
        }
        take_turns(bench, row, usable, wish, results)
        sections[row.name] = section_of(bench, row, results[row.name], names, wish)
        say(sections[row.name])
    if goals := report.goals_table(results, GOALS):
        sections = {"flows-goals": report.goals_section("Flows: goals", goals), **sections}
        say(sections["flows-goals"])
    if wish.save:
        setting = f"## Flows: setting\n\n{head}\n\n{about_sides}"
        report.save({"flows-setting": setting, **sections})
        say(f"Saved in {report.RESULTS}.")
    return 1 if any(outcomes[OURS].failure for outcomes in results.values()) else 0


def read_wish(arguments: Sequence[str]) -> Wish:
    """Read the command line."""
    rows = {row.name.removeprefix("flows-"): row for row in ROWS}
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.flows", description=__doc__)
    parser.add_argument("--rows", help=f"some of {','.join(rows)}; all by default")
    parser.add_argument("--peers", help=f"some of {','.join(PEERS)}, or none; all by default")
    parser.add_argument("--rounds", type=int, help=f"turns of each side; {ROUNDS} by default")
    parser.add_argument("--jobs", type=int, help=f"members of a chord; {JOBS} by default")
    parser.add_argument("--quick", action="store_true", help="small counts: does it work?")
    parser.add_argument("--save", action="store_true", help="write the tables to RESULTS.md")
    given = parser.parse_args(arguments)
    sides = read_sides()
    wanted = list(rows) if given.rows is None else given.rows.split(",")
    peers = [] if given.peers == "none" else (given.peers or ",".join(PEERS)).split(",")
    for kind, names, known in (("row", wanted, rows), ("peer", peers, PEERS)):
        for name in names:
            if name not in known:
                parser.error(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    scale, jobs = (QUICK, QUICK_JOBS) if given.quick else (FULL, JOBS)
    return Wish(
        rows=tuple(rows[name] for name in wanted),
        sides=tuple(sides[name] for name in (OURS, *peers)),
        rounds=given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS),
        scale=replace(scale, jobs=given.jobs or jobs),
        save=given.save,
        command=shlex.join(["python", "-m", "tests.benchmarks.flows", *arguments]),
    )


def main(arguments: Sequence[str]) -> int:
    """Measure what was asked for, and print it; 1 if ours could not be measured."""
    wish = read_wish(arguments)
    # A server of the user's own must never be emptied, which is what happens to this one.
    os.environ.pop("REDIS_URL", None)
    HOME.mkdir(parents=True, exist_ok=True)
    with (
        embedded.start(postgres=False) as servers,
        tempfile.TemporaryDirectory(dir=HOME, prefix="run-") as folder,
    ):
        assert servers.redis_pid is not None
        bench = Bench(servers.redis_url, servers.redis_pid, Path(folder), wish.scale)
        return measure(bench, wish)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
