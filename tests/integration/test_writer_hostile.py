"""Units that attack the writer's session, its tables or its judgement are refused alone."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from runner.writer import UnitBuilder
from runner.writer.session import LOCK
from tests.integration.test_writer_support import LASTING, Bench, bench, engine, unit, unit_of
from tests.integration.test_writer_support import writing as leading

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.writer.entries import Unit

pytestmark = pytest.mark.lasting_keys(*LASTING)

SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY, s text);
CREATE TABLE log (n bigserial PRIMARY KEY, id int);
CREATE TABLE u (id int PRIMARY KEY, s text UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE doc (id int PRIMARY KEY, j jsonb);
CREATE TABLE word (w text PRIMARY KEY);
CREATE VIEW small AS SELECT * FROM t WHERE id < 100 WITH CHECK OPTION;
CREATE TABLE picky (code text);
CREATE FUNCTION pick() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN RAISE EXCEPTION 'so be it' USING ERRCODE = NEW.code; END $$;
CREATE TRIGGER pick BEFORE INSERT ON picky FOR EACH ROW EXECUTE FUNCTION pick();
CREATE FUNCTION posing() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
  RAISE EXCEPTION 'posing' USING ERRCODE = '23505', SCHEMA = 'runner', TABLE = 'ledger_1'; END $$;
CREATE FUNCTION run(sql text) RETURNS int LANGUAGE plpgsql AS $$
  BEGIN EXECUTE sql; RETURN 1; END $$;
CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
INSERT INTO t VALUES (0);
"""

# Class by class: of the connection, of concurrency, of the operator, of the system, our own.
STATES = [
    *("08006", "40001", "40P01", "53200", "55P03", "57P01", "58030", "25006"),
    *("RNF01", "RND01", "RNC01", "RNP01", "RNM01", "XX000", "26000", "P0001", "57014", "0A000"),
]


def good(number: int) -> Unit:
    return unit(number, lambda u: u.insert("t", id=number), lambda u: u.insert("log", id=number))


async def refuses(b: Bench, call: Callable[[UnitBuilder], None]) -> tuple[str, str]:
    """Apply a batch in which one unit does this; return why it was refused."""
    bad = unit(4, lambda u: u.insert("t", id=50), call)
    async with asyncio.timeout(20):
        refused = await b.apply(good(1), good(2), good(3), bad, good(5), good(6))
    assert list(refused) == ["4-0"]
    assert await b.rows("SELECT id FROM log ORDER BY n") == [(n,) for n in (1, 2, 3, 5, 6)]
    assert await b.rows("SELECT id FROM t WHERE id > 0 ORDER BY id") == [
        (n,) for n in (1, 2, 3, 5, 6)
    ]
    assert await b.position() == "6-0"
    return refused["4-0"].sqlstate, refused["4-0"].message


@pytest.mark.parametrize("state", STATES)
async def test_a_trigger_that_raises_what_servers_raise_is_refused_alone(
    database_url: str, state: str
) -> None:
    async with bench(database_url, SCHEMA) as b:
        told, message = await refuses(b, lambda u: u.insert("picky", code=state))
        assert (told, "so be it" in message) == (state, True)


@pytest.mark.parametrize(
    ("call", "state"),
    [
        (lambda u: u.execute("SELECT pg_read_file('there is no such file')"), "58P01"),
        (lambda u: u.execute("SELECT posing()"), "23505"),
        (lambda u: u.execute("SELECT set_config('transaction_read_only', 'on', true)"), "25006"),
        (lambda u: u.execute("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(5)"), "57014"),
        (lambda u: u.execute("UPDATE runner.writer SET epoch = epoch + 1"), "RNF01"),
        (lambda u: u.execute("UPDATE runner.writer SET position = '9-9'"), "RNF01"),
        (lambda u: u.execute("DELETE FROM runner.writer"), "RNF01"),
        (lambda u: u.execute("SELECT run('DROP SCHEMA runner CASCADE')"), ""),
        (lambda u: u.execute("SELECT run('COMMIT')"), "0A000"),
        (lambda u: u.execute("CALL commits()"), "2D000"),
        (lambda u: u.execute("SELECT (SELECT id FROM log)"), "21000"),
        (lambda u: u.execute("INSERT INTO child VALUES (1, 99)"), "23503"),
        (
            lambda u: u.execute(
                "WITH a AS (INSERT INTO u VALUES (1, 'x')) INSERT INTO u VALUES (2, 'x')"
            ),
            "23505",
        ),
        (lambda u: u.insert_many("u", [{"id": 1, "s": "x"}, {"id": 2, "s": "x"}]), "23505"),
        (lambda u: u.insert("small", id=500), "44000"),
        (lambda u: u.insert("word", w=secrets.token_hex(20_000)), "54000"),
        (lambda u: u.insert("doc", id=1, j={"a": "\0"}), "22P05"),
        (
            lambda u: u.execute("SELECT pg_advisory_unlock_all(), 1 / (SELECT id FROM t LIMIT 1)"),
            "22012",
        ),
    ],
)
async def test_a_hostile_unit_is_refused_alone(
    database_url: str, call: Callable[[UnitBuilder], None], state: str
) -> None:
    async with bench(database_url, SCHEMA) as b:
        told, message = await refuses(b, call)
        assert not state or told == state, message


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT set_config('search_path', 'pg_catalog', false)",
        "SELECT set_config('statement_timeout', '1ms', false)",
        "SELECT set_config('default_transaction_read_only', 'on', false)",
        "SELECT set_config('session_replication_role', 'replica', false)",
        "SELECT set_config('synchronous_commit', 'off', false)",
        "SELECT set_config('row_security', 'off', false)",
        "SELECT set_config('idle_session_timeout', '0', false)",
        "SELECT set_config('DateStyle', 'SQL, DMY', false)",
        "SELECT set_config('role', 'pg_read_all_data', false)",
        "SELECT run('DEALLOCATE ALL')",
        "SELECT run('CREATE TEMP TABLE t (id int, other text)')",
        "SELECT run('CREATE TEMP TABLE log (n bigserial, id int)')",
        "SELECT run('LISTEN something')",
        "SELECT run('DECLARE held CURSOR WITH HOLD FOR SELECT 1')",
        "SELECT pg_advisory_unlock_all()",
        "SELECT pg_advisory_lock(1)",
    ],
)
async def test_what_raw_sql_leaves_in_the_session_does_not_reach_the_units_behind_it(
    database_url: str, sql: str
) -> None:
    async with bench(database_url, SCHEMA) as b:
        before = await session_of(b.connection)
        assert await b.apply(good(1), unit(2, lambda u: u.execute(sql)), good(3)) == {}
        assert await b.apply(good(4)) == {}
        assert await session_of(b.connection) == before
        rows = "SELECT id FROM public.log ORDER BY n"
        assert await b.rows(rows) == [(1,), (3,), (4,)]


async def session_of(connection: Any) -> list[Any]:
    """Return what a unit may change in a session: settings, temporary things, locks."""
    settings = await connection.fetch("SELECT name, setting FROM pg_settings ORDER BY name")
    return [
        [tuple(row) for row in settings],
        await connection.fetchval("SELECT current_user"),
        await connection.fetch("SELECT name FROM pg_cursors WHERE is_holdable"),
        await connection.fetch("SELECT pg_listening_channels()"),
        await connection.fetchval(
            "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()"
        ),
        await connection.fetchval(
            "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'"
            " AND ((classid::bigint << 32) | objid::bigint) = $1",
            LOCK,
        ),
    ]


async def test_a_type_that_was_made_again_refuses_nobody(database_url: str) -> None:
    schema = SCHEMA + "CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE m (id int, v mood);"
    async with bench(database_url, schema) as b:
        assert await b.apply(unit(1, lambda u: u.insert("m", id=1, v="ok"))) == {}
        other = await asyncpg.connect(database_url)
        await other.execute(
            "DROP TABLE m; DROP TYPE mood; CREATE TYPE mood AS ENUM ('fine'); "
            "CREATE TABLE m (id int, v mood)"
        )
        await other.close()
        assert await b.apply(unit(2, lambda u: u.insert("m", id=2, v="fine"))) == {}
        assert await b.rows("SELECT id, v FROM m") == [(2, "fine")]


async def test_a_writer_that_was_attacked_leads_on(redis_url: str, database_url: str) -> None:
    """The whole chain: no attack makes the writer begin one term after the other."""
    async with engine(redis_url, database_url, SCHEMA) as e, leading(e.candidate()):
        attacks = [
            lambda u: u.execute("SELECT pg_advisory_unlock_all(), 1/0"),
            lambda u: u.execute("SELECT run('DEALLOCATE ALL')"),
            lambda u: u.execute("UPDATE runner.writer SET epoch = epoch + 1"),
            lambda u: u.insert("picky", code="57P01"),
            lambda u: u.execute("SELECT set_config('transaction_read_only', 'on', true)"),
        ]
        last = ""
        for number, attack in enumerate(attacks, start=1):
            await e.submit(f"bad{number}", unit_of(attack))
            unit_behind = UnitBuilder()
            unit_behind.insert("t", id=number)
            last = await e.submit(f"j{number}", unit_behind)
        await e.answered(last, timeout_s=30)
        assert await e.rows("SELECT id FROM t WHERE id > 0 ORDER BY id") == [
            (number,) for number in range(1, len(attacks) + 1)
        ]
        assert await e.rows("SELECT epoch FROM runner.writer") == [(1,)]


ODD = """
CREATE SCHEMA "Odd; --";
CREATE TABLE "Odd; --"."it's a ""table"" $1" ("Id" int, "select" text, "a""b" int DEFAULT 0,
    "%s{0}" int DEFAULT 0, PRIMARY KEY ("Id"));
"""


async def test_names_are_quoted_whatever_they_hold(database_url: str) -> None:
    table = 'Odd; --.it\'s a "table" $1'
    async with bench(database_url, SCHEMA + ODD) as b:
        units = [
            unit(1, lambda u: u.insert(table, Id=1, select="x")),
            unit(2, lambda u: u.insert_many(table, [{"Id": n, 'a"b': n} for n in (2, 3)])),
            unit(3, lambda u: u.upsert(table, {"Id": 1, "select": "y"}, key=("Id",))),
            unit(4, lambda u: u.add(table, key={"Id": 2}, **{'a"b': 5, "%s{0}": 1})),  # type: ignore[arg-type]
            unit(5, lambda u: u.add(table, key={"Id": 4}, missing="insert", **{'a"b': 7})),  # type: ignore[arg-type]
            unit(6, lambda u: u.update(table, key={"Id": 2}, select="'; DROP TABLE t; --")),
            unit(7, lambda u: u.delete(table, key={"Id": 3})),
            unit(8, lambda u: u.insert(table, Id=9, **{'select" = 1); --': "x"})),
            unit(9, lambda u: u.insert('t" VALUES (77); --', id=1)),
            unit(10, lambda u: u.add(table, key={"Id": 99}, **{'a"b': 5})),  # type: ignore[arg-type]
        ]
        refused = await b.apply(*units)
        assert {entry: why.sqlstate for entry, why in refused.items()} == {
            "8-0": "42703",
            "9-0": "42P01",
            "10-0": "RNM01",
        }
        rows = await b.rows('SELECT * FROM "Odd; --"."it\'s a ""table"" $1" ORDER BY "Id"')
        assert rows == [(1, "y", 0, 0), (2, "'; DROP TABLE t; --", 7, 1), (4, None, 7, 0)]
        assert await b.rows("SELECT id FROM t") == [(0,)]


async def test_locks_that_raw_sql_keeps_are_given_back(database_url: str) -> None:
    """Whoever else waits for them would wait for as long as this writer leads."""
    takes = [
        "SELECT pg_advisory_lock(1), pg_advisory_lock(1), pg_advisory_lock(-5)",
        "SELECT pg_advisory_lock_shared(2)",
        "SELECT pg_advisory_lock(3, -4), pg_advisory_lock_shared(-3, 4)",
    ]
    tries = "pg_try_advisory_lock"
    async with bench(database_url, SCHEMA) as b:
        units = [unit(n, lambda u, sql=sql: u.execute(sql)) for n, sql in enumerate(takes, 1)]  # type: ignore[misc]
        assert await b.apply(good(9), *units) == {}
        other = await asyncpg.connect(database_url)
        try:
            row = await other.fetchrow(
                f"SELECT {tries}(1), {tries}(-5), {tries}(2), {tries}(3, -4), {tries}(-3, 4)"
            )
            assert tuple(row or ()) == (True,) * 5
            assert not await other.fetchval(f"SELECT {tries}($1)", LOCK)
        finally:
            await other.close()
