"""Limits against a real Redis: what admits, delays, parks and releases."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import runner
from runner import Context, Outcome, RateLimit, RunningLimit, errors, keys, task
from runner.events import JobEnded, JobStarted
from runner.limits.gate import SWEEP_S
from runner.scripts import load
from tests.engine import Rig, done, drain, raw, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import ChaosServers

pytestmark = pytest.mark.lasting_keys(
    "runner:limits", "runner:gated", "runner:paused*", "runner:held:*"
)

QUEUE = keys.DEFAULT_QUEUE


@dataclass
class Log:
    """What jobs of a test did."""

    starts: list[tuple[str, Any]] = field(default_factory=list)
    running: Counter[Any] = field(default_factory=Counter)
    most: Counter[Any] = field(default_factory=Counter)
    opens: dict[Any, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    async def run(self, name: str, key: Any = None) -> None:
        """Begin, and wait until the key is let go."""
        self.starts.append((name, key))
        self.running[key] += 1
        self.most[key] = max(self.most[key], self.running[key])
        try:
            await self.opens[key].wait()
        finally:
            self.running[key] -= 1

    def order(self) -> list[str]:
        return [name for name, _ in self.starts]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    async with raw(redis_url) as client:
        yield client


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


def ends(worker: runner.Worker) -> list[JobEnded]:
    """Return the list into which the ends of attempts go."""
    found: list[JobEnded] = []
    worker.subscribe(lambda event: found.append(event) if isinstance(event, JobEnded) else None)
    return found


async def parked(client: runner.Client) -> int:
    return (await client.queue_stats()).parked


async def is_clean(redis: Any) -> bool:
    """Say whether no slot, place or parked job is left of any limit."""
    kinds = ("running", "parked", "parked-task", "reserved", "parked-tasks")
    for kind in kinds:
        async for _ in redis.scan_iter(f"runner:{kind}*"):
            return False
    return True


async def test_no_more_than_max_running_run_and_the_others_follow_in_order(
    redis_url: str, client: runner.Client, redis: Any, log: Log
) -> None:
    @task(name="count", max_running=2)
    async def count(_ctx: Context, name: str) -> None:
        await log.run(name)

    names = [str(n) for n in range(8)]
    async with serving(redis_url, [count], max_jobs=20) as worker:
        ended = ends(worker)
        await client.enqueue_many([count.call(name) for name in names])
        await wait_until(lambda: parked_is(client, 6), description="six are parked")
        await wait_until(lambda: len(log.starts) == 2, description="two run")
        assert {e.outcome for e in ended} == {Outcome.PARKED}
        assert {(e.limit, e.is_final, e.ran) for e in ended} == {("count.running", False, False)}
        assert worker.jobs_retried == 0
        log.opens[None].set()
        await wait_until(lambda: len(log.starts) == 8, description="all run")
    assert log.order() == names
    assert log.most[None] == 2
    assert await is_clean(redis)
    assert {e.attempt for e in ended} == {1}


async def parked_is(client: runner.Client, number: int) -> bool:
    return await parked(client) == number


async def test_each_value_of_the_key_has_slots_of_its_own(
    redis_url: str, client: runner.Client, redis: Any, log: Log
) -> None:
    @task(name="tenant", max_running=1, max_running_key="tenant_id")
    async def tenant(_ctx: Context, name: str, *, tenant_id: int = 7) -> None:
        await log.run(name, tenant_id)

    async with serving(redis_url, [tenant], max_jobs=20):
        calls = [tenant.call("a", tenant_id=1), tenant.call("b", tenant_id=1)]
        calls += [tenant.call("c", tenant_id=2), tenant.call("d"), tenant.call("e", tenant_id=7)]
        await client.enqueue_many(calls)
        await wait_until(lambda: parked_is(client, 2), description="two are parked")
        assert sorted(log.order()) == ["a", "c", "d"]
        info = await client.limits.get("tenant.running")
        assert {(b.value, b.used, b.parked) for b in info.buckets} == {
            *(("1", 1, 1), ("2", 1, 0), ("7", 1, 1)),
        }
        (of_one,) = (await client.limits.get("tenant.running", value=1)).buckets
        assert (of_one.used, of_one.parked) == (1, 1)
        log.opens[7].set()
        await wait_until(lambda: "e" in log.order(), description="its turn has come")
        assert "b" not in log.order()
        log.opens[1].set()
        log.opens[2].set()
        await wait_until(lambda: len(log.starts) == 5, description="all run")
    assert await is_clean(redis)


async def test_a_shared_limit_counts_the_jobs_of_all_its_tasks(
    redis_url: str, client: runner.Client, redis: Any, log: Log
) -> None:
    shared = RunningLimit("database", 2)

    @task(name="one", limits=[shared])
    async def one(_ctx: Context) -> None:
        await log.run("one")

    @task(name="two", limits=[shared])
    async def two(_ctx: Context) -> None:
        await log.run("two")

    async with serving(redis_url, [one, two], max_jobs=20):
        await client.enqueue_many([one.call(), one.call()])
        await wait_until(lambda: len(log.starts) == 2, description="both run")
        await client.enqueue_many([two.call(), two.call()])
        await wait_until(lambda: parked_is(client, 2), description="the others wait")
        log.opens[None].set()
        await wait_until(lambda: len(log.starts) == 4, description="all run")
    assert log.most[None] == 2
    assert await is_clean(redis)


async def test_several_limits_are_taken_all_or_none(
    redis_url: str, client: runner.Client, redis: Any, log: Log
) -> None:
    a, b = RunningLimit("a", 1), RunningLimit("b", 1)

    @task(name="only_a", limits=[a])
    async def only_a(_ctx: Context) -> None:
        await log.run("a", "a")

    @task(name="only_b", limits=[b])
    async def only_b(_ctx: Context) -> None:
        await log.run("b", "b")

    @task(name="both", limits=[a, b])
    async def both(_ctx: Context) -> None:
        await log.run("both", "both")

    async with serving(redis_url, [only_a, only_b, both], max_jobs=20):
        await client.enqueue(only_b)
        await wait_until(lambda: log.order() == ["b"], description="b has its slot")
        await client.enqueue(both)
        await wait_until(lambda: parked_is(client, 1), description="both needs b's slot")
        # It holds nothing while it waits: the slot of a is free.
        await client.enqueue(only_a)
        await wait_until(lambda: log.order() == ["b", "a"], description="a has its slot")
        log.opens["b"].set()
        await wait_until(lambda: parked_under(redis, "a"), description="it waits for a now")
        assert await redis.zcard("runner:running:b") == 0
        log.opens["a"].set()
        await wait_until(lambda: len(log.starts) == 3, description="both run")
        log.opens["both"].set()
        await wait_until(lambda: queue_is_empty(client), description="all have ended")
    assert await is_clean(redis)


async def parked_under(redis: Any, bucket: str) -> int:
    return int(await redis.zcard(f"runner:parked:{bucket}"))


async def queue_is_empty(client: runner.Client) -> bool:
    return (await client.queue_stats()).queued == 0


async def test_a_rate_spaces_the_refused_and_puts_newcomers_behind_them(
    redis_url: str, client: runner.Client, redis: Any
) -> None:
    times: list[tuple[float, str]] = []

    @task(name="rated", rate="20/s")
    async def rated(_ctx: Context, name: str) -> None:
        times.append((time.monotonic(), name))

    async with serving(redis_url, [rated], max_jobs=100) as worker:
        ended = ends(worker)
        await client.enqueue_many([rated.call("old") for _ in range(30)])
        await wait_until(lambda: len(times) == 20, description="a window's worth runs")
        await client.enqueue(rated, "new")
        await wait_until(lambda: len(times) == 31, description="all run")
    assert times[-1][1] == "new"
    delays = [e.delay_s for e in ended if e.outcome is Outcome.DELAYED and e.delay_s]
    assert len(delays) >= 11
    assert max(delays) > 0.9
    starts = sorted(at for at, _ in times)
    assert all(after - before > 0.97 for before, after in zip(starts, starts[20:], strict=False))
    assert await is_clean(redis)


async def test_places_that_nobody_takes_up_hold_nobody_up(
    redis_url: str, client: runner.Client, redis: Any
) -> None:
    ran: list[str] = []

    @task(name="rated", rate="10/s")
    async def rated(_ctx: Context, name: str) -> None:
        ran.append(name)

    async with serving(redis_url, [rated], max_jobs=300):
        await client.enqueue_many([rated.call("lost") for _ in range(200)])
        await wait_until(
            lambda: reserved_is(client, "rated.rate", 190), description="they have places"
        )
        members = await redis.zrange("runner:reserved:rated.rate", 0, -1)
        await redis.zrem(QUEUE, *(member.split(b"\n")[2] for member in members))
        await client.enqueue_many([rated.call("late") for _ in range(15)])
        # Their places lie 20 s ahead; without the lost ones they take two.
        await wait_until(lambda: ran.count("late") == 15, description="they run", timeout_s=8)


async def reserved_is(client: runner.Client, limit: str, number: int) -> bool:
    found = {info.name: info.reserved for info in await client.limits.list()}
    return found.get(limit, 0) >= number


async def test_a_bucket_lets_a_burst_through(redis_url: str, client: runner.Client) -> None:
    times: list[float] = []

    @task(name="bursty", rate="10/s", burst=5, weight=1)
    async def bursty(_ctx: Context) -> None:
        times.append(time.monotonic())

    async with serving(redis_url, [bursty], max_jobs=50):
        await client.enqueue_many([bursty.call() for _ in range(10)])
        await wait_until(lambda: len(times) == 10, description="all run")
    assert times[9] - times[0] > 0.45
    assert times[9] - times[4] > 0.45


async def test_a_killed_workers_job_has_its_slot_still(redis: Any) -> None:
    rig = Rig(redis)
    limit = ("running", "l", "l", 1)
    first = await rig.claim_one("first")
    assert await admit(redis, first, limit) == [1, 0]
    await rig.lapse(first)
    (again,) = await rig.claim()
    assert (again.job_id, again.crashes) == ("first", 1)
    assert await admit(redis, first, limit) == [0]  # the dead worker asks late
    assert await admit(redis, again, limit) == [1, 0]
    second = await rig.claim_one("second")
    assert (await admit(redis, second, limit))[0] == 3


async def admit(redis: Any, claimed: Any, *limits: tuple[Any, ...]) -> list[Any]:
    (answer,) = await load("admit").call(
        redis,
        keys=[claimed.queue, keys.held(claimed.queue)],
        args=[
            *(claimed.job_id, claimed.token, claimed.attempt, "t"),
            msgspec.msgpack.encode(limits),
        ],
    )
    return list(answer)


@pytest.mark.parametrize("why", ["purged", "ended by a stock worker", "committing"])
async def test_a_slot_whose_job_is_gone_is_found_when_the_limit_is_full(
    redis: Any, why: str
) -> None:
    rig = Rig(redis)
    limit = ("running", "l", "l", 1)
    gone = await rig.claim_one("gone")
    assert await admit(redis, gone, limit) == [1, 0]
    match why:
        case "purged":
            await redis.zrem(QUEUE, "gone")
        case "committing":
            await redis.set(keys.in_progress("gone"), "committing:1-1")
        case _:
            await redis.zrem(QUEUE, "gone")
            await redis.delete(keys.in_progress("gone"), keys.job("gone"))
    # Nobody looked at the slot for a second.
    await redis.zadd("runner:running:l", {f"{QUEUE}\ngone": 1})
    after = await rig.claim_one("after")
    assert await admit(redis, after, limit) == [1, 0]


async def test_a_sweep_releases_who_waits_for_a_job_that_is_gone(redis: Any) -> None:
    rig = Rig(redis)
    limit = ("running", "l", "l", 1)
    gone = await rig.claim_one("gone")
    await admit(redis, gone, limit)
    waits = await rig.claim_one("waits")
    assert (await admit(redis, waits, limit))[0] == 3
    await redis.zrem(QUEUE, "gone")
    await redis.zadd("runner:running:l", {f"{QUEUE}\ngone": 1})
    await redis.hset(keys.LIMITS_DECLARED, "l", '{"kind":"running","count":1}')
    await redis.expire(keys.LIMITS_DECLARED, 60)
    turn_ms = int(SWEEP_S * 1000)
    assert await load("limit_sweep").call(redis, keys=[keys.LIMIT_TURN], args=[turn_ms]) == 1
    assert await load("limit_sweep").call(redis, keys=[keys.LIMIT_TURN], args=[turn_ms]) == 0
    (released,) = await rig.claim()
    assert released.job_id == "waits"
    assert await admit(redis, released, limit) == [1, 0]


async def test_a_slot_is_given_up_once(redis: Any) -> None:
    """A settlement that is sent again finds the slot given to somebody else, and leaves it."""
    rig = Rig(redis)
    limit = ("running", "l", "l", 1)
    first = await rig.claim_one("first")
    await admit(redis, first, limit)
    for name in ("second", "third"):
        assert (await admit(redis, await rig.claim_one(name), limit))[0] == 3
    settlement = done(first)
    settlement.slots = msgspec.msgpack.encode([("l", 1)])
    for _ in range(2):
        await rig.broker.cycle(
            redis, token="r:test:x", settlements=[settlement], limit=0, batch="b", lane="lane"
        )
    assert await redis.zrange("runner:running:l", 0, -1) == [f"{QUEUE}\nsecond".encode()]
    assert await parked_under(redis, "l") == 1


async def test_a_parked_job_can_be_aborted(
    redis_url: str, client: runner.Client, redis: Any, log: Log
) -> None:
    @task(name="count", max_running=1)
    async def count(_ctx: Context, name: str) -> None:
        await log.run(name)

    async with serving(redis_url, [count], allow_abort_jobs=True):
        await client.enqueue(count, "first")
        await wait_until(lambda: log.order() == ["first"], description="it runs")
        waits = await client.enqueue(count, "second")
        third = await client.enqueue(count, "third")
        await wait_until(lambda: parked_is(client, 2), description="the others are parked")
        assert await waits.status() is runner.JobStatus.deferred
        assert await waits.abort(timeout=10)
        log.opens[None].set()
        await third.result(timeout=10)
    assert log.order() == ["first", "third"]
    assert await is_clean(redis)


async def test_more_room_releases_the_parked_at_once_and_less_admits_nobody(
    redis_url: str, client: runner.Client, redis: Any, log: Log
) -> None:
    @task(name="count", max_running=1)
    async def count(_ctx: Context, name: str) -> None:
        await log.run(name, name)

    async with serving(redis_url, [count], max_jobs=20):
        await client.enqueue_many([count.call(str(n)) for n in range(6)])
        await wait_until(lambda: parked_is(client, 5), description="five are parked")
        info = await client.limits.set("count.running", max_running=4)
        assert (str(info.rule), str(info.declared), info.is_set) == ("4 at once", "1 at once", True)
        await wait_until(lambda: len(log.starts) == 4, description="four run")
        await client.limits.set("count.running", max_running=2)
        log.opens["0"].set()
        log.opens["1"].set()
        await wait_until(lambda: running_is(client, 2), description="two have ended")
        assert len(log.starts) == 4
        log.opens["2"].set()
        await wait_until(lambda: len(log.starts) == 5, description="one more runs")
        back = await client.limits.clear("count.running")
        assert back is not None
        assert not back.is_set
        for n in range(6):
            log.opens[str(n)].set()
        await wait_until(lambda: queue_is_empty(client), description="all have ended")
    assert await is_clean(redis)


async def running_is(client: runner.Client, number: int) -> bool:
    return (await client.limits.get("count.running")).used == number


async def test_a_limit_can_be_set_on_a_task_that_declares_none(
    redis_url: str, client: runner.Client, redis: Any, log: Log
) -> None:
    @task(name="free")
    async def free(_ctx: Context, tenant_id: int) -> None:
        await log.run("free", tenant_id)

    async with serving(redis_url, [free], max_jobs=20):
        await client.limits.set(task="free", max_running=1, key="tenant_id")
        await client.enqueue_many([free.call(n % 2) for n in range(6)])
        await wait_until(lambda: parked_is(client, 4), description="one of each tenant runs")
        (info,) = await client.limits.list()
        assert (info.name, info.task, info.declared, info.key) == (
            *("free.running", "free", None, "tenant_id"),
        )
        assert await client.limits.clear("free.running") is None
        await wait_until(lambda: len(log.starts) == 6, description="all run at once")
        log.opens[0].set()
        log.opens[1].set()
        await wait_until(lambda: queue_is_empty(client), description="all have ended")
        assert not await redis.exists(keys.GATED, keys.LIMITS)


async def test_a_limit_for_each_value_of_no_parameter_is_one_for_all(
    redis_url: str, client: runner.Client, log: Log
) -> None:
    @task(name="free")
    async def free(_ctx: Context, tenant_id: int) -> None:
        await log.run("free", tenant_id)

    async with serving(redis_url, [free], max_jobs=20):
        await client.limits.set(task="free", max_running=1, key="tenant")
        first, _ = [await client.enqueue(free, number) for number in (1, 2)]
        await wait_until(lambda: parked_is(client, 1), description="one runs, one waits")
        log.opens[1].set()
        log.opens[2].set()
        await first.result(timeout=10)
        await wait_until(lambda: queue_is_empty(client), description="all have ended")
        await client.limits.clear("free.running")
        assert await client.dead.count() == 0


async def test_a_rate_that_is_raised_brings_the_delayed_forward(
    redis_url: str, client: runner.Client
) -> None:
    ran: list[int] = []

    @task(name="slow", rate="2/m")
    async def slow(_ctx: Context, number: int) -> None:
        ran.append(number)

    async with serving(redis_url, [slow], max_jobs=50):
        await client.enqueue_many([slow.call(n) for n in range(40)])
        await wait_until(lambda: reserved_is(client, "slow.rate", 38), description="they wait")
        await client.limits.set("slow.rate", rate="100/s", burst=10)
        await wait_until(lambda: len(ran) == 40, description="all run")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "nothing", "rate": "1/s"}, "no worker has declared"),
        ({"name": "count.runing", "max_running": 2}, "did you mean 'count.running'"),
        ({"name": "count.running", "rate": "1/s"}, "is one of jobs at once"),
        ({"name": "count.running"}, "give either rate or max_running"),
        ({"rate": "1/s"}, "give either the name of a limit or task="),
        ({"name": "count.running", "max_running": 0}, "1 or more"),
        ({"name": "count.running", "max_running": 2, "key": "x"}, "the code says"),
        ({"task": "t", "rate": "fast"}, "a rate is a text"),
        ({"task": "t", "max_running": 1, "burst": 2}, "burst goes with a rate"),
    ],
)
async def test_what_cannot_be_set_says_why(
    redis_url: str, client: runner.Client, given: dict[str, Any], message: str
) -> None:
    @task(name="count", max_running=1)
    async def count(_ctx: Context) -> None: ...

    async with serving(redis_url, [count]):
        await wait_until(lambda: client.exists(keys.LIMITS_DECLARED), description="it is declared")
        with pytest.raises(errors.LimitError, match=message):
            await client.limits.set(**given)


async def test_a_paused_queue_gives_no_job_out_and_settles(
    redis_url: str, client: runner.Client, redis: Any, log: Log
) -> None:
    @task(name="work")
    async def work(_ctx: Context, name: str) -> None:
        await log.run(name)

    async with serving(redis_url, [work], poll_delay=5, lease=60):
        first = await client.enqueue(work, "first")
        await wait_until(lambda: log.order() == ["first"], description="it runs")
        assert await client.pause(queue=QUEUE)
        assert not await client.pause(queue=QUEUE)
        assert (await client.paused()).queues == (QUEUE,)
        second = await client.enqueue(work, "second")
        log.opens[None].set()
        await first.result(timeout=10)
        assert log.order() == ["first"]
        assert await client.resume(queue=QUEUE)
        await second.result(timeout=4)  # woken, before its next poll
    assert (await client.paused()).queues == ()
    assert not await redis.exists(keys.paused(QUEUE))


async def test_a_paused_tasks_jobs_are_parked_and_come_back_in_order(
    redis_url: str, client: runner.Client, redis: Any
) -> None:
    ran: list[str] = []

    @task(name="rest")
    async def rest(_ctx: Context, name: str) -> None:
        ran.append(name)

    @task(name="other")
    async def other(_ctx: Context) -> None:
        ran.append("other")

    names = [str(n) for n in range(250)]
    async with serving(redis_url, [rest, other], max_jobs=50, poll_delay=5, lease=60) as worker:
        ended = ends(worker)
        assert await client.pause(task="rest")
        await client.enqueue_many([rest.call(name) for name in names])
        await (await client.enqueue(other)).result(timeout=10)
        await wait_until(lambda: parked_is(client, 250), description="they are parked")
        assert ran == ["other"]
        assert {(e.outcome, e.limit) for e in ended if e.task == "rest"} == {(Outcome.PARKED, "")}
        assert (await client.paused()).tasks == ("rest",)
        assert await client.resume(task="rest")
        await wait_until(lambda: len(ran) == 251, description="all run", timeout_s=4)
    assert ran[1:] == names
    assert not await redis.exists(keys.GATED)
    assert await is_clean(redis)


async def test_a_burst_worker_ends_when_only_paused_work_is_left(
    redis_url: str, client: runner.Client
) -> None:
    ran: list[str] = []

    @task(name="rest")
    async def rest(_ctx: Context) -> None:
        ran.append("rest")

    @task(name="other")
    async def other(_ctx: Context) -> None:
        ran.append("other")

    await client.pause(task="rest")
    await client.enqueue_many([rest.call(), other.call()])
    await drain(redis_url, [rest, other])
    assert ran == ["other"]
    await client.pause(queue=QUEUE)
    await client.resume(task="rest")
    await drain(redis_url, [rest, other])
    assert ran == ["other"]
    await client.resume(queue=QUEUE)
    await drain(redis_url, [rest, other])
    assert ran == ["other", "rest"]


async def test_a_pause_gives_up_the_slot_that_a_job_was_promised(redis: Any) -> None:
    rig = Rig(redis)
    limit = ("running", "l", "l", 1)
    first = await rig.claim_one("first")
    assert await admit(redis, first, limit) == [1, 0]
    await redis.sadd(keys.PAUSED_TASKS, "t")
    await rig.lapse(first)
    (again,) = await rig.claim()
    assert (await admit(redis, again, limit))[0] == 3
    assert not await redis.exists("runner:running:l")


async def test_a_retry_gives_its_slot_up_meanwhile(
    redis_url: str, client: runner.Client, redis: Any
) -> None:
    ran: list[str] = []

    @task(name="again", max_running=1)
    async def again(ctx: Context, name: str) -> None:
        ran.append(name)
        if ctx.attempt == 1 and name == "first":
            raise runner.Retry(defer=0.5)

    async with serving(redis_url, [again]):
        await client.enqueue(again, "first")
        await wait_until(lambda: ran == ["first"], description="it ran once")
        await client.enqueue(again, "second")
        await wait_until(lambda: len(ran) == 3, description="all run")
    assert ran == ["first", "second", "first"]
    assert await is_clean(redis)


@pytest.mark.lasting_keys("runner:writer", "runner:units")
async def test_a_job_that_commits_has_given_its_slot_up(
    redis_url: str, client: runner.Client, redis: Any
) -> None:
    """No writer runs, so the job is committing; its slot is free from its submission on."""
    ran: list[str] = []

    @task(name="writes", max_running=1)
    async def writes(ctx: Context, name: str) -> None:
        ran.append(name)
        ctx.db.execute("SELECT 1")

    async with serving(
        redis_url, [writes], database_url="postgresql://127.0.0.1:1/none", writer=False
    ):
        await client.enqueue_many([writes.call("one"), writes.call("two")])
        await wait_until(lambda: len(ran) == 2, description="both run")
        await wait_until(lambda: is_clean(redis), description="no slot is left")


async def test_a_refused_job_begins_no_hook_and_costs_no_try(
    redis_url: str, client: runner.Client
) -> None:
    heard: list[str] = []

    async def hook(_ctx: dict[Any, Any]) -> None:
        heard.append("hook")

    @task(name="rated", rate="1/100ms", retries=0)
    async def rated(ctx: Context) -> int:
        return ctx.attempt

    async with serving(
        redis_url, [rated], on_job_start=hook, on_job_end=hook, after_job_end=hook, max_jobs=20
    ) as worker:
        started: list[Any] = []
        worker.subscribe(
            lambda event: started.append(event) if isinstance(event, JobStarted) else None
        )
        jobs = await client.enqueue_many([rated.call() for _ in range(5)])
        attempts = [await job.result(timeout=10) for job in jobs]
        await wait_until(lambda: len(heard) >= 15, description="all hooks have run")
    assert attempts == [1] * 5
    assert len(heard) == 15
    assert len(started) == 5


async def test_limits_of_one_name_that_differ_are_refused() -> None:
    @task(name="one", limits=[RateLimit("mail", "1/s")])
    async def one(_ctx: Context) -> None: ...

    @task(name="two", limits=[RateLimit("mail", "2/s")])
    async def two(_ctx: Context) -> None: ...

    with pytest.raises(errors.LimitError, match="'mail'"):
        runner.Worker([one, two])


async def test_a_parked_job_whose_payload_expired_ends_without_a_slot(redis: Any) -> None:
    rig = Rig(redis)
    limit = ("running", "l", "l", 1)
    first = await rig.claim_one("first")
    assert await admit(redis, first, limit) == [1, 0]
    for name in ("gone", "next"):
        assert (await admit(redis, await rig.claim_one(name), limit))[0] == 3
    await redis.delete(keys.job("gone"))
    settlement = done(first)
    settlement.slots = msgspec.msgpack.encode([("l", 1)])
    await rig.settle(settlement)
    released = {claimed.job_id: claimed for claimed in await rig.claim()}
    assert set(released) == {"gone", "next"}
    assert released["gone"].payload is None
    assert await redis.zrange("runner:running:l", 0, -1) == [f"{QUEUE}\nnext".encode()]


async def test_a_question_that_is_asked_again_takes_no_second_slot(redis: Any) -> None:
    """Its answer was lost; the job is still this worker's, and has its slot."""
    rig = Rig(redis)
    limit = ("running", "l", "l", 2)
    first = await rig.claim_one("first")
    for _ in range(2):
        assert await admit(redis, first, limit) == [1, 0]
    assert await redis.zcard("runner:running:l") == 1
    # A refusal whose answer was lost has given the job back: it is lost here.
    await admit(redis, await rig.claim_one("second"), limit)
    third = await rig.claim_one("third")
    assert (await admit(redis, third, limit))[0] == 3
    assert await admit(redis, third, limit) == [0]


async def test_a_bad_key_stops_its_own_jobs_and_no_others(
    redis_url: str, client: runner.Client, redis: Any
) -> None:
    ran: list[str] = []

    @task(name="bad", rate="10/s")
    async def bad(_ctx: Context) -> None:
        ran.append("bad")

    @task(name="good", rate="10/s")
    async def good(_ctx: Context) -> None:
        ran.append("good")

    await redis.set("runner:window:bad.rate", "no list", ex=60)
    async with serving(redis_url, [bad, good]) as worker:
        ended = ends(worker)
        await client.enqueue_many([bad.call(), good.call()])
        await wait_until(lambda: "good" in ran, description="the other runs")
        await wait_until(lambda: handed_back(ended), description="it is handed back")
        await redis.delete("runner:window:bad.rate")
        await wait_until(lambda: "bad" in ran, description="it runs")


def handed_back(ended: list[JobEnded]) -> bool:
    return any(e.outcome is Outcome.HANDED_BACK and e.task == "bad" for e in ended)


async def test_a_limit_that_no_worker_declares_any_more_is_forgotten(
    client: runner.Client, redis: Any
) -> None:
    old = '{"kind":"running","count":1,"period_us":0,"burst":0,"key":null,"seen_ms":"1000"}'
    await redis.hset(keys.LIMITS_DECLARED, mapping={"old": old, "new": old.replace("1000", "9e15")})
    await redis.expire(keys.LIMITS_DECLARED, 60)
    await client.limits.set("old", max_running=3)
    await load("limit_sweep").call(redis, keys=[keys.LIMIT_TURN], args=[1000])
    assert [info.name for info in await client.limits.list()] == ["new", "old"]
    assert (await client.limits.set("old", max_running=2)).declared is None
    assert await client.limits.clear("old") is None
    assert [info.name for info in await client.limits.list()] == ["new"]


async def sweep(redis: Any) -> int:
    """Look for slots whose jobs are gone, whoever's turn it is."""
    await redis.delete(keys.LIMIT_TURN)
    answer: int = await load("limit_sweep").call(redis, keys=[keys.LIMIT_TURN], args=[60_000])
    return answer


async def park_all(redis: Any, rig: Rig, limit: tuple[Any, ...], *job_ids: str) -> None:
    """Enqueue jobs and let them be parked."""
    await rig.put(*job_ids)
    for claimed in await rig.claim(limit=len(job_ids)):
        assert (await admit(redis, claimed, limit))[0] == 3


OLD = '{"kind":"running","count":1,"period_us":0,"burst":0,"key":null,"seen_ms":"1000"}'


@pytest.mark.parametrize("is_set", [False, True])
async def test_a_limit_that_left_the_code_releases_who_is_parked(redis: Any, is_set: bool) -> None:
    rig = Rig(redis)
    limit = ("running", "l", "l", 1)
    assert await admit(redis, await rig.claim_one("runs"), limit) == [1, 0]
    names = [f"{number:03}" for number in range(250)]
    await park_all(redis, rig, limit, *names)
    await redis.hset(keys.LIMITS_DECLARED, "l", OLD)
    await redis.expire(keys.LIMITS_DECLARED, 60)
    if is_set:  # by its name: nobody has it in the code
        await redis.hset(keys.LIMITS, "l", '{"name":"l","kind":"running","count":1}')
    answers = []
    while (answer := await sweep(redis)) == 2:
        answers.append(answer)
    assert len(answers) == 3
    assert [claimed.job_id for claimed in await rig.claim(limit=300)] == names
    assert not await redis.exists("runner:parked:l")


async def test_a_limit_on_a_task_holds_without_anybodys_code(redis: Any) -> None:
    rig = Rig(redis)
    limit = ("running", "t.running", "t.running", 0)
    definition = '{"name":"t.running","kind":"running","count":1,"task":"t"}'
    await redis.hset(keys.LIMITS, "t.running", definition)
    await redis.hset(keys.LIMITS_DECLARED, "t.running", OLD)
    await redis.expire(keys.LIMITS_DECLARED, 60)
    assert await admit(redis, await rig.claim_one("runs"), limit) == [1, 0]
    await park_all(redis, rig, limit, "waits")
    assert await sweep(redis) == 1
    assert await rig.claim() == []


async def test_a_rate_that_left_the_code_releases_who_waits_for_a_time(redis: Any) -> None:
    rig = Rig(redis)
    limit = ("window", "l", "l", 1, 3_600_000_000, 0, 1)
    assert await admit(redis, await rig.claim_one("first"), limit) == [1, 0]
    assert (await admit(redis, await rig.claim_one("second"), limit))[0] == 2
    old = OLD.replace("running", "window").replace('"period_us":0', '"period_us":3600000000')
    await redis.hset(keys.LIMITS_DECLARED, "l", old)
    await redis.expire(keys.LIMITS_DECLARED, 60)
    await sweep(redis)
    assert [claimed.job_id for claimed in await rig.claim()] == ["second"]


async def test_a_worker_without_limits_releases_what_others_parked(
    redis_url: str, redis: Any, client: runner.Client
) -> None:
    """The last code that had a limit is gone, and its jobs are not."""
    ran: list[str] = []

    @task(name="free", max_running=1)
    async def limited(_ctx: Context) -> None: ...

    @task(name="free")
    async def free(_ctx: Context) -> None:
        ran.append("free")

    rig = Rig(redis)
    spec = ("running", "free.running", "free.running", 1)
    holder = await rig.claim_one("holder")
    assert await admit(redis, holder, spec) == [1, 0]
    await client.enqueue(limited)
    (claimed,) = await rig.claim()
    assert (await admit(redis, claimed, spec))[0] == 3
    await redis.hset(keys.LIMITS_DECLARED, "free.running", OLD)
    await redis.expire(keys.LIMITS_DECLARED, 60)
    async with serving(redis_url, [free]):
        await wait_until(lambda: ran, description="it runs")


async def test_slots_are_not_promised_to_a_queue_that_rests(redis: Any) -> None:
    """Others share the limit, and would wait for as long as that queue is paused."""
    resting, rig = Rig(redis, queue="resting"), Rig(redis)
    limit = ("running", "l", "l", 1)
    first = await rig.claim_one("first")
    assert await admit(redis, first, limit) == [1, 0]
    await park_all(redis, resting, limit, "rests")
    await park_all(redis, rig, limit, "waits")
    await redis.set(keys.paused("resting"), "1")
    settlement = done(first)
    settlement.slots = msgspec.msgpack.encode([("l", 1)])
    await rig.settle(settlement)
    (claimed,) = await rig.claim()
    assert claimed.job_id == "waits"
    assert await admit(redis, claimed, limit) == [1, 0]
    # When its queue goes on, it asks again.
    await redis.delete(keys.paused("resting"))
    (claimed,) = await resting.claim()
    assert (await admit(redis, claimed, limit))[0] == 3


async def test_a_slot_is_taken_from_a_job_whose_queue_was_paused(redis: Any) -> None:
    resting, rig = Rig(redis, queue="resting"), Rig(redis)
    limit = ("running", "l", "l", 1)
    first = await rig.claim_one("first")
    assert await admit(redis, first, limit) == [1, 0]
    await park_all(redis, resting, limit, "rests")
    settlement = done(first)
    settlement.slots = msgspec.msgpack.encode([("l", 1)])
    await rig.settle(settlement)  # the slot is promised to the job that rests
    await redis.set(keys.paused("resting"), "1")
    # Nobody looked at the slot for a second.
    await redis.zadd("runner:running:l", {"resting\nrests": 1})
    assert await admit(redis, await rig.claim_one("waits"), limit) == [1, 0]


async def test_a_sweep_keeps_what_is_parked_on_its_list(redis: Any) -> None:
    rig = Rig(redis)
    limit = ("running", "l", "l", 1)
    assert await admit(redis, await rig.claim_one("runs"), limit) == [1, 0]
    await park_all(redis, rig, limit, "waits")
    await redis.hset(keys.LIMITS_DECLARED, "l", OLD.replace("1000", "9e15"))
    await redis.expire(keys.LIMITS_DECLARED, 60)
    await redis.pexpire("runner:parked:l", 60_000)
    await sweep(redis)
    assert await redis.pttl("runner:parked:l") > 29 * 24 * 3_600_000


async def test_a_sweep_forgets_hundreds_of_empty_buckets(redis: Any) -> None:
    await redis.zadd("runner:limit-buckets:l", {f"l[{number}]": 1 for number in range(450)})
    await redis.expire("runner:limit-buckets:l", 60)
    await redis.hset(keys.LIMITS_DECLARED, "l", OLD.replace("1000", "9e15"))
    await redis.expire(keys.LIMITS_DECLARED, 60)
    await sweep(redis)
    assert not await redis.exists("runner:limit-buckets:l")


async def test_a_rate_that_is_raised_brings_near_places_together(redis: Any) -> None:
    """The first of them is no later than it was: they lie too far apart."""
    rig = Rig(redis)
    limit = ("window", "l", "l", 10, 100_000_000, 0, 1)
    await rig.put(*(f"{number:03}" for number in range(100)))
    for claimed in await rig.claim(limit=100):
        await admit(redis, claimed, limit)
    names = await redis.zrange("runner:reserved:l", 0, -1)
    ids = [name.decode().split("\n")[2] for name in names]
    soon = await rig.server_ms() + 100
    places = {job_id: soon + 10_000 * index for index, job_id in enumerate(ids)}
    await redis.zadd(QUEUE, places)
    await redis.zadd("runner:reserved:l", dict(zip(names, places.values(), strict=True)))
    raised = '{"name":"l","kind":"window","count":1000,"period_us":100000000,"burst":0}'
    await redis.hset(keys.LIMITS, "l", raised)
    await load("limit_apply").call(
        redis, keys=[keys.limit_buckets("l")], args=["window", "l", 0, 100_000_000, 0, 10]
    )
    pulled = await redis.zrange("runner:reserved:l", 0, -1, withscores=True)
    assert [name for name, _ in pulled] == names
    assert pulled[49][1] < soon + 100_000, "and not after 490 s"
    assert pulled[50][1] == pytest.approx(places[ids[50]], abs=1), "it follows with admissions"
    for job_id, (_, score) in zip(ids, pulled, strict=True):
        assert await redis.zscore(QUEUE, job_id) == pytest.approx(score, abs=1)


async def test_a_bad_key_of_one_bucket_keeps_no_other_from_its_look(redis: Any) -> None:
    rig = Rig(redis)
    bad, good = ("running", "l", "l[bad]", 1), ("running", "l", "l[good]", 1)
    for limit in (bad, good):
        assert await admit(redis, await rig.claim_one(limit[2]), limit) == [1, 0]
        await park_all(redis, rig, limit, f"waits for {limit[2]}")
    await redis.set("runner:parked:l[bad]", "no set", ex=60)
    await redis.hset(keys.LIMITS_DECLARED, "l", OLD)
    await redis.expire(keys.LIMITS_DECLARED, 60)
    while await sweep(redis) == 2:
        pass
    assert [claimed.job_id for claimed in await rig.claim()] == ["waits for l[good]"]


async def test_parked_and_delayed_jobs_survive_a_crash_of_redis(
    chaos_servers: ChaosServers,
) -> None:
    ran: Counter[int] = Counter()
    at_once: list[int] = []
    running: set[int] = set()

    @task(name="slot", max_running=1)
    async def slot(_ctx: Context, number: int) -> None:
        running.add(number)
        at_once.append(len(running))
        await asyncio.sleep(0.02)
        running.discard(number)
        ran[number] += 1

    @task(name="timed", rate="20/s")
    async def timed(_ctx: Context, number: int) -> None:
        ran[number] += 1

    url = chaos_servers.redis_url
    async with runner.connect(url) as client, serving(url, [slot, timed], max_jobs=50):
        calls = [(slot if number < 60 else timed).call(number) for number in range(120)]
        await client.enqueue_many(calls)
        await wait_until(lambda: len(ran) > 5, description="some have run")
        await chaos_servers.restart_redis(kill=True)
        assert len(ran) < 120
        await wait_until(lambda: len(ran) == 120, description="all run", timeout_s=40)

        async def clean() -> bool:
            async with raw(url) as redis:
                return await is_clean(redis)

        await wait_until(clean, description="nobody waits or holds a slot")
    assert max(at_once) == 1


@pytest.mark.parametrize("gated", [b"\xff", b'{"limits":[5]}', b'{"paused":5}'])
async def test_pauses_that_cannot_be_read_stop_no_job(
    redis_url: str, client: runner.Client, redis: Any, gated: bytes
) -> None:
    @task(name="free")
    async def free(_ctx: Context) -> str:
        return "ran"

    await redis.set(keys.GATED, gated)
    job = await client.enqueue(free)
    await drain(redis_url, [free])
    assert await job.result(timeout=5) == "ran"
