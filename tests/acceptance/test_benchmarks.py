"""The benchmarks as a person runs them: they work, whatever the figures are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import report
from tests.benchmarks.environments import NotInstalled
from tests.benchmarks.report import Outcome
from tests.benchmarks.rows import ROWS
from tests.benchmarks.sides import ORDER, OURS, read_sides

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_quick_run_measures_both_sides_and_prints_their_tables() -> None:
    command = [
        *(sys.executable, "-m", "tests.benchmarks", "--quick", "--peers", "arq"),
        *("--jobs", "500", "--rounds", "1", "--rows", "drain,enqueue"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    for expected in ("## Drain of no-op jobs", "## Enqueue", "arq 0.28, tuned", "## Goals"):
        assert expected in done.stdout
    assert "not run" not in done.stdout


def test_quick_run_of_the_writer_prints_a_table_for_each_row_and_the_goals() -> None:
    command = [
        *(sys.executable, "-m", "tests.benchmarks.writer", "--quick", "--callers", "20"),
        *("--seconds", "0.2", "--jobs", "100", "--rows", "mixed,jobs"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    for expected in ("fsync on", "## Writer: Four statements", "## Writer: Jobs", "Writer: goals"):
        assert expected in done.stdout
    assert "failed" not in done.stderr
    assert "not run" not in done.stdout


def test_cost_of_schedules_is_measured_in_three_cases() -> None:
    command = (
        sys.executable,
        "-m",
        "tests.benchmarks.schedules",
        "--count",
        "20",
        "--seconds",
        "1",
    )
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    for expected in ("no schedules", "idle: 20 schedules written", "83 due a second"):
        assert expected in done.stdout


def test_cost_of_places_is_measured_for_each_option() -> None:
    command = (
        sys.executable,
        *("-m", "tests.benchmarks.unique", "--rounds", "1", "--ticks", "1"),
    )
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    for expected in ("no option", "unique, replaced", "debounced", "throttled"):
        assert expected in done.stdout


def test_every_side_says_how_its_worker_starts_and_how_one_sees_that_jobs_are_done() -> None:
    sides = read_sides()
    assert list(sides) == [OURS, *ORDER]
    for side in sides.values():
        assert side.worker, side.name
        assert bool(side.left) != bool(side.done), side.name
        assert side.title, side.name


def test_table_says_why_a_side_was_not_run_and_how_ours_compares() -> None:
    sides = read_sides()
    row = next(row for row in ROWS if row.name == "drain")
    outcomes = {
        OURS: Outcome(rounds=[{"rate": 300.0}, {"rate": 100.0}, {"rate": 200.0}]),
        "arq": Outcome(rounds=[{"rate": 50.0}]),
        "ardiq": Outcome(failure=str(NotInstalled("needs Python 3.12"))),
    }
    table = report.table_of(row, outcomes, sides)
    assert "200 (100 to 300)" in table
    assert "4.00" in table
    assert "not run: needs Python 3.12" in table


def test_saving_some_rows_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    report.save({"drain": "first", "enqueue": "kept"}, path)
    report.save({"drain": "second"}, path)
    text = path.read_text()
    assert "second" in text
    assert "kept" in text
    assert "first" not in text
