"""What holds a worker's loop up, runs too long, or is left behind is named, with its job."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
import time
import warnings
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis.asyncio import Connection, Redis

import runner
from runner import Context, task
from runner.errors import SettingsError
from runner.events import (
    JobOverdue,
    LoopBlocked,
    LoopFreed,
    ProcessVitals,
    ResourceLeft,
    TasksLeft,
    WorkerRecycled,
)
from runner.fleet.member import Wire
from runner.fleet.messages import Lines
from runner.watch import vitals
from runner.worker import Worker
from tests.engine import serving, started
from tests.support import start_python, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:*")]

HELD: list[asyncio.Task[Any]] = []
NAME: ContextVar[str] = ContextVar("name")


@task
async def block_at_once(_ctx: Context, seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251  a job that does not yield is the point


@task
async def block_later(_ctx: Context, seconds: float) -> None:
    await asyncio.sleep(0.01)
    deep(seconds)


def deep(seconds: float) -> None:
    time.sleep(seconds)


@task
async def block_in_a_child(_ctx: Context, seconds: float) -> None:
    async def child() -> None:
        await asyncio.sleep(0.01)
        deep(seconds)

    async with asyncio.TaskGroup() as group:
        group.create_task(child(), name="the child")


@task
async def hold_the_gil(_ctx: Context, until: float) -> None:
    """Call into C, which neither turns the loop nor lets other threads run."""
    began = time.monotonic()
    while time.monotonic() < began + until:
        sum(range(60_000_000))


@task
async def sleep(_ctx: Context, seconds: float) -> None:
    await asyncio.sleep(seconds)


@task
def sleep_in_thread(_ctx: Context, seconds: float) -> None:
    time.sleep(seconds)


@task
async def leave(_ctx: Context, fails: bool = False) -> None:
    async def left_behind() -> None:
        await asyncio.Event().wait()

    async def maker() -> None:
        HELD.append(asyncio.create_task(left_behind(), name="grandchild"))

    HELD.append(asyncio.create_task(left_behind(), name="child"))
    HELD.append(asyncio.create_task(maker()))
    await HELD[-1]
    cancelled = asyncio.create_task(left_behind())
    cancelled.cancel()
    if fails:
        raise ValueError("it fails")


@task
async def drop_a_socket(_ctx: Context, _host: str, _port: int) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    await asyncio.sleep(0.01)
    assert ours.fileno() > 0


@task
async def drop_a_stream(_ctx: Context, host: str, port: int) -> None:
    _, writer = await asyncio.open_connection(host, port)
    writer.write(b"PING\r\n")


@task
async def drop_a_connection(_ctx: Context, host: str, port: int) -> None:
    connection: Any = Connection(host=host, port=port)
    await connection.connect()


@task
async def drop_a_circle(_ctx: Context) -> None:
    gc.disable()  # until `collect`
    circle: list[Any] = list(socket.socketpair())
    circle.pop().close()
    circle.append(circle)


@task
async def collect(_ctx: Context) -> None:
    gc.enable()
    gc.collect()


@task
async def use_the_client(ctx: Context) -> None:
    """Let the worker's own library make tasks of its own, in the context of the job."""
    job = await ctx.client.enqueue("sleep", 0)
    await job.result(timeout=10)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as client:
        yield client


@pytest.fixture(autouse=True)
async def _nothing_is_held() -> AsyncIterator[None]:
    yield
    for held in HELD:
        held.cancel()
    await asyncio.gather(*HELD, return_exceptions=True)
    HELD.clear()


def of(kind: type, events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("blocking", "lines"),
    [(block_at_once, ["in block_at_once"]), (block_later, ["in block_later", "in deep"])],
    ids=["first step", "later"],
)
async def test_job_that_blocks_the_loop_is_named_while_it_does(
    redis_url: str, client: runner.Client, blocking: Any, lines: list[str]
) -> None:
    heard: list[tuple[Any, int]] = []
    loops_thread = threading.get_ident()

    def hear(event: Any) -> None:
        heard.append((event, threading.get_ident()))

    async with serving(redis_url, [blocking], blocked_after=0.2, subscribers=[hear]):
        job = await client.enqueue(blocking, 1.0)
        await job.result(timeout=10)
        await wait_until(
            lambda: of(LoopFreed, [event for event, _ in heard]), description="the loop turns again"
        )
    ((event, thread),) = [(event, by) for event, by in heard if isinstance(event, LoopBlocked)]
    assert thread != loops_thread  # so it was told while the loop stood
    assert (event.job_id, event.task, event.attempt) == (job.job_id, blocking.name, 1)
    assert 0.2 <= event.blocked_s < 1.0
    assert [line in event.stack for line in lines] == [True] * len(lines)
    assert "runner/execution/" not in event.stack
    (freed,) = of(LoopFreed, [event for event, _ in heard])
    assert freed.blocked_s > event.blocked_s


async def test_what_blocks_outside_of_jobs_is_no_job(redis_url: str) -> None:
    events: list[Any] = []
    async with serving(redis_url, [sleep], blocked_after=0.1, subscribers=[events.append]):
        await wait_until(lambda: events, description="the worker has started")
        deep(0.5)
        await wait_until(lambda: of(LoopFreed, events), description="the loop turns again")
    (event,) = of(LoopBlocked, events)
    assert (event.job_id, event.task, event.attempt) == ("", "", 0)
    assert "in deep" in event.stack


async def test_the_one_of_many_jobs_that_blocks_is_named(
    redis_url: str, client: runner.Client
) -> None:
    events: list[Any] = []
    settings: dict[str, Any] = {"blocked_after": 0.2, "subscribers": [events.append]}
    async with serving(redis_url, [sleep, block_later], **settings):
        others = [await client.enqueue(sleep, 0.3) for _ in range(3)]
        job = await client.enqueue(block_later, 0.8)
        others += [await client.enqueue(sleep, 0.3) for _ in range(3)]
        for one in (job, *others):
            await one.result(timeout=10)
    (event,) = of(LoopBlocked, events)
    assert (event.job_id, event.task) == (job.job_id, "block_later")


async def test_job_whose_own_task_blocks_is_named(
    redis_url: str, client: runner.Client, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Any] = []
    settings: dict[str, Any] = {"blocked_after": 0.2, "subscribers": [events.append]}
    async with serving(redis_url, [block_in_a_child], **settings):
        job = await client.enqueue(block_in_a_child, 0.8)
        await job.result(timeout=10)
    (event,) = of(LoopBlocked, events)
    assert (event.job_id, event.task, event.attempt) == (job.job_id, "block_in_a_child", 1)
    assert "in child" in event.stack
    assert f"asyncio task 'the child' of job {job.job_id}:block_in_a_child" in caplog.text


async def test_job_whose_hook_blocks_is_named(redis_url: str, client: runner.Client) -> None:
    async def on_job_end(_ctx: Any) -> None:
        deep(0.8)

    events: list[Any] = []
    settings: dict[str, Any] = {"blocked_after": 0.2, "subscribers": [events.append]}
    async with serving(redis_url, [sleep], on_job_end=on_job_end, **settings):
        job = await client.enqueue(sleep, 0)
        await job.result(timeout=10)
    (event,) = of(LoopBlocked, events)
    assert (event.job_id, event.task, event.attempt) == (job.job_id, "sleep", 1)
    assert "in on_job_end" in event.stack
    assert "runner/execution/" not in event.stack


async def test_job_that_holds_the_gil_is_named_when_it_lets_go(
    redis_url: str, client: runner.Client, caplog: pytest.LogCaptureFixture
) -> None:
    def is_told() -> bool:
        return bool(of(LoopFreed, events)) or "stood still" in caplog.text

    events: list[Any] = []
    settings: dict[str, Any] = {"blocked_after": 0.2, "subscribers": [events.append]}
    async with serving(redis_url, [hold_the_gil], **settings):
        # A process that gets little of a busy machine looks like one that was stopped: once more.
        while True:
            caplog.clear()
            job = await client.enqueue(hold_the_gil, 0.5)
            await job.result(timeout=30)
            await wait_until(is_told, description="the worker says what it saw")
            if of(LoopFreed, events):
                break
    (event,) = of(LoopBlocked, events)
    assert (event.job_id, event.task, event.attempt) == (job.job_id, "hold_the_gil", 1)
    assert "sum(range(" in event.stack.splitlines()[-1]


async def test_process_that_was_stopped_blames_no_job(tmp_path: Path) -> None:
    program = await start_python(tmp_path, dict(os.environ), "-c", STOPPED)
    assert program.stdout is not None
    try:
        assert await program.stdout.readline() == b"looks\n"
        program.send_signal(signal.SIGSTOP)
        stopped = Path(f"/proc/{program.pid}/stat")
        await wait_until(
            lambda: stopped.read_text().rpartition(")")[2].split()[0] == "T",
            description="it is stopped",
        )
        due = time.monotonic() + 0.6
        await wait_until(lambda: time.monotonic() > due, description="it was stopped for long")
        program.send_signal(signal.SIGCONT)
        said = (await program.stdout.readline()).decode()
        assert said.startswith("stood still for ")
        assert await program.stdout.readline() == b"turns\n"
    finally:
        program.kill()
        await program.wait()


STOPPED = """
import asyncio, threading, time
from runner.watch.blocked import BlockedLoop

async def main():
    still = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stood_still(gap_s, used_s):
        print(f"stood still for {gap_s}", flush=True)
        loop.call_soon_threadsafe(still.set)

    blocked = BlockedLoop(
        loop, threading.get_ident(), 0.3,
        blocked=lambda seconds, sight: print("blocked", sight, flush=True),
        over=lambda seconds: print("freed", flush=True),
        stood_still=stood_still,
    )

    def look():
        while True:
            time.sleep(0.05)
            blocked.look()

    threading.Thread(target=look, daemon=True).start()
    await asyncio.sleep(0.2)
    print("looks", flush=True)
    await still.wait()
    await asyncio.sleep(0.5)
    print("turns", flush=True)

asyncio.run(main())
"""


async def test_look_that_fails_ends_no_watch(
    redis_url: str, client: runner.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def memory() -> tuple[int, int]:
        looks.append(1)
        if len(looks) == 1:
            raise RuntimeError("can't start new thread")
        return vitals_memory()

    vitals_memory = vitals.memory
    monkeypatch.setattr(vitals, "memory", memory)
    async with serving(redis_url, [sleep], max_jobs_per_process=1) as worker:
        await wait_until(lambda: looks, description="the first look has failed")
        await (await client.enqueue(sleep, 0)).result(timeout=10)
        await wait_until(lambda: worker.draining, description="the limit of jobs is seen")


async def test_supervisor_that_was_stopped_hears_of_a_limit_all_the_same(
    redis_url: str, client: runner.Client
) -> None:
    supervisors, theirs = socket.socketpair()
    wire = Wire(theirs.detach())
    with supervisors, wire._socket:
        for _ in range(100):
            wire.say("vitals", text="x" * 9_000)  # more than fits in: nobody reads
        worker = Worker(
            [sleep],
            redis_settings=runner.RedisSettings.from_dsn(redis_url),
            codec="msgpack",
            history=True,
            handle_signals=False,
            max_jobs_per_process=1,
        )
        worker.join(wire, 1)
        async with started(worker):
            await (await client.enqueue(sleep, 0)).result(timeout=10)
            await wait_until(lambda: worker.recycled, description="the limit is seen")
            supervisors.setblocking(False)
            lines = Lines()

            def words() -> list[str]:
                with contextlib.suppress(BlockingIOError):
                    return [message["say"] for message in lines.feed(supervisors.recv(1_000_000))]
                return []

            await wait_until(lambda: "recycle" in words(), description="it is told")


async def test_worker_that_serves_once_more_keeps_its_limit_of_memory(
    redis_url: str, client: runner.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = 100_000_000
    monkeypatch.setattr(vitals, "memory", lambda: (held, 1))
    worker = Worker(
        [sleep],
        redis_settings=runner.RedisSettings.from_dsn(redis_url),
        codec="msgpack",
        burst=True,
        handle_signals=False,
        max_memory_hard_mb=200,
    )
    try:
        await worker.async_run()
        held = 300_000_000  # as after a job that leaks
        await client.enqueue(sleep, 600)
        with contextlib.suppress(asyncio.CancelledError):  # how a worker that is told to ends
            async with asyncio.timeout(10):
                await worker.async_run()
        assert worker.recycled == "it holds 300 MB, max_memory_hard_mb is 200"
    finally:
        await worker.close()


async def test_nothing_is_said_of_a_loop_that_turns(redis_url: str, client: runner.Client) -> None:
    events: list[Any] = []
    async with serving(redis_url, [sleep], blocked_after=2, subscribers=[events.append]):
        for _ in range(20):
            await (await client.enqueue(sleep, 0.01)).result(timeout=10)
    assert of(LoopBlocked, events) == []


def watching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "runner watch"]


async def test_nothing_watches_a_bare_worker(redis_url: str) -> None:
    await wait_until(lambda: not watching(), description="no thread of another test is left")
    async with serving(redis_url, [sleep]) as worker:
        await wait_until(lambda: "redis" in worker.ctx, description="the worker runs")
        assert worker.around is None
        assert watching() == []


@pytest.mark.parametrize("fails", [False, True])
async def test_tasks_that_a_job_leaves_are_named(
    redis_url: str, client: runner.Client, *, fails: bool
) -> None:
    events: list[Any] = []
    settings: dict[str, Any] = {"left_tasks": "report", "subscribers": [events.append]}
    async with serving(redis_url, [leave], **settings):
        job = await client.enqueue(leave, fails)
        await wait_until(lambda: of(TasksLeft, events), description="the tasks are named")
        assert not any(held.done() for held in HELD if held.get_name().endswith("child"))
    (event,) = of(TasksLeft, events)
    assert (event.job_id, event.task, event.count, event.cancelled) == (
        job.job_id,
        "leave",
        2,
        False,
    )
    assert {text.split()[0] for text in event.tasks} == {"child", "grandchild"}
    assert all("left_behind at " in text and "test_watch.py:" in text for text in event.tasks)


async def test_tasks_that_a_job_leaves_are_cancelled_when_asked(
    redis_url: str, client: runner.Client
) -> None:
    async with serving(redis_url, [leave], left_tasks="cancel"):
        await (await client.enqueue(leave)).result(timeout=10)
        await wait_until(
            lambda: all(held.done() for held in HELD), description="the tasks are cancelled"
        )
    assert sum(held.cancelled() for held in HELD) == 2


async def test_tasks_of_the_worker_s_own_are_not_the_job_s(
    redis_url: str, client: runner.Client
) -> None:
    events: list[Any] = []
    settings: dict[str, Any] = {"left_tasks": "cancel", "subscribers": [events.append]}
    async with serving(redis_url, [use_the_client, sleep], **settings):
        for _ in range(3):
            await (await client.enqueue(use_the_client)).result(timeout=10)
    assert of(TasksLeft, events) == []


@pytest.mark.parametrize(
    ("dropping", "what"),
    [
        ("drop_a_socket", "unclosed <socket.socket"),
        ("drop_a_stream", "unclosed <StreamWriter"),
        ("drop_a_connection", "unclosed Connection <redis"),
    ],
)
async def test_connection_that_a_job_drops_unclosed_is_named(
    redis_url: str, client: runner.Client, dropping: str, what: str
) -> None:
    events: list[Any] = []
    settings: dict[str, Any] = {"left_resources": "report", "subscribers": [events.append]}
    place = urlsplit(redis_url)
    functions = [drop_a_socket, drop_a_stream, drop_a_connection, sleep]
    async with serving(redis_url, functions, **settings):
        job = await client.enqueue(dropping, place.hostname, place.port)
        await wait_until(lambda: of(ResourceLeft, events), description="the socket is named")
        await (await client.enqueue(sleep, 0)).result(timeout=10)
    (event,) = of(ResourceLeft, events)
    assert (event.job_id, event.task, event.attempt) == (job.job_id, dropping, 1)
    assert what in event.what


@task
async def drop_one_of_many(ctx: Context, kind: str, url: str) -> None:
    """Hold a connection while the others do, and drop it with them."""
    held: Any
    if kind == "asyncpg":
        held = await asyncpg.connect(url)
    elif kind == "redis":
        held = Redis.from_url(url)
        await held.ping()
    else:
        held = socket.socket()
    ctx["meeting"].append(held is not None)
    await wait_until(lambda: len(ctx["meeting"]) == 3, description="all hold one")


async def test_each_of_many_that_drop_connections_at_once_is_named(
    redis_url: str, database_url: str, client: runner.Client
) -> None:
    events: list[Any] = []
    settings: dict[str, Any] = {"left_resources": "report", "subscribers": [events.append]}
    kinds = {
        "asyncpg": (database_url, "unclosed connection <asyncpg"),
        "redis": (redis_url, "unclosed Connection <redis"),
        "socket": ("", "unclosed <socket.socket"),
    }
    async with serving(redis_url, [drop_one_of_many], ctx={"meeting": []}, **settings):
        calls = [drop_one_of_many.call(kind, url) for kind, (url, _) in kinds.items()]
        jobs = await client.enqueue_many(calls)
        for job in jobs:
            await job.result(timeout=20)
        await wait_until(lambda: len(of(ResourceLeft, events)) >= 3, description="all are named")
    for job, (_, what) in zip(jobs, kinds.values(), strict=True):
        said = [event.what for event in of(ResourceLeft, events) if event.job_id == job.job_id]
        assert any(what in text for text in said), said


async def test_what_the_garbage_collector_finds_is_nobody_s(
    redis_url: str, client: runner.Client
) -> None:
    events: list[Any] = []
    settings: dict[str, Any] = {"left_resources": "report", "subscribers": [events.append]}
    async with serving(redis_url, [drop_a_circle, collect], **settings):
        await (await client.enqueue(drop_a_circle)).result(timeout=10)
        await (await client.enqueue(collect)).result(timeout=10)
        await wait_until(
            lambda: any("unclosed <socket" in event.what for event in of(ResourceLeft, events)),
            description="the socket is found",
        )
    # Other tests' rubbish may be among it.
    found = {(event.job_id, event.task, event.attempt) for event in of(ResourceLeft, events)}
    assert found == {("", "", 0)}


async def test_warnings_are_as_before_when_the_worker_has_closed(redis_url: str) -> None:
    before = (warnings.showwarning, list(warnings.filters), list(gc.callbacks))
    async with serving(redis_url, [sleep], left_resources="report"):
        await wait_until(
            lambda: warnings.showwarning is not before[0], description="the worker runs"
        )
    assert (warnings.showwarning, list(warnings.filters), list(gc.callbacks)) == before


async def test_loop_has_its_task_factory_back(redis_url: str) -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    async with serving(redis_url, [sleep], left_tasks="report"):
        await wait_until(
            lambda: loop.get_task_factory() is not before, description="the worker runs"
        )
    assert loop.get_task_factory() is before


@pytest.mark.parametrize("last", [0, 1])
async def test_two_workers_of_a_process_hear_each_of_their_own_jobs(
    redis_url: str, last: int
) -> None:
    loop = asyncio.get_running_loop()

    def patched() -> Any:
        filters, callbacks = list(warnings.filters), list(gc.callbacks)
        return loop.get_task_factory(), warnings.showwarning, filters, callbacks

    before = patched()
    heard: list[list[Any]] = [[], []]
    stacks = [contextlib.AsyncExitStack(), contextlib.AsyncExitStack()]
    clients = [
        await stacks[number].enter_async_context(runner.connect(redis_url, queue=f"q{number}"))
        for number in (0, 1)
    ]
    for number in (0, 1):
        settings: dict[str, Any] = {"left_tasks": "report", "left_resources": "report"}
        await stacks[number].enter_async_context(
            serving(
                redis_url,
                [leave, drop_a_socket],
                queue_name=f"q{number}",
                subscribers=[heard[number].append],
                **settings,
            )
        )
    await wait_until(lambda: all(heard), description="both workers have started")
    for number in (0, 1):
        dropped = await clients[number].enqueue(drop_a_socket, "", 0)
        await dropped.result(timeout=10)
        left = await clients[number].enqueue(leave)
        await left.result(timeout=10)
        assert [event.job_id for event in of(ResourceLeft, heard[number])] == [dropped.job_id]
        assert [event.job_id for event in of(TasksLeft, heard[number])] == [left.job_id]
    assert len(of(ResourceLeft, heard[0])) == 1
    await stacks[1 - last].aclose()
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)
    dropped = await clients[last].enqueue(drop_a_socket, "", 0)
    await dropped.result(timeout=10)
    assert [event.job_id for event in of(ResourceLeft, heard[last])][-1] == dropped.job_id
    await stacks[last].aclose()
    assert patched() == before


async def test_job_far_beyond_the_usual_time_is_named_once(
    redis_url: str, client: runner.Client
) -> None:
    events: list[Any] = []
    settings: dict[str, Any] = {"overdue_factor": 3, "subscribers": [events.append]}
    async with serving(redis_url, [sleep], **settings):
        for job in await client.enqueue_many([sleep.call(0.01) for _ in range(20)]):
            await job.result(timeout=10)
        job = await client.enqueue(sleep, 2)
        await job.result(timeout=10)
    (event,) = of(JobOverdue, events)
    assert (event.job_id, event.task, event.attempt) == (job.job_id, "sleep", 1)
    assert 1 <= event.running_s < 2
    assert event.usual_s < 1
    assert "test_watch.py" in event.where
    assert "in sleep" in event.where
    assert "await asyncio.sleep(seconds)" in event.stack


async def test_line_of_a_thread_that_runs_too_long_is_named(
    redis_url: str, client: runner.Client
) -> None:
    events: list[Any] = []
    settings: dict[str, Any] = {"overdue_factor": 3, "subscribers": [events.append]}
    async with serving(redis_url, [sleep_in_thread], **settings):
        for job in await client.enqueue_many([sleep_in_thread.call(0.01) for _ in range(20)]):
            await job.result(timeout=10)
        await (await client.enqueue(sleep_in_thread, 2)).result(timeout=10)
    (event,) = of(JobOverdue, events)
    assert event.where.endswith("in sleep_in_thread")
    assert "time.sleep(seconds)" in event.stack


async def test_vitals_are_told(redis_url: str, client: runner.Client) -> None:
    events: list[Any] = []
    async with serving(redis_url, [sleep], vitals_interval=0.1, subscribers=[events.append]):
        await (await client.enqueue(sleep, 0)).result(timeout=10)
        await wait_until(
            lambda: any(event.jobs == 1 for event in of(ProcessVitals, events)),
            description="vitals with the job",
        )
    vitals = of(ProcessVitals, events)[-1]
    assert vitals.rss > 10_000_000
    assert vitals.threads >= 2
    assert vitals.files > 3
    assert vitals.tasks >= 1


async def test_worker_that_drains_finishes_what_runs_and_claims_no_more(
    redis_url: str, client: runner.Client
) -> None:
    release = asyncio.Event()

    @task
    async def wait(_ctx: Context) -> str:
        await release.wait()
        return "done"

    events: list[Any] = []
    settings: dict[str, Any] = {"max_jobs_per_process": 1, "subscribers": [events.append]}
    async with serving(redis_url, [wait, sleep], **settings) as worker:
        job = await client.enqueue(wait)
        await wait_until(worker.running, description="the job runs")
        await (await client.enqueue(sleep, 0)).result(timeout=10)
        await wait_until(lambda: worker.draining, description="the worker drains")
        late = await client.enqueue(sleep, 0)
        assert worker.main_task is not None
        assert not worker.main_task.done()
        release.set()
        assert await job.result(timeout=10) == "done"
        await wait_until(worker.main_task.done, description="the loop has ended")
        assert await client.zscore("arq:queue", late.job_id) is not None
    (event,) = of(WorkerRecycled, events)
    assert (event.why, event.at_once) == ("it has run 1 jobs, max_jobs_per_process is 1", False)
    assert (worker.jobs_complete, worker.jobs_retried, worker.jobs_failed) == (2, 0, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_jobs_per_process": 0},
        {"max_memory_mb": -1},
        {"max_age": 0},
        {"blocked_after": 0},
        {"overdue_factor": 0.5},
        {"left_tasks": "kill"},
        {"left_resources": "close"},
        {"max_memory_mb": 300, "max_memory_hard_mb": 200},
    ],
    ids=str,
)
async def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Worker([sleep], **settings)
