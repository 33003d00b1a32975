"""Every kind of operation against a real Postgres, in batches and one by one."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.writer.batch import Batch
from runner.writer.queries import query
from runner.writer.session import LOCK
from runner.writer.steps import prepare_steps
from tests.integration.test_writer_support import Bench, bench, unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.writer import UnitBuilder
    from runner.writer.entries import Unit

SCHEMA = """
CREATE TYPE mood AS ENUM ('ok', 'bad');
CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 7, s text UNIQUE, d numeric(9, 2));
CREATE TABLE counts (name varchar(8) PRIMARY KEY, n bigint NOT NULL DEFAULT 0, x numeric);
CREATE TABLE many (
    id int PRIMARY KEY, b bool, by bytea, u uuid, da date, ti time, ts timestamp, tz timestamptz,
    iv interval, nu numeric, f float8, m mood, j jsonb, js json, ints int[], texts text[],
    v varchar(3)
);
"""


async def test_each_kind_of_operation(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        refused = await b.apply(
            unit(1, lambda u: u.insert("t", id=1, s="a"), lambda u: u.insert("t", id=2, n=1)),
            unit(2, lambda u: u.upsert("t", {"id": 1, "n": 5}), lambda u: u.upsert("t", {"id": 3})),
            unit(3, lambda u: u.upsert("t", {"id": 1, "n": 99}, update=[])),
            unit(4, lambda u: u.add("t", key={"id": 1}, n=10, d=Decimal("1.50"))),
            unit(5, lambda u: u.add("t", key={"id": 1}, n=-1, d=Decimal("0.25"))),
            unit(6, lambda u: u.add("counts", key={"name": "x"}, missing="insert", n=3)),
            unit(7, lambda u: u.add("counts", key={"name": "x"}, missing="insert", n=4)),
            unit(8, lambda u: u.add("counts", key={"name": "y"}, missing="ignore", n=4)),
            unit(
                9,
                lambda u: u.update("t", key={"id": 3}, s="c"),
                lambda u: u.delete("t", key={"id": 2}),
            ),
            unit(10, lambda u: u.insert_many("t", [{"id": 10}, {"id": 11}, {"id": 12, "n": 0}])),
            unit(11, lambda u: u.execute("UPDATE t SET n = n + $1 WHERE id >= $2", 100, 10)),
        )
        assert refused == {}
        assert await b.rows("SELECT id, n, s, d FROM t ORDER BY id") == [
            (1, 14, "a", Decimal("1.75")),
            (3, 7, "c", None),
            (10, 107, None, None),
            (11, 107, None, None),
            (12, 100, None, None),
        ]
        assert await b.rows("SELECT name, n FROM counts") == [("x", 7)]
        assert await b.position() == "11-0"


VALUES: dict[str, list[Any]] = {
    "b": [True, None],
    "by": [b"\x00\xff", b""],
    "u": [uuid.UUID(int=5)],
    "da": [dt.date(2026, 2, 3)],
    "ti": [dt.time(4, 5, 6)],
    "ts": [dt.datetime(2026, 1, 2, 3)],  # noqa: DTZ001  for a timestamp without time zone
    "tz": [dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC)],
    "iv": [dt.timedelta(days=1, seconds=2)],
    "nu": [Decimal("1.23"), 7],
    "f": [1.5, 2],
    "m": ["ok"],
    "ints": [[1, 2], [], None],
    "texts": [["a", None]],
    "v": ["abc"],
}


def inserting(table: str, row: dict[str, Any]) -> Callable[[UnitBuilder], None]:
    return lambda u: u.insert(table, **row)


async def test_values_of_every_type_arrive(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        number = 0
        expected: list[Any] = []
        units = []
        for column, values in VALUES.items():
            for value in values:
                number += 1
                row = {"id": number, column: value}
                units.append(unit(number, inserting("many", row)))
                expected.append(value)
        assert await b.apply(*units) == {}
        columns = [column for column, values in VALUES.items() for _ in values]
        found = await b.connection.fetch("SELECT * FROM many ORDER BY id")
        assert [row[column] for row, column in zip(found, columns, strict=True)] == expected


RAW_JSON = "INSERT INTO many (id, j, js) VALUES (3, $1, $2)"


async def test_dicts_and_lists_become_json(database_url: str) -> None:
    given_value = {"at": dt.date(2026, 1, 2), "n": [Decimal("1.5"), None], "ü": uuid.UUID(int=1)}
    async with bench(database_url, SCHEMA) as b:
        assert (
            await b.apply(
                unit(1, lambda u: u.insert("many", id=1, j=given_value, js=[1, {"a": 2}])),
                unit(2, lambda u: u.insert("many", id=2, j='{"text": "as it is"}')),
                unit(3, lambda u: u.execute(RAW_JSON, {"a": 1}, [4])),
            )
            == {}
        )
        assert await b.rows(
            "SELECT j->>'at', j->'n'->>0, js->1->>'a', j->>'text' FROM many ORDER BY id"
        ) == [
            ("2026-01-02", "1.5", "2", None),
            (None, None, None, "as it is"),
            (None, None, None, None),
        ]
        assert await b.rows("SELECT j->>'a', js->>0 FROM many WHERE id = 3") == [("1", "4")]


async def test_text_is_never_cut_to_fit(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        refused = await b.apply(unit(1, lambda u: u.insert("many", id=1, v="abcd")))
        assert refused["1-0"].sqlstate == "22001"


async def test_a_unit_that_comes_again_is_not_applied_again(database_url: str) -> None:
    def count(u: UnitBuilder) -> None:
        u.add("counts", key={"name": "x"}, missing="insert", n=1)

    async with bench(database_url, SCHEMA) as b:
        await b.apply(unit(1, count), unit(2, count))
        assert await b.apply(unit(3, count, key="job1:1700000000000:0"), unit(4, count)) == {}
        same = "job9:1700000000000:0"
        assert await b.apply(unit(5, count, key=same), unit(6, count, key=same)) == {}
        assert await b.rows("SELECT n FROM counts") == [(4,)]
        assert await b.position() == "6-0"


async def test_a_unit_in_the_older_ledger_is_not_applied_again(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        await b.apply(unit(1, lambda u: u.insert("t", id=1)))
        b.office.ledger = 2
        again = unit(2, lambda u: u.delete("t", key={"id": 1}), key="job1:1700000000000:0")
        assert await b.apply(again) == {}
        assert await b.rows("SELECT id FROM t") == [(1,)]


async def test_a_table_changed_under_the_writer_refuses_nobody(database_url: str) -> None:
    async with bench(database_url, "CREATE TABLE z (id int PRIMARY KEY, v int)") as b:
        assert await b.apply(unit(1, lambda u: u.insert("z", id=1, v=1))) == {}
        await b.connection.execute("ALTER TABLE z ALTER v TYPE text")
        assert await b.apply(unit(2, lambda u: u.insert("z", id=2, v="three"))) == {}
        await b.connection.execute("DROP TABLE z; CREATE TABLE z (id text PRIMARY KEY)")
        assert await b.apply(unit(3, lambda u: u.insert("z", id="x"))) == {}
        await b.connection.execute("ALTER TABLE z ADD w int")
        assert await b.apply(unit(4, lambda u: u.insert("z", id="y", w=1))) == {}
        assert await b.rows("SELECT * FROM z ORDER BY id") == [("x", None), ("y", 1)]


async def test_a_table_with_a_trigger_sees_statements_in_exact_order(database_url: str) -> None:
    schema = """
    CREATE TABLE log (n serial, what text);
    CREATE TABLE z (id int PRIMARY KEY);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN INSERT INTO log (what) VALUES (TG_OP); RETURN NULL; END $$;
    CREATE TRIGGER n AFTER INSERT OR DELETE ON z FOR EACH STATEMENT EXECUTE FUNCTION note();
    """
    async with bench(database_url, schema) as b:
        await b.apply(
            unit(1, lambda u: u.insert("z", id=1), lambda u: u.insert("z", id=2)),
            unit(2, lambda u: u.delete("z", key={"id": 1}), lambda u: u.insert("z", id=1)),
        )
        assert await b.rows("SELECT what FROM log ORDER BY n") == [
            ("INSERT",),
            ("INSERT",),
            ("DELETE",),
            ("INSERT",),
        ]


NARROW = (
    "CREATE TABLE z (id int PRIMARY KEY, n smallint NOT NULL); INSERT INTO z VALUES (1, 32766);"
)


def adding(number: int, n: int) -> Unit:
    return unit(number, lambda u: u.add("z", key={"id": 1}, n=n))


async def test_a_sum_that_does_not_fit_on_the_way_is_refused_where_it_does_not(
    database_url: str,
) -> None:
    async with bench(database_url, NARROW) as b:
        assert list(await b.apply(adding(1, 1), adding(2, 1), adding(3, -5))) == ["2-0"]
        assert await b.rows("SELECT n FROM z") == [(32762,)]


async def test_a_generated_column_refuses_a_value_on_the_way(database_url: str) -> None:
    schema = NARROW + "ALTER TABLE z ADD part int GENERATED ALWAYS AS (12 / (n - 32767)) STORED"
    async with bench(database_url, schema) as b:
        assert list(await b.apply(adding(1, 1), adding(2, -5))) == ["1-0"]


@pytest.mark.parametrize("raw", [False, True])
async def test_a_deferred_constraint_is_looked_at_when_its_unit_ends(
    database_url: str, *, raw: bool
) -> None:
    schema = """
    CREATE TABLE z (id int PRIMARY KEY, place int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    INSERT INTO z VALUES (1, 1), (2, 2);
    """

    def put(u: UnitBuilder, key: int, place: int) -> None:
        if raw:
            u.execute("UPDATE z SET place = $2 WHERE id = $1", key, place)
        else:
            u.update("z", key={"id": key}, place=place)

    async with bench(database_url, schema) as b:
        refused = await b.apply(
            unit(1, lambda u: put(u, 1, 2)),  # two in one place, when this unit ends
            unit(2, lambda u: put(u, 2, 3)),
            unit(3, lambda u: put(u, 1, 3), lambda u: put(u, 2, 1)),
        )
        assert list(refused) == ["1-0"]
        assert await b.rows("SELECT id, place FROM z ORDER BY id") == [(1, 3), (2, 1)]


async def test_a_primary_key_that_is_generated_changes_with_its_column(database_url: str) -> None:
    schema = """
    CREATE TABLE z (a int UNIQUE, g int GENERATED ALWAYS AS (a % 2) STORED PRIMARY KEY, n int);
    INSERT INTO z VALUES (0, DEFAULT, 0);
    """
    async with bench(database_url, schema) as b:
        await b.apply(
            unit(1, lambda u: u.update("z", key={"g": 0}, a=1)),
            unit(2, lambda u: u.update("z", key={"g": 1}, n=5)),
        )
        assert await b.rows("SELECT g, n FROM z") == [(1, 5)]


async def test_restrict_looks_at_once(database_url: str) -> None:
    schema = """
    CREATE TABLE z (id int PRIMARY KEY);
    CREATE TABLE y (id int PRIMARY KEY, z int REFERENCES z ON DELETE RESTRICT);
    INSERT INTO z VALUES (1); INSERT INTO y VALUES (1, 1);
    """
    async with bench(database_url, schema) as b:
        refused = await b.apply(
            unit(1, lambda u: u.delete("z", key={"id": 1})),
            unit(2, lambda u: u.delete("y", key={"id": 1})),
        )
        assert list(refused) == ["1-0"]


async def test_an_addition_by_another_key_goes_with_the_others(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        assert (
            await b.apply(
                unit(1, lambda u: u.insert_many("t", [{"id": 1, "d": 1}, {"id": 2, "d": 1}])),
                unit(2, lambda u: u.add("t", key={"d": 1}, n=1)),
            )
            == {}
        )
        assert await b.rows("SELECT n FROM t") == [(8,), (8,)]


async def test_raw_sql_leaves_nothing_in_the_session(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        hidden = "SELECT set_config('search_path', 'pg_catalog', false)"
        assert await b.apply(unit(1, lambda u: u.execute(hidden))) == {}
        shown = await b.connection.fetchrow(
            "SELECT current_setting('search_path'), current_setting('synchronous_commit'), "
            "current_setting('enable_seqscan')"
        )
        assert shown is not None
        assert tuple(shown) == ('"$user", public', "on", "off")


async def test_raw_sql_that_gives_the_lock_away_gets_it_back(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        given_away = unit(1, lambda u: u.execute("SELECT pg_advisory_unlock_all()"))
        assert await b.apply(given_away) == {}
        assert await b.connection.fetchval(query("advisory_locks"), LOCK)


async def test_a_lock_that_another_session_took_ends_the_term(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        other = await asyncpg.connect(database_url)
        waiting = asyncio.create_task(other.fetchval("SELECT pg_advisory_lock($1)", LOCK))
        given_away = unit(1, lambda u: u.execute("SELECT pg_advisory_unlock_all(), pg_sleep(0.5)"))
        with pytest.raises(OSError, match="gave the writer's lock away"):
            await b.apply(given_away)
        await waiting
        await other.close()


def operation(kind: str, key: int, n: int, s: str) -> Callable[[UnitBuilder], None]:
    return {
        "insert": lambda u: u.insert("t", id=key, n=n, s=s),
        "insert_many": lambda u: u.insert_many("t", [{"id": key, "n": n}, {"id": key + 1, "n": n}]),
        "upsert": lambda u: u.upsert("t", {"id": key, "n": n, "s": s}),
        "keep": lambda u: u.upsert("t", {"id": key, "n": n}, update=[]),
        "add": lambda u: u.add("t", key={"id": key}, n=n, d=Decimal(n) / 8),
        "count": lambda u: u.add("counts", key={"name": s}, missing="insert", n=n, x=n),
        "update": lambda u: u.update("t", key={"id": key}, s=s),
        "by s": lambda u: u.update("t", key={"s": s}, n=n),
        "move": lambda u: u.update("t", key={"id": key}, id=n),
        "delete": lambda u: u.delete("t", key={"id": key}),
        "raw": lambda u: u.execute("UPDATE t SET n = n * 2 WHERE id > $1", key),
    }[kind]


KINDS = (
    *("insert", "insert", "insert_many", "upsert", "keep", "add", "add", "count", "update"),
    *("by s", "move", "delete", "raw"),
)
OPERATION = st.builds(
    operation,
    st.sampled_from(KINDS),
    st.integers(0, 4),
    st.integers(-2, 6),
    st.sampled_from("abcd"),
)


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.lists(OPERATION, min_size=1, max_size=3), min_size=2, max_size=14))
async def test_batches_do_what_exact_order_does(
    database_url: str, made: list[list[Callable[[UnitBuilder], None]]]
) -> None:
    async with bench(database_url) as b:
        outcomes = []
        for together in (True, False):
            await b.connection.execute(
                "DROP TABLE IF EXISTS t, counts, many; DROP TYPE IF EXISTS mood;" + SCHEMA
            )
            await b.batches.attempts.reload()
            first = int(b.office.position.split("-")[0]) + 1
            units = [
                unit(first + at, *calls, key=f"{together}{first + at}")
                for at, calls in enumerate(made)
            ]
            outcomes.append(await _outcome(b, first, units, together=together))
        assert outcomes[0] == outcomes[1]


async def _outcome(b: Bench, first: int, units: list[Any], *, together: bool) -> tuple[Any, ...]:
    refused: dict[str, Any] = {}
    if together:
        refused = await b.batches.apply(Batch(units))
    else:
        for one in units:
            refused |= await b.batches._lone(one)
    return (
        [int(entry.split("-")[0]) - first for entry in refused],
        await b.rows("SELECT id, n, s, d FROM t ORDER BY id"),
        await b.rows("SELECT name, n, x FROM counts ORDER BY name"),
    )


def noting(number: int) -> Unit:
    return unit(number, lambda u: u.insert("z", s="new"))


async def test_what_was_written_in_vain_does_not_reach_a_row_that_comes_later(
    database_url: str,
) -> None:
    """A key that somebody guesses, and that the database gives to a row behind it."""
    schema = "CREATE TABLE z (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, s text, n int)"
    async with bench(database_url, schema) as b:
        refused = await b.apply(
            noting(1),
            unit(2, lambda u: u.update("z", key={"id": 2}, s="guessed")),
            noting(3),
            unit(4, lambda u: u.add("z", key={"id": 3}, n=1)),
            noting(5),
        )
        assert list(refused) == ["4-0"]
        assert {row[0] for row in await b.rows("SELECT s FROM z")} == {"new"}


async def test_new_rows_and_updates_of_others_take_two_statements(database_url: str) -> None:
    schema = "CREATE TABLE z (id bigserial PRIMARY KEY, s text)"
    async with bench(database_url, schema) as b:
        assert await b.apply(*(noting(number) for number in range(1, 6))) == {}
        units = [
            noting(number)
            if number % 2
            else unit(number, lambda u, n=number: u.update("z", key={"id": n // 2}, s="old"))  # type: ignore[misc]
            for number in range(6, 12)
        ]
        known, _ = await b.batches.attempts.learn(units)
        assert len(prepare_steps(units, known)) == 2
        assert await b.apply(*units) == {}
        assert await b.rows("SELECT s, count(*) FROM z GROUP BY s ORDER BY s") == [
            ("new", 5),
            ("old", 3),
        ]


@pytest.mark.parametrize("kind", ["int GENERATED ALWAYS AS IDENTITY", "serial", "int DEFAULT 0"])
async def test_rows_are_numbered_in_the_order_of_the_calls(database_url: str, kind: str) -> None:
    async with bench(database_url, f"CREATE TABLE z (id {kind}, s text, n int)") as b:
        rows: list[dict[str, Any]] = [{"s": "1"}, {"s": "2", "n": 1}, {"s": "3"}]
        units = [unit(1, lambda u: u.insert_many("z", rows), lambda u: u.insert("z", s="4", n=2))]
        assert await b.apply(*units) == {}
        found = [row[0] for row in await b.rows("SELECT s FROM z ORDER BY id, s")]
        assert found == ["1", "2", "3", "4"]
