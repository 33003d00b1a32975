"""Jobs that have ended, as workers write them down: many in one piece.

A piece is msgpack: the worker's name, and rows of task, outcome, job id, attempt, when it was
enqueued, due, started and ended, and of a failure its error.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from runner import failures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_ERROR = 500

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


class FinishedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that has ended.

    Attributes:
        task: its task's name, "<unknown>" when the payload could not be read.
        outcome: the value of its `Outcome`.
        attempt: the number of its last attempt.
        enqueued_ms: when it was enqueued, Unix time in milliseconds.
        due_ms: when it was to run; 0 of one that the writer refused.
        started_ms: when its last attempt began.
        ended_ms: when that ended.
        worker: the name of the worker that ran it.
        error: class and message of its exception, or "".
    """

    job_id: str
    task: str
    outcome: str
    attempt: int = 1
    enqueued_ms: int = 0
    due_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    worker: str = ""
    error: str = ""


def packed(worker: str, rows: Sequence[tuple[Any, ...]]) -> bytes:
    """Return rows as one piece; texts that are none are escaped."""
    try:
        return _pack((worker, rows))
    except UnicodeEncodeError:  # an id may be any bytes
        return _pack((worker, [tuple(map(_encodable, row)) for row in rows]))


def error_of(result: object) -> str:
    """Return class and message of an exception, "" where there is none."""
    if not isinstance(result, BaseException):
        return ""
    kind, message = type(result).__qualname__, failures.message_of(result)
    return f"{kind}: {message}"[:MOST_ERROR] if message else kind


def end_of(job_id: str, ended_ms: int) -> bytes:
    """Return what tells one end of a job from another: its id may be used again."""
    return f"{ended_ms} {job_id}".encode(errors="backslashreplace")


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return value


def unpacked(piece: bytes) -> Iterator[FinishedJob]:
    """Give the jobs of a piece, the newest first."""
    worker, rows = _unpack(piece)
    for row in reversed(rows):
        task, outcome, job_id, attempt, *times = row[:8]
        enqueued_ms, due_ms, started_ms, ended_ms = times
        yield FinishedJob(
            job_id=job_id,
            task=task,
            outcome=outcome,
            attempt=attempt,
            enqueued_ms=enqueued_ms,
            due_ms=int(due_ms) if math.isfinite(due_ms) else 0,
            started_ms=started_ms,
            ended_ms=ended_ms,
            worker=worker,
            error="".join(row[8:]),
        )
