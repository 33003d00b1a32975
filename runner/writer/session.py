"""Open the one connection that writes, take its lock, and take office on it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
import time
from typing import TYPE_CHECKING, Any

import asyncpg

from runner.errors import WriterUnavailable
from runner.writer.apply import PLANNER_SETTINGS
from runner.writer.failures import SESSION_ENDED
from runner.writer.hosts import first_of
from runner.writer.queries import query

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncpg import Connection, Record

__all__ = ["APPLICATION_NAME", "LOCK", "close", "connect", "wait_for_lock"]

logger = logging.getLogger("runner.writer")

APPLICATION_NAME = "arq-runner writer"
CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0
LOCK_POLL_S = 0.1
COMPLAIN_EVERY_S = 5.0
OLDEST_VERSION = 140_000

# Advisory locks are each database's own; the text only keeps clear of other programs' locks.
LOCK = int.from_bytes(
    hashlib.blake2b(b"arq-runner writer, schema runner", digest_size=8).digest(),
    "big",
    signed=True,
)

# A session that does not answer ends by itself, should nobody be left to end it. In the startup
# packet, so that RESET ALL gives these values back and not the server's.
_GUARDS = {
    "application_name": APPLICATION_NAME,
    "synchronous_commit": "on",
    "idle_session_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_user_timeout": "5s",
    "jit": "off",
    "row_security": "on",
    **{name: values[0] for name, values in PLANNER_SETTINGS.items()},
}
_SINCE_17 = {"transaction_timeout": "10min"}


async def connect(database_url: str) -> Connection[Record]:
    """Open a session with its guards.

    Raises:
        WriterUnavailable: something stands in between that would break the lock's promise, or
            the server is too old.
        OSError, asyncpg.PostgresError: the server cannot be reached now.
    """
    settings = {**_GUARDS, **_SINCE_17}
    connection = await first_of(
        database_url,
        lambda url, timeout_s: _open(url, settings, timeout_s),
        timeout_s=CONNECT_TIMEOUT_S,
    )
    try:
        await _check(connection)
    except BaseException:
        await close(connection)
        raise
    _watch_network(connection)
    return connection


async def close(connection: Connection[Record]) -> None:
    """Close the session, which gives its lock back; never raises."""
    try:
        await connection.close(timeout=CLOSE_TIMEOUT_S)
    except SESSION_ENDED:
        connection.terminate()


async def wait_for_lock(
    connection: Connection[Record], *, patience_s: float, is_elected: Callable[[], bool]
) -> None:
    """Take the lock; end a holder that does not give way while we are elected.

    Polls: a session that waits inside Postgres for a lock holds back cleanup everywhere.
    """
    started = complained = time.monotonic()
    while not await connection.fetchval(query("try_lock"), LOCK):
        now = time.monotonic()
        if now - started > patience_s and is_elected():
            await _end_holder(connection)
        if now - complained > COMPLAIN_EVERY_S:
            complained = now
            logger.warning("another session holds the writer's lock and does not give way")
        await asyncio.sleep(LOCK_POLL_S)


async def _end_holder(connection: Connection[Record]) -> None:
    if not await connection.fetchval(query("has_tables")):
        return
    try:
        for row in await connection.fetch(query("end_holder"), LOCK):
            logger.warning("ended the session %s of a writer that does not answer", row["pid"])
    except asyncpg.InsufficientPrivilegeError as exc:
        logger.warning("may not end the former writer's session, waiting for its guards: %s", exc)


async def _open(
    database_url: str, settings: dict[str, str], timeout_s: float
) -> Connection[Record]:
    def options(**server_settings: str) -> dict[str, Any]:
        return {
            "timeout": timeout_s,
            "target_session_attrs": "read-write",
            "server_settings": server_settings,
        }

    try:
        return await asyncpg.connect(database_url, **options(**settings))
    except asyncpg.UndefinedObjectError:  # before Postgres 17
        older = {name: value for name, value in settings.items() if name not in _SINCE_17}
        return await asyncpg.connect(database_url, **options(**older))
    except asyncpg.TargetServerAttributeNotMatched as exc:
        raise WriterUnavailable(
            "Postgres takes no writes: it is a standby, or default_transaction_read_only is on. "
            "Units wait until it does",
        ) from exc
    except asyncpg.ProtocolViolationError as exc:
        raise WriterUnavailable(
            f"the writer's settings were refused, as PgBouncer does: {exc}. Give it a "
            f"database_url that leads to Postgres itself",
        ) from exc


async def _check(connection: Connection[Record]) -> None:
    row = await connection.fetchrow(query("session"))
    assert row is not None
    if row["pid"] != connection.get_server_pid():
        raise WriterUnavailable(
            "a connection pooler such as PgBouncer stands between the writer and Postgres: the "
            "lock that makes it the only writer would not hold. Give it a database_url that "
            "leads to Postgres itself",
        )
    if row["version"] < OLDEST_VERSION:
        raise WriterUnavailable("the writer needs PostgreSQL 14 or newer")


def _watch_network(connection: Connection[Record]) -> None:
    """Notice a cut network in seconds: by default the kernel tries for a quarter of an hour."""
    transport = getattr(connection, "_transport", None)  # asyncpg has no door to its socket
    found = transport.get_extra_info("socket") if transport else None
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            ("TCP_KEEPIDLE", 2),
            ("TCP_KEEPINTVL", 1),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 5000),
        ):
            if hasattr(socket, option):
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
