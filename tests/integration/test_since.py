"""What is said by the second is true from the start: figures of workers that have just begun."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import keys
from runner.dashboard.texts import lately
from runner.inspect import begun_ms
from tests.engine import raw, serving
from tests.integration.test_dashboard import looking, works
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client

MINUTE_MS = 60_000
FOR_MS = 3_600_000


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


async def ended(redis_url: str, minutes_ago: int, count: int) -> int:
    """Write down that jobs ended; return the minute's beginning, Unix time in ms."""
    async with raw(redis_url) as redis:
        seconds, _ = await redis.time()
        minute = seconds // 60 - minutes_ago
        for key, name in (
            (keys.minute(keys.DEFAULT_QUEUE, minute), "succeeded"),
            (keys.minute_tasks(keys.DEFAULT_QUEUE, minute), "succeeded works"),
        ):
            await redis.hset(key, name, count)
            await redis.pexpire(key, FOR_MS)
    return int(minute * MINUTE_MS)


async def all_of(client: Client, since_ms: int) -> list[Any]:
    history = client.history
    return [
        await history.last(minutes=5, since_ms=since_ms),
        (await history.tasks(minutes=5, since_ms=since_ms))["works"],
        await history.task("works", minutes=5, since_ms=since_ms),
    ]


async def test_a_period_begins_when_the_first_worker_did(redis_url: str, client: Client) -> None:
    await ended(redis_url, 0, 100)
    now_ms = time.time_ns() // 1_000_000
    for period in await all_of(client, now_ms - 1):
        # The minute may be a second old, or sixty: nothing is known of when in it they ended.
        assert period.ended == 100
        assert period.seconds <= 70
        assert period.per_second >= 100 / 70
    for period in await all_of(client, now_ms - 100_000):
        assert 100 <= period.seconds <= 105
        assert period.start_ms == now_ms - 100_000


async def test_what_ended_before_is_counted_with_its_time(redis_url: str, client: Client) -> None:
    start_ms = await ended(redis_url, 2, 60)
    now_ms = time.time_ns() // 1_000_000
    for period in await all_of(client, now_ms):  # all workers are new, as after a deployment
        assert period.start_ms == start_ms
        assert period.ended == 60
        assert 120 <= period.seconds <= 185


@pytest.mark.parametrize("since_ms", [0, 1])
async def test_a_fleet_that_is_older_has_all_of_the_minutes(
    redis_url: str, client: Client, since_ms: int
) -> None:
    await ended(redis_url, 0, 60)
    for period in await all_of(client, since_ms):
        assert 240 <= period.seconds <= 301


async def test_without_jobs_nothing_is_divided(client: Client) -> None:
    period = await client.history.last(since_ms=2**50)  # a worker whose clock is far ahead
    assert (period.seconds, period.per_second) == (1, 0)


@pytest.mark.lasting_keys("runner:fleet*")
async def test_pages_say_of_what_time_their_figures_are(redis_url: str, client: Client) -> None:
    assert (lately(30, 5), lately(290, 5)) == ("last 30 s", "last 5 minutes")
    async with (
        serving(redis_url, [works], monitor=True),
        looking(redis_url, tasks=[works]) as visitor,
    ):
        await client.enqueue(works)

        async def is_counted() -> bool:
            return bool(begun_ms(await client.workers.list())) and bool(
                (await client.history.last()).ended
            )

        await wait_until(is_counted, description="the worker has said what happened")
        for path in ("/", "/tasks", "/task?name=works"):
            page = await visitor.get(path)
            assert page.status_code == 200
            assert "last 5 minutes" not in page.text, path
