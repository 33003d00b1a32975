"""Middleware stands around every enqueue and every run, in order, and costs nothing when absent."""

from __future__ import annotations

import dataclasses
import sys
import types
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import (
    Context,
    JobTiming,
    Middleware,
    Propagation,
    Retry,
    Sentry,
    Timing,
    group,
    task,
)
from runner.errors import ArgumentsError, RemoteError, SettingsError
from tests.engine import serving

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


class FakeScope:
    """Stands for a scope of sentry_sdk, which is not installed here."""

    def __init__(self) -> None:
        self.tags: dict[str, Any] = {}
        self.transaction = ""
        self.captured: list[BaseException] = []

    def set_tag(self, name: str, value: Any) -> None:
        self.tags[name] = value

    def set_transaction_name(self, name: str) -> None:
        self.transaction = name

    def capture_exception(self, exc: BaseException) -> None:
        self.captured.append(exc)


@pytest.fixture
def scopes(monkeypatch: pytest.MonkeyPatch) -> list[FakeScope]:
    scopes: list[FakeScope] = []

    @contextmanager
    def isolation_scope() -> Iterator[FakeScope]:
        scopes.append(FakeScope())
        yield scopes[-1]

    sdk = types.ModuleType("sentry_sdk")
    vars(sdk)["isolation_scope"] = isolation_scope
    monkeypatch.setitem(sys.modules, "sentry_sdk", sdk)
    return scopes


async def test_sentry_gets_failures_and_no_control_flow(
    redis_url: str, scopes: list[FakeScope]
) -> None:
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, [add, fail, again], middleware=[Sentry()]),
    ):
        await (await client.enqueue(add, 1)).result(timeout=10)
        await (await client.enqueue(again)).result(timeout=10)
        failed = await client.enqueue(fail)
        with pytest.raises(RemoteError):
            await failed.result(timeout=10)
    assert [scope.transaction for scope in scopes] == ["add", "again", "again", "fail"]
    assert [len(scope.captured) for scope in scopes] == [0, 0, 0, 1]
    assert str(scopes[-1].captured[0]) == "it fails"
    assert scopes[-1].tags == {
        "job.task": "fail",
        "job.job_id": failed.job_id,
        "job.queue": "arq:queue",
        "job.attempt": 1,
    }


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
