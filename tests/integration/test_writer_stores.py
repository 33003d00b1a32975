"""A store goes back in time: what the writer says, what it mends, and when it refuses to go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis.asyncio import Redis

from runner import Context, connect, keys, task
from runner.codec import decode_result
from runner.writer import UnitBuilder, adopt_database, writer_status
from runner.writer.status import exceeds
from runner.writer.stream import Tail
from tests.engine import serving
from tests.integration.test_writer_support import CODEC, LASTING, Engine, engine, unit_of, writing
from tests.servers import Addresses, redis_database
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import ChaosServers

pytestmark = pytest.mark.lasting_keys(*LASTING)

SCHEMA = """
CREATE TABLE written (id bigserial PRIMARY KEY, who text NOT NULL);
CREATE TABLE total (name text PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
INSERT INTO total VALUES ('x', 0);
"""


def noting(who: str) -> UnitBuilder:
    """Return a unit that shows when it is applied twice, and in which order."""
    return unit_of(
        lambda u: u.insert("written", who=who), lambda u: u.add("total", key={"name": "x"}, n=1)
    )


async def result_of(redis: Redis, job_id: str) -> Any:
    data = await redis.get(keys.result(job_id))
    assert data is not None, f"{job_id} has no result"
    return decode_result(CODEC, data)


async def written(database_url: str) -> list[str]:
    """Return who wrote, in order; the counter must say the same."""
    database = await asyncpg.connect(database_url)
    try:
        rows = await database.fetch("SELECT who FROM written ORDER BY id")
        assert await database.fetchval("SELECT n FROM total") == len(rows)
    finally:
        await database.close()
    return [row["who"] for row in rows]


class AppendOnly:
    """The appendonly file of a Valkey of the test's own."""

    def __init__(self, servers: ChaosServers, redis: Redis) -> None:
        self._servers = servers
        self._redis = redis
        self._length = 0
        self._file = Path()

    async def note(self) -> None:
        """Note where the file ends: between two commands, since all before have been answered."""
        home = (await self._redis.config_get("dir"))["dir"]
        folder = Path(home) / (await self._redis.config_get("appenddirname"))["appenddirname"]
        self._file = max(folder.glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)
        self._length = self._file.stat().st_size

    async def cut_back(self) -> None:
        """Kill Valkey and start it with what it had when the end was noted, and not more."""
        await self._servers.stop_redis(kill=True)
        with self._file.open("rb+") as file:
            assert file.seek(0, 2) > self._length  # something is lost
            file.truncate(self._length)
        await self._servers.start_redis()


@task(name="writes")
async def writes(ctx: Context, number: int) -> int:
    ctx.db.insert("written", who=ctx.job_id)
    ctx.db.add("total", key={"name": "x"}, n=1)
    return number


async def test_jobs_that_run_again_after_redis_lost_its_last_second_write_once(
    chaos_servers: ChaosServers, caplog: pytest.LogCaptureFixture
) -> None:
    servers = chaos_servers
    async with (
        engine(servers.redis_url, servers.database_url, SCHEMA) as e,
        connect(servers.redis_url) as client,
    ):
        await e.redis.config_set("appendfsync", "everysec")
        file = AppendOnly(servers, e.redis)
        settings = {"database_url": servers.database_url, "lease": 2.0}
        async with serving(servers.redis_url, [writes], **settings):
            first = [await client.enqueue(writes.options(key=f"a{n}"), n) for n in range(5)]
            await asyncio.gather(*(job.result(timeout=20) for job in first))
        for number in range(20):
            await client.enqueue(writes.options(key=f"b{number}"), number)
        await file.note()
        async with serving(servers.redis_url, [writes], **settings):
            lost = [client.job(f"b{number}") for number in range(20)]
            assert await asyncio.gather(*(job.result(timeout=20) for job in lost)) == [*range(20)]
            assert len(await written(servers.database_url)) == 25
            await file.cut_back()
            assert await e.redis.exists(keys.result("b3")) == 0
            new = await client.enqueue(writes.options(key="c"), 1)
            assert await asyncio.gather(*(job.result(timeout=30) for job in lost)) == [*range(20)]
            assert await new.result(timeout=20) == 1
        assert "Redis lost units" in caplog.text
        assert sorted(await written(servers.database_url)) == sorted(
            [f"a{n}" for n in range(5)] + [f"b{n}" for n in range(20)] + ["c"]
        )
        assert (await writer_status(e.redis)).backlog == 0


@contextlib.asynccontextmanager
async def ahead(redis_url: str, database_url: str) -> AsyncIterator[tuple[Engine, list[str]]]:
    """Lend a Redis that gives ids below the position, as one with a late clock does.

    Postgres has applied up to a year after 2200, in entries that Redis has lost; the writer is
    stopped. Also gives the entries that were applied and are still there.
    """
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            done = [await e.submit(f"a{number}", noting(f"a{number}")) for number in range(3)]
            await e.answered(done[-1])
        await e.database.execute("UPDATE runner.writer SET position = '9000000000000-5'")
        yield e, done


async def test_units_that_lie_below_the_position_are_applied_in_order(
    redis_url: str, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ahead(redis_url, database_url) as (e, _):
        for number in range(250):
            await e.submit(f"b{number}", noting(f"b{number}"))
        alone = await e.submit_alone("client:1", noting("alone"))
        # This one's end was lost, it ran again, and the ledger knows it.
        await e.submit("a1", noting("a1"))
        await e.submit("above", noting("above"), entry_id="9000000000000-7")
        async with writing(e.candidate()):
            await e.answered(await e.submit("c", noting("c")))
        expected = ["a0", "a1", "a2", *(f"b{n}" for n in range(250)), "alone", "above", "c"]
        assert await written(database_url) == expected
        for job_id in ("b0", "b249", "a1", "above", "c"):
            assert (await result_of(e.redis, job_id)).success
        assert await e.redis.zcard(keys.DEFAULT_QUEUE) == 0
        moved = await e.redis.get(keys.MOVED_UNIT + alone)
        assert moved is not None
        assert exceeds(moved.decode(), "9000000000000-5")
        assert "Redis lost units" in caplog.text
        assert "units again that Redis held" in caplog.text
        status = await writer_status(e.redis)
        assert (status.backlog, status.rejected) == (0, 0)


async def test_a_leader_that_dies_while_it_brings_units_back_loses_none(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ahead(redis_url, database_url) as (e, _):
        for number in range(6):
            await e.submit(f"b{number}", noting(f"b{number}"))
        monkeypatch.setattr("runner.writer.inheritance.MOVED_AT_ONCE", 1)
        calls = 0
        original = Redis.execute_command

        async def dying(self: Any, *args: Any, **options: Any) -> Any:
            nonlocal calls
            if args[0] == "EVALSHA" and args[3:4] == (keys.UNITS,):
                calls += 1
                if calls in (3, 5):
                    raise ConnectionResetError("the leader dies here")
            return await cast(Any, original)(self, *args, **options)

        monkeypatch.setattr(Redis, "execute_command", dying)
        async with writing(e.candidate()):
            await e.answered(await e.submit("c", noting("c")))
        assert calls > 5
        assert sorted(await written(database_url)) == sorted(
            ["a0", "a1", "a2", *(f"b{n}" for n in range(6)), "c"]
        )
        assert await e.redis.zcard(keys.DEFAULT_QUEUE) == 0


async def test_an_id_that_was_given_twice_does_not_hide_the_second_unit(
    redis_url: str, database_url: str
) -> None:
    """The entry at the position is there, and is another than the one that was applied."""
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("a", noting("a")))
        second = await e.submit("b", noting("b"))
        await e.database.execute("UPDATE runner.writer SET position = $1", second)
        async with writing(e.candidate()):
            await e.answered(await e.submit("c", noting("c")))
        assert await written(database_url) == ["a", "b", "c"]
        assert (await result_of(e.redis, "b")).success


async def test_a_refusal_is_told_again_when_redis_forgot_that_it_was_told(
    chaos_servers: ChaosServers,
) -> None:
    servers = chaos_servers
    async with engine(servers.redis_url, servers.database_url, SCHEMA) as e:
        file = AppendOnly(servers, e.redis)
        async with writing(e.candidate()):
            await e.answered(await e.submit("a", noting("a")))
        bad = unit_of(lambda u: u.insert("total", name="x"))
        last = await e.submit("bad", bad)
        await file.note()
        async with writing(e.candidate()):
            await e.answered(last)
            assert not (await result_of(e.redis, "bad")).success
            await file.cut_back()
            assert await e.redis.exists(keys.result("bad")) == 0
            await e.database.execute("DELETE FROM total")  # now it would pass
            await e.answered(last)
            assert not (await result_of(e.redis, "bad")).success
        assert await e.rows("SELECT * FROM total") == []


async def refused_to_lead(e: Engine, caplog: pytest.LogCaptureFixture, text: str) -> None:
    caplog.set_level(logging.INFO, "runner.writer")
    caplog.clear()
    candidate = e.candidate()
    await candidate.start()
    try:
        await wait_until(lambda: text in caplog.text, description=f"the log says {text!r}")
        assert not candidate.leading
    finally:
        await candidate.stop()


async def test_a_leader_whose_redis_is_emptied_stops_and_can_be_told_to_go_on(
    redis_url: str,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runner.writer.term.TRIM_S", 0.2)
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()) as candidate:
            await e.answered(await e.submit("a", noting("a")))
            await e.redis.flushdb()  # FLUSHALL, on a server that others use too
            await wait_until(lambda: not candidate.leading, description="the leader notices")
            await wait_until(
                lambda: "runner writer --adopt" in caplog.text, description="it says what to do"
            )
            assert "Redis does not know this database" in caplog.text
        await adopt_database(e.redis, database_url, CODEC)
        async with writing(e.candidate()):
            await e.answered(await e.submit("b", noting("b")))
        assert await written(database_url) == ["a", "b"]


async def test_a_clone_of_the_database_is_refused_until_it_is_adopted(
    redis_url: str,
    database_url: str,
    empty_database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, writing(e.candidate()):
        await e.answered(await e.submit("a", noting("a")))
    # Another Redis with a life of its own: here, the same server after a change of everything.
    await _empty(redis_url)
    async with engine(redis_url, empty_database_url, SCHEMA) as e, writing(e.candidate()):
        await e.answered(await e.submit("z", noting("z")))
    async with cloned(database_url) as clone_url:
        async with engine(redis_url, clone_url) as e:
            await refused_to_lead(e, caplog, "the units in Redis belong to another database")
            assert "runner writer --adopt" in caplog.text
            assert await written(clone_url) == ["a"]
            await adopt_database(e.redis, clone_url, CODEC)
            async with writing(e.candidate()):
                await e.answered(await e.submit("b", noting("b")))
        assert await written(clone_url) == ["a", "b"]
        await _empty(redis_url)
        async with engine(redis_url, clone_url) as e:
            await refused_to_lead(e, caplog, "Redis does not know this database")


async def _empty(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.flushdb()


@contextlib.asynccontextmanager
async def cloned(database_url: str) -> AsyncIterator[str]:
    """Lend a clone, made as people make them for a staging system."""
    url = urlsplit(database_url)
    name = url.path.strip("/")
    admin = await asyncpg.connect(url._replace(path="/postgres").geturl())
    try:
        await admin.execute(f"CREATE DATABASE {name}_clone TEMPLATE {name}")
        yield url._replace(path=f"/{name}_clone").geturl()
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name}_clone WITH (FORCE)")
        await admin.close()


class Replica:
    """A Postgres that takes the other's place, with all that it had at some time."""

    def __init__(self, servers: ChaosServers) -> None:
        self._servers = servers
        self._home = Path()
        self._copy = Path()

    async def fall_behind(self) -> None:
        """Keep what there is now; Postgres is stopped for it and goes on."""
        database = await asyncpg.connect(self._servers.database_url)
        self._home = Path(await database.fetchval("SHOW data_directory"))
        await database.close()
        self._copy = self._home.with_name("replica")
        await self._servers.stop_postgres()
        await _copy(self._home, self._copy)
        await self._servers.start_postgres()

    async def take_over(self) -> None:
        """Put the copy in the place of the server, which is killed."""
        await self._servers.stop_postgres(kill=True)
        await asyncio.to_thread(shutil.rmtree, self._home)
        self._copy.rename(self._home)
        await self._servers.start_postgres()


async def _copy(source: Path, target: Path) -> None:
    process = await asyncio.create_subprocess_exec("cp", "-a", str(source), str(target))
    assert await process.wait() == 0


async def test_commits_that_a_replica_lacks_are_applied_again_from_the_tail(
    chaos_servers: ChaosServers, caplog: pytest.LogCaptureFixture
) -> None:
    servers, replica = chaos_servers, Replica(chaos_servers)
    async with engine(servers.redis_url, servers.database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("a", noting("a")))
            await replica.fall_behind()
            for name in ("b", "c", "d"):
                await e.answered(await e.submit(name, noting(name)), timeout_s=20)
            assert await written(servers.database_url) == ["a", "b", "c", "d"]
            await replica.take_over()
            assert await written(servers.database_url) == ["a"]
            await e.answered(await e.submit("e", noting("e")), timeout_s=20)
        assert "Postgres went back" in caplog.text
        assert await written(servers.database_url) == ["a", "b", "c", "d", "e"]
        assert (await writer_status(e.redis)).units == 5


async def test_a_gap_that_is_in_neither_store_stops_the_writer(
    chaos_servers: ChaosServers,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers, replica = chaos_servers, Replica(chaos_servers)
    monkeypatch.setattr("runner.writer.stream.TAIL_MS", -60_000)
    async with engine(servers.redis_url, servers.database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            first = await e.submit("a", noting("a"))
            await e.answered(first)
            await replica.fall_behind()
            last = first
            for name in ("b", "c", "d"):
                last = await e.submit(name, noting(name))
                await e.answered(last, timeout_s=20)
            await Tail().trim(e.redis, last)
        await replica.take_over()
        waiting = await e.submit("e", noting("e"))
        await refused_to_lead(e, caplog, f"up to {first}, but Redis has answered and dropped")
        assert f"up to {last}: those between are in neither" in caplog.text
        assert "runner writer --adopt" in caplog.text
        assert await written(servers.database_url) == ["a"]
        assert await e.redis.xrange(keys.UNITS, waiting, waiting)


async def test_two_stores_that_both_went_back_stop_the_writer(
    redis_url: str, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            entries = [await e.submit(name, noting(name)) for name in ("a", "b", "c")]
            await e.answered(entries[-1])
        await e.redis.xdel(keys.UNITS, entries[1])
        await e.database.execute("UPDATE runner.writer SET position = $1", entries[1])
        await refused_to_lead(e, caplog, "both stores went back")
        assert entries[1] in caplog.text
        assert entries[2] in caplog.text


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
async def test_a_redis_that_may_evict_units_is_refused(
    chaos_servers: ChaosServers, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    async with engine(chaos_servers.redis_url, chaos_servers.database_url) as e:
        await e.redis.config_set("maxmemory-policy", policy)
        await refused_to_lead(e, caplog, f"maxmemory-policy is {policy}")
        assert "Set it to noeviction" in caplog.text


async def test_a_stranger_leaves_the_writer_of_a_database_alone(
    redis_url: str,
    database_url: str,
    server_addresses: Addresses,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Workers of another Redis were given this database by mistake."""
    async with engine(redis_url, database_url, SCHEMA) as e, writing(e.candidate()) as ours:
        await e.answered(await e.submit("a", noting("a")))
        with redis_database(server_addresses) as other_url:
            async with engine(other_url, database_url) as other:
                await refused_to_lead(other, caplog, "Redis does not know this database")
        assert ours.leading
        assert await e.rows("SELECT epoch FROM runner.writer") == [(1,)]
        await e.answered(await e.submit("b", noting("b")))


async def test_a_full_redis_that_lost_units_is_emptied_by_the_writer(
    chaos_servers: ChaosServers,
) -> None:
    servers = chaos_servers
    async with ahead(servers.redis_url, servers.database_url) as (e, _):
        for number in range(5):
            await e.submit(f"b{number}", noting(f"b{number}"))
        used = (await e.redis.info("memory"))["used_memory"]
        await e.redis.config_set("maxmemory", used // 2)
        async with writing(e.candidate()):
            await wait_until(
                lambda: _has_written(e, 8), description="what Redis held below is applied"
            )
        await e.redis.config_set("maxmemory", 0)
        names = ["a0", "a1", "a2", *(f"b{n}" for n in range(5))]
        assert await written(servers.database_url) == names


async def _has_written(e: Engine, count: int) -> bool:
    return await e.rows("SELECT count(*) FROM written") == [(count,)]


async def test_a_database_is_adopted_while_redis_is_full(chaos_servers: ChaosServers) -> None:
    servers = chaos_servers
    async with engine(servers.redis_url, servers.database_url, SCHEMA) as e:
        await e.submit("a", noting("a"))
        used = (await e.redis.info("memory"))["used_memory"]
        await e.redis.config_set("maxmemory", used // 2)
        await adopt_database(e.redis, servers.database_url, CODEC)
        async with writing(e.candidate()):
            assert (await writer_status(e.redis)).backlog == 0
        await e.redis.config_set("maxmemory", 0)
        async with writing(e.candidate()):
            await e.answered(await e.submit("b", noting("b")))
        assert await written(servers.database_url) == ["b"]
