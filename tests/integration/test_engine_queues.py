"""One worker reads several queues: the urgent first, none starved."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from arq.connections import RedisSettings

import runner
from runner import Worker, task
from runner.queues import TURN
from runner.worker import as_function
from tests.engine import Gate, started
from tests.support import wait_until

URGENT, LATER = "urgent", "later"


@task
async def note(ctx: dict[str, Any], queue: str) -> str:
    ctx["noted"].append(queue)
    await asyncio.sleep(0)
    return queue


@task(queue=LATER)
async def refuse(_ctx: Any) -> None:
    raise ValueError("no")


def make_worker(redis_url: str, noted: list[str], **settings: Any) -> Worker:
    return Worker(
        functions=[note, refuse],
        queue_name=URGENT,
        queues=[LATER],
        redis_settings=RedisSettings.from_dsn(redis_url),
        codec="msgpack",
        handle_signals=False,
        ctx={"noted": noted},
        history=True,
        **settings,
    )


async def fill(client: runner.Client, queue: str, count: int) -> None:
    await client.enqueue_many([note.options(queue=queue).call(queue) for _ in range(count)])


async def run_burst(worker: Worker) -> None:
    await worker.main()
    await worker.close()


async def test_a_busy_queue_leaves_the_queue_behind_it_one_slot_of_eleven(redis_url: str) -> None:
    noted: list[str] = []
    async with runner.connect(redis_url) as client:
        await fill(client, LATER, 100)
        await fill(client, URGENT, 500)
        await run_burst(make_worker(redis_url, noted, burst=True, max_jobs=10))
    assert noted.count(URGENT) == 500
    assert noted.count(LATER) == 100
    while_busy = noted[: max(at for at, queue in enumerate(noted) if queue == URGENT)]
    assert while_busy.count(LATER) >= 500 // (TURN + 1) - TURN
    # And not many more: at its very beginning and end the first queue has no known backlog.
    assert while_busy.count(LATER) <= 500 // TURN + 2 * 10 + TURN


async def test_the_queue_behind_an_idle_one_gets_all_slots(redis_url: str) -> None:
    noted: list[str] = []
    async with runner.connect(redis_url) as client:
        await fill(client, LATER, 50)
        await run_burst(make_worker(redis_url, noted, burst=True, max_jobs=10))
    assert noted == [LATER] * 50


async def test_jobs_of_every_queue_give_results_and_dead_letters_of_their_own(
    redis_url: str,
) -> None:
    async with runner.connect(redis_url) as client:
        worker = make_worker(redis_url, [], max_jobs=10)
        running = asyncio.create_task(worker.main())
        try:
            later = await client.enqueue(note.options(queue=LATER), "a")
            urgent = await client.enqueue(note.options(queue=URGENT), "b")
            assert await later.result(timeout=10) == "a"
            assert await urgent.result(timeout=10) == "b"
            assert (await later.result_info()).queue_name == LATER  # type: ignore[union-attr]
            await client.enqueue(refuse)

            async def buried() -> bool:
                return (await client.queue_stats(LATER)).dead == 1

            await wait_until(buried, description="the refused job is a dead letter of its queue")
            [letter] = await client.dead_letters(LATER)
            assert letter.queue == LATER
            assert await client.dead_letters(URGENT) == []
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await worker.close()


async def test_a_job_of_the_second_queue_wakes_an_idle_worker(redis_url: str) -> None:
    async with runner.connect(redis_url) as client:
        worker = make_worker(redis_url, [], poll_delay=3600, lease=3600)
        running = asyncio.create_task(worker.main())
        try:

            async def idle() -> bool:
                return bool(await client.zcard(f"runner:idle:{LATER}"))

            await wait_until(idle, description="the worker waits")
            job = await client.enqueue(note.options(queue=LATER), "a")
            assert await job.result(timeout=10) == "a"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await worker.close()


# By weight.

WEIGHTS = {"urgent": 6, "later": 3, "bulk": 1}


def weighted(redis_url: str, noted: list[str], **settings: Any) -> Worker:
    given = {"queues": WEIGHTS, "queue_name": URGENT, "history": True, **settings}
    return Worker(
        functions=[note],
        redis_settings=RedisSettings.from_dsn(redis_url),
        codec="msgpack",
        handle_signals=False,
        ctx={"noted": noted},
        **given,
    )


@pytest.mark.parametrize("slots", [1, 10, 1000])
async def test_busy_queues_share_the_slots_by_weight(redis_url: str, slots: int) -> None:
    noted: list[str] = []
    async with runner.connect(redis_url) as client:
        for queue in WEIGHTS:
            await fill(client, queue, 3_000)
        await run_burst(weighted(redis_url, noted, burst=True, max_jobs=slots))
    assert {queue: noted.count(queue) for queue in WEIGHTS} == dict.fromkeys(WEIGHTS, 3_000)
    # As long as all three have work: 3,000 of the first are 5,000 in all.
    count = max(at for at, queue in enumerate(noted) if queue == URGENT) + 1
    busy = noted[:count]
    for queue, weight in WEIGHTS.items():
        assert abs(busy.count(queue) - count * weight / 10) <= slots + 10, (queue, count)


async def test_no_queue_waits_longer_than_its_weight_says(redis_url: str) -> None:
    noted: list[str] = []
    slots, window = 10, 500
    async with runner.connect(redis_url) as client:
        for queue in WEIGHTS:
            await fill(client, queue, 2_000)
        await run_burst(weighted(redis_url, noted, burst=True, max_jobs=slots))
    busy = noted[: max(at for at, queue in enumerate(noted) if queue == URGENT)]
    for start in range(0, len(busy) - window, 50):
        seen = busy[start : start + window]
        for queue, weight in WEIGHTS.items():
            assert seen.count(queue) >= window * weight / 10 - slots, (queue, start)


async def test_weights_count_among_the_queues_that_have_work(redis_url: str) -> None:
    noted: list[str] = []
    async with runner.connect(redis_url) as client:
        await fill(client, LATER, 900)
        await fill(client, "bulk", 900)
        await run_burst(weighted(redis_url, noted, burst=True, max_jobs=10))
    busy = noted[: max(at for at, queue in enumerate(noted) if queue == LATER)]
    assert abs(busy.count(LATER) - len(busy) * 3 / 4) <= 20


async def test_lightest_queue_alone_gets_all_slots(redis_url: str) -> None:
    gate = Gate()

    @task(name="hold")
    async def hold(_ctx: Any) -> None:
        await gate()

    async with runner.connect(redis_url) as client:
        await client.enqueue_many([hold.options(queue="bulk").call() for _ in range(25)])
        worker = weighted(redis_url, [], max_jobs=20)
        worker.functions["hold"] = as_function(hold)
        async with started(worker):
            await wait_until(lambda: worker.job_counter == 20, description="all slots are taken")
            assert (await client.queue_stats("bulk")).running == 20
            gate.opens.set()

            async def empty() -> bool:
                return not await client.zcard("bulk")

            await wait_until(empty, description="all have run")


async def test_limit_of_a_burst_holds_over_all_queues(redis_url: str) -> None:
    noted: list[str] = []
    async with runner.connect(redis_url) as client:
        for queue in WEIGHTS:
            await fill(client, queue, 50)
        await run_burst(weighted(redis_url, noted, burst=True, max_jobs=10, max_burst_jobs=20))
    assert len(noted) == 20
    assert set(noted) == set(WEIGHTS)


async def test_no_more_jobs_run_at_once_than_there_are_slots(redis_url: str) -> None:
    most = 0

    @task(name="count")
    async def count(_ctx: Any) -> None:
        nonlocal most
        most = max(most, worker.job_counter)
        await asyncio.sleep(0)

    worker = weighted(redis_url, [], burst=True, max_jobs=7)
    worker.functions["count"] = as_function(count)
    async with runner.connect(redis_url) as client:
        for queue in WEIGHTS:
            calls = [count.options(queue=queue).call() for _ in range(200)]
            await client.enqueue_many(calls)
        await run_burst(worker)
    assert 1 < most <= 7


@pytest.mark.parametrize(
    "queues", [(URGENT, LATER), {URGENT: 6, LATER: 1}], ids=["in order", "by weight"]
)
async def test_busy_worker_finds_what_comes_into_an_empty_queue(
    redis_url: str, queues: Any
) -> None:
    """Nobody wakes a worker that is busy, and here it never polls."""

    @task(name="work")
    async def work(_ctx: Any) -> None:
        await asyncio.sleep(0.002)

    async with runner.connect(redis_url) as client:
        worker = weighted(redis_url, [], queues=queues, max_jobs=4, poll_delay=3600, lease=3600)
        worker.functions["work"] = as_function(work)
        await client.enqueue_many([work.options(queue=LATER).call() for _ in range(4_000)])
        async with started(worker):
            await wait_until(lambda: worker.jobs_complete > 100, description="it is busy")
            await client.delete(f"runner:idle:{URGENT}")  # as after a while without a free slot
            urgent = await client.enqueue(note.options(queue=URGENT), "urgent")
            assert await urgent.result(timeout=10) == "urgent"
            assert await client.zcard(LATER) > 100, "it is busy still"
