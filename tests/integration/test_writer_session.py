"""The session that writes: what it takes to open one, and that no unit finds another's traces."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import pytest

from runner.writer import ReadPool, database, session
from runner.writer.apply import Step, prepare_steps
from runner.writer.hosts import one_by_one
from runner.writer.queries import migrate
from tests.integration.test_writer_support import Bench, bench, unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.writer import UnitBuilder
    from runner.writer.entries import Unit

SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY, who text DEFAULT nullif(current_setting('app.who', true), ''));
CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t);
CREATE FUNCTION run(sql text) RETURNS int LANGUAGE plpgsql AS $$
  BEGIN EXECUTE sql; RETURN 1; END $$;
"""


def inserting(number: int, *, raw: bool) -> Callable[[UnitBuilder], None]:
    if raw:
        return lambda u: u.execute("INSERT INTO t (id) VALUES ($1)", number)
    return lambda u: u.insert("t", id=number)


@pytest.mark.parametrize("is_local", ["true", "false"])
@pytest.mark.parametrize("raw", [True, False])
async def test_what_a_unit_sets_ends_with_it(
    database_url: str, is_local: str, *, raw: bool
) -> None:
    """As a tenant's name does, by which row-level security lets rows be seen."""
    async with bench(database_url, SCHEMA) as b:
        sets = f"SELECT set_config('app.who', 'one', {is_local})"
        refused = await b.apply(
            unit(1, inserting(1, raw=raw)),
            unit(2, lambda u: u.execute(sets), inserting(2, raw=raw), inserting(3, raw=raw)),
            unit(3, inserting(4, raw=raw)),
            unit(4, inserting(5, raw=not raw)),
        )
        assert refused == {}
        assert await b.rows("SELECT id, who FROM t ORDER BY id") == [
            (1, None),
            (2, "one"),
            (3, "one"),
            (4, None),
            (5, None),
        ]


@pytest.mark.parametrize(
    "hides", ["SELECT run('CREATE TEMP TABLE t (id int)')", "SELECT 1 AS id INTO TEMP t"]
)
async def test_a_temporary_table_takes_no_rows_of_the_next_unit(
    database_url: str, hides: str
) -> None:
    async with bench(database_url, SCHEMA) as b:
        assert (
            await b.apply(
                unit(1, lambda u: u.execute(hides)),
                unit(2, inserting(2, raw=True)),
                unit(3, inserting(3, raw=False)),
            )
            == {}
        )
        assert await b.rows("SELECT id FROM public.t ORDER BY id") == [(2,), (3,)]


async def test_a_foreign_key_that_a_unit_switched_off_is_looked_at_for_the_next(
    database_url: str,
) -> None:
    async with bench(database_url, SCHEMA) as b:
        off = "SELECT set_config('session_replication_role', 'replica', true)"
        refused = await b.apply(
            unit(1, lambda u: u.execute(off)),
            unit(2, lambda u: u.insert("child", id=1, t=99)),
            unit(3, inserting(1, raw=False)),
        )
        assert {entry: why.sqlstate for entry, why in refused.items()} == {"2-0": "23503"}


async def test_a_role_that_a_unit_takes_is_given_back(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        for together in ([1, 2, 3], [4]):
            units = [
                unit(
                    number,
                    lambda u: u.execute("SELECT set_config('role', 'pg_read_all_data', false)"),
                )
                for number in together
            ]
            assert await b.apply(*units) == {}
        assert await b.rows("SELECT current_user = session_user") == [(True,)]


async def steps_of(b: Bench, *units: Unit) -> list[Step]:
    known, refused = await b.batches._learn(units)
    assert not refused
    return prepare_steps(units, known)


SEEN = "UPDATE t SET who = $2 WHERE id = $1"


async def test_raw_sql_that_comes_again_and_again_travels_together(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        assert await b.apply(*(unit(n, inserting(n, raw=False)) for n in range(1, 6))) == {}

        def seen(number: int, who: str) -> Unit:
            return unit(number, lambda u: u.execute(SEEN, number % 5 + 1, who))

        units = [seen(number, f"{number}") for number in range(6, 26)]
        (step,) = await steps_of(b, *units)
        assert step.many
        assert await b.apply(*units) == {}
        rows = "SELECT who FROM t ORDER BY id"
        assert await b.rows(rows) == [("25",), ("21",), ("22",), ("23",), ("24",)]
        bad = unit(40, lambda u: u.execute("UPDATE t SET id = $1 WHERE id = 2", 1))
        wrong = unit(41, lambda u: u.execute(SEEN, 1))
        refused = await b.apply(seen(39, "a"), bad, wrong, seen(42, "b"), seen(43, "c"))
        assert list(refused) == ["40-0", "41-0"]
        assert (await b.rows(rows))[2:] == [("b",), ("c",), ("a",)]


async def test_rows_of_a_table_with_triggers_travel_together_and_in_order(
    database_url: str,
) -> None:
    schema = """
    CREATE TABLE log (n serial, what text);
    CREATE TABLE z (id int PRIMARY KEY);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN INSERT INTO log (what) SELECT count(*)::text FROM z; RETURN NULL; END $$;
    CREATE TRIGGER n AFTER INSERT ON z FOR EACH ROW EXECUTE FUNCTION note();
    """
    async with bench(database_url, schema) as b:
        units = [unit(n, lambda u, n=n: u.insert("z", id=n)) for n in range(1, 5)]  # type: ignore[misc]
        (step,) = await steps_of(b, *units)
        assert step.many
        assert await b.apply(*units) == {}
        assert await b.rows("SELECT what FROM log ORDER BY n") == [("1",), ("2",), ("3",), ("4",)]


async def test_times_in_a_run_of_raw_sql_need_a_zone(database_url: str) -> None:
    naive = dt.datetime(2026, 1, 1)  # noqa: DTZ001  naive on purpose
    async with bench(database_url, SCHEMA) as b:
        sql = "UPDATE t SET who = $1::timestamptz::text"
        at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        refused = await b.apply(
            *(
                unit(number, lambda u, value=value: u.execute(sql, value))  # type: ignore[misc]
                for number, value in enumerate((at, naive, at), start=1)
            )
        )
        assert list(refused) == ["2-0"]


async def test_a_host_that_does_not_answer_leaves_time_for_the_next(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CONNECT_TIMEOUT_S", 2.0)
    monkeypatch.setattr(database, "CONNECT_TIMEOUT_S", 2.0)
    parts = urlsplit(database_url)
    user, at, host = parts.netloc.rpartition("@")
    with socket.create_server(("127.0.0.1", 0)) as dead:  # it listens, and nobody is at home
        hosts = f"127.0.0.1:{dead.getsockname()[1]},{host}"
        url = parts._replace(netloc=f"{user}{at}{hosts}").geturl()
        connection = await session.connect(url)
        try:
            assert await connection.fetchval("SELECT 1") == 1
        finally:
            await session.close(connection)
        reads = ReadPool(url)
        try:
            assert await (await reads.pool()).fetchval("SELECT 1") == 1
        finally:
            await reads.close()


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        (
            "postgresql://u:p@a:1,b:2/d?x=y",
            ["postgresql://u:p@a:1/d?x=y", "postgresql://u:p@b:2/d?x=y"],
        ),
        ("postgresql://a,b/d", ["postgresql://a/d", "postgresql://b/d"]),
        ("postgresql://u:p%2C@a/d", ["postgresql://u:p%2C@a/d"]),
        ("postgresql:///d?host=/run/pg", ["postgresql:///d?host=/run/pg"]),
        ("postgresql://[::1]:5/d", ["postgresql://[::1]:5/d"]),
    ],
)
def test_hosts_are_tried_one_by_one(given: str, hosts: list[str]) -> None:
    assert one_by_one(given) == hosts


async def test_a_role_that_may_not_create_can_write_when_the_tables_are_there(
    database_url: str,
) -> None:
    owner = await asyncpg.connect(database_url)
    name = await owner.fetchval("SELECT current_database()")
    try:
        await migrate(owner)
        await owner.execute(
            f"CREATE ROLE {name}_w LOGIN; GRANT USAGE ON SCHEMA runner TO {name}_w;"
            f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA runner"
            f" TO {name}_w"
        )
        user = await asyncpg.connect(database_url, user=f"{name}_w")
        await migrate(user)
        await user.close()
    finally:
        await owner.execute(f"DROP OWNED BY {name}_w; DROP ROLE {name}_w")
        await owner.close()


async def test_two_starters_migrate_once(empty_database_url: str) -> None:
    connections = [await asyncpg.connect(empty_database_url) for _ in range(3)]
    await asyncio.gather(*(migrate(connection) for connection in connections))
    assert await connections[0].fetchval("SELECT count(*) FROM runner.writer") == 1
    for connection in connections:
        await connection.close()
