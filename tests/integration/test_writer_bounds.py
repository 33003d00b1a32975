"""Units as large as they may be, values at the edge of their types, clocks that jump."""

from __future__ import annotations

import asyncio
import contextlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import runner
from runner.errors import UnitError, WriteRejected
from runner.writer import UnitBuilder, writer_status
from tests.integration.test_writer_support import (
    LASTING,
    Engine,
    bench,
    engine,
    unit,
    unit_of,
    writing,
)
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.lasting_keys(*LASTING), pytest.mark.timeout(180)]

SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY, s text);
CREATE TABLE log (seq bigserial PRIMARY KEY, id int);
CREATE TABLE total (name text PRIMARY KEY, n bigint NOT NULL DEFAULT 0, d numeric DEFAULT 0);
INSERT INTO total (name) VALUES ('x'), ('y'), ('z');
"""
MANY = 10_000


@contextlib.asynccontextmanager
async def service(redis_url: str, database_url: str) -> AsyncIterator[tuple[Engine, Any]]:
    async with (
        engine(redis_url, database_url, SCHEMA) as e,
        writing(e.candidate()),
        runner.database(redis_url, timeout=120) as db,
    ):
        yield e, db


async def _insert(db: runner.Database, ids: range, *more: int) -> None:
    async with db.unit() as one:
        for number in (*ids, *more):
            one.insert("t", id=number)
            one.insert("log", id=number)
            one.add("total", key={"name": "xyz"[number % 3]}, n=1)


async def test_a_transaction_of_thousands_of_operations_commits_as_one_or_not_at_all(
    redis_url: str, database_url: str
) -> None:
    async with service(redis_url, database_url) as (e, db):
        with pytest.raises(WriteRejected) as caught:
            await _insert(db, range(500), 499)  # one by one, to find out why
        assert caught.value.sqlstate == "23505"
        await asyncio.gather(db.insert("t", id=-1), _insert(db, range(MANY)), db.insert("t", id=-2))
        assert await e.rows("SELECT count(*), min(id), max(id) FROM t") == [(MANY + 2, -2, 9_999)]
        assert await e.rows("SELECT array_agg(id ORDER BY seq) FROM log") == [([*range(MANY)],)]
        assert await e.rows("SELECT sum(n) FROM total") == [(MANY,)]


async def test_ten_thousand_callers_at_once_are_all_served_in_their_order(
    redis_url: str, database_url: str
) -> None:
    async with service(redis_url, database_url) as (e, db):
        await asyncio.gather(*(db.insert("log", id=number) for number in range(MANY)))
        assert await e.rows("SELECT array_agg(id ORDER BY seq) FROM log") == [([*range(MANY)],)]


async def test_a_unit_may_be_as_large_as_is_said_and_no_larger(
    redis_url: str, database_url: str
) -> None:
    async with service(redis_url, database_url) as (e, db):
        await asyncio.gather(
            db.insert("t", id=1, s="x" * 15_000_000),
            db.execute("INSERT INTO t VALUES ($1, $2)", 2, "y" * 15_000_000),
            db.insert("t", id=3),
        )
        with pytest.raises(UnitError, match="bytes"):
            await db.insert("t", id=4, s="x" * 17_000_000)
        rows = await e.rows("SELECT id, length(s) FROM t ORDER BY id")
        assert rows == [(1, 15_000_000), (2, 15_000_000), (3, None)]


MOST = 2**63 - 1
DIGITS = Decimal("9e131071")


@pytest.mark.parametrize(
    ("column", "deltas"),
    [
        ("n", [MOST, 1, -1, -MOST, -MOST, -2, MOST]),
        ("n", [MOST, MOST, MOST, 1]),
        ("n", [2**64 - 1, 5]),
        ("n", [1.5, 1, Decimal("1.5")]),
        ("d", [DIGITS, 1, DIGITS, -1, -DIGITS]),
        ("d", [Decimal("1e-16383"), 1, Decimal("1e-16384"), Decimal("1e-16383")]),
        ("d", [Decimal("NaN"), 1, Decimal("Infinity"), Decimal("-Infinity")]),
    ],
)
async def test_sums_at_the_edge_are_those_of_one_at_a_time(
    database_url: str, column: str, deltas: list[Any]
) -> None:
    async with bench(database_url, SCHEMA) as b:
        plain: list[int] = []
        for place, delta in enumerate(deltas, start=1):
            try:
                await b.connection.execute(
                    f"UPDATE total SET {column} = {column} + $1 WHERE name = 'y'", delta
                )
            except asyncpg.PostgresError:
                plain.append(place)
        units = [
            unit(place, lambda u, d=delta: u.add("total", key={"name": "x"}, **{column: d}))  # type: ignore[misc]
            for place, delta in enumerate(deltas, start=1)
        ]
        refused = await b.apply(*units)
        assert [int(entry.partition("-")[0]) for entry in refused] == plain
        text = f"SELECT {column}::text FROM total WHERE name = "
        assert await b.rows(f"{text}'x'") == await b.rows(f"{text}'y'")


def noting(number: int) -> UnitBuilder:
    return unit_of(lambda u: u.insert("log", id=number))


async def test_redis_may_have_lived_in_the_future(redis_url: str, database_url: str) -> None:
    """Its clock was ahead, by which entries are named, and was set right again."""

    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("j1", noting(1)))
            await e.answered(await e.submit("j2", noting(2), entry_id="4102444800000-0"))
            await e.answered(await e.submit("j3", noting(3)))
        last = await e.submit("j4", noting(4))
        status = await writer_status(e.redis)
        assert (status.backlog, status.lag_s) == (1, 0)
        async with writing(e.candidate()):
            await e.answered(last)
        assert await e.rows("SELECT id FROM log ORDER BY seq") == [(1,), (2,), (3,), (4,)]


async def test_postgres_may_have_lived_in_the_future(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock was set back: the ledgers change places all the same, and not in a year."""
    monkeypatch.setattr("runner.writer.term.LEDGER_KEPT_S", 0.1)
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await e.submit("j1", noting(1)))
        before = "SELECT ledger FROM runner.writer"
        ledger = await e.rows(before)
        await e.database.execute("UPDATE runner.writer SET swapped_at = now() + interval '1 year'")
        async with writing(e.candidate()):

            async def swapped() -> bool:
                await e.answered(await e.submit("j2", noting(2)))
                return await e.rows(before) != ledger

            _: bool = await wait_until(swapped, description="the ledgers have changed places")


async def test_the_writer_needs_no_more_rights_than_the_tables_it_writes_to(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate("owner")):
            await e.answered(await e.submit("j0", noting(0)))
        role = f"{database_url.rpartition('/')[2].partition('?')[0]}_w"
        await e.database.execute(
            f"""
            CREATE ROLE {role} LOGIN;
            GRANT USAGE ON SCHEMA runner TO {role};
            GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA runner TO {role};
            GRANT SELECT, INSERT, UPDATE, DELETE ON t, log, total TO {role};
            GRANT USAGE ON SEQUENCE log_seq_seq TO {role};
            UPDATE runner.writer SET swapped_at = now() - interval '1 hour';
            """
        )
        e.database_url = database_url.replace("postgres@", f"{role}@")
        try:
            async with writing(e.candidate()):
                last = ""
                for number, call in enumerate(
                    (
                        lambda u: u.insert("log", id=1),
                        lambda u: u.add("total", key={"name": "x"}, n=1),
                        lambda u: u.execute("SELECT 1/0"),
                        lambda u: u.execute("SELECT pg_advisory_lock(1)"),
                        lambda u: u.execute("TRUNCATE t"),
                        lambda u: u.update("total", key={"name": "y"}, n=7),
                    )
                ):
                    last = await e.submit_alone(f"u:{number}", unit_of(call))
                await e.answered(last)
                assert (await writer_status(e.redis)).rejected == 2
            assert await e.rows("SELECT id FROM log ORDER BY seq") == [(0,), (1,)]
            assert await e.rows("SELECT n FROM total ORDER BY name") == [(1,), (7,), (0,)]
            assert await e.rows("SELECT epoch, ledger FROM runner.writer") == [(2, 2)]
        finally:
            await e.database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
