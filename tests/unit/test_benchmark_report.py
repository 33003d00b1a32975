"""What benchmarks keep of earlier runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks import report

if TYPE_CHECKING:
    from pathlib import Path

TABLE = """\
| goal  | aim | measured | reached |
| ----- | --: | -------: | ------: |
"""


def test_goals_that_were_not_measured_again_stay(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    first = TABLE + "| drain | ≥ 2 |        1 |      no |\n| bulk  | ≥ 3 |        4 |     yes |"
    report.save({"goals": report.goals_section("Goals", first), "drain": "## Drain\n\n1"}, path)
    again = TABLE + "| drain | ≥ 2 |        3 |     yes |"
    report.save({"goals": report.goals_section("Goals", again), "drain": "## Drain\n\n3"}, path)
    text = path.read_text()
    assert "| drain | ≥ 2 |        3 |     yes |\n| bulk  | ≥ 3 |        4 |     yes |" in text
    assert "## Drain\n\n3\n" in text
    assert text.count("drain") == 3
