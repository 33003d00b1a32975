"""What a unit did, read by the calls that made it."""

from __future__ import annotations

import msgspec
import pytest

from runner.errors import DecodeError, ResultTooLarge
from runner.types import Committed
from runner.writer import UnitBuilder
from runner.writer.entries import read_entry
from runner.writer.tally import certain_tally, read_tally

TALLY = msgspec.msgpack.encode(([1, 2, None, 3], {1: [["a"], [1]], 2: [[]]}, None))


def test_counts_and_rows_are_those_of_the_calls() -> None:
    assert read_tally(TALLY, "5-0", (1, 2, 0, 1)) == Committed(
        entry="5-0", counts=(1, None, 0, 3), rows=(None, [{"a": 1}], [], None)
    )


def test_without_calls_each_operation_is_one() -> None:
    assert read_tally(TALLY, "5-0") == Committed(
        entry="5-0", counts=(1, 2, None, 3), rows=(None, [{"a": 1}], [], None)
    )


def test_operations_that_are_not_in_it_have_no_count() -> None:
    data = msgspec.msgpack.encode(([1], {}, None))
    assert read_tally(data, "5-0", (1, 1)).counts == (1, None)


def test_rows_that_were_too_many_are_told_with_the_counts() -> None:
    data = msgspec.msgpack.encode(([1, 2000], {}, (2000, 64_000)))
    with pytest.raises(ResultTooLarge, match="2000 rows of 64000 bytes") as caught:
        read_tally(data, "5-0", (2,))
    told = caught.value
    assert (told.entry, told.counts, told.row_count, told.size) == ("5-0", (2001,), 2000, 64_000)


@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode({"a": 1})])
def test_bytes_of_anything_else_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError, match="not what a unit did"):
        read_tally(data, "5-0", ())


def test_what_is_certain_is_known_from_the_operations() -> None:
    unit = UnitBuilder()
    unit.insert("t", a=1)
    unit.upsert("t", {"id": 1, "a": 1})
    unit.upsert("t", {"id": 1}, update=[])
    unit.add("t", key={"id": 1}, n=1)
    unit.add("t", key={"id": 1}, n=1, missing="ignore")
    unit.update("t", key={"id": 1}, n=1)
    unit.delete("t", key={"id": 1})
    unit.execute("SELECT 1")
    read = read_entry("5-0", {b"u": b"j:1:1", b"o": unit.encode(), b"a": b"10 1000"})
    counts = read_tally(certain_tally(read), "5-0").counts
    assert counts == (1, 1, None, 1, None, None, None, None)


@pytest.mark.parametrize("asks", [b"", b"ten 5", b"1 2 3"])
def test_a_question_that_cannot_be_read_refuses_the_unit(asks: bytes) -> None:
    read = read_entry("5-0", {b"u": b"j:1:1", b"o": UnitBuilder().encode(), b"a": asks})
    assert "cannot be read" in read.problem
