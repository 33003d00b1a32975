"""Flows whose nodes write: children start behind the commit, or before it where they say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import runner
from runner import Context, Flow, FlowState, NodeState, chain, chord, keys, node, task
from runner.errors import DecodeError, FlowFailed, WriteRejected
from tests.engine import drain, serving
from tests.integration.test_writer_support import LASTING
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Connection, Record

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.lasting_keys(*LASTING, "runner:held:*", "runner:writer:leader"),
]

KEY = "2026-11:" + "0f" * 32


def untyped(client: Any) -> Any:
    """Return the client without types: redis-py's are those of both of its clients at once."""
    return client


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Connection[Record]]:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    yield connection
    await connection.close()


@task
async def write(ctx: Context, number: int) -> int:
    ctx.db.insert("t", id=number)
    return number


@task
async def read(ctx: Context, numbers: list[int]) -> list[int]:
    rows = await ctx.db.fetch("SELECT id FROM t ORDER BY id")
    assert sorted(numbers) == [row["id"] for row in rows]
    return [row["id"] for row in rows]


@task
async def say(ctx: Context, number: int | None = None) -> int | None:
    await untyped(ctx.client).rpush("said", str(number))
    return number


TASKS: list[Any] = [write, read, say]


@pytest.mark.parametrize(
    "settings",
    [{"codec": "msgpack"}, {"codec": "pickle"}, {"codec": "msgpack", "signing_keys": KEY}],
    ids=["msgpack", "pickle", "signed"],
)
@pytest.mark.usefixtures("database")
async def test_children_read_what_their_parents_wrote(
    redis_url: str, database_url: str, settings: dict[str, Any]
) -> None:
    numbers = list(range(200))
    async with (
        runner.connect(redis_url, **settings) as client,
        serving(redis_url, TASKS, database_url=database_url, **settings),
    ):
        run = await client.start(chord(write.map(numbers), read.s()))
        assert await run.result(timeout=30) == numbers


@pytest.mark.usefixtures("database")
async def test_unit_that_is_refused_fails_its_node(redis_url: str, database_url: str) -> None:
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, TASKS, database_url=database_url),
    ):
        await (await client.start(write.call(1))).result(timeout=30)
        run = await client.start(chain(write.call(1), say.s()))
        with pytest.raises(FlowFailed, match="failed at write") as failed:
            await run.result(timeout=30)
        assert isinstance(failed.value.__cause__, WriteRejected)
        fallback = await client.start(chain(node(write.call(1), fallback=say.call(5)), say.s()))
        assert await fallback.result(timeout=30) == 5


async def test_failed_part_writes_another_unit_when_it_runs_again(
    redis_url: str, database_url: str, database: Connection[Record]
) -> None:
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, TASKS, database_url=database_url),
    ):
        await database.execute("INSERT INTO t VALUES (1)")
        run = await client.start(chain(write.call(1), say.s()))
        with pytest.raises(FlowFailed):
            await run.result(timeout=30)
        await database.execute("DELETE FROM t")
        assert await run.retry() == 2
        assert await run.result(timeout=30) == 1
    assert await database.fetchval("SELECT count(*) FROM t") == 1


@pytest.mark.usefixtures("database")
async def test_children_start_before_the_commit_where_they_may(
    redis_url: str, database_url: str
) -> None:
    flow = Flow("f")
    early = flow.add(write.call(1), release_after="submitted")
    late = flow.add(write.call(2), name="late")
    flow.add(say.call(early.result), after=[early], name="soon")
    flow.add(say.call(late.result), after=[late], name="then")
    async with runner.connect(redis_url) as client:
        # No writer: nothing is committed.
        async with serving(redis_url, TASKS, database_url=database_url, writer=False):
            run = await client.start(flow)

            async def has_said() -> bool:
                return bool(await untyped(client).llen("said") == 1)

            await wait_until(has_said, description="the child ran before the commit")
            states = {each.name: each.state for each in await run.nodes()}
            assert states["late"] is NodeState.QUEUED
            assert states["then"] is NodeState.WAITING
            assert states["write"] is NodeState.COMMITTING
            assert (await run.status()).state is FlowState.RUNNING
        async with serving(redis_url, TASKS, database_url=database_url):
            assert await run.result(timeout=30) == {"soon": 1, "then": 2}
        assert await untyped(client).lrange("said", 0, -1) == [b"1", b"2"]


@pytest.mark.usefixtures("database")
async def test_refusal_after_children_have_started_fails_the_flow(
    redis_url: str, database_url: str
) -> None:
    flow = Flow("f")
    early = flow.add(write.call(1), release_after="submitted")
    flow.add(say.call(early.result), after=[early])
    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, TASKS, database_url=database_url),
    ):
        await (await client.start(write.call(1))).result(timeout=30)
        run = await client.start(flow)
        with pytest.raises(FlowFailed, match="failed at write"):
            await run.result(timeout=30)
        states = {each.name: each.state for each in await run.nodes()}
        assert states["write"] is NodeState.FAILED
        assert states["say"] is not NodeState.SKIPPED, "it had started"


@pytest.mark.usefixtures("database")
async def test_burst_worker_runs_flows_to_their_end(redis_url: str) -> None:
    async with runner.connect(redis_url) as client:
        run = await client.start(chain(say.call(1), say.s(), say.s()))
        await drain(redis_url, TASKS)
        assert await run.result(timeout=1) == 1


async def test_bare_worker_runs_flows_and_leaves_no_key_beside_them(redis_url: str) -> None:
    async with runner.connect(redis_url, codec="pickle") as client:
        run = await client.start(chord(say.map([1, 2]), say.call(3)))
        await drain(redis_url, TASKS, codec=None, history=False)
        assert await run.result(timeout=1) == 3
        left = {key.decode() async for key in client.scan_iter("runner:*")}
    assert not [key for key in left if not key.startswith((keys.FLOW, keys.FLOWS))]


async def test_result_of_another_flow_is_refused_where_results_are_signed(redis_url: str) -> None:
    async with runner.connect(redis_url, signing_keys=KEY) as client:
        one = await client.start(say.call(1))
        two = await client.start(say.call(2))
        await drain(redis_url, TASKS, signing_keys=KEY)
        blob = await untyped(client).hget(f"{keys.flow(one.id)}:results", "0")
        assert blob is not None
        await untyped(client).hset(f"{keys.flow(two.id)}:results", "0", blob)
        with pytest.raises(DecodeError, match="signed for another job"):
            await two.result(timeout=5)


@task
async def log_end(ctx: Context, facts: dict[str, Any]) -> None:
    ctx.db.insert("ends", state=facts["state"])


async def test_callback_writes_at_each_end_of_a_flow(
    redis_url: str, database_url: str, database: Connection[Record]
) -> None:
    await database.execute("CREATE TABLE ends (state text PRIMARY KEY)")
    flow = Flow("f", on_complete=log_end.s())
    flow.add(write.call(1))

    async def ends() -> list[str]:
        return [row["state"] for row in await database.fetch("SELECT state FROM ends ORDER BY 1")]

    async def has_ended_once() -> bool:
        return await ends() == ["failed"]

    async def has_ended_twice() -> bool:
        return await ends() == ["failed", "succeeded"]

    async with (
        runner.connect(redis_url) as client,
        serving(redis_url, [*TASKS, log_end], database_url=database_url),
    ):
        await database.execute("INSERT INTO t VALUES (1)")
        run = await client.start(flow)
        assert (await run.wait(timeout=30)).state is FlowState.FAILED
        await wait_until(has_ended_once, description="the callback has written")
        await database.execute("DELETE FROM t")
        assert await run.retry() == 1
        assert (await run.wait(timeout=30)).state is FlowState.SUCCEEDED
        await wait_until(has_ended_twice, description="it has written again")


@task(retries=5, on_write_error="retry")
async def insist(ctx: Context, number: int) -> None:
    ctx.db.insert("t", id=number)


async def test_refused_node_of_a_cancelled_flow_is_not_tried_again(
    redis_url: str, database_url: str, database: Connection[Record]
) -> None:
    await database.execute("INSERT INTO t VALUES (1)")
    tasks = [*TASKS, insist]
    async with runner.connect(redis_url) as client:
        async with serving(redis_url, tasks, database_url=database_url, writer=False):
            run = await client.start(chain(insist.call(1), say.call(1)))
            marker = keys.in_progress(f"flow:{run.id}:0")

            async def is_committing() -> bool:
                held = await untyped(client).get(marker)
                return bool(held and held.startswith(b"committing:"))

            await wait_until(is_committing, description="its unit waits for the writer")
            await run.cancel()
        async with serving(redis_url, tasks, database_url=database_url):
            assert (await run.wait(timeout=30)).state is FlowState.CANCELLED
        assert (await run.status()).cancelled == 1
        assert await client.zcard(keys.DEFAULT_QUEUE) == 0
