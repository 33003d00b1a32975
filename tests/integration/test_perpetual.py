"""Tasks that decide their own next run, and hand it its arguments."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import Context, cron, errors, keys, perpetual, task
from runner.codec import MsgpackCodec
from runner.schedule import Book, ScheduledRun, Ticker, decide_next
from tests.engine import Rig, done, raw, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner.broker import Claimed

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys("runner:schedules:*", "runner:schedule:*", "runner:held:*"),
]

QUEUE = keys.DEFAULT_QUEUE


@task
async def walk(ctx: Context, page: int = 1, *, site: str = "a") -> None:
    """Go through five pages, each run one page."""
    redis: Any = ctx.client
    await redis.rpush("seen", f"{site}{page}")
    await ctx.reschedule(0.02 if page < 5 else None, args=(page + 1,), kwargs={"site": site})


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    async with raw(redis_url) as client:
        yield client


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@pytest.fixture
def book(redis: Any) -> Book:
    return Book(redis, MsgpackCodec(), QUEUE, lifetime_ms=60_000)


@pytest.fixture
async def ticker(book: Book) -> Ticker:
    """A ticker whose perpetual schedule has made its first run."""
    one = Ticker(book, schedules=[cron(walk, perpetual())], tasks=["walk"], aborts=False)
    await one.open()
    await one.tick()
    return one


async def seen(redis: Any) -> list[str]:
    return [raw_name.decode() for raw_name in await redis.lrange("seen", 0, -1)]


async def decide(redis: Any, claimed: Claimed, delay_ms: int | None) -> bool:
    return await decide_next(
        redis,
        queue=QUEUE,
        name="walk",
        job_id=claimed.job_id,
        delay_ms=delay_ms,
        at_ms=None,
        claimed=claimed,
    )


@pytest.mark.parametrize("settings", [{}, {"signing_keys": {"a": b"k" * 32}}], ids=["", "signed"])
async def test_run_hands_its_arguments_to_the_next(
    redis_url: str, redis: Any, settings: dict[str, Any]
) -> None:
    schedule = cron(walk, perpetual(), kwargs={"site": "b"})

    async def ended() -> bool:
        return await seen(redis) == ["b1", "b2", "b3", "b4", "b5"]

    async with serving(redis_url, [], cron_jobs=[schedule], **settings):
        await wait_until(ended, description="five runs")
    assert await redis.hget(keys.schedule_book(QUEUE) + "walk", "due") == b""


async def test_settings_that_start_again_do_not_begin_anew(
    redis_url: str, redis: Any, client: runner.Client
) -> None:
    @task(name="walk")
    async def one_page(ctx: Context, page: int = 1) -> None:
        redis: Any = ctx.client
        await redis.rpush("seen", str(page))
        await ctx.reschedule(0.02 if page % 2 else 3600, args=(page + 1,))

    for last in (2, 4):

        async def so_far(last: int = last) -> bool:
            shown = [info.schedule for info in await client.schedules.list()]
            return [schedule.args for schedule in shown if schedule] == [(last + 1,)]

        async with serving(redis_url, [], cron_jobs=[cron(one_page, perpetual())]):
            await wait_until(so_far, description=f"{last} runs")
            assert await seen(redis) == [str(number) for number in range(1, last + 1)]
        # In place of an hour's wait.
        key = keys.schedule_book(QUEUE) + "walk"
        await redis.hset(key, "due", int(await redis.hget(key, "last")) + 1)
        await redis.zadd(keys.schedules(QUEUE), {"walk": 1})


async def test_changed_schedule_begins_with_its_own_arguments(
    redis: Any, client: runner.Client
) -> None:
    await client.schedules.add(cron("walk", perpetual(), args=(1,)))
    key = keys.schedule_book(QUEUE) + "walk"
    await redis.hset(key, "call", b"rubbish")
    info = await client.schedules.get("walk")
    assert info.schedule is None
    assert "msgpack" in info.error
    await client.schedules.change(cron("walk", perpetual(otherwise=5), args=(7,)))
    info = await client.schedules.get("walk")
    assert info.schedule is not None
    assert info.schedule.args == (7,)


async def test_changing_what_is_shown_keeps_the_arguments(
    redis: Any, book: Book, client: runner.Client
) -> None:
    await client.schedules.add(cron("walk", perpetual(), args=(1,)))
    await Ticker(book, schedules=[], tasks=["walk"], aborts=False).tick()
    rig = Rig(redis)
    (claimed,) = await rig.claim()
    run = ScheduledRun(redis, MsgpackCodec(), (QUEUE, "walk", 0), claimed, "walk", walk)
    assert await run.decide(3600, (9,), None)
    info = await client.schedules.get("walk")
    assert info.schedule is not None
    changed = await client.schedules.change(replace(info.schedule, jitter_ms=5))
    assert changed.schedule is not None
    assert changed.schedule.args == (9,)


async def test_arguments_that_do_not_fit_change_nothing(
    redis_url: str, client: runner.Client
) -> None:
    @task(name="walk")
    async def wrong(ctx: Context, _page: int = 1) -> None:
        await ctx.reschedule(1, args=("two",))

    async with serving(redis_url, [], cron_jobs=[cron(wrong, perpetual())]):

        async def failed() -> bool:
            return (await client.queue_stats()).failed == 1

        await wait_until(failed, description="the run has failed")
        (letter,) = await client.dead_letters()
        assert letter.error_type == "runner.errors.ArgumentsError"
        info = await client.schedules.get("walk")
        assert info.next_due is None
        assert info.schedule is not None
        assert info.schedule.args == ()


@pytest.mark.usefixtures("ticker")
async def test_run_that_lost_its_lease_decides_nothing(redis: Any, book: Book) -> None:
    rig = Rig(redis)
    (lost,) = await rig.claim()
    await rig.lapse(lost)
    (again,) = await rig.claim()
    assert again.job_id == lost.job_id
    assert await decide(redis, again, None)
    assert not await decide(redis, lost, 0)
    assert await rig.settle(done(again)) == [1]
    assert not await decide(redis, lost, 0), "the chain has ended"
    assert not await decide(redis, again, 0), "who has settled has nothing more to say"
    (info,) = await book.infos(["walk"])
    assert info.next_due is None


@pytest.mark.usefixtures("ticker")
async def test_lease_that_ran_out_while_redis_was_paused_still_decides(redis: Any) -> None:
    (claimed,) = await Rig(redis).claim()
    await redis.delete(keys.in_progress(claimed.job_id))
    assert await decide(redis, claimed, 3600_000)


async def test_next_run_waits_for_the_commit_of_the_one_before(redis: Any, ticker: Ticker) -> None:
    rig = Rig(redis)
    (claimed,) = await rig.claim()
    assert await decide(redis, claimed, 0)
    settled = done(claimed)
    settled.mode, settled.unit_id, settled.operations = "submit", "u", b"o"
    assert await rig.settle(settled) == [1]
    await ticker.tick()
    assert await rig.ids() == {claimed.job_id}
    await redis.zrem(QUEUE, claimed.job_id)  # as the writer does

    async def follows() -> bool:
        await ticker.tick()
        return bool(await rig.ids())

    await wait_until(follows, description="the next run")
    await redis.delete(keys.UNITS, keys.WRITER)


async def test_chain_can_be_paused_and_removed(client: runner.Client) -> None:
    await client.schedules.add(cron("walk", perpetual(otherwise=5), name="chain"))
    await client.schedules.pause("chain")
    assert (await client.schedules.get("chain")).next_due is None
    await client.schedules.resume("chain")
    assert (await client.schedules.get("chain")).next_due is not None
    await client.schedules.remove("chain")
    with pytest.raises(errors.ScheduleNotFound):
        await client.schedules.get("chain")


async def test_aborted_run_leaves_the_chain_as_it_is(
    redis_url: str, redis: Any, client: runner.Client
) -> None:
    @task(name="walk")
    async def long(ctx: Context) -> None:
        redis: Any = ctx.client
        await redis.rpush("seen", ctx.job_id)
        await asyncio.sleep(3600)

    async with serving(
        redis_url, [], cron_jobs=[cron(long, perpetual(otherwise=0.1))], allow_abort_jobs=True
    ):
        for number in (1, 2):

            async def runs(number: int = number) -> bool:
                return len(await seen(redis)) == number

            await wait_until(runs, description=f"run {number}")
            assert await client.job((await seen(redis))[-1]).abort(timeout=10)


async def test_chain_starts_once_in_the_fleet(redis_url: str, redis: Any) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(
                serving(redis_url, [], cron_jobs=[cron(walk, perpetual())])
            )

        async def ended() -> bool:
            return len(await seen(redis)) >= 5

        await wait_until(ended, description="the chain has ended")
    assert await seen(redis) == ["a1", "a2", "a3", "a4", "a5"]
