"""One trace from who enqueues, over each attempt, to the commit; nothing where traces are off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

import runner
from runner import (
    Context,
    Retry,
    RetryPolicy,
    Snooze,
    WriteRejected,
    chain,
    cron,
    every,
    keys,
    task,
)
from runner.codec import MsgpackCodec, decode_job
from runner.errors import ArgumentsError, RunnerError, TaskNotFound
from runner.traces import Tracing
from tests.engine import StockWorker, raw, serving, started, stock_client
from tests.integration.test_writer_support import LASTING
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client

pytestmark = [
    pytest.mark.lasting_keys(*LASTING, "runner:*"),
    pytest.mark.timeout(60),
]

NOW = RetryPolicy(base=0, cap=0)


class Spans:
    """What was traced in this process: by clients, workers and the writer alike."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(self.provider)

    async def ended(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """Wait for so many spans of this name, and return them in the order of their ends."""
        await wait_until(
            lambda: len(self.named(name)) >= count, description=f"{count} spans {name!r}"
        )
        return self.named(name)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
async def client(redis_url: str, spans: Spans) -> AsyncIterator[Client]:
    async with runner.connect(redis_url, middleware=[spans.tracing]) as connected:
        yield connected


@pytest.fixture
async def with_table(database_url: str) -> str:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await connection.close()
    return database_url


def ids(span: Any) -> tuple[int, int]:
    """Return the trace and the id of a span."""
    return span.context.trace_id, span.context.span_id


def parent(span: Any) -> tuple[int, int] | None:
    return span.parent and (span.parent.trace_id, span.parent.span_id)


@task
async def add(_ctx: Context, left: int, right: int = 0) -> int:
    return left + right


@task(retries=1, backoff=NOW)
async def unsteady(ctx: Context) -> int:
    if ctx.attempt == 1:
        raise OSError("not yet")
    return ctx.attempt


@task(retries=1)
async def breaks(ctx: Context, how: str) -> None:
    if how == "retry" and ctx.attempt == 1:
        raise Retry(defer=0)
    if how == "snooze" and "snoozed" not in SEEN:
        SEEN.append("snoozed")
        raise Snooze(0)
    if how == "fail":
        raise runner.Cancel("enough")


@task
async def insert(ctx: Context, number: int) -> None:
    ctx.db.insert("t", id=number)


@task
async def insert_twice(ctx: Context, number: int) -> None:
    ctx.db.insert("t", id=number)
    await ctx.db.commit()
    ctx.db.insert("t", id=number + 1)


@task
async def asks_another(ctx: Context) -> int:
    job = await ctx.client.enqueue(add, 1)
    return await job.result(timeout=10)


@task
async def tick(_ctx: Context) -> None: ...


@task
def in_thread(_ctx: Context) -> bool:
    return trace.get_current_span().get_span_context().is_valid


@task(executor="process")
def in_process(_ctx: Context, number: int) -> int:
    return number


SEEN: list[str] = []


async def test_a_job_is_one_trace_from_enqueue_to_commit(
    redis_url: str, with_table: str, client: Client, spans: Spans
) -> None:
    layers = [spans.tracing]
    async with serving(
        redis_url, [insert_twice], middleware=layers, database_url=with_table
    ) as worker:
        job = await client.enqueue(insert_twice, 1)
        await job.result(timeout=20)
        commits = await spans.ended("writer commit", 2)
    (enqueued,) = spans.named("enqueue insert_twice")
    (ran,) = spans.named("run insert_twice")
    assert parent(enqueued) is None
    assert parent(ran) == ids(enqueued)
    assert [parent(commit) for commit in commits] == [ids(ran)] * 2
    assert [span.kind for span in (enqueued, ran, *commits)] == [
        *(SpanKind.PRODUCER, SpanKind.CONSUMER),
        *(SpanKind.CLIENT, SpanKind.CLIENT),
    ]
    said: Any = ran.attributes
    assert said["messaging.message.id"] == job.job_id
    assert said["messaging.destination.name"] == keys.DEFAULT_QUEUE
    assert said["messaging.client.id"] == worker.name
    assert (said["runner.task"], said["runner.attempt"]) == ("insert_twice", 1)
    assert said["runner.outcome"] == "succeeded"
    assert ran.status.status_code is StatusCode.UNSET
    committed: Any = commits[0].attributes
    assert committed["messaging.message.id"] == job.job_id
    assert committed["runner.unit.operations"] == 1
    assert enqueued.attributes is not None
    assert enqueued.attributes["messaging.message.id"] == job.job_id


async def test_a_span_of_the_service_is_the_parent(
    redis_url: str, client: Client, spans: Spans
) -> None:
    async with serving(redis_url, [add], middleware=[spans.tracing]):
        tracer = spans.provider.get_tracer("shop")
        with tracer.start_as_current_span("POST /orders"):
            jobs = [await client.enqueue(add, 1), *await client.enqueue_many([add.call(2)])]
            stock = await client.enqueue_job("add", 3)
        assert stock is not None
        for job in (*jobs, stock):
            await job.result(timeout=10)
        runs = await spans.ended("run add", 3)
    (request,) = spans.named("POST /orders")
    enqueued = spans.named("enqueue add")
    assert [parent(span) for span in enqueued] == [ids(request)] * 3
    assert {parent(span) for span in runs} == {ids(span) for span in enqueued}


async def test_each_try_is_a_span_of_the_same_trace(
    redis_url: str, client: Client, spans: Spans
) -> None:
    async with serving(redis_url, [unsteady], middleware=[spans.tracing]):
        assert await (await client.enqueue(unsteady)).result(timeout=10) == 2
        first, second = await spans.ended("run unsteady", 2)
    (enqueued,) = spans.named("enqueue unsteady")
    assert parent(first) == parent(second) == ids(enqueued)
    said: Any = [span.attributes for span in (first, second)]
    assert [facts["runner.attempt"] for facts in said] == [1, 2]
    assert [facts["runner.outcome"] for facts in said] == ["retried", "succeeded"]
    assert first.status.status_code is StatusCode.ERROR
    assert said[0]["error.type"] == "builtins.OSError"
    (event,) = first.events
    assert event.attributes is not None
    assert event.attributes["exception.message"] == "not yet"
    assert second.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("how", "outcome"), [("retry", "retried"), ("snooze", "snoozed"), ("fail", "cancelled")]
)
async def test_control_flow_is_no_error(
    redis_url: str, client: Client, spans: Spans, how: str, outcome: str
) -> None:
    SEEN.clear()
    async with serving(redis_url, [breaks], middleware=[spans.tracing]):
        await client.enqueue(breaks, how)
        first = (await spans.ended("run breaks"))[0]
    assert first.attributes is not None
    assert first.attributes["runner.outcome"] == outcome
    assert first.status.status_code is StatusCode.UNSET


async def test_a_job_that_never_starts_has_a_span_that_says_so(
    redis_url: str, client: Client, spans: Spans
) -> None:
    async with serving(redis_url, [add], middleware=[spans.tracing]):
        job = await client.enqueue("nobody_knows_it")
        with pytest.raises(TaskNotFound):
            await job.result(timeout=10)
        wrong = await client.enqueue("add", "too", "many", "arguments")
        with pytest.raises(ArgumentsError):
            await wrong.result(timeout=10)
        (unknown,) = await spans.ended("run nobody_knows_it")
        (misfit,) = await spans.ended("run add")
    (enqueued,) = spans.named("enqueue nobody_knows_it")
    assert parent(unknown) == ids(enqueued)
    assert unknown.attributes is not None
    assert unknown.attributes["runner.outcome"] == "unknown_task"
    assert {unknown.status.status_code, misfit.status.status_code} == {StatusCode.ERROR}


async def test_a_refused_unit_is_an_error_of_the_commit(
    redis_url: str, with_table: str, client: Client, spans: Spans
) -> None:
    async with serving(redis_url, [insert], middleware=[spans.tracing], database_url=with_table):
        await (await client.enqueue(insert, 1)).result(timeout=20)
        with pytest.raises(WriteRejected):
            await (await client.enqueue(insert, 1)).result(timeout=20)
        good, bad = await spans.ended("writer commit", 2)
    assert good.status.status_code is StatusCode.UNSET
    assert bad.status.status_code is StatusCode.ERROR
    assert bad.attributes is not None
    assert bad.attributes["db.response.status_code"] == "23505"
    runs = spans.named("run insert")
    assert [parent(good), parent(bad)] == [ids(span) for span in runs]


async def test_what_a_job_enqueues_is_its_child(
    redis_url: str, client: Client, spans: Spans
) -> None:
    async with serving(redis_url, [asks_another, add], middleware=[spans.tracing]):
        assert await (await client.enqueue(asks_another)).result(timeout=10) == 1
        (inner,) = await spans.ended("run add")
        (outer,) = await spans.ended("run asks_another")
    (between,) = spans.named("enqueue add")
    assert parent(between) == ids(outer)
    assert parent(inner) == ids(between)


async def test_threads_see_their_span_and_processes_have_one(
    redis_url: str, client: Client, spans: Spans
) -> None:
    async with serving(redis_url, [in_thread, in_process], middleware=[spans.tracing]):
        assert await (await client.enqueue(in_thread)).result(timeout=20) is True
        assert await (await client.enqueue(in_process, 3)).result(timeout=20) == 3
        ran = [*await spans.ended("run in_thread"), *await spans.ended("run in_process")]
    enqueued = [*spans.named("enqueue in_thread"), *spans.named("enqueue in_process")]
    assert [parent(span) for span in ran] == [ids(span) for span in enqueued]


async def test_the_jobs_of_a_flow_are_one_trace(
    redis_url: str, client: Client, spans: Spans
) -> None:
    async with serving(redis_url, [add], middleware=[spans.tracing]):
        run = await client.start(chain(add.call(1), add.s(2), add.s(3)))
        assert await run.result(timeout=20) == 6
        runs = await spans.ended("run add", 3)
    (began,) = [s for s in spans.exporter.get_finished_spans() if s.name.startswith("start ")]
    assert [parent(span) for span in runs] == [ids(began)] * 3
    assert began.attributes is not None
    assert {span.attributes and span.attributes["runner.flow.id"] for span in runs} == {
        began.attributes["runner.flow.id"]
    }


async def test_a_run_of_a_schedule_begins_a_trace_and_names_it(
    redis_url: str, spans: Spans
) -> None:
    often = cron(tick, every(0.1), name="often")
    async with serving(redis_url, [], cron_jobs=[often], middleware=[spans.tracing]):
        (ran, *_) = await spans.ended("run tick")
    assert parent(ran) is None
    assert ran.attributes is not None
    assert ran.attributes["runner.schedule"] == "often"


@pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")  # arq's own
async def test_a_stock_worker_runs_a_traced_job(redis_url: str, spans: Spans) -> None:
    async def plain(_ctx: Any, left: int) -> int:
        return left + 1

    layers = [spans.tracing]
    async with (
        runner.connect(redis_url, codec="pickle", middleware=layers) as client,
        stock_client(redis_url) as pool,
    ):
        job = await client.enqueue("plain", 1)
        worker = StockWorker(
            [runner.func(cast("Any", plain), name="plain")],
            redis_pool=pool,
            handle_signals=False,
            poll_delay=0.05,
        )
        async with started(worker):
            assert await job.result(timeout=10) == 2


@pytest.mark.parametrize("provider", [None, TracerProvider(sampler=ALWAYS_OFF)])
async def test_without_a_sdk_or_a_sample_jobs_run_as_ever(
    redis_url: str, with_table: str, provider: TracerProvider | None
) -> None:
    layers = [Tracing(provider)]
    async with (
        runner.connect(redis_url, middleware=layers) as client,
        serving(redis_url, [insert], middleware=layers, database_url=with_table),
    ):
        await (await client.enqueue(insert, 1)).result(timeout=20)


async def test_without_a_sdk_a_payload_is_what_it_was(redis_url: str) -> None:
    async with (
        runner.connect(redis_url, middleware=[Tracing()]) as client,
        raw(redis_url) as redis,
    ):
        job = await client.enqueue(add, 1)
        record = decode_job(MsgpackCodec(), await redis.get(keys.job(job.job_id)))
    assert record.options == {}


async def test_without_a_sdk_a_context_from_elsewhere_still_travels(redis_url: str) -> None:
    seen: list[trace.SpanContext] = []

    @task(name="sees")
    async def sees(ctx: Context) -> None:  # noqa: ARG001
        seen.append(trace.get_current_span().get_span_context())

    came_in = trace.NonRecordingSpan(
        trace.SpanContext(7, 8, is_remote=True, trace_flags=trace.TraceFlags(1))
    )
    async with (
        runner.connect(redis_url, middleware=[Tracing()]) as client,
        serving(redis_url, [sees], middleware=[Tracing()]),
    ):
        with trace.use_span(came_in):
            job = await client.enqueue(sees)
            flow = await client.start(chain(sees.call()))
        await job.result(timeout=10)
        await flow.result(timeout=10)
        await (await client.enqueue(sees)).result(timeout=10)
    assert [context.trace_id for context in seen] == [7, 7, 0]


async def test_sdk_may_be_set_up_after_the_middleware(redis_url: str) -> None:
    told = f"""
import asyncio
import runner
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from runner.traces import Tracing

kept = InMemorySpanExporter()

async def main():
    async with runner.connect({redis_url!r}, middleware=[Tracing()]) as client:
        await client.enqueue("before")
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(kept))
        trace.set_tracer_provider(provider)
        await client.enqueue("after")

asyncio.run(main())
print(*(span.name for span in kept.get_finished_spans()), sep=",")
"""
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", told],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == "enqueue after\n"


@pytest.mark.parametrize(
    "hostile",
    [
        {"trace": 7},
        {"trace": {"traceparent": b"\xff", "tracestate": 3}},
        {"trace": {"traceparent": "00-zz-1-01"}},
        {"trace": {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"}},
    ],
)
async def test_what_a_job_carries_may_be_anything(
    redis_url: str, spans: Spans, hostile: dict[str, Any]
) -> None:
    class Writes(runner.Middleware):
        def carry(self, task: str, carried: dict[str, Any]) -> None:  # noqa: ARG002
            carried.update(hostile)

    async with (
        runner.connect(redis_url, middleware=[Writes()]) as client,
        serving(redis_url, [add], middleware=[spans.tracing]),
    ):
        assert await (await client.enqueue(add, 1)).result(timeout=10) == 1
        (ran,) = await spans.ended("run add")
    assert parent(ran) is None


def test_nothing_of_it_is_imported_unless_it_is_asked_for() -> None:
    told = "import sys, runner, runner.worker, runner.cli; print('opentelemetry' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout == "False\n"


def test_without_the_library_the_message_says_what_to_install() -> None:
    told = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "try:\n import runner.traces\nexcept Exception as exc:\n print(type(exc).__name__, exc)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, timeout=60, check=True
    )
    assert (
        ran.stdout == "SettingsError traces need OpenTelemetry: pip install 'arq-runner[traces]'\n"
    )


async def test_what_a_service_writes_is_a_span_of_its_trace(
    redis_url: str, with_table: str, spans: Spans
) -> None:
    layers = [spans.tracing]
    tracer = spans.provider.get_tracer("shop")
    async with (
        serving(redis_url, [add], middleware=layers, database_url=with_table),
        runner.database(redis_url, middleware=layers) as db,
    ):
        with tracer.start_as_current_span("one call") as first:
            await db.insert("t", id=1)
        with tracer.start_as_current_span("a unit") as second:
            async with db.unit() as unit:
                unit.insert("t", id=2)
        with tracer.start_as_current_span("refused") as third, pytest.raises(WriteRejected):
            await db.insert("t", id=1)
        await db.insert("t", id=3)  # nobody's
        commits = await spans.ended("writer commit", 3)
    assert [parent(span) for span in commits] == [ids(span) for span in (first, second, third)]
    assert commits[0].attributes is not None
    assert "messaging.message.id" not in commits[0].attributes
    assert commits[2].status.status_code is StatusCode.ERROR


async def test_units_of_services_carry_nothing_where_nobody_traces(
    redis_url: str, spans: Spans
) -> None:
    async with (
        runner.database(redis_url) as plain,
        runner.database(redis_url, middleware=[spans.tracing]) as traced,
        raw(redis_url) as redis,
    ):
        for db in (plain, traced):
            async with db.unit(wait=False) as unit:
                unit.insert("t", id=1)
        entries = await redis.xrange(keys.UNITS)
    assert [sorted(fields) for _, fields in entries] == [[b"o", b"u"]] * 2


class BrokenError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not to be shown")


@task(retries=0)
async def breaks_oddly(_ctx: Context) -> None:
    raise BrokenError


@task(retries=0)
async def breaks_with_half(_ctx: Context) -> None:
    raise ValueError("half \ud800")


@pytest.mark.parametrize("odd", [breaks_oddly, breaks_with_half])
async def test_an_exception_without_a_text_is_told_all_the_same(
    redis_url: str, client: Client, spans: Spans, odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", logger="arq.worker")  # xdist cannot tell half a character
    async with serving(redis_url, [odd], middleware=[spans.tracing]):
        job = await client.enqueue(odd)
        with pytest.raises(RunnerError):
            await job.result(timeout=20)
        (ran,) = await spans.ended(f"run {odd.name}")
    assert ran.status.status_code is StatusCode.ERROR
    (event,) = ran.events
    assert event.attributes is not None
    for value in event.attributes.values():
        str(value).encode()


class RudeProcessor(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        if span.name.startswith("run "):
            raise RuntimeError("the exporter is broken")


async def test_an_exporter_that_breaks_costs_no_job(
    redis_url: str, client: Client, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    spans.provider.add_span_processor(RudeProcessor())
    async with serving(redis_url, [add], middleware=[spans.tracing]):
        assert await (await client.enqueue(add, 1)).result(timeout=10) == 1
    assert "the exporter is broken" in caplog.text
