"""The names and numbers that stand in the Lua scripts are those of `keys.py`."""

from __future__ import annotations

import re
from importlib import resources
from typing import get_args

import pytest

from runner import broker, keys

PREFIXES = {
    keys.JOB,
    keys.IN_PROGRESS,
    keys.RETRY,
    keys.RESULT,
    keys.WAITERS,
    keys.DEAD_LETTER,
    keys.DEAD_ERRORS,
    keys.ERRORS,
    keys.FAILED_UNIT,
    keys.ANSWER,
    keys.MOVED_UNIT,
    keys.UNIT,
    keys.COMMITS,
    keys.IDLE,
    keys.WAKE,
    keys.LIMIT_BUCKETS,
    keys.WINDOW,
    keys.BUCKET,
    keys.RESERVED,
    keys.LATE,
    keys.RUNNING,
    keys.PARKED,
    keys.PARKED_TASK,
    keys.PAUSED,
    keys.COUNTERS,
    keys.FLOW,
    keys.FLOWS,
    keys.HELD,
    keys.UNHEARD,
    keys.REPLACED,
    keys.PROGRESS,
    keys.JOB_LOG,
    keys.MINUTE,
    keys.MINUTE_TASKS,
    keys.WORKER,
}
NAMES = PREFIXES | {
    keys.ABORT,
    keys.UNITS,
    keys.WRITER,
    keys.LEADER,
    keys.LIMITS,
    keys.LIMITS_DECLARED,
    keys.PAUSED_TASKS,
    keys.PARKED_TASKS,
    keys.WORKERS,
}


def scripts() -> dict[str, str]:
    folder = resources.files("runner").joinpath("lua")
    return {entry.name: entry.read_text("utf-8") for entry in folder.iterdir()}


@pytest.mark.parametrize("name", sorted(scripts()))
def test_every_key_in_a_script_is_one_of_ours_or_arqs(name: str) -> None:
    literals = re.findall(r"'((?:arq|runner):[^']*)'", scripts()[name])
    assert set(literals) <= NAMES


def test_every_prefix_is_used_as_a_prefix() -> None:
    assert all(prefix.endswith(":") for prefix in PREFIXES)


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        ("FAR_OFF_MS", keys.FAR_OFF_MS),
        ("RETRY_TTL_MS", keys.RETRY_TTL_S * 1000),
        ("COUNTERS_MS", keys.KEEP_MS),
        ("ERRORS_MS", keys.KEEP_MS),
        ("PARKED_FOR_MS", keys.KEEP_MS),
        ("PARKED_MS", keys.FAR_OFF_MS),
        ("CLOCK_MS", 3_600_000),
    ],
)
def test_numbers_in_the_scripts_are_those_of_the_module(constant: str, value: int) -> None:
    given = [
        int(number)
        for text in scripts().values()
        for number in re.findall(rf"local {constant} = (\d+)", text)
    ]
    assert given
    assert set(given) == {value}


def test_marker_of_a_committing_job_is_the_same_everywhere() -> None:
    texts = [text for text in scripts().values() if "'committing:" in text]
    assert texts
    assert len(keys.COMMITTING) == 11, "cycle.lua compares so many letters"
    assert all(f"'{keys.COMMITTING}'" in text for text in texts)


def test_number_of_fields_of_an_entry_fits_the_script() -> None:
    claimed = broker.Claimed(
        queue="q", job_id="j", token="t", run_at_ms=0, payload=None, attempt=1, crashes=0
    )
    (table,) = re.findall(r"local FIELDS = \{(.*)\}", scripts()["cycle.lua"])
    fields = {name: int(count) for name, count in re.findall(r"(\w+) = (\d+)", table)}
    sent = [
        broker.Settlement(claimed=claimed, mode="done", counter="succeeded"),
        *(broker.Settlement(claimed=claimed, mode=mode) for mode in get_args(broker.Mode)),
    ]
    lengths = {entry[3]: len(entry) for entry in map(broker._settlement_fields, sent)}
    assert lengths == fields


@pytest.mark.parametrize(
    ("made", "key"),
    [
        (keys.job("x"), "arq:job:x"),
        (keys.in_progress("x"), "arq:in-progress:x"),
        (keys.retry("x"), "arq:retry:x"),
        (keys.result("x"), "arq:result:x"),
        (keys.health("arq:queue"), "arq:queue:health-check"),
        (keys.held("q"), "runner:held:q"),
        (keys.places("q"), "runner:unique:q"),
        (keys.replaced("x"), "runner:replaced:x"),
        (keys.clock("q"), "runner:clock:q"),
        (keys.idle("q"), "runner:idle:q"),
        (keys.wake("q"), "runner:wake:q"),
        (keys.settled("l:0"), "runner:settled:l:0"),
        (keys.counters("q"), "runner:counters:q"),
        (keys.dead("q"), "runner:dead:q"),
        (keys.dead_letter("x"), "runner:dead-letter:x"),
        (keys.dead_errors("x"), "runner:dead-errors:x"),
        (keys.errors("x"), "runner:errors:x"),
        (keys.waiters("x"), "runner:waiters:x"),
        (keys.reply_channel("c"), "runner:reply:c"),
        (keys.commits_channel(3), "runner:commits:3"),
        (keys.sent("c"), "runner:sent:c"),
        (keys.schedules("q"), "runner:schedules:q"),
        (keys.schedule_book("q"), "runner:schedule:q:"),
        (keys.schedule_turn("q"), "runner:schedule-turn:q"),
        (keys.fleet("q"), "runner:fleet:q"),
        (keys.minute("q", 7), "runner:minute:q:7"),
        (keys.minute_tasks("q", 7), "runner:minute-tasks:q:7"),
        (keys.finished("q"), "runner:finished:q"),
        (keys.refused("q"), "runner:refused:q"),
        (keys.job_log("x"), b"runner:log:x"),
        (keys.progress("x"), b"runner:progress:x"),
        (keys.worker("w"), "runner:worker:w"),
        (keys.control("w"), "runner:control:w"),
        (keys.answers("r"), "runner:answers:r"),
        (keys.flow("f"), "runner:flow:f"),
        (keys.flows("q"), "runner:flows:q"),
        (keys.fleet_member("q", "d"), "runner:fleet:q:d"),
    ],
)
def test_key_is_named_as_documented(made: str | bytes, key: str | bytes) -> None:
    assert made == key


def test_every_key_is_documented() -> None:
    table = keys.__doc__ or ""
    made = [keys.held(""), keys.clock(""), keys.idle(""), keys.wake(""), keys.counters("")]
    made += [keys.schedules(""), keys.schedule_book("<queue>")]
    made += [keys.schedule_turn(""), keys.fleet(""), keys.fleet_member("<queue>", "<digest>")]
    made += [
        keys.dead(""),
        keys.places(""),
        keys.sent(""),
        keys.finished(""),
        keys.refused(""),
        keys.control(""),
        keys.answers(""),
        keys.WORKERS,
        keys.ABORT,
        keys.UNITS,
        keys.WRITER,
        keys.LEADER,
        *PREFIXES,
    ]
    assert [key for key in made if key not in table] == []
