"""Tell whose fault an error of Postgres is: the unit's, the schema's, the server's, or ours."""

from __future__ import annotations

from typing import Any

import asyncpg

from runner.errors import WriteRejected

__all__ = [
    "DUPLICATE",
    "FENCED",
    "LOCKED",
    "MISSING",
    "PASSED",
    "READ_ONLY",
    "SESSION_ENDED",
    "UNPREPARED",
    "BadValue",
    "Fenced",
    "is_about_data",
    "is_duplicate",
    "is_stale",
    "may_be_raised",
    "rejection",
    "shape_of",
]

# SQLSTATEs of our own, raised by runner.expect in the statement that applies a batch.
FENCED, MISSING, DUPLICATE, PASSED = "RNF01", "RNM01", "RND01", "RNP01"
READ_ONLY = "25006"
LOCKED = "55P03"
UNPREPARED = "26000"
OUT_OF_MEMORY = "53200"  # of shared memory, too: more locks than there is room for

SESSION_ENDED = (
    *(OSError, TimeoutError),
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
)
"""What a call on a session raises when the server or the network has ended it.

asyncpg calls a statement on a session that the server has just ended its own internal error.
"""

_STALE = frozenset(
    {"0A000", "XX000", "22000", UNPREPARED, "42P01", "42703", "42704", "42804", "42883"}
)


class Fenced(Exception):  # noqa: N818  not a failure: another candidate has been elected
    """Raised when the position row says that another term has begun."""


class BadValue(Exception):  # noqa: N818  becomes a rejection, never seen by users
    """Raised when a value cannot be written as its column's type, before Postgres sees it.

    Attributes:
        place: the statement and the row that holds the value, once that is known.
    """

    place: Any = None


def is_about_data(exc: asyncpg.PostgresError) -> bool:
    """Say whether an error may be a unit's own fault.

    The other classes tell of the connection, of concurrency, of resources or of the server, as
    does a lock that was not given within `lock_timeout`. But a statement that took too long, or
    used up its limit of temporary files, is about itself. What tells of a connection's end and
    does not end it was raised by somebody's function.
    """
    state = exc.sqlstate or ""
    if state in ("57014", "53400"):
        return True
    if state.startswith(("08", "57P0")):
        return getattr(exc, "severity_en", None) == "ERROR"
    return not state.startswith(("40", "53", "58")) and state not in (READ_ONLY, LOCKED)


def may_be_raised(exc: BaseException) -> bool:
    """Say whether an error that tells of the server may come from a unit after all.

    A trigger may raise any SQLSTATE, a file that a function reads may be missing, a unit may ask
    for a lock that it never gets, a batch may touch more partitions than there is room for locks.
    So after some tries the unit is looked for; what tells of full disks is waited for.
    """
    return isinstance(exc, asyncpg.PostgresError) and exc.sqlstate.startswith(
        ("40", "58", LOCKED, OUT_OF_MEMORY)
    )


def rejection(exc: BaseException, statement: str = "") -> WriteRejected:
    """Say why a unit was refused, in the words of Postgres or of asyncpg."""

    def fact(name: str) -> str:
        return str(getattr(exc, name, None) or "")

    return WriteRejected(
        str(exc) or type(exc).__name__,
        sqlstate=fact("sqlstate") if isinstance(exc, asyncpg.PostgresError) else "",
        table=fact("table_name"),
        constraint=fact("constraint_name"),
        detail=fact("detail"),
        statement=statement[:1000],
    )


def is_stale(exc: BaseException) -> bool:
    """Say whether an error may come from knowing a table as it was before a migration."""
    return isinstance(exc, asyncpg.PostgresError) and exc.sqlstate in _STALE


def was_told_by_server(exc: BaseException) -> bool:
    """Say whether an error came from Postgres, and not from asyncpg's encoding of a value."""
    return isinstance(exc, asyncpg.PostgresError) and getattr(exc, "severity", None) is not None


def is_duplicate(exc: BaseException) -> bool:
    """Say whether an error means that the ledger knows the unit already."""
    if not isinstance(exc, asyncpg.PostgresError):
        return False
    if exc.sqlstate == DUPLICATE:
        return True
    table = getattr(exc, "table_name", None) or ""
    schema = getattr(exc, "schema_name", None)
    return exc.sqlstate == "23505" and schema == "runner" and table.startswith("ledger_")


def shape_of(value: Any) -> str:
    """Return the class of a value, and its size where it has one; nothing of the value itself."""
    name = type(value).__name__
    return f"{name}({len(value)})" if isinstance(value, str | bytes | list | dict) else name
