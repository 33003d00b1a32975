"""Answers that are lost, and keys that hold something else: what goes on, and what is said."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

import runner
from runner import Context, Outcome, RedisSettings, keys, task
from runner.errors import EnqueueError
from runner.events import Event, JobEnded
from runner.scripts import load
from runner.worker import Worker
from tests.engine import Gate, Rig, done, drain, raw, result_of, serving, started
from tests.proxy import proxied
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:held:*", "runner:dead:*")]

QUEUE = keys.DEFAULT_QUEUE
OTHER = "other"


@task
async def add(_ctx: Context, number: int) -> int:
    return number + 1


@task
async def fail(_ctx: Context) -> None:
    raise ValueError("broken")


@task
async def hold(ctx: Context) -> int:
    await ctx["gate"]()
    return 42


@task
async def linger(ctx: Context) -> None:
    """Take its time when it is cancelled."""
    try:
        await asyncio.Event().wait()
    finally:
        await ctx["gate"]()


class Ends(list[JobEnded]):
    """The ends that a worker tells of."""

    def note(self, event: Event) -> None:
        if isinstance(event, JobEnded):
            self.append(event)

    async def first(self) -> JobEnded:
        await wait_until(lambda: self, description="an end is told")
        return self[0]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    async with raw(redis_url) as connected:
        yield connected


async def ask_for_abort(client: Client, job_id: str) -> None:
    await client.zadd(keys.ABORT, {job_id: time.time_ns() // 1_000_000})


# Aborts


async def test_abort_is_not_lost_with_the_answer_of_its_look_up(
    redis_url: str, client: Client
) -> None:
    gate, ends = Gate(), Ends()
    job = await client.enqueue(hold)
    await ask_for_abort(client, job.job_id)
    settings: dict[str, Any] = {"ctx": {"gate": gate}, "subscribers": [ends.note]}
    async with proxied(redis_url) as wire:
        wire.cut = f"\r\n{keys.ABORT}\r\n".encode()
        async with serving(wire.url, [hold], allow_abort_jobs=True, **settings):
            await gate.runs.wait()  # nobody has told its worker that it is to be aborted
            wire.cut = b""
            assert (await ends.first()).outcome is Outcome.ABORTED
    assert gate.passed == []
    assert not await client.exists(keys.ABORT)


async def test_abort_outlives_a_worker_that_dies_while_its_job_is_cancelled(
    redis_url: str, client: Client
) -> None:
    gate, ends = Gate(), Ends()
    settings: dict[str, Any] = {"ctx": {"gate": gate}, "subscribers": [ends.note]}
    async with serving(redis_url, [linger], allow_abort_jobs=True, **settings) as worker:
        job = await client.enqueue(linger)
        await wait_until(lambda: job.job_id in worker.job_tasks, description="it runs")
        await ask_for_abort(client, job.job_id)
        await gate.runs.wait()
        assert await client.zscore(keys.ABORT, job.job_id) is not None, "whoever is next sees it"
        gate.opens.set()
        assert (await ends.first()).outcome is Outcome.ABORTED
    assert not await client.exists(keys.ABORT)


async def test_abort_of_a_deferred_job_does_not_depend_on_wake_tokens(client: Client) -> None:
    job = await client.enqueue(add.options(delay=60), 1)
    await client.zadd(keys.idle(QUEUE), {"worker": 2**53})
    await client.expire(keys.idle(QUEUE), 60)
    await client.set(keys.wake(QUEUE), "no list", ex=60)
    with pytest.raises(TimeoutError):  # nobody is there to abort it
        await job.abort(timeout=0.1)
    assert await client.zscore(QUEUE, job.job_id) <= time.time() * 1000 + 1000


# Claims


@pytest.mark.parametrize("repeats", [False, True], ids=["plain", "redis-py repeats"])
async def test_claims_whose_answers_are_lost_crash_nobody(
    redis_url: str, client: Client, repeats: bool
) -> None:
    ends = Ends()
    async with proxied(redis_url) as wire:
        address = RedisSettings.from_dsn(wire.url)
        if repeats:
            address.retry_on_error = [RedisConnectionError]
            address.retry = Retry(NoBackoff(), 1)
        worker = Worker(
            [add],
            redis_settings=address,
            handle_signals=False,
            codec="msgpack",
            history=True,
            poll_delay=0.2,
            lease=0.3,
            max_crashes=1,
            subscribers=[ends.note],
        )
        async with started(worker):
            await wait_until(lambda: client.exists(keys.idle(QUEUE)), description="it waits")
            # Where a call is sent again at once, one loss is enough: the second claims nothing.
            wire.most_cuts = 1 if repeats else 5
            wire.cut = load("cycle").sha.encode()
            job = await client.enqueue(add, 1)
            assert await job.result(timeout=20) == 2
            assert wire.cuts == wire.most_cuts
            end = await ends.first()
    assert (end.attempt, end.crashes) == (1, 0)
    assert (await client.queue_stats()).crashed == 0


async def test_what_an_unheard_call_has_claimed_need_not_wait_for_its_lease(
    redis_url: str, client: Client
) -> None:
    async with proxied(redis_url) as wire, serving(wire.url, [add], lease=3600):
        await wait_until(lambda: client.exists(keys.idle(QUEUE)), description="it waits")
        wire.cut = load("cycle").sha.encode()
        job = await client.enqueue(add, 1)
        await wait_until(
            lambda: client.exists(keys.in_progress(job.job_id)), description="it is claimed"
        )
        await wait_until(lambda: wire.cuts, description="nobody heard of it")
        wire.cut = b""
        assert await job.result(timeout=20) == 2


async def test_given_back_is_what_the_lost_calls_hold_and_nothing_else(redis: Any) -> None:
    rig = Rig(redis)
    kept = await rig.claim_one("kept", token="r:test:heard")
    await rig.put("crashed", "lost", "taken", "stock")
    await rig.lapse(*await rig.claim(1, token="r:test:before"))
    first_ms = await redis.zscore(QUEUE, "lost")
    lost = await rig.claim(4, token="r:test:lost")
    crashes = {"crashed": 1, "lost": 0, "taken": 0, "stock": 0}
    assert {job.job_id: job.crashes for job in lost} == crashes
    await redis.set(keys.in_progress("taken"), "r:test:other", px=60_000)
    await redis.set(keys.in_progress("stock"), "1", px=60_000)
    assert await rig.broker.give_back(redis, ["r:test:lost", "r:test:never"]) == 2
    # Scripts write scores to the microsecond.
    assert await redis.zscore(QUEUE, "lost") == pytest.approx(first_ms, rel=0, abs=0.001)
    again = await rig.claim()
    assert {job.job_id: (job.attempt, job.crashes) for job in again} == {
        "crashed": (1, 1),
        "lost": (1, 0),
    }
    assert await rig.settle(done(kept), *map(done, again)) == [1, 1, 1]
    assert 0 < await redis.ttl(keys.unheard(QUEUE)) <= 3600


async def test_call_that_arrives_after_it_was_given_up_crashes_nobody(redis: Any) -> None:
    rig = Rig(redis)
    await rig.put("j")
    assert await rig.broker.give_back(redis, ["r:test:late"]) == 0
    await rig.lapse(*await rig.claim(token="r:test:late"))
    (claimed,) = await rig.claim()
    assert (claimed.attempt, claimed.crashes) == (1, 0)
    await rig.lapse(claimed)
    (claimed,) = await rig.claim()
    assert claimed.crashes == 1, "of the others it still is a crash"


@pytest.mark.parametrize("key", [keys.held(QUEUE), keys.unheard(QUEUE), keys.wake(QUEUE)])
async def test_keys_of_a_wrong_type_do_not_stop_what_gives_back(redis: Any, key: str) -> None:
    rig = Rig(redis)
    await rig.put("j")
    await rig.claim(token="r:test:lost")
    await redis.delete(key)
    await redis.set(key, "something else", ex=60)
    assert await rig.broker.give_back(redis, ["r:test:lost"]) == (key != keys.held(QUEUE))


# Keys that hold something else


@pytest.mark.parametrize("key", [QUEUE, keys.held(QUEUE)])
async def test_queue_that_cannot_be_read_stops_no_other_and_is_named_once(
    redis_url: str, client: Client, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    caplog.set_level("INFO")
    await client.enqueue(add, 1)
    await client.delete(key)
    await client.set(key, "something else")
    async with serving(redis_url, [add], queues=[QUEUE, OTHER], poll_delay=0.05):
        for number in range(5):
            job = await client.enqueue(add.options(queue=OTHER), number)
            assert await job.result(timeout=10) == number + 1
        said = [line.getMessage() for line in caplog.records if "cannot claim" in line.msg]
        assert len(said) == 1
        assert repr(QUEUE) in said[0]
        assert "WRONGTYPE" in said[0]
        await client.delete(key)
        job = await client.enqueue(add, 1)
        assert await job.result(timeout=10) == 2
    assert f"jobs are claimed from queue {QUEUE!r} again" in caplog.text


async def test_burst_worker_ends_though_a_queue_cannot_be_read(
    redis_url: str, client: Client
) -> None:
    await client.set(QUEUE, "something else")
    jobs = [await client.enqueue(add.options(queue=OTHER), number) for number in range(5)]
    worker = await drain(redis_url, [add], queues=[QUEUE, OTHER])
    assert worker.jobs_complete == len(jobs)


async def test_queue_that_is_none_can_be_paused_and_resumed(client: Client) -> None:
    await client.set(QUEUE, "something else")
    assert await client.pause(queue=QUEUE)
    assert await client.resume(queue=QUEUE)


async def test_end_that_travels_with_claims_that_fail_is_settled(redis: Any) -> None:
    rig = Rig(redis)
    claimed = await rig.claim_one("j")
    await redis.rename(QUEUE, "away")
    await redis.set(QUEUE, "something else", ex=60)
    await redis.delete(keys.held(QUEUE))
    reply = await rig.broker.cycle(
        redis, token="r:test:x", settlements=[], limit=5, worker="w", idle_ms=1000
    )
    assert "WRONGTYPE" in reply.problem
    await redis.rename("away", QUEUE)
    await rig.put("next")
    await redis.set(keys.WRITER, "something else", ex=60)
    rig.broker.heeds = True  # what waits for the writer cannot be asked for
    reply = await rig.broker.cycle(redis, token="r:test:y", settlements=[done(claimed)], limit=5)
    assert (reply.statuses, reply.claimed) == ([1], [])
    assert "WRONGTYPE" in reply.problem


async def test_letter_that_cannot_be_kept_does_not_undo_the_end(
    redis_url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    ends = Ends()
    await client.set(keys.dead(QUEUE), "something else", ex=60)
    failing, good = await client.enqueue(fail), await client.enqueue(add, 1)
    async with serving(redis_url, [fail, add], subscribers=[ends.note]):
        assert await good.result(timeout=10) == 2
        with pytest.raises(runner.errors.RemoteError, match="broken"):
            await failing.result(timeout=10)
        await wait_until(lambda: len(ends) == 2, description="both ends are told")
    assert {end.outcome for end in ends} == {Outcome.FAILED, Outcome.SUCCEEDED}
    assert f"job {failing.job_id} has ended, but Redis refused" in caplog.text
    assert "lease was lost" not in caplog.text
    assert (await result_of(client, failing.job_id)).success is False


# The end of a worker, and of a client, when Redis goes on to refuse


async def no_op(_ctx: Any) -> None: ...


@pytest.fixture
async def user(redis: Any, redis_url: str) -> AsyncIterator[tuple[str, str]]:
    """A user whose rights a test can take; its name, and an address for it."""
    name = f"u{uuid4().hex}"
    await redis.execute_command("ACL", "SETUSER", name, "on", ">secret", "~*", "&*", "+@all")
    parts = urlsplit(redis_url)
    address = urlunsplit(parts._replace(netloc=f"{name}:secret@{parts.hostname}:{parts.port}"))
    yield name, address
    await redis.execute_command("ACL", "DELUSER", name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.settling.PATIENCE_S", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("hooks", [{}, {"after_job_end": no_op}], ids=["passed in", "awaited"])
@pytest.mark.parametrize("refused", ["the end", "the call"])
async def test_worker_closes_though_redis_refuses_an_end_for_ever(
    user: tuple[str, str],
    redis: Any,
    caplog: pytest.LogCaptureFixture,
    hooks: dict[str, Any],
    refused: str,
) -> None:
    name, address = user
    gate = Gate()
    async with runner.connect(address) as client, asyncio.timeout(30):
        async with serving(address, [hold], ctx={"gate": gate}, **hooks):
            job = await client.enqueue(hold)
            await gate.runs.wait()
            if refused == "the end":
                await redis.delete(keys.held(QUEUE))
                await redis.set(keys.held(QUEUE), "something else", ex=60)
            else:
                await redis.execute_command("ACL", "SETUSER", name, "-evalsha", "-eval")
            gate.opens.set()
            await wait_until(
                lambda: "refuse" in caplog.text, description="it is said that Redis refuses"
            )
        assert await redis.exists(keys.job(job.job_id), keys.in_progress(job.job_id)) == 2
    said = {"the end": f"job {job.job_id} is left", "the call": "the ends of 1 jobs"}
    assert said[refused] in caplog.text


async def test_refused_end_is_settled_when_its_reason_is_gone(
    redis_url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    async with serving(redis_url, [hold], ctx={"gate": gate}):
        job = await client.enqueue(hold)
        await gate.runs.wait()
        await client.delete(keys.held(QUEUE))
        await client.set(keys.held(QUEUE), "something else")
        gate.opens.set()
        await wait_until(lambda: "Redis refused the end" in caplog.text, description="it is said")
        await client.delete(keys.held(QUEUE))
        assert await job.result(timeout=10) == 42


@pytest.mark.parametrize("when_full", ["raise", "wait"])
@pytest.mark.parametrize("refused", ["the queue", "the call"])
async def test_client_closes_though_redis_refuses_its_jobs(
    user: tuple[str, str], redis: Any, refused: str, when_full: Any
) -> None:
    name, address = user
    client = await runner.connect(address, max_length=1, when_full=when_full)
    await client.enqueue(add, 1)
    if refused == "the queue":
        await redis.set(QUEUE, "something else")
    else:
        await redis.execute_command("ACL", "SETUSER", name, "-evalsha", "-eval", "-zcard")
    calls = [asyncio.create_task(client.enqueue(add, n)) for n in range(3)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await client.aclose()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, EnqueueError) for outcome in outcomes), outcomes
