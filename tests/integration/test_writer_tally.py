"""What a unit did, for whoever asks: counts and rows, as plain asyncpg gives them."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import pytest

from runner import keys
from runner.errors import ResultTooLarge
from runner.types import Committed
from runner.writer.entries import Unit, decode_rejection, read_entry
from runner.writer.tally import certain_tally, read_tally
from tests.integration.test_writer_support import LASTING, bench, engine, unit_of, writing

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.writer import UnitBuilder
    from tests.integration.test_writer_support import Bench, Engine

    Call = Callable[[UnitBuilder], None]

pytestmark = pytest.mark.lasting_keys(*LASTING)

SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY, n int, s text DEFAULT 'new');
INSERT INTO t VALUES (1, 10, 'a'), (2, 20, 'a'), (3, 30, 'b');
CREATE TABLE serials (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s text);
CREATE TABLE picky (id int PRIMARY KEY);
CREATE FUNCTION skip_odd() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.id % 2 = 1 THEN RETURN NULL; END IF; RETURN NEW; END $$;
CREATE TRIGGER skip BEFORE INSERT ON picky FOR EACH ROW EXECUTE FUNCTION skip_odd();
"""


def asking(number: int, *calls: Call, rows: int = 1000, size: int = 1_000_000) -> Unit:
    """Return a unit that asks, as the reader would have read it."""
    fields = {
        b"u": f"job{number}:1700000000000:1".encode(),
        b"o": unit_of(*calls).encode(),
        b"a": f"{rows} {size}".encode(),
    }
    return read_entry(f"{number}-0", fields)


def told(b: Bench, unit: Unit, *calls: Call) -> Committed:
    """Read the answer of a unit as its caller does."""
    answer = b.batches.take_answers().get(unit.entry) or certain_tally(unit)
    return read_tally(answer, unit.entry, unit_of(*calls).calls)


# Each call, and the statement that plain asyncpg would run for it.
CASES: list[tuple[Call, str]] = [
    (lambda u: u.insert("t", id=9, n=1), "INSERT INTO t (id, n) VALUES (9, 1)"),
    (
        lambda u: u.insert_many("t", [{"id": 8}, {"id": 9, "s": "x"}]),
        "INSERT INTO t (id, s) VALUES (8, DEFAULT), (9, 'x')",
    ),
    (
        lambda u: u.upsert("t", {"id": 1, "n": 5}),
        "INSERT INTO t (id, n) VALUES (1, 5) ON CONFLICT (id) DO UPDATE SET n = excluded.n",
    ),
    (
        lambda u: u.upsert("t", {"id": 1, "n": 5}, update=[]),
        "INSERT INTO t (id, n) VALUES (1, 5) ON CONFLICT (id) DO NOTHING",
    ),
    (
        lambda u: u.upsert("t", {"id": 7, "n": 5}, update=[]),
        "INSERT INTO t (id, n) VALUES (7, 5) ON CONFLICT (id) DO NOTHING",
    ),
    (lambda u: u.update("t", key={"s": "a"}, n=0), "UPDATE t SET n = 0 WHERE s = 'a'"),
    (lambda u: u.update("t", key={"id": 77}, n=0), "UPDATE t SET n = 0 WHERE id = 77"),
    (lambda u: u.delete("t", key={"s": "a"}), "DELETE FROM t WHERE s = 'a'"),
    (lambda u: u.delete("t", key={"id": 77}), "DELETE FROM t WHERE id = 77"),
    (lambda u: u.add("t", key={"id": 1}, n=1), "UPDATE t SET n = n + 1 WHERE id = 1"),
    (
        lambda u: u.add("t", key={"id": 77}, n=1, missing="ignore"),
        "UPDATE t SET n = n + 1 WHERE id = 77",
    ),
    (
        lambda u: u.add("t", key={"id": 77}, n=1, missing="insert"),
        "INSERT INTO t (id, n) VALUES (77, 1)",
    ),
    (lambda u: u.execute("UPDATE t SET n = n + 1 WHERE n > $1", 10), "UPDATE t SET n=1 WHERE n>10"),
    (lambda u: u.execute("SELECT generate_series(1, 4)"), "SELECT generate_series(1, 4)"),
    (
        lambda u: u.execute("WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x"),
        "WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x",
    ),
    (
        lambda u: u.insert_many("picky", [{"id": 1}, {"id": 2}, {"id": 3}]),
        "INSERT INTO picky VALUES (1), (2), (3)",
    ),
]


@pytest.mark.parametrize(("call", "sql"), CASES)
async def test_counts_are_those_of_plain_asyncpg(database_url: str, call: Call, sql: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        plain = await asyncpg.connect(database_url)
        transaction = plain.transaction()
        await transaction.start()
        tag = await plain.execute(sql)
        await transaction.rollback()
        await plain.close()
        one = asking(1, call)
        assert await b.apply(one) == {}
        assert told(b, one, call).counts == (int(tag.rpartition(" ")[2]),)


async def test_a_statement_that_does_not_count_has_no_count(database_url: str) -> None:
    def call(u: UnitBuilder) -> None:
        u.execute("TRUNCATE t")

    async with bench(database_url, SCHEMA) as b:
        one = asking(1, call)
        assert await b.apply(one) == {}
        assert told(b, one, call).counts == (None,)


async def test_rows_come_back_for_every_kind_of_operation(database_url: str) -> None:
    calls: list[Call] = [
        lambda u: u.insert("serials", s="x", returning=["id"]),
        lambda u: u.insert_many("serials", [{"s": "y"}, {"s": "z"}], returning=True),
        lambda u: u.insert_many("serials", [], returning=True),
        lambda u: u.upsert("t", {"id": 1, "n": 5}, returning=["id", "s"]),
        lambda u: u.update("t", key={"id": 2}, s="c", returning=["id"]),
        lambda u: u.add("t", key={"id": 3}, n=1, returning=["n"]),
        lambda u: u.add("t", key={"id": 3}, n=1, returning=["n"]),
        lambda u: u.add("t", key={"id": 3}, n=1),
        lambda u: u.delete("t", key={"id": 77}, returning=True),
        lambda u: u.execute("SELECT n FROM t WHERE id = $1", 3, returning=True),
        lambda u: u.execute("SELECT 1"),
    ]
    async with bench(database_url, SCHEMA) as b:
        one = asking(1, *calls)
        assert await b.apply(one) == {}
        assert told(b, one, *calls) == Committed(
            entry="1-0",
            counts=(1, 2, 0, 1, 1, 1, 1, 1, 0, 1, 1),
            rows=(
                [{"id": 1}],
                [{"id": 2, "s": "y"}, {"id": 3, "s": "z"}],
                [],
                [{"id": 1, "s": "a"}],
                [{"id": 2}],
                [{"n": 31}],
                [{"n": 32}],
                None,
                [],
                [{"n": 33}],
                None,
            ),
        )


async def test_operations_keep_their_order_around_one_that_is_asked(database_url: str) -> None:
    """What comes before in the batch is seen, what comes behind it is not."""

    def ask(u: UnitBuilder) -> None:
        u.execute("SELECT n FROM t WHERE id = 3", returning=True)

    async with bench(database_url, SCHEMA) as b:
        before = asking(1, lambda u: u.add("t", key={"id": 3}, n=1))
        one = asking(2, lambda u: u.add("t", key={"id": 3}, n=1), ask)
        behind = asking(3, lambda u: u.add("t", key={"id": 3}, n=1))
        assert await b.apply(before, one, behind) == {}
        assert told(b, one, lambda u: u.insert("t", id=0), ask).rows[1] == [{"n": 32}]
        assert await b.rows("SELECT n FROM t WHERE id = 3") == [(33,)]


VALUES = """
SELECT 1.50::numeric AS amount, '2026-01-02'::date AS day, 'infinity'::date AS never,
       '2026-01-02 03:04:05+00'::timestamptz AS at, '2026-01-02 03:04:05'::timestamp AS naive,
       '03:04'::time AS time, interval '1 day 2 seconds' AS span, 'ü€'::text AS text,
       '\\x00ff'::bytea AS bytes, NULL::int AS nothing, true AS yes, 1.5::float8 AS f,
       'Infinity'::float8 AS inf, 9223372036854775807 AS big, ARRAY[1.1, NULL] AS list,
       '{"a": 1}'::jsonb AS doc, ROW(1, date '2026-01-02')::pair AS pair, ROW(1, 2) AS row,
       '7f000001-0000-0000-0000-000000000000'::uuid AS id
"""


async def test_values_come_back_as_asyncpg_gives_them(database_url: str) -> None:
    def ask(u: UnitBuilder) -> None:
        u.execute(VALUES, returning=True)

    async with bench(database_url, "CREATE TYPE pair AS (f1 int, f2 date)") as b:
        plain = await b.connection.fetchrow(VALUES)
        one = asking(1, ask)
        assert await b.apply(one) == {}
        rows = told(b, one, ask).rows[0]
    assert rows is not None
    assert plain is not None
    expected = dict(plain) | {"pair": {"f1": 1, "f2": dt.date(2026, 1, 2)}, "row": (1, 2)}
    assert rows[0] == expected
    classes = {name: type(value) for name, value in expected.items()} | {"id": uuid.UUID}
    assert {name: type(value) for name, value in rows[0].items()} == classes


async def test_addresses_come_back_as_text_and_ranges_as_ranges(database_url: str) -> None:
    address = asking(1, lambda u: u.execute("SELECT '10.0.0.1/8'::inet AS a", returning=True))
    span = asking(2, lambda u: u.execute("SELECT int4range(1, 2) AS span", returning=True))
    async with bench(database_url) as b:
        assert await b.apply(address, span) == {}
        answers = b.batches.take_answers()
        assert read_tally(answers["1-0"], "1-0", (1,)).rows[0] == [{"a": "10.0.0.1/8"}]
        assert read_tally(answers["2-0"], "2-0", (1,)).rows[0] == [{"span": asyncpg.Range(1, 2)}]


@pytest.mark.parametrize(("rows", "size"), [(10, 1_000_000), (1000, 20)])
async def test_too_many_rows_are_told_after_the_commit(
    database_url: str, rows: int, size: int
) -> None:
    def ask(u: UnitBuilder) -> None:
        u.execute(
            "INSERT INTO t (id) SELECT generate_series(100, 110) RETURNING id", returning=True
        )

    async with bench(database_url, SCHEMA) as b:
        one = asking(1, ask, rows=rows, size=size)
        assert await b.apply(one) == {}
        with pytest.raises(ResultTooLarge, match="is committed, but its 11 rows") as caught:
            told(b, one, ask)
        assert caught.value.counts == (11,)
        assert caught.value.row_count == 11
        assert await b.rows("SELECT count(*) FROM t WHERE id >= 100") == [(11,)]


async def test_what_is_certain_costs_nothing_and_is_not_kept(database_url: str) -> None:
    """An insert of a unit that asks shares its statement with the others."""

    def insert(u: UnitBuilder) -> None:
        u.insert("t", id=50)

    async with bench(database_url, SCHEMA) as b:
        one = asking(1, insert)
        assert await b.apply(one) == {}
        assert b.batches.take_answers() == {}
        assert told(b, one, insert).counts == (1,)
        assert await b.rows("SELECT entry FROM runner.answers") == []


async def test_a_bad_neighbour_changes_no_answer(database_url: str) -> None:
    def ask(u: UnitBuilder) -> None:
        u.update("t", key={"s": "a"}, n=1, returning=["id"])

    units = [asking(1, ask), asking(2, lambda u: u.insert("t", id=1)), asking(3, ask)]
    async with bench(database_url, SCHEMA) as b:
        assert list(await b.apply(*units)) == ["2-0"]
        answers = b.batches.take_answers()
        for entry in ("1-0", "3-0"):
            assert read_tally(answers[entry], entry, (1,)).rows == ([{"id": 1}, {"id": 2}],)
        assert await b.rows("SELECT entry FROM runner.answers ORDER BY entry") == [
            ("1-0",),
            ("3-0",),
        ]


async def test_a_unit_applied_before_has_no_count_that_is_not_certain(database_url: str) -> None:
    calls: list[Call] = [
        lambda u: u.insert("t", id=60),
        lambda u: u.update("t", key={"s": "a"}, n=1),
    ]
    async with bench(database_url, SCHEMA) as b:
        first = asking(1, *calls)
        again = msgspec.structs.replace(asking(1, *calls), entry="2-0")
        assert await b.apply(first) == {}
        assert told(b, first, *calls).counts == (1, 2)
        assert await b.apply(again) == {}
        assert told(b, again, *calls).counts == (1, None)


async def test_a_column_that_is_not_there_is_named(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        refused = await b.apply(asking(1, lambda u: u.insert("t", id=9, returning=["idd"])))
        assert "did you mean 'id'" in refused["1-0"].message


REFUSALS: list[tuple[Call, tuple[str, ...]]] = [
    (lambda u: u.insert("t", id=1, n=None, s="secret"), ("int", "NoneType", "str(6)")),
    (lambda u: u.execute("SELECT $1::int / 0, $2::bytea", 1, b"abc"), ("int", "bytes(3)")),
    (lambda u: u.insert("t", id=Decimal("1.5"), s="x" * 99), ("Decimal", "str(99)")),
]


@pytest.mark.parametrize(("call", "shapes"), REFUSALS)
async def test_a_refusal_tells_the_shapes_of_the_values(
    database_url: str, call: Call, shapes: tuple[str, ...]
) -> None:
    async with bench(database_url, SCHEMA) as b:
        refused = await b.apply(asking(1, lambda u: u.insert("t", id=40), call))
        assert refused["1-0"].parameters == shapes
        kept = await b.connection.fetchval("SELECT facts FROM runner.rejected")
        assert decode_rejection(kept).parameters == shapes
        assert b"secret" not in kept


# Through the stream.


async def submit(e: Engine, unit_id: str, *calls: Call) -> str:
    fields: dict[Any, Any] = {
        "u": unit_id,
        "o": unit_of(*calls).encode(),
        "a": "1000 1000000",
    }
    return str((await e.redis.xadd(keys.UNITS, fields)).decode())


def updating(u: UnitBuilder) -> None:
    u.update("t", key={"s": "a"}, n=1, returning=["id"])


async def test_an_answer_stands_in_redis_for_an_hour(redis_url: str, database_url: str) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e, writing(e.candidate()):
        entry = await submit(e, "one", updating)
        certain = await submit(e, "two", lambda u: u.insert("t", id=9))
        bad = await submit(e, "three", lambda u: u.insert("t", id=9))
        await e.answered(bad)
        answer = await e.redis.get(keys.ANSWER + entry)
        assert read_tally(answer or b"", entry, (1,)).rows == ([{"id": 1}, {"id": 2}],)
        assert 0 < await e.redis.pttl(keys.ANSWER + entry) <= 3_600_000
        answer = await e.redis.get(keys.ANSWER + certain)
        assert read_tally(answer or b"", certain, (1,)).counts == (1,)
        assert await e.redis.exists(keys.ANSWER + bad) == 0
        facts = decode_rejection(await e.redis.get(keys.FAILED_UNIT + bad) or b"")
        assert facts.sqlstate == "23505"


async def test_a_new_leader_tells_what_the_last_one_noted(
    redis_url: str, database_url: str
) -> None:
    async with engine(redis_url, database_url, SCHEMA) as e:
        async with writing(e.candidate()):
            await e.answered(await submit(e, "zero", lambda u: u.insert("t", id=9)))
        entry = await submit(e, "one", updating)
        certain = await submit(e, "two", lambda u: u.insert("t", id=10))
        entries = await e.redis.xrange(keys.UNITS)
        async with bench(database_url) as b:
            # The leader commits, and dies before it tells.
            await b.apply(*(read_entry(name.decode(), fields) for name, fields in entries[1:]))
        async with writing(e.candidate()):
            await e.answered(certain)
            answer = await e.redis.get(keys.ANSWER + entry)
            assert read_tally(answer or b"", entry, (1,)).rows == ([{"id": 1}, {"id": 2}],)
            answer = await e.redis.get(keys.ANSWER + certain)
            assert read_tally(answer or b"", certain, (1,)).counts == (1,)
