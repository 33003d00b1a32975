"""The table of events in the documentation says what the code says."""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path
from typing import get_args

import pytest
from msgspec.structs import fields

from runner import events
from runner.bus import Bus

PAGE = Path(__file__).parents[2] / "docs" / "events.md"


def rows() -> dict[str, set[str]]:
    """Return the fields of each event in the table."""
    table: dict[str, set[str]] = {}
    for line in PAGE.read_text("utf-8").splitlines():
        found = re.match(r"\| `(\w+)` \|.*\| ([^|]+) \|$", line)
        if found:
            names = set(re.findall(r"`(\w+)`", found[2]))
            others = [table[name] for name in names if name in table]
            table[found[1]] = (names - table.keys()).union(*others)
    return table


def test_table_names_every_event_with_its_fields() -> None:
    made = {event.__name__: {f.name for f in fields(event)} for event in get_args(events.Event)}
    assert rows() == made


def test_the_table_of_the_module_names_the_same_events() -> None:
    table = (events.__doc__ or "").split("=\n")
    named = re.findall(r"^`(\w+)`", table[2], re.MULTILINE)
    assert named == list(dict.fromkeys(named)), "each once"
    assert set(named) == {event.__name__ for event in get_args(events.Event)}


def test_every_event_is_made_somewhere_and_exported() -> None:
    made: set[str] = set()
    for path in (PAGE.parents[1] / "runner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                made.add(node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
    names = {event.__name__ for event in get_args(events.Event)}
    assert names - made == {"PartEvent"}, "its subclasses are the users'"
    assert names <= set(events.__all__)


@pytest.mark.parametrize("error", [ValueError("rude"), asyncio.CancelledError()])
def test_what_a_subscriber_raises_keeps_no_event_from_the_others(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[events.Event] = []

    def rude(_event: events.Event) -> None:
        raise error

    bus = Bus([rude, heard.append])
    bus.emit(events.PartEvent(worker="w", at_ms=1))
    assert len(heard) == 1
    assert "failed on PartEvent" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_what_ends_the_program_goes_up(error: BaseException) -> None:
    def ends(_event: events.Event) -> None:
        raise error

    with pytest.raises(type(error)):
        Bus([ends]).emit(events.PartEvent(worker="w", at_ms=1))
