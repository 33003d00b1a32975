"""What a process that gives its jobs up writes down of them, before it hands them back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runner import keys
from runner.broker import Settlement, count_crashes
from tests.engine import Rig, raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.lasting_keys("runner:*")

QUEUE = keys.DEFAULT_QUEUE


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    async with raw(redis_url) as client:
        yield client


@pytest.fixture
async def rig(redis: Any) -> Rig:
    return Rig(redis)


async def test_crash_is_counted_noted_and_kept_by_the_hand_back(rig: Rig, redis: Any) -> None:
    await rig.put("a", "b")
    claimed = await rig.claim()
    assert await count_crashes(redis, [(one, b"why") for one in claimed]) == 2
    assert await rig.settle(*(Settlement(claimed=one, mode="back") for one in claimed)) == [1, 1]
    again = await rig.claim()
    assert [(one.attempt, one.crashes) for one in again] == [(1, 1), (1, 1)]
    assert await redis.lrange(keys.errors("a"), 0, -1) == [b"why"]
    assert await redis.hget(keys.counters(QUEUE), "crashed") == b"2"


async def test_job_that_somebody_else_has_by_now_is_left_alone(rig: Rig, redis: Any) -> None:
    lost = await rig.claim_one()
    await rig.lapse(lost)
    (its,) = await rig.claim()
    assert its.crashes == 1
    before = await redis.hgetall(keys.held(QUEUE)), await redis.lrange(keys.errors("j"), 0, -1)
    assert await count_crashes(redis, [(lost, b"why")]) == 0
    after = await redis.hgetall(keys.held(QUEUE)), await redis.lrange(keys.errors("j"), 0, -1)
    assert after == before


async def test_without_history_no_key_is_left(redis: Any) -> None:
    rig = Rig(redis, keeps=False)
    claimed = await rig.claim_one()
    assert await count_crashes(redis, [(claimed, b"")]) == 1
    assert await redis.exists(keys.errors("j"), keys.counters(QUEUE)) == 0
    assert await rig.settle(Settlement(claimed=claimed, mode="back")) == [1]
    (again,) = await rig.claim()
    assert again.crashes == 1


async def test_nothing_that_runs_is_nothing_to_count(redis: Any) -> None:
    assert await count_crashes(redis, []) == 0
    assert await redis.dbsize() == 0


async def test_history_that_cannot_be_written_does_not_cost_the_count(rig: Rig, redis: Any) -> None:
    claimed = await rig.claim_one()
    await redis.set(keys.errors("j"), "no list")
    await redis.set(keys.counters(QUEUE), "no hash")
    assert await count_crashes(redis, [(claimed, b"why")]) == 1
    assert await rig.settle(Settlement(claimed=claimed, mode="back")) == [1]
