"""Keep the last lines of each job: gathered here, and written down in one call for many jobs."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from runner import keys
from runner.inspect.history import LogLine
from runner.lines import Catcher
from runner.scripts import load

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from runner.lines import Line
    from runner.logs import Jobs

logger = logging.getLogger("runner.monitor")

MOST_BYTES = 8 * 1024 * 1024
"""What may wait between two calls, of all jobs; beyond it lines are dropped, and counted."""
KEEP_MS = 24 * 3600 * 1000
AT_ONCE = 100
"""How many jobs one call writes to."""
LINES_AT_ONCE = 5_000
"""How many lines, unless it is one job that has more."""


class JobLog(Catcher):
    """The lines of the jobs of one worker.

    Args:
        worker: its name.
        most: how many lines of each job are kept.

    Attributes:
        dropped: lines that found no room.
    """

    def __init__(self, worker: str, most: int) -> None:
        super().__init__(worker, most)
        self.dropped = 0
        self._told_dropped = 0
        self._waiting: dict[str, deque[bytes]] = {}
        self._bytes = 0

    def take(self, jobs: Jobs, line: Line) -> None:
        """Keep a line until the next call."""
        for job_id, attempt in jobs:
            if self._bytes > MOST_BYTES:
                self.dropped += 1
                continue
            encoded = msgspec.msgpack.encode(
                LogLine(line.at_ms, line.level, line.logger, attempt, line.message)
            )
            lines = self._waiting.setdefault(job_id, deque(maxlen=self.most))
            self._bytes += len(encoded) - (len(lines[0]) if len(lines) == self.most else 0)
            lines.append(encoded)

    async def flush_to(self, redis: Redis) -> None:
        """Write down what waits; raise what Redis raises, and then it waits for the next call.

        A line may then be there twice: whether Redis took it is not known.
        """
        with self.lock or _NO_LOCK:
            waiting, self._waiting, self._bytes = self._waiting, {}, 0
        if self.dropped > self._told_dropped:
            count, self._told_dropped = self.dropped - self._told_dropped, self.dropped
            logger.warning("%d lines of jobs found no room: too much was logged at once", count)
        try:
            while waiting:
                await self._write(redis, waiting)
        except BaseException:
            self._put_back(waiting)
            raise

    async def _write(self, redis: Redis, waiting: dict[str, deque[bytes]]) -> None:
        """Write down a part, and take it out."""
        names: list[str] = []
        args: list[Any] = [KEEP_MS, self.most]
        for name, lines in waiting.items():
            if names and (len(names) == AT_ONCE or len(args) + len(lines) > LINES_AT_ONCE):
                break
            names.append(name)
            args += (len(lines), *lines)
        await load("log_add").call(redis, keys=[*map(keys.job_log, names)], args=args)
        for name in names:
            del waiting[name]

    def _put_back(self, waiting: dict[str, deque[bytes]]) -> None:
        with self.lock or _NO_LOCK:
            for name, lines in waiting.items():
                if self._bytes > MOST_BYTES:
                    self.dropped += len(lines)
                    continue
                newer = self._waiting.get(name, ())
                self._bytes -= sum(map(len, newer))
                both = self._waiting[name] = deque([*lines, *newer], maxlen=self.most)
                self._bytes += sum(map(len, both))


_NO_LOCK = contextlib.nullcontext()
