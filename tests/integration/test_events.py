"""Every end is counted once by all: subscribers, history, metrics, and counters in Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import Cancel, Context, ManyContext, Retry, RetryPolicy, Snooze, chain, keys, task
from runner.events import Event, JobEnded, JobStarted
from runner.scripts import load
from tests.engine import Gate, raw, serving
from tests.integration.test_monitor import ask
from tests.proxy import proxied
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client
    from runner.worker import Worker

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.lasting_keys("runner:held:*", "runner:limits*"),
]

NOW = RetryPolicy(base=0, cap=0)
SEEN: list[str] = []


@task
async def fine(_ctx: Context, number: int = 0) -> int:
    return number


@task(retries=2, backoff=NOW)
async def ends(ctx: Context, how: str) -> None:
    if how == "retry" and ctx.attempt == 1:
        raise OSError("not yet")
    if how == "ask" and ctx.attempt == 1:
        raise Retry(defer=0)
    if how == "snooze" and not SEEN:
        SEEN.append(how)
        raise Snooze(0)
    if how == "cancel":
        raise Cancel("enough")
    if how == "fail":
        raise ValueError("as it should")


@task(timeout=0.05)
async def hangs(_ctx: Context) -> None:
    await asyncio.Event().wait()


@task
def in_thread(_ctx: Context) -> int:
    return 1


@task(executor="process")
def in_process(_ctx: Context) -> int:
    return 1


@task(batch=4, batch_wait=0.05)
async def together(_ctx: ManyContext, items: list[int]) -> list[Any]:
    return [ValueError("odd") if item % 2 else item for item in items]


@task(max_running=1)
async def alone(_ctx: Context) -> None:
    await asyncio.sleep(0.05)


ALL: list[Any] = [fine, ends, hangs, in_thread, in_process, together, alone]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


async def enqueue_all(client: Client) -> list[Any]:
    """Enqueue a job for each way to end; return those that can be waited for."""
    jobs: list[Any] = [await client.enqueue(fine, number) for number in range(10)]
    hows = ("succeed", "retry", "ask", "snooze", "cancel", "fail")
    jobs += [await client.enqueue(ends, how) for how in hows]
    jobs += [await client.enqueue(one) for one in (hangs, in_thread, in_process, alone, alone)]
    jobs += [await client.enqueue(together, number) for number in range(8)]
    jobs.append(await client.enqueue("nobody knows"))
    return jobs


async def is_over(worker: Worker, client: Client) -> bool:
    return not (await client.queue_stats()).queued and not worker.job_counter


def counted(events: list[Event]) -> Counter[str]:
    return Counter(event.outcome.value for event in events if isinstance(event, JobEnded))


async def told_by_metrics(worker: Worker) -> Counter[str]:
    status, text = await ask(worker, "/metrics")
    assert status == 200
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("runner_attempts_total{"):
            labels, _, value = line.rpartition(" ")
            found[labels.partition('outcome="')[2].partition('"')[0]] += int(float(value))
    return found


@pytest.mark.parametrize("cuts", [0, 3])
async def test_each_end_is_counted_once_by_all(redis_url: str, client: Client, cuts: int) -> None:
    """Also where Redis's answers are lost: to settlements and claims, and to the counts."""
    SEEN.clear()
    heard: list[Event] = []
    async with (
        proxied(redis_url) as wire,
        serving(
            wire.url, ALL, monitor=True, health_port=0, subscribers=[heard.append], lease=30
        ) as worker,
    ):
        await wait_until(worker.is_live, description="the worker runs")
        if cuts:
            wire.most_cuts = cuts
            wire.cut = load("cycle").sha.encode()
        jobs = await enqueue_all(client)
        flow: Any = await client.start(chain(fine.call(1), fine.s()))

        async def over() -> bool:
            return await is_over(worker, client)

        await asyncio.gather(
            *(job.result(timeout=40) for job in jobs),
            flow.result(timeout=40),
            return_exceptions=True,
        )
        if cuts:
            wire.most_cuts = wire.cuts + cuts
            wire.cut = load("history_add").sha.encode()
            more = [await client.enqueue(fine, number) for number in range(10)]
            await asyncio.gather(*(job.result(timeout=40) for job in more))
            await wait_until(
                lambda: wire.cuts == wire.most_cuts or not wire.cut, description="cut", timeout_s=30
            )
        await wait_until(over, description="all is over", timeout_s=40)
        expected = counted(heard)

        async def history() -> Any:
            return Counter((await client.history.last()).outcomes) == expected

        await wait_until(history, description="the history has all", timeout_s=20)
        assert await told_by_metrics(worker) == expected
        period = await client.history.last()
        by_task: Counter[str] = Counter()
        for found in (await client.history.tasks()).values():
            by_task.update(found.outcomes)
        stats = await client.queue_stats()
        finished = await client.history.finished(limit=1_000)
    assert by_task == expected
    final = [event for event in heard if isinstance(event, JobEnded) and event.is_final]
    assert Counter(job.job_id for job in finished) == Counter(event.job_id for event in final)
    assert period.ended == sum(expected.values())
    assert stats.succeeded == expected["succeeded"]
    assert stats.failed == len(final) - expected["succeeded"]
    assert stats.retried == expected["retried"]
    assert {"retried", "snoozed", "cancelled", "failed", "timed_out", "unknown_task", "parked"} <= (
        expected.keys()
    )
    started = [event for event in heard if isinstance(event, JobStarted)]
    ran = [event for event in heard if isinstance(event, JobEnded) and event.ran]
    assert Counter(e.job_id for e in started) == Counter(e.job_id for e in ran)


class Rude:
    """A subscriber and a watcher that raise at everything."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __call__(self, _event: Event) -> None:
        raise self._error

    def ended(self, _attempt: Any, _ending: Any) -> None:
        raise self._error

    def lost(self, _queue: str, _job_id: str) -> None:
        raise self._error


@pytest.mark.parametrize("error", [ValueError("rude"), asyncio.CancelledError()])
async def test_who_listens_and_raises_harms_no_job(
    redis_url: str, client: Client, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Event] = []
    rude = Rude(error)
    gate = Gate()

    @task
    async def waits(_ctx: Context) -> int:
        await gate()
        return 7

    async with (
        serving(redis_url, [fine, waits], monitor=True, subscribers=[rude, heard.append]) as worker,
        raw(redis_url) as redis,
    ):
        unwatch = worker.events.watch(rude)
        assert await (await client.enqueue(fine, 3)).result(timeout=10) == 3
        job = await client.enqueue(waits)
        await gate.runs.wait()
        await redis.set(keys.in_progress(job.job_id), "r:somebody else")
        gate.opens.set()

        async def told() -> Any:
            return (await client.history.last()).outcomes == {"succeeded": 1, "lost_lease": 1}

        await wait_until(told, description="both are counted")
        unwatch()
        assert len(worker.events.watchers) == 1
    assert counted(heard) == {"succeeded": 1, "lost_lease": 1}
    assert "failed on JobEnded" in caplog.text
    assert "failed on an end" in caplog.text
