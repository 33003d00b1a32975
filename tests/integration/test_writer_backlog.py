"""What waits for the writer: its account, and who is held back by it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

import runner
from runner import keys
from runner.broker import Broker, Settlement
from runner.errors import SettingsError, WriterBacklogFull
from runner.writer import Bounds, Candidate, UnitBuilder, writer_status
from runner.writer.backlog import BOUND_BYTES
from tests.integration.test_writer_support import CODEC, LASTING, Engine, engine, unit_of, writing
from tests.support import wait_until

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from runner.broker import CycleReply
    from tests.servers import ChaosServers

pytestmark = pytest.mark.lasting_keys(*LASTING, "runner:held:*")

SCHEMA = "CREATE TABLE t (id int PRIMARY KEY, note text);"


async def bound(redis: Redis, entries: int, size: int = BOUND_BYTES) -> None:
    await Bounds(entries, size).announce(redis)


async def account(redis: Redis) -> tuple[int, int]:
    found = await cast(Any, redis.hmget(keys.WRITER, ["backlog", "backlog_bytes"]))
    return tuple(int(value or 0) for value in found)  # type: ignore[return-value]


async def leave(db: runner.Database, *numbers: int, note: str = "") -> None:
    for number in numbers:
        async with db.unit(wait=False) as unit:
            unit.insert("t", id=number, note=note)


async def claim(e: Engine, *, heeds: bool = True, limit: int = 5) -> CycleReply:
    broker = Broker(keys.DEFAULT_QUEUE, lease_ms=60_000, keeps=False, heeds=heeds)
    return await broker.cycle(e.redis, token="r:t:1", settlements=[], limit=limit)


def inserting(number: int) -> UnitBuilder:
    return unit_of(lambda u: u.insert("t", id=number))


async def test_the_account_follows_what_waits(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, runner.database(redis_url) as db:
        await leave(db, 1, 2, 3, note="x" * 1000)
        status = await db.status()
        assert status.backlog == 3
        assert 3000 < status.backlog_bytes < 3300
        assert status.lag_s >= 0
        async with writing(e.candidate()):
            await db.insert("t", id=4)
            assert await account(e.redis) == (0, 0)
            assert (await db.status()).backlog_bytes == 0


async def test_a_new_leader_puts_the_account_right(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, runner.database(redis_url) as db:
        await leave(db, 1, 2)
        await cast(Any, e.redis.hset(keys.WRITER, mapping={"backlog": 70, "backlog_bytes": -9}))
        await e.submit_alone("by another's hand", inserting(3))
        async with writing(e.candidate()):
            await db.insert("t", id=4)
            assert await account(e.redis) == (0, 0)
        await cast(Any, e.redis.hset(keys.WRITER, mapping={"backlog": 70, "backlog_bytes": 9}))
        async with writing(e.candidate()):
            await wait_until(
                lambda: _is_empty(e.redis), description="the account says that nothing waits"
            )


async def _is_empty(redis: Redis) -> bool:
    return await account(redis) == (0, 0)


async def test_beyond_the_first_mark_no_job_is_claimed_that_may_write(
    redis_url: str, database_url: str
) -> None:
    async with (
        engine(redis_url, database_url, SCHEMA) as e,
        runner.database(redis_url) as db,
        runner.connect(redis_url) as client,
    ):
        await bound(e.redis, 6)
        await client.enqueue("f")
        await leave(db, 1, 2, 3, 4)
        reply = await claim(e)
        assert (reply.claimed, reply.more) == ([], False)
        reply = await claim(e, heeds=False, limit=0)
        assert reply.more
        async with writing(Candidate(redis=e.redis, database_url=database_url, codec=CODEC)):
            await db.insert("t", id=5)
        assert len((await claim(e)).claimed) == 1


async def test_tasks_that_never_write_are_claimed_all_the_same(database_url: str) -> None:
    async def plain(ctx: Any) -> None: ...

    @runner.task(writes=False)
    async def reads(ctx: Any) -> None: ...

    def heeds(*functions: Any, url: str | None) -> bool:
        worker = runner.Worker(functions, database_url=url, handle_signals=False)
        return worker.cycles._lines[0].broker.heeds

    assert not heeds(reads, url=database_url)
    assert heeds(reads, plain, url=database_url)
    assert not heeds(plain, url=None)
    with pytest.raises(SettingsError, match="True or False"):
        runner.task(writes=cast(Any, "no"))(plain)


async def test_beyond_the_second_mark_services_wait_and_then_give_up(
    redis_url: str, database_url: str
) -> None:
    async with (
        engine(redis_url, database_url, SCHEMA) as e,
        runner.database(redis_url, full_timeout=0.2) as db,
        runner.database(redis_url, full_timeout=60) as patient,
    ):
        await bound(e.redis, 3)
        await leave(db, 1, 2, 3)
        with pytest.raises(WriterBacklogFull, match="nothing was submitted"):
            await db.insert("t", id=4)
        assert await e.redis.xlen(keys.UNITS) == 3
        waiting = [asyncio.create_task(patient.insert("t", id=number)) for number in range(10, 40)]
        async with writing(e.candidate()):
            await asyncio.gather(*waiting)
        assert await e.rows("SELECT count(*) FROM t") == [(33,)]


async def test_a_unit_for_which_there_was_no_room_may_be_committed_again(
    redis_url: str, database_url: str
) -> None:
    async with (
        engine(redis_url, database_url, SCHEMA) as e,
        runner.database(redis_url, full_timeout=0.1) as db,
    ):
        await bound(e.redis, 1)
        await leave(db, 1)
        unit = db.unit()
        unit.insert("t", id=2)
        with pytest.raises(WriterBacklogFull):
            await unit.commit()
        async with writing(e.candidate()):
            await unit.commit()
            assert await e.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,)]


async def test_bytes_count_and_one_large_unit_may_wait_alone(
    redis_url: str, database_url: str
) -> None:
    async with (
        engine(redis_url, database_url, SCHEMA) as e,
        runner.database(redis_url, full_timeout=0.1) as db,
    ):
        await bound(e.redis, 100, 5000)
        await leave(db, 1, note="x" * 9000)
        with pytest.raises(WriterBacklogFull):
            await db.insert("t", id=2)
        assert await e.redis.xlen(keys.UNITS) == 1


async def test_a_job_that_has_finished_is_never_refused(redis_url: str, database_url: str) -> None:
    async with (
        engine(redis_url, database_url, SCHEMA) as e,
        runner.database(redis_url) as db,
        runner.connect(redis_url) as client,
    ):
        await client.enqueue("f")
        (claimed,) = (await claim(e)).claimed
        await bound(e.redis, 1, 1)
        await leave(db, 1)
        before = await account(e.redis)
        broker = Broker(keys.DEFAULT_QUEUE, lease_ms=60_000, keeps=False, heeds=True)
        ended = Settlement(
            claimed=claimed,
            mode="submit",
            result=b"r",
            unit_id="j:1:0",
            operations=inserting(2).encode(),
            header=b"",
        )
        reply = await broker.cycle(e.redis, token="r:t:2", settlements=[ended], limit=0)
        assert reply.statuses == [1]
        assert await e.redis.xlen(keys.UNITS) == 2
        entries, size = await account(e.redis)
        assert (entries, size) == (2, before[1] + 1 + len(ended.operations))


async def test_a_leader_announces_a_quarter_of_the_memory_there_is(
    chaos_servers: ChaosServers,
) -> None:
    async with engine(chaos_servers.redis_url, chaos_servers.database_url) as e:
        await Bounds().announce(e.redis)
        assert (
            await cast(Any, e.redis.hget(keys.WRITER, "bound_bytes")) == str(BOUND_BYTES).encode()
        )
        await e.redis.config_set("maxmemory", "40mb")
        await Bounds().announce(e.redis)
        assert await cast(Any, e.redis.hget(keys.WRITER, "bound_bytes")) == b"10485760"


async def test_a_full_redis_is_emptied_by_the_writer(chaos_servers: ChaosServers) -> None:
    url = chaos_servers.redis_url
    async with (
        engine(url, chaos_servers.database_url, SCHEMA) as e,
        runner.database(url, full_timeout=0.3) as db,
    ):
        await leave(db, *range(20))
        used = (await e.redis.info("memory"))["used_memory"]
        await e.redis.config_set("maxmemory", used // 2)
        with pytest.raises(WriterBacklogFull):
            await db.insert("t", id=100)
        async with writing(e.candidate()):
            _: Any = await wait_until(
                lambda: e.rows("SELECT 1 FROM t HAVING count(*) = 20"), description="all committed"
            )
            await wait_until(
                lambda: _is_answered(e.redis), description="and answered, without any memory"
            )
            await e.redis.config_set("maxmemory", 0)
            await db.insert("t", id=100)


async def _is_answered(redis: Redis) -> bool:
    return (await writer_status(redis)).backlog == 0


async def test_callers_wait_while_postgres_is_away_and_nothing_is_lost(
    chaos_servers: ChaosServers,
) -> None:
    url = chaos_servers.redis_url
    async with (
        engine(url, chaos_servers.database_url, SCHEMA) as e,
        runner.database(url, full_timeout=0.5) as db,
        writing(
            Candidate(
                redis=e.redis,
                database_url=chaos_servers.database_url,
                codec=CODEC,
                bounds=Bounds(200),
            )
        ),
        runner.connect(url) as client,
    ):
        await db.insert("t", id=0)
        await chaos_servers.stop_postgres()
        waiting = [
            asyncio.create_task(db.within(None).insert("t", id=number)) for number in range(1, 201)
        ]
        await wait_until(lambda: _waits(e.redis, 200), description="the backlog is full")
        with pytest.raises(WriterBacklogFull):
            await db.insert("t", id=999)
        await client.enqueue("f")
        assert (await claim(e)).claimed == []
        assert not any(task.done() for task in waiting)
        await chaos_servers.start_postgres()
        await asyncio.gather(*waiting)
        assert len((await claim(e)).claimed) == 1
    async with engine(url, chaos_servers.database_url) as e:
        assert await e.rows("SELECT count(*) FROM t") == [(201,)]


async def _waits(redis: Redis, entries: int) -> bool:
    return (await writer_status(redis)).backlog >= entries
