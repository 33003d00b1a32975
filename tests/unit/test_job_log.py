"""Rows of the job log: bounded, and nothing in them that Postgres or JSON would refuse."""

from __future__ import annotations

import datetime as dt
import enum
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import WorkerSettings
from runner.broker import Claimed
from runner.errors import SettingsError
from runner.execution import Attempt, Ending, begin
from runner.joblog import Collector, collect, rows
from runner.types import Outcome
from runner.writer.told import tell


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


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=60,
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


def ended(job_id: str) -> Attempt:
    """Return an attempt that has just ended."""
    attempt = begin(Claimed(job_id, "q", "token", 0.0, b"", 1, 0))
    attempt.ended_ms = 1
    return attempt


DONE = Ending(Outcome.SUCCEEDED)


async def test_what_finds_no_room_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(collect, "MOST_WAITING", 2)
    collector = Collector("w")
    for number in range(5):
        collector.ended(ended(str(number)), DONE)
    assert collector.dropped == 3
    assert caplog.messages == ["jobs are missing in the job log from now on: too many jobs end"]
    # Those that are not over find no row.
    again = Collector("w")
    for outcome in (Outcome.RETRIED, Outcome.SNOOZED, Outcome.HANDED_BACK, Outcome.LOST_LEASE):
        again.ended(ended("j"), Ending(outcome))
    assert again.dropped == 0


def test_a_listener_that_fails_is_logged_and_the_others_hear(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[int] = []

    def breaks(_units: object, _refused: object, _began_ns: int) -> None:
        raise ValueError("as it should")

    tell([breaks, lambda _units, _refused, began_ns: heard.append(began_ns)], [], {}, 7)
    assert heard == [7]
    assert "failed on a batch of the writer" in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"job_log": True}, "job_log is True, but there is no database"),
        ({"job_log": 1}, "job_log is 1, but must be True or False"),
        ({"job_log_keep": 0}, "job_log_keep is 0, but must be a number of seconds, more than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        type("WorkerSettings", (WorkerSettings,), given)


def test_long_ids_stay_apart_and_short_ones_stay_as_they_are() -> None:
    long = "import:" + "x" * 500
    made = [rows.identity(long + end) for end in ("1", "2", "\ud800")]
    assert len(set(made)) == 3
    assert {len(name) for name in made} == {rows.MOST_NAME}
    assert rows.identity("a\0b") == "a\\x00b"
    assert rows.identity("y" * rows.MOST_NAME) == "y" * rows.MOST_NAME
