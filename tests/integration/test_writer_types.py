"""A value of every column type arrives as plain asyncpg writes it, or is refused as there."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.integration.test_writer_support import Bench, bench, unit
from tests.servers import Addresses, database
from tests.support import run_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runner.writer import UnitBuilder
    from runner.writer.entries import Unit

SCHEMA = """
CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION vector;
CREATE TYPE mood AS ENUM ('ok', 'so so', 'it''s "bad"');
CREATE TYPE "Quoted Mood" AS ENUM ('Fine');
CREATE TYPE pair AS (n int, s varchar(3));
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN short AS varchar(3);
CREATE DOMAIN some_ints AS int[] CHECK (array_length(VALUE, 1) < 3);
CREATE DOMAIN deep AS positive CHECK (VALUE < 10);
CREATE DOMAIN good_mood AS mood CHECK (VALUE <> 'so so');
CREATE DOMAIN small_pair AS pair CHECK ((VALUE).n < 5);
"""

UTC_NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
PLUS_SEVEN = dt.timezone(dt.timedelta(hours=7))


def bits(text: Any) -> asyncpg.BitString:
    return asyncpg.BitString(text)


NAIVE = dt.datetime(2026, 1, 2, 3)  # noqa: DTZ001  for a timestamp without time zone
INFINITE = dt.datetime.max  # noqa: DTZ901  the same
MINUS_INFINITE = dt.datetime.min  # noqa: DTZ901  the same

VALUES: dict[str, list[Any]] = {
    "int": [1, -(2**31), 2**31, "1", 1.5, True],
    "smallint": [1, 2**15],
    "bigint": [2**63 - 1],
    "numeric": [
        Decimal("1.230"),
        Decimal("NaN"),
        Decimal("Infinity"),
        Decimal("-Infinity"),
        7,
        0.1,
    ],
    "numeric(4, 1)": [Decimal("1.25"), Decimal("999.95"), 1000],
    "float8": [1.5, float("nan"), float("inf"), 3],
    "real": [0.1, 1e300],
    "money": ["12.34", "x"],
    "bool": [True, False, 1, "yes"],
    "text": ["ä\n'\"\\", "", "a\0b", 5],
    "varchar(3)": ["abc", "ab ", "abcdef", "abc   "],
    "char(2)": ["a", "ab", "abc", "ab   "],
    "name": ["abc"],
    '"char"': [b"c"],
    "bytea": [b"\x00\xff", b"", "no"],
    "bit(3)": [bits("101"), bits("10111"), "101"],
    "varbit(3)": [bits("101"), bits("10111")],
    "uuid": [uuid.UUID(int=5), str(uuid.UUID(int=6)), "no"],
    "date": [dt.date(2026, 2, 3), dt.date.max, dt.date.min, "2026-02-03"],
    "time": [dt.time(4, 5, 6, 7)],
    "time(0)": [dt.time(4, 5, 6, 700_000)],
    "timetz": [dt.time(4, 5, tzinfo=PLUS_SEVEN), dt.time(4, 5, tzinfo=dt.UTC)],
    "timestamp": [NAIVE, INFINITE, MINUS_INFINITE, UTC_NOON],
    "timestamptz": [UTC_NOON, UTC_NOON.astimezone(PLUS_SEVEN), INFINITE, MINUS_INFINITE],
    "timestamptz[]": [[UTC_NOON, None, INFINITE], [], [[UTC_NOON]]],
    "timestamptz(0)": [UTC_NOON.replace(microsecond=600_000)],
    "interval": [dt.timedelta(days=40, seconds=2, microseconds=3), dt.timedelta(days=-1)],
    "interval hour": [dt.timedelta(hours=2, minutes=30)],
    "inet": ["10.0.0.1", "::1", "no", ipaddress.ip_address("10.0.0.2")],
    "cidr": ["10.0.0.0/8", ipaddress.ip_network("10.0.0.0/8"), "10.0.0.1/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "mood": ["ok", "so so", 'it\'s "bad"', "unknown"],
    '"Quoted Mood"': ["Fine", "fine"],
    "mood[]": [["ok", "so so"], ["no"]],
    "positive": [1, 0],
    "deep": [5, 50],
    "short": ["abc", "abcd"],
    "good_mood": ["ok", "so so", "no"],
    "small_pair": [(1, "abc"), (7, "abc"), (None, None)],
    "some_ints": [[1, 2], [1, 2, 3]],
    "positive[]": [[1, 2], [0]],
    "short[]": [["abc"], ["abcd"]],
    "int[]": [[1, 2], [], [None, 1], [[1, 2], [3, 4]], [[1, 2], [3]], ["x"]],
    "text[]": [["a", None, 'b,c"{}'], [["a"], ["b"]]],
    "varchar(3)[]": [["abc"], ["abcdef"]],
    "numeric[]": [[Decimal("1.5"), None]],
    "jsonb[]": [['{"a": 1}', None]],
    "int4range": [[1, 5], asyncpg.Range(1, 5), asyncpg.Range(empty=True), asyncpg.Range(None, 3)],
    "numrange": [asyncpg.Range(Decimal("1.5"), None, lower_inc=False)],
    "tstzrange": [asyncpg.Range(UTC_NOON, None), [UTC_NOON, UTC_NOON]],
    "tstzmultirange": [[asyncpg.Range(UTC_NOON, None)], []],
    "daterange": [asyncpg.Range(dt.date(2026, 1, 1), dt.date(2026, 2, 1), upper_inc=True)],
    "int4range[]": [[asyncpg.Range(1, 2), None]],
    "int4multirange": [[asyncpg.Range(1, 2), asyncpg.Range(5, 9)], []],
    "point": [(1, 2.5), asyncpg.Point(3, 4)],
    "line": [(1, 2, 3)],
    "lseg": [((1, 2), (3, 4))],
    "box": [((1, 2), (3, 4)), asyncpg.Box((1, 2), (3, 4))],
    "path": [((1, 2), (3, 4)), [(1, 2), (3, 4)], asyncpg.Path((1, 2), (3, 4), is_closed=True)],
    "polygon": [((1, 2), (3, 4), (5, 1)), asyncpg.Polygon((1, 2), (3, 4), (5, 1))],
    "circle": [((1, 2), 3)],
    "point[]": [[(1, 2), (3, 4)]],
    "pair": [(1, "abc"), (1, "abcd"), (None, None), ("x", "y"), (1,)],
    "pair[]": [[(1, "abc"), None, (2, None)]],
    "tsvector": ["'a':1 'b':2"],
    "tsquery": ["'a' & 'b'"],
    "json": ['{"a": 1}', "{"],
    "jsonb": ['{"a": [1, null]}', "{", '"a\\u0000b"', "null"],
    "jsonpath": ["$.a"],
    "hstore": ["a=>1, b=>NULL"],
    "citext": ["Ab"],
    "citext[]": [["Ab", "c"]],
    "ltree": ["a.b.c", "a..b"],
    "vector(3)": ["[1,2,3]", "[1,2]"],
    "oid": [5],
    "xid": [5],
    "regclass": ["pg_class"],
    "bytea[]": [[b"\x00", None], [b""]],
    "bit(3)[]": [[bits("101")], [bits("10111")]],
    "interval[]": [[dt.timedelta(days=1), None]],
    "uuid[]": [[uuid.UUID(int=5)]],
    "box[]": [[((1, 2), (3, 4))]],
    "pg_lsn": [5],
    "hstore[]": [["a=>1", None]],
}

AS_JSON: list[Any] = [
    {"a": 1, "b": [None, {"c": "ä"}]},
    [1, [2, {}], "x"],
    {},
    [],
    5,
    1.5,
    True,
]


def inserting(number: int, value: Any) -> Callable[[UnitBuilder], None]:
    return lambda u: u.insert("ours", id=number, v=value)


def updating(number: int, value: Any) -> Callable[[UnitBuilder], None]:
    return lambda u: u.update("ours", key={"id": number}, v=value)


@pytest.fixture(scope="module")
def typed_url(server_addresses: Addresses) -> Iterator[str]:
    """Lend a database that all these tests share: to make the types takes a while."""
    with database(server_addresses) as url:
        run_apart(make_types(url))
        yield url


async def make_types(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(SCHEMA)
    await connection.close()


async def make_tables(b: Bench, kind: str) -> None:
    await b.connection.execute(
        "UPDATE runner.writer SET position = '0-0'; TRUNCATE runner.ledger_1, runner.rejected"
    )
    b.office.position = "0-0"
    for table in ("ours", "plain"):
        await b.connection.execute(
            f"DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (id int PRIMARY KEY, v {kind})"
        )


async def written_plainly(b: Bench, number: int, value: Any) -> str | None:
    """Write a value as anybody would; return the error's SQLSTATE, "" for one of the client's."""
    try:
        await b.connection.execute("INSERT INTO plain VALUES ($1, $2)", number, value)
    except asyncpg.PostgresError as error:
        return error.sqlstate or ""
    return None


@pytest.mark.parametrize("kind", VALUES)
async def test_values_are_written_or_refused_as_by_plain_asyncpg(typed_url: str, kind: str) -> None:
    values = VALUES[kind]
    async with bench(typed_url) as b:
        await make_tables(b, kind)
        plain: list[str | None] = []
        units: list[Unit] = []
        for value in values:
            for each in (value, None, value):  # each also as one of many, with a NULL among them
                number = len(units) + 1
                plain.append(await written_plainly(b, number, each))
                units.append(unit(number, inserting(number, each)))
        refused = await b.apply(*units)
        ours = [refused[u.entry].sqlstate if u.entry in refused else None for u in units]
        assert ours == plain
        assert None in plain
        await compare(b)


async def compare(b: Bench) -> None:
    sql = "SELECT id, v::text FROM {} ORDER BY id"
    assert await b.rows(sql.format("ours")) == await b.rows(sql.format("plain"))


@pytest.mark.parametrize("kind", VALUES)
async def test_good_values_go_together_and_as_updates(typed_url: str, kind: str) -> None:
    async with bench(typed_url) as b:
        await make_tables(b, kind)
        good = []
        for number, value in enumerate(VALUES[kind], start=1):
            if await written_plainly(b, number, value) is None:
                good.append((number, value))
        inserts = [unit(number, inserting(number, None)) for number, _ in good]
        updates = [unit(100 + number, updating(number, value)) for number, value in good]
        assert await b.apply(*inserts, *updates) == {}
        await compare(b)


@pytest.mark.parametrize("kind", ["json", "jsonb"])
async def test_plain_data_becomes_json(typed_url: str, kind: str) -> None:
    async with bench(typed_url) as b:
        await make_tables(b, kind)
        units = []
        for number, value in enumerate(AS_JSON, start=1):
            assert await written_plainly(b, number, json.dumps(value, ensure_ascii=False)) is None
            units.append(unit(number, inserting(number, value)))
        assert await b.apply(*units) == {}
        await compare(b)
