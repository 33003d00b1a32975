"""Tables that change under the writer, servers without room, statements without end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from runner.writer.batch import Batch
from runner.writer.session import close, connect
from tests.integration.test_writer_support import Bench, bench, unit
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner.writer.entries import Unit

SCHEMA = """
CREATE TABLE t (id int PRIMARY KEY, s text, n int NOT NULL DEFAULT 0);
CREATE TABLE fired (n int);
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO fired VALUES (1); RETURN NULL; END $$;
"""
TRIGGER = "CREATE TRIGGER f AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION fire()"


def row(number: int, **values: Any) -> Unit:
    return unit(number, lambda u: u.insert("t", id=number, **values))


def _add(number: int, key: int, delta: int) -> Unit:
    return unit(number, lambda u: u.add("t", key={"id": key}, n=delta))


async def _elsewhere(database_url: str, sql: str) -> None:
    other = await asyncpg.connect(database_url)
    try:
        await other.execute(sql)
    finally:
        await other.close()


async def _bound(database_url: str, statement_timeout: str) -> None:
    name = database_url.rpartition("/")[2].partition("?")[0]
    sql = f"ALTER DATABASE \"{name}\" SET statement_timeout = '{statement_timeout}'"
    await _elsewhere(database_url, sql)


async def test_a_trigger_made_between_batches_fires_for_each_insert(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        assert await b.apply(row(1), row(2)) == {}
        await _elsewhere(database_url, TRIGGER)
        assert await b.apply(row(3), row(4), row(5)) == {}
        assert await b.rows("SELECT count(*) FROM fired") == [(3,)]


async def test_a_trigger_made_while_a_planned_batch_waits_is_seen(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        assert await b.apply(row(1)) == {}
        planned = b.batches.plan_ahead([row(2), row(3), row(4)])
        assert planned.steps is not None
        other = await asyncpg.connect(database_url)
        try:
            migration = other.transaction()
            await migration.start()
            await other.execute(TRIGGER)
            applying = asyncio.create_task(b.batches.apply(planned))
            await wait_until(
                lambda: other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"),
                description="the batch waits for the migration's lock",
            )
            await migration.commit()
            assert await applying == {}
        finally:
            await other.close()
        assert await b.rows("SELECT count(*) FROM fired") == [(3,)]


@pytest.mark.parametrize(
    "change",
    [
        "CREATE UNIQUE INDEX ON t (s)",
        "ALTER TABLE t ALTER COLUMN s TYPE varchar(9)",
        "CREATE TABLE child (t int REFERENCES t ON DELETE CASCADE)",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE t ADD COLUMN more int",
        "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, s text, n int)",
        "ALTER TABLE t ALTER COLUMN n DROP NOT NULL",
    ],
)
async def test_each_change_of_a_table_makes_a_batch_be_planned_again(
    database_url: str, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(database_url, SCHEMA) as b:
        assert await b.apply(row(1, s="a")) == {}
        planned = b.batches.plan_ahead([row(2, s="b"), row(3, s="c")])
        assert planned.steps is not None
        await _elsewhere(database_url, change)
        assert await _reloads(b, planned) == 1
        assert not caplog.records


async def _reloads(b: Bench, planned: Batch) -> int:
    """Apply a batch; return how often the tables were looked at again."""
    reloads = 0
    reload = b.batches.attempts.reload

    async def counted() -> None:
        nonlocal reloads
        reloads += 1
        await reload()

    b.batches.attempts.reload = counted  # type: ignore[method-assign]
    assert await b.batches.apply(planned) == {}
    return reloads


PARTED = """
CREATE TABLE parted (id int PRIMARY KEY, s text) PARTITION BY RANGE (id);
CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (100);
CREATE TABLE high PARTITION OF parted FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id);
CREATE TABLE higher PARTITION OF high FOR VALUES FROM (100) TO (150);
"""


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE more PARTITION OF parted FOR VALUES FROM (200) TO (300)",
        "CREATE TABLE more PARTITION OF high FOR VALUES FROM (150) TO (200)",
        "ALTER TABLE high DETACH PARTITION higher",
        "CREATE UNIQUE INDEX ON low (s)",
        "ALTER TABLE higher ADD CONSTRAINT short CHECK (length(s) < 9)",
        "CREATE TRIGGER f AFTER INSERT ON higher FOR EACH ROW EXECUTE FUNCTION fire()",
        "ALTER TABLE low ADD FOREIGN KEY (id) REFERENCES t",
    ],
)
async def test_each_change_of_a_partition_makes_a_batch_be_planned_again(
    database_url: str, change: str
) -> None:
    async with bench(database_url, SCHEMA + PARTED) as b:
        assert await b.apply(*map(row, range(1, 5)), _parted(11)) == {}
        planned = b.batches.plan_ahead([_parted(12), _parted(13)])
        assert planned.steps is not None
        await _elsewhere(database_url, change)
        assert await _reloads(b, planned) == 1
        assert await b.rows("SELECT count(*) FROM parted") == [(3,)]


def _parted(number: int) -> Unit:
    return unit(number, lambda u: u.insert("parted", id=number - 10, s=f"s{number}"))


async def test_maintenance_changes_nothing(database_url: str) -> None:
    async with bench(database_url, SCHEMA) as b:
        assert await b.apply(row(1)) == {}
        known = b.batches.attempts.catalogue.known([row(2)])
        await _elsewhere(database_url, "ANALYZE t")
        await _elsewhere(database_url, "VACUUM t")
        assert await b.batches.apply(Batch([row(2)])) == {}
        assert b.batches.attempts.catalogue.known([row(3)]) is known


FULL = """
CREATE TABLE disk (is_full bool);
INSERT INTO disk VALUES (true);
CREATE FUNCTION full_() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF (SELECT is_full FROM disk) THEN RAISE 'could not extend file' USING ERRCODE = '53100'; END IF;
  RETURN NEW; END $$;
"""


@pytest.mark.parametrize("state", ["53100", "53200", "53000"])
async def test_a_unit_that_says_that_the_disk_is_full_is_refused_alone(
    database_url: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.writer.attempts.SOONEST_RETRY_S", 0.001)
    async with bench(database_url, SCHEMA) as b:
        await b.connection.execute(
            "CREATE FUNCTION bad() RETURNS int LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE 'no room' USING ERRCODE = '{state}'; END $$"
        )
        bad = unit(2, lambda u: u.execute("SELECT bad()"))
        refused = await b.apply(row(1), bad, row(3))
        assert {entry: why.sqlstate for entry, why in refused.items()} == {"2-0": state}
        assert await b.rows("SELECT id FROM t ORDER BY id") == [(1,), (3,)]
        assert await b.rows("SELECT entry FROM runner.rejected") == [("2-0",)]


async def test_a_server_without_room_refuses_nobody(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runner.writer.attempts.SOONEST_RETRY_S", 0.001)
    monkeypatch.setattr("runner.writer.attempts.LATEST_RETRY_S", 0.01)
    monkeypatch.setattr("runner.writer.batch.LATEST_RETRY_S", 0.01)
    async with bench(database_url, SCHEMA + FULL) as b:
        for table in ("t", "runner.rejected"):
            await b.connection.execute(
                f"CREATE TRIGGER f BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION full_()"
            )
        applying = asyncio.create_task(b.apply(row(1), row(2), row(3)))
        await wait_until(lambda: "has no room" in caplog.text, description="the writer waits")
        await _elsewhere(database_url, "UPDATE disk SET is_full = false")
        assert await applying == {}
        assert await b.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,), (3,)]
        assert await b.rows("SELECT count(*) FROM runner.rejected") == [(0,)]


async def test_the_session_bounds_a_statement_where_the_database_does_not(
    database_url: str,
) -> None:
    connection = await connect(database_url, statement_timeout_s=1.5)
    try:
        await connection.execute("SET statement_timeout TO 0; RESET ALL")
        assert await connection.fetchval("SHOW statement_timeout") == "1500ms"
    finally:
        await close(connection)
    await _bound(database_url, "70s")
    connection = await connect(database_url, statement_timeout_s=1.5)
    try:
        assert await connection.fetchval("SHOW statement_timeout") == "70s"
    finally:
        await close(connection)


async def test_a_table_that_is_locked_while_it_is_first_met_refuses_nobody(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(database_url, SCHEMA + "SET lock_timeout = '20ms'") as b:
        other = await asyncpg.connect(database_url)
        try:
            migration = other.transaction()
            await migration.start()
            await other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            applying = asyncio.create_task(b.apply(row(1), row(2)))
            await wait_until(
                lambda: "lock timeout" in caplog.text or applying.done(),
                description="the table was asked for, and not told of",
            )
            await migration.rollback()
            assert await applying == {}
        finally:
            await other.close()


async def test_an_endless_statement_is_found_without_halves(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(database_url, SCHEMA + "SET statement_timeout = '200ms'") as b:
        tried = 0
        commit = b.batches.attempts.applier.commit

        async def counted(*args: Any, **named: Any) -> dict[str, bytes]:
            nonlocal tried
            tried += 1
            return await commit(*args, **named)

        monkeypatch.setattr(b.batches.attempts.applier, "commit", counted)
        endless = unit(40, lambda u: u.execute("SELECT pg_sleep(60)"))
        refused = await b.apply(*map(row, range(1, 40)), endless, *map(row, range(41, 65)))
        assert {entry: why.sqlstate for entry, why in refused.items()} == {"40-0": "57014"}
        assert await b.rows("SELECT count(*) FROM t") == [(63,)]
        # All; those before it, it, its refusal, those behind.
        assert tried == 5


async def test_a_row_that_another_session_locks_refuses_its_unit_alone(database_url: str) -> None:
    async with bench(database_url, SCHEMA + "SET statement_timeout = '200ms'") as b:
        assert await b.apply(row(1), row(2)) == {}
        other = await asyncpg.connect(database_url)
        try:
            holding = other.transaction()
            await holding.start()
            await other.execute("UPDATE t SET n = 9 WHERE id = 1")
            adds = [_add(n, 1 if n == 4 else 2, 1) for n in range(3, 9)]
            assert list(await b.apply(*adds)) == ["4-0"]
            await holding.rollback()
        finally:
            await other.close()
        assert await b.rows("SELECT n FROM t ORDER BY id") == [(0,), (5,)]


async def test_a_table_that_is_known_by_two_names_is_not_half_known(database_url: str) -> None:
    """What is known by the one is from before the change, what by the other from behind it."""
    async with bench(database_url, SCHEMA) as b:
        assert await b.apply(row(1), row(2)) == {}
        await _elsewhere(database_url, TRIGGER)
        other = [unit(n, lambda u, n=n: u.insert("public.t", id=n)) for n in (5, 6)]  # type: ignore[misc]
        assert await b.apply(row(3), row(4), *other) == {}
        assert await b.rows("SELECT count(*) FROM fired") == [(4,)]


RUN = """
CREATE FUNCTION run(sql text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE sql; END $$;
"""


@pytest.mark.parametrize("first", ["TRUNCATE t", "SELECT run('ALTER TABLE t ADD COLUMN x int')"])
async def test_a_unit_that_changes_a_table_of_its_batch_refuses_nobody(
    database_url: str, first: str
) -> None:
    async with bench(database_url, SCHEMA + RUN) as b:
        changing = unit(3, lambda u: u.execute(first), lambda u: u.insert("t", id=3))
        assert await b.apply(row(1), row(2), changing, row(4), row(5)) == {}
        there = (3, 4, 5) if first.startswith("TRUNCATE") else (1, 2, 3, 4, 5)
        assert await b.rows("SELECT id FROM t ORDER BY id") == [(n,) for n in there]
        assert await b.apply(row(6)) == {}


# One after the other, under a writer that goes on; each leaves `t` so that all its units pass.
MIGRATIONS = [
    "ALTER TABLE t ADD COLUMN more int NOT NULL DEFAULT 7",
    "ALTER TABLE t ALTER COLUMN n TYPE bigint",
    "ALTER TABLE t ALTER COLUMN n TYPE numeric(12, 2)",
    "CREATE UNIQUE INDEX t_s ON t (s)",
    "DROP INDEX t_s",
    "ALTER TABLE t RENAME TO tt; ALTER TABLE tt RENAME TO t",
    """
    BEGIN; ALTER TABLE t RENAME TO old; CREATE TABLE t (LIKE old INCLUDING ALL);
    INSERT INTO t SELECT * FROM old; COMMIT
    """,
    "ALTER TABLE t DROP COLUMN more",
    "ALTER TABLE t ADD CONSTRAINT small CHECK (n < 1000000)",
    "ALTER TABLE t DROP CONSTRAINT t_pkey1, ADD PRIMARY KEY (id)",
    "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE t DISABLE ROW LEVEL SECURITY",
    "CREATE TABLE child (t int REFERENCES t ON DELETE CASCADE)",
    "DROP TABLE child",
    "CREATE TRIGGER each_row AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION told()",
]
LIVE = """
CREATE TABLE told (seq serial, id int);
CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO told (id) VALUES (NEW.id); RETURN NULL; END $$;
"""


async def test_migrations_under_a_writer_at_work_lose_and_double_nothing(
    database_url: str,
) -> None:
    """Batches go on while another session changes their table in fifteen ways."""
    async with bench(database_url, SCHEMA + LIVE) as b:
        count = 0
        ends: list[int] = []

        async def next_batch() -> None:
            nonlocal count
            units = []
            for _ in range(20):
                count += 1
                units.append(
                    unit(
                        count,
                        lambda u, n=count: u.insert("t", id=n, s=f"s{n}"),  # type: ignore[misc]
                        lambda u: u.upsert("t", {"id": 0, "s": "sum"}, update=[]),
                        lambda u: u.add("t", key={"id": 0}, n=1),
                    )
                )
            assert await b.apply(*units) == {}

        await next_batch()
        for sql in MIGRATIONS:
            migrating = asyncio.create_task(_migrate(database_url, sql))
            while not migrating.done():
                await next_batch()
            await migrating
            ends.append(count)
            await next_batch()
        ids = [n for (n,) in await b.rows("SELECT id FROM t WHERE id > 0 ORDER BY id")]
        assert ids == list(range(1, count + 1))
        assert await b.rows("SELECT n::int FROM t WHERE id = 0") == [(count,)]
        told = [n for (n,) in await b.rows("SELECT id FROM told WHERE id > 0 ORDER BY seq")]
        assert told == list(range(told[0], count + 1))
        assert told[0] <= ends[-1] + 1


async def _migrate(database_url: str, sql: str) -> None:
    """Change the tables as a migration does: again, where it met a deadlock."""
    for _ in range(50):
        try:
            await _elsewhere(database_url, sql)
        except asyncpg.DeadlockDetectedError:
            continue
        return
    raise AssertionError(f"never got through: {sql}")


async def test_a_locked_row_is_found_at_once_in_a_large_batch(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by waiting in vain for each half; and who else wants that row waits but a moment."""
    monkeypatch.setattr("runner.writer.batch.HURRY_MS", 20)
    await _bound(database_url, "300ms")
    async with bench(database_url, SCHEMA) as b:
        assert await b.apply(*map(row, range(1, 65))) == {}
        states: list[str] = []
        commit = b.batches.attempts.applier.commit

        async def noted(*args: Any, **named: Any) -> dict[str, bytes]:
            try:
                return await commit(*args, **named)
            except asyncpg.PostgresError as exc:
                states.append(exc.sqlstate or "")
                raise

        monkeypatch.setattr(b.batches.attempts.applier, "commit", noted)
        async with _holding(database_url, "UPDATE t SET n = 9 WHERE id = 40"):
            keys = [40 if n in (104, 130, 150) else n % 30 + 1 for n in range(100, 164)]
            refused = await b.apply(*(_add(n, key, 1) for n, key in enumerate(keys, start=100)))
        assert {entry: why.sqlstate for entry, why in refused.items()} == {
            "104-0": "57014",
            "130-0": "55P03",
            "150-0": "55P03",
        }
        assert states.count("57014") == 2  # all of them, and the first of that row
        assert await b.rows("SELECT sum(n) FROM t") == [(61,)]
        assert await b.rows("SHOW lock_timeout") == [("0",)]


@pytest.mark.parametrize(
    ("lock", "raw"),
    [
        ("LOCK TABLE t IN ACCESS EXCLUSIVE MODE", False),
        ("LOCK TABLE t IN SHARE MODE", False),  # as to make an index does
        ("LOCK TABLE t IN SHARE MODE", True),
        ("LOCK TABLE parent IN ACCESS EXCLUSIVE MODE", False),
    ],
)
async def test_a_table_that_is_locked_for_longer_than_a_statement_may_take_refuses_nobody(
    database_url: str, caplog: pytest.LogCaptureFixture, lock: str, *, raw: bool
) -> None:
    parent = "CREATE TABLE parent (id int PRIMARY KEY); ALTER TABLE t ADD p int REFERENCES parent;"
    await _bound(database_url, "200ms")
    async with bench(database_url, f"{SCHEMA}{parent} INSERT INTO parent VALUES (1)") as b:
        assert await b.apply(row(1)) == {}
        units = [
            unit(n, lambda u, n=n: u.execute("INSERT INTO T (id) VALUES ($1)", n))  # type: ignore[misc]
            if raw
            else row(n, p=1)
            for n in (2, 3, 4)
        ]
        async with _holding(database_url, lock):
            applying = asyncio.create_task(b.apply(*units))
            await wait_until(
                lambda: caplog.text.count("is locked by the session") >= 2 or applying.done(),
                description="the writer says who keeps it out",
            )
        assert await applying == {}
        assert await b.rows("SELECT count(*) FROM t") == [(4,)]


@contextlib.asynccontextmanager
async def _holding(database_url: str, sql: str) -> AsyncIterator[None]:
    """Hold the locks that a statement takes, in another session."""
    other = await asyncpg.connect(database_url)
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(sql)
        yield
        await transaction.rollback()
    finally:
        await other.close()
