"""Turn figures into tables, and keep them in RESULTS.md."""

from __future__ import annotations

import re
import statistics
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from tests.benchmarks.sides import HERE, OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Protocol

    from tests.benchmarks.rows import Column

    class Titled(Protocol):
        """A side, as far as a table shows it."""

        @property
        def title(self) -> str: ...

    class HasColumns(Protocol):
        """A row, as far as a table shows it."""

        @property
        def columns(self) -> tuple[Column, ...]: ...


RESULTS: Final = HERE / "RESULTS.md"
OPENING: Final = """# Results

Written by `make bench`, `make bench-writer` and `make bench-flows` with `ARGS=--save`; each table
says when and how it was measured. Figures are medians of the rounds, in which the sides take turns
on the same servers; where there are brackets, they hold the lowest and the highest. Compare figures
of one table, not of two machines.
"""
MAX_REASON: Final = 160
NOTHING: Final = "-"
AT_MOST_ONCE: Final = frozenset({"celery", "huey", "blitzq-fast"})


@dataclass(slots=True)
class Outcome:
    """What became of one side in one row: the figures of each round, or why there are none."""

    rounds: list[dict[str, float]] = field(default_factory=list)
    failure: str = ""

    def values(self, key: str) -> list[float]:
        """Return the figures of all rounds under one key."""
        return [figures[key] for figures in self.rounds if key in figures]

    def median(self, key: str) -> float | None:
        """Return the median over the rounds, None where nothing was measured."""
        values = self.values(key)
        return statistics.median(values) if values else None


def table_of(row: HasColumns, outcomes: Mapping[str, Outcome], sides: Mapping[str, Titled]) -> str:
    """Return one row's table, as Markdown."""
    columns = [
        column
        for column in row.columns
        if any(outcome.median(column.key) is not None for outcome in outcomes.values())
    ]
    compared = columns[0] if columns and OURS in outcomes and len(outcomes) > 1 else None
    head = ["", *(column.title for column in columns)]
    if compared is not None:
        head.append(f"ours ÷ it, {compared.title}")
    lines = [head]
    for name, outcome in outcomes.items():
        if outcome.failure and not outcome.rounds:
            lines.append([sides[name].title, f"not run: {_short(outcome.failure)}"])
            continue
        cells = [sides[name].title, *(_cell(outcome, column, columns[0]) for column in columns)]
        if compared is not None:
            cells.append(_ratio(outcomes[OURS], outcome, compared.key, same=name == OURS))
        lines.append(cells)
    return _markdown(lines)


def failures_of(outcomes: Mapping[str, Outcome], sides: Mapping[str, Titled]) -> list[str]:
    """Return a line for each side that failed in some of its rounds."""
    return [
        f"{sides[name].title}: some rounds failed: {_short(outcome.failure)}"
        for name, outcome in outcomes.items()
        if outcome.failure and outcome.rounds
    ]


def _short(reason: str) -> str:
    lines = [" ".join(line.split()).replace("|", "/") for line in reason.splitlines()]
    told = lines[0] if len(lines) < 2 else f"{lines[0]} … {lines[-1]}"
    return told if len(told) <= MAX_REASON else f"{told[:MAX_REASON]}…"


def _cell(outcome: Outcome, column: Column, first: Column) -> str:
    values = outcome.values(column.key)
    if not values:
        return NOTHING
    text = f"{statistics.median(values):,.{column.decimals}f}"
    if column is first and len(values) > 1:
        low, high = min(values), max(values)
        text += f" ({low:,.{column.decimals}f} to {high:,.{column.decimals}f})"
    return text


def _ratio(ours: Outcome, other: Outcome, key: str, *, same: bool) -> str:
    mine, theirs = ours.median(key), other.median(key)
    if same or mine is None or not theirs:
        return "1" if same else NOTHING
    return f"{mine / theirs:,.2f}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    width = len(lines[0])
    padded = [[*line, *[""] * (width - len(line))] for line in lines]
    widths = [max(len(line[at]) for line in padded) for at in range(width)]
    # A reason stands in the second column and may be long: it does not widen the table.
    widths[1] = max((len(line[1]) for line in padded if len(line[1]) <= 40), default=3)
    rule = ["-" * widths[0], *("-" * (each - 1) + ":" for each in widths[1:])]
    return "\n".join(
        "| " + " | ".join(_padded(cell, widths[at], at) for at, cell in enumerate(line)) + " |"
        for line in (padded[0], rule, *padded[1:])
    )


def _padded(cell: str, width: int, at: int) -> str:
    return cell.ljust(width) if at == 0 else cell.rjust(width)


@dataclass(frozen=True, slots=True)
class Goal:
    """One aim: its words, and how its figure is read; `reached` compares with the aim."""

    text: str
    aim: str
    read: Callable[[Mapping[str, Mapping[str, Outcome]]], float | None]
    reached: Callable[[float], bool]
    decimals: int = 2


def _median(row: str, key: str) -> Callable[[Mapping[str, Mapping[str, Outcome]]], float | None]:
    def read(results: Mapping[str, Mapping[str, Outcome]]) -> float | None:
        outcome = results.get(row, {}).get(OURS)
        return outcome.median(key) if outcome else None

    return read


def _over(
    row: str, key: str, chosen: Callable[[str], bool]
) -> Callable[[Mapping[str, Mapping[str, Outcome]]], float | None]:
    """Return a reader of how many times the best of the chosen sides ours is."""

    def read(results: Mapping[str, Mapping[str, Outcome]]) -> float | None:
        outcomes = results.get(row, {})
        ours = outcomes[OURS].median(key) if OURS in outcomes else None
        others = [
            median
            for name, outcome in outcomes.items()
            if chosen(name) and (median := outcome.median(key))
        ]
        return ours / max(others) if ours and others else None

    return read


def _least_step(results: Mapping[str, Mapping[str, Outcome]]) -> float | None:
    """Return the worst ratio between a fleet and the fleet before it."""
    ours = results.get("workers", {}).get(OURS)
    if ours is None:
        return None
    rates = [ours.median(f"rate_{count}") for count in (1, 2, 20, 40)]
    steps = [after / before for before, after in pairwise(rates) if before and after]
    return min(steps) if steps else None


GOALS: Final = (
    Goal(
        "drain, times arq", "≥ 20", _over("drain", "rate", lambda n: n == "arq"), lambda v: v >= 20
    ),
    Goal(
        "drain, times the best peer",
        "≥ 1.5",
        _over("drain", "rate", lambda n: n not in {OURS, "arq"}),
        lambda v: v >= 1.5,
    ),
    Goal(
        "drain, times the best peer that runs each job at least once",
        "≥ 1.5",
        _over("drain", "rate", lambda n: n not in {OURS, "arq", *AT_MOST_ONCE}),
        lambda v: v >= 1.5,
    ),
    Goal("worker CPU per 10,000 jobs, s", "≤ 0.6", _median("drain", "cpu"), lambda v: v <= 0.6),
    Goal("one by one ÷ bare SET", "≥ 0.85", _median("enqueue", "of_bare"), lambda v: v >= 0.85),
    Goal(
        "100 at once with gather /s",
        "≥ 15,000",
        _median("enqueue", "gather"),
        lambda v: v >= 15_000,
        0,
    ),
    Goal("bulk /s", "≥ 30,000", _median("enqueue", "bulk"), lambda v: v >= 30_000, 0),
    Goal("pickup p50, ms", "≤ 1.5", _median("latency", "pickup_p50"), lambda v: v <= 1.5),
    Goal("pickup p99, ms", "≤ 5", _median("latency", "pickup_p99"), lambda v: v <= 5),
    Goal("deferred jobs late p99, ms", "≤ 5", _median("deferred", "late_p99"), lambda v: v <= 5),
    Goal("enqueue → result p50, ms", "≤ 3", _median("latency", "result_p50"), lambda v: v <= 3),
    Goal(
        "10 ms sleeps at 1,000, jobs/s",
        "≥ 10,000",
        _median("naps", "rate"),
        lambda v: v >= 10_000,
        0,
    ),
    Goal("idle memory, MB", "≤ 45", _median("latency", "idle"), lambda v: v <= 45, 0),
    Goal("peak memory in a drain, MB", "≤ 45", _median("drain", "peak"), lambda v: v <= 45, 0),
    Goal(
        "more workers ÷ fewer, the worst step of 1, 2, 20, 40",
        "≥ 1 (two cores: flat)",
        _least_step,
        lambda v: v >= 0.95,
    ),
    Goal("drain with 1 ms, jobs/s", "≥ 8,000", _median("distant", "rate"), lambda v: v >= 8_000, 0),
    Goal("drain with 1 ms ÷ without", "≥ 0.5", _median("distant", "share"), lambda v: v >= 0.5),
)


def goals_table(results: Mapping[str, Mapping[str, Outcome]], goals: Sequence[Goal] = GOALS) -> str:
    """Return what was aimed at and what was measured; goals without figures are left out."""
    lines = [["goal", "aim", "measured", "reached"]]
    for goal in goals:
        value = goal.read(results)
        if value is not None:
            measured = f"{value:,.{goal.decimals}f}"
            lines.append([goal.text, goal.aim, measured, "yes" if goal.reached(value) else "no"])
    return _markdown(lines) if len(lines) > 1 else ""


def save(sections: Mapping[str, str], path: Path = RESULTS) -> None:
    """Put sections in the place of those of the same names; the others stay as they are.

    Of goals, those stay that were not measured this time.
    """
    kept = _read(path) if path.exists() else {}
    merged = {**kept, **sections}
    for name in sections.keys() & kept.keys():
        if name.endswith("goals"):
            merged[name] = _with_goals_of(kept[name], sections[name])
    path.write_text(
        OPENING
        + "".join(
            f"\n<!-- begin {name} -->\n{text.strip()}\n<!-- end {name} -->\n"
            for name, text in merged.items()
        )
    )


def goals_section(title: str, table: str) -> str:
    """Return the section of goals: its figures are those of tables that say how they came."""
    about = "The figures are medians of the tables below, each of its own run."
    return f"## {title}\n\n{about}\n\n{table}"


def _with_goals_of(old: str, new: str) -> str:
    head, _, table = new.rpartition("\n\n")
    goals = {line[0]: line for text in (old.rpartition("\n\n")[2], table) for line in _cells(text)}
    return f"{head}\n\n{_markdown(list(goals.values()))}"


def _cells(table: str) -> list[list[str]]:
    """Return the cells of a table, without the rule below its head."""
    lines = [line.strip("| ").split("|") for line in table.strip().splitlines()]
    return [[cell.strip() for cell in line] for at, line in enumerate(lines) if at != 1]


def _read(path: Path) -> dict[str, str]:
    return {
        match["name"]: match["text"]
        for match in re.finditer(
            r"<!-- begin (?P<name>\S+) -->\n(?P<text>.*?)<!-- end (?P=name) -->",
            path.read_text(),
            re.DOTALL,
        )
    }


def say(text: str) -> None:
    """Print a part of the result."""
    sys.stdout.write(f"{text}\n\n")
    sys.stdout.flush()


def hint(text: str) -> None:
    """Print how far it has come."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
