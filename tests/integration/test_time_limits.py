"""Time limits in the event loop, and jobs that do not heed their cancellation."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import Context, Outcome, SoftTimeLimit, keys, task, turns
from runner.errors import AttemptOver, JobExpired
from runner.events import JobEnded, JobStuck
from tests.engine import Rig, drain, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys("runner:held:*"),
    pytest.mark.lasting_tasks("?" * 32),
]

soon = task(timeout=30, soft_timeout=0.1)


@dataclass
class Stubborn:
    """A function that does not heed its cancellation, until it is let go."""

    opens: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: int = 0
    said: list[Any] = field(default_factory=list)

    async def __call__(self) -> None:
        while not self.opens.is_set():
            try:
                await self.opens.wait()
            except asyncio.CancelledError:
                self.cancelled += 1


@soon
async def tidy(_ctx: Context) -> str:
    try:
        await asyncio.Event().wait()
    except SoftTimeLimit:
        await asyncio.sleep(0)
        return "tidy"
    return "never"


@soon
async def late(_ctx: Context) -> None:
    await asyncio.Event().wait()


@soon
async def late_in_a_group(_ctx: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.Event().wait())
        await asyncio.Event().wait()


@soon
async def late_behind_a_group(ctx: Context) -> None:
    async def child() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ctx["said"].append("the child was cancelled")

    async with asyncio.TaskGroup() as group:
        group.create_task(child())


@soon
async def late_in_wait_for(ctx: Context) -> None:
    async def child() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ctx["said"].append("the child was cancelled")

    await asyncio.wait_for(child(), 60)


@soon
async def swallowed_by_what_it_awaits(ctx: Context) -> str:
    async def child() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ctx["said"].append("swallowed")
        return 1

    first = await asyncio.ensure_future(child())
    try:
        await asyncio.Event().wait()
    except SoftTimeLimit:
        return f"tidy {first}"
    return "never"


@soon
async def twice(ctx: Context) -> None:
    for _ in range(2):
        try:
            await asyncio.sleep(0.5)
        except SoftTimeLimit:
            ctx["said"].append("soft")
    ctx["said"].append("over")


@task(timeout=0.3, soft_timeout=0.1)
async def ignores_the_soft_limit(ctx: Context) -> None:
    try:
        await asyncio.Event().wait()
    except SoftTimeLimit:
        ctx["said"].append("soft")
        await asyncio.Event().wait()


@soon
async def own_timeout(ctx: Context) -> str:
    try:
        async with asyncio.timeout(0.1):
            await asyncio.Event().wait()
    except (TimeoutError, SoftTimeLimit) as exc:
        ctx["said"].append(type(exc))
    try:
        await asyncio.sleep(0.5)
    except (TimeoutError, SoftTimeLimit) as exc:
        ctx["said"].append(type(exc))
    return "over"


AGAIN = runner.RetryPolicy(retries=1, base=0, retry_on_timeout=True)


@task(timeout=30, soft_timeout=0.1, backoff=AGAIN)
async def late_once(ctx: Context) -> int:
    if ctx.attempt == 1:
        await asyncio.Event().wait()
    return ctx.attempt


@task(timeout=0.1, backoff=AGAIN)
async def stubborn(ctx: Context) -> None:
    await ctx["stubborn"]()
    for late in (ctx.db.commit(), insert(ctx)):
        try:
            await late
        except AttemptOver as exc:
            ctx["stubborn"].said.append(exc)


async def insert(ctx: Context) -> None:
    ctx.db.insert("t", id=1)


@task
async def stubborn_without_limit(ctx: Context) -> None:
    ctx["stubborn"].said.append("runs")
    await ctx["stubborn"]()


@task(timeout=0.1)
async def stubborn_child(ctx: Context) -> None:
    await asyncio.create_task(ctx["stubborn"](), name="x" * 32)


@task
async def nothing(_ctx: Context) -> int:
    return 1


@task(expires=3600, retries=2, backoff=runner.RetryPolicy(base=0))
async def fails_once(ctx: Context) -> int:
    if ctx.attempt == 1:
        raise ValueError("first")
    return ctx.attempt


TASKS: list[Any] = [
    *(tidy, late, late_in_a_group, late_behind_a_group, late_in_wait_for, twice),
    *(swallowed_by_what_it_awaits, ignores_the_soft_limit, own_timeout, stubborn),
    *(late_once, stubborn_without_limit, stubborn_child, nothing, fails_once),
]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as client:
        yield client


@pytest.fixture
async def hard() -> AsyncIterator[Stubborn]:
    hard = Stubborn()
    yield hard
    hard.opens.set()


async def test_soft_limit_lets_the_job_tidy_up(redis_url: str, client: runner.Client) -> None:
    async with serving(redis_url, TASKS):
        job = await client.enqueue(tidy)
        assert await job.result(timeout=10) == "tidy"


@pytest.mark.parametrize("function", [late, late_in_a_group, late_behind_a_group, late_in_wait_for])
async def test_soft_limit_that_escapes_ends_the_job_as_timed_out(
    redis_url: str, client: runner.Client, function: Any
) -> None:
    said: list[str] = []
    events: list[Any] = []
    async with serving(redis_url, TASKS, ctx={"said": said}, subscribers=[events.append]):
        job = await client.enqueue(function)
        with pytest.raises(TimeoutError, match=r"soft time limit of 0\.1 s"):
            await job.result(timeout=10)
    (end,) = [event for event in events if isinstance(event, JobEnded)]
    assert (end.outcome, end.attempt, end.has_letter) == (Outcome.TIMED_OUT, 1, True)
    if function in (late_behind_a_group, late_in_wait_for):
        assert said == ["the child was cancelled"]


async def test_soft_limit_comes_once(redis_url: str, client: runner.Client) -> None:
    said: list[str] = []
    async with serving(redis_url, TASKS, ctx={"said": said}):
        await (await client.enqueue(twice)).result(timeout=10)
    assert said == ["soft", "over"]


async def test_soft_limit_that_is_swallowed_elsewhere_comes_again(
    redis_url: str, client: runner.Client
) -> None:
    said: list[str] = []
    async with serving(redis_url, TASKS, ctx={"said": said}):
        job = await client.enqueue(swallowed_by_what_it_awaits)
        assert await job.result(timeout=10) == "tidy 1"
    assert said == ["swallowed"]


async def test_soft_limit_and_a_timeout_of_the_job_do_not_take_each_others_cancellation(
    redis_url: str, client: runner.Client
) -> None:
    said: list[Any] = []
    async with serving(redis_url, TASKS, ctx={"said": said}):
        jobs = [await client.enqueue(own_timeout) for _ in range(5)]
        assert [await job.result(timeout=10) for job in jobs] == ["over"] * 5
    assert said.count(SoftTimeLimit) == 5
    assert said.count(TimeoutError) == len(said) - 5


async def test_soft_limit_is_a_time_limit_for_the_retry_policy(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, TASKS):
        assert await (await client.enqueue(late_once)).result(timeout=10) == 2


async def test_hard_limit_follows_the_soft_one(redis_url: str, client: runner.Client) -> None:
    said: list[str] = []
    async with serving(redis_url, TASKS, ctx={"said": said}):
        job = await client.enqueue(ignores_the_soft_limit)
        with pytest.raises(TimeoutError, match=r"^$"):
            await job.result(timeout=10)
    assert said == ["soft"]


@pytest.mark.parametrize("function", [stubborn, stubborn_child])
async def test_job_that_swallows_its_cancellation_is_settled_without_its_function(
    redis_url: str, client: runner.Client, hard: Stubborn, function: Any
) -> None:
    events: list[Any] = []
    settings = {"ctx": {"stubborn": hard}, "subscribers": [events.append], "cancel_grace": 0.1}
    async with serving(redis_url, TASKS, max_jobs=1, **settings) as worker:
        job = await client.enqueue(function)
        with pytest.raises(TimeoutError):
            await job.result(timeout=10)
        assert worker.orphans == 1
        # Its slot is free, and its lease is over.
        assert await (await client.enqueue(nothing)).result(timeout=10) == 1
        assert not await client.exists(keys.in_progress(job.job_id))
        await wait_until(lambda: hard.cancelled == 2, description="it was cancelled again")
        hard.opens.set()
        await wait_until(lambda: worker.orphans == 0, description="it has ended")
    stuck = next(event for event in events if isinstance(event, JobStuck))
    assert (stuck.job_id, stuck.executor) == (job.job_id, "loop")
    assert stuck.where.startswith(__file__)
    ends = [event for event in events if isinstance(event, JobEnded)]
    assert [end.outcome for end in ends if end.job_id == job.job_id] == [Outcome.TIMED_OUT]
    if function is stubborn:
        assert [type(exc) for exc in hard.said] == [AttemptOver, AttemptOver]
        assert "await self.opens.wait()" in stuck.stack


async def test_aborted_job_that_does_not_heed_it_is_aborted_all_the_same(
    redis_url: str, client: runner.Client, hard: Stubborn
) -> None:
    settings = {"ctx": {"stubborn": hard}, "allow_abort_jobs": True, "cancel_grace": 0.1}
    async with serving(redis_url, TASKS, **settings) as worker:
        job = await client.enqueue(stubborn_without_limit)
        await wait_until(lambda: hard.said, description="it runs")
        assert await job.abort(timeout=10) is True
        assert worker.orphans == 1
        hard.opens.set()


async def test_job_that_lost_its_lease_and_does_not_heed_it_frees_its_slot(
    redis_url: str, client: runner.Client, hard: Stubborn
) -> None:
    settings = {"ctx": {"stubborn": hard}, "cancel_grace": 0.1, "lease": 1, "max_jobs": 1}
    async with serving(redis_url, TASKS, **settings) as worker:
        job = await client.enqueue(stubborn_without_limit)
        await wait_until(lambda: hard.said, description="it runs")
        # Somebody else has it now.
        await client.set(keys.in_progress(job.job_id), "r:other:1")
        await wait_until(lambda: worker.orphans == 1, description="it is given up")
        assert await (await client.enqueue(nothing)).result(timeout=10) == 1
        assert await client.get(keys.in_progress(job.job_id)) == b"r:other:1"
        hard.opens.set()
        await client.delete(keys.in_progress(job.job_id))


async def test_worker_closes_though_a_job_does_not_heed_it(
    redis_url: str, client: runner.Client, hard: Stubborn
) -> None:
    events: list[Any] = []
    settings = {"ctx": {"stubborn": hard}, "subscribers": [events.append], "cancel_grace": 0.1}
    async with serving(redis_url, TASKS, **settings):
        job = await client.enqueue(stubborn_without_limit)
        await wait_until(lambda: hard.said, description="it runs")
    (end,) = [event for event in events if isinstance(event, JobEnded)]
    assert (end.job_id, end.outcome) == (job.job_id, Outcome.HANDED_BACK)
    hard.opens.set()


async def test_of_too_many_orphans_the_oldest_is_driven_no_further(
    redis_url: str,
    client: runner.Client,
    hard: Stubborn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "ORPHANS_AT_MOST", 3)
    settings = {"ctx": {"stubborn": hard}, "cancel_grace": 0.05, "max_jobs": 10}
    async with serving(redis_url, TASKS, **settings) as worker:
        jobs = [await client.enqueue(stubborn) for _ in range(5)]
        for job in jobs:
            with pytest.raises(TimeoutError):
                await job.result(timeout=10)
        assert worker.orphans == 3
        hard.opens.set()
        await wait_until(lambda: worker.orphans == 0, description="the others have ended")
    assert len(hard.said) == 2 * 3


@pytest.mark.parametrize("way", ["plain", "deferred"])
async def test_job_expires_from_the_time_at_which_it_may_start(
    redis_url: str, client: runner.Client, way: str
) -> None:
    delay = 0.2 if way == "deferred" else None
    late = await client.enqueue(nothing.options(delay=delay, expires=0.1))
    rig = Rig(client)
    due_ms = await client.zscore(rig.queue, late.job_id)

    async def is_late() -> bool:
        return bool(await rig.server_ms() > due_ms + 150)

    await wait_until(is_late, description="it is too late to start")
    in_time = await client.enqueue(nothing.options(delay=delay, expires=60))
    await drain(redis_url, TASKS)
    with pytest.raises(JobExpired):
        await late.result(timeout=5)
    assert await in_time.result(timeout=5) == 1


async def test_job_that_has_started_does_not_expire(redis_url: str, client: runner.Client) -> None:
    """Expiry is before the first start: a second try is due whenever its policy says."""
    job = await client.enqueue(fails_once.options(expires=0.2))

    async def is_late(ctx: Any) -> None:
        if ctx["job_try"] == 1:
            await asyncio.sleep(0.3)

    await drain(redis_url, TASKS, on_job_end=is_late)
    assert await job.result(timeout=5) == 2
