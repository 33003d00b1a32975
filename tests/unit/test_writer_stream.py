"""How large a batch grows, and how much is read ahead of it."""

from __future__ import annotations

import asyncio

import pytest

from runner.writer.entries import Unit
from runner.writer.stream import BYTES_AT_ONCE, OPERATIONS_AT_ONCE, READ_AT_MOST, Buffer, next_count


def units(how_many: int, *, count: int = 1, size: int = 100) -> list[Unit]:
    return [Unit(f"{n}-0", b"k", [], count, size) for n in range(how_many)]


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (units(10), 10),
        (units(3 * OPERATIONS_AT_ONCE), OPERATIONS_AT_ONCE),
        (units(100, count=OPERATIONS_AT_ONCE // 4), 4),
        (units(100, size=BYTES_AT_ONCE // 5), 5),
        (units(5, count=10 * OPERATIONS_AT_ONCE), 1),
        (units(5, size=10 * BYTES_AT_ONCE), 1),
        (units(3, count=0), 3),
    ],
)
async def test_a_batch_is_bounded_by_operations_and_bytes(there: list[Unit], taken: int) -> None:
    buffer = Buffer()
    await buffer.put(there)
    assert await buffer.take() == there[:taken]


async def test_a_batch_is_what_is_there_and_waits_for_no_more() -> None:
    buffer = Buffer()
    taking = asyncio.create_task(buffer.take())
    await asyncio.sleep(0)
    assert not taking.done()
    await buffer.put(units(1))
    assert await taking == units(1)


async def test_no_more_than_two_batches_wait_in_memory() -> None:
    buffer = Buffer()
    await buffer.put(units(2 * OPERATIONS_AT_ONCE + 1))
    putting = asyncio.create_task(buffer.put(units(1)))
    await asyncio.sleep(0)
    assert not putting.done()
    await buffer.take()
    await putting


@pytest.mark.parametrize(
    ("last", "entries"),
    [
        (units(50), READ_AT_MOST),
        (units(50, count=OPERATIONS_AT_ONCE // 10), 10),
        (units(50, size=BYTES_AT_ONCE // 20), 20),
        (units(1, size=10 * BYTES_AT_ONCE), 1),
        (units(1, count=0, size=0), READ_AT_MOST),
    ],
)
def test_as_much_is_read_as_a_batch_may_hold(last: list[Unit], entries: int) -> None:
    assert next_count(last) == entries
