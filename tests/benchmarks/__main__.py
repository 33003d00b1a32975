"""Compare our engine with stock arq and its peers: ``python -m tests.benchmarks``.

Starts a Valkey of its own, gives each peer an environment of its own, lets the sides take turns
and prints a table for each row. Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from runner import embedded
from tests.benchmarks import machine, report
from tests.benchmarks.bench import Bench, Scale
from tests.benchmarks.environments import HOME, NotInstalled, versions
from tests.benchmarks.processes import ProcessFailed
from tests.benchmarks.report import Outcome, hint, say
from tests.benchmarks.rows import FLEETS, ROWS, proxy_figures
from tests.benchmarks.sides import OURS, Side, read_sides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.rows import Row

Results: TypeAlias = dict[str, dict[str, Outcome]]

FULL: Final = Scale(
    jobs=20_000,
    fill_s=8,
    drain_s=8,
    enqueue_s=1,
    latency_jobs=150,
    latency_s=4,
    fleets=FLEETS,
)
QUICK: Final = Scale(
    jobs=2_000,
    fill_s=3,
    drain_s=5,
    enqueue_s=0.3,
    latency_jobs=20,
    latency_s=1.5,
    fleets=(1, 2),
)
ROUNDS, QUICK_ROUNDS = 5, 1


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asks for."""

    rows: tuple[Row, ...]
    sides: tuple[Side, ...]
    rounds: int
    scale: Scale
    save: bool
    command: str


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


def measure(bench: Bench, wish: Wish) -> int:
    """Run all rows on one server; return the exit status."""
    say(head := introduction(bench, wish))
    unusable = prepare_all(bench, wish.sides)
    usable = [side for side in wish.sides if side.name not in unusable]
    about_sides = sides_table(bench, wish.sides, unusable)
    say(about_sides)
    names = {side.name: side for side in wish.sides}
    results: Results = {}
    sections: dict[str, str] = {}
    for row in wish.rows:
        taking = [side for side in wish.sides if row.takes(side)]
        results[row.name] = {
            side.name: Outcome(failure=unusable.get(side.name, "")) for side in taking
        }
        take_turns(bench, row, [side for side in usable if row.takes(side)], wish, results)
        sections[row.name] = section_of(bench, row, results[row.name], names, wish)
        say(sections[row.name])
    if goals := report.goals_table(results):
        sections = {"goals": report.goals_section("Goals", goals), **sections}
        say(sections["goals"])
    if wish.save:
        report.save({"setting": f"## Setting\n\n{head}\n\n{about_sides}", **sections})
        say(f"Saved in {report.RESULTS}.")
    failed = any(OURS in outcomes and outcomes[OURS].failure for outcomes in results.values())
    return 1 if failed else 0


def prepare_all(bench: Bench, sides: Sequence[Side]) -> dict[str, str]:
    """Make all environments; return the reasons of those that cannot be."""
    reasons = {}
    for side in sides:
        if reason := bench.prepare(side):
            reasons[side.name] = reason
    return reasons


def take_turns(bench: Bench, row: Row, sides: Sequence[Side], wish: Wish, results: Results) -> None:
    """Let each side have its turn in each round; one that failed twice is left out from then."""
    misses = dict.fromkeys((side.name for side in sides), 0)
    for number in range(1, wish.rounds + 1):
        for side in sides:
            if misses[side.name] > 1:
                continue
            outcome = results[row.name][side.name]
            try:
                figures = row.measure(bench, side)
            except ProcessFailed as failure:
                misses[side.name] += 1
                outcome.failure = str(failure)
                hint(f"{row.name} {number}/{wish.rounds} {side.name}: failed: {failure}")
                continue
            outcome.rounds.append(figures)
            told = ", ".join(f"{key} {value:,.4g}" for key, value in figures.items())
            hint(f"{row.name} {number}/{wish.rounds} {side.name}: {told}")
    bench.fresh()


def section_of(
    bench: Bench,
    row: Row,
    outcomes: Mapping[str, Outcome],
    sides: Mapping[str, Side],
    wish: Wish,
) -> str:
    """Return a row's heading, explanation, table and notes."""
    notes = report.failures_of(outcomes, sides)
    if row.name == "distant":
        notes.insert(0, proxy_figures(bench))
    cut = [
        sides[name].title
        for name, outcome in outcomes.items()
        if (done := outcome.median("done")) and done < wish.scale.jobs * 0.49
    ]
    if cut:
        notes.append(
            f"Cut short, because filling took more than {wish.scale.fill_s:g} s or draining more "
            f"than {wish.scale.drain_s:g} s, and counted as far as they came: {', '.join(cut)}."
        )
    table = report.table_of(row, outcomes, sides)
    return "\n\n".join([f"## {row.title}", row.about, stamp(wish), table, *notes])


def stamp(wish: Wish) -> str:
    """Return when and how something was measured."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"{now}, {wish.rounds} rounds, {wish.scale.jobs:,} jobs, load before: {machine.load()}, "
        f"`{wish.command}`"
    )


def introduction(bench: Bench, wish: Wish) -> str:
    """Return the machine, the server and the settings."""
    server = bench.redis.info("server")
    assert isinstance(server, Mapping)
    name = "Valkey" if "valkey_version" in server else "Redis"
    version = server.get("valkey_version") or server["redis_version"]
    alone = "started for this alone, on loopback, no persistence (appendonly no, no snapshots)"
    sizes = f"{wish.rounds} rounds in turn, {wish.scale.jobs:,} jobs"
    return "\n".join(
        (
            f"- Machine: {machine.describe()}.",
            f"- Server: {name} {version}, {alone}; emptied before each measurement.",
            f"- Settings: {sizes}, one worker process, concurrency 100, results kept for an hour,",
            "  logs from WARNING up.",
        )
    )


def sides_table(bench: Bench, sides: Sequence[Side], unusable: Mapping[str, str]) -> str:
    """Return what each side is, with its versions and settings."""
    lines = ["| side | versions | delivery | settings |", "| --- | --- | --- | --- |"]
    for side in sides:
        if reason := unusable.get(side.name):
            lines.append(f"| {side.title} | not run: {reason} | {side.guarantee} | {side.note} |")
            continue
        try:
            found = versions(side, bench.programs(side))
        except NotInstalled as error:
            found = {"unknown": str(error)}
        told = ", ".join(f"{name} {version}" for name, version in found.items())
        lines.append(f"| {side.title} | {told} | {side.guarantee} | {side.note} |")
    return "\n".join(lines)


def read_wish(arguments: Sequence[str]) -> Wish:
    """Read the command line."""
    rows = {row.name: row for row in ROWS}
    sides = read_sides()
    peers = [name for name in sides if name != OURS]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rows", help=f"some of {','.join(rows)}; all by default")
    parser.add_argument("--peers", help=f"some of {','.join(peers)}, or none; all by default")
    parser.add_argument("--rounds", type=int, help=f"turns of each side; {ROUNDS} by default")
    parser.add_argument("--jobs", type=int, help=f"jobs in a drain; {FULL.jobs} by default")
    parser.add_argument("--quick", action="store_true", help="small counts: does it work?")
    parser.add_argument("--save", action="store_true", help="write the tables to RESULTS.md")
    given = parser.parse_args(arguments)
    wanted_rows = _chosen(parser, "row", given.rows, list(rows))
    wanted_peers = [] if given.peers == "none" else _chosen(parser, "peer", given.peers, peers)
    scale = QUICK if given.quick else FULL
    return Wish(
        rows=tuple(rows[name] for name in wanted_rows),
        sides=tuple(sides[name] for name in (OURS, *wanted_peers)),
        rounds=given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS),
        scale=replace(scale, jobs=given.jobs or scale.jobs),
        save=given.save,
        command=shlex.join(["python", "-m", "tests.benchmarks", *arguments]),
    )


def _chosen(
    parser: argparse.ArgumentParser, kind: str, given: str | None, known: list[str]
) -> list[str]:
    if given is None:
        return known
    names = given.split(",")
    for name in names:
        if name not in known:
            parser.error(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    return [name for name in known if name in names]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
