"""Tracebacks that people are shown begin with their own code."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import Context, Depends, Middleware, Timing, keys, task
from runner.errors import RemoteError
from runner.events import Event, JobEnded
from tests import timing_jobs
from tests.engine import drain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from runner import Client

OURS = re.compile(r'File "[^"]*/runner/(\w+)')


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


async def opened() -> AsyncIterator[int]:
    yield int("it does not open")


def opened_by_hand() -> Iterator[int]:
    yield int("it does not open")


async def closed() -> AsyncIterator[int]:
    try:
        yield 1
    finally:
        raise LookupError("it does not close")


@task
async def at_once(_ctx: Context) -> None:
    raise ValueError("no")


@task
async def waits(_ctx: Context) -> None:
    await asyncio.sleep(0)
    raise ValueError("no")


@task(executor="thread")
def in_thread(_ctx: Context) -> None:
    raise ValueError("no")


@task(executor="thread")
def leaves(_ctx: Context) -> None:
    sys.exit(3)


@task
async def needs(_ctx: Context, it: int = Depends(opened)) -> None: ...


@task
async def needs_by_hand(_ctx: Context, it: int = Depends(opened_by_hand)) -> None: ...


@task
async def used(_ctx: Context, it: int = Depends(closed)) -> None:  # noqa: ARG001
    raise ValueError("no")


@task(executor="thread")
def needs_in_thread(_ctx: Context, it: int = Depends(opened_by_hand)) -> None: ...


@task(batch=3)
async def together(_ctx: Context, items: list[int]) -> None:  # noqa: ARG001
    raise ValueError("no")


@task(timeout=0.05)
async def slow(_ctx: Context) -> None:
    await asyncio.sleep(60)


@task(soft_timeout=0.05)
async def slow_softly(_ctx: Context) -> None:
    await asyncio.sleep(60)


@task
async def chained(_ctx: Context) -> None:
    try:
        raise KeyError("why")  # noqa: TRY301  in this frame
    except KeyError as exc:
        raise ValueError("no") from exc


@task
async def grouped(_ctx: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(waits.function(None))
        group.create_task(waits.function(None))


def frames_in(text: str) -> list[str]:
    return re.findall(r'File "[^"]*", line \d+, in (\w+)', text)


class Stands(Middleware):
    async def execute(self, job: Any, proceed: Any) -> Any:
        return await proceed(job)


class Loses(Middleware):
    async def execute(self, job: Any, proceed: Any) -> Any:  # noqa: ARG002
        raise LookupError("it does not proceed")


# Each with the functions whose frames are shown, in their order.
LOOP: dict[Any, list[str]] = {
    at_once: ["at_once"],
    waits: ["waits"],
    needs: ["opened"],
    needs_by_hand: ["opened_by_hand"],
    together: ["together"],
    chained: ["chained", "chained"],
    slow: ["slow", "sleep"],
    slow_softly: ["slow_softly", "sleep"],
    grouped: ["grouped", "__aexit__", "waits", "waits"],
}
THREADS: dict[Any, list[str]] = {
    in_thread: ["in_thread"],
    needs_in_thread: ["opened_by_hand"],
    leaves: ["leaves"],
}
PROCESSES: dict[Any, list[str]] = {
    timing_jobs.fail: ["fail"],
    timing_jobs.leave: ["leave"],
    timing_jobs.fail_oddly: ["fail_oddly"],
}


async def tracebacks_of(
    redis_url: str, client: Client, tasks: Iterable[Any], **settings: Any
) -> dict[str, str]:
    """Run a job of each task; return the tracebacks of their letters by the tasks' names."""
    for one in tasks:
        await client.enqueue(one, *((1,) if one is together else ()))
    await drain(redis_url, list(tasks), **settings)
    return {letter.task: letter.traceback for letter in await client.dead_letters()}


@pytest.mark.parametrize("tasks", [LOOP, THREADS, PROCESSES], ids=["loop", "threads", "processes"])
@pytest.mark.parametrize("middleware", [[], [Timing(lambda _: None)]], ids=["alone", "ours around"])
async def test_a_traceback_begins_with_the_users_code(
    redis_url: str, client: Client, tasks: dict[Any, list[str]], middleware: list[Middleware]
) -> None:
    told = await tracebacks_of(redis_url, client, tasks, middleware=middleware)
    assert {name: frames_in(text) for name, text in told.items()} == {
        one.name: frames for one, frames in tasks.items()
    }
    for text in told.values():
        assert not re.search(OURS, text)


@pytest.mark.parametrize("tasks", [LOOP, THREADS, PROCESSES], ids=["loop", "threads", "processes"])
async def test_behind_a_middleware_of_the_user_stands_their_function(
    redis_url: str, client: Client, tasks: dict[Any, list[str]]
) -> None:
    told = await tracebacks_of(redis_url, client, tasks, middleware=[Stands()])
    assert set(told) == {one.name for one in tasks}
    for name, text in told.items():
        # What cannot leave its process comes as the text that it has there.
        assert ("in execute" in text) == (name != "fail_oddly")
        assert not re.search(OURS, text)


async def test_a_process_that_raised_is_not_shown_as_a_cause(
    redis_url: str, client: Client
) -> None:
    told = await tracebacks_of(redis_url, client, [timing_jobs.fail])
    assert told["fail"].startswith("Traceback (most recent call last):")
    assert told["fail"].count("ValueError: broken in a process") == 1


async def test_a_dependency_that_cannot_be_closed_has_both_errors(
    redis_url: str, client: Client
) -> None:
    told = await tracebacks_of(redis_url, client, [used])
    first, second = told["used"].split("During handling of the above exception")
    assert frames_in(first) == ["closed", "used"]
    assert frames_in(second) == ["closed"]


async def test_a_middleware_that_raises_is_shown_itself(redis_url: str, client: Client) -> None:
    told = await tracebacks_of(redis_url, client, [at_once], middleware=[Loses()])
    assert frames_in(told["at_once"]) == ["execute"]


async def test_an_error_of_ours_is_shown_whole(redis_url: str, client: Client) -> None:
    await client.enqueue_job("at_once", "too", "many")
    await drain(redis_url, [at_once])
    (letter,) = await client.dead_letters()
    assert frames_in(letter.traceback) == ["perform", "arguments", "bind"]
    assert "ArgumentsError" in letter.traceback


async def test_a_payload_that_cannot_be_read_is_shown_whole(redis_url: str, client: Client) -> None:
    job = await client.enqueue(at_once)
    await client.set(keys.job(job.job_id), b"\x00", keepttl=True)
    await drain(redis_url, [at_once])
    (letter,) = await client.dead_letters()
    assert letter.outcome == "undecodable"
    assert re.search(OURS, letter.traceback)


async def test_what_a_job_logs_and_its_result_say_the_same(redis_url: str, client: Client) -> None:
    class Logs(Timing):
        async def execute(self, job: Any, proceed: Any) -> Any:
            try:
                return await super().execute(job, proceed)
            except ValueError:
                logging.getLogger("shop").exception("it went wrong")
                raise

    job = await client.enqueue(at_once)
    await drain(redis_url, [at_once], middleware=[Logs(lambda _: None)], monitor=True)
    (line,) = await client.job_log(job.job_id)
    assert frames_in(line.message) == ["execute", "at_once"]
    with pytest.raises(RemoteError) as failed:
        await job.result(timeout=1)
    assert frames_in(failed.value.remote_traceback) == ["execute", "at_once"]


async def test_the_workers_own_line_begins_there_too_and_the_exception_stays_whole(
    redis_url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caught: list[Event] = []
    await client.enqueue(at_once)
    await drain(redis_url, [at_once], subscribers=[caught.append])
    (line,) = [record for record in caplog.records if record.exc_info]
    assert line.exc_info is not None
    assert [frame.name for frame in traceback.extract_tb(line.exc_info[2])] == ["at_once"]
    (exception,) = [e.exception for e in caught if isinstance(e, JobEnded)]
    assert exception is line.exc_info[1]
    assert isinstance(exception, ValueError)
    assert "perform" in {frame.name for frame in traceback.extract_tb(exception.__traceback__)}
