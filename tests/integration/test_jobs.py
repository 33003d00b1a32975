"""The jobs of a queue: looked at, cancelled, hurried, while workers claim them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

import runner
from runner import Context, JobFilter, JobState, RetryPolicy, keys, task
from runner.errors import ArgumentsError, JobCancelled, JobNotFound
from tests.engine import Gate, Rig, raw, serving, stock_client
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from runner import Client

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:held:*")]

QUEUE = keys.DEFAULT_QUEUE
LATER = RetryPolicy(base=600, cap=600, jitter=0)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@task
async def note(ctx: Context, number: int, tenant: str = "a") -> int:  # noqa: ARG001  a filter asks
    ctx["ran"].append(number)
    return number


@task(retries=3, backoff=LATER)
async def fail_first(ctx: Context, number: int) -> int:
    if ctx.attempt == 1:
        raise ValueError("the first time")
    return number


@task
async def wait_at(ctx: Context) -> str:
    await ctx["gate"]()
    return "passed"


async def ids(client: Client, where: JobFilter | None = None) -> list[str]:
    return [job.job_id for job in (await client.jobs.list(where)).jobs]


# Looking


async def test_each_job_says_what_it_waits_for(redis_url: str, client: Client) -> None:
    gate = Gate()
    await client.enqueue(wait_at.options(key="running"))
    await client.enqueue(fail_first.options(key="retrying"), 1)
    async with serving(redis_url, [wait_at, fail_first], ctx={"gate": gate}) as worker:
        await gate.runs.wait()
        await wait_until(
            lambda: client.exists(keys.retry("retrying")), description="it waits for its next try"
        )
        worker.allow_pick_jobs = False
        worker.cycles.rest()
        await client.enqueue(note.options(key="queued"), 1)
        await client.enqueue(note.options(key="deferred", delay=3600), 2)
        await client.zadd(QUEUE, {"parked": keys.FAR_OFF_MS})
        await client.zadd(QUEUE, {"committing": keys.FAR_OFF_MS})
        await client.set(keys.in_progress("committing"), keys.COMMITTING + "1-1", px=60_000)
        page = await client.jobs.list()
        assert {job.job_id: job.state.value for job in page.jobs} == {
            state.value: state.value for state in JobState
        }
        found = {job.job_id: job for job in page.jobs}
        assert (found["running"].worker, found["queued"].worker) == (worker.name, "")
        assert (found["retrying"].attempt, found["queued"].attempt) == (2, 1)
        assert found["parked"].due is None
        assert found["parked"].error == "its payload is gone, or was not read"
        gate.opens.set()
        await client.zrem(QUEUE, "parked", "committing")


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (JobFilter(), ["n0", "n1", "n2", "late", "other"]),
        (JobFilter(task="note"), ["n0", "n1", "n2", "late"]),
        (JobFilter(task="not"), []),
        (JobFilter(task=fail_first), ["other"]),
        (JobFilter(states={"deferred"}), ["late", "other"]),
        (JobFilter(states=[JobState.QUEUED]), ["n0", "n1", "n2"]),
        (JobFilter(states="queued", task=fail_first), []),
        (JobFilter(arguments={0: 2}), ["n2"]),
        (JobFilter(arguments={"tenant": "b"}), ["n1", "late"]),
        (JobFilter(arguments={"number": 2}), []),
        (JobFilter(task=note, arguments={"number": 2}), ["n2"]),
        (JobFilter(older=3600), []),
        (JobFilter(newer=timedelta(hours=1)), ["n0", "n1", "n2", "late", "other"]),
    ],
)
async def test_jobs_are_found_by_what_they_are(
    client: Client, where: JobFilter, found: Sequence[str]
) -> None:
    await client.enqueue(note.options(key="n0"), 0)
    await client.enqueue(note.options(key="n1"), 1, tenant="b")
    await client.enqueue(note.options(key="n2"), 2)
    await client.enqueue(note.options(key="late", delay=60), 3, tenant="b")
    await client.enqueue(fail_first.options(key="other", delay=600), 1)
    assert await ids(client, where) == list(found)
    assert [job.job_id async for job in client.jobs.find(where)] == list(found)


async def test_pages_bring_each_job_once(client: Client) -> None:
    await client.enqueue_many([note.call(number) for number in range(5_000)])
    await client.zadd(QUEUE, {f"tie-{n:04}": 10_000_000_000_000 for n in range(1_500)})
    seen: list[str] = []
    after = ""
    while True:
        page = await client.jobs.list(limit=499, after=after)
        seen += [job.job_id for job in page.jobs]
        after = page.after
        if not after:
            break
        await client.zrem(QUEUE, page.jobs[-1].job_id)
    assert len(seen) == len(set(seen)) == 6_500
    assert {job.task for job in (await client.jobs.list(limit=500)).jobs} == {"note"}
    assert [job.task async for job in client.jobs.find()].count("note") == 4_990
    assert seen[-1] == "tie-1499"
    rare = JobFilter(arguments={0: 4_321})
    assert [job.args async for job in client.jobs.find(rare)] == [(4_321,)]


async def test_job_with_bytes_that_nobody_can_read_is_shown(client: Client) -> None:
    await client.enqueue(note.options(key="odd"), 1)
    await client.set(keys.job("odd"), b"\xff no job", px=60_000)
    shown = await client.jobs.show("odd")
    assert (shown.task, shown.args, shown.enqueued) == ("", (), None)
    assert "not a msgpack job" in shown.error
    await client.delete(keys.job("odd"))
    await cast("Any", client.hset(keys.job("odd"), "a", "b"))
    await client.expire(keys.job("odd"), 60)
    assert [job.job_id for job in (await client.jobs.list()).jobs] == ["odd"]
    assert (await client.jobs.cancel(JobFilter())).count == 1
    with pytest.raises(JobNotFound, match="has no job 'nobody'"):
        await client.jobs.show("nobody")


def test_filter_of_an_unknown_state_is_refused() -> None:
    with pytest.raises(ArgumentsError, match="states are queued, deferred"):
        JobFilter(states={"waiting"})


async def test_place_that_no_page_gave_is_refused(client: Client) -> None:
    with pytest.raises(ArgumentsError, match="not the `after` of a page"):
        await client.jobs.list(after="x y")


# Cancelling


async def test_who_waits_for_a_cancelled_job_hears_of_it(redis_url: str, client: Client) -> None:
    job = await client.enqueue(note, 1)
    async with runner.connect(redis_url) as service:
        waiting = asyncio.create_task(service.job(job.job_id).result(timeout=30))
        await wait_until(
            lambda: client.exists(keys.waiters(job.job_id)), description="somebody waits"
        )
        assert (await client.jobs.cancel(job.job_id)).count == 1
        with pytest.raises(JobCancelled, match="was cancelled before it ran"):
            await waiting
    with pytest.raises(JobCancelled):
        await job.result(timeout=1)
    left = {key.decode().partition(job.job_id)[0] for key in await client.keys("*")}
    assert left == {keys.RESULT}


async def test_stock_client_hears_of_it_too(redis_url: str) -> None:
    async with (
        stock_client(redis_url) as stock,
        runner.connect(redis_url, codec="pickle") as client,
    ):
        job = await stock.enqueue_job("note", 1)
        assert job is not None
        await client.jobs.cancel(job.job_id)
        with pytest.raises(Exception, match="was cancelled before it ran"):
            await job.result(timeout=1, poll_delay=0.01)


async def test_running_and_committing_jobs_are_left_alone(redis_url: str, client: Client) -> None:
    gate = Gate()
    job = await client.enqueue(wait_at)
    await client.zadd(QUEUE, {"committing": keys.FAR_OFF_MS})
    await client.set(keys.in_progress("committing"), keys.COMMITTING + "1-1", px=60_000)
    async with serving(redis_url, [wait_at], ctx={"gate": gate}):
        await gate.runs.wait()
        said = await client.jobs.cancel(JobFilter())
        assert (said.count, said.running, said.gone) == (0, 2, 0)
        said = await client.jobs.cancel([job.job_id, "nobody"])
        assert (said.count, said.running, said.gone) == (0, 1, 1)
        gate.opens.set()
        assert await job.result(timeout=10) == "passed"
        await client.zrem(QUEUE, "committing")


async def test_job_whose_lease_ran_out_a_moment_ago_is_left_alone(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(note, 1)
    async with raw(redis_url) as redis:
        rig = Rig(redis)
        await rig.lapse(*await rig.claim())
    assert (await client.jobs.cancel(job.job_id)).running == 1


async def test_every_job_is_run_or_cancelled_and_never_both(redis_url: str, client: Client) -> None:
    count = 2_000
    jobs = await client.enqueue_many([note.call(number) for number in range(count)])
    ran: list[int] = []
    async with serving(redis_url, [note], ctx={"ran": ran}, max_jobs=20):
        await wait_until(lambda: len(ran) > 50, description="some have run")
        said = await asyncio.gather(*(client.jobs.cancel(JobFilter(task=note)) for _ in range(3)))
        cancelled = sum(one.count for one in said)
        await wait_until(lambda: len(ran) + cancelled >= count, description="the others have run")
    assert cancelled > 0
    assert (len(ran), len(set(ran))) == (count - cancelled, count - cancelled)
    ends = await asyncio.gather(*(job.result(timeout=5) for job in jobs), return_exceptions=True)
    assert sum(isinstance(end, JobCancelled) for end in ends) == cancelled
    assert sorted(end for end in ends if isinstance(end, int)) == sorted(ran)


async def test_job_that_waits_for_another_try_is_cancelled_with_all_it_had(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(fail_first, 1)
    async with serving(redis_url, [fail_first]):
        await wait_until(
            lambda: client.exists(keys.errors(job.job_id)), description="it has failed once"
        )
    assert (await client.jobs.cancel(JobFilter(states={"retrying"}), keep_result=0)).count == 1
    assert await client.keys(f"*{job.job_id}*") == []


# Hurrying


async def test_deferred_and_retrying_jobs_run_now(redis_url: str, client: Client) -> None:
    ran: list[int] = []
    failed = await client.enqueue(fail_first, 7)
    await client.enqueue(note.options(delay=3600), 1)
    kept = await client.enqueue(note.options(delay=3600), 2, tenant="b")
    async with serving(redis_url, [note, fail_first], poll_delay=600, ctx={"ran": ran}):
        await wait_until(
            lambda: client.exists(keys.errors(failed.job_id)), description="it has failed once"
        )
        assert await client.jobs.retry_now(JobFilter(states={"retrying"})) == 1
        assert await failed.result(timeout=10) == 7
        assert await client.jobs.retry_now(JobFilter(arguments={0: 1})) == 1
        await wait_until(lambda: ran == [1], description="the deferred one has run")
        assert await client.jobs.retry_now([failed.job_id, "nobody"]) == 0
    assert await ids(client) == [kept.job_id]


async def test_running_due_and_parked_jobs_stay_where_they_are(
    redis_url: str, client: Client
) -> None:
    gate = Gate()
    await client.enqueue(wait_at)
    async with serving(redis_url, [wait_at], max_jobs=1, ctx={"gate": gate}):
        await gate.runs.wait()
        await client.enqueue(note.options(key="due"), 1)
        await client.zadd(QUEUE, {"parked": keys.FAR_OFF_MS})
        before = await client.zrange(QUEUE, 0, -1)
        assert await client.jobs.retry_now(JobFilter()) == 0
        assert await client.zrange(QUEUE, 0, -1) == before
        await client.zrem(QUEUE, "parked", "due")
        gate.opens.set()


# Purge


async def test_purge_empties_a_queue_and_tells_those_who_wait(
    redis_url: str, client: Client
) -> None:
    gate = Gate()
    running = await client.enqueue(wait_at)
    async with serving(redis_url, [wait_at], max_jobs=1, ctx={"gate": gate}):
        await gate.runs.wait()
        jobs = await client.enqueue_many([note.call(number) for number in range(3_000)])
        await client.set(keys.job(jobs[1].job_id), b"\xff no job", px=60_000)
        await client.enqueue(note.options(delay=600), 1)
        waiting = [asyncio.create_task(job.result(timeout=30)) for job in jobs[:3]]
        await wait_until(
            lambda: client.exists(*(keys.waiters(job.job_id) for job in jobs[:3])),
            description="somebody waits",
        )
        said = await client.jobs.purge()
        assert (said.count, said.running) == (3_001, 1)
        for waiter in waiting:
            with pytest.raises(JobCancelled):
                await waiter
        gate.opens.set()
        assert await running.result(timeout=10) == "passed"
    assert await client.keys("arq:job:*") == []
    assert len(await client.keys("arq:result:*")) == 1


async def test_jobs_of_another_queue_are_its_own(client: Client) -> None:
    await client.enqueue(note.options(queue="other", key="o"), 1)
    assert await ids(client) == []
    others = client.jobs.of("other")
    assert [job.job_id for job in (await others.list()).jobs] == ["o"]
    assert (await others.purge()).count == 1


async def test_empty_queue_is_fine(client: Client) -> None:
    assert await ids(client) == []
    assert (await client.jobs.purge()).count == 0
    assert await client.jobs.retry_now(JobFilter()) == 0
    assert (await client.jobs.list(limit=0)).jobs == []
