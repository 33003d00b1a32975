"""What the type checker says of calls: nothing of those that fit, the right thing of the others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXPECTED = re.compile(r"# error: ([a-z-]+)")
FOUND = re.compile(r"^(?P<path>.+?):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$", re.MULTILINE)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="session")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """Check all files at once: file → line → code of the error."""
    files = sorted([*HERE.glob("fail_*.py"), *HERE.glob("pass_*.py")])
    # Of this process alone: mypy breaks when two share a cache.
    cache = tmp_path_factory.mktemp("mypy")
    checked = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "mypy",
                "--strict",
                "--no-error-summary",
                "--hide-error-context",
            ),
            *("--cache-dir", str(cache), "--config-file", str(ROOT / "pyproject.toml")),
            *map(str, files),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode in (0, 1), checked.stdout + checked.stderr
    errors: dict[str, dict[int, str]] = {file.name: {} for file in files}
    for found in FOUND.finditer(checked.stdout):
        errors.setdefault(Path(found["path"]).name, {})[int(found["line"])] = found["code"]
    return errors


def expected(file: Path) -> dict[int, str]:
    lines = enumerate(file.read_text().splitlines(), start=1)
    return {number: match[1] for number, line in lines if (match := EXPECTED.search(line))}


@pytest.mark.parametrize("file", sorted(HERE.glob("fail_*.py")), ids=lambda file: file.stem)
def test_calls_that_do_not_fit_are_errors(file: Path, said: dict[str, dict[int, str]]) -> None:
    assert expected(file)
    assert said[file.name] == expected(file)


@pytest.mark.parametrize("file", sorted(HERE.glob("pass_*.py")), ids=lambda file: file.stem)
def test_calls_that_fit_are_clean(file: Path, said: dict[str, dict[int, str]]) -> None:
    assert said[file.name] == {}
