"""Middleware stands around every enqueue and every run, in order, and costs nothing when absent."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import sentry_sdk
from arq.worker import func
from sentry_sdk.transport import Transport

import runner
from runner import (
    Cancel,
    Context,
    JobTiming,
    ManyContext,
    Middleware,
    Propagation,
    Retry,
    RetryPolicy,
    Sentry,
    Snooze,
    Timing,
    group,
    task,
)
from runner.codec import JobRecord, MsgpackCodec, encode_job
from runner.errors import (
    ArgumentsError,
    EncodeError,
    PayloadTooLarge,
    RemoteError,
    SettingsError,
    WriteRejected,
)
from runner.events import JobEnded
from tests.engine import serving, stock_client
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:*")]

TENANT: ContextVar[str] = ContextVar("tenant")
REQUEST: ContextVar[int] = ContextVar("request")


@task
async def add(_ctx: Context, left: int, right: int = 0) -> int:
    return left + right


@task
async def fail(_ctx: Context) -> None:
    raise ValueError("it fails")


@task(retries=1)
async def again(ctx: Context) -> int:
    if ctx.attempt == 1:
        raise Retry(defer=0)
    return ctx.attempt


@task
async def who(_ctx: Context) -> tuple[str, int]:
    return TENANT.get("nobody"), REQUEST.get(0)


@task
async def ask_another(ctx: Context) -> Any:
    return await (await ctx.client.enqueue(who)).result(timeout=10)


SEEN: list[str] = []


@task
async def see(_ctx: Context) -> None:
    SEEN.append(TENANT.get("nobody"))


@task
async def grow(ctx: Context) -> int:
    await ctx.flow.add(see.call())
    return 1


class Notes(Middleware):
    """Notes what goes through it."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    async def enqueue(self, call: Any, proceed: Any) -> Any:
        self.notes.append(f"{self.name} enqueues {call.task}{call.args}")
        job = await proceed(call)
        self.notes.append(f"{self.name} has enqueued")
        return job

    async def execute(self, job: Any, proceed: Any) -> Any:
        self.notes.append(f"{self.name} runs {job.task}{job.args}")
        try:
            return await proceed(job)
        except Exception as exc:
            self.notes.append(f"{self.name} sees {type(exc).__name__}")
            raise
        finally:
            self.notes.append(f"{self.name} has run")


class Double(Middleware):
    """Changes arguments on both sides."""

    async def enqueue(self, call: Any, proceed: Any) -> Any:
        doubled = tuple(2 * value for value in call.args)
        return await proceed(dataclasses.replace(call, args=doubled))

    async def execute(self, job: Any, proceed: Any) -> Any:
        return await proceed(dataclasses.replace(job, kwargs={**job.kwargs, "right": 1}))


class Refuse(Middleware):
    async def enqueue(self, call: Any, proceed: Any) -> Any:
        if call.args == (13,):
            raise PermissionError("not 13")
        return await proceed(call)


async def test_the_first_is_the_outermost_on_both_sides(redis_url: str) -> None:
    notes: list[str] = []
    layers = [Notes("outer", notes), Notes("inner", notes)]
    async with (
        runner.connect(redis_url, middleware=layers) as client,
        serving(redis_url, [add], middleware=layers),
    ):
        assert await (await client.enqueue(add, 1, 2)).result(timeout=10) == 3
    assert notes == [
        "outer enqueues add(1, 2)",
        "inner enqueues add(1, 2)",
        "inner has enqueued",
        "outer has enqueued",
        "outer runs add(1, 2)",
        "inner runs add(1, 2)",
        "inner has run",
        "outer has run",
    ]


async def test_arguments_can_be_changed(redis_url: str) -> None:
    async with (
        runner.connect(redis_url, middleware=[Double()]) as client,
        serving(redis_url, [add], middleware=[Double()]),
    ):
        assert await (await client.enqueue(add, 5)).result(timeout=10) == 11
        job = await client.enqueue_job("add", 5)
        assert job is not None
        assert await job.result(timeout=10) == 11
        jobs = await client.enqueue_many([add.call(5), add.call(6)])
        assert [await job.result(timeout=10) for job in jobs] == [11, 13]


async def test_control_flow_goes_through_and_keeps_its_meaning(redis_url: str) -> None:
    notes: list[str] = []
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, [again], middleware=[Notes("m", notes)]),
    ):
        assert await (await client.enqueue(again)).result(timeout=10) == 2
    assert notes.count("m sees Retry") == 1
    assert notes.count("m has run") == 2


class Twice(Middleware):
    """Enqueues each job twice, the second time with another argument, and both at once."""

    async def enqueue(self, call: Any, proceed: Any) -> Any:
        other = dataclasses.replace(call, args=(call.args[0] + 100,))
        first, _ = await asyncio.gather(proceed(call), proceed(other))
        return first


class ThenAgain(Middleware):
    """Enqueues another behind each job."""

    async def enqueue(self, call: Any, proceed: Any) -> Any:
        job = await proceed(call)
        await proceed(dataclasses.replace(call, args=(call.args[0] + 100,)))
        return job


@pytest.mark.parametrize("layer", [Twice, ThenAgain])
async def test_layer_may_proceed_twice_also_in_a_batch(
    redis_url: str, layer: type[Middleware]
) -> None:
    done: list[int] = []

    @task
    async def note(_ctx: Context, number: int) -> None:
        done.append(number)

    async with (
        runner.connect(redis_url, middleware=[layer()]) as client,
        serving(redis_url, [note]),
    ):
        jobs = await client.enqueue_many([note.call(1), note.call(2), note.call(3)])
        assert len({job.job_id for job in jobs}) == 3
        await client.enqueue(note, 4)
        await wait_until(lambda: len(done) == 8, description="all jobs have run")
    assert sorted(done) == [1, 2, 3, 4, 101, 102, 103, 104]


class Skip(Middleware):
    """Enqueues no even numbers."""

    async def enqueue(self, call: Any, proceed: Any) -> Any:
        return await proceed(call) if call.args[0] % 2 else None


async def test_layer_that_does_not_proceed_enqueues_nothing(redis_url: str) -> None:
    async with runner.connect(redis_url, middleware=[Skip()]) as client:
        assert await client.enqueue(add, 2) is None
        assert await client.enqueue_job("add", 2) is None
        made = await client.enqueue_many([add.call(number) for number in range(5)])
        assert [job is None for job in made] == [True, False, True, False, True]
        assert await client.zcard("arq:queue") == 2


async def test_bare_worker_s_jobs_enqueue_through_its_middleware(redis_url: str) -> None:
    async def enqueues(ctx: Any) -> None:
        await ctx["redis"].enqueue_job("ends", 7)

    async def ends(_ctx: Any, _number: int) -> None: ...

    notes: list[str] = []
    async with stock_client(redis_url) as stock:
        plain: Any = func
        functions = [plain(enqueues, name="enqueues"), plain(ends, name="ends")]
        settings: dict[str, Any] = {"codec": None, "middleware": [Notes("m", notes)]}
        async with serving(redis_url, functions, **settings):
            await stock.enqueue_job("enqueues")
            await wait_until(
                lambda: "m runs ends(7,)" in notes and notes[-1] == "m has run",
                description="both jobs have run",
            )
    assert "m enqueues ends(7,)" in notes


@pytest.mark.parametrize("carried", ["text", [1], 7, {"context": "text"}, {"context": [1]}])
async def test_what_is_no_mapping_is_not_carried(redis_url: str, carried: Any) -> None:
    async with (
        runner.connect(redis_url, middleware=[]) as client,
        serving(redis_url, [who], middleware=[Propagation(TENANT)]),
    ):
        job = await client.enqueue(who)
        codec = MsgpackCodec()
        record = JobRecord(
            task="who",
            args=(),
            kwargs={},
            attempt=None,
            enqueued_ms=1_700_000_000_000,
            options={"carried": carried},
        )
        assert await job.result(timeout=10) == ("nobody", 0)
        await client.set("arq:job:hostile", encode_job(codec, record), ex=60)
        await client.zadd("arq:queue", {"hostile": 1})
        assert tuple(await client.job("hostile").result(timeout=10)) == ("nobody", 0)


async def test_carried_value_that_cannot_travel_is_named(redis_url: str) -> None:
    async with runner.connect(redis_url, middleware=[Propagation(TENANT)]) as client:
        TENANT.set(object())  # type: ignore[arg-type]
        with pytest.raises(EncodeError, match="what middleware lets travel, 'context'"):
            await client.enqueue(add, 1)
        TENANT.set("x" * client.max_payload_bytes)
        with pytest.raises(PayloadTooLarge):
            await client.enqueue(add, 1)


async def test_what_a_layer_raises_enqueues_nothing(redis_url: str) -> None:
    async with runner.connect(redis_url, middleware=[Refuse()]) as client:
        with pytest.raises(PermissionError):
            await client.enqueue(add, 13)
        with pytest.raises(PermissionError):
            await client.enqueue_many([add.call(1), add.call(13), add.call(2)])
        assert await client.dbsize() == 0


async def test_batch_keeps_its_order_and_checks_what_layers_have_changed(redis_url: str) -> None:
    class Spoil(Middleware):
        async def enqueue(self, call: Any, proceed: Any) -> Any:
            args = () if call.args == (2,) else call.args
            return await proceed(dataclasses.replace(call, args=args))

    async with runner.connect(redis_url, middleware=[Notes("m", [])]) as client:
        jobs = await client.enqueue_many([add.call(value) for value in range(700)])
        queued = [job.decode() for job in await client.zrange("arq:queue", 0, -1)]
        assert [job.job_id for job in jobs] == queued
        assert await client.enqueue_many([]) == []
    async with runner.connect(redis_url, middleware=[Spoil()], queue="other") as client:
        with pytest.raises(ArgumentsError):
            await client.enqueue_many([add.call(1), add.call(2)])
        assert await client.zcard("other") == 0


async def test_context_variables_travel_with_jobs_and_with_theirs(redis_url: str) -> None:
    propagation = Propagation(TENANT, REQUEST)
    async with (
        runner.connect(redis_url, middleware=[propagation]) as client,
        serving(redis_url, [who, ask_another], middleware=[propagation]),
    ):
        assert await (await client.enqueue(who)).result(timeout=10) == ("nobody", 0)
        TENANT.set("acme")
        assert await (await client.enqueue(who)).result(timeout=10) == ("acme", 0)
        REQUEST.set(7)
        assert tuple(await (await client.enqueue(ask_another)).result(timeout=10)) == ("acme", 7)
        job = await client.enqueue_job("who")
        assert job is not None
        assert tuple(await job.result(timeout=10)) == ("acme", 7)
        (job,) = await client.enqueue_many([who.call()])
        assert await job.result(timeout=10) == ("acme", 7)


async def test_context_variables_travel_with_the_nodes_of_flows(redis_url: str) -> None:
    propagation = Propagation(TENANT)
    async with (
        runner.connect(redis_url, middleware=[propagation]) as client,
        serving(redis_url, [who, see, grow], middleware=[propagation]),
    ):
        TENANT.set("acme")
        run = await client.start(group(who.call(), who.call()))
        assert await run.result(timeout=10) == [("acme", 0), ("acme", 0)]
        TENANT.set("umbrella")
        SEEN.clear()
        growing = await client.start(group(grow.call()))
        assert (await growing.wait(timeout=10)).succeeded == 2
        assert SEEN == ["umbrella"]


async def test_times_are_told(redis_url: str) -> None:
    timings: list[JobTiming] = []
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, [add, fail], middleware=[Timing(timings.append)]),
    ):
        done = await client.enqueue(add, 1)
        await done.result(timeout=10)
        failed = await client.enqueue(fail)
        with pytest.raises(RemoteError):
            await failed.result(timeout=10)
    assert [(timing.task, timing.job_id, timing.error_type) for timing in timings] == [
        ("add", done.job_id, ""),
        ("fail", failed.job_id, "ValueError"),
    ]
    assert all(timing.ran_s >= 0 and timing.waited_s >= 0 for timing in timings)


class Sent(Transport):
    """Keeps what would be sent to Sentry."""

    events: ClassVar[list[Any]] = []

    def capture_envelope(self, envelope: Any) -> None:
        if (event := envelope.get_event()) is not None:
            self.events.append(event)


@pytest.fixture
def sent() -> Iterator[list[Any]]:
    Sent.events.clear()
    # Its default integrations change this very process: an acceptance test has them.
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:1/1",
        transport=Sent,
        default_integrations=False,
        auto_enabling_integrations=False,
    )
    yield Sent.events
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


def told(event: Any) -> tuple[str, str, int, str]:
    """Return what an event says: level, task, attempt, error."""
    error = event["exception"]["values"][-1]["type"]
    tags = event["tags"]
    return event["level"], tags.get("job.task", ""), int(tags["job.attempt"]), error


@task
async def snooze(ctx: Context) -> None:
    if not ctx["seen"]:
        ctx["seen"].append(ctx.job_id)
        raise Snooze(0)


@task
async def give_up(_ctx: Context) -> None:
    raise Cancel("nothing to do")


@task(timeout=0.1)
async def overrun(_ctx: Context) -> None:
    await asyncio.Event().wait()


@task(retries=1, backoff=RetryPolicy(base=0.01))
async def fail_again(ctx: Context) -> None:
    sentry_sdk.set_tag("mine", f"of {ctx.job_id}")
    raise KeyError("again")


@task
def fail_in_a_thread(_ctx: Context) -> None:
    raise OSError("in a thread")


@task(batch=2, batch_wait=0.01)
async def fail_for_many(_ctx: ManyContext, _items: list[int]) -> None:
    raise LookupError("for many")


SENDS: list[Any] = [
    add,
    again,
    snooze,
    give_up,
    fail,
    overrun,
    fail_again,
    fail_in_a_thread,
    fail_for_many,
]


async def test_sentry_gets_each_failure_once_and_no_control_flow(
    redis_url: str, sent: list[Any]
) -> None:
    ended: list[JobEnded] = []

    def hear(event: Any) -> None:
        if isinstance(event, JobEnded) and event.is_final:
            ended.append(event)

    names = [declared.name for declared in SENDS if declared not in {add, fail_for_many}]
    settings: dict[str, Any] = {"middleware": [Sentry()], "ctx": {"seen": []}}
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, SENDS, subscribers=[hear], **settings),
    ):
        for name in (*names, "unknown"):
            await client.enqueue(name)
        await client.enqueue(add, 1)
        await client.enqueue("add")  # its arguments do not fit
        await client.enqueue_many([fail_for_many.call(1), fail_for_many.call(2)])
        expected = len(names) + 5
        await wait_until(lambda: len(ended) == expected, description="all jobs have ended")
    assert sorted(map(told, sent)) == [
        ("error", "add", 1, "ArgumentsError"),
        ("error", "fail", 1, "ValueError"),
        ("error", "fail_again", 2, "KeyError"),
        ("error", "fail_for_many", 1, "LookupError"),
        ("error", "fail_for_many", 1, "LookupError"),
        ("error", "fail_in_a_thread", 1, "OSError"),
        ("error", "overrun", 1, "TimeoutError"),
        ("error", "unknown", 1, "TaskNotFound"),
    ]
    failures = {event["tags"]["job.job_id"] for event in sent}
    assert len(failures) == len(sent)
    (kept,) = [event for event in sent if event["tags"]["job.task"] == "fail_again"]
    assert kept["transaction"] == "fail_again"
    assert kept["tags"]["mine"] == f"of {kept['tags']['job.job_id']}"
    assert kept["tags"]["job.queue"] == "arq:queue"
    assert [event for event in sent if "mine" in event["tags"]] == [kept]


async def test_sentry_gets_what_is_tried_again_as_warnings_when_asked(
    redis_url: str, sent: list[Any]
) -> None:
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, [again, fail_again], middleware=[Sentry(retries=True)]),
    ):
        await (await client.enqueue(again)).result(timeout=10)
        with pytest.raises(RemoteError):
            await (await client.enqueue(fail_again)).result(timeout=10)
    assert [told(event) for event in sent] == [
        ("warning", "fail_again", 1, "KeyError"),
        ("error", "fail_again", 2, "KeyError"),
    ]


async def test_sentry_gets_what_postgres_refuses(
    redis_url: str, empty_database_url: str, sent: list[Any]
) -> None:
    @task
    async def write(ctx: Context) -> None:
        ctx.db.insert("there_is_no_such_table", id=1)

    settings: dict[str, Any] = {"middleware": [Sentry()], "database_url": empty_database_url}
    async with runner.connect(redis_url) as client, serving(redis_url, [write], **settings):
        job = await client.enqueue(write)
        with pytest.raises(WriteRejected):
            await job.result(timeout=20)
    (event,) = sent
    assert told(event) == ("error", "", 1, "WriteRejected")
    assert event["tags"]["job.job_id"] == job.job_id


def test_sentry_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    with pytest.raises(SettingsError, match="pip install"):
        Sentry()


async def test_methods_that_are_not_overridden_are_no_layers(redis_url: str) -> None:
    async with runner.connect(redis_url, middleware=[Timing()]) as client:
        assert client._around is None
    assert runner.Worker([add], middleware=[Refuse()]).around is None


def test_what_is_no_middleware_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"subclass of runner\.Middleware"):
        runner.connect(middleware=[Timing])  # type: ignore[list-item]
    with pytest.raises(SettingsError, match="middleware"):
        type("Settings", (runner.WorkerSettings,), {"functions": [add], "middleware": [Timing]})
    with pytest.raises(SettingsError, match="context variables"):
        Propagation("tenant")  # type: ignore[arg-type]
