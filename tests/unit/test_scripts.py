"""The contract at the head of a Lua script holds every call."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any

import pytest

from runner import scripts
from runner.errors import ScriptError

CALLED = ("cycle", "enqueue", "renew", "results")


@pytest.mark.parametrize("name", CALLED)
def test_script_says_what_it_takes_and_returns(name: str) -> None:
    script = scripts.load(name)
    assert script.keys
    assert script.args
    assert script.sha == hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    "name", sorted(e.name for e in resources.files("runner").joinpath("lua").iterdir())
)
def test_script_opens_with_a_sentence_on_its_purpose(name: str) -> None:
    first = resources.files("runner").joinpath("lua", name).read_text("utf-8").splitlines()[0]
    assert first.startswith("-- ")
    assert len(first) > 20


def test_names_become_locals() -> None:
    text = scripts.load("renew").text
    assert "local queue = KEYS[1]" in text
    assert "local lease_ms = tonumber(ARGV[1])" in text
    assert "local entries_at = 2" in text


def test_what_a_script_uses_stands_in_front() -> None:
    text = scripts.load("renew").text
    assert text.index("local clock_parts") < text.index("local statuses")


@pytest.mark.parametrize(
    ("keys", "args", "fits"),
    [
        (["q", "h", "c"], [15_000], True),
        (["q", "h", "c"], [15_000, "j", "t", 1], True),
        (["q", "h"], [15_000], False),
        (["q", "h", "c", "d"], [15_000], False),
        (["q", "h", "c"], [], False),
        (["q", "h", "c"], ["15000"], False),
        (["q", "h", "c"], [15_000.0], False),
        (["q", "h", "c"], [True], False),
    ],
)
def test_call_is_held_to_the_contract(keys: list[str], args: list[Any], *, fits: bool) -> None:
    script = scripts.load("renew")
    if fits:
        script.check(keys, args)
    else:
        with pytest.raises(ScriptError, match="script renew"):
            script.check(keys, args)


@pytest.mark.parametrize(
    "head",
    [
        "-- KEYS: a\n-- ARGV: b\nreturn 1",
        "-- KEYS: a\n-- Returns: x\nreturn 1",
        "-- ARGV: a\n-- Returns: x\nreturn 1",
        "-- KEYS: 1a\n-- ARGV:\n-- Returns: x",
        "-- KEYS: a\n-- ARGV: b:float\n-- Returns: x",
        "return 1",
    ],
)
def test_head_that_says_too_little_is_refused(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    monkeypatch.setattr(scripts, "_source", lambda _name: head)
    with pytest.raises(ScriptError):
        scripts.load.__wrapped__("any")


def test_only_the_head_is_a_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "-- KEYS: a\n-- ARGV:\n-- Returns: x\nreturn 1\n-- KEYS: b c d\n"
    monkeypatch.setattr(scripts, "_source", lambda _name: text)
    assert [place.name for place in scripts.load.__wrapped__("any").keys] == ["a"]
