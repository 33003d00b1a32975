"""Look through the job log."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from runner import writer as writers
from runner.errors import ArgumentsError, JobNotFound, WriterUnavailable
from runner.joblog import rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from types import TracebackType

__all__ = ["JobLog", "LoggedJob"]

MOST_AT_ONCE = 10_000
NO_TABLE = "42P01"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedJob:
    """A job that ended.

    Attributes:
        outcome: of its last attempt, as in `Outcome`; "retried" stands for an attempt whose writes
            Postgres refused, and that was followed by another.
        attempt: the number of that attempt.
        started_at: when that attempt began; None for one that never ran.
        error_type: the class of what it raised, or "".
        error: what that says, cut after 2,000 characters.
        arguments: what it was called with, by name or place, cut to a few thousand characters.
        worker: who ran it.
    """

    job_id: str
    ended_at: datetime
    task: str
    queue: str
    outcome: str
    attempt: int
    enqueued_at: datetime | None
    started_at: datetime | None
    error_type: str
    error: str
    arguments: dict[str, Any]
    worker: str


_COLUMNS = ", ".join(field.name for field in fields(LoggedJob))


class JobLog:
    """The jobs that ended, in Postgres: what workers with ``job_log = True`` leave there.

    Example:
        >>> async with runner.JobLog("postgresql://localhost/shop") as log:
        ...     for job in await log.search(task="pay", error="card", limit=20):
        ...         print(job.ended_at, job.error, job.arguments)
    """

    def __init__(self, database_url: str) -> None:
        self._reads = writers.ReadPool(database_url, max_size=2)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnect; the next search connects again. Idempotent."""
        await self._reads.close()

    async def search(
        self,
        *,
        task: str | None = None,
        outcomes: Sequence[str] = (),
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        error: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        before: LoggedJob | None = None,
        limit: int = 100,
    ) -> list[LoggedJob]:
        """Return jobs that fit everything given, those first that ended last.

        Args:
            task: the task's name.
            outcomes: such as "succeeded", "failed", "timed_out".
            queue: the queue's name.
            since: ended at this time or later; with a zone.
            until: ended before this time.
            error: a part of the error's class or of what it says; upper and lower case are alike.
            arguments: arguments have these values; of a dict, its part that is given.
            before: go on behind this one: the last of the page before.
            limit: how many at most, up to 10,000.

        Raises:
            ArgumentsError: something of this makes no sense.
            WriterUnavailable: the database does not answer, or has no job log.
        """
        if not 0 < limit <= MOST_AT_ONCE:
            raise ArgumentsError(f"limit is {limit!r}, but must be 1 to {MOST_AT_ONCE:,}")
        where = _Where()
        where.add("task = {}", _name(task))
        where.add("queue = {}", _name(queue))
        where.add("outcome = ANY({}::text[])", [rows.text(outcome) for outcome in outcomes] or None)
        where.add("ended_at >= {}", _zoned("since", since))
        where.add("ended_at < {}", _zoned("until", until))
        if error:
            part = "%" + "".join(f"\\{c}" if c in "%_\\" else c for c in rows.text(error)) + "%"
            where.add("error_type <> '' AND (error_type || ': ' || error) ILIKE {}", part)
        where.add("arguments @> {}::jsonb", rows.as_json(arguments) if arguments else None)
        if before is not None:
            where.add("(ended_at, job_id) < ({}, {})", before.ended_at, before.job_id)
        return await self._fetch(where, limit)

    async def of(self, job_id: str) -> list[LoggedJob]:
        """Return the rows of one job, the last end first; more than one when it ran again.

        Raises:
            JobNotFound: there is none, or no more.
        """
        where = _Where()
        where.add("job_id = {}", rows.identity(job_id))
        found = await self._fetch(where, MOST_AT_ONCE)
        if not found:
            raise JobNotFound(f"the job log has no job {job_id!r}: it runs, or is kept no more")
        return found

    async def _fetch(self, where: _Where, limit: int) -> list[LoggedJob]:
        sql = (
            f"SELECT {_COLUMNS} FROM runner.job_log {where.sql()}"  # noqa: S608  texts of ours
            f" ORDER BY ended_at DESC, job_id DESC LIMIT {limit:d}"
        )
        try:
            found = await self._reads.read(sql, *where.values)
        except WriterUnavailable as exc:
            if getattr(exc.__cause__, "sqlstate", "") != NO_TABLE:
                raise
            raise WriterUnavailable(
                "this database has no job log: the first writer that is elected there makes it, "
                "and workers with job_log = True fill it"
            ) from exc
        return [
            LoggedJob(**{**row, "arguments": json.loads(row["arguments"])})  # jsonb comes as text
            for row in found
        ]


class _Where:
    """Conditions, and their values."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._parts: list[str] = []

    def add(self, condition: str, *values: Any) -> None:
        """Ask for something; None asks for nothing. `{}` stands for a value."""
        if values == (None,):
            return
        places = (f"${len(self.values) + place}" for place in range(1, len(values) + 1))
        self._parts.append(condition.format(*places))
        self.values += values

    def sql(self) -> str:
        """Return the clause."""
        return f"WHERE {' AND '.join(self._parts)}" if self._parts else ""


def _name(given: str | None) -> str | None:
    """Return a name as rows have it."""
    return None if given is None else rows.text(given, rows.MOST_NAME)


def _zoned(name: str, moment: datetime | None) -> datetime | None:
    if moment is not None and moment.tzinfo is None:
        raise ArgumentsError(f"{name} is {moment}: give it a zone, such as datetime.now(UTC)")
    return moment
