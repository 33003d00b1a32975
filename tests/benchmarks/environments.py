"""Give each peer an environment of its own, made by pip under ``.runner/bench/``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.benchmarks.sides import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.sides import Side

HOME: Final = ROOT / ".runner" / "bench"
PIP_TIMEOUT_S: Final = 300
ASK_TIMEOUT_S: Final = 30


class NotInstalled(Exception):  # noqa: N818  it says what happened
    """Raised when a peer's environment cannot be made; the message is for the table."""


def prepare(side: Side) -> Path:
    """Return the folder of a side's programs, its environment made where it is missing.

    Raises:
        NotInstalled: there is no Python for it, or pip cannot install it.
    """
    if side.environment is None:
        return programs_of(sys.prefix)
    home = HOME / side.environment
    made_of = home / "made-of"
    wanted = "\n".join((*side.needs, f"python>={_dotted(side.python)}"))
    if not made_of.exists() or made_of.read_text() != wanted:
        _make(side, home)
        made_of.write_text(wanted)
    return programs_of(str(home))


def programs_of(prefix: str) -> Path:
    """Return where an environment keeps its programs."""
    return Path(prefix) / "bin"


def versions(side: Side, programs: Path) -> dict[str, str]:
    """Return the versions of Python and of the packages that a side shows."""
    ask = (
        "import importlib.metadata as m, platform, sys; print(platform.python_version());"
        "[print(m.version(p)) for p in sys.argv[1:]]"
    )
    answer = _run([str(programs / "python"), "-I", "-c", ask, *side.shows], ASK_TIMEOUT_S)
    return dict(zip(("Python", *side.shows), answer.split(), strict=True))


def _make(side: Side, home: Path) -> None:
    python = _python_for(side)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    _run([python, "-m", "venv", str(home)], PIP_TIMEOUT_S)
    pip = [str(home / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "install", *side.needs], PIP_TIMEOUT_S)


def _python_for(side: Side) -> str:
    for python in _pythons():
        try:
            answer = _run([python, "-c", "import sys; print(*sys.version_info[:2])"], ASK_TIMEOUT_S)
        except NotInstalled:
            continue
        major, minor = answer.split()
        if (int(major), int(minor)) >= side.python:
            return python
    raise NotInstalled(
        f"needs Python {_dotted(side.python)}: put one on PATH, or name it with BENCH_PYTHON"
    )


def _pythons() -> Iterator[str]:
    yield sys.executable
    if given := os.environ.get("BENCH_PYTHON"):
        yield given
    for name in ("python3.12", "python3.13"):
        if found := shutil.which(name):
            yield found


def _run(command: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{command[0]}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NotInstalled(f"{' '.join(command[1:4])} failed: {last}")
    return done.stdout


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
