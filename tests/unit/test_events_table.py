"""The table of events in the documentation says what the code says."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

from runner import events

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
