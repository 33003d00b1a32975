"""What can be asked about one job, and how far a search goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import runner
from runner import Context, JobFilter, LetterFilter, cron, errors, keys, task
from tests.engine import Gate, drain, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@task
async def works(_ctx: Context, /, number: int = 0) -> int:
    return number


@task(retries=1)
async def breaks(_ctx: Context, /, word: str = "") -> None:
    raise ValueError(f"no {word}")


async def test_a_job_is_known_from_its_enqueue_to_its_end(redis_url: str, client: Client) -> None:
    gate = Gate()

    @task(name="waits")
    async def waits(_ctx: Context, /, word: str) -> str:
        await gate()
        return word

    job = await client.enqueue(waits, "open")
    story = await client.jobs.story(job.job_id)
    assert (story.state, story.args, story.is_queued) == ("queued", ("open",), True)
    async with serving(redis_url, [waits], monitor=True) as worker:
        await gate.runs.wait()
        story = await client.jobs.story(job.job_id)
        assert (story.state, story.worker, story.has_ended) == ("running", worker.name, False)
        gate.opens.set()
        await job.result(timeout=10)

        async def is_told() -> bool:
            return (await client.history.find(job.job_id)) is not None

        await wait_until(is_told, description="the worker has said that it ended")
        story = await client.jobs.story(job.job_id)
    assert (story.state, story.result, story.worker) == ("succeeded", "open", worker.name)
    assert story.enqueued_ms <= story.started_ms <= story.ended_ms
    assert story.has_result
    assert story.has_ended
    await client.delete(keys.result(job.job_id))
    story = await client.jobs.story(job.job_id)
    assert (story.state, story.task, story.has_arguments) == ("succeeded", "waits", False)


async def test_a_dead_job_tells_of_all_its_attempts(redis_url: str, client: Client) -> None:
    job = await client.enqueue(breaks, "bread")
    await drain(redis_url, [breaks])
    story = await client.jobs.story(job.job_id)
    assert (story.state, story.is_dead, story.args) == ("failed", True, ("bread",))
    assert [(e.attempt, e.outcome, e.error) for e in story.errors] == [
        (1, "retried", "no bread"),
        (2, "failed", "no bread"),
    ]
    await client.dead.purge(job.job_id)
    story = await client.jobs.story(job.job_id)
    assert (story.state, story.is_dead) == ("failed", False)
    assert [error.error for error in story.errors] == ["no bread"], "its result has the last one"
    await client.delete(keys.result(job.job_id))
    with pytest.raises(errors.JobNotFound):
        await client.jobs.story(job.job_id)


async def test_what_cannot_be_read_is_told_as_that(client: Client) -> None:
    await client.set(keys.result("odd"), b"\x80nonsense", px=60_000)
    story = await client.jobs.story("odd")
    assert (story.state, story.task, story.has_ended) == ("ended", "", True)
    assert story.problem


@pytest.mark.parametrize("payload", [b"\x80nonsense", None])
async def test_arguments_that_nobody_has_read_are_not_none(
    redis_url: str, client: Client, payload: bytes | None
) -> None:
    job = await client.enqueue(works, 7)
    if payload is None:
        await client.delete(keys.job(job.job_id))
    else:
        await client.set(keys.job(job.job_id), payload, px=60_000)
    await drain(redis_url, [works])
    story = await client.jobs.story(job.job_id)
    assert (story.has_ended, story.args, story.has_arguments) == (True, (), False)


@pytest.mark.lasting_keys("runner:units", "runner:writer*")
async def test_writes_of_a_job_are_told_by_table(
    redis_url: str, database_url: str, client: Client
) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE orders (id int PRIMARY KEY, state text)")
    await connection.close()

    @task
    async def writes(ctx: Context, /, number: int) -> None:
        ctx.db.insert("orders", id=number, state="early")
        await ctx.db.commit()
        ctx.db.insert_many("orders", [{"id": number + n, "state": "late"} for n in (1, 2)])
        ctx.db.execute("UPDATE orders SET state = 'done' WHERE id = $1", number)

    async with serving(redis_url, [writes], monitor=True, database_url=database_url):
        job = await client.enqueue(writes, 10)
        await job.result(timeout=30)
        refused = await client.enqueue(writes, 10)
        with pytest.raises(errors.WriteRejected):
            await refused.result(timeout=30)

        async def told() -> Any:
            return await client.history.find(job.job_id)

        finished = await wait_until(told, description="the worker has said that it ended")
    units = await client.writes(job.job_id, ended_ms=finished.ended_ms)
    last = units[-1]
    assert last.state == "committed"
    assert [(call.kind, call.rows) for call in last.calls] == [("insert", 2), ("execute", 1)]
    assert last.calls[0].table == "orders"
    assert await client.writes("another", ended_ms=finished.ended_ms) == []


async def test_a_bounded_search_stops_and_goes_on(client: Client) -> None:
    await client.enqueue_many([works.call(n) for n in range(1_700)])
    wanted = JobFilter(arguments={0: 1_600})
    page = await client.jobs.list(wanted, limit=10, most_looks=2)
    assert (page.jobs, page.cut) == ([], True)
    looks = 1
    while page.cut:
        page = await client.jobs.list(wanted, limit=10, after=page.after, most_looks=2)
        looks += 1
    assert [job.args for job in page.jobs] == [(1_600,)]
    assert (looks, page.after) == (2, "")
    whole = await client.jobs.list(limit=2_000, most_looks=10)
    assert (len(whole.jobs), whole.cut) == (1_700, False)


async def test_a_search_for_what_lies_ahead_begins_there(redis_url: str, client: Client) -> None:
    gate = Gate()

    @task
    async def waits(_ctx: Context) -> None:
        await gate()

    async with serving(redis_url, [waits], max_jobs=1):
        running = await client.enqueue(waits)
        await gate.runs.wait()
        await client.enqueue_many([works.call(n) for n in range(1_500)])
        later = await client.enqueue(works.options(delay=900))
        page = await client.jobs.list(JobFilter(states={"running"}), most_looks=1)
        assert [job.job_id for job in page.jobs] == [running.job_id]
        page = await client.jobs.list(JobFilter(states={"deferred"}), most_looks=1)
        assert [job.job_id for job in page.jobs] == [later.job_id]
        await client.jobs.cancel(JobFilter(task="works"))
        gate.opens.set()


async def test_letters_are_searched_in_parts(redis_url: str, client: Client) -> None:
    await client.enqueue_many([breaks.call(str(n)) for n in range(1_300)])
    await drain(redis_url, [breaks], max_jobs=300)
    first = (await client.dead.list(limit=1_300)).letters[-1]
    wanted = LetterFilter(arguments={0: first.args[0]})
    page = await client.dead.list(wanted, limit=5, most_looks=1)
    assert (page.letters, page.cut) == ([], True)
    looks = 1
    while page.cut:
        page = await client.dead.list(wanted, limit=5, after=page.after, most_looks=1)
        looks += 1
    assert looks == 3
    assert [letter.job_id for letter in page.letters] == [first.job_id]


async def test_schedules_are_read_by_the_page_and_by_queue(client: Client) -> None:
    for number in range(5):
        await client.schedules.add(cron("works", f"{number} 3 * * *", name=f"s{number}"))
    infos, count = await client.schedules.page(start=2, limit=2)
    assert (len(infos), count) == (2, 5)
    assert await client.schedules.of("other").page() == ([], 0)
    with pytest.raises(errors.ScheduleError):
        await client.schedules.page(limit=0)
    for number in range(5):
        await client.schedules.remove(f"s{number}")


async def test_counts_of_one_task_are_those_of_all_by_name(redis_url: str, client: Client) -> None:
    await client.enqueue_many([works.call(n) for n in range(7)])
    await client.enqueue(breaks)
    await drain(redis_url, [works, breaks], monitor=True)
    by_task = await client.history.tasks()
    for name in ("works", "breaks"):
        one = await client.history.task(name)
        assert (one.outcomes, one.run, one.wait) == (
            by_task[name].outcomes,
            by_task[name].run,
            by_task[name].wait,
        )
    both = await client.history.of("arq:queue", "other").last()
    assert both.outcomes == {"succeeded": 7, "retried": 1, "failed": 1}
    assert (await client.history.task("nobody")).ended == 0
