"""Tables for people: they fit the terminal, and numbers stand on the right."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from runner.cli.tables import NARROWEST, ROOMY, ago, since, table

HEADS = ("JOB", "TRY", "STATE", "ERROR")
ROW = ("a" * 32, "1", "retrying", "e" * 60)


def test_numbers_stand_on_the_right() -> None:
    lines = list(table(("QUEUE", "DUE", "LAG"), [("a", "1", "3 ms"), ("b", "1000", "1.5 s")]))
    assert lines == ["QUEUE   DUE    LAG", "a         1   3 ms", "b      1000  1.5 s"]


def test_a_table_is_as_wide_as_it_is_where_no_terminal_reads() -> None:
    (_, line) = table(HEADS, [ROW], flexible=(3,), spare=(1,))
    assert line.split() == list(ROW)


@pytest.mark.parametrize("width", [120, 80, 70, 60])
def test_a_table_fits_by_cutting_first_and_leaving_out_then(width: int) -> None:
    lines = list(table(HEADS, [ROW], flexible=(3,), spare=(1, 2), width=width))
    assert max(map(len, lines)) <= width
    assert ROW[0] in lines[1], "what is named by it is never cut"


def test_a_column_is_left_out_only_where_cutting_is_not_enough() -> None:
    def heads(width: int) -> list[str]:
        return next(iter(table(HEADS, [ROW], flexible=(3,), spare=(1, 2), width=width))).split()

    assert heads(80) == ["JOB", "TRY", "STATE", "ERROR"]
    assert heads(59) == ["JOB", "STATE", "ERROR"]
    assert heads(50) == ["JOB", "ERROR"]


@pytest.mark.parametrize(
    ("task", "error", "shown"),
    [
        ("charge_card", "e" * 8, ["JOB", "TASK", "AGO", "OUTCOME", "TRY", "ERROR"]),
        ("charge_card", "e" * 60, ["JOB", "TASK", "AGO", "ERROR"]),
        ("a_task_of_a_long_name", "e" * 60, ["JOB", "TASK", "AGO", "ERROR"]),
    ],
)
def test_a_column_is_left_out_before_another_is_cut_short(
    task: str, error: str, shown: list[str]
) -> None:
    heads = ("JOB", "TASK", "AGO", "OUTCOME", "TRY", "ERROR")
    row = ("a" * 32, task, "12 min", "failed", "1", error)
    head, line = table(heads, [row], flexible=(5, 1), extra=(3, 4), width=80)
    assert head.split() == shown
    assert len(line) <= 80
    assert line.startswith(row[0])
    assert len(line.split()[-1]) >= min(len(error), ROOMY)
    assert len(line.split()[1]) >= NARROWEST - 1


def test_a_table_without_rows_is_its_head() -> None:
    assert list(table(HEADS, [], flexible=(3,), width=80)) == ["JOB  TRY  STATE  ERROR"]


def test_times_are_said_from_now() -> None:
    now = datetime.now(UTC)
    assert ago(now - timedelta(hours=2, seconds=1)) == "2.0 h ago"
    assert ago(now + timedelta(hours=2, seconds=1)) == "in 2.0 h"
    assert ago((time.time() - 90.1) * 1000) == "1.5 min ago"
    assert ago(None) == ago(0) == ""
    assert since((time.time() - 720) * 1000) == "12 min"
    assert since(now + timedelta(hours=2)) == "0 ms"
    assert since(None) == since(0) == ""
