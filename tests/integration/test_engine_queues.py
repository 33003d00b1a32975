"""One worker reads several queues: the urgent first, none starved."""

from __future__ import annotations

import asyncio
from typing import Any

from arq.connections import RedisSettings

import runner
from runner import Worker, task
from runner.queues import TURN
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
