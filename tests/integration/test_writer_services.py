"""Services that write through the writer, with nothing but Redis at hand."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from arq.connections import RedisSettings

import runner
from runner import keys
from runner.errors import (
    CommitTimeout,
    UnitChanged,
    UnitError,
    WriteRejected,
    WriterUnavailable,
)
from runner.scripts import load
from runner.writer import adopt_database, answers, writer_status
from runner.writer.status import split_id
from tests.integration.test_writer_support import CODEC, LASTING, Engine, engine, writing
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import ChaosServers

pytestmark = pytest.mark.lasting_keys(*LASTING)

SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY, at timestamptz, note text);
CREATE TABLE total (name text PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
CREATE TABLE log (seq bigserial PRIMARY KEY, caller int NOT NULL, number int NOT NULL);
"""


@contextlib.asynccontextmanager
async def service(
    redis_url: str, database_url: str, **options: Any
) -> AsyncIterator[tuple[Engine, runner.Database]]:
    async with (
        engine(redis_url, database_url, SCHEMA) as e,
        writing(e.candidate("me")),
        runner.database(redis_url, **options) as db,
    ):
        yield e, db


async def insert_together(db: runner.Database, *numbers: int, name: str | None = None) -> None:
    async with db.unit(id=name) as unit:
        for number in numbers:
            unit.insert("t", id=number)


async def insert_and_fail(db: runner.Database) -> None:
    async with db.unit() as unit:
        unit.insert("t", id=2)
        raise ZeroDivisionError


async def no_more_than(e: Engine, pattern: str, count: int) -> None:
    found = [key async for key in e.redis.scan_iter(pattern)]
    assert len(found) <= count, found


async def test_each_kind_of_write_is_committed_when_its_call_returns(
    redis_url: str, database_url: str
) -> None:
    async with service(redis_url, database_url) as (e, db):
        await db.insert("t", id=1, note="a")
        assert await e.rows("SELECT id, note FROM t") == [(1, "a")]
        await db.insert_many("t", [{"id": 2}, {"id": 3, "note": "c"}])
        await db.upsert("t", {"id": 2, "note": "b"})
        await db.update("t", key={"id": 1}, note="z")
        await db.delete("t", key={"id": 3})
        await db.add("total", key={"name": "x"}, missing="insert", n=5)
        await db.execute("UPDATE total SET n = n * $1", 2)
        assert await e.rows("SELECT id, note FROM t ORDER BY id") == [(1, "z"), (2, "b")]
        assert await e.rows("SELECT n FROM total") == [(10,)]


async def test_a_unit_commits_at_the_end_of_its_block_or_not_at_all(
    redis_url: str, database_url: str
) -> None:
    async with service(redis_url, database_url) as (e, db):
        async with db.unit() as unit:
            unit.insert("t", id=1)
            unit.add("total", key={"name": "x"}, missing="insert", n=1)
        assert await e.rows("SELECT (SELECT count(*) FROM t), n FROM total") == [(1, 1)]
        with pytest.raises(ZeroDivisionError):
            await insert_and_fail(db)
        async with db.unit():
            pass
        with pytest.raises(WriteRejected):
            await insert_together(db, 3, 1)
        assert await e.rows("SELECT id FROM t") == [(1,)]
        answer = await db.unit().commit()
        assert answer.entry == ""


async def test_a_unit_may_be_left_on_its_way_and_asked_for_later(
    redis_url: str, database_url: str
) -> None:
    async with service(redis_url, database_url) as (e, db):
        async with db.unit(wait=False) as unit:
            unit.insert("t", id=1)
        async with db.unit(wait=False) as refused:
            refused.insert("t", id=1)
        assert (await unit.commit()).entry
        with pytest.raises(WriteRejected):
            await refused.commit()
        assert await unit.commit() == await unit.commit()
        assert await e.rows("SELECT id FROM t") == [(1,)]


async def test_thousands_of_callers_share_round_trips_and_keep_their_order(
    redis_url: str, database_url: str
) -> None:
    callers, each = 500, 6

    async with service(redis_url, database_url) as (e, db):
        before = await e.redis.info("commandstats")

        async def caller(number: int) -> None:
            for index in range(each):
                await db.insert("log", caller=number, number=index)

        await asyncio.gather(*(caller(number) for number in range(callers)))
        after = await e.redis.info("commandstats")
        calls = after["cmdstat_evalsha"]["calls"] - before["cmdstat_evalsha"]["calls"]
        rows = await e.rows("SELECT caller, array_agg(number ORDER BY seq) FROM log GROUP BY 1")
        assert len(rows) == callers
        assert all(numbers == list(range(each)) for _, numbers in rows)
        assert calls < callers * each / 4
        assert db._answers._open == []


async def test_units_that_one_task_submits_together_are_applied_in_their_order(
    redis_url: str, database_url: str
) -> None:
    async with service(redis_url, database_url) as (e, db):
        await asyncio.gather(
            *(db.insert("log", caller=1, number=number) for number in range(1200)),
        )
        rows = await e.rows("SELECT number FROM log ORDER BY seq")
        assert [number for (number,) in rows] == list(range(1200))


async def test_only_the_caller_of_a_refused_unit_hears_of_it(
    redis_url: str, database_url: str
) -> None:
    async with service(redis_url, database_url) as (e, db):
        await db.insert("t", id=500)
        outcomes = await asyncio.gather(
            *(db.insert("t", id=number) for number in range(1000)), return_exceptions=True
        )
        refused = {index: error for index, error in enumerate(outcomes) if error is not None}
        assert list(refused) == [500]
        error = refused[500]
        assert isinstance(error, WriteRejected)
        assert (error.sqlstate, error.table, error.constraint) == ("23505", "t", "t_pkey")
        assert "(500)" in error.detail
        assert "insert" in error.statement
        assert await e.rows("SELECT count(*) FROM t") == [(1000,)]
        await no_more_than(e, "runner:failed:*", 1)


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (lambda db: db.insert("t", id=1, noet="x"), WriteRejected, "did you mean 'note'"),
        (lambda db: db.insert("tt", id=1), WriteRejected, "tt"),
        (lambda db: db.insert("t", id=1, note="a\0b"), WriteRejected, "0x00"),
        (lambda db: db.insert("t", id=1, at=dt.datetime(2020, 1, 1)), WriteRejected, "at"),  # noqa: DTZ001
        (lambda db: db.insert("t", id="one"), WriteRejected, "id"),
        (lambda db: db.insert("t", id=object()), UnitError, "t.id"),
        (lambda db: db.execute("COMMIT"), UnitError, "COMMIT"),
    ],
)
async def test_bad_input_is_named_to_its_caller(
    redis_url: str, database_url: str, write: Any, error: type[Exception], message: str
) -> None:
    async with service(redis_url, database_url) as (_, db):
        outcomes = await asyncio.gather(
            write(db), *(db.insert("t", id=n) for n in range(10, 20)), return_exceptions=True
        )
        assert isinstance(outcomes[0], error)
        assert message in str(outcomes[0])
        assert outcomes[1:] == [None] * 10


async def test_an_operator_reads_why_a_unit_of_a_service_was_refused(
    redis_url: str, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(redis_url, database_url) as (_, db):
        calls = [db.insert("tt", id=1), db.insert("t", id=1), db.insert("t", id=1)]
        await asyncio.gather(*calls, return_exceptions=True)
        told = [r.message for r in caplog.records if "refused the unit" in r.message]
        assert len(told) == 2
        assert all("of a service" in line for line in told)
        assert any("there is no table 'tt'" in line for line in told)
        assert any("t_pkey" in line for line in told)


async def test_a_service_with_one_connection_hears_of_its_commits(
    redis_url: str, database_url: str
) -> None:
    settings = RedisSettings.from_dsn(redis_url)
    settings.max_connections = 1
    async with (
        engine(redis_url, database_url, SCHEMA) as e,
        writing(e.candidate()),
        runner.database(settings, timeout=10) as db,
    ):
        await asyncio.gather(*(db.insert("t", id=number) for number in range(20)))
        assert await e.rows("SELECT count(*) FROM t") == [(20,)]


async def test_a_unit_asked_for_again_under_its_id_is_applied_once(
    redis_url: str, database_url: str
) -> None:
    async def pay(db: runner.Database, name: str, amount: int = 1) -> str:
        unit = db.unit(id=name)
        unit.add("total", key={"name": "x"}, missing="insert", n=amount)
        return (await unit.commit()).entry

    async with service(redis_url, database_url) as (e, db):
        name = str(uuid.uuid4())
        first = await pay(db, name)
        assert await pay(db, name) == first
        async with runner.database(redis_url) as another:
            assert await pay(another, name) == first
            with pytest.raises(UnitChanged, match="other writes"):
                await pay(another, name, 2)
        await asyncio.gather(*(pay(db, "together") for _ in range(5)))
        # Forgotten by Redis, remembered by the ledger.
        await e.redis.delete(keys.UNIT + name + ":u")
        assert await pay(db, name) not in ("", first)
        assert await e.rows("SELECT n FROM total") == [(2,)]


async def test_a_refused_unit_asked_for_again_is_refused_again(
    redis_url: str, database_url: str
) -> None:
    async with service(redis_url, database_url) as (e, db):
        await db.insert("t", id=1)
        for _ in range(2):
            with pytest.raises(WriteRejected):
                await insert_together(db, 1, name="again")
            await db.delete("t", key={"id": 1})
        assert await e.rows("SELECT id FROM t") == []


@pytest.mark.parametrize("bad", ["", "a\nb", 7, "x" * 201])
async def test_an_id_that_is_none_is_refused(redis_url: str, bad: Any) -> None:
    async with runner.database(redis_url) as db:
        with pytest.raises(UnitError, match="id"):
            db.unit(id=bad)


async def test_a_caller_whose_time_is_up_learns_the_id_of_its_unit(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, runner.database(redis_url) as db:
        with pytest.raises(CommitTimeout, match="still on its way") as raised:
            await db.within(0.1).add("total", key={"name": "x"}, missing="insert", n=1)
        assert isinstance(raised.value, TimeoutError)
        async with writing(e.candidate()):
            async with db.unit(id=raised.value.unit) as unit:
                unit.add("total", key={"name": "x"}, missing="insert", n=1)
            assert await e.rows("SELECT n FROM total") == [(1,)]


async def test_cancelled_callers_leak_nothing(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, runner.database(redis_url) as db:
        waiting = [asyncio.create_task(db.insert("t", id=number)) for number in range(200)]
        await wait_until(lambda: len(db._answers._open) == 200, description="all are in the stream")
        late = asyncio.create_task(db.insert("t", id=1000))
        await asyncio.sleep(0)  # handed over, and not sent yet
        for task in (*waiting, late):
            task.cancel()
        await asyncio.gather(*waiting, late, return_exceptions=True)
        await wait_until(
            lambda: not (db._answers._open or db._answers._asked or db._answers._again),
            description="nobody is waited for",
        )
        await wait_until(lambda: not db._submitter._alive, description="no unit is kept")
        assert await e.redis.xlen(keys.UNITS) == 200


async def test_a_lost_announcement_costs_a_second_and_no_answer(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(redis_url, database_url) as (e, db):
        await db.insert("t", id=0)
        heard = db._answers._heard
        monkeypatch.setattr(db._answers, "_heard", lambda _: None)
        await db.insert("t", id=1)
        with pytest.raises(WriteRejected):
            await db.insert("t", id=1)
        # A gap: the next announcement tells that there was one before it.
        lost = asyncio.create_task(db.insert("t", id=2))
        await wait_until(lambda: e.rows("SELECT 1 FROM t WHERE id = 2"), description="committed")
        monkeypatch.setattr(db._answers, "_heard", heard)
        await db.insert("t", id=3)
        await lost


async def test_an_entry_that_was_answered_before_is_known(
    redis_url: str, database_url: str
) -> None:
    async with service(redis_url, database_url) as (_, db):
        async with db.unit(wait=False) as unit:
            unit.insert("t", id=1)
        async with db.unit(wait=False) as refused:
            refused.insert("t", id=1)
        await db.insert("t", id=2)
        async with runner.database(redis_url) as late:
            assert (await late._answers.wait(unit._entry, timeout_s=10)).entry == unit._entry
            with pytest.raises(WriteRejected):
                await late._answers.wait(refused._entry, timeout_s=10)


async def test_the_writer_of_another_database_in_this_redis_is_not_heard(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, runner.database(redis_url) as db:
        waiting = asyncio.create_task(db.within(1).insert("t", id=1))
        await wait_until(lambda: db._answers._open, description="it waits")
        number = keys.database_number(e.redis)
        await e.redis.publish(keys.commits_channel(number + 1), "0-0 9999999999999-0")
        with pytest.raises(CommitTimeout):
            await waiting


async def test_what_redis_lost_is_submitted_again(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, runner.database(redis_url) as db:
        waiting = asyncio.create_task(db.insert("t", id=1))
        await wait_until(lambda: db._answers._open, description="it waits")
        await e.redis.xtrim(keys.UNITS, maxlen=0)
        number = keys.database_number(e.redis)
        clients: list[dict[str, str]] = await e.redis.client_list(_type="pubsub")
        for client in clients:
            if client["db"] == str(number):
                await e.redis.client_kill_filter(_id=client["id"])
        async with writing(e.candidate()):
            await waiting
        assert await e.rows("SELECT id FROM t") == [(1,)]


async def test_a_database_that_is_closed_takes_nothing_more(redis_url: str) -> None:
    async with runner.database(redis_url) as db:
        waiting = asyncio.create_task(db.insert("t", id=1))
        await wait_until(lambda: db._answers._open, description="it waits")
    with pytest.raises(WriterUnavailable, match="still on its way"):
        await waiting
    with pytest.raises(WriterUnavailable, match="closed"):
        await db.insert("t", id=2)
    await db.close()


SUBMITS_AND_WAITS = """
import asyncio, sys, runner
async def main() -> None:
    async with runner.database(sys.argv[1]) as db:
        async with db.unit(id=sys.argv[2]) as unit:
            unit.add("total", key={"name": "x"}, missing="insert", n=1)
        print("committed", flush=True)
asyncio.run(main())
"""


async def test_a_service_that_was_killed_asks_again_and_is_applied_once(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        command = (sys.executable, "-c", SUBMITS_AND_WAITS, redis_url, "order 7")
        killed = await asyncio.create_subprocess_exec(*command)
        await wait_until(lambda: e.redis.xlen(keys.UNITS), description="it is in the stream")
        killed.kill()
        await killed.wait()
        async with writing(e.candidate()):
            again = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            out, _ = await again.communicate()
            assert out == b"committed\n"
        assert await e.rows("SELECT n FROM total") == [(1,)]


async def test_callers_hear_of_their_commits_across_restarts_of_the_writer(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, runner.database(redis_url) as db:

        async def caller(number: int) -> None:
            for index in range(20):
                await db.insert("log", caller=number, number=index)

        callers = asyncio.gather(*(caller(number) for number in range(50)))
        for round_number in range(4):
            async with writing(e.candidate(f"writer {round_number}")):
                written = functools.partial(_has_committed, e, 200 * round_number + 100)
                await wait_until(written, description="it writes")
        async with writing(e.candidate("the last")):
            await callers
        rows = await e.rows("SELECT caller, array_agg(number ORDER BY seq) FROM log GROUP BY 1")
        assert len(rows) == 50
        assert all(numbers == list(range(20)) for _, numbers in rows)


async def _has_committed(e: Engine, units: int) -> bool:
    return (await writer_status(e.redis)).units >= units


async def test_redis_restarts_meanwhile(chaos_servers: ChaosServers) -> None:
    url = chaos_servers.redis_url
    async with engine(url, chaos_servers.database_url, SCHEMA) as e:
        async with writing(e.candidate()), runner.database(url) as db:
            callers = asyncio.gather(
                *(db.add("total", key={"name": "x"}, missing="insert", n=1) for _ in range(500))
            )
            await chaos_servers.restart_redis()
            more = asyncio.gather(
                *(db.add("total", key={"name": "x"}, missing="insert", n=1) for _ in range(500))
            )
            await asyncio.gather(callers, more)
        assert await e.rows("SELECT n FROM total") == [(1000,)]


async def test_what_waits_at_an_adoption_is_refused_to_its_caller(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, runner.database(redis_url) as db:
        async with writing(e.candidate()):
            await db.insert("t", id=1)
            committed = db.unit(id="before")
            committed.insert("t", id=2)
            await committed.commit()
        waiting = asyncio.create_task(db.insert("t", id=3))
        await wait_until(lambda: db._answers._open, description="it waits")
        await adopt_database(e.redis, database_url, CODEC)
        with pytest.raises(WriteRejected, match="adopted"):
            await waiting
        again = db.unit(id="before")
        again.insert("t", id=2)
        assert (await again.commit()).entry == (await committed.commit()).entry


async def submit(e: Engine, number: int, *entries: Any) -> list[Any]:
    units = [part for at in range(0, len(entries), 3) for part in (*entries[at : at + 3], "")]
    reply: list[Any] = await load("submit").call(
        e.redis, keys=[keys.UNITS, keys.WRITER, keys.sent("client")], args=[number, 100, *units]
    )
    return reply


async def test_a_submission_whose_reply_was_lost_adds_nothing_again(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url) as e:
        assert await submit(e, 1) == [b"", 0, b""]
        said = await submit(e, 2, "a", b"o", "", "b", b"o", "digest", "c", b"o", "")
        assert said[1:] == [3, b""]
        assert await submit(e, 2, "a", b"o", "", "b", b"o", "digest", "c", b"o", "") == said
        entries = await e.redis.xrange(keys.UNITS)
        assert [fields[b"u"] for _, fields in entries] == [b"a", b"b", b"c"]
        ms, sequence = split_id(said[0].decode())
        assert [entry for entry, _ in entries] == [
            f"{ms}-{sequence + place}".encode() for place in range(3)
        ]
        known = await submit(e, 3, "d", b"o", "", "b", b"o", "digest", "b", b"p", "other")
        assert known[1:] == [1, b"", 1, entries[1][0], 2, b""]
        await e.redis.delete(keys.UNITS)
        await e.redis.set(keys.UNITS, "no stream", px=60_000)
        refused = await submit(e, 4, "e", b"o", "")
        assert refused[1] == 0
        assert refused[2].startswith(b"WRONGTYPE")
        async with runner.database(redis_url) as db:
            with pytest.raises(WriterUnavailable, match="WRONGTYPE"):
                await db.insert("t", id=1)


async def test_a_deaf_subscription_is_made_anew(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(redis_url, database_url) as (_, db):
        right = db._answers._channel
        db._answers._channel = "nobody speaks here"
        monkeypatch.setattr(answers, "QUIET_S", 0.05)
        await db.insert("t", id=1)
        await db.insert("t", id=2)
        db._answers._channel = right
        await db.insert("t", id=3)
        heard = db._answers._batches
        number = iter(range(4, 1000))

        async def hears() -> bool:
            await db.insert("t", id=next(number))
            return bool(heard)

        await wait_until(hears, description="announcements arrive again")


async def test_an_announcement_that_is_none_does_no_harm(redis_url: str, database_url: str) -> None:
    async with service(redis_url, database_url) as (e, db):
        await db.insert("t", id=1)
        await e.redis.publish(db._answers._channel, "what is this")
        await asyncio.gather(*(db.insert("t", id=number) for number in range(2, 50)))
