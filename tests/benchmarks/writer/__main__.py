"""Compare the writer with pools of connections: ``python -m tests.benchmarks.writer``.

Starts a Valkey and a Postgres of its own, fsync on, lets the sides take turns on them and prints a
table for each row. Ours is the whole chain: the callers' process, Redis, the writer's process,
the commit, the answer. Nothing here fails because something is slow.
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
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from runner import embedded
from tests.benchmarks import machine, report
from tests.benchmarks.environments import HOME
from tests.benchmarks.processes import ProcessFailed
from tests.benchmarks.report import Outcome, hint, say
from tests.benchmarks.sides import OURS
from tests.benchmarks.writer.bench import WriterBench
from tests.benchmarks.writer.rows import GOALS, ROWS, Row, Scale

if TYPE_CHECKING:
    from collections.abc import Sequence

Results: TypeAlias = dict[str, dict[str, Outcome]]

FULL: Final = Scale(callers=1_000, seconds=5, jobs=20_000)
QUICK: Final = Scale(callers=100, seconds=0.5, jobs=500)
ROUNDS, QUICK_ROUNDS = 5, 1
SHOWN: Final = (
    *("fsync", "synchronous_commit", "full_page_writes", "wal_level", "wal_sync_method"),
    *("shared_buffers", "max_wal_size", "max_connections", "deadlock_timeout"),
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asks for."""

    rows: tuple[Row, ...]
    rounds: int
    scale: Scale
    save: bool
    command: str


def main(arguments: Sequence[str]) -> int:
    """Measure what was asked for, and print it; 1 if ours could not be measured."""
    wish = read_wish(arguments)
    # Servers of the user's own must never be emptied, which is what happens to these.
    for name in ("REDIS_URL", "DATABASE_URL"):
        os.environ.pop(name, None)
    HOME.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=HOME, prefix="run-") as folder,
        # On a disk, and not in memory as the system's folder for temporary files may be.
        embedded.start(data_dir=Path(folder) / "servers") as servers,
    ):
        return measure(WriterBench(servers, Path(folder)), wish)


def measure(bench: WriterBench, wish: Wish) -> int:
    """Run all rows; return the exit status."""
    say(head := introduction(bench, wish))
    results: Results = {}
    sections: dict[str, str] = {}
    for row in wish.rows:
        results[row.name] = {side.name: Outcome() for side in row.sides()}
        take_turns(bench, row, wish, results[row.name])
        sections[f"writer-{row.name}"] = text = section_of(row, results[row.name], wish)
        say(text)
    if goals := report.goals_table(results, GOALS):
        sections = {"writer-goals": report.goals_section("Writer: goals", goals), **sections}
        say(sections["writer-goals"])
    if wish.save:
        report.save({"writer-setting": f"## Writer: setting\n\n{head}", **sections})
        say(f"Saved in {report.RESULTS}.")
    return 1 if any(outcomes[OURS].failure for outcomes in results.values()) else 0


def take_turns(bench: WriterBench, row: Row, wish: Wish, outcomes: Mapping[str, Outcome]) -> None:
    """Let each side have its turn in each round; one that failed twice is left out from then."""
    misses = dict.fromkeys(outcomes, 0)
    for number in range(1, wish.rounds + 1):
        for side in row.sides():
            if misses[side.name] > 1:
                continue
            outcome = outcomes[side.name]
            try:
                figures = row.measure(bench, side, wish.scale)
            except ProcessFailed as failure:
                misses[side.name] += 1
                outcome.failure = str(failure)
                hint(f"{row.name} {number}/{wish.rounds} {side.name}: failed: {failure}")
                continue
            outcome.rounds.append(figures)
            told = ", ".join(f"{key} {value:,.4g}" for key, value in figures.items())
            hint(f"{row.name} {number}/{wish.rounds} {side.name}: {told}")


def section_of(row: Row, outcomes: Mapping[str, Outcome], wish: Wish) -> str:
    """Return a row's heading, explanation, table and notes."""
    sides = {side.name: side for side in row.sides()}
    notes = report.failures_of(outcomes, sides)
    table = report.table_of(row, outcomes, sides)
    return "\n\n".join([f"## Writer: {row.title}", row.about, stamp(wish), table, *notes])


def stamp(wish: Wish) -> str:
    """Return when and how something was measured."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    scale = wish.scale
    return (
        f"{now}, {wish.rounds} rounds of {scale.seconds:g} s, {scale.callers:,} callers, "
        f"{scale.jobs:,} jobs, load before: {machine.load()}, `{wish.command}`"
    )


def introduction(bench: WriterBench, wish: Wish) -> str:
    """Return the machine, the servers and their settings, and the versions."""
    server = bench.redis.info("server")
    assert isinstance(server, Mapping)
    name = "Valkey" if "valkey_version" in server else "Redis"
    redis = server.get("valkey_version") or server["redis_version"]
    shown = ", ".join(f"{key} {bench.ask('SELECT current_setting($1)', key)}" for key in SHOWN)
    packages = ", ".join(f"{key} {version(key)}" for key in ("asyncpg", "redis", "uvloop"))
    python = ".".join(map(str, sys.version_info[:3]))
    postgres = bench.ask("SELECT version()").split()[1]
    return f"""\
- Machine: {machine.describe()}.
- Postgres {postgres}, started for this alone, loopback: {shown}.
- {name} {redis}, started for this alone, loopback, its own defaults.
- Python {python}, {packages}; uvloop on all sides, callers in one process of their own.
- {wish.rounds} rounds in turn, each with a database of its own; a fifth of the time before is
  warm-up. Rates count answers, and the tables are counted after."""


def read_wish(arguments: Sequence[str]) -> Wish:
    """Read the command line."""
    rows = {row.name: row for row in ROWS}
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.writer", description=__doc__)
    parser.add_argument("--rows", help=f"some of {','.join(rows)}; all by default")
    parser.add_argument("--rounds", type=int, help=f"turns of each side; {ROUNDS} by default")
    parser.add_argument("--callers", type=int, help=f"at once; {FULL.callers:,} by default")
    parser.add_argument("--seconds", type=float, help=f"of a turn; {FULL.seconds:g} by default")
    parser.add_argument("--jobs", type=int, help=f"jobs that write; {FULL.jobs:,} by default")
    parser.add_argument("--quick", action="store_true", help="small counts: does it work?")
    parser.add_argument("--save", action="store_true", help="write the tables to RESULTS.md")
    given = parser.parse_args(arguments)
    wanted = given.rows.split(",") if given.rows else list(rows)
    for name in wanted:
        if name not in rows:
            parser.error(f"unknown row {name!r}; known: {', '.join(rows)}")
    scale = QUICK if given.quick else FULL
    return Wish(
        rows=tuple(row for name, row in rows.items() if name in wanted),
        rounds=given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS),
        scale=replace(
            scale,
            callers=given.callers or scale.callers,
            seconds=given.seconds or scale.seconds,
            jobs=given.jobs or scale.jobs,
        ),
        save=given.save,
        command=shlex.join(["python", "-m", "tests.benchmarks.writer", *arguments]),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
