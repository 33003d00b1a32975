"""The pages under docs/ run as they stand there, and print what they say they print.

A block of Python whose first line is ``# <file>.py`` becomes that file. ``tasks.py`` is served by
``arq tasks.WorkerSettings``; the other files are run one after the other, and each must print what
the ``text`` block behind it shows.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
from pathlib import Path

import pytest

from tests.support import start_python

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")
ENOUGH_S = 60


def programs(page: Path) -> list[tuple[str, str, str]]:
    """Return the files of a page: name, lines, and what it is said to print."""
    found: list[tuple[str, str, str]] = []
    for kind, lines in BLOCK.findall(page.read_text("utf-8")):
        name = FILE.match(lines)
        if kind == "python" and name:
            found.append((name[1], lines, ""))
        elif kind == "text" and found and not found[-1][2]:
            found[-1] = (*found[-1][:2], lines)
    return found


@pytest.mark.lasting_keys("runner:*")
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
async def test_a_page_does_what_it_says(
    page: Path,
    redis_url: str,
    database_url: str,
    tmp_path: Path,
) -> None:
    files = programs(page)
    assert files, "a page shows at least one program"
    for name, lines, _ in files:
        (tmp_path / name).write_text(lines, "utf-8")
    environment = {
        # Not measured: see `threading.settrace` in conftest.
        **{name: value for name, value in os.environ.items() if "COVERAGE" not in name},
        "PYTHONPATH": str(tmp_path),
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
    }
    worker = None
    if (tmp_path / "tasks.py").exists():
        worker = await start_python(tmp_path, environment, "-m", "arq", "tasks.WorkerSettings")
    try:
        for name, _, printed in files:
            if name == "tasks.py":
                continue
            program = await start_python(tmp_path, environment, name)
            said, _ = await asyncio.wait_for(program.communicate(), ENOUGH_S)
            assert (said.decode(), program.returncode) == (printed, 0)
    finally:
        if worker is not None:
            worker.terminate()
            await asyncio.wait_for(worker.wait(), ENOUGH_S)


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("middleware", "Counted"),
        ("parts", "Probe"),
        ("parts", "get_prices"),
    ],
    ids=["a middleware", "a part", "a dependency"],
)
def test_what_shows_how_to_write_one_is_short(page: str, name: str) -> None:
    """Count the lines of what the test above runs."""
    files = programs(DOCS / f"{page}.md")
    (lines,) = [lines for file, lines, _ in files if file == "tasks.py"]
    (shown,) = [
        node
        for node in ast.parse(lines).body
        if isinstance(node, ast.ClassDef | ast.AsyncFunctionDef) and node.name == name
    ]
    assert shown.end_lineno is not None
    assert shown.end_lineno - shown.lineno + 1 < 20
