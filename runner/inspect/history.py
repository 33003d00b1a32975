"""What ``client.history`` offers: counts and times by the minute, jobs that ended, their lines.

Workers with ``monitor=True`` write all of it, a few times a second in one call each, so what is
read here is half a second old. Minutes are those of Redis's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgspec

from runner import keys
from runner.errors import ArgumentsError
from runner.inspect.finished import FinishedJob, unpacked
from runner.inspect.latency import BOUNDS_MS, Latency, latency
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis.asyncio import Redis

MINUTE_MS = 60_000
BAD = (
    *("failed", "timed_out", "too_many_tries", "too_many_crashes"),
    *("expired", "unknown_task", "undecodable"),
)
"""The outcomes that say that something is wrong."""
MOST_MINUTES = 24 * 60
PIECES = 100
"""How many pieces of the list of jobs that ended are read in one call."""
_SUCCEEDED, _RETRIED = Outcome.SUCCEEDED.value, Outcome.RETRIED.value
WAIT, RUN = "w", "r"
"""The first letters of the fields of a minute that hold times: "w3" counts waits of bucket 3,
"ws" is the sum of all waits in ms. Other fields count attempts by outcome."""


class LogLine(msgspec.Struct, frozen=True, array_like=True):
    """A line that a job has logged.

    Attributes:
        at_ms: when, Unix time in milliseconds.
        level: "INFO" and the like.
        logger: the logger's name.
        attempt: the number of the attempt that spoke.
        message: one line or several, cut where it was too long.
    """

    at_ms: int
    level: str
    logger: str
    attempt: int
    message: str


@dataclass(frozen=True, slots=True)
class Period:
    """What happened in a span of time.

    Attributes:
        start_ms: its beginning, Unix time in milliseconds.
        seconds: its length.
        outcomes: attempts by the value of their `Outcome`.
        wait: from the time a job was due to its start.
        run: from start to end, of those that ran.
    """

    start_ms: int
    seconds: int
    outcomes: dict[str, int]
    wait: Latency
    run: Latency

    @property
    def ended(self) -> int:
        """All attempts that ended."""
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """Those that went wrong for good."""
        return sum(self.outcomes.get(outcome, 0) for outcome in BAD)

    @property
    def per_second(self) -> float:
        """The same, by the second."""
        return self.ended / self.seconds if self.seconds else 0.0


_End: TypeAlias = "tuple[str, int]"
"""The id of a job, and when it ended: the id may be used again."""


class _Sums:
    """Counts that are added up."""

    __slots__ = ("outcomes", "sums", "times")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.times: dict[str, dict[int, int]] = {WAIT: {}, RUN: {}}
        self.sums = {WAIT: 0, RUN: 0}

    def add(self, what: str, bucket: int, count: int) -> None:
        """Add what a field holds, by its `_meaning`."""
        if bucket >= 0:
            counts = self.times[what]
            counts[bucket] = counts.get(bucket, 0) + count
        elif bucket == _OUTCOME:
            self.outcomes[what] = self.outcomes.get(what, 0) + count
        else:
            self.sums[what] += count

    def period(self, start_ms: int, seconds: int) -> Period:
        times = {kind: latency(self.times[kind], self.sums[kind]) for kind in (WAIT, RUN)}
        # Of a job that was refused the success may not be counted yet: see `lua/history.lua`.
        outcomes = {outcome: count for outcome, count in self.outcomes.items() if count > 0}
        return Period(start_ms, seconds, outcomes, times[WAIT], times[RUN])


def _even_out(minutes: Sequence[dict[str, int]]) -> None:
    """Take successes that are below zero in one minute from the next, or else from one before.

    So many were refused, and had been counted in another minute than the one in which they ended.
    """
    missing = 0
    for outcomes in (*minutes, *reversed(minutes)):
        count = outcomes.get(_SUCCEEDED, 0) - missing
        missing = max(-count, 0)
        outcomes[_SUCCEEDED] = max(count, 0)


@dataclass(frozen=True, slots=True)
class _Span:
    """The last minutes, counted since 1970, and what time it is, both by Redis's clock."""

    minutes: range
    now_ms: int

    def bounds(self, first: int | None, since_ms: int) -> tuple[int, int]:
        """Return the beginning in ms, and the length in seconds.

        Args:
            first: the first minute in which something ended.
            since_ms: nobody was there before, but for that; 0: somebody always was.
        """
        begun_ms = since_ms if first is None else min(since_ms, first * MINUTE_MS)
        start_ms = min(max(self.minutes.start * MINUTE_MS, begun_ms), self.now_ms)
        return start_ms, max((self.now_ms - start_ms) // 1000, 1)


_OUTCOME, _SUM = -1, -2


@lru_cache(maxsize=1_000)
def _meaning(name: bytes) -> tuple[str, int]:
    """Read the name of a field: an outcome, the sum of times, or times of a bucket."""
    text = name.decode(errors="replace")
    kind, rest = text[:1], text[1:]
    if kind in (WAIT, RUN) and rest.isdigit():
        return kind, int(rest)
    if kind in (WAIT, RUN) and rest == "s":
        return kind, _SUM
    return text, _OUTCOME


_FIELDS = (
    *(outcome.value for outcome in Outcome),
    *(f"{kind}{bucket}" for kind in (WAIT, RUN) for bucket in ("s", *range(len(BOUNDS_MS) + 1))),
)
"""All that a minute may hold of one task."""


class History:
    """What has happened in one queue.

    Example:
        >>> now = await client.history.last(minutes=5)
        >>> print(now.per_second, now.run.p95, now.outcomes.get("failed", 0))
        >>> for job in await client.history.finished(limit=20):
        ...     print(job.task, job.outcome, job.ended_ms - job.started_ms)
    """

    def __init__(self, redis: Redis, queue: str, *others: str) -> None:
        self._redis = redis
        self.queue = queue
        self._queues = (queue, *others)

    def of(self, queue: str, *others: str) -> History:
        """Return the history of another queue, or the counts and times of several together.

        Of jobs that ended only those of the first are listed.
        """
        return History(self._redis, queue, *others)

    async def minutes(self, count: int = 60) -> list[Period]:
        """Return the last minutes, the oldest first; the last one is not over.

        Raises:
            ArgumentsError: more minutes than a day has, or none.
        """
        found = []
        for minute, fields in await self._read(keys.minute, await self._span(count)):
            sums = _Sums()
            for name, value in fields:
                sums.add(*_meaning(name), int(value))
            found.append((minute, sums))
        _even_out([sums.outcomes for _, sums in found])
        return [sums.period(minute * MINUTE_MS, 60) for minute, sums in found]

    async def last(self, *, minutes: int = 5, since_ms: int = 0) -> Period:
        """Return the last minutes as one period, the one that is not over among them.

        Args:
            minutes: how many.
            since_ms: when the first worker began (`begun_ms`): the period begins there, or with
                what ended before, so that what it says by the second is true from the start.
                0: it has all of the minutes.

        Raises:
            ArgumentsError: more minutes than a day has, or none.
        """
        sums, span = _Sums(), await self._span(minutes)
        read = await self._read(keys.minute, span)
        for _, fields in read:
            for name, value in fields:
                sums.add(*_meaning(name), int(value))
        return sums.period(*span.bounds(_first(read), since_ms))

    async def tasks(self, *, minutes: int = 5, since_ms: int = 0) -> dict[str, Period]:
        """Return the same for each task, by its name; workers keep it for three hours.

        Raises:
            ArgumentsError: more minutes than a day has, or none.
        """
        span = await self._span(minutes)
        read = await self._read(keys.minute_tasks, span)
        totals: dict[bytes, int] = {}
        for _, fields in read:  # a fleet of many tasks has some ten thousand of them
            for name, value in fields:
                totals[name] = totals.get(name, 0) + int(value)
        by_task: dict[str, _Sums] = {}
        for name, count in totals.items():
            kind, _, raw = name.partition(b" ")
            task = raw.decode(errors="surrogateescape")
            if (sums := by_task.get(task)) is None:
                sums = by_task[task] = _Sums()
            sums.add(*_meaning(kind), count)
        start_ms, seconds = span.bounds(_first(read), since_ms)
        return {task: by_task[task].period(start_ms, seconds) for task in sorted(by_task)}

    async def task(self, name: str, *, minutes: int = 5, since_ms: int = 0) -> Period:
        """Return the last minutes of one task, which costs less than those of all.

        Raises:
            ArgumentsError: more minutes than a day has, or none.
        """
        behind = b" " + name.encode(errors="surrogateescape")
        fields = [field.encode() + behind for field in _FIELDS]
        span = await self._span(minutes)
        async with self._redis.pipeline(transaction=False) as pipe:
            for minute in span.minutes:
                for queue in self._queues:
                    pipe.hmget(keys.minute_tasks(queue, minute), cast(Any, fields))
            rows = await pipe.execute()
        sums, first = _Sums(), None
        for index, row in enumerate(rows):
            for field, value in zip(_FIELDS, row, strict=True):
                if value is not None:
                    sums.add(*_meaning(field.encode()), int(value))
                    first = index // len(self._queues) if first is None else first
        begun = None if first is None else span.minutes[first]
        return sums.period(*span.bounds(begun, since_ms))

    async def finished(
        self,
        *,
        limit: int = 100,
        task: str | None = None,
        outcomes: Iterable[str] = (),
        skip: int = 0,
        most: int | None = None,
    ) -> list[FinishedJob]:
        """Return the jobs that ended last, the newest first; workers keep ``history_jobs``.

        Args:
            limit: how many at most.
            task: those of this task alone.
            outcomes: those that ended so, by the values of `Outcome`; none: all.
            skip: how many of those to leave out.
            most: at how many jobs to look, about; None: at all there are.
        """
        wanted, found = frozenset(outcomes), list[FinishedJob]()
        refused = set[_End]()
        start = looked = 0
        while len(found) < skip + limit and (most is None or looked < most):
            jobs, is_last = await self._ended(start, refused)
            looked += len(jobs)
            found += (
                job
                for job in jobs
                if (task is None or job.task == task) and (not wanted or job.outcome in wanted)
            )
            if is_last:
                break
            start += PIECES
        return found[skip : skip + limit]

    async def find(self, job_id: str) -> FinishedJob | None:
        """Return how a job ended, None where that is not remembered."""
        needle = job_id.encode(errors="backslashreplace")
        refused = set[_End]()
        start = 0
        while True:
            jobs, is_last = await self._ended(start, refused, needle)
            for job in jobs:
                if job.job_id == needle.decode():
                    return job
            if is_last:
                return None
            start += PIECES

    async def _ended(
        self, start: int, refused: set[_End], needle: bytes = b""
    ) -> tuple[list[FinishedJob], bool]:
        """Read some pieces of the list, the newest first; say whether they are the last.

        A job that the writer refused is listed again, in front of its success: as failed, or as
        retried, and then it has not ended.

        Args:
            start: the place of the first piece.
            refused: the ends for which there was something else in front of that place; these
                pieces add theirs.
            needle: only pieces that hold these bytes.
        """
        listed = self._redis.lrange(keys.finished(self.queue), start, start + PIECES - 1)
        pieces, jobs = await cast(Any, listed), list[FinishedJob]()
        for piece in pieces:
            for job in unpacked(piece.partition(b":")[2]) if needle in piece else ():
                end = (job.job_id, job.ended_ms)
                if job.outcome != _SUCCEEDED:
                    refused.add(end)
                elif end in refused:
                    continue
                if job.outcome != _RETRIED:
                    jobs.append(job)
        return jobs, len(pieces) < PIECES

    async def _span(self, count: int) -> _Span:
        if not 1 <= count <= MOST_MINUTES:
            raise ArgumentsError(f"minutes is {count}, but must be 1 to {MOST_MINUTES}")
        seconds, micros = await self._redis.time()
        minutes = range(seconds // 60 - count + 1, seconds // 60 + 1)
        return _Span(minutes, seconds * 1000 + micros // 1000)

    async def _read(self, key: Any, span: _Span) -> list[tuple[int, list[tuple[bytes, bytes]]]]:
        minutes = span.minutes
        async with self._redis.pipeline(transaction=False) as pipe:
            for minute in minutes:
                for queue in self._queues:
                    pipe.hgetall(key(queue, minute))
            read = iter(await pipe.execute())
        return [
            (minute, [field for _ in self._queues for field in next(read).items()])
            for minute in minutes
        ]


def _first(read: list[tuple[int, list[tuple[bytes, bytes]]]]) -> int | None:
    return next((minute for minute, fields in read if fields), None)


async def job_log(redis: Redis, job_id: str) -> list[LogLine]:
    """Return the lines that are kept of a job, the oldest first."""
    key: Any = keys.job_log(job_id)
    lines = await cast(Any, redis.lrange(key, 0, -1))
    return [msgspec.msgpack.decode(line, type=LogLine) for line in lines]


__all__ = ["FinishedJob", "History", "LogLine", "Period", "job_log"]
