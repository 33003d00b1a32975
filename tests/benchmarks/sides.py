"""The sides of a comparison: ours, stock arq and the peers, each told by the head of its own file.

The head is an inline script block (PEP 723): what the side needs, and a table ``tool.bench``:
how its worker is started, and how one sees from outside, in Redis, that jobs are done.

    worker   the program of its environment, and its arguments
    left     commands whose integers add up to the jobs that are not done, or
    done     commands whose integers grow by one with every job that is done
    naps     whether a thousand of its jobs may sleep at once in one worker
    shows    the packages whose versions the report names
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
BLOCK: Final = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
OURS: Final = "ours"
ORDER: Final = (
    "arq",
    "saq",
    "streaq",
    "taskiq",
    "celery",
    "dramatiq",
    "rq",
    "huey",
    "ardiq",
    "blitzq",
    "blitzq-fast",
    "broccoli",
    "docket",
)
"""The peers, in the order in which they take their turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side. `environment` None is the project's own; `needs` are pip's requirements."""

    name: str
    module: str
    environment: str | None
    needs: tuple[str, ...]
    python: tuple[int, int]
    title: str
    shows: tuple[str, ...]
    worker: tuple[str, ...]
    left: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    naps: bool = False
    guarantee: str = ""
    note: str = ""
    variables: dict[str, str] = field(default_factory=dict)


def read_sides() -> dict[str, Side]:
    """Return ours and all peers by name, in the order of their turns."""
    found: dict[str, Side] = {}
    for path in (HERE / "ours.py", *sorted((HERE / "peers").glob("*.py"))):
        found.update({side.name: side for side in _sides_of(path)})
    return {name: found[name] for name in (OURS, *ORDER)}


def _sides_of(path: Path) -> list[Side]:
    block = BLOCK.search(path.read_text())
    if block is None:
        return []
    lines = block["content"].splitlines()
    head = tomllib.loads("\n".join(line[2:] for line in lines))
    table = head["tool"]["bench"]
    variants = table.pop("variants", {})
    first = _side(path.stem, path, head, table)
    others = [
        _side(f"{path.stem}-{name}", path, head, {**table, **given})
        for name, given in variants.items()
    ]
    return [first, *others]


def _side(name: str, path: Path, head: dict[str, Any], table: dict[str, Any]) -> Side:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    major, minor = re.findall(r"\d+", head.get("requires-python", ">=3.11"))[:2]
    listed: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
    }
    return Side(
        name=name,
        module=module,
        environment=path.stem if head["dependencies"] else None,
        needs=tuple(head["dependencies"]),
        python=(int(major), int(minor)),
        **listed,
    )
