"""The lines that jobs log are kept with the job that spoke: all, once, whatever they say."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

import runner
from runner import Context, ManyContext, logs, task
from runner.errors import RemoteError
from runner.lines import MOST_LINE, Line
from runner.monitor import joblog
from runner.monitor.joblog import JobLog
from tests.engine import drain, raw, serving
from tests.proxy import proxied
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner import Client

pytestmark = pytest.mark.timeout(60)

shop = logging.getLogger("shop")


class Shy:
    def __str__(self) -> str:
        raise RuntimeError("not to be shown")


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


def lose_disk() -> None:
    raise OSError("no disk")


@task
async def speaks(_ctx: Context, text: str) -> None:
    shop.warning(text)


@task(executor="process")
def speaks_elsewhere(_ctx: Context, text: str) -> None:
    shop.warning("first %s", text)
    if text == "bad":
        try:
            lose_disk()
        except OSError:
            shop.exception("it went wrong")
        raise ValueError("as it should")


@task(batch=3, batch_wait=5)
async def together(_ctx: ManyContext, items: list[int]) -> None:
    shop.warning("%d together", len(items))


async def messages(client: Client, job: Any) -> list[str]:
    return [line.message for line in await client.job_log(job.job_id)]


async def test_two_workers_of_a_process_keep_each_line_once(redis_url: str, client: Client) -> None:
    async with (
        serving(redis_url, [speaks], monitor=True, queue_name="one"),
        serving(redis_url, [speaks], monitor=True, queue_name="two"),
    ):
        jobs = [
            await client.enqueue(speaks.options(queue=queue), queue) for queue in ("one", "two")
        ]
        for job in jobs:
            await job.result(timeout=20)
    assert [await messages(client, job) for job in jobs] == [["one"], ["two"]]


async def test_a_process_hands_its_lines_over_also_of_a_job_that_fails(
    redis_url: str, client: Client
) -> None:
    async with serving(redis_url, [speaks_elsewhere], monitor=True):
        good = await client.enqueue(speaks_elsewhere, "good")
        bad = await client.enqueue(speaks_elsewhere, "bad")
        await good.result(timeout=30)
        with pytest.raises(RemoteError, match="as it should"):
            await bad.result(timeout=30)
    assert await messages(client, good) == ["first good"]
    first, second = await client.job_log(bad.job_id)
    assert (first.level, first.logger, first.attempt) == ("WARNING", "shop", 1)
    assert second.message.startswith("it went wrong\nTraceback")
    assert second.message.endswith("OSError: no disk")


async def test_what_a_call_for_many_jobs_logs_is_kept_with_each(
    redis_url: str, client: Client
) -> None:
    async with serving(redis_url, [together], monitor=True):
        jobs = [await client.enqueue(together, number) for number in range(3)]
        for job in jobs:
            await job.result(timeout=20)
    assert [await messages(client, job) for job in jobs] == [["3 together"]] * 3


async def test_an_exception_that_structlog_logs_is_kept_with_its_traceback(
    redis_url: str, client: Client
) -> None:
    @task
    async def breaks(_ctx: Context) -> None:
        try:
            lose_disk()
        except OSError as exc:
            structlog.get_logger("shop").exception("lost", order=7)
            structlog.get_logger("shop").error("again", exc_info=exc)

    job = await client.enqueue(breaks)
    before = structlog.get_config()
    logs._configure_structlog()
    try:
        await drain(redis_url, [breaks], monitor=True)
    finally:
        structlog.configure(**before)
    for said, begins in zip(await messages(client, job), ("lost order=7", "again"), strict=True):
        assert said.startswith(f"{begins}\nTraceback")
        assert said.endswith("OSError: no disk")


async def test_of_a_long_traceback_the_error_itself_is_kept(redis_url: str, client: Client) -> None:
    def deep(left: int) -> None:
        if not left:
            raise OSError("at the very end")
        deep(left - 1)

    @task
    async def breaks(_ctx: Context) -> None:
        for head in ("short", "x" * 5_000):
            try:
                deep(50)
            except OSError:
                shop.exception("%s", head)

    job = await client.enqueue(breaks)
    await drain(redis_url, [breaks], monitor=True)
    for said in await messages(client, job):
        assert said.endswith("OSError: at the very end")
        assert len(said) <= MOST_LINE


@pytest.mark.parametrize(
    ("text", "kept"),
    [("a\0b\n\x1b[31m", "a\0b\n\x1b[31m"), ("{x} %s", "{x} %s")],
)
async def test_whatever_is_said_is_kept_as_text(
    redis_url: str, client: Client, text: str, kept: str
) -> None:
    @task
    async def says(_ctx: Context) -> None:
        shop.warning(text)
        shop.warning("%s", "y" * 1_000_000)

    job = await client.enqueue(says)
    await drain(redis_url, [says], monitor=True)
    first, second = await messages(client, job)
    assert first == kept
    assert (second[:3], len(second)) == ("yyy", MOST_LINE)


async def test_a_value_that_cannot_be_shown_takes_no_other_line_along(
    redis_url: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)

    @task
    async def says(_ctx: Context) -> None:
        shop.warning("%s", Shy())
        shop.warning("behind it")

    job = await client.enqueue(says)
    await drain(redis_url, [says], monitor=True)
    assert await messages(client, job) == ["behind it"]


async def test_more_lines_than_lua_takes_at_once(redis_url: str, client: Client) -> None:
    log = JobLog("w", 12_000)
    for number in range(12_500):
        log.take((("j", 1),), Line(number, "INFO", "shop", str(number)))
    async with raw(redis_url) as redis:
        await log.flush_to(redis)
    lines = await client.job_log("j")
    assert (len(lines), lines[0].message, lines[-1].message) == (12_000, "500", "12499")


async def test_lines_wait_for_a_redis_that_is_away_within_bounds(
    redis_url: str,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(joblog, "MOST_BYTES", 5_000)
    log = JobLog("w", 3)
    for number in range(4):
        log.take((("j", 1),), Line(number, "INFO", "shop", str(number)))
    async with proxied(redis_url) as wire, raw(wire.url) as redis:
        wire.mute = b"runner:log:"
        flushing = asyncio.create_task(log.flush_to(redis))
        await wait_until(lambda: wire.muted, description="the lines are lost")
        log.take((("j", 1),), Line(4, "INFO", "shop", "4"))
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        wire.mute = b""
        for number in range(100):
            log.take((("k", 1),), Line(number, "INFO", "shop", "z" * 2_000))
            log.take(((f"k{number}", 1),), Line(number, "INFO", "shop", "z" * 2_000))
        await log.flush_to(redis)
        await log.flush_to(redis)
    assert [line.message for line in await client.job_log("j")] == ["2", "3", "4"]
    assert log.dropped > 90
    assert caplog.text.count("found no room") == 1
