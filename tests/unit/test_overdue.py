"""A job runs too long by the time that it could run, whatever the clocks say."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from runner.events import JobEnded
from runner.types import Outcome
from runner.watch.overdue import ENOUGH, Overdue

HOUR_S = 3600.0


class Clocks:
    """The wall's and the monotonic one, held by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_s = 1_700_000_000.0
        self.monotonic_s = 1000.0
        monkeypatch.setattr(time, "time_ns", lambda: int(self.wall_s * 1e9))
        monkeypatch.setattr(time, "monotonic", lambda: self.monotonic_s)

    def go_on(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


def ended(seconds: float) -> JobEnded:
    """Return the end of a run."""
    return JobEnded(
        worker="w",
        queue="q",
        job_id="j",
        task="t",
        attempt=1,
        crashes=0,
        outcome=Outcome.SUCCEEDED,
        is_final=True,
        ran=True,
        committing=False,
        has_letter=False,
        delay_s=None,
        enqueued_ms=0,
        due_ms=0,
        started_ms=0,
        ended_ms=int(seconds * 1000),
        error_type="",
        error="",
        exception=None,
    )


def running(clocks: Clocks) -> Any:
    """Return an attempt that begins now."""
    return SimpleNamespace(
        claimed=SimpleNamespace(token="token", job_id="j"),
        record=SimpleNamespace(task="t"),
        started_ms=int(clocks.wall_s * 1000),
    )


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def looks(overdue: Overdue, clocks: Clocks, seconds: float) -> list[tuple[float, float]]:
    """Look four times a second for a while; return what was named, as running and usual."""
    named = []
    for _ in range(int(seconds * 4)):
        clocks.go_on(0.25)
        named += [(running_s, usual_s) for _, running_s, usual_s in overdue.look()]
    return named


@pytest.mark.parametrize("jump", ["the clock is set", "the process is stopped"])
def test_time_in_which_nothing_ran_does_not_count(clocks: Clocks, jump: str) -> None:
    attempts: list[Any] = []
    overdue = Overdue(3, lambda: attempts)
    for _ in range(ENOUGH):
        overdue.hear(ended(1.0))
    assert looks(overdue, clocks, 1) == []
    attempts.append(running(clocks))
    assert looks(overdue, clocks, 1) == []
    if jump == "the clock is set":
        clocks.wall_s += HOUR_S
    else:
        clocks.go_on(HOUR_S)
    assert looks(overdue, clocks, 1) == []
    ((running_s, usual_s),) = looks(overdue, clocks, 10)
    assert 3 < running_s < 4
    assert usual_s == 1.0
    attempts.clear()
    assert looks(overdue, clocks, 1) == []


def test_clock_that_is_set_back_hides_nothing(clocks: Clocks) -> None:
    attempts = [running(clocks)]
    overdue = Overdue(3, lambda: attempts)
    for _ in range(ENOUGH):
        overdue.hear(ended(0.1))
    clocks.wall_s -= HOUR_S
    assert len(looks(overdue, clocks, 3)) == 1
