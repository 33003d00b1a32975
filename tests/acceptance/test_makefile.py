"""What `make` does where nothing is set up yet."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAMP = ".venv/.installed"

# In the place of Python: it notes what it is asked for, and makes an environment of itself.
PYTHON = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
    *"pip --version"*) test -e .venv/bin/python ;;
    "-m venv"*)
        test ! -e .venv/bin/python || exit 1
        sleep 0.3
        mkdir -p .venv/bin && cp {python} .venv/bin/python ;;
esac
"""

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(shutil.which("make") is None, reason="needs make"),
]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone that was never used, and a Python that installs nothing."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    python = tmp_path / "python"
    python.write_text(PYTHON.format(log=tmp_path / "log", python=python))
    python.chmod(0o755)
    return folder


async def make(clone: Path, path: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *("make", STAMP, f"PYTHON={clone.parent / 'python'}"),
        cwd=clone,
        env={"PATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
async def test_of_two_that_begin_at_once_the_second_waits(clone: Path) -> None:
    ends = await asyncio.gather(*(make(clone, os.environ["PATH"]) for _ in range(3)))
    assert [code for code, _ in ends] == [0, 0, 0], ends
    asked = (clone.parent / "log").read_text()
    assert asked.count("-m venv") == 1
    assert asked.count("requirements.lock") == 1
    assert (clone / STAMP).exists()


async def test_without_flock_the_second_is_told_of_the_first(clone: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("make", "sh", "mkdir", "rmdir", "cp", "sleep", "touch", "test"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    ends = sorted(await asyncio.gather(*(make(clone, str(programs)) for _ in range(2))))
    assert ends[0][0] == 0, ends
    assert ends[1][0] == 2, ends
    assert "another make sets .venv up" in ends[1][1]
    assert not (clone / ".venv.lock").exists()
    assert (await make(clone, str(programs)))[0] == 0
