"""How far jobs are: each last word arrives, whatever becomes of the others, and of Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import Context, RetryPolicy, Snooze, keys, task
from runner.progress import EVERY_S, ProgressBoard, channel, checked
from tests.engine import Gate, raw, serving
from tests.proxy import proxied
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client
    from runner.progress import Progress
    from tests.servers import ChaosServers

pytestmark = pytest.mark.timeout(60)

NOW = RetryPolicy(base=0, cap=0)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@task(retries=2, backoff=NOW)
async def ends(ctx: Context, how: str) -> None:
    await ctx.progress(ctx.attempt, 10, how)
    if how == "retry" and ctx.attempt == 1:
        raise OSError("not yet")
    if how == "snooze" and "snoozed" not in SEEN:
        SEEN.append("snoozed")
        raise Snooze(0)
    if how == "cancel":
        raise runner.Cancel("enough")
    if how == "fail":
        raise ValueError("as it should")
    if how == "time out":
        await asyncio.Event().wait()


SEEN: list[str] = []


@pytest.mark.parametrize("how", ["succeed", "fail", "cancel", "retry", "snooze"])
async def test_following_ends_with_the_job_and_has_its_last_word(
    redis_url: str, client: Client, how: str
) -> None:
    SEEN.clear()
    async with serving(redis_url, [ends]), asyncio.timeout(20):
        job = await client.enqueue(ends, how)
        said = [word.done async for word in job.progress()]
    assert said[-1] == {"retry": 2, "fail": 3}.get(how, 1)


async def test_following_ends_with_a_job_that_is_taken_out_of_the_queue(client: Client) -> None:
    job = await client.enqueue(ends.options(delay=3600), "succeed")
    following = asyncio.create_task(_all_of(job))
    await client.jobs.cancel([job.job_id])
    async with asyncio.timeout(20):
        assert await following == []


async def test_following_a_job_that_never_was_ends_at_once(client: Client) -> None:
    async with asyncio.timeout(20):
        assert await _all_of(client.job("nobody")) == []


async def test_following_goes_on_behind_a_restart_of_redis(chaos_servers: ChaosServers) -> None:
    gate = Gate()

    @task(timeout=60)
    async def copies(ctx: Context) -> None:
        await ctx.progress(1, 3)
        await gate()
        await ctx.progress(2, 3)

    url = chaos_servers.redis_url
    async with runner.connect(url) as client, serving(url, [copies]):
        job = await client.enqueue(copies)
        seen: list[float] = []
        starting: asyncio.Task[None] | None = None
        async with asyncio.timeout(40):
            async for word in job.progress():
                seen.append(word.done)
                if word.done == 1:
                    await chaos_servers.stop_redis()
                    starting = asyncio.create_task(chaos_servers.start_redis())
                    gate.opens.set()
        assert starting is not None
        await starting
    assert seen == [1, 2]


async def test_what_one_job_says_cannot_silence_another(redis_url: str, client: Client) -> None:
    async with raw(redis_url) as redis:
        board = ProgressBoard(lambda: redis)
        for number in range(20):
            word = checked(number, None, f"\ud800 {number}", 1)
            await board.say("odd", word)
            await board.say("other", checked(number, 100, "", 1))
        await board.close()
    other, odd = await client.progress("other"), await client.progress("odd")
    assert other is not None
    assert odd is not None
    assert (other.done, odd.message) == (19, "\\ud800 19")


class Lent:
    """Lends connections in turn, and counts how often one was asked for."""

    def __init__(self, *lanes: Any) -> None:
        self.times = 0
        self._lanes = lanes

    def __call__(self) -> Any:
        self.times += 1
        return self._lanes[min(self.times, len(self._lanes)) - 1]


async def test_what_is_said_too_often_is_gathered_also_when_all_is_done(redis_url: str) -> None:
    async with raw(redis_url) as redis:
        lent = Lent(redis)
        board = ProgressBoard(lent)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(5_000):
            await board.say("j", checked(number, 0, "", 1))
        took_s = loop.time() - began
        await board.close()
    assert lent.times <= 4 + took_s / EVERY_S, "5,000 words are not 5,000 calls"


async def test_a_word_that_redis_did_not_take_is_said_again(redis_url: str, client: Client) -> None:
    async with proxied(redis_url) as wire, raw(wire.url) as redis:
        board = ProgressBoard(lambda: redis)
        wire.mute = b"runner:progress:"  # what is sent is lost, and nobody says so
        saying = asyncio.create_task(board.say("j", checked(3, 3, "all", 1)))
        await wait_until(lambda: wire.muted, description="the word is lost")
        saying.cancel()  # as a job is at its time limit
        await asyncio.gather(saying, return_exceptions=True)
        wire.mute = b""

        async def arrived() -> Any:
            return await client.progress("j")

        word = await wait_until(arrived, description="the word arrives", timeout_s=20)
        assert word.message == "all"
        await board.close()


async def test_the_last_word_is_the_last_one_that_arrives(redis_url: str, client: Client) -> None:
    async with proxied(redis_url) as wire, raw(wire.url) as slow, raw(redis_url) as quick:
        await slow.ping()  # it is connected
        wire.delay_s = 0.3
        lent = Lent(slow, quick)
        board = ProgressBoard(lent)
        await board.say("j", checked(1, 3, "", 1))
        await wait_until(lambda: lent.times, description="the first word is on its way")
        await board.say("j", checked(3, 3, "", 1))
        await board.close()
        # By the same wire and behind the first word: when this is here, that is.
        await slow.ping()
    word = await client.progress("j")
    assert word is not None
    assert word.done == 3


async def _all_of(job: Any) -> list[Progress]:
    return [word async for word in job.progress()]


def test_keys_of_words_take_any_id() -> None:
    assert keys.progress("a\udcff{b}:\n") == b"runner:progress:a\xff{b}:\n"


async def test_who_leaves_early_leaves_nothing_behind(redis_url: str, client: Client) -> None:
    gate = Gate()

    @task
    async def copies(ctx: Context) -> None:
        await ctx.progress(1, 3)
        await gate()

    async with serving(redis_url, [copies]):
        job = await client.enqueue(copies)
        async for word in job.progress():
            assert word.done == 1
            break
        gate.opens.set()
        await job.result(timeout=20)

        async def nobody_listens() -> bool:
            names = await client.pubsub_numsub(channel(client, job.job_id))
            return all(count == 0 for _, count in names)

        await wait_until(nobody_listens, description="its connection is closed")
