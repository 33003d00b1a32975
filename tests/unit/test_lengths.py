"""Lengths of time are said in their unit, the same everywhere."""

from __future__ import annotations

import pytest

from runner.lengths import coarse, length


@pytest.mark.parametrize(
    ("ms", "said", "said_coarsely"),
    [
        (0, "0 ms", "0 ms"),
        (999, "999 ms", "999 ms"),
        (1_500, "1.5 s", "2 s"),
        (90_000, "1.5 min", "1.5 min"),
        (720_000, "12.0 min", "12 min"),
        (5_400_000, "1.5 h", "1.5 h"),
        (129_600_000, "1.5 d", "1.5 d"),
        (-90_000, "-1.5 min", "-90000 ms"),
    ],
)
def test_a_length_is_said_in_its_unit(ms: float, said: str, said_coarsely: str) -> None:
    assert length(ms) == said
    if ms >= 0:
        assert coarse(ms) == said_coarsely
