"""Postgres is away, in each way that it can be: units wait, and all are applied when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import pytest

from runner import Context, connect, task
from runner.writer import writer_status
from runner.writer.session import APPLICATION_NAME
from tests.engine import serving
from tests.integration.test_writer_support import LASTING, Engine, engine, unit_of, writing
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from runner.writer import UnitBuilder
    from tests.servers import ChaosServers

pytestmark = pytest.mark.lasting_keys(*LASTING)

SCHEMA = """
CREATE TABLE log (id bigserial PRIMARY KEY, number int UNIQUE);
CREATE TABLE total (name text PRIMARY KEY, n bigint NOT NULL);
INSERT INTO total VALUES ('x', 0);
"""
MANY = 60


def noting(number: int) -> UnitBuilder:
    return unit_of(
        lambda u: u.insert("log", number=number), lambda u: u.add("total", key={"name": "x"}, n=1)
    )


async def admin_of(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(urlsplit(url)._replace(path="/postgres").geturl())


@contextlib.asynccontextmanager
async def stopped(servers: ChaosServers, *, kill: bool) -> AsyncIterator[None]:
    await servers.stop_postgres(kill=kill)
    yield
    await servers.start_postgres()


@contextlib.asynccontextmanager
async def closed_by_hba(servers: ChaosServers) -> AsyncIterator[None]:
    """Refuse everyone who comes by pg_hba.conf; Postgres itself runs."""
    admin = await admin_of(servers.database_url)
    file = await admin.fetchval("SHOW hba_file")
    before = _replace(file, "host all all 127.0.0.1/32 reject\n")
    await admin.execute("SELECT pg_reload_conf()")
    await _end_writers(admin)
    yield
    _replace(file, before)
    await admin.execute("SELECT pg_reload_conf()")
    await admin.close()


def _replace(name: str, text: str) -> str:
    file = Path(name)
    before = file.read_text("utf-8")
    file.write_text(text, "utf-8")
    return before


@contextlib.asynccontextmanager
async def full(servers: ChaosServers) -> AsyncIterator[None]:
    """Let others take every connection that there is, and end the writer's."""
    admin = await admin_of(servers.database_url)
    others: list[asyncpg.Connection] = []
    ended = True
    while ended:  # until others have what was the writer's: it comes back at once
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                others.append(await asyncpg.connect(servers.database_url))
        ended = await admin.fetchval(
            "SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity "
            "WHERE application_name = $1",
            APPLICATION_NAME,
        )
    yield
    for other in others:
        await other.close()
    await admin.close()


@contextlib.asynccontextmanager
async def read_only(servers: ChaosServers) -> AsyncIterator[None]:
    """Make every new transaction read-only, as an operator does in an emergency."""
    admin = await admin_of(servers.database_url)
    await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await admin.execute("SELECT pg_reload_conf()")
    await _writes_fail(servers.database_url)
    yield
    await admin.execute("SET default_transaction_read_only = off")
    await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
    await admin.execute("SELECT pg_reload_conf()")
    await admin.close()


@contextlib.asynccontextmanager
async def standby_in_its_place(servers: ChaosServers) -> AsyncIterator[None]:
    """Let a server that still recovers answer at the address, as while a failover is under way."""
    admin = await admin_of(servers.database_url)
    signal = Path(await admin.fetchval("SHOW data_directory")) / "standby.signal"
    await admin.close()
    await servers.stop_postgres()
    signal.touch()
    await servers.start_postgres()
    admin = await admin_of(servers.database_url)
    assert await admin.fetchval("SELECT pg_is_in_recovery()")
    yield
    assert await admin.fetchval("SELECT pg_promote()")
    await admin.close()


async def _end_writers(admin: asyncpg.Connection) -> None:
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )


async def _writes_fail(database_url: str) -> None:
    async def is_read_only() -> bool:
        database = await asyncpg.connect(database_url)
        try:
            return bool(await database.fetchval("SHOW transaction_read_only") == "on")
        finally:
            await database.close()

    _: bool = await wait_until(is_read_only, description="new transactions are read-only")


AWAY: dict[str, Callable[[ChaosServers], contextlib.AbstractAsyncContextManager[None]]] = {
    "stopped": lambda servers: stopped(servers, kill=False),
    "killed": lambda servers: stopped(servers, kill=True),
    "refusing": closed_by_hba,
    "full": full,
    "read-only": read_only,
    "a standby": standby_in_its_place,
}


@pytest.mark.parametrize("way", AWAY)
async def test_units_wait_and_are_applied_when_postgres_is_back(
    chaos_servers: ChaosServers, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    caplog.set_level(logging.INFO, "runner.writer")
    servers = chaos_servers
    async with (
        engine(servers.redis_url, servers.database_url, SCHEMA) as e,
        writing(e.candidate()) as candidate,
    ):
        await e.answered(await e.submit("j0", noting(0)))
        last = ""
        async with AWAY[way](servers):
            for number in range(1, MANY):
                last = await e.submit(f"j{number}", noting(number))
            await _complains(e, caplog)
            assert "a fault of its own" not in caplog.text
            status = await writer_status(e.redis)
            assert status.backlog == MANY - 1
            assert status.rejected == 0
            assert status.lag_s > 0
        await e.answered(last, timeout_s=30)
        await wait_until(lambda: candidate.leading, description="it leads")
    database = await asyncpg.connect(servers.database_url)
    assert [row["number"] for row in await database.fetch("SELECT * FROM log ORDER BY id")] == [
        *range(MANY)
    ]
    assert await database.fetchval("SELECT n FROM total") == MANY
    await database.close()


async def _complains(e: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Wait until the writer has tried again and again."""
    await wait_until(
        lambda: sum(record.levelno >= logging.WARNING for record in caplog.records) >= 3,
        description=f"the writer of {e.database_url} says that it cannot write",
        timeout_s=20,
    )


@task(name="notes")
async def notes(ctx: Context, number: int) -> int:
    ctx.db.insert("log", number=number)
    ctx.db.add("total", key={"name": "x"}, n=1)
    return number


@task(name="idles")
async def idles(_: Context, number: int) -> int:
    return number


async def test_workers_go_on_while_postgres_restarts(chaos_servers: ChaosServers) -> None:
    servers = chaos_servers
    database = await asyncpg.connect(servers.database_url)
    await database.execute(SCHEMA)
    await database.close()
    settings = {"database_url": servers.database_url}
    async with (
        connect(servers.redis_url) as client,
        serving(servers.redis_url, [notes, idles], **settings),
    ):
        assert await (await client.enqueue(notes, 0)).result(timeout=20) == 0
        await servers.stop_postgres(kill=True)
        writing_jobs = [await client.enqueue(notes, number) for number in range(1, MANY)]
        others = [await client.enqueue(idles, number) for number in range(MANY)]
        # Jobs that write nothing end, those that write are done but for their commit.
        assert await asyncio.gather(*(job.result(timeout=20) for job in others)) == [*range(MANY)]

        async def all_wait() -> bool:
            return (await client.writer_status()).backlog == MANY - 1

        _: bool = await wait_until(all_wait, description="all units wait")
        await servers.start_postgres()
        results = await asyncio.gather(*(job.result(timeout=30) for job in writing_jobs))
        assert results == [*range(1, MANY)]
        assert (await client.writer_status()).backlog == 0
