"""Counts by the minute: what one minute has too few of is taken from another."""

from __future__ import annotations

import pytest

from runner.inspect.history import _even_out


@pytest.mark.parametrize(
    ("counted", "shown"),
    [
        ([], []),
        ([3, 4], [3, 4]),
        ([0, -1, 4], [0, 0, 3]),
        ([-3, 2, 0, 4], [0, 0, 0, 3]),
        ([5, -1], [4, 0]),
        ([5, 1, -3], [3, 0, 0]),
        ([2, -4, 1, 3], [2, 0, 0, 0]),
        ([-2, 0], [0, 0]),
    ],
)
def test_no_count_is_below_zero_and_their_sum_stays(counted: list[int], shown: list[int]) -> None:
    minutes = [{"succeeded": count, "failed": 1} for count in counted]
    _even_out(minutes)
    assert [minute["succeeded"] for minute in minutes] == shown
    assert sum(shown) == max(sum(counted), 0)
    assert {minute["failed"] for minute in minutes} <= {1}


def test_a_minute_without_any_lends_none() -> None:
    minutes: list[dict[str, int]] = [{}, {"succeeded": -1}, {"succeeded": 2}]
    _even_out(minutes)
    assert [minute["succeeded"] for minute in minutes] == [0, 0, 1]
