"""Jobs that wait for long before they run again: what they need is still there then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import runner
from runner import Context, Retry, Snooze, keys, task
from runner.broker import Settlement
from runner.scripts import load
from tests.engine import LIFETIME_MS, Rig, drain, raw, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.lasting_keys("runner:held:*")

DAY_MS = 24 * 3_600_000
YEAR_S = 366 * 24 * 3600.0


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    async with raw(redis_url) as client:
        yield client


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


async def test_retry_in_forty_days_finds_its_payload_and_its_tries(redis: Any) -> None:
    rig = Rig(redis)
    job = await rig.claim_one("j")
    again = Settlement(claimed=job, mode="again", extra=str(40 * DAY_MS))
    assert await rig.settle(again) == [1]
    assert await redis.pttl(keys.job("j")) > 40 * DAY_MS
    assert await redis.pttl(keys.retry("j")) > 40 * DAY_MS


@pytest.mark.parametrize("delay_ms", ["", "1000", str(40 * DAY_MS)])
async def test_job_that_snoozes_for_ever_keeps_its_payload_and_its_tries(
    redis: Any, delay_ms: str
) -> None:
    rig = Rig(redis)
    job = await rig.claim_one("j")
    await redis.set(keys.retry("j"), 2, px=LIFETIME_MS)
    await redis.hset(keys.commits("j"), "1", "1-1 x")
    await redis.pexpire(keys.commits("j"), LIFETIME_MS)
    back = Settlement(claimed=job, mode="back", extra=delay_ms)
    assert await rig.settle(back) == [1]
    for name in (keys.job("j"), keys.retry("j"), keys.commits("j")):
        assert await redis.pttl(name) > DAY_MS + int(delay_ms or 0)
    assert await redis.get(keys.retry("j")) == b"2"


async def test_payload_that_lives_longer_is_not_cut(redis: Any) -> None:
    rig = Rig(redis)
    job = await rig.claim_one("j")
    await redis.pexpire(keys.job("j"), 90 * DAY_MS)
    assert await rig.settle(Settlement(claimed=job, mode="back", extra="1000")) == [1]
    assert await redis.pttl(keys.job("j")) > 89 * DAY_MS


async def test_parked_job_keeps_its_payload_and_its_tries(redis: Any) -> None:
    rig = Rig(redis)
    await rig.put("first", "second")
    jobs = await rig.claim()
    await redis.set(keys.retry("second"), 1, px=LIFETIME_MS)
    packed = msgspec.msgpack.encode([("running", "l", "l", 1)])
    args: list[Any] = []
    for job in jobs:
        args += (job.job_id, job.token, job.attempt, "t", packed)
    answers = await load("admit").call(redis, keys=[rig.queue, keys.held(rig.queue)], args=args)
    assert [answer[0] for answer in answers] == [1, 3]
    assert await redis.pttl(keys.job("second")) > 30 * DAY_MS
    assert await redis.pttl(keys.retry("second")) > 30 * DAY_MS


@pytest.mark.parametrize("control", [Snooze, Retry])
async def test_delay_beyond_all_time_is_a_delay(
    redis_url: str, client: runner.Client, control: Any
) -> None:
    """It ends neither the job nor the worker, and the job is no parked one."""

    @task(name="sleeper")
    async def sleeper(_ctx: Context) -> None:
        raise control(1e300)

    async with serving(redis_url, [sleeper]):
        job = await client.enqueue(sleeper)
        due = await wait_until(
            lambda: far_off(client, job.job_id), description="it waits for its time"
        )
    assert due < keys.FAR_OFF_MS
    assert (await client.jobs.show(job.job_id)).state.value in ("deferred", "retrying")


async def far_off(client: runner.Client, job_id: str) -> float:
    """Return the score of a job that waits for years, 0 of one that does not."""
    now_ms = (await client.time())[0] * 1000
    score = await client.zscore(keys.DEFAULT_QUEUE, job_id) or 0.0
    return score if score > now_ms + YEAR_S * 1000 else 0.0


async def test_delay_into_the_past_is_none(redis_url: str, client: runner.Client) -> None:
    tries: list[int] = []

    @task(name="eager")
    async def eager(_ctx: Context) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise Snooze(-1e308)
        return "done"

    job = await client.enqueue(eager)
    await drain(redis_url, [eager])
    assert await job.result(timeout=5) == "done"
    assert (await client.queue_stats()).crashed == 0
