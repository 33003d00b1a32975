"""Catch the lines that jobs log, by the standard library or structlog, and keep the last of each.

A handler at the root sees every line that a handler there may see. A context variable says which
job speaks; lines of the engine itself, which say that a job starts and ends, are left out.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from runner import keys, logs
from runner.inspect.history import LogLine
from runner.scripts import load

if TYPE_CHECKING:
    from redis.asyncio import Redis

MOST_LINE = 2_000
"""The characters of a line; what is longer is cut."""
MOST_BYTES = 8 * 1024 * 1024
"""What may wait between two calls, of all jobs; beyond it lines are dropped, and counted."""
KEEP_MS = 24 * 3600 * 1000
AT_ONCE = 100
"""How many jobs one call writes to."""

OURS = ("arq.", "runner.")
_BOUND = frozenset(
    {"event", "level", "logger", "timestamp", "job_id", "task", "attempt", "_record"}
    | {"_from_structlog", "exc_info", "_logger", "_name"}
)


class JobLog(logging.Handler):
    """The lines of the jobs of one worker.

    Args:
        most: how many lines of each job are kept.

    Attributes:
        dropped: lines that found no room.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.dropped = 0
        self._most = most
        self._waiting: dict[str, deque[bytes]] = {}
        self._bytes = 0

    def open(self) -> None:
        """Begin to listen."""
        logs.keep_lines(keeps=True)
        logging.getLogger().addHandler(self)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        root = logging.getLogger()
        if self in root.handlers:
            logs.keep_lines(keeps=False)
            root.removeHandler(self)
        super().close()

    def handle(self, record: logging.LogRecord) -> Any:
        """Take a line; of the engine's own, which are many, not even the lock."""
        return False if record.name.startswith(OURS) else super().handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, if a job speaks; also in a thread of its own."""
        job_id, _, attempt = logs.speaker.get(("", "", 0))
        if not job_id:
            return
        if self._bytes > MOST_BYTES:
            self.dropped += 1
            return
        try:
            message = _text(record)
        except Exception:  # noqa: BLE001  a user's __str__; logging's own way to say so
            self.handleError(record)
            return
        line = LogLine(int(record.created * 1000), record.levelname, record.name, attempt, message)
        encoded = msgspec.msgpack.encode(line)
        lines = self._waiting.setdefault(job_id, deque(maxlen=self._most))
        self._bytes += len(encoded) - (len(lines[0]) if len(lines) == self._most else 0)
        lines.append(encoded)

    async def flush_to(self, redis: Redis) -> None:
        """Write down what waits; raise what Redis raises, and then it is lost."""
        with self.lock or _NO_LOCK:
            waiting, self._waiting, self._bytes = self._waiting, {}, 0
        names = list(waiting)
        for start in range(0, len(names), AT_ONCE):
            args: list[Any] = [KEEP_MS, self._most]
            part = names[start : start + AT_ONCE]
            for name in part:
                args += (len(waiting[name]), *waiting[name])
            await load("log_add").call(redis, keys=[*map(keys.job_log, part)], args=args)


_NO_LOCK = contextlib.nullcontext()


def _text(record: logging.LogRecord) -> str:
    message: Any = record.msg
    if isinstance(message, dict):  # structlog's, on its way to its formatter
        rest = (f"{name}={value!r}" for name, value in message.items() if name not in _BOUND)
        text = " ".join([str(message.get("event", "")), *rest])
    else:
        text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    if len(text) > MOST_LINE:
        text = f"{text[: MOST_LINE - 1]}…"
    return text.encode(errors="backslashreplace").decode()
