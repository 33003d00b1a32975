"""Figures and words as the dashboard shows them."""

from __future__ import annotations

import pytest

from runner.dashboard.texts import noun, number, size


@pytest.mark.parametrize(
    ("count", "words", "shown"),
    [
        (0, ("unit",), "units"),
        (1, ("unit",), "unit"),
        (1.5, ("unit",), "units"),
        (1, ("batch", "batches"), "batch"),
        (2, ("batch", "batches"), "batches"),
    ],
)
def test_word_for_so_many(count: float, words: tuple[str, ...], shown: str) -> None:
    assert noun(count, *words) == shown


def test_figures_have_their_thousands_and_units() -> None:
    assert [number(value) for value in (0, 1234567, 0.25, 1.25, 0.0098)] == [
        "0",
        "1,234,567",
        "0.25",
        "1.2",
        "<0.01",
    ]
    assert [size(count) for count in (12, 1_500, 12_000_000)] == ["12 B", "1.5 kB", "12 MB"]
