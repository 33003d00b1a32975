"""Catch the lines that jobs log, by the standard library or structlog over it.

A handler at the root sees every line that a handler there may see; a context variable
(`logs.speaker`) says which jobs speak, and for which worker of this process. Lines of the engine
itself, which say that a job starts and ends, are left out.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from runner import failures, logs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runner.logs import Jobs

__all__ = ["Catcher", "Line", "hand_over", "text_of", "wanted"]

MOST_LINE = 2_000
"""The characters of a line; what is longer is cut."""
MOST_HEAD = 500
"""Of a line with a traceback that is too long so much is kept of its beginning; the error itself
stands at its end."""

OURS = ("arq.", "runner.")
_BOUND = frozenset(
    {"event", "level", "logger", "timestamp", "job_id", "task", "attempt", "_record"}
    | {"_from_structlog", "exc_info", "exception", "_logger", "_name"}
)


class Line(NamedTuple):
    """What was logged: when, in ms since 1970, how urgent, by which logger, and the text."""

    at_ms: int
    level: str
    logger: str
    message: str


class Catcher(logging.Handler):
    """Takes the lines of the jobs of one worker.

    Args:
        worker: its name.
        most: how many lines of each job are kept.
    """

    def __init__(self, worker: str, most: int) -> None:
        super().__init__()
        self.worker = worker
        self.most = most

    def open(self) -> None:
        """Begin to listen."""
        logs.keep_lines(keeps=True)
        logging.getLogger().addHandler(self)
        _open.append(self)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self in _open:
            _open.remove(self)
            logs.keep_lines(keeps=False)
            logging.getLogger().removeHandler(self)
        super().close()

    def handle(self, record: logging.LogRecord) -> Any:
        """Take a line; of the engine's own, which are many, not even the lock."""
        return False if record.name.startswith(OURS) else super().handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line, if a job of this worker speaks; also in a thread of its own."""
        jobs = logs.speaking_for(self.worker)
        if not jobs:
            return
        try:
            text = text_of(record)
        except Exception:  # noqa: BLE001  a user's __str__; logging's own way to say so
            self.handleError(record)
            return
        self.take(jobs, Line(int(record.created * 1000), record.levelname, record.name, text))

    def take(self, jobs: Jobs, line: Line) -> None:
        """Keep a line that these jobs have logged, under the handler's lock."""
        raise NotImplementedError


_open: list[Catcher] = []


def wanted(worker: str) -> int:
    """Return how many lines of each job of a worker are kept."""
    return max((catcher.most for catcher in _open if catcher.worker == worker), default=0)


def hand_over(worker: str, job_id: str, attempt: int, lines: Iterable[Line]) -> None:
    """Keep what a job has logged in another process."""
    for catcher in _open:
        if catcher.worker == worker and catcher.lock is not None:
            with catcher.lock:
                for line in lines:
                    catcher.take(((job_id, attempt),), line)


def text_of(record: logging.LogRecord) -> str:
    """Return what a line says, and the traceback of its exception: cut, no half characters."""
    message: Any = record.msg
    raised: Any = record.exc_info
    told = ""
    if isinstance(message, dict):  # structlog's, on its way to its formatter
        raised = raised or message.get("exc_info")
        told = str(message.get("exception") or "")
        rest = (f"{name}={value!r}" for name, value in message.items() if name not in _BOUND)
        text = " ".join([str(message.get("event", "")), *rest])
    else:
        text = record.getMessage()
    error = _error_of(raised)
    if error is not None:
        told = failures.shown(error).rstrip()
    if told and len(text) + len(told) >= MOST_LINE:
        text = _cut(text, MOST_HEAD)
        room = MOST_LINE - len(text) - 1
        told = told if len(told) <= room else f"…{told[1 - room :]}"
    text = f"{text}\n{told}" if told else text
    return _cut(text, MOST_LINE).encode(errors="backslashreplace").decode()


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _error_of(raised: object) -> BaseException | None:
    """Return the exception of a line: a triple of logging; of structlog also True, or itself."""
    if raised is True:
        return sys.exc_info()[1]
    if isinstance(raised, tuple) and len(raised) > 1:
        raised = raised[1]
    return raised if isinstance(raised, BaseException) else None
