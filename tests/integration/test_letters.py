"""Dead letters: what they hold, how they are found, and how their jobs live again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

import runner
from runner import (
    Backoff,
    Cancel,
    Context,
    LetterFilter,
    Outcome,
    Retry,
    RetryPolicy,
    Unique,
    cron,
    every,
    give_up,
    group,
    keys,
    on,
    task,
)
from runner.codec import JobRecord, MsgpackCodec, decode_job, encode_job
from runner.errors import ArgumentsError, LetterError, LetterNotFound
from runner.letters import decode_letter, encode_letter
from runner.types import DeadLetter, Retention
from tests.engine import Gate, Rig, drain, raw, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from runner import Client

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys("runner:held:*", "runner:schedules:*", "runner:schedule:*"),
]

QUEUE = keys.DEFAULT_QUEUE
NOW = RetryPolicy(base=0, cap=0)
SIGNING_KEYS = {"k": b"a key of more than sixteen bytes"}


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@task(retries=2, backoff=NOW)
async def fail_thrice(ctx: Context, name: str, *, tenant_id: int = 0) -> None:
    raise ValueError(f"{name} at {ctx.attempt} of {tenant_id}")


@task(retries=2, backoff=NOW)
async def succeed_at(ctx: Context, attempt: int) -> int:
    if ctx.attempt < attempt:
        raise LookupError("not yet")
    return ctx.attempt


@task
async def pay(ctx: Context, order_id: int, note: str = "") -> str:
    if note != "mended":
        raise ConnectionError(f"order {order_id}: the bank is away")
    ctx["paid"].append(order_id)
    return note


@task(name="pay")
async def pay_again(ctx: Context, order_id: int, note: str = "") -> str:
    ctx["paid"].append(order_id)
    return note


# What a letter holds


async def test_letter_holds_the_error_of_every_attempt(redis_url: str, client: Client) -> None:
    job = await client.enqueue(fail_thrice, "x", tenant_id=7)
    worker = await drain(redis_url, [fail_thrice])
    letter = await client.dead.show(job.job_id)
    assert (letter.task, letter.args, letter.kwargs) == ("fail_thrice", ["x"], {"tenant_id": 7})
    assert (letter.attempt, letter.outcome, letter.error) == (3, "failed", "x at 3 of 7")
    assert letter.enqueued_ms <= letter.started_ms <= letter.died_ms
    assert [(e.attempt, e.outcome, e.error_type, e.error) for e in letter.errors] == [
        (1, "retried", "ValueError", "x at 1 of 7"),
        (2, "retried", "ValueError", "x at 2 of 7"),
    ]
    for error in letter.errors:
        assert 'raise ValueError(f"{name}' in error.traceback
        assert letter.enqueued_ms <= error.started_ms <= error.ended_ms <= letter.died_ms
    assert {letter.worker, *(error.worker for error in letter.errors)} == {worker.name}
    assert await client.exists(keys.errors(job.job_id)) == 0
    assert 0 < await client.pttl(keys.dead_errors(job.job_id)) <= keys.KEEP_MS


async def test_retry_that_a_task_asks_for_is_an_error_too(redis_url: str, client: Client) -> None:
    @task
    async def ask(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise Retry from LookupError("why it asks")
        raise ValueError("the end")

    job = await client.enqueue(ask)
    await drain(redis_url, [ask])
    (error,) = (await client.dead.show(job.job_id)).errors
    assert error.error_type == "arq.worker.Retry"
    assert "LookupError: why it asks" in error.traceback


async def test_success_at_a_later_attempt_leaves_no_errors(redis_url: str, client: Client) -> None:
    job = await client.enqueue(succeed_at, 3)
    await drain(redis_url, [succeed_at])
    assert await job.result(timeout=1) == 3
    assert await client.keys("runner:*errors:*") == []
    with pytest.raises(LetterNotFound):
        await client.dead.show(job.job_id)


async def test_errors_are_kept_while_a_job_waits_for_its_next_try(
    redis_url: str, client: Client
) -> None:
    @task(retries=3, backoff=RetryPolicy(base=600, jitter=0))
    async def later(_ctx: Context) -> None:
        raise ValueError("not now")

    job = await client.enqueue(later)
    async with serving(redis_url, [later]):
        await wait_until(
            lambda: client.exists(keys.errors(job.job_id)), description="an error is noted"
        )
    assert 0 < await client.pttl(keys.errors(job.job_id)) <= keys.KEEP_MS
    shown = await client.jobs.show(job.job_id)
    assert (shown.state, shown.attempt) == (runner.JobState.RETRYING, 2)
    assert [error.error for error in shown.errors] == ["not now"]


async def test_worker_without_history_notes_no_errors(redis_url: str, client: Client) -> None:
    await client.enqueue(fail_thrice, "x")
    await drain(redis_url, [fail_thrice], history=False)
    assert await client.keys("runner:*errors:*") == []
    assert await client.dead.count() == 0


async def test_letters_whose_time_is_over_do_not_count(redis_url: str, client: Client) -> None:
    for number in range(5):
        await client.enqueue(fail_thrice, str(number))
    await drain(redis_url, [fail_thrice])
    dead = keys.dead(keys.DEFAULT_QUEUE)
    ids = [raw_id.decode() for raw_id in await client.zrange(dead, 0, -1)]
    await client.zadd(dead, {f"older {number}": number + 1 for number in range(700)})
    assert await client.dead.count() == len(ids) == 5
    await client.delete(keys.dead_letter(ids[0]), keys.dead_letter(ids[1]))
    assert await client.dead.count() == 3
    assert await client.zcard(dead) == 3


async def test_errors_are_bounded_in_number_and_size(redis_url: str, client: Client) -> None:
    @task(retries=40, backoff=NOW)
    async def shout(ctx: Context) -> None:
        raise ValueError(f"{ctx.attempt} " + "x" * 1_000_000)

    job = await client.enqueue(shout)
    await drain(redis_url, [shout], log_results=False)
    letter = await client.dead.show(job.job_id)
    assert [error.attempt for error in letter.errors] == [1, *range(21, 41)]
    assert await client.memory_usage(keys.dead_errors(job.job_id)) < 500_000
    assert all("characters left out" in error.error for error in letter.errors)


@task
async def cancel_itself(_ctx: Context) -> None:
    raise Cancel("no use")


@task(timeout=0.02)
async def overrun(_ctx: Context) -> None:
    await asyncio.Event().wait()


@task(retries=9, backoff=RetryPolicy(rules=(on(KeyError, give_up),)))
async def hopeless(_ctx: Context) -> None:
    raise KeyError("nothing of that name")


@pytest.mark.parametrize(
    ("function", "outcome", "error_type"),
    [
        (hopeless, Outcome.FAILED, "KeyError"),
        (cancel_itself, Outcome.CANCELLED, "runner.errors.Cancel"),
        (overrun, Outcome.TIMED_OUT, "TimeoutError"),
        ("nobody_knows_it", Outcome.UNKNOWN_TASK, "runner.errors.TaskNotFound"),
    ],
)
async def test_every_final_failure_leaves_a_letter_with_its_worker(
    redis_url: str, client: Client, function: Any, outcome: Outcome, error_type: str
) -> None:
    job = await client.enqueue(function)
    worker = await drain(redis_url, [hopeless, cancel_itself, overrun])
    letter = await client.dead.show(job.job_id)
    assert (letter.outcome, letter.error_type) == (outcome.value, error_type)
    assert (letter.worker, letter.attempt, letter.errors) == (worker.name, 1, ())
    page = await client.dead.list(LetterFilter(outcome=outcome, error=error_type))
    assert [one.job_id for one in page.letters] == [job.job_id]


async def test_time_limit_is_tried_again_when_the_policy_says_so(
    redis_url: str, client: Client
) -> None:
    @task(retries=1, timeout=0.02, backoff=RetryPolicy(base=0, cap=0, retry_on_timeout=True))
    async def slow(_ctx: Context) -> None:
        await asyncio.Event().wait()

    job = await client.enqueue(slow)
    await drain(redis_url, [slow])
    letter = await client.dead.show(job.job_id)
    assert (letter.attempt, letter.outcome) == (2, "timed_out")
    assert [(e.outcome, e.error_type) for e in letter.errors] == [("retried", "TimeoutError")]


async def test_rules_decide_by_the_class_of_the_error(redis_url: str, client: Client) -> None:
    policy = RetryPolicy(
        backoff=Backoff.CONSTANT,
        base=0,
        cap=0,
        retries=1,
        rules=(on(ConnectionError, retries=3), on(LookupError, give_up)),
    )

    @task(backoff=policy)
    async def choose(_ctx: Context, name: str) -> None:
        raise {"net": ConnectionResetError, "key": KeyError, "other": ValueError}[name]

    jobs = {name: await client.enqueue(choose, name) for name in ("net", "key", "other")}
    await drain(redis_url, [choose])
    tries = {name: (await client.dead.show(job.job_id)).attempt for name, job in jobs.items()}
    assert tries == {"net": 4, "key": 1, "other": 2}


# Crashes


async def crash(rig: Rig, *job_ids: str) -> None:
    """Let a worker claim these jobs and be lost."""
    claimed = await rig.claim(token="r:lost-host:7:ab:cd12:1")
    assert {one.job_id for one in claimed} == set(job_ids)
    await rig.lapse(*claimed)


async def test_crash_is_one_of_the_errors(redis_url: str, client: Client) -> None:
    job = await client.enqueue(fail_thrice, "x")
    async with raw(redis_url) as redis:
        await crash(Rig(redis), job.job_id)
    await drain(redis_url, [fail_thrice])
    letter = await client.dead.show(job.job_id)
    assert [(e.attempt, e.outcome) for e in letter.errors] == [
        (1, "crashed"),
        (1, "retried"),
        (2, "retried"),
    ]
    lost = letter.errors[0]
    assert (lost.error, lost.worker) == ("the job lost its worker", "lost-host:7:ab")
    assert letter.enqueued_ms <= lost.ended_ms <= letter.died_ms


async def test_job_that_takes_its_workers_with_it_tells_of_each(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(succeed_at, 1)
    async with raw(redis_url) as redis:
        rig = Rig(redis)
        await crash(rig, job.job_id)
        await crash(rig, job.job_id)
    await drain(redis_url, [succeed_at], max_crashes=2)
    letter = await client.dead.show(job.job_id)
    assert letter.outcome == "too_many_crashes"
    assert [error.outcome for error in letter.errors] == ["crashed", "crashed"]


async def test_success_after_a_crash_leaves_no_errors(redis_url: str, client: Client) -> None:
    job = await client.enqueue(succeed_at, 1)
    async with raw(redis_url) as redis:
        await crash(Rig(redis), job.job_id)
    assert await client.exists(keys.errors(job.job_id)) == 0
    await drain(redis_url, [succeed_at])
    assert await job.result(timeout=1) == 1
    assert await client.keys("runner:*errors:*") == []


async def test_letter_of_a_new_job_has_no_errors_of_an_older_one(
    redis_url: str, client: Client
) -> None:
    await client.enqueue(fail_thrice.options(key="k"), "x")
    await drain(redis_url, [fail_thrice], keep_result=0)
    assert len((await client.dead.show("k")).errors) == 2
    await client.enqueue(hopeless.options(key="k"))
    await drain(redis_url, [hopeless], keep_result=0)
    assert (await client.dead.show("k")).errors == ()


# Requeue


async def test_requeued_job_runs_again_and_its_letter_is_gone(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(pay, 1)
    await drain(redis_url, [pay])
    assert (await client.dead.requeue(job.job_id)).count == 1
    assert await client.exists(keys.result(job.job_id)) == 0
    with pytest.raises(LetterNotFound, match="has no dead letter"):
        await client.dead.requeue(job.job_id)
    paid: list[int] = []
    await drain(redis_url, [pay_again], ctx={"paid": paid})
    assert paid == [1]
    assert await job.result(timeout=1) == ""
    assert await client.dead.count() == 0
    assert await client.keys("runner:*errors:*") == []


async def test_requeued_job_keeps_its_history(redis_url: str, client: Client) -> None:
    job = await client.enqueue(fail_thrice, "x")
    await drain(redis_url, [fail_thrice])
    first = await client.dead.show(job.job_id)
    await client.dead.requeue(job.job_id)
    assert len((await client.jobs.show(job.job_id)).errors) == 3
    await drain(redis_url, [fail_thrice])
    letter = await client.dead.show(job.job_id)
    assert (letter.attempt, letter.requeued) == (3, 1)
    lives = [(e.attempt, e.outcome, e.enqueued_ms == first.enqueued_ms) for e in letter.errors]
    assert lives == [
        (1, "retried", True),
        (2, "retried", True),
        (3, "failed", True),
        (1, "retried", False),
        (2, "retried", False),
    ]


async def test_requeued_job_waits_for_its_delay(redis_url: str, client: Client) -> None:
    job = await client.enqueue(hopeless)
    await drain(redis_url, [hopeless])
    before = datetime.now(UTC)
    await client.dead.requeue(job.job_id, delay=timedelta(hours=1))
    shown = await client.jobs.show(job.job_id)
    assert shown.state is runner.JobState.DEFERRED
    assert shown.due is not None
    assert timedelta(minutes=59) < shown.due - before < timedelta(minutes=61)


async def test_requeued_job_does_not_expire_again(redis_url: str, client: Client) -> None:
    job = await client.enqueue(succeed_at.options(expires=0.001), 1)
    over = datetime.now(UTC) + timedelta(milliseconds=5)
    await wait_until(lambda: datetime.now(UTC) > over, description="its time to start is over")
    await drain(redis_url, [succeed_at])
    assert (await client.dead.show(job.job_id)).outcome == "expired"
    await client.dead.requeue(job.job_id)
    await drain(redis_url, [succeed_at])
    assert await job.result(timeout=1) == 1


async def test_arguments_can_be_edited(redis_url: str, client: Client) -> None:
    job = await client.enqueue(pay, 1)
    await drain(redis_url, [pay])
    with pytest.raises(ArgumentsError, match="order_id"):
        await client.dead.requeue(job.job_id, args=["one"], task=pay)
    with pytest.raises(ArgumentsError, match="is one of 'pay'"):
        await client.dead.requeue(job.job_id, args=["one"], task=fail_thrice)
    assert await client.dead.count() == 1
    await client.dead.requeue(job.job_id, kwargs={"note": "mended"}, task=pay)
    paid: list[int] = []
    await drain(redis_url, [pay], ctx={"paid": paid})
    assert await job.result(timeout=1) == "mended"
    assert paid == [1]


async def test_many_are_requeued_by_filter_and_the_others_stay(
    redis_url: str, client: Client
) -> None:
    for order_id in range(20):
        await client.enqueue(pay, order_id)
    await client.enqueue(hopeless)
    await drain(redis_url, [pay, hopeless])
    said = await client.dead.requeue(LetterFilter(task=pay, arguments={"order_id": 3}))
    assert said.count == 1
    said = await client.dead.requeue(LetterFilter(error=ConnectionError), kwargs={"note": "mended"})
    assert (said.count, said.gone, said.stayed) == (19, 0, 0)
    assert [one.task for one in await client.dead_letters()] == ["hopeless"]
    paid: list[int] = []
    await drain(redis_url, [pay], ctx={"paid": paid})
    assert sorted(paid) == [n for n in range(20) if n != 3]


async def test_two_who_requeue_at_once_double_nothing(redis_url: str, client: Client) -> None:
    count = 300
    await client.enqueue_many([pay.call(order_id) for order_id in range(count)])
    await drain(redis_url, [pay], max_jobs=100)
    async with runner.connect(redis_url) as other:
        said = await asyncio.gather(
            *(one.dead.requeue(LetterFilter()) for one in (client, other, client, other))
        )
    assert sum(one.count for one in said) == count
    assert sum(one.stayed for one in said) == 0
    paid: list[int] = []
    await drain(redis_url, [pay_again], ctx={"paid": paid}, max_jobs=100)
    assert sorted(paid) == list(range(count))


async def test_requeue_while_the_same_jobs_die_again_ends(redis_url: str, client: Client) -> None:
    await client.enqueue_many([pay.call(order_id) for order_id in range(50)])
    await drain(redis_url, [pay])
    async with serving(redis_url, [pay]):
        said = await client.dead.requeue(LetterFilter())
        assert said.count == 50
        await wait_until(lambda: _all_died(client, 50), description="all jobs are dead again")
    async for letter in client.dead.find():
        assert letter.requeued == 1


async def _all_died(client: Client, count: int) -> bool:
    return await client.dead.count() == count


async def test_letter_stays_while_a_job_of_its_id_is_there(redis_url: str, client: Client) -> None:
    await client.enqueue(hopeless.options(key="k"))
    await drain(redis_url, [hopeless], keep_result=0)
    await client.enqueue(hopeless.options(key="k", delay=600))
    with pytest.raises(LetterError, match="a job of this id is in the queue"):
        await client.dead.requeue("k")
    said = await client.dead.requeue(["k", "nobody"])
    assert (said.count, said.gone, said.stayed, list(said.refused)) == (0, 1, 1, ["k"])
    assert await client.dead.count() == 1


async def test_letter_whose_payload_is_gone_cannot_be_requeued(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(hopeless)
    await client.delete(keys.job(job.job_id))
    await drain(redis_url, [hopeless])
    with pytest.raises(LetterError, match="its payload is gone"):
        await client.dead.requeue(job.job_id)


async def test_payload_that_nobody_can_read_is_requeued_as_it_is(
    redis_url: str, client: Client
) -> None:
    payload = b"\x80\x04 no job \xff"
    job = await client.enqueue(hopeless)
    await client.set(keys.job(job.job_id), payload, px=60_000)
    await drain(redis_url, [hopeless])
    assert (await client.dead.show(job.job_id)).outcome == "undecodable"
    with pytest.raises(LetterError, match="cannot be read"):
        await client.dead.requeue(job.job_id, args=[])
    await client.dead.requeue(job.job_id)
    assert await client.get(keys.job(job.job_id)) == payload
    await drain(redis_url, [hopeless])
    assert [e.outcome for e in (await client.dead.show(job.job_id)).errors] == ["undecodable"]


async def test_edited_job_is_signed_anew(redis_url: str) -> None:
    async with runner.connect(redis_url, signing_keys=SIGNING_KEYS) as client:
        job = await client.enqueue(pay, 1)
        await drain(redis_url, [pay], signing_keys=SIGNING_KEYS)
        await client.dead.requeue(job.job_id, args=[2, "mended"])
        paid: list[int] = []
        await drain(redis_url, [pay], signing_keys=SIGNING_KEYS, ctx={"paid": paid})
        assert paid == [2]
        assert await job.result(timeout=1) == "mended"


async def test_signed_job_is_requeued_by_a_client_without_keys(redis_url: str) -> None:
    async with runner.connect(redis_url, signing_keys=SIGNING_KEYS) as signing:
        job = await signing.enqueue(pay, 1)
        await drain(redis_url, [pay], signing_keys=SIGNING_KEYS)
        payload = (await signing.dead.show(job.job_id)).payload
        async with runner.connect(redis_url) as client:
            with pytest.raises(LetterError, match="cannot be read"):
                await client.dead.requeue(job.job_id, args=[2])
            await client.dead.requeue(job.job_id)
            assert await client.get(keys.job(job.job_id)) == payload
        paid: list[int] = []
        await drain(redis_url, [pay_again], signing_keys=SIGNING_KEYS, ctx={"paid": paid})
        assert paid == [1]


@task(unique=Unique(by="order_id"))
async def charge(_ctx: Context, order_id: int, note: str = "") -> None:
    raise ConnectionError(f"order {order_id}: the bank is away {note}")


@task(throttle=3600)
async def remind(_ctx: Context) -> None:
    raise ConnectionError("the bank is away")


async def test_unique_job_is_requeued_unless_another_has_its_place(
    redis_url: str, client: Client
) -> None:
    dead = await client.enqueue(charge, 1)
    await drain(redis_url, [charge])
    other = await client.enqueue(charge.options(delay=600), 1)
    with pytest.raises(LetterError, match=f"{other.job_id}.* no second one beside it"):
        await client.dead.requeue(dead.job_id)
    assert (await client.dead.requeue(LetterFilter())).stayed == 1
    await client.jobs.cancel(other.job_id)
    await client.dead.requeue(dead.job_id, delay=600)
    again = await client.enqueue(charge, 1)
    assert (again.job_id, again.is_new) == (dead.job_id, False)


async def test_unique_job_with_new_arguments_has_their_place(
    redis_url: str, client: Client
) -> None:
    dead = await client.enqueue(charge, 1)
    await drain(redis_url, [charge])
    others = [await client.enqueue(charge.options(delay=600), number) for number in (1, 2)]
    with pytest.raises(LetterError, match=others[1].job_id):
        await client.dead.requeue(dead.job_id, args=[2], task=charge)
    await client.dead.requeue(dead.job_id, args=[3], task=charge, delay=600)
    assert (await client.enqueue(charge, 3)).job_id == dead.job_id
    assert (await client.enqueue(charge, 1)).job_id == others[0].job_id


async def test_run_of_a_schedule_is_requeued_as_a_unique_job(
    redis_url: str, client: Client
) -> None:
    async with serving(redis_url, [charge], cron_jobs=[cron(charge, every(0.1), args=(1,))]):
        await wait_until(client.dead.count, description="a run has died")
    (letter, *_) = (await client.dead.list()).letters
    other = await client.enqueue(charge.options(delay=600), 1)
    with pytest.raises(LetterError, match=other.job_id):
        await client.dead.requeue(letter.job_id)


async def test_throttled_job_is_requeued_within_its_period(redis_url: str, client: Client) -> None:
    dead = await client.enqueue(remind)
    await drain(redis_url, [remind])
    await client.dead.requeue(dead.job_id)
    assert await client.zcard(QUEUE) == 1


async def test_step_of_a_flow_is_not_requeued_alone(redis_url: str, client: Client) -> None:
    run = await client.start(group([hopeless.call()]))
    await drain(redis_url, [hopeless])
    (letter,) = (await client.dead.list()).letters
    with pytest.raises(LetterError, match=rf"client\.flow\('{run.id}'\)\.retry\(\)"):
        await client.dead.requeue(letter.job_id)
    assert await client.dead.count() == 1


async def test_requeue_wakes_a_worker(redis_url: str, client: Client) -> None:
    gate = Gate()

    @task(name="pay")
    async def wait_at(ctx: Context, _order_id: int) -> str:
        await ctx["gate"]()
        return "paid"

    job = await client.enqueue(pay, 1)
    await drain(redis_url, [pay])
    async with serving(redis_url, [wait_at], poll_delay=600, ctx={"gate": gate}):
        await wait_until(
            lambda: client.zcard(keys.idle(QUEUE)), description="the worker has nothing to do"
        )
        await client.dead.requeue(job.job_id)
        async with asyncio.timeout(10):
            await gate.runs.wait()
        gate.opens.set()
        await job.result(timeout=10)


# Finding letters


def made(number: int, **fields: Any) -> DeadLetter:
    """Return a letter as a worker would have written it."""
    record = JobRecord(
        task=fields.get("task", "mass"),
        args=(number,),
        kwargs={},
        attempt=None,
        enqueued_ms=1_700_000_000_000,
        options={},
    )
    given: dict[str, Any] = {
        "task": "mass",
        "args": [number],
        "kwargs": {"shard": number % 10},
        "outcome": "failed",
        "error_type": "shop.errors.Closed",
        "error": f"number {number}",
        "died_ms": 1_700_000_000_000 + number,
        **fields,
    }
    return DeadLetter(
        job_id=f"job-{number:06}",
        queue=QUEUE,
        attempt=1,
        traceback="Traceback …",
        enqueued_ms=1_700_000_000_000,
        payload=encode_job(MsgpackCodec(), record),
        **given,
    )


async def bury(client: Client, letters: Sequence[DeadLetter]) -> None:
    for start in range(0, len(letters), 1000):
        async with client.pipeline(transaction=False) as pipe:
            for letter in letters[start : start + 1000]:
                pipe.set(keys.dead_letter(letter.job_id), encode_letter(letter), px=600_000)
                pipe.zadd(keys.dead(QUEUE), {letter.job_id: letter.died_ms})
            pipe.pexpire(keys.dead(QUEUE), 600_000)
            await pipe.execute()


def at(number: int) -> datetime:
    return datetime.fromtimestamp(1_700_000_000 + number / 1000, UTC)


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        (LetterFilter(), range(20)),
        (LetterFilter(task="odd"), range(1, 20, 2)),
        (LetterFilter(task="od"), ()),
        (LetterFilter(error="Closed"), range(10)),
        (LetterFilter(error="shop.errors.Closed"), range(10)),
        (LetterFilter(error="losed"), ()),
        (LetterFilter(error=ConnectionError), range(10, 20)),
        (LetterFilter(text="number 1"), (1, *range(10, 20))),
        (LetterFilter(text="NUMBER"), ()),
        (LetterFilter(outcome=Outcome.TIMED_OUT), (5,)),
        (LetterFilter(outcome="timed_out", task="odd"), (5,)),
        (LetterFilter(since=at(17)), (17, 18, 19)),
        (LetterFilter(until=at(2)), (0, 1)),
        (LetterFilter(since=at(3), until=at(5)), (3, 4)),
        (LetterFilter(arguments={"shard": 7}), (7, 17)),
        (LetterFilter(arguments={0: 7}), (7,)),
        (LetterFilter(arguments={0: 7, "shard": 8}), ()),
        (LetterFilter(arguments={0: True}), ()),
        (LetterFilter(arguments={5: 1}), ()),
        (LetterFilter(arguments={"number": 7}), ()),
    ],
)
async def test_letters_are_found_by_what_they_say(
    client: Client, where: LetterFilter, numbers: Sequence[int]
) -> None:
    def facts(number: int) -> dict[str, Any]:
        return {
            "task": "odd" if number % 2 else "even",
            "error_type": "shop.errors.Closed" if number < 10 else "ConnectionError",
            "outcome": "timed_out" if number == 5 else "failed",
        }

    await bury(client, [made(number, **facts(number)) for number in range(20)])
    page = await client.dead.list(where)
    assert [letter.args[0] for letter in page.letters] == sorted(numbers, reverse=True)
    assert page.after == ""
    assert [letter.args[0] async for letter in client.dead.find(where)] == sorted(
        numbers, reverse=True
    )


async def test_argument_by_name_is_found_where_it_was_given_by_place(client: Client) -> None:
    await bury(client, [made(number, task="pay", kwargs={}) for number in range(3)])
    page = await client.dead.list(LetterFilter(task=pay, arguments={"order_id": 2}))
    assert [letter.args for letter in page.letters] == [[2]]


@pytest.mark.parametrize("ties", [1, 700, 20_000])
async def test_pages_over_twenty_thousand_letters_bring_each_once(
    client: Client, ties: int
) -> None:
    count = 20_000
    await bury(
        client,
        [made(n, died_ms=1_700_000_000_000 + n // ties) for n in range(count)],
    )
    seen: list[int] = []
    after = ""
    while True:
        page = await client.dead.list(limit=997, after=after)
        assert len(page.letters) <= 997
        seen += [letter.args[0] for letter in page.letters]
        after = page.after
        if not after:
            break
        # What was shown last may go meanwhile.
        await client.dead.purge(page.letters[-1].job_id)
    assert seen == list(reversed(range(count)))
    rare = LetterFilter(arguments={0: 12_345})
    assert [letter.args[0] async for letter in client.dead.find(rare)] == [12_345]


async def test_no_call_brings_more_than_its_bound(client: Client) -> None:
    big = "x" * 400_000
    await bury(client, [made(number, kwargs={"big": big}) for number in range(60)])
    await client.config_resetstat()
    assert len([letter async for letter in client.dead.find()]) == 60
    stats = await client.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] >= 5  # 24 MB, 4 MB a call


async def test_requeue_and_purge_of_twenty_thousand(client: Client) -> None:
    count = 20_000
    await bury(client, [made(number) for number in range(count)])
    said = await client.dead.requeue(LetterFilter(until=at(5_000)))
    assert (said.count, await client.zcard(QUEUE)) == (5_000, 5_000)
    assert await client.dead.count() == count - 5_000
    assert await client.dead.purge(LetterFilter(arguments={"shard": 3})) == 1_500
    assert await client.dead.purge(LetterFilter()) == count - 5_000 - 1_500
    assert await client.keys("runner:dead*") == []
    first = decode_job(MsgpackCodec(), await client.get(keys.job("job-000000")) or b"")
    assert (first.task, first.args) == ("mass", (0,))


async def test_letter_that_ran_out_is_left_out(client: Client) -> None:
    await bury(client, [made(number) for number in range(3)])
    await client.delete(keys.dead_letter("job-000001"))
    assert [letter.args[0] for letter in (await client.dead.list()).letters] == [2, 0]
    assert await client.dead.count() == 2


async def test_purge_of_named_letters_leaves_the_others(client: Client) -> None:
    await bury(client, [made(number) for number in range(3)])
    assert await client.dead.purge(["job-000001", "nobody"]) == 1
    assert [letter.args[0] for letter in await client.dead_letters()] == [2, 0]


async def test_letters_of_another_queue_are_its_own(redis_url: str, client: Client) -> None:
    job = await client.enqueue(hopeless.options(queue="other"))
    await drain(redis_url, [hopeless], queue_name="other")
    assert await client.dead.count() == 0
    others = client.dead.of("other")
    assert [letter.job_id for letter in (await others.list()).letters] == [job.job_id]
    assert (await others.requeue(job.job_id)).count == 1
    assert await client.zcard("other") == 1


def test_filter_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ArgumentsError, match="needs a time zone"):
        LetterFilter(since=datetime(2026, 1, 1))  # noqa: DTZ001  that is the point
    with pytest.raises(ArgumentsError, match="outcome is one of"):
        LetterFilter(outcome="bad")


async def test_place_that_no_page_gave_is_refused(client: Client) -> None:
    with pytest.raises(ArgumentsError, match="not the `after` of a page"):
        await client.dead.list(after="7")


# Retention


def lately(number: int) -> int:
    """Return a time of the last hour, later for higher numbers."""
    return int(datetime.now(UTC).timestamp() * 1000) - 3_600_000 + number * 1000


async def test_letters_beyond_the_number_go_the_oldest_first(
    redis_url: str, client: Client
) -> None:
    await bury(client, [made(number, died_ms=lately(number)) for number in range(30)])
    await cast("Any", client.rpush(keys.dead_errors("job-000000"), b"x"))
    job = await client.enqueue(hopeless)
    await drain(redis_url, [hopeless], dead_letters_max=5)
    left = [letter.job_id for letter in await client.dead_letters()]
    assert left == [job.job_id, *(f"job-{n:06}" for n in (29, 28, 27, 26))]
    assert len(await client.keys("runner:dead-letter:*")) == 5
    assert await client.exists(keys.dead_errors("job-000000")) == 0


async def test_letters_beyond_the_age_go(redis_url: str, client: Client) -> None:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    ages_s = (5, 59, 61, 3_600)
    await bury(client, [made(s, died_ms=now_ms - s * 1000) for s in ages_s])
    job = await client.enqueue(hopeless)
    await drain(redis_url, [hopeless], dead_letters_keep=60)
    left = [letter.job_id for letter in await client.dead_letters()]
    assert left == [job.job_id, "job-000005", "job-000059"]
    assert len(await client.keys("runner:dead-letter:*")) == 3
    assert 0 < await client.pttl(keys.dead_letter(job.job_id)) <= 60_000
    assert 0 < await client.pttl(keys.dead(QUEUE)) <= 60_000


async def test_trimming_is_bounded_and_catches_up(redis_url: str, client: Client) -> None:
    await bury(client, [made(number, died_ms=lately(number)) for number in range(2_500)])
    async with raw(redis_url) as redis:
        rig = Rig(redis)
        rig.broker.retention = Retention(most=10)
        counts = []
        for number in range(4):
            claimed = await rig.claim_one(f"late-{number}")
            await rig.settle(_died(claimed))
            counts.append(await client.dead.count())
    assert counts == [1_501, 502, 10, 10]


def _died(claimed: Any) -> Any:
    return runner.broker.Settlement(
        claimed=claimed, mode="done", counter="failed", letter=encode_letter(made(1))
    )


def test_letter_of_an_older_version_is_read() -> None:
    fields = msgspec.msgpack.decode(encode_letter(made(1)))
    for name in ("started_ms", "worker", "requeued", "errors"):
        del fields[name]
    assert decode_letter(msgspec.msgpack.encode(fields)) == made(1)


async def test_what_is_no_letter_hides_no_other(client: Client) -> None:
    await bury(client, [made(number) for number in range(3)])
    await client.set(keys.dead_letter("job-000001"), b"\xff junk", px=60_000)
    await cast("Any", client.rpush(keys.dead_errors("job-000001"), b"\xff junk"))
    await client.expire(keys.dead_errors("job-000001"), 60)
    await client.delete(keys.dead_letter("job-000002"))
    await cast("Any", client.hset(keys.dead_letter("job-000002"), "a", "b"))
    await client.expire(keys.dead_letter("job-000002"), 60)
    page = await client.dead.list()
    assert [letter.job_id for letter in page.letters] == [f"job-{n:06}" for n in (2, 1, 0)]
    assert page.letters[1].error.startswith("this letter cannot be read")
    shown = await client.dead.show("job-000001")
    assert shown.errors[0].error.startswith("this record cannot be read")
    said = await client.dead.requeue(LetterFilter())
    assert (said.count, said.stayed) == (1, 2)
    assert await client.dead.purge(LetterFilter(outcome=Outcome.UNDECODABLE)) == 0
    assert await client.dead.purge(LetterFilter()) == 2


async def test_error_that_cannot_be_shown_is_still_one(redis_url: str, client: Client) -> None:
    class NastyError(Exception):
        @property
        def __cause__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("not even looked at")

        def __str__(self) -> str:
            raise RuntimeError("nor read")

    @task(retries=1, backoff=NOW)
    async def nasty(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise NastyError
        raise ValueError("the last")

    job = await client.enqueue(nasty)
    await drain(redis_url, [nasty])
    (error,) = (await client.dead.show(job.job_id)).errors
    assert "NastyError" in error.error_type


async def test_delay_that_is_no_time_is_refused(client: Client) -> None:
    with pytest.raises(ArgumentsError, match="delay must be"):
        await client.dead.requeue(LetterFilter(), delay=float("nan"))
