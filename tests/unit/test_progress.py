"""What a job may say of how far it is."""

from __future__ import annotations

import enum
import math
from typing import Any

import msgspec
import pytest

from runner.errors import ArgumentsError
from runner.progress import MOST_MESSAGE, Progress, checked


class Pages(enum.IntEnum):
    SOME = 3


class Metres(float):
    __slots__ = ()


@pytest.mark.parametrize(
    "given",
    [
        *((-1, None), ("1", None), (1, -1), (True, None), (1, True)),
        *((math.nan, None), (1, math.nan), (math.inf, None), (1, math.inf), (math.inf, math.inf)),
        *((2**64, None), (1, 10**400)),
    ],
)
def test_numbers_that_make_no_sense_are_refused(given: tuple[Any, Any]) -> None:
    with pytest.raises(ArgumentsError, match="must be a number from 0"):
        checked(*given, "", 1)


@pytest.mark.parametrize("message", ["half \ud800", "\udcff", "x" * 10_000, "a\0b", "<b>"])
@pytest.mark.parametrize("done", [0, 2**63, 0.5, Pages.SOME, Metres(2.5)])
def test_whatever_is_taken_can_travel(done: float, message: str) -> None:
    word = checked(done, None, message, 1)
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(word), type=Progress)
    assert read == word
    assert read.done == done
    assert len(read.message) <= MOST_MESSAGE + len("\\ud800")


@pytest.mark.parametrize(
    ("done", "total", "part"), [(1, 4, 0.25), (5, 4, 1.0), (0, 0, None), (1, None, None)]
)
def test_the_part_that_is_done_is_from_0_to_1(
    done: float, total: float | None, part: float | None
) -> None:
    assert Progress(done, total).part == part
