"""The parts of a fleet that need no process: messages, ends in words, cores, limits."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from runner.errors import SettingsError
from runner.fleet import cores, deaths, messages
from runner.fleet.messages import Lines, encode
from runner.watch import RECYCLED
from runner.watch.overdue import ENOUGH, Overdue
from runner.watch.recycling import Limits

if TYPE_CHECKING:
    from pathlib import Path


def test_messages_come_whole_however_the_stream_is_cut() -> None:
    stream = encode("ready", stop_s=1.5) + encode("recycle", why="ü\n") + encode("vitals", rss=1)
    for size in (1, 2, 7, len(stream)):
        lines = Lines()
        heard = [
            message
            for start in range(0, len(stream), size)
            for message in lines.feed(stream[start : start + size])
        ]
        assert heard == [
            {"say": "ready", "stop_s": 1.5},
            {"say": "recycle", "why": "ü\n"},
            {"say": "vitals", "rss": 1},
        ]


def test_message_that_was_cut_off_hides_no_other() -> None:
    cut = encode("vitals", rss=1)[:-9]
    lines = Lines()
    assert lines.feed(
        cut + encode("vitals", rss=2) + b"[]\n\xff\n" + encode("ready", stop_s=1)
    ) == [{"say": "ready", "stop_s": 1}]


@pytest.mark.parametrize("letter", ["ü", "🐍"])
def test_long_text_is_told_by_its_ends(letter: str) -> None:
    (message,) = Lines().feed(encode("leaving", why="first" + letter * 1_000_000 + "last"))
    assert message["why"].startswith("first")
    assert message["why"].endswith("last")
    assert len(encode(**message)) < 150_000


def test_both_ends_mean_the_same_by_the_status() -> None:
    assert messages.RECYCLED == RECYCLED


@pytest.mark.parametrize(
    ("status", "given", "text"),
    [
        (0, {}, "ended with status 0"),
        (3, {"rss": 10**9}, "ended with status 3"),
        (-signal.SIGSEGV, {}, "was killed by SIGSEGV (a crash in native code)"),
        (-signal.SIGTERM, {}, "was killed by SIGTERM"),
        (
            -signal.SIGKILL,
            {"rss": 2 * 10**9, "oom_killed": True},
            "was killed by the kernel: out of memory, it held 2,000 MB when it last said so",
        ),
        (
            -signal.SIGKILL,
            {},
            "was killed by SIGKILL (by somebody, or the kernel for want of memory)",
        ),
        (-63, {}, "was killed by signal 63"),
    ],
)
def test_an_end_is_explained(status: int, given: dict[str, Any], text: str) -> None:
    assert deaths.explain(status, **given) == text


@pytest.mark.parametrize(
    ("text", "share"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("nonsense\n", None), ("", None)],
)
def test_share_of_a_container(tmp_path: Path, text: str, share: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cores.quota(tmp_path / "cpu.max") == share


def test_there_is_a_core() -> None:
    assert cores.usable() >= 1
    assert cores.quota(cores.GROUPS / "there is no such file") is None


@pytest.mark.parametrize(
    ("limits", "reached"),
    [
        (Limits(), ""),
        (Limits(jobs=11, soft=101, age_s=1001), ""),
        (Limits(jobs=10), "it has run 10 jobs, max_jobs_per_process is 10"),
        (Limits(soft=50_000_000), "it holds 100 MB, max_memory_mb is 50"),
        (Limits(age_s=999), "it is 1,000 s old, max_age is 999 s"),
    ],
)
def test_the_limit_that_is_reached_is_named(limits: Limits, reached: str) -> None:
    rss = 100 if limits.soft == 101 else 100_000_000
    assert limits.reached(jobs=10, rss=rss, age_s=1000) == reached


def test_limits_are_heeded_where_a_new_process_is_below_them() -> None:
    limits = Limits(jobs=10, soft=200, hard=300, age_s=5)
    assert limits.heeded(199) is limits
    assert limits.heeded(200) == Limits(jobs=10, hard=300, age_s=5)
    with pytest.raises(SettingsError, match="max_memory_hard_mb"):
        limits.heeded(300)


def test_hard_limit_is_of_memory_alone() -> None:
    assert Limits(hard=200_000_000).broken(200_000_000) == (
        "it holds 200 MB, max_memory_hard_mb is 200"
    )
    assert Limits(hard=200_000_000).broken(199_999_999) == ""
    assert Limits(soft=1).broken(2) == ""
    assert Limits(hard=1)
    assert not Limits()


def test_usual_is_known_after_enough_runs() -> None:
    overdue = Overdue(3, list)
    for _ in range(ENOUGH - 1):
        overdue._durations["t"].append(1.0)
    assert overdue.usual("t") is None
    overdue._durations["t"].append(100.0)
    assert overdue.usual("t") == 100.0
    for _ in range(ENOUGH):
        overdue._durations["t"].append(1.0)
    assert overdue.usual("t") == 1.0
