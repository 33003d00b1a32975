"""What the package offers: no more and no less than it says."""

from __future__ import annotations

import types

import pytest

import runner


def test_everything_offered_is_there() -> None:
    assert [name for name in runner.__all__ if not hasattr(runner, name)] == []


def test_everything_there_is_offered() -> None:
    public = {
        name
        for name, value in vars(runner).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public - {"annotations"} <= set(runner.__all__)


def test_names_are_listed_in_order_and_once() -> None:
    assert len(set(runner.__all__)) == len(runner.__all__)
    assert list(runner.__all__) == sorted(
        runner.__all__, key=lambda name: (name[0].islower(), name)
    )


OURS = [
    name
    for name in runner.__all__
    if getattr(getattr(runner, name), "__module__", "").startswith("runner.")
]


@pytest.mark.parametrize("name", OURS)
def test_everything_of_ours_is_documented(name: str) -> None:
    assert getattr(runner, name).__doc__
