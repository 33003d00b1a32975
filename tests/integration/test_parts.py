"""A user's part is in the worker's own list; dependencies live as long as they say."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import pytest

import runner
from runner import Context, Depends, Part, task
from runner.dependencies import STORE, overriding
from runner.errors import ArgumentsError, RemoteError, SettingsError
from runner.events import PartEvent
from runner.parts import Parts
from runner.worker import Worker
from tests.engine import serving
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [pytest.mark.timeout(60), pytest.mark.lasting_keys("runner:*")]

NOTES: list[str] = []


@pytest.fixture(autouse=True)
def _no_notes() -> None:
    NOTES.clear()


class Cache(Part):
    async def start(self, worker: Any) -> None:
        NOTES.append("cache starts")
        worker.ctx["cache"] = {"answer": 42}
        assert await worker.pool.ping()

    async def stop(self) -> None:
        NOTES.append("cache stops")


class Late(Part):
    needs = ("Cache", "jobs")

    async def start(self, _worker: Any) -> None:
        NOTES.append("late starts")

    async def stop(self) -> None:
        NOTES.append("late stops")


@task
async def ask_cache(ctx: Context) -> int:
    NOTES.append("job")
    return int(ctx["cache"]["answer"])


async def startup(_ctx: Any) -> None:
    NOTES.append("on_startup")


async def shutdown(_ctx: Any) -> None:
    NOTES.append("on_shutdown")


async def test_part_is_there_before_the_first_job_and_until_the_last(redis_url: str) -> None:
    settings: dict[str, Any] = {"on_startup": startup, "on_shutdown": shutdown}
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, [ask_cache], parts=[Late(), Cache()], **settings) as worker,
    ):
        assert await (await client.enqueue(ask_cache)).result(timeout=10) == 42
        names = worker.parts.names
        assert names.index("Cache") < names.index("jobs") < names.index("Late")
    assert NOTES == [
        "on_startup",
        "cache starts",
        "late starts",
        "job",
        "late stops",
        "cache stops",
        "on_shutdown",
    ]


async def test_worker_whose_part_does_not_start_runs_nothing(redis_url: str) -> None:
    class Broken(Part):
        needs = ("Cache",)

        async def start(self, _worker: Any) -> None:
            raise OSError("no port is free")

    async with runner.connect(redis_url) as client:
        await client.enqueue(ask_cache)
        worker = Worker(
            [ask_cache],
            redis_settings=runner.connection.settings_of(redis_url),
            codec="msgpack",
            handle_signals=False,
            parts=[Broken(), Cache()],
        )
        with pytest.raises(OSError, match="no port is free"):
            await worker.async_run()
        assert NOTES == ["cache starts", "cache stops"]
        await worker.close()
        assert await client.zcard("arq:queue") == 1


async def test_burst_worker_starts_its_parts_again(redis_url: str) -> None:
    worker = Worker(
        [ask_cache],
        redis_settings=runner.connection.settings_of(redis_url),
        codec="msgpack",
        burst=True,
        handle_signals=False,
        parts=[Cache()],
    )
    for _ in range(2):
        await worker.async_run()
        await worker.close()
    assert NOTES == ["cache starts", "cache stops"] * 2


async def test_part_tells_events_of_its_own(redis_url: str) -> None:
    class CacheFilled(PartEvent, frozen=True, kw_only=True):
        entries: int

    class Filled(Part):
        async def start(self, worker: Any) -> None:
            event = CacheFilled(worker=worker.name, at_ms=0, entries=7)
            worker.events.emit(event)

    events: list[Any] = []
    async with serving(
        redis_url, [ask_cache], parts=[Filled(), Cache()], subscribers=[events.append]
    ) as worker:
        await wait_until(lambda: NOTES, description="the parts have started")
    (told,) = [event for event in events if isinstance(event, PartEvent)]
    assert told == CacheFilled(worker=worker.name, at_ms=0, entries=7)


# dependencies


async def get_pool(ctx: dict[Any, Any]) -> AsyncIterator[str]:
    NOTES.append("pool opens")
    assert "job_id" not in ctx
    await asyncio.sleep(0)
    yield "pool"
    NOTES.append("pool closes")


@contextlib.asynccontextmanager
async def get_connection(pool: str = Depends(get_pool, scope="worker")) -> AsyncIterator[str]:
    NOTES.append("connection opens")
    try:
        yield f"connection of {pool}"
    except BaseException as exc:
        NOTES.append(f"connection sees {type(exc).__name__}")
        raise
    finally:
        NOTES.append("connection closes")


def get_user(ctx: Context) -> Iterator[str]:
    NOTES.append("user opens")
    yield f"user of {ctx.job_id}"
    NOTES.append("user closes")


def get_number() -> int:
    return 7


async def get_word() -> str:
    return "word"


Connection = Annotated[str, Depends(get_connection)]


@task
async def provided(
    _ctx: Context,
    first: int,
    *,
    connection: Connection,
    user: str = Depends(get_user),
    number: int = Depends(get_number),
    word: str = Depends(get_word),
) -> list[int | str]:
    NOTES.append("function")
    return [first, connection, user, number, word]


@task
async def same(
    _ctx: Context,
    connection: Annotated[str, Depends(get_connection)],
    other: Annotated[str, Depends(get_connection)],
) -> bool:
    return connection is other


@task
async def hang(_ctx: Context, connection: str = Depends(get_connection)) -> None:
    NOTES.append(f"hangs with {connection}")
    await asyncio.Event().wait()


ALL = [provided, same, hang]


async def enqueue(client: runner.Client, name: str, *args: Any) -> runner.Job[Any]:
    return await client.enqueue(name, *args)


async def test_what_is_provided_is_closed_in_reverse_and_the_workers_own_at_its_end(
    redis_url: str,
) -> None:
    async with runner.connect(redis_url) as client, serving(redis_url, ALL):
        for number in (1, 2):
            job = await client.enqueue("provided", number)
            assert await job.result(timeout=10) == [
                number,
                "connection of pool",
                f"user of {job.job_id}",
                7,
                "word",
            ]
    a_job = ["connection opens", "user opens", "function", "user closes", "connection closes"]
    assert [note for note in NOTES if not note.startswith("pool")] == a_job * 2
    assert [note for note in NOTES if note.startswith("pool")] == ["pool opens", "pool closes"]
    assert NOTES[-1] == "pool closes"
    assert NOTES[0] == "pool opens"  # which the connection needs


async def test_one_provider_makes_one_value_for_a_job(redis_url: str) -> None:
    async with runner.connect(redis_url) as client, serving(redis_url, ALL):
        assert await (await client.enqueue("same")).result(timeout=10) is True
    assert NOTES.count("connection opens") == 1


async def test_what_is_provided_is_closed_when_the_job_is_cancelled(redis_url: str) -> None:
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, ALL, job_timeout=0.2),
    ):
        with pytest.raises(TimeoutError):
            await (await client.enqueue("hang")).result(timeout=10)
    assert NOTES[-3:] == ["connection sees CancelledError", "connection closes", "pool closes"]


async def test_provider_that_fails_fails_the_job_and_is_tried_again_by_the_next(
    redis_url: str,
) -> None:
    times = iter([OSError("no database"), None])

    async def unsteady() -> AsyncIterator[str]:
        if (error := next(times)) is not None:
            raise error
        yield "steady"

    @task
    async def use(_ctx: Context, pool: str = Depends(unsteady, scope="worker")) -> str:
        return pool

    async with runner.connect(redis_url) as client, serving(redis_url, [use]):
        with pytest.raises(RemoteError, match="no database"):
            await (await client.enqueue(use)).result(timeout=10)
        assert await (await client.enqueue(use)).result(timeout=10) == "steady"


async def test_jobs_that_come_together_share_what_is_the_workers(redis_url: str) -> None:
    async with runner.connect(redis_url) as client, serving(redis_url, ALL, max_jobs=20):
        jobs = [await client.enqueue("provided", number) for number in range(10)]
        for job in jobs:
            await job.result(timeout=10)
    assert NOTES.count("pool opens") == 1


async def test_function_can_be_called_by_hand_with_some_or_none_of_it() -> None:
    assert await provided(Context({"job_id": "j"}), 1, connection="mine", user="me") == [
        *(1, "mine", "me"),
        *(7, "word"),
    ]
    with overriding({get_connection: lambda: "fake", get_user: lambda: "nobody"}):
        assert await provided(Context({}), 2) == [2, "fake", "nobody", 7, "word"]  # type: ignore[call-arg]
    assert "connection opens" not in NOTES


async def test_overrides_hold_in_a_worker_too(redis_url: str) -> None:
    async with runner.connect(redis_url) as client:
        with overriding({get_pool: lambda: "small pool", get_user: lambda: "tester"}):
            async with serving(redis_url, ALL):
                result = await (await client.enqueue("provided", 1)).result(timeout=10)
    assert result[1:3] == ["connection of small pool", "tester"]


async def test_what_is_provided_is_no_argument(redis_url: str) -> None:
    async with runner.connect(redis_url) as client:
        with pytest.raises(ArgumentsError):
            await client.enqueue(provided, 1, connection="mine")
        with pytest.raises(ArgumentsError):
            await client.enqueue(provided)  # type: ignore[call-overload]


async def test_worker_without_dependencies_has_no_store(redis_url: str) -> None:
    async with serving(redis_url, [ask_cache]) as worker:
        await wait_until(lambda: "redis" in worker.ctx, description="the worker runs")
        assert STORE not in worker.ctx


def test_what_makes_no_sense_is_refused() -> None:
    def needs_a_job(_user: str = Depends(get_user)) -> str:
        return ""

    with pytest.raises(SettingsError, match="lives as long as a job"):

        @task
        async def one(_ctx: Context, value: str = Depends(needs_a_job, scope="worker")) -> None: ...

    with pytest.raises(SettingsError, match="must stand behind 'number'"):

        @task
        async def two(
            _ctx: Context, user: Annotated[str, Depends(get_user)], number: int
        ) -> None: ...

    with pytest.raises(SettingsError, match="takes a function"):
        Depends("get_pool")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match='must be "job" or "worker"'):
        Depends(get_user, scope="process")  # type: ignore[arg-type]


class Shelf(Part):
    commands = ("refill", "count", "tip_over", "doze", "spill", "garble", "stumble", "quit")

    def __init__(self) -> None:
        self.goods: list[str] = []

    async def refill(self, text: str) -> str:
        self.goods.append(text)
        return f"{len(self.goods)} on the shelf"

    def count(self, _text: str) -> int:
        return len(self.goods)

    def tip_over(self, _text: str) -> str:
        raise OSError("it fell")

    async def doze(self, _text: str) -> str:
        await asyncio.Event().wait()
        return ""

    def spill(self, _text: str) -> str:
        return "x" * 2_000_000

    def garble(self, _text: str) -> str:
        return "a name \udcff of a file"

    async def stumble(self, _text: str) -> str:
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        await task
        return ""

    def quit(self, text: str) -> str:
        argparse.ArgumentParser(exit_on_error=True).parse_args(text.split())
        return ""


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[runner.Client]:
    async with runner.connect(redis_url) as connected:
        yield connected


async def test_parts_are_told_what_they_offer(
    redis_url: str, client: runner.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.parts.COMMAND_S", 0.05)
    shelf = Shelf()
    async with serving(redis_url, [ask_cache], parts=[shelf], monitor=True) as worker:
        await wait_until(client.workers.list, description="the worker is seen")

        async def told(command: str, text: str = "") -> str:
            return (await client.workers.tell(command, text))[worker.name]

        assert await told("refill", "tea") == "1 on the shelf"
        assert await told("count") == "1"
        assert await told("tip_over") == "failed: OSError: it fell"
        assert await told("doze") == "refused: the command 'doze' took longer than 0.05 s"
        assert "did you mean 'count'?" in await told("cuont")
        assert (await told("spill")).startswith("refused: 'spill' said 2,000,000 characters")
        assert await told("garble") == "a name \\udcff of a file"
        assert await told("stumble") == "failed: CancelledError: "
        assert await told("quit", "--all") == "failed: SystemExit: 2"
        assert await client.workers.ping() == {worker.name: "pong, running"}
        with pytest.raises(ArgumentsError, match=r"call workers\.ping"):
            await client.workers.tell("ping")


async def test_command_that_hangs_holds_up_nothing_else(
    redis_url: str, client: runner.Client
) -> None:
    shelf = Shelf()
    settings: dict[str, Any] = {"parts": [shelf], "monitor": True}
    async with serving(redis_url, [ask_cache], **settings) as worker:
        await wait_until(client.workers.list, description="the worker is seen")
        hanging = asyncio.create_task(client.workers.tell("doze"))
        for command, answer in (("refill", "1 on the shelf"), ("count", "1")):
            assert await client.workers.tell(command) == {worker.name: answer}
        beat_ms = (await client.workers.list())[0].at_ms

        async def beats_on() -> bool:
            return (await client.workers.list())[0].at_ms > beat_ms

        await wait_until(beats_on, description="the worker says that it lives")
        assert not hanging.done()
        assert await hanging == {
            worker.name: "refused: the command 'doze' took longer than 5 s",
        }


async def test_two_workers_answer_each_for_itself(redis_url: str, client: runner.Client) -> None:
    shelves = [Shelf(), Shelf()]
    shelves[1].goods = ["tea"]
    async with (
        serving(redis_url, [ask_cache], parts=[shelves[0]], monitor=True) as one,
        serving(redis_url, [ask_cache], parts=[shelves[1]], monitor=True) as other,
    ):

        async def both() -> bool:
            return len(await client.workers.list()) == 2

        await wait_until(both, description="both workers are seen")
        assert await client.workers.tell("count") == {one.name: "0", other.name: "1"}
        assert await client.workers.tell("count", names=[other.name]) == {other.name: "1"}


def test_commands_that_cannot_be_told_apart_are_refused() -> None:
    class Drain(Part):
        commands = ("drain",)

    class Missing(Part):
        commands = ("nothing",)

    class Twice(Shelf):
        name = "twice"

    for parts, why in (
        ([Drain()], "as the worker has itself"),
        ([Missing()], "has no method 'nothing'"),
        ([Shelf(), Twice()], "two parts have a command 'refill'"),
    ):
        with pytest.raises(SettingsError, match=why):
            Parts(parts)
