"""What ``client.history`` offers: counts and times by the minute, jobs that ended, their lines.

Workers with ``monitor=True`` write all of it, a few times a second in one call each, so what is
read here is half a second old. Minutes are those of Redis's clock.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec

from runner import keys
from runner.errors import ArgumentsError
from runner.inspect.finished import FinishedJob, unpacked
from runner.inspect.latency import Latency, latency

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis

MINUTE_MS = 60_000
MOST_MINUTES = 24 * 60
PIECES = 100
"""How many pieces of the list of jobs that ended are read in one call."""
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
    def per_second(self) -> float:
        """The same, by the second."""
        return self.ended / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class _Sums:
    outcomes: Counter[str] = field(default_factory=Counter)
    times: dict[str, Counter[int]] = field(
        default_factory=lambda: {WAIT: Counter(), RUN: Counter()}
    )
    sums: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, count: int) -> None:
        kind, rest = name[:1], name[1:]
        if kind in self.times and rest.isdigit():
            self.times[kind][int(rest)] += count
        elif kind in self.times and rest == "s":
            self.sums[kind] += count
        else:
            self.outcomes[name] += count

    def period(self, start_ms: int, seconds: int) -> Period:
        times = {kind: latency(self.times[kind], self.sums[kind]) for kind in (WAIT, RUN)}
        return Period(start_ms, seconds, dict(self.outcomes), times[WAIT], times[RUN])


class History:
    """What has happened in one queue.

    Example:
        >>> now = await client.history.last(minutes=5)
        >>> print(now.per_second, now.run.p95, now.outcomes.get("failed", 0))
        >>> for job in await client.history.finished(limit=20):
        ...     print(job.task, job.outcome, job.ended_ms - job.started_ms)
    """

    def __init__(self, redis: Redis, queue: str) -> None:
        self._redis = redis
        self.queue = queue

    def of(self, queue: str) -> History:
        """Return the history of another queue."""
        return History(self._redis, queue)

    async def minutes(self, count: int = 60) -> list[Period]:
        """Return the last minutes, the oldest first; the last one is not over.

        Raises:
            ArgumentsError: more minutes than a day has, or none.
        """
        periods = []
        for minute, fields in await self._read(keys.minute, count):
            sums = _Sums()
            for name, value in fields.items():
                sums.add(name.decode(), int(value))
            periods.append(sums.period(minute * MINUTE_MS, 60))
        return periods

    async def last(self, *, minutes: int = 5) -> Period:
        """Return the last minutes as one period, the one that is not over among them.

        Raises:
            ArgumentsError: more minutes than a day has, or none.
        """
        sums = _Sums()
        read = await self._read(keys.minute, minutes)
        for _, fields in read:
            for name, value in fields.items():
                sums.add(name.decode(), int(value))
        return sums.period(read[0][0] * MINUTE_MS, _seconds_of(minutes))

    async def tasks(self, *, minutes: int = 5) -> dict[str, Period]:
        """Return the same for each task, by its name; workers keep it for three hours.

        Raises:
            ArgumentsError: more minutes than a day has, or none.
        """
        by_task: dict[str, _Sums] = {}
        read = await self._read(keys.minute_tasks, minutes)
        for _, fields in read:
            for name, value in fields.items():
                kind, _, task = name.decode(errors="surrogateescape").partition(" ")
                by_task.setdefault(task, _Sums()).add(kind, int(value))
        start_ms, seconds = read[0][0] * MINUTE_MS, _seconds_of(minutes)
        return {task: by_task[task].period(start_ms, seconds) for task in sorted(by_task)}

    async def finished(
        self,
        *,
        limit: int = 100,
        task: str | None = None,
        outcomes: Iterable[str] = (),
    ) -> list[FinishedJob]:
        """Return the jobs that ended last, the newest first; workers keep ``history_jobs``.

        Args:
            limit: how many at most.
            task: those of this task alone.
            outcomes: those that ended so, by the values of `Outcome`; none: all.
        """
        wanted, found = frozenset(outcomes), list[FinishedJob]()
        start = 0
        while len(found) < limit:
            listed = self._redis.lrange(keys.finished(self.queue), start, start + PIECES - 1)
            pieces = await cast(Any, listed)
            found += (
                job
                for piece in pieces
                for job in unpacked(piece.partition(b":")[2])
                if (task is None or job.task == task) and (not wanted or job.outcome in wanted)
            )
            if len(pieces) < PIECES:
                break
            start += PIECES
        return found[:limit]

    async def _read(self, key: Any, count: int) -> list[tuple[int, dict[bytes, bytes]]]:
        if not 1 <= count <= MOST_MINUTES:
            raise ArgumentsError(f"minutes is {count}, but must be 1 to {MOST_MINUTES}")
        seconds, _ = await self._redis.time()
        minutes = range(seconds // 60 - count + 1, seconds // 60 + 1)
        async with self._redis.pipeline(transaction=False) as pipe:
            for minute in minutes:
                pipe.hgetall(key(self.queue, minute))
            return list(zip(minutes, await pipe.execute(), strict=True))


def _seconds_of(minutes: int) -> int:
    """Return the length of some minutes, the last of which is not over."""
    return (minutes - 1) * 60 + max(int(time.time() % 60), 1)


async def job_log(redis: Redis, job_id: str) -> list[LogLine]:
    """Return the lines that are kept of a job, the oldest first."""
    key: Any = keys.job_log(job_id)
    lines = await cast(Any, redis.lrange(key, 0, -1))
    return [msgspec.msgpack.decode(line, type=LogLine) for line in lines]


__all__ = ["FinishedJob", "History", "LogLine", "Period", "job_log"]
