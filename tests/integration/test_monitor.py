"""What a watched worker tells: history, lines of jobs, progress, heartbeats, orders, probes."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families as read

import runner
from runner import errors, keys, logs, task
from runner.monitor import monitor as watching
from runner.worker import Worker
from tests.engine import Gate, Rig, drain, raw, serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client, Context
    from runner.progress import Progress
    from tests.servers import ChaosServers


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


@task
async def works(_ctx: Context, number: int = 0) -> int:
    return number


@task
async def breaks(_ctx: Context) -> None:
    raise ValueError("as it should")


async def heard_of(client: Client, worker: Worker) -> Any:
    """Wait until a worker is listed, and return what it says."""

    async def listed() -> Any:
        return [info for info in await client.workers.list() if info.name == worker.name]

    (info,) = await wait_until(listed, description="the worker is listed")
    return info


async def test_history_counts_what_ended_by_outcome_task_and_queue(
    redis_url: str, client: Client
) -> None:
    for number in range(7):
        await client.enqueue(works, number)
    await client.enqueue(breaks)
    await drain(redis_url, [works, breaks], monitor=True)

    period = await client.history.last(minutes=2)
    assert period.outcomes == {"succeeded": 7, "failed": 1}
    assert period.run.count == period.wait.count == 8
    by_task = await client.history.tasks(minutes=2)
    assert {name: found.outcomes for name, found in by_task.items()} == {
        "works": {"succeeded": 7},
        "breaks": {"failed": 1},
    }
    assert sum(minute.ended for minute in await client.history.minutes(2)) == 8
    assert (await client.history.of("other").last()).ended == 0


async def test_finished_jobs_are_listed_the_newest_first_and_bounded(
    redis_url: str, client: Client
) -> None:
    jobs = []
    for number in range(5):  # each in a piece of its own
        jobs.append(await client.enqueue(works, number))
        await drain(redis_url, [works, breaks], monitor=True, history_jobs=5)
    failing = await client.enqueue(breaks)
    worker = await drain(redis_url, [works, breaks], monitor=True, history_jobs=5)

    found = await client.history.finished()
    assert [job.job_id for job in found] == [failing.job_id, *(j.job_id for j in jobs[:0:-1])]
    last = found[0]
    assert (last.task, last.outcome, last.error) == ("breaks", "failed", "ValueError: as it should")
    assert last.worker == worker.name
    assert last.enqueued_ms <= last.started_ms <= last.ended_ms
    assert await client.history.finished(task="works", limit=1) == [found[1]]
    assert await client.history.finished(outcomes=["failed"]) == [last]


async def test_names_that_nobody_declared_are_counted_as_one(
    redis_url: str, client: Client
) -> None:
    for name in ("made", "up"):
        await client.enqueue(name)
    await drain(redis_url, [works], monitor=True)
    by_task = await client.history.tasks()
    assert {name: found.outcomes for name, found in by_task.items()} == {
        "<unknown>": {"unknown_task": 2}
    }


async def test_an_attempt_that_is_tried_again_is_counted_and_not_listed(
    redis_url: str, client: Client
) -> None:
    @task(retries=1)
    async def unsteady(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise errors.Retry

    job = await client.enqueue(unsteady)
    await drain(redis_url, [unsteady], monitor=True)
    assert (await client.history.last()).outcomes == {"retried": 1, "succeeded": 1}
    assert [(j.job_id, j.attempt) for j in await client.history.finished()] == [(job.job_id, 2)]


@pytest.mark.lasting_keys("runner:held:*")
async def test_a_lost_lease_is_counted_in_place_of_the_success(
    redis_url: str, client: Client
) -> None:
    gate = Gate()

    @task
    async def slow(_ctx: Context) -> None:
        await gate()

    async with serving(redis_url, [slow], monitor=True), raw(redis_url) as redis:
        job = await client.enqueue(slow)
        await gate.runs.wait()
        await redis.set(keys.in_progress(job.job_id), "r:somebody else")
        gate.opens.set()

        async def counted() -> Any:
            return (await client.history.last()).outcomes

        outcomes = await wait_until(counted, description="the attempt is counted")
    assert outcomes == {"lost_lease": 1}
    assert await client.history.finished() == []


async def test_without_monitor_nothing_is_written(redis_url: str, client: Client) -> None:
    await client.enqueue(works)
    await drain(redis_url, [works], history=False, codec="msgpack")
    assert [key async for key in client.scan_iter("runner:*")] == []


async def test_lines_of_a_job_are_kept_and_those_of_others_are_not(
    redis_url: str, client: Client
) -> None:
    @task(retries=1)
    async def speaks(ctx: Context, name: str) -> None:
        logging.getLogger("shop").warning("%s, first", name)
        await asyncio.to_thread(logging.getLogger("shop").error, "from a thread")
        if ctx.attempt == 1:
            raise errors.Retry

    first, second = await client.enqueue(speaks, "a"), await client.enqueue(speaks, "b")
    await drain(redis_url, [speaks], monitor=True)
    logging.getLogger("shop").warning("nobody's")

    lines = await client.job_log(first.job_id)
    assert [(line.attempt, line.level, line.message) for line in lines] == [
        (1, "WARNING", "a, first"),
        (1, "ERROR", "from a thread"),
        (2, "WARNING", "a, first"),
        (2, "ERROR", "from a thread"),
    ]
    assert (await client.job_log(second.job_id))[0].message == "b, first"


async def test_the_last_lines_are_kept_and_long_ones_are_cut(
    redis_url: str, client: Client
) -> None:
    @task
    async def chatters(_ctx: Context) -> None:
        for number in range(50):
            logging.getLogger("shop").warning("line %d", number)
        logging.getLogger("shop").warning("x" * 10_000)

    job = await client.enqueue(chatters)
    await drain(redis_url, [chatters], monitor=True, job_log_lines=3)
    lines = await client.job_log(job.job_id)
    assert [line.message[:8] for line in lines] == ["line 48", "line 49", "xxxxxxxx"]
    assert len(lines[-1].message) == 2_000
    assert not logs._kept, "nobody keeps lines any more"


async def test_lines_of_structlog_are_kept_with_their_values(
    redis_url: str, client: Client
) -> None:
    @task
    async def speaks(_ctx: Context) -> None:
        structlog.get_logger("shop").warning("paid", order=7)

    job = await client.enqueue(speaks)
    before = structlog.get_config()
    logs._configure_structlog()
    try:
        await drain(redis_url, [speaks], monitor=True)
    finally:
        structlog.configure(**before)
    assert [line.message for line in await client.job_log(job.job_id)] == ["paid order=7"]


async def test_progress_is_read_once_and_followed_to_the_end(
    redis_url: str, client: Client
) -> None:
    gate = Gate()

    @task
    async def copies(ctx: Context) -> str:
        await ctx.progress(1, 3, "one")
        await gate()
        for _ in range(1_000):
            await ctx.progress(2, 3)
        await ctx.progress(3, 3, "all")
        return "done"

    async with serving(redis_url, [copies]):
        job = await client.enqueue(copies)
        assert await client.progress("another") is None
        seen: list[Progress] = []
        async for word in job.progress():
            seen.append(word)
            gate.opens.set()
        assert await job.result() == "done"
    assert [(word.done, word.message) for word in (seen[0], seen[-1])] == [(1, "one"), (3, "all")]
    assert len(seen) < 100, "what comes too often is gathered"
    last = await client.progress(job.job_id)
    assert last == seen[-1]
    assert last.part == 1.0


async def test_following_ends_with_a_job_that_fails(redis_url: str, client: Client) -> None:
    async with serving(redis_url, [breaks]):
        job = await client.enqueue(breaks)
        assert [word async for word in job.progress()] == []


@pytest.mark.parametrize("given", [(-1, None), ("1", None), (1, -1), (float("nan"), None)])
async def test_progress_that_makes_no_sense_is_refused(
    redis_url: str, client: Client, given: tuple[Any, Any]
) -> None:
    @task
    async def says(ctx: Context) -> None:
        await ctx.progress(*given)

    async with serving(redis_url, [says]):
        job = await client.enqueue(says)
        with pytest.raises(errors.ArgumentsError, match="must be a number"):
            await job.result(timeout=10)


async def test_a_worker_says_what_it_is_and_does(redis_url: str, client: Client) -> None:
    gate = Gate()

    @task(name="slow")
    async def slow(_ctx: Context) -> None:
        await gate()

    async with serving(redis_url, [slow], monitor=True, max_jobs=7) as worker:
        job = await client.enqueue(slow)
        await gate.runs.wait()

        async def busy() -> Any:
            return [info for info in await client.workers.list() if info.running]

        (info,) = await wait_until(busy, description="the worker says that it runs a job")
        assert (info.name, info.state, info.concurrency) == (worker.name, "running", 7)
        assert (info.tasks, info.queues) == (("slow",), (keys.DEFAULT_QUEUE,))
        assert [(j.job_id, j.task, j.attempt) for j in info.jobs] == [(job.job_id, "slow", 1)]
        assert info.rss_bytes > 1_000_000
        assert await client.workers.list(queue="other") == []
        gate.opens.set()
    assert await client.workers.list() == [], "a worker that has ended says so"


async def test_a_drained_worker_claims_nothing_until_it_is_resumed(
    redis_url: str, client: Client
) -> None:
    async with serving(redis_url, [works], monitor=True) as worker:
        await heard_of(client, worker)
        assert await client.workers.ping() == {worker.name: "pong, running"}
        assert await client.workers.drain([worker.name]) == {worker.name: "draining, 0 running"}
        job = await client.enqueue(works, 5)
        assert (await client.workers.ping([worker.name]))[worker.name] == "pong, draining"
        (load,) = await client.queue_loads()
        assert (load.due, load.running) == (1, 0)
        assert load.lag_s > 0
        assert await client.workers.resume() == {worker.name: "running"}
        assert await job.result(timeout=10) == 5


async def test_concurrency_is_set_from_afar(redis_url: str, client: Client) -> None:
    runs, opens = asyncio.Semaphore(0), asyncio.Event()

    @task
    async def slow(_ctx: Context) -> None:
        runs.release()
        await opens.wait()

    async with serving(redis_url, [slow], monitor=True, max_jobs=1) as worker:
        jobs = [await client.enqueue(slow) for _ in range(3)]
        await runs.acquire()
        await heard_of(client, worker)
        assert worker.job_counter == 1
        told = await client.workers.concurrency(3)
        assert told == {worker.name: "concurrency 3, was 1"}
        async with asyncio.timeout(10):
            await runs.acquire()
            await runs.acquire()
        opens.set()
        for job in jobs:
            await job.result(timeout=10)


async def test_orders_that_make_no_sense_are_refused(client: Client) -> None:
    with pytest.raises(errors.ArgumentsError, match="whole number"):
        await client.workers.concurrency(0)
    with pytest.raises(errors.ArgumentsError, match="list of names"):
        await client.workers.ping("w")
    assert await client.workers.ping() == {}


async def test_minutes_out_of_bounds_are_refused(client: Client) -> None:
    with pytest.raises(errors.ArgumentsError, match="1 to 1440"):
        await client.history.minutes(0)


async def ask(worker: Worker, path: str, method: str = "GET") -> tuple[int, str]:
    """Ask a worker's probes; return status and body."""
    assert worker.monitor is not None
    assert worker.monitor.probes is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.monitor.probes.port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), body


async def test_probes_answer_for_the_worker(redis_url: str, client: Client) -> None:
    async with serving(redis_url, [works], health_port=0) as worker:

        async def listens() -> Any:
            return worker.monitor is not None and worker.monitor.probes and worker.is_live()

        await wait_until(listens, description="the worker listens, and its loop runs")
        assert await ask(worker, "/live") == (200, "live\n")
        assert await ask(worker, "/ready") == (200, "ready\n")
        assert (await ask(worker, "/nothing"))[0] == 404
        assert (await ask(worker, "/live", "POST"))[0] == 405
        assert await ask(worker, "/live", "HEAD") == (200, "")
        worker.quiet()
        assert await ask(worker, "/ready") == (503, "draining\n")
        await client.enqueue(works)
        status, lag = await ask(worker, "/lag")
        assert status == 200
        assert float(lag) > 0
    assert [key async for key in client.scan_iter("runner:worker*")] == []


async def test_a_worker_that_starts_is_live_and_not_ready(redis_url: str) -> None:
    class Slow(runner.Part):
        name = "slow"

        async def start(self, worker: Any) -> None:
            self.said = await ask(worker, "/live"), await ask(worker, "/ready")

    slow = Slow()
    async with serving(redis_url, [works], health_port=0, parts=[slow]) as worker:
        await wait_until(worker.is_live, description="the worker runs")
    assert slow.said == ((200, "starting\n"), (503, "starting\n"))


async def test_metrics_are_what_prometheus_reads(redis_url: str, client: Client) -> None:
    async with serving(redis_url, [works, breaks], health_port=0, monitor=True) as worker:
        await (await client.enqueue(works)).result(timeout=10)
        await client.enqueue(breaks)

        async def counted() -> Any:
            samples: dict[tuple[str, ...], float] = {}
            if worker.monitor is not None and worker.monitor.probes is not None:
                status, text = await ask(worker, "/metrics")
                assert status == 200
                for family in read(text):
                    for sample in family.samples:
                        samples[sample.name, *sorted(sample.labels.values())] = sample.value
            queue = keys.DEFAULT_QUEUE
            both = [
                samples.get(("runner_attempts_total", queue, "succeeded", "works")),
                samples.get(("runner_attempts_total", queue, "breaks", "failed")),
            ]
            return samples if both == [1, 1] else None

        samples = await wait_until(counted, description="both jobs are counted")
    assert samples["runner_job_run_seconds_count", keys.DEFAULT_QUEUE, "works"] == 1
    assert samples["runner_queue_jobs", keys.DEFAULT_QUEUE, "due"] == 0
    assert samples["runner_concurrency",] == worker.max_jobs
    assert samples["runner_leases_lost_total",] == 0
    for what in ("memory_bytes", "threads", "open_files", "asyncio_tasks"):
        assert samples[f"runner_{what}",] >= 1


async def test_what_a_limit_refuses_is_counted_and_no_end(redis_url: str, client: Client) -> None:
    gate = Gate()

    @task(name="one", max_running=1)
    async def one(_ctx: Context) -> None:
        await gate()

    async with serving(redis_url, [one], monitor=True, health_port=0) as worker:
        first = await client.enqueue(one)
        await gate.runs.wait()
        second = await client.enqueue(one)

        async def parked() -> Any:
            return (await client.history.last()).outcomes.get("parked")

        assert await wait_until(parked, description="the second is parked") == 1
        assert await client.history.finished() == []
        _, text = await ask(worker, "/metrics")
        assert 'runner_limit_decisions_total{decision="admitted",limit="one.running"} 1.0' in text
        assert 'runner_limit_decisions_total{decision="parked",limit="one.running"} 1.0' in text
        assert 'runner_limit_parked_jobs{limit="one.running"} 1.0' in text
        assert 'runner_limit_used{limit="one.running"} 1.0' in text
        gate.opens.set()
        await first.result(timeout=10)
        await second.result(timeout=10)


async def test_a_quiet_worker_that_ends_is_not_resumed(redis_url: str) -> None:
    async with serving(redis_url, [works]) as worker:
        await wait_until(worker.is_live, description="the worker runs")
        worker.quiet()
        assert worker.is_quiet
        worker.drain()
        worker.resume()
        assert not worker.allow_pick_jobs
        assert worker.main_task is not None
        async with asyncio.timeout(10):
            await asyncio.wait([worker.main_task])


async def test_a_port_that_is_taken_is_a_setting_to_change(redis_url: str) -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        worker = Worker(
            [works],
            redis_settings=runner.RedisSettings.from_dsn(redis_url),
            handle_signals=False,
            health_port=port,
        )
        with pytest.raises(errors.SettingsError, match=f"nothing can listen at 127.0.0.1:{port}"):
            await worker.main()
        assert not worker.events.watched
        await worker.close()
    finally:
        server.close()
        await server.wait_closed()


async def test_lag_is_of_what_could_run_now(redis_url: str, client: Client) -> None:
    """Deferred, parked and running jobs wait for something else; a paused queue for somebody."""
    gate = Gate()

    @task(name="one", max_running=1)
    async def one(_ctx: Context) -> None:
        await gate()

    async with serving(redis_url, [one, works], monitor=True, health_port=0) as worker:
        jobs: list[Any] = [await client.enqueue(one), await client.enqueue(one)]
        await client.enqueue(works.options(delay=3600))
        await gate.runs.wait()

        async def parked() -> Any:
            return (await client.history.last()).outcomes.get("parked")

        await wait_until(parked, description="the second is parked")
        assert await ask(worker, "/lag") == (200, "0.000\n")
        await client.pause(queue=keys.DEFAULT_QUEUE)
        waits = await client.enqueue(works)
        (load,) = await client.queue_loads()
        assert (load.due, load.is_paused) == (1, True)

        async def lags() -> Any:
            return (await client.queue_loads())[0].lag_s > 0

        await wait_until(lags, description="it waits")
        assert await ask(worker, "/lag") == (200, "0.000\n")
        _, text = await ask(worker, "/metrics")
        assert 'runner_queue_paused{queue="arq:queue"} 1.0' in text
        await client.resume(queue=keys.DEFAULT_QUEUE)
        gate.opens.set()
        for job in (*jobs, waits):
            await job.result(timeout=20)


async def test_metrics_and_probes_answer_while_a_worker_drains(
    redis_url: str, client: Client
) -> None:
    gate = Gate()

    @task
    async def slow(_ctx: Context) -> None:
        await gate()

    async with serving(redis_url, [slow], monitor=True, health_port=0) as worker:
        job = await client.enqueue(slow)
        await gate.runs.wait()
        worker.drain()
        assert (await ask(worker, "/ready"))[0] == 503
        assert (await ask(worker, "/live"))[0] == 200
        status, text = await ask(worker, "/metrics")
        assert status == 200
        assert "runner_jobs_running 1.0" in text
        assert "runner_draining 1.0" in text
        gate.opens.set()
        await job.result(timeout=20)


async def test_a_loop_that_stood_still_is_told_of_at_the_next_scrape(
    redis_url: str, client: Client
) -> None:
    @task
    async def blocks(_ctx: Context) -> None:
        time.sleep(0.8)  # noqa: ASYNC251  it is what is to be seen

    async with serving(redis_url, [blocks], monitor=True, health_port=0) as worker:
        await (await client.enqueue(blocks)).result(timeout=20)
        ticks = len(worker.monitor._delays) if worker.monitor else 0

        def later() -> bool:
            return worker.monitor is not None and len(worker.monitor._delays) > ticks + 1

        await wait_until(later, description="two ticks came in time since")
        _, text = await ask(worker, "/metrics")
        delays = [line for line in text.splitlines() if line.startswith("runner_loop_delay_sec")]
    assert float(delays[0].split()[1]) > 0.2


async def test_a_lease_that_a_killed_worker_lost_is_told_by_the_others(
    redis_url: str, client: Client
) -> None:
    async with raw(redis_url) as redis:
        rig = Rig(redis)
        job = await client.enqueue(works, 7)
        claims = await rig.claim()
        await rig.lapse(*claims)
        async with serving(redis_url, [works], monitor=True, health_port=0) as worker:
            assert await job.result(timeout=20) == 7
            _, text = await ask(worker, "/metrics")
    assert 'runner_queue_crashes_total{queue="arq:queue"} 1.0' in text
    assert "runner_leases_lost_total 0.0" in text


async def test_without_redis_a_worker_is_live_not_ready_and_tells_what_it_knows(
    chaos_servers: ChaosServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SILENT_S", 0.5)
    url = chaos_servers.redis_url
    async with (
        runner.connect(url) as client,
        serving(url, [works], monitor=True, health_port=0) as worker,
    ):
        await (await client.enqueue(works)).result(timeout=20)

        async def says(path: str, status: int) -> bool:
            return (await ask(worker, path))[0] == status

        await wait_until(lambda: says("/ready", 200), description="it is ready", timeout_s=20)
        await chaos_servers.stop_redis()
        await wait_until(lambda: says("/ready", 503), description="it is not ready", timeout_s=20)
        assert (await ask(worker, "/ready"))[1].startswith("Redis has been silent")
        assert await ask(worker, "/live") == (200, "live\n")
        assert (await ask(worker, "/lag"))[0] == 503
        status, text = await ask(worker, "/metrics")
        assert status == 200
        assert 'runner_attempts_total{outcome="succeeded"' in text
        assert "runner_queue_lag_seconds{" not in text, "a number that nobody knows is not told"
        await chaos_servers.start_redis()
        await wait_until(lambda: says("/ready", 200), description="ready again", timeout_s=30)


async def test_a_loop_that_stands_still_answers_no_probe(redis_url: str, client: Client) -> None:
    asked: list[str] = []

    @task
    async def blocks(_ctx: Context, port: int) -> None:
        # A thread asks, and the loop, which is held here, cannot answer.
        probing = threading.Thread(target=probe, args=(port,))
        probing.start()
        probing.join()

    def probe(port: int) -> None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/live", timeout=0.5) as reply:
                asked.append(str(reply.status))
        except TimeoutError:
            asked.append("no answer")

    async with serving(redis_url, [blocks], monitor=True, health_port=0) as worker:
        await heard_of(client, worker)
        assert worker.monitor is not None
        assert worker.monitor.probes is not None
        await (await client.enqueue(blocks, worker.monitor.probes.port)).result(timeout=20)
        assert asked == ["no answer"]
        assert (await ask(worker, "/live"))[0] == 200
