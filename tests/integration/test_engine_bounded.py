"""A queue that may hold so many jobs and no more: who is refused, who waits, and what is lost."""

from __future__ import annotations

import asyncio
import functools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from arq.connections import RedisSettings
from redis.exceptions import RedisError

import runner
from runner import Context, keys, task
from runner.codec import MsgpackCodec
from runner.connection import open_client
from runner.errors import ArgumentsError, EnqueueError, QueueFull
from tests.engine import Gate, drain, raw, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterable

    from runner import Client

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:held:*")]

QUEUE = keys.DEFAULT_QUEUE


@task
async def note(ctx: Context, number: int) -> int:
    ctx["seen"].append(number)
    return number


@task
async def hold(ctx: Context) -> None:
    await ctx["gate"]()


@asynccontextmanager
async def bounded(url: str, length: int, **settings: Any) -> AsyncIterator[Client]:
    async with runner.connect(url, max_length=length, **settings) as client:
        yield client


def lines_of(client: Client) -> list[Any]:
    return [line for line in client._outbox._lines.values() if line.is_open]


def standing(client: Client) -> int:
    """Return how many stand in line."""
    return sum(len(line._waiting) for line in lines_of(client))


def has_at_least(served: list[int], number: int) -> bool:
    return len(served) >= number


async def in_line(client: Client, number: int) -> None:
    await wait_until(
        lambda: standing(client) == number, description=f"{number} calls stand in line"
    )


def started(calls: Iterable[Awaitable[Any]]) -> list[asyncio.Future[Any]]:
    return [asyncio.ensure_future(call) for call in calls]


# Refused.


async def test_full_queue_refuses_the_next_job(redis_url: str) -> None:
    async with bounded(redis_url, 2) as client:
        await client.enqueue(note, 0)
        await client.enqueue(note, 1)
        with pytest.raises(QueueFull, match="may hold 2 jobs") as caught:
            await client.enqueue(note, 2)
        assert (caught.value.queue, caught.value.max_length) == (QUEUE, 2)
        assert await client.zcard(QUEUE) == 2
        assert len(await client.keys("arq:job:*")) == 2


async def test_deferred_and_running_jobs_take_room(redis_url: str) -> None:
    gate = Gate()
    async with (
        bounded(redis_url, 2) as client,
        serving(redis_url, [hold, note], ctx={"gate": gate}),
    ):
        await client.enqueue(hold)
        await gate.runs.wait()
        await client.enqueue(note.options(delay=3600), 0)
        with pytest.raises(QueueFull):
            await client.enqueue(note, 1)
        gate.opens.set()


async def test_room_comes_back_when_a_job_ends(redis_url: str) -> None:
    async with bounded(redis_url, 1) as client:
        await client.enqueue(note, 0)
        await drain(redis_url, [note], ctx={"seen": []})
        assert (await client.enqueue(note, 1)).is_new


async def test_job_that_is_there_already_is_not_refused(redis_url: str) -> None:
    async with bounded(redis_url, 1, when_full="wait") as client:
        await client.enqueue(note.options(key="k"), 0)
        again = await client.enqueue(note.options(key="k"), 0)
        assert again.is_new is False


async def test_bound_holds_for_every_way_to_enqueue(redis_url: str) -> None:
    async with bounded(redis_url, 1) as client:
        assert await client.enqueue_job("note", 0) is not None
        for call in (
            client.enqueue("note", 1),
            client.enqueue_job("note", 1),
            client.enqueue(note, 1),
            client.enqueue_many([note.call(1)]),
        ):
            with pytest.raises(QueueFull):
                await call
        assert await client.zcard(QUEUE) == 1


async def test_each_queue_has_a_bound_of_its_own(redis_url: str) -> None:
    async with bounded(redis_url, 1) as client:
        await client.enqueue(note, 0)
        await client.enqueue(note.options(queue="other"), 1)
        with pytest.raises(QueueFull, match="'other'"):
            await client.enqueue(note.options(queue="other"), 2)


async def test_call_may_have_another_bound_than_its_client(redis_url: str) -> None:
    async with bounded(redis_url, 1) as client:
        await client.enqueue(note, 0)
        await client.enqueue(note.options(max_length=2), 1)
        await client.enqueue(note.options(max_length=0), 2)
        with pytest.raises(QueueFull):
            await client.enqueue(note.options(max_length=3), 3)


async def test_calls_of_one_tick_keep_their_own_bounds(redis_url: str) -> None:
    async with runner.connect(redis_url) as client:
        bounds = [3, 0, 1, 5, 3, 0, 4, 2]
        outcomes = await asyncio.gather(
            *(client.enqueue(note.options(max_length=b), n) for n, b in enumerate(bounds)),
            return_exceptions=True,
        )
        refused = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, QueueFull)]
        # 3: 0→1; none: 1→2; 1: full; 5: 2→3; 3: full; none: 3→4; 4: full; 2: full
        assert refused == [2, 4, 6, 7]
        assert [outcomes[n].max_length for n in refused] == [1, 3, 4, 2]  # type: ignore[union-attr]
        assert await client.zcard(QUEUE) == 4


async def test_concurrent_producers_never_pass_the_bound(redis_url: str) -> None:
    async with bounded(redis_url, 50) as one, bounded(redis_url, 50) as other:
        outcomes = await asyncio.gather(
            *(client.enqueue(note, n) for n in range(60) for client in (one, other)),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, runner.Job) for outcome in outcomes) == 50
        assert await one.zcard(QUEUE) == 50


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"max_length": -1}, "max_length"),
        ({"max_length": 1.5}, "max_length"),
        ({"max_length": True}, "max_length"),
        ({"when_full": "drop"}, "when_full"),
        ({"full_timeout": -1}, "full_timeout"),
        ({"full_timeout": float("nan")}, "full_timeout"),
    ],
)
def test_bound_that_makes_no_sense_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ArgumentsError, match=why):
        runner.connect("redis://localhost", **settings)
    with pytest.raises(ArgumentsError, match=why):
        note.options(**settings)


# Many at once.


async def test_batch_that_finds_no_room_says_what_is_queued(redis_url: str) -> None:
    async with bounded(redis_url, 700) as client:
        calls = [note.call(n) for n in range(1_200)]
        with pytest.raises(QueueFull, match="700 of 1200 jobs are queued") as caught:
            await client.enqueue_many(calls)
        error = caught.value
        assert error.refused == tuple(range(700, 1_200))
        queued = {raw_id.decode() for raw_id in await client.zrange(QUEUE, 0, -1)}
        assert set(error.queued) == queued
        assert len(error.queued) == 700
        # What was refused can be given again, once there is room.
        seen: list[int] = []
        await drain(redis_url, [note], ctx={"seen": seen})
        await client.enqueue_many([calls[n] for n in error.refused])
        await drain(redis_url, [note], ctx={"seen": seen})
        assert sorted(seen) == list(range(1_200))


async def test_batch_stops_at_the_first_refusal_though_room_comes_meanwhile(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bounded(redis_url, 600) as client:
        send: Any = client._pipe.execute_command
        calls = 0

        async def watched(*args: Any, **options: Any) -> Any:
            nonlocal calls
            answer = await send(*args, **options)
            if args[0] in {"EVALSHA", "EVAL"}:
                calls += 1
                if calls >= 2:
                    await send("DEL", QUEUE)  # as if workers had taken everything
            return answer

        monkeypatch.setattr(client._pipe, "execute_command", watched)
        with pytest.raises(QueueFull) as caught:
            await client.enqueue_many([note.call(n) for n in range(1_600)])
        assert caught.value.refused == tuple(range(600, 1_600))


async def test_batch_with_bounds_of_several_kinds_refuses_by_each(redis_url: str) -> None:
    async with bounded(redis_url, 2) as client:
        calls = [
            *(note.call(n) for n in range(3)),
            *(note.options(max_length=0).call(n) for n in range(3, 6)),
            *(note.options(queue="other", max_length=1).call(n) for n in range(6, 8)),
        ]
        with pytest.raises(QueueFull) as caught:
            await client.enqueue_many(calls)
        assert caught.value.refused == (2, 7)
        assert len(caught.value.queued) == 6


async def test_bad_entry_of_a_batch_says_which(redis_url: str) -> None:
    async with runner.connect(redis_url) as client:
        await client.set("other", "no set")
        calls = [note.call(0), note.options(queue="other").call(1), note.call(2)]
        with pytest.raises(EnqueueError, match="2 of 3 jobs are queued") as caught:
            await client.enqueue_many(calls)
        assert caught.value.refused == (1,)
        assert len(caught.value.queued) == 2


async def test_batch_that_waits_goes_on_until_all_are_queued(redis_url: str) -> None:
    seen: list[int] = []
    async with (
        bounded(redis_url, 100, when_full="wait") as client,
        serving(redis_url, [note], ctx={"seen": seen}, poll_delay=0.05),
    ):
        jobs = await client.enqueue_many([note.call(n) for n in range(1_000)])
        assert all(job.is_new for job in jobs)
        assert await jobs[-1].result(timeout=10) == 999
        await wait_until(lambda: len(seen) == 1_000, description="all have run")
    assert sorted(seen) == list(range(1_000))


async def test_batch_that_waited_long_enough_says_what_is_queued(redis_url: str) -> None:
    async with bounded(redis_url, 3, when_full="wait", full_timeout=0.05) as client:
        with pytest.raises(QueueFull) as caught:
            await client.enqueue_many([note.call(n) for n in range(5)])
        assert caught.value.refused == (3, 4)
        assert await client.zcard(QUEUE) == len(caught.value.queued) == 3


# Waiting.


async def test_call_that_waits_is_queued_when_room_comes(redis_url: str) -> None:
    async with bounded(redis_url, 1, when_full="wait") as client:
        await client.enqueue(note, 0)
        (waiting,) = started([client.enqueue(note, 1)])
        await in_line(client, 1)
        assert not waiting.done()
        seen: list[int] = []
        await drain(redis_url, [note], ctx={"seen": seen})
        job = await waiting
        await drain(redis_url, [note], ctx={"seen": seen})
        assert await job.result(timeout=5) == 1
        assert seen == [0, 1]


async def test_no_job_is_lost_or_doubled_and_the_bound_holds(redis_url: str) -> None:
    seen: list[int] = []
    longest = 0

    async def watch() -> None:
        nonlocal longest
        async with raw(redis_url) as redis:
            while True:
                longest = max(longest, await redis.zcard(QUEUE))
                await asyncio.sleep(0)

    async with (
        bounded(redis_url, 20, when_full="wait") as one,
        bounded(redis_url, 20, when_full="wait") as other,
        serving(redis_url, [note], ctx={"seen": seen}, poll_delay=0.05),
    ):
        watching = asyncio.create_task(watch())
        jobs = await asyncio.gather(
            *(client.enqueue(note, 2 * n + which) for n in range(300)
              for which, client in enumerate((one, other)))
        )  # fmt: skip
        await asyncio.gather(*(job.result(timeout=20) for job in jobs))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert sorted(seen) == list(range(600))
    assert longest <= 20


async def test_who_came_first_is_served_first(redis_url: str) -> None:
    async with bounded(redis_url, 1, when_full="wait") as client:
        await client.enqueue(note, 0)
        served: list[int] = []

        async def wait_in_line(number: int) -> None:
            await client.enqueue(note, number)
            served.append(number)

        waiting = started([wait_in_line(1)])
        await in_line(client, 1)
        await client.delete(QUEUE)  # there is room, and those who come now stand behind
        waiting += started(wait_in_line(number) for number in (2, 3))
        for number in (1, 2, 3):
            await wait_until(
                functools.partial(has_at_least, served, number), description="one more is served"
            )
            await client.delete(QUEUE)
        await asyncio.gather(*waiting)
        assert served == [1, 2, 3]


async def test_call_that_waited_long_enough_is_refused_and_not_queued(redis_url: str) -> None:
    async with bounded(redis_url, 1, when_full="wait", full_timeout=0.05) as client:
        first = await client.enqueue(note, 0)
        with pytest.raises(QueueFull):
            await client.enqueue(note, 1)
        assert await client.keys("arq:job:*") == [keys.job(first.job_id).encode()]


async def test_call_may_wait_less_long_than_its_client(redis_url: str) -> None:
    async with bounded(redis_url, 1, when_full="wait") as client:
        await client.enqueue(note, 0)
        for options in ({"when_full": "raise"}, {"full_timeout": 0}, {"full_timeout": 0.01}):
            with pytest.raises(QueueFull):
                await client.enqueue(note.options(**options), 1)


async def test_cancelled_call_leaves_the_line_without_its_job(redis_url: str) -> None:
    async with bounded(redis_url, 1, when_full="wait") as client:
        await client.enqueue(note, 0)
        gives_up, stays = started([client.enqueue(note, 1), client.enqueue(note, 2)])
        await in_line(client, 2)
        gives_up.cancel()
        seen: list[int] = []
        await drain(redis_url, [note], ctx={"seen": seen})
        await stays
        await drain(redis_url, [note], ctx={"seen": seen})
        assert seen == [0, 2]
        assert gives_up.cancelled()


async def test_closed_client_lets_those_who_wait_know(redis_url: str) -> None:
    async with bounded(redis_url, 1, when_full="wait") as client:
        await client.enqueue(note, 0)
        (waiting,) = started([client.enqueue(note, 1)])
        await in_line(client, 1)
    with pytest.raises(EnqueueError, match="closed before"):
        await waiting


async def test_trouble_with_redis_reaches_those_who_wait(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bounded(redis_url, 1, when_full="wait") as client:
        await client.enqueue(note, 0)
        waiting = started(client.enqueue(note, n) for n in (1, 2))
        await in_line(client, 2)

        async def away(*_args: Any, **_options: Any) -> None:
            raise RedisError("away")

        with monkeypatch.context() as patched:
            patched.setattr(client._pipe, "execute_command", away)
            for call in waiting:
                with pytest.raises(RedisError, match="away"):
                    await call
        # Nothing is left of it: the next one may wait again.
        (after,) = started([client.enqueue(note, 3)])
        await in_line(client, 1)
        await client.delete(QUEUE)
        assert (await after).is_new


async def test_full_queue_is_asked_seldom(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand callers who wait cost Redis no more than one."""
    async with bounded(redis_url, 1, when_full="wait", full_timeout=1) as client:
        await client.enqueue(note, 0)
        asked = 0
        send: Any = client._pipe.execute_command

        async def counted(*command: Any) -> Any:
            nonlocal asked
            asked += 1
            return await send(*command)

        monkeypatch.setattr(client._pipe, "execute_command", counted)
        outcomes = await asyncio.gather(
            *(client.enqueue(note, n) for n in range(1_000)), return_exceptions=True
        )
        assert all(isinstance(outcome, QueueFull) for outcome in outcomes)
        assert 1 <= asked <= 20


async def test_unbounded_client_asks_for_no_length(redis_url: str) -> None:
    client = await open_client(RedisSettings.from_dsn(redis_url), codec=MsgpackCodec(), queue=QUEUE)
    async with client:
        await client.enqueue_many([note.call(n) for n in range(600)])
        assert lines_of(client) == []
        assert await client.zcard(QUEUE) == 600
