"""What a worker makes of a job: every outcome, its hooks, its limits, and how a worker stops."""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest
from arq import cron
from arq.connections import RedisSettings
from arq.jobs import DeserializationError, JobStatus, ResultNotFound
from arq.worker import JobExecutionFailed, func

import runner
from runner import Cancel, Context, Retry, RetryPolicy, Snooze, keys, task
from runner.codec import MsgpackCodec
from runner.errors import (
    ArgumentsError,
    JobExpired,
    RemoteError,
    TaskNotFound,
    TooManyCrashes,
    TooManyTries,
)
from runner.worker import Worker
from tests.engine import Gate, Rig, drain, payload, raw, result_of, serving, started
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from runner import Client, DeadLetter, Job
    from tests.servers import ChaosServers

pytestmark = [pytest.mark.timeout(30), pytest.mark.lasting_keys("runner:held:*")]

QUEUE = keys.DEFAULT_QUEUE
AT_ONCE = RetryPolicy(base=0, cap=0)


@task
async def add(_ctx: Context, a: int, b: int = 0) -> int:
    return a + b


@task
async def fail(_ctx: Context, message: str = "broken") -> None:
    raise ValueError(message)


@task(timeout=0.05)
async def overrun(_ctx: Context) -> None:
    await asyncio.Event().wait()


@task
async def wait_at(ctx: Context, name: str = "") -> str:
    await ctx["gate"](name)
    return name


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@pytest.fixture
def quiet() -> Iterator[None]:
    """Log nothing: text that is no UTF-8 does not pass between the processes of a test run."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def letter_of(client: Client) -> DeadLetter:
    (letter,) = await client.dead_letters()
    return letter


async def test_job_that_succeeds_leaves_its_result(redis_url: str, client: Client) -> None:
    job = await client.enqueue(add, 2, b=3)
    worker = await drain(redis_url, [add])
    assert await job.result(timeout=1) == 5
    assert (worker.jobs_complete, worker.jobs_failed, worker.jobs_retried) == (1, 0, 0)
    assert (await client.queue_stats()).succeeded == 1
    assert await client.dead_letters() == []


async def test_job_that_raises_is_a_failure_with_a_dead_letter(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(fail, "no such row")
    worker = await drain(redis_url, [fail])
    with pytest.raises(RemoteError, match="ValueError: no such row"):
        await job.result(timeout=1)
    assert worker.jobs_failed == 1
    letter = await letter_of(client)
    assert (letter.job_id, letter.task, letter.args) == (job.job_id, "fail", ["no such row"])
    assert (letter.outcome, letter.error_type, letter.error) == (
        "failed",
        "ValueError",
        "no such row",
    )
    assert "raise ValueError(message)" in letter.traceback
    assert (await client.queue_stats()).failed == 1


async def test_dead_letter_holds_the_job_as_it_was_enqueued(redis_url: str, client: Client) -> None:
    job = await client.enqueue(fail, "again")
    enqueued = await client.get(keys.job(job.job_id))
    await drain(redis_url, [fail])
    assert (await letter_of(client)).payload == enqueued


# Tries


@task
async def retry_until(ctx: Context, attempt: int, defer: float | None = None) -> int:
    if ctx.attempt < attempt:
        raise Retry(defer=defer)
    return ctx.attempt


async def test_retry_runs_a_job_again(redis_url: str, client: Client) -> None:
    job = await client.enqueue(retry_until, 3)
    worker = await drain(redis_url, [retry_until])
    assert await job.result(timeout=1) == 3
    assert worker.jobs_retried == 2
    assert (await client.queue_stats()).retried == 2


async def test_retry_with_a_delay_waits_for_it(redis_url: str, client: Client) -> None:
    job = await client.enqueue(retry_until, 2, 60)
    async with serving(redis_url, [retry_until]) as worker:
        await wait_until(lambda: worker.jobs_retried, description="the first try is over")

        async def is_settled() -> bool:
            return await job.status() is JobStatus.deferred

        await wait_until(is_settled, description="and settled")
        score = await client.zscore(QUEUE, job.job_id)
    assert score == pytest.approx(datetime.now(tz=UTC).timestamp() * 1000 + 60_000, abs=10_000)


@task
async def snooze(ctx: Context) -> int:
    ctx["naps"].append(ctx.attempt)
    if len(ctx["naps"]) < 8:
        raise Snooze(0)
    return len(ctx["naps"])


async def test_snooze_spends_no_try(redis_url: str, client: Client) -> None:
    naps: list[int] = []
    job = await client.enqueue(snooze)
    await drain(redis_url, [snooze], ctx={"naps": naps}, max_tries=2)
    assert await job.result(timeout=1) == 8
    assert naps == [1] * 8


@task
async def cancel(_ctx: Context) -> None:
    raise Cancel("the order was withdrawn")


async def test_cancel_ends_a_job_for_good(redis_url: str, client: Client) -> None:
    job = await client.enqueue(cancel)
    worker = await drain(redis_url, [cancel])
    with pytest.raises(Cancel, match="the order was withdrawn"):
        await job.result(timeout=1)
    assert (worker.jobs_failed, worker.jobs_retried) == (1, 0)
    assert (await letter_of(client)).outcome == "cancelled"


@task(retries=2, backoff=AT_ONCE)
async def flaky(ctx: Context, good_from: int) -> int:
    if ctx.attempt < good_from:
        raise ValueError(f"try {ctx.attempt}")
    return ctx.attempt


async def test_task_with_retries_is_tried_again_by_its_policy(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(flaky, 3)
    await drain(redis_url, [flaky])
    assert await job.result(timeout=1) == 3


async def test_task_is_given_up_after_its_retries_with_its_own_error(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(flaky, 99)
    worker = await drain(redis_url, [flaky])
    with pytest.raises(RemoteError, match="try 3"):
        await job.result(timeout=1)
    assert worker.jobs_retried == 2
    assert (await letter_of(client)).attempt == 3


async def test_retry_beyond_max_tries_is_given_up(redis_url: str, client: Client) -> None:
    job = await client.enqueue(retry_until, 99)
    await drain(redis_url, [retry_until], max_tries=2)
    with pytest.raises(TooManyTries, match="max 2 retries exceeded"):
        await job.result(timeout=1)
    assert (await letter_of(client)).outcome == "too_many_tries"


async def test_worker_that_does_not_retry_fails_a_job_that_asks_for_it(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(retry_until, 2)
    await drain(redis_url, [retry_until], retry_jobs=False)
    with pytest.raises(RemoteError, match="Retry"):
        await job.result(timeout=1)


# Time


async def test_job_that_overruns_its_time_limit_fails(redis_url: str, client: Client) -> None:
    job = await client.enqueue(overrun)
    await drain(redis_url, [overrun])
    with pytest.raises(TimeoutError):
        await job.result(timeout=1)
    letter = await letter_of(client)
    assert letter.outcome == "timed_out"
    assert "in overrun" in letter.traceback


async def test_deferred_job_starts_when_it_is_due(redis_url: str, client: Client) -> None:
    async with serving(redis_url, [add], poll_delay=20) as worker:
        await wait_until(lambda: idle(client), description="the worker waits")
        loop = asyncio.get_running_loop()
        began = loop.time()
        job = await client.enqueue(add.options(delay=0.3), 1)
        assert await job.status() is JobStatus.deferred
        assert await job.result(timeout=10) == 1
        assert 0.29 <= loop.time() - began < 5
    assert worker.jobs_complete == 1


async def idle(client: Client) -> int:
    count: int = await client.zcard(keys.idle(QUEUE))
    return count


async def test_enqueued_job_wakes_a_worker_before_it_would_poll(
    redis_url: str, client: Client
) -> None:
    async with serving(redis_url, [add], poll_delay=20):
        await wait_until(lambda: idle(client), description="the worker waits")
        job = await client.enqueue(add, 1)
        assert await job.result(timeout=5) == 1


async def test_job_that_expired_is_not_run(redis_url: str, client: Client) -> None:
    job = await client.enqueue(add.options(expires=0.001), 1)
    await wait_until(lambda: expired(client, job.job_id), description="its time is up")
    await drain(redis_url, [add])
    with pytest.raises(JobExpired):
        await job.result(timeout=1)
    assert (await letter_of(client)).outcome == "expired"


async def expired(client: Client, job_id: str) -> bool:
    fields = MsgpackCodec().loads(await client.get(keys.job(job_id)))
    return bool(datetime.now(tz=UTC).timestamp() * 1000 > fields["x"]["exp"] + 1)


async def test_job_whose_payload_is_gone_is_expired(redis_url: str, client: Client) -> None:
    job = await client.enqueue(add, 1)
    await client.delete(keys.job(job.job_id))
    await drain(redis_url, [add])
    with pytest.raises(JobExpired, match="job expired"):
        await job.result(timeout=1)


# Jobs that no function can run


async def test_unknown_task_is_a_dead_letter_that_names_the_nearest(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue("retry_untill", 1)
    await drain(redis_url, [retry_until])
    with pytest.raises(TaskNotFound, match="'retry_untill' not found; did you mean 'retry_until'"):
        await job.result(timeout=1)
    letter = await letter_of(client)
    assert (letter.outcome, letter.task) == ("unknown_task", "retry_untill")
    assert "did you mean 'retry_until'" in letter.error


@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(b"\x80\x04not a job", id="garbage"),
        pytest.param(MsgpackCodec().dumps({"f": "add"}), id="fields missing"),
        pytest.param(
            MsgpackCodec().dumps({"t": 1, "f": "add", "a": [1], "k": {}, "et": 2**62}),
            id="time beyond any calendar",
        ),
        pytest.param(
            MsgpackCodec().dumps(
                {"t": 1, "f": "add", "a": [1], "k": {}, "et": 1, "x": {"exp": "soon"}}
            ),
            id="option of the wrong type",
        ),
    ],
)
async def test_undecodable_payload_is_a_dead_letter(
    redis_url: str, client: Client, blob: bytes
) -> None:
    job = await client.enqueue(add, 1)
    await client.set(keys.job(job.job_id), blob)
    await drain(redis_url, [add])
    with pytest.raises(DeserializationError):
        await job.result(timeout=1)
    letter = await letter_of(client)
    assert (letter.outcome, letter.payload) == ("undecodable", blob)


async def test_arguments_that_do_not_fit_fail_without_a_retry(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue("flaky", "not a number")
    worker = await drain(redis_url, [flaky])
    with pytest.raises(RuntimeError, match="good_from"):
        await job.result(timeout=1)
    assert worker.jobs_retried == 0
    missing = await client.enqueue("flaky")
    await drain(redis_url, [flaky])
    with pytest.raises(ArgumentsError, match="good_from"):
        await missing.result(timeout=1)


@pytest.mark.usefixtures("quiet")
async def test_job_id_that_is_no_text_does_not_stop_the_worker(
    redis_url: str, client: Client
) -> None:
    await client.zadd(QUEUE, {b"\xff\xfe": 1})
    job = await client.enqueue(add, 1)
    await drain(redis_url, [add])
    assert await job.result(timeout=1) == 1
    assert (await letter_of(client)).job_id == "\\udcff\\udcfe"
    await client.delete(keys.DEAD_LETTER.encode() + b"\xff\xfe")


async def test_score_without_end_does_not_stop_a_job(redis_url: str, client: Client) -> None:
    job = await client.enqueue(add, 1)
    await client.zadd(QUEUE, {job.job_id: "-inf"})
    await drain(redis_url, [add])
    assert await job.result(timeout=1) == 1


# What users' objects may do wrong


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("I will not say")


class ExtraRaisesError(Exception):
    def extra(self) -> str:
        raise RuntimeError("no extra")


@task
async def misbehave(_ctx: Context, how: str) -> Any:
    match how:
        case "message is no text":
            raise OSError("/tmp/\udcff")
        case "message raises":
            raise UnspeakableError
        case "extra raises":
            raise ExtraRaisesError
        case "snooze without a time":
            raise Snooze(float("nan"))
        case "snooze by text":
            raise Snooze("soon")  # type: ignore[arg-type]
        case "result cannot travel":
            return object()
        case "result is huge":
            return 2**70
        case _:
            raise asyncio.CancelledError


@pytest.mark.parametrize(
    "how",
    [
        "message is no text",
        "message raises",
        "extra raises",
        "snooze without a time",
        "snooze by text",
        "result cannot travel",
        "result is huge",
        "cancels itself",
    ],
)
@pytest.mark.usefixtures("quiet")
async def test_job_that_misbehaves_ends_as_a_failure(
    redis_url: str, client: Client, how: str
) -> None:
    job = await client.enqueue(misbehave, how)
    await drain(redis_url, [misbehave], max_tries=2)
    with pytest.raises(Exception):  # noqa: B017, PT011  which one depends on the case
        await job.result(timeout=1)
    assert await client.zcard(QUEUE) == 0
    assert not await client.exists(keys.held(QUEUE), keys.in_progress(job.job_id))


async def test_failed_job_with_arguments_beyond_msgpack_is_still_a_dead_letter(
    redis_url: str,
) -> None:
    async with runner.connect(redis_url, codec="pickle") as client:
        await client.enqueue("fail", 2**70)
        await drain(redis_url, [fail], codec="pickle")
        letter = await letter_of(client)
    assert letter.outcome == "failed"


async def test_serializer_that_fails_ends_the_job_without_a_result(redis_url: str) -> None:
    def refuse(_fields: dict[str, Any]) -> bytes:
        raise TypeError("never")

    async with runner.connect(redis_url, codec="pickle") as client:
        job = await client.enqueue(add, 1)
        worker = await drain(redis_url, [add], codec=None, job_serializer=refuse)
        assert worker.jobs_complete == 1
        assert await client.zcard(QUEUE) == 0
        with pytest.raises(ResultNotFound):
            await job.result(timeout=1)


# Results


@pytest.mark.parametrize(
    ("settings", "ttl"),
    [({"keep_result": 60}, 60_000), ({"keep_result_forever": True}, -1), ({"keep_result": 0}, -2)],
)
async def test_result_is_kept_as_the_worker_is_told(
    redis_url: str, client: Client, settings: dict[str, Any], ttl: int
) -> None:
    job = await client.enqueue(add, 1)
    await drain(redis_url, [add], **settings)
    left = await client.pttl(keys.result(job.job_id))
    assert left == pytest.approx(ttl, abs=5000 if ttl > 0 else 0)


async def test_task_says_itself_how_long_its_result_is_kept(redis_url: str, client: Client) -> None:
    @task(keep_result=7)
    async def brief(_ctx: Context) -> None: ...

    @task(keep_result_forever=True)
    async def lasting(_ctx: Context) -> None: ...

    short, forever = await client.enqueue(brief), await client.enqueue(lasting)
    await drain(redis_url, [brief, lasting])
    assert 0 < await client.pttl(keys.result(short.job_id)) <= 7000
    assert await client.pttl(keys.result(forever.job_id)) == -1


async def test_failure_is_kept_as_long_as_a_result_would_be(redis_url: str, client: Client) -> None:
    job = await client.enqueue(fail)
    await drain(redis_url, [fail], keep_result=0)
    with pytest.raises(ResultNotFound):
        await job.result(timeout=1)
    assert (await letter_of(client)).job_id == job.job_id


# Abort


async def test_job_is_aborted_while_it_runs(redis_url: str, client: Client) -> None:
    gate = Gate()
    job = await client.enqueue(wait_at)
    async with serving(redis_url, [wait_at], allow_abort_jobs=True, ctx={"gate": gate}) as worker:
        await gate.runs.wait()
        assert await job.abort(timeout=5) is True
        assert not worker.aborting_tasks
    assert gate.passed == []
    assert await client.exists(keys.ABORT) == 0


async def test_job_is_aborted_before_it_starts(redis_url: str, client: Client) -> None:
    job = await client.enqueue(add.options(delay=60), 1)
    async with serving(redis_url, [add], allow_abort_jobs=True) as worker:
        assert await job.abort(timeout=5) is True
    assert (worker.jobs_complete, worker.jobs_failed) == (0, 1)


async def test_abort_of_a_running_job_is_refused_unless_allowed(
    redis_url: str, client: Client
) -> None:
    gate = Gate()
    job = await client.enqueue(wait_at, "through")
    async with serving(redis_url, [wait_at], ctx={"gate": gate}):
        await gate.runs.wait()
        aborting = asyncio.create_task(job.abort(timeout=5))
        await wait_until(lambda: client.exists(keys.ABORT), description="the abort is asked for")
        gate.opens.set()
        assert await aborting is False
    assert await job.result(timeout=1) == "through"


async def test_abort_that_came_too_late_does_not_hit_the_next_job_of_that_key(
    redis_url: str, client: Client
) -> None:
    gate = Gate()
    once = wait_at.options(key="the one")
    await client.enqueue(once)
    settings = {"allow_abort_jobs": True, "poll_delay": 20, "keep_result": 0}
    async with serving(redis_url, [wait_at], ctx={"gate": gate}, **settings) as worker:
        await gate.runs.wait()
        await client.zadd(keys.ABORT, {"the one": datetime.now(tz=UTC).timestamp() * 1000})
        gate.opens.set()
        await wait_until(lambda: not worker.tasks, description="the first has ended")
        await client.enqueue(once)
        await wait_until(
            lambda: worker.jobs_complete + worker.jobs_failed == 2, description="both ended"
        )
    assert (worker.jobs_complete, worker.jobs_failed) == (2, 0)


async def test_job_is_not_lost_when_its_abort_cannot_be_looked_up(
    redis_url: str, client: Client
) -> None:
    await client.set(keys.ABORT, "not a set")
    job = await client.enqueue(add, 1)
    async with serving(redis_url, [add], allow_abort_jobs=True):
        assert await job.result(timeout=5) == 1


# Hooks


async def test_hooks_see_every_outcome(redis_url: str, client: Client) -> None:
    seen: list[tuple[str, str, str]] = []

    async def note(hook: str, ctx: Context) -> None:
        seen.append((ctx["job_id"], hook, ctx.get("outcome", "")))

    async def on_job_start(ctx: Context) -> None:
        await note("start", ctx)

    async def on_job_end(ctx: Context) -> None:
        await note("end", ctx)

    async def after_job_end(ctx: Context) -> None:
        await note("after", ctx)

    hooks = {"on_job_start": on_job_start, "on_job_end": on_job_end, "after_job_end": after_job_end}
    ran: dict[str, Job[Any]] = {
        "succeeded": await client.enqueue(add.options(key="a"), 1),
        "failed": await client.enqueue(fail.options(key="b")),
        "timed_out": await client.enqueue(overrun.options(key="c")),
        "cancelled": await client.enqueue(cancel.options(key="d")),
    }
    never_ran: dict[str, Job[Any]] = {
        "unknown_task": await client.enqueue("no such thing at all"),
        "undecodable": await client.enqueue(add.options(key="e"), 1),
        "expired": await client.enqueue(add.options(key="f"), 1),
    }
    await client.set(keys.job("e"), b"garbage")
    await client.delete(keys.job("f"))
    await drain(redis_url, [add, fail, overrun, cancel], **hooks)
    for outcome, job in ran.items():
        mine = [(hook, said) for job_id, hook, said in seen if job_id == job.job_id]
        assert mine == [("start", ""), ("end", outcome), ("after", outcome)]
    for outcome, job in never_ran.items():
        mine = [(hook, said) for job_id, hook, said in seen if job_id == job.job_id]
        assert mine == [("end", outcome), ("after", outcome)]


async def test_retried_attempt_goes_through_the_hooks_too(redis_url: str, client: Client) -> None:
    outcomes: list[str] = []

    async def on_job_end(ctx: Context) -> None:
        outcomes.append(ctx["outcome"])

    await client.enqueue(retry_until, 2)
    await drain(redis_url, [retry_until], on_job_end=on_job_end)
    assert outcomes == ["retried", "succeeded"]


async def test_failing_start_hook_fails_the_job(redis_url: str, client: Client) -> None:
    async def on_job_start(_ctx: Context) -> None:
        raise RuntimeError("no connection")

    job = await client.enqueue(add, 1)
    await drain(redis_url, [add], on_job_start=on_job_start)
    with pytest.raises(RemoteError, match="no connection"):
        await job.result(timeout=1)


@pytest.mark.parametrize("name", ["on_job_end", "after_job_end"])
async def test_failing_end_hook_does_not_change_the_outcome(
    redis_url: str, client: Client, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def hook(_ctx: Context) -> None:
        raise RuntimeError("metrics are away")

    job = await client.enqueue(add, 1)
    await drain(redis_url, [add], **{name: hook})
    assert await job.result(timeout=1) == 1
    assert f"the hook {name} failed for job {job.job_id}" in caplog.text


# What a job is given


async def test_context_is_arqs_dict(redis_url: str, client: Client) -> None:
    seen: dict[str, Any] = {}

    async def on_startup(ctx: dict[str, Any]) -> None:
        ctx["shop"] = "open"

    @task
    async def look(ctx: Context) -> None:
        seen.update(ctx)
        seen["attributes"] = (ctx.job_id, ctx.attempt, ctx.client is ctx["redis"])

    job = await client.enqueue(look)
    score = await client.zscore(QUEUE, job.job_id)
    await drain(redis_url, [look], on_startup=on_startup, ctx={"given": 1})
    assert score is not None
    assert seen["job_id"] == job.job_id
    assert seen["job_try"] == 1
    assert seen["score"] == int(score)
    assert seen["enqueue_time"].tzinfo is not None
    assert (seen["shop"], seen["given"]) == ("open", 1)
    assert seen["attributes"] == (job.job_id, 1, True)


async def test_what_one_job_puts_into_its_context_no_other_sees(
    redis_url: str, client: Client
) -> None:
    seen: list[Any] = []

    @task
    async def leave(ctx: Context) -> None:
        seen.append(ctx.get("left"))
        ctx["left"] = ctx.job_id

    for _ in range(2):
        await client.enqueue(leave)
    await drain(redis_url, [leave], max_jobs=1)
    assert seen == [None, None]


async def test_tasks_plain_functions_and_arqs_func_run_side_by_side(
    redis_url: str, client: Client
) -> None:
    async def plain(_ctx: dict[str, Any], a: int) -> str:
        return f"plain {a}"

    async def wrapped(_ctx: dict[str, Any], a: int) -> str:
        return f"wrapped {a}"

    jobs = [
        await client.enqueue(add, 1),
        await client.enqueue(plain.__qualname__, 2),
        await client.enqueue("by another name", 3),
        await client.enqueue("a task by another name", 4),
    ]
    functions = [
        add,
        plain,
        func(cast(Any, wrapped), name="by another name"),
        func(add, name="a task by another name"),
    ]
    await drain(redis_url, functions)
    assert [await job.result(timeout=1) for job in jobs] == [1, "plain 2", "wrapped 3", 4]


async def test_plain_function_keeps_its_arguments_as_they_travel(
    redis_url: str, client: Client
) -> None:
    async def plain(_ctx: dict[str, Any], *args: Any, **kwargs: Any) -> list[Any]:
        return [type(args[0]).__name__, args[0], kwargs]

    job = await client.enqueue(plain.__qualname__, date(2024, 5, 1), mode="fast")
    await drain(redis_url, [plain])
    assert await job.result(timeout=1) == ["str", "2024-05-01", {"mode": "fast"}]


async def test_job_sees_and_enqueues_more_jobs(redis_url: str, client: Client) -> None:
    @task
    async def parent(ctx: Context) -> str:
        child = await ctx.client.enqueue(add, 20, 22)
        return child.job_id

    job = await client.enqueue(parent)
    await drain(redis_url, [parent, add])
    child = client.job(await job.result(timeout=1))
    assert await child.result(timeout=1) == 42


# Cron


@pytest.mark.lasting_keys("runner:schedules:*", "runner:schedule:*")
async def test_cron_job_runs_at_its_time(redis_url: str, client: Client) -> None:
    ran = asyncio.Event()
    refs: list[str] = []

    @task
    async def tick(ctx: Context) -> None:
        refs.append(ctx.job_id)
        ran.set()

    async with serving(redis_url, [add], cron_jobs=[cron(tick, run_at_startup=True)]):
        async with asyncio.timeout(5):
            await ran.wait()
        await wait_until(lambda: left(client), description="it has ended")
        assert 0 < await client.pttl(keys.in_progress(refs[0])) <= 60_000
    assert refs[0].startswith("cron:")
    assert len(refs) == 1


async def left(client: Client) -> bool:
    return not await client.exists(QUEUE, keys.held(QUEUE))


@pytest.mark.lasting_keys("runner:schedules:*", "runner:schedule:*")
async def test_cron_job_of_two_workers_runs_once(redis_url: str) -> None:
    ran: list[int] = []
    async with asyncio.timeout(10):

        async def tick(_ctx: Any) -> None:
            ran.append(1)

        def jobs() -> list[Any]:
            return [cron(cast(Any, tick), second=set(range(0, 60, 2)), unique=True)]

        async with runner.connect(redis_url) as client:
            async with (
                serving(redis_url, [add], cron_jobs=jobs(), poll_delay=0.1) as one,
                serving(redis_url, [add], cron_jobs=jobs(), poll_delay=0.1) as two,
            ):
                await wait_until(lambda: ran, description="the time has come")
                await wait_until(lambda: left(client), description="it has ended")
            # Counted when both have stopped: the time comes again every two seconds.
            assert one.jobs_complete + two.jobs_complete == len(ran)
            assert len(await client.keys(keys.IN_PROGRESS + "cron:*")) == len(ran)


# Limits


async def test_worker_runs_no_more_jobs_at_once_than_it_has_slots(
    redis_url: str, client: Client
) -> None:
    now, most = 0, 0

    @task
    async def busy(_ctx: Context) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1

    await client.enqueue_many([busy.call() for _ in range(60)])
    worker = await drain(redis_url, [busy], max_jobs=7)
    assert worker.jobs_complete == 60
    assert most == 7


async def test_poison_job_is_given_up_after_max_crashes(redis_url: str, client: Client) -> None:
    job = await client.enqueue(add.options(key="poison"), 1)
    rig = Rig(client)
    for _ in range(2):
        (claimed,) = await rig.claim()
        await rig.lapse(claimed)
    await drain(redis_url, [add], max_crashes=2)
    with pytest.raises(TooManyCrashes, match="lost its worker 2 times"):
        await job.result(timeout=1)
    assert (await letter_of(client)).outcome == "too_many_crashes"
    assert (await client.queue_stats()).crashed == 2


async def test_job_below_the_poison_cap_runs_with_its_tries_untouched(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(retry_until, 1)
    rig = Rig(client)
    for _ in range(2):
        (claimed,) = await rig.claim()
        await rig.lapse(claimed)
    await drain(redis_url, [retry_until], max_crashes=3, max_tries=1)
    assert await job.result(timeout=1) == 1


async def test_dead_workers_job_is_taken_over_by_a_worker_that_polls_rarely(
    redis_url: str, client: Client
) -> None:
    job = await client.enqueue(add, 1)
    rig = Rig(client, lease_ms=1000)
    assert len(await rig.claim()) == 1
    async with serving(redis_url, [add], lease=1, poll_delay=2):
        assert await job.result(timeout=5) == 1


async def test_own_count_of_tries_is_heeded(redis_url: str, client: Client) -> None:
    job = await client.enqueue_job("retry_until", 3, _job_try=3)
    assert job is not None
    await drain(redis_url, [retry_until])
    assert await job.result(timeout=1) == 3


# Stopping


async def stop(worker: Worker) -> None:
    """Stop a worker as SIGTERM does, and let it close."""
    main = asyncio.create_task(worker.async_run())
    await wait_until(lambda: worker.tasks, description="jobs run")
    await worker.close()
    await asyncio.gather(main, return_exceptions=True)


def settings_of(url: str, **more: Any) -> dict[str, Any]:
    return {
        "redis_settings": RedisSettings.from_dsn(url),
        "handle_signals": False,
        "codec": "msgpack",
        "history": True,
        **more,
    }


async def test_stopping_worker_hands_its_job_back_without_a_try(
    redis_url: str, client: Client
) -> None:
    gate = Gate()
    job = await client.enqueue(wait_at, "later")
    score = await client.zscore(QUEUE, job.job_id)
    settings = settings_of(redis_url, ctx={"gate": gate}, max_tries=1)
    await stop(Worker([wait_at], **settings))
    assert not await client.exists(
        keys.held(QUEUE), keys.retry(job.job_id), keys.in_progress(job.job_id)
    )
    assert await client.zscore(QUEUE, job.job_id) == pytest.approx(score, abs=0.01)
    gate.opens.set()
    await drain(redis_url, [wait_at], ctx={"gate": gate}, max_tries=1)
    assert await job.result(timeout=1) == "later"


async def test_stopping_worker_hands_back_a_job_that_waits_for_its_abort_look_up(
    redis_url: str, client: Client
) -> None:
    claimed = asyncio.Event()

    class Slow(Worker):
        async def _note_abort(self, _job_id: str) -> None:
            claimed.set()
            await asyncio.Event().wait()

    await client.enqueue(add, 1)
    async with started(Slow([add], **settings_of(redis_url, allow_abort_jobs=True))):
        await claimed.wait()
    assert not await client.exists(keys.held(QUEUE))


async def test_stopping_worker_settles_a_job_whose_end_hook_still_runs(
    redis_url: str, client: Client
) -> None:
    ending = asyncio.Event()

    async def on_job_end(_ctx: Context) -> None:
        ending.set()
        await asyncio.Event().wait()

    job = await client.enqueue(add, 1)
    worker = Worker([add], **settings_of(redis_url, on_job_end=on_job_end))
    async with started(worker):
        await ending.wait()
    assert await job.result(timeout=1) == 1


@pytest.mark.parametrize("turn", range(8))
async def test_worker_that_stops_under_load_leaves_nothing_held(
    redis_url: str, client: Client, turn: int
) -> None:
    ran: list[int] = []

    @task
    async def brief(_ctx: Context, number: int) -> None:
        await asyncio.sleep(0)
        ran.append(number)

    await client.enqueue_many([brief.call(n) for n in range(3000)])
    worker = Worker([brief], **settings_of(redis_url, max_jobs=50, keep_result=0))
    async with started(worker):
        await wait_until(lambda: len(ran) > 100 + 50 * turn, description="it is under load")
    assert not await client.exists(keys.held(QUEUE))
    assert await client.keys(keys.IN_PROGRESS + "*") == []
    assert await client.zcard(QUEUE) == 3000 - len(ran)
    assert (worker.job_counter, len(worker.tasks)) == (0, 0)


async def test_claim_under_way_when_a_worker_stops_is_handed_back(
    chaos_servers: ChaosServers,
) -> None:
    """The reply of a claim that was sent before the stop arrives after it."""
    worker = Worker([add], **settings_of(chaos_servers.redis_url, poll_delay=20, lease=80))
    async with runner.connect(chaos_servers.redis_url) as client, started(worker):
        # Its look is over: the pause would hold the calls in it, and the claim wait for them.
        await wait_until(lambda: worker._nudge._waiters, description="the worker waits")
        await client.set(keys.job("j"), payload("add"), px=60_000)
        await client.zadd(QUEUE, {"j": 1})  # as a stock client does it: nobody is woken
        await client.client_pause(1500)
        worker._nudge.set()
        await wait_until(lambda: worker.cycles._lines[0]._calls, description="a claim is under way")
    async with raw(chaos_servers.redis_url) as redis:
        assert worker.jobs_complete + worker.jobs_failed == 0
        assert await redis.exists(keys.held(QUEUE), keys.in_progress("j")) == 0
        assert await redis.zscore(QUEUE, "j") == 1


async def test_stopping_worker_lets_jobs_finish_for_a_while(redis_url: str, client: Client) -> None:
    gate = Gate()
    job = await client.enqueue(wait_at, "finished")
    worker = Worker([wait_at], **settings_of(redis_url, ctx={"gate": gate}, job_completion_wait=20))
    main = asyncio.create_task(worker.async_run())
    await gate.runs.wait()
    import signal  # noqa: PLC0415

    worker.handle_sig_wait_for_completion(signal.SIGTERM)
    late = await client.enqueue(wait_at, "not picked")
    gate.opens.set()
    await asyncio.gather(main, return_exceptions=True)
    await worker.close()
    assert await job.result(timeout=1) == "finished"
    assert await late.status() is JobStatus.queued


async def test_worker_starts_again_after_it_was_closed(redis_url: str, client: Client) -> None:
    worker = Worker([add], **settings_of(redis_url))
    for number in range(3):
        async with started(worker):
            job = await client.enqueue(add, number)
            assert await job.result(timeout=5) == number
    assert worker.jobs_complete == 3


async def test_worker_that_was_never_started_can_be_closed(redis_url: str) -> None:
    await Worker([add], **settings_of(redis_url)).close()


async def test_closed_worker_leaves_no_sign_of_itself(redis_url: str, client: Client) -> None:
    async with serving(redis_url, [add]):
        await wait_until(lambda: idle(client), description="it waits for work")
        await wait_until(lambda: client.exists(keys.health(QUEUE)), description="it says so")
    assert await client.keys() == []


async def test_burst_worker_stops_after_so_many_jobs(redis_url: str, client: Client) -> None:
    await client.enqueue_many([add.call(n) for n in range(10)])
    worker = await drain(redis_url, [add], max_burst_jobs=4)
    assert worker.jobs_complete == 4
    assert await client.zcard(QUEUE) == 6


# Logs


async def test_lines_of_a_job_are_arqs_own(
    redis_url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="arq.worker")
    job = await client.enqueue(add, 1, b=2)
    await drain(redis_url, [add])
    lines = [r.getMessage() for r in caplog.records if job.job_id in r.getMessage()]
    assert len(lines) == 2
    assert lines[0].endswith(f"s → {job.job_id}:add(1, b=2)")
    assert lines[1].endswith(f"s ← {job.job_id}:add ● 3")


async def test_failure_of_stock_clients_kind_is_arqs_exception(
    redis_url: str, client: Client
) -> None:
    """Results of ours that stock arq raises are instances of what it would have raised."""
    job = await client.enqueue("nobody knows it")
    await drain(redis_url, [add])
    record = await result_of(client, job.job_id)
    assert isinstance(record.result, JobExecutionFailed)
    assert record.success is False


async def test_job_that_blocks_the_loop_keeps_its_lease(redis_url: str, client: Client) -> None:
    """A thread renews: a second worker finds nothing to take over."""
    import time  # noqa: PLC0415

    ran: list[int] = []

    @task
    async def block(_ctx: Context) -> None:
        ran.append(os.getpid())
        time.sleep(1.6)  # noqa: ASYNC251  the point of the test

    job = await client.enqueue(block)
    async with serving(redis_url, [block], lease=1, poll_delay=0.1):
        await job.result(timeout=10)
    assert len(ran) == 1
    async with raw(redis_url) as redis:
        assert await redis.hget(keys.counters(QUEUE), "crashed") is None


async def test_worker_made_before_a_fork_names_its_claims_anew(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(
        [retry_until], redis_settings=RedisSettings.from_dsn(redis_url), handle_signals=False
    )
    before = set(worker.cycles.lanes)
    monkeypatch.setattr("runner.cycle.os.getpid", lambda: -1)  # as in a child
    async with started(worker):
        await wait_until(lambda: before.isdisjoint(worker.cycles.lanes), description="it is open")
    assert len(worker.cycles.lanes) == len(before)
