"""The database as services see it: writes that return when they are committed, by the one writer.

Only Redis is needed here: the process that holds the connection to Postgres is the writer's.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any
from uuid import UUID

from runner import keys
from runner.codec import codec_named
from runner.connection import open_client, settings_of
from runner.errors import ArgumentsError, UnitError, WriterBacklogFull
from runner.middleware import all_of, check
from runner.tasks import seconds
from runner.writer import UnitBuilder, writer_status
from runner.writer.answers import Answer, Answers
from runner.writer.submit import OURS, SentUnit, Submitter

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from decimal import Decimal
    from types import TracebackType
    from typing import Self

    from arq.connections import RedisSettings

    from runner.client import Client
    from runner.middleware import Middleware
    from runner.types import WriterStatus
    from runner.writer.units import Missing

__all__ = ["Answer", "Database", "DirectUnit", "Writes", "database"]

TIMEOUT_S = 60.0
FULL_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
MAX_UNIT_BYTES = 16 * 1024 * 1024
MAX_ID_LENGTH = 200


class Writes:
    """Writes that are units of their own, each committed, or refused, when its call returns.

    Every method raises, of what can happen to a unit:

    - `UnitError`: the operation cannot be written down; nothing was submitted.
    - `WriteRejected`: Postgres refused it, and says why.
    - `WriterBacklogFull`: too much waits for the writer; nothing was submitted.
    - `CommitTimeout`: the time is up, and the unit still on its way; it carries the unit's id.
    - `WriterUnavailable`: Redis refuses it, or the database was closed.

    A caller that is cancelled leaves its unit where it is: it may be applied. Calls that one
    task makes one after another, and units that it submits, are applied in that order.
    """

    def __init__(self, submitter: Submitter, timeout_s: float | None) -> None:
        self._submitter = submitter
        self._timeout_s = timeout_s

    def within(self, timeout: float | dt.timedelta | None) -> Writes:
        """Return the same with another time limit: ``await db.within(2).insert(…)``.

        Args:
            timeout: seconds that a call may take; None: as long as it takes.
        """
        return Writes(self._submitter, _time_limit(timeout))

    async def insert(self, table: str, /, **row: Any) -> None:
        """Insert one row; columns that are not named take their defaults."""
        unit = UnitBuilder()
        unit.insert(table, **row)
        await self._commit(unit)

    async def insert_many(self, table: str, rows: Iterable[Mapping[str, Any]], /) -> None:
        """Insert rows, all or none; rows may differ in the columns they name."""
        unit = UnitBuilder()
        unit.insert_many(table, rows)
        await self._commit(unit)

    async def upsert(
        self,
        table: str,
        row: Mapping[str, Any],
        /,
        *,
        key: Sequence[str] = ("id",),
        update: Sequence[str] | None = None,
    ) -> None:
        """Insert a row, or overwrite columns of the row that has this key."""
        unit = UnitBuilder()
        unit.upsert(table, row, key=key, update=update)
        await self._commit(unit)

    async def add(
        self,
        table: str,
        /,
        *,
        key: Mapping[str, Any],
        missing: Missing = "reject",
        **deltas: float | Decimal | dt.timedelta,
    ) -> None:
        """Add to columns of the row with this key: a counter."""
        unit = UnitBuilder()
        unit.add(table, key=key, missing=missing, returning=False, **deltas)
        await self._commit(unit)

    async def update(self, table: str, /, *, key: Mapping[str, Any], **values: Any) -> None:
        """Set columns of the rows with this key; no such row is no error, as in SQL."""
        unit = UnitBuilder()
        unit.update(table, key=key, **values)
        await self._commit(unit)

    async def delete(self, table: str, /, *, key: Mapping[str, Any]) -> None:
        """Delete the rows with this key; no such row is no error, as in SQL."""
        unit = UnitBuilder()
        unit.delete(table, key=key)
        await self._commit(unit)

    async def execute(self, sql: str, /, *args: Any) -> None:
        """Run one SQL statement with its arguments ``$1, $2…``."""
        unit = UnitBuilder()
        unit.execute(sql, *args)
        await self._commit(unit)

    def unit(self, *, id: str | UUID | None = None, wait: bool = True) -> DirectUnit:  # noqa: A002  what it is
        """Collect several writes that commit together.

        Example::

            async with db.unit() as unit:
                unit.insert("orders", id=7, total=Decimal("9.90"))
                unit.add("stock", key={"sku": "tea"}, qty=-1)

        Submitted at the end of the block, or discarded when the block raised.

        Args:
            id: names the unit, for a caller that may have to ask again, after a crash or a
                timeout: while it is remembered (10 minutes), a unit with this id is applied
                once, and each who submits it gets the same answer.
            wait: False: the block ends when the unit is in the stream, and nobody waits for
                the commit; `DirectUnit.commit` may do so later.
        """
        return DirectUnit(self._submitter, self._timeout_s, unit_id=_unit_id(id), wait=wait)

    async def _commit(self, unit: UnitBuilder) -> None:
        submitter = self._submitter
        sent = SentUnit(
            submitter,
            submitter.new_id() + OURS,
            _encoded(unit),
            timeout_s=self._timeout_s,
        )
        submitter.send(sent)
        await sent.future


class DirectUnit(UnitBuilder):
    """Writes of a service that will commit together, exactly once, or not at all.

    Made by `Database.unit`.
    """

    def __init__(
        self,
        submitter: Submitter,
        timeout_s: float | None,
        *,
        unit_id: str | None,
        wait: bool,
    ) -> None:
        super().__init__()
        self._submitter = submitter
        self._timeout_s = timeout_s
        self._is_named = unit_id is not None
        self._waits = wait
        self._entry = ""
        self._answer = Answer("")
        self._is_sent = False
        self.id = unit_id or submitter.new_id()
        """The unit's id, to submit it again under."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.clear()
        elif self._waits:
            await self.commit()
        else:
            await self.submit()

    async def submit(self) -> str:
        """Put the unit into the stream; return its entry's id, "" when there is nothing in it.

        From then on it will be applied, whatever becomes of this process.
        """
        if not self._is_sent and len(self):
            self._entry = await self._send(waits=False)
        return self._entry

    async def commit(self) -> Answer:
        """Return when the unit is committed; submit it first, unless that was done.

        Raises:
            WriteRejected: Postgres refused it.
            CommitTimeout: the time is up; the unit is still on its way.
            WriterBacklogFull: too much waits for the writer; nothing was submitted.
        """
        if self._answer.entry:
            return self._answer
        if self._entry:
            return await self._submitter.answers.wait(self._entry, timeout_s=self._timeout_s)
        if not len(self):
            return Answer("")
        await self._send(waits=True)
        return self._answer

    async def _send(self, *, waits: bool) -> str:
        if self._is_sent:
            raise UnitError(f"the unit {self.id} was submitted before; begin another")
        operations = _encoded(self)
        sent = SentUnit(
            self._submitter,
            self.id + OURS,
            operations,
            digest=_digest(operations) if self._is_named else "",
            waits=waits,
            timeout_s=self._timeout_s,
        )
        self._is_sent = True
        self._submitter.send(sent)
        try:
            answer = await sent.future
        except WriterBacklogFull:
            self._is_sent = False  # nothing was submitted: the caller may try again
            raise
        if waits:
            self._answer = answer or Answer(sent.entry)
        return sent.entry


class Database(Writes):
    """A service's end of the writer. Made by `database`.

    Thousands of concurrent callers share round trips::

        async with runner.database("redis://localhost") as db:
            await db.insert("orders", id=7, total=Decimal("9.90"))
    """

    def __init__(
        self,
        redis: Client,
        *,
        timeout_s: float | None = TIMEOUT_S,
        full_timeout_s: float = FULL_TIMEOUT_S,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self._redis = redis
        self._answers = Answers(redis)
        super().__init__(
            Submitter(
                redis,
                self._answers,
                full_timeout_s=full_timeout_s,
                traceparent=_tracer(middleware),
            ),
            timeout_s,
        )

    async def status(self) -> WriterStatus:
        """Read the writer's position, backlog and counts."""
        return await writer_status(self._redis)

    async def close(self) -> None:
        """Send what was handed over, let those who wait go, and disconnect. Idempotent."""
        await self._submitter.close(timeout_s=CLOSE_TIMEOUT_S)
        await self._answers.close()
        await self._redis.aclose()


class Opening:
    """The value of `database`: enter it with ``async with``."""

    def __init__(
        self,
        settings: RedisSettings,
        timeout_s: float | None,
        full_timeout_s: float,
        middleware: tuple[Middleware, ...] = (),
    ) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._full_timeout_s = full_timeout_s
        self._middleware = middleware
        self._database: Database | None = None

    async def __aenter__(self) -> Database:
        # Units are written down in a form of their own: the codec is for jobs.
        redis = await open_client(
            self._settings, codec=codec_named("msgpack"), queue=keys.DEFAULT_QUEUE
        )
        self._database = Database(
            redis,
            timeout_s=self._timeout_s,
            full_timeout_s=self._full_timeout_s,
            middleware=self._middleware,
        )
        return self._database

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        database, self._database = self._database, None
        if database is not None:
            await database.close()


def database(
    redis: str | RedisSettings = "redis://localhost:6379",
    *,
    timeout: float | dt.timedelta | None = TIMEOUT_S,
    full_timeout: float | dt.timedelta = FULL_TIMEOUT_S,
    middleware: Sequence[Middleware] = (),
) -> Opening:
    """Open the database through the writer, with nothing but Redis at hand.

    Args:
        redis: a URL (``redis://``, ``rediss://``, ``unix://``) or arq's `RedisSettings`.
        timeout: seconds that a call may take; None: as long as it takes. A unit that was
            not committed by then is still on its way.
        full_timeout: seconds that a call waits while too much waits for the writer.
        middleware: what traces writes (`runner.traces.Tracing`); the rest of it is for jobs.

    Example:
        >>> async with runner.database("redis://localhost") as db:
        ...     await db.execute("UPDATE shops SET seen = now() WHERE id = $1", 7)
        ...     async with db.unit() as unit:
        ...         unit.insert("orders", id=7, total=Decimal("9.90"))
        ...         unit.add("stock", key={"sku": "tea"}, qty=-1)

    Raises:
        SettingsError: the address is none, or the middleware.
        ArgumentsError: a time limit makes no sense.
    """
    settings = settings_of(redis) if isinstance(redis, str) else redis
    full_timeout_s = _time_limit(full_timeout)
    assert full_timeout_s is not None
    return Opening(settings, _time_limit(timeout), full_timeout_s, check(middleware))


def _tracer(middleware: Sequence[Middleware]) -> Callable[[], str] | None:
    """Return what says to which trace a unit belongs, None where nobody does."""
    found = all_of(middleware, "traceparent")
    if not found:
        return None
    return lambda: next(filter(None, (traceparent() for traceparent in found)), "")


def _unit_id(given: str | UUID | None) -> str | None:
    if given is None:
        return None
    text: Any = str(given) if isinstance(given, UUID) else given
    if not isinstance(text, str) or not 0 < len(text) <= MAX_ID_LENGTH or not text.isprintable():
        raise UnitError(
            f"a unit's id is a UUID or a text of up to {MAX_ID_LENGTH} printable characters, "
            f"not {given!r:.60}"
        )
    return text.removesuffix(OURS)


def _time_limit(timeout: float | dt.timedelta | None) -> float | None:
    limit = seconds(timeout)
    if limit is not None and not 0 < limit < math.inf:
        raise ArgumentsError(f"a time limit is a number of seconds above 0, not {timeout!r}")
    return limit


def _encoded(unit: UnitBuilder) -> bytes:
    operations = unit.encode()
    if len(operations) > MAX_UNIT_BYTES:
        raise UnitError(
            f"the unit takes {len(operations):,} bytes, more than the {MAX_UNIT_BYTES:,} allowed: "
            f"write in several units"
        )
    return operations


def _digest(operations: bytes) -> str:
    return hashlib.blake2b(operations, digest_size=16).hexdigest()
