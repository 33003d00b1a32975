"""Rows of the job log: bounded, and nothing in them that Postgres or JSON would refuse."""

from __future__ import annotations

import datetime as dt
import enum
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.joblog import rows


class Colour(enum.Enum):
    RED = "red"


class Shy:
    def __repr__(self) -> str:
        raise RuntimeError("not even looked at")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (2.5, 2.5),
        ("text", "text"),
        ("a\0b", "a\\x00b"),
        ("half \ud800", "half \\ud800"),
        ("x" * 900, "x" * 499 + "…"),
        (2**63, str(2**63)),
        (10**9000, "<a number of 29898 bits>"),
        (float("inf"), "inf"),
        (b"secret", "<6 bytes>"),
        (Colour.RED, "red"),
        (Decimal("9.90"), "9.90"),
        (dt.date(2026, 11, 23), "2026-11-23"),
        (Shy(), "<Shy>"),
        ((1, 2), [1, 2]),
        ({"a": {"b": [1]}}, {"a": {"b": [1]}}),
        ({1: "one", None: "no"}, {"1": "one", "None": "no"}),
        ({"\0": 1}, {"\\x00": 1}),
    ],
    ids=lambda _: "",
)
def test_a_value_is_shown_as_json(value: Any, shown: Any) -> None:
    assert json.loads(rows.as_json({"v": value})) == {"v": shown}


def test_what_is_too_much_is_cut() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert rows.as_json({"v": deep}) == '{"v":[[[[[[["…"]]]]]]]}'
    many = json.loads(rows.as_json({"v": list(range(1000))}))["v"]
    assert (len(many), many[-1]) == (51, "… 950 more")
    wide = json.loads(rows.as_json({str(number): number for number in range(1000)}))
    assert (len(wide), wide["…"]) == (51, 950)


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=200,
        ),
    )
)
def test_whatever_a_job_is_called_with_makes_small_json(values: dict[str, Any]) -> None:
    text = rows.as_json(values)
    assert "\\u0000" not in text.replace("\\\\", "")
    assert len(text) < 6 * rows.MOST_CHARS + 60 * rows.MOST_VALUES
    json.loads(text)


@pytest.mark.parametrize("unix_ms", [0, -1, 1e300, float("nan"), float("inf")])
def test_a_time_that_no_calendar_has_is_none(unix_ms: float) -> None:
    assert rows.moment(unix_ms) is None
