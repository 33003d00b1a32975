"""A unit that cannot be applied is refused alone; all others are committed, in order."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import math
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import msgspec
import pytest

from runner.writer.apply import Applier
from runner.writer.batch import Batches, Refusals
from runner.writer.entries import Unit, encode_rejection, read_entry
from runner.writer.failures import Fenced
from tests.integration.test_writer_support import bench, unit
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.writer import UnitBuilder

SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY, s text, at timestamptz, j jsonb, ats timestamptz[],
    spans tstzrange);
CREATE TABLE stock (sku text PRIMARY KEY, n int NOT NULL CHECK (n >= 0));
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY,
    parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE guarded (id int PRIMARY KEY);
CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN IF NEW.id = 13 THEN RAISE EXCEPTION 'not thirteen'; END IF; RETURN NEW; END $$;
CREATE TRIGGER no BEFORE INSERT ON guarded FOR EACH ROW EXECUTE FUNCTION no();
INSERT INTO t (id) VALUES (0);
INSERT INTO stock VALUES ('a', 1);
"""


def raw_unit(number: int, *operations: Any) -> Unit:
    """Return a unit that the builder would not have let through."""
    data = msgspec.msgpack.encode(operations)
    return read_entry(f"{number}-0", {b"u": f"raw{number}".encode(), b"o": data})


NESTED: Any = functools.reduce(lambda inner, _: [inner], range(900), cast("Any", 1))


def good(number: int) -> Unit:
    return unit(number, lambda u: u.insert("t", id=number, s="good"))


NAIVE = dt.datetime(2026, 1, 1)  # noqa: DTZ001  naive on purpose


@pytest.mark.parametrize(
    ("call", "sqlstate", "message"),
    [
        (lambda u: u.insert("t", id=0), "23505", "duplicate key"),
        (lambda u: u.insert("t", id=100, s="a\0b"), "22021", "invalid byte sequence"),
        (lambda u: u.insert("tt", id=1), "42P01", "no table 'tt'"),
        (lambda u: u.insert("stok", sku="x", n=1), "42P01", "did you mean 'stock'"),
        (lambda u: u.insert("t", idd=1), "42703", "did you mean 'id'"),
        (lambda u: u.insert("runner.writer", epoch=9), "42P01", "no table"),
        (lambda u: u.insert("t", id="one"), "22000", "invalid input"),
        (lambda u: u.insert("t", id=2**40), "22000", "out of int32 range"),
        (lambda u: u.insert("t", id=100, at=NAIVE), "", "has no time zone"),
        (lambda u: u.insert("t", id=100, at=NAIVE.date()), "", "is a date"),
        (lambda u: u.insert("t", id=100, ats=[None, NAIVE]), "", "has no time zone"),
        (lambda u: u.insert("t", id=100, spans=asyncpg.Range(NAIVE, None)), "", "has no time zone"),
        (lambda u: u.insert("t", id=100, j={"a": math.nan}), "", "cannot be written as JSON"),
        (lambda u: u.insert("guarded", id=13), "P0001", "not thirteen"),
        (lambda u: u.insert("child", id=1, parent=9), "23503", "foreign key"),
        (lambda u: u.add("stock", key={"sku": "b"}, n=1), "RNM01", "missing='insert'"),
        (lambda u: u.add("stock", key={"sku": "a"}, n=-2), "23514", "check constraint"),
        (lambda u: u.upsert("t", {"id": 1, "s": "x"}, key=("s",)), "42P10", "ON CONFLICT"),
        (lambda u: u.execute("SELECT 1/0"), "22012", "division by zero"),
        (lambda u: u.execute("SELECT 1; COMMIT"), "42601", "multiple commands"),
        (lambda u: u.execute("SELECT $1::int"), "", "expects 1 argument"),
        (lambda u: u.execute("SELECT pg_sleep(30)"), "57014", "statement timeout"),
        (lambda u: u.execute("SELECT frm"), "42703", "frm"),
        (lambda u: u.execute("SELECT $1::timestamptz", NAIVE), "", "has no time zone"),
        (lambda u: u.execute("SELECT $1::timestamptz[]", [[NAIVE]]), "", "has no time zone"),
        (lambda u: u.execute("SELECT $1::tstzrange", [NAIVE, None]), "", "has no time zone"),
    ],
)
async def test_a_bad_unit_is_refused_alone(
    database_url: str, call: Callable[[UnitBuilder], None], sqlstate: str, message: str
) -> None:
    await _set_timeout(database_url)
    async with bench(database_url, SCHEMA) as b:
        bad = unit(4, lambda u: u.insert("t", id=50, s="half"), call)
        refused = await b.apply(good(1), good(2), good(3), bad, good(5), good(6))
        assert list(refused) == ["4-0"]
        assert message in refused["4-0"].message
        assert refused["4-0"].sqlstate == sqlstate
        assert await b.rows("SELECT id FROM t WHERE id > 0 ORDER BY id") == [
            (number,) for number in (1, 2, 3, 5, 6)
        ]
        assert await b.rows("SELECT entry FROM runner.rejected") == [("4-0",)]
        assert await b.position() == "6-0"


async def _set_timeout(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET statement_timeout = '500ms'")
    await connection.close()


@pytest.mark.parametrize(
    "operation",
    [
        ['["execute","COMMIT"]', []],
        ['["execute","/* */ ROLLBACK"]', []],
        ['["execute","COPY t FROM STDIN"]', []],
        ['["insert","t",["id","s"]]', [1]],
        ['["insert","t",[]]', [1]],
        ['["insert",5,["id"]]', [1]],
        ['["insert",["t"],["id"]]', [1]],
        ['["insert","t\\u0000",["id"]]', [1]],
        ['["insert","t",["id\\u0000"]]', [1]],
        ['["insert","t",["id"],{"returning":5}]', [1]],
        ['["add","t",["id"],1,"reject"]', [1]],
        ['["update","t",["id"],-5]', [1]],
        ['["execute",5]', []],
        ['["execute","SELECT 1\\u0000"]', []],
        ['["execute","SELECT $40000::int"]', [1]],
        ['["insert","t",["id","s"]]', [9, NESTED]],
        ["[" * 100_000, []],
        ["nothing", []],
        "no operation",
    ],
)
async def test_an_entry_that_no_builder_made_is_refused_alone(
    database_url: str, operation: Any
) -> None:
    async with bench(database_url, SCHEMA) as b:
        refused = await b.apply(good(1), raw_unit(2, operation), good(3))
        assert list(refused) == ["2-0"]
        assert await b.rows("SELECT id FROM t WHERE id > 0 ORDER BY id") == [(1,), (3,)]


ENDLESS = "x" * 1_000_000
MANY_PLACES = "SELECT 1/0 WHERE 0 IN (" + ", ".join(f"${n}::int" for n in range(1, 2_001)) + ")"


@pytest.mark.parametrize(
    "call",
    [
        lambda u: u.execute("SELECT $1::text::int", ENDLESS),
        lambda u: u.execute(f"SELECT {'(' * 2_000}1 -- {ENDLESS}"),
        lambda u: u.execute("SELECT $1::text COLLATE nothing", ENDLESS),
        lambda u: u.insert_many("t", [{"id": 1, "s": ENDLESS[:9]}] * 2_000),
        lambda u: u.execute(MANY_PLACES, *range(2_000)),
    ],
)
async def test_a_refusal_says_no_more_than_fits_into_a_letter(
    database_url: str, call: Callable[[UnitBuilder], None]
) -> None:
    async with bench(database_url, SCHEMA) as b:
        refused = await b.apply(good(1), unit(2, call), good(3))
        assert list(refused) == ["2-0"]
        assert len(encode_rejection(refused["2-0"])) < 10_000


async def test_every_second_unit_is_bad(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        units = [unit(n, lambda u: u.insert("t", id=0)) if n % 2 else good(n) for n in range(1, 61)]
        refused = await b.apply(*units)
        assert list(refused) == [f"{n}-0" for n in range(1, 61, 2)]
        assert await b.rows("SELECT count(*) FROM t") == [(31,)]


async def test_commits_wait_for_the_disk_again_when_a_bad_unit_was_found(
    database_url: str,
) -> None:
    async with bench(database_url, SCHEMA) as b:
        assert list(await b.apply(good(1), unit(2, lambda u: u.insert("t", id=0)), good(3))) == [
            "2-0"
        ]
        assert await b.rows("SELECT current_setting('synchronous_commit')") == [("on",)]


async def test_a_bad_unit_that_comes_first_does_not_make_the_others_go_one_by_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone: list[str] = []
    alone = Batches._lone

    async def count(self: Batches, one: Unit) -> Refusals:
        lone.append(one.entry)
        return await alone(self, one)

    monkeypatch.setattr(Batches, "_lone", count)
    async with bench(database_url, SCHEMA) as b:
        bad = unit(1, lambda u: u.insert("t", id=0))
        assert list(await b.apply(bad, *(good(number) for number in range(2, 1001)))) == ["1-0"]
    assert len(lone) <= 2


async def test_a_unit_may_use_a_value_that_it_has_freed(database_url: str) -> None:
    async with bench(database_url, "CREATE TABLE z (id int PRIMARY KEY, s text UNIQUE)") as b:
        assert await b.apply(unit(1, lambda u: u.insert("z", id=1, s="a"))) == {}
        swap = unit(2, lambda u: u.delete("z", key={"id": 1}), lambda u: u.insert("z", id=2, s="a"))
        assert await b.apply(swap) == {}
        assert await b.rows("SELECT id FROM z") == [(2,)]


def taking(number: int, delta: int) -> Unit:
    return unit(number, lambda u: u.add("stock", key={"sku": "a"}, n=delta))


async def test_additions_under_a_check_are_refused_one_by_one(database_url: str) -> None:
    async with bench(database_url, SCHEMA + "UPDATE stock SET n = 5") as b:
        units = [taking(number, delta) for number, delta in enumerate((-3, -3, 4), start=1)]
        assert list(await b.apply(*units)) == ["2-0"]
        assert await b.rows("SELECT n FROM stock") == [(6,)]


async def test_a_fenced_writer_blames_nobody(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        other = await asyncpg.connect(database_url)
        try:
            await other.execute("UPDATE runner.writer SET epoch = epoch + 1")
            await other.execute("INSERT INTO t (id) VALUES (1)")
            for batch in (
                [good(1)],
                [good(1), good(2)],
                [unit(1, lambda u: u.execute("SELECT 1/0"))],
            ):
                with pytest.raises(Fenced):
                    await b.apply(*batch)
            assert await b.rows("SELECT count(*) FROM runner.rejected") == [(0,)]
            assert await b.position() == "0-0"
        finally:
            await other.close()


async def test_a_deadlock_is_tried_again(database_url: str) -> None:
    schema = (
        SCHEMA
        + """
    CREATE SEQUENCE tries;
    CREATE FUNCTION unlucky() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
      IF nextval('tries') < 3 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40P01'; END IF;
      RETURN 1; END $$;
    """
    )
    async with bench(database_url, schema) as b:
        assert await b.apply(good(1), unit(2, lambda u: u.execute("SELECT unlucky()"))) == {}
        assert await b.rows("SELECT count(*) FROM t") == [(2,)]


async def test_a_table_that_is_locked_for_a_while_refuses_nobody(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As a migration locks it, where lock_timeout is set for the whole database."""
    async with bench(database_url, SCHEMA + "SET lock_timeout = '20ms'") as b:
        assert await b.apply(good(1)) == {}
        other = await asyncpg.connect(database_url)
        try:
            migration = other.transaction()
            await migration.start()
            await other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            applying = asyncio.create_task(b.apply(good(2), good(3)))
            await wait_until(
                lambda: "lock timeout" in caplog.text,
                description="the lock was asked for, and not given",
            )
            await migration.rollback()
            assert await applying == {}
        finally:
            await other.close()


async def test_a_batch_with_too_many_locks_goes_in_parts(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement locks all partitions that it may touch, in a memory that has its bounds."""
    monkeypatch.setattr("runner.writer.attempts.SOONEST_RETRY_S", 0.001)
    schema = (
        SCHEMA
        + """
    CREATE TABLE marks (n int);
    CREATE FUNCTION few() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      IF (SELECT count(*) FROM marks WHERE xmin = pg_current_xact_id()::xid) > 3 THEN
        RAISE EXCEPTION 'out of shared memory' USING ERRCODE = '53200'; END IF;
      RETURN NULL; END $$;
    CREATE TRIGGER few AFTER INSERT ON marks FOR EACH ROW EXECUTE FUNCTION few();
    """
    )
    async with bench(database_url, schema) as b:
        units = [unit(n, lambda u: u.insert("marks", n=1)) for n in range(1, 11)]
        assert await b.apply(*units) == {}
        assert await b.rows("SELECT count(*) FROM marks") == [(10,)]


async def test_a_large_unit_beside_a_bad_one_is_not_run_one_by_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thousands of operations would take as many round trips, and everybody would wait."""
    longest = 0
    commit = Applier.commit

    async def counted(self: Applier, steps: Any, *args: Any, **named: Any) -> dict[str, bytes]:
        nonlocal longest
        longest = max(longest, len(steps))
        return await commit(self, steps, *args, **named)

    monkeypatch.setattr(Applier, "commit", counted)

    def much(u: UnitBuilder) -> None:
        for number in range(1_000, 2_000):
            u.insert("t", id=number)
            u.insert("parent", id=number)

    async with bench(database_url, SCHEMA) as b:
        bad = unit(2, lambda u: u.insert("t", id=0))
        assert list(await b.apply(bad, unit(3, much))) == ["2-0"]
        assert await b.rows("SELECT count(*) FROM t") == [(1_001,)]
    assert longest < 10
