"""Write dead letters and the errors of attempts down, whatever their jobs were made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from runner import failures
from runner.types import UNKNOWN, AttemptError, DeadLetter, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TRACEBACK_HEAD, TRACEBACK_TAIL = 2_000, 6_000
LAST_HEAD, LAST_TAIL = 8_000, 24_000
MESSAGE = 4_000

REQUEUED = "re"
"""The option of a job's payload that counts how often the job was requeued after its death."""

_ERROR = msgspec.msgpack.Decoder(AttemptError)
_LETTER = msgspec.msgpack.Decoder(DeadLetter)


def encode_letter(dead: DeadLetter) -> bytes:
    """Encode a dead letter; arguments that are no plain data are kept as their repr."""
    dead = msgspec.structs.replace(dead, traceback=_cut(dead.traceback, LAST_HEAD, LAST_TAIL))
    try:
        return msgspec.msgpack.encode(dead, enc_hook=shown)
    except (TypeError, ValueError, OverflowError, RecursionError):
        # A pickled job may hold what msgpack cannot: huge numbers, text that is not UTF-8.
        plain = msgspec.structs.replace(
            dead,
            job_id=_escaped(dead.job_id),
            task=_escaped(dead.task),
            args=[shown(value) for value in dead.args],
            kwargs={shown(name): shown(value) for name, value in dead.kwargs.items()},
        )
        return msgspec.msgpack.encode(plain)


def decode_letter(data: bytes, raw_id: bytes = b"", queue: str = "") -> DeadLetter:
    """Decode a dead letter, also one that an older version wrote.

    What is no letter becomes one that says so: it must not hide the others.
    """
    try:
        return _LETTER.decode(data)
    except (msgspec.DecodeError, ValueError) as exc:
        return DeadLetter(
            job_id=raw_id.decode(errors="backslashreplace"),
            queue=queue,
            task=UNKNOWN,
            args=[],
            kwargs={},
            attempt=0,
            outcome=Outcome.UNDECODABLE.value,
            error_type="",
            error=f"this letter cannot be read: {exc}",
            traceback="",
            enqueued_ms=0,
            died_ms=0,
        )


def error_of(exc: BaseException, **facts: Any) -> bytes:
    """Encode how an attempt went wrong; `facts` are further fields of `AttemptError`."""
    try:
        described = failures.describe(exc)
    except Exception as broken:  # noqa: BLE001  a user's exception may raise wherever it is touched
        why = f"<the exception cannot be shown: {type(broken).__name__}>"
        described = {"type": type(exc).__qualname__, "message": why, "traceback": ""}
    return encode_error(
        AttemptError(
            error_type=described["type"],
            error=described["message"],
            traceback=described["traceback"],
            **facts,
        )
    )


def encode_error(error: AttemptError) -> bytes:
    """Encode how an attempt went wrong, within a bound of about 12 kB."""
    bounded = msgspec.structs.replace(
        error,
        error=_cut(error.error, MESSAGE, 0),
        traceback=_cut(error.traceback, TRACEBACK_HEAD, TRACEBACK_TAIL),
    )
    return msgspec.msgpack.encode(bounded)


def last_error(dead: DeadLetter) -> AttemptError:
    """Return the error that ended a job as one of an attempt."""
    return AttemptError(
        attempt=dead.attempt,
        outcome=dead.outcome,
        error_type=dead.error_type,
        error=dead.error,
        traceback=dead.traceback,
        started_ms=dead.started_ms,
        ended_ms=dead.died_ms,
        worker=dead.worker,
        enqueued_ms=dead.enqueued_ms,
    )


def decode_errors(blobs: Iterable[bytes]) -> tuple[AttemptError, ...]:
    """Decode the records of a job's errors, in their order."""
    return tuple(map(_decode_error, blobs))


def _decode_error(blob: bytes) -> AttemptError:
    try:
        return _ERROR.decode(blob)
    except (msgspec.DecodeError, ValueError) as exc:
        return AttemptError(error=f"this record cannot be read: {exc}")


def requeues(options: Mapping[str, Any]) -> int:
    """Return how often a job was dead before, by the options in its payload."""
    count = options.get(REQUEUED, 0)
    return count if isinstance(count, int) else 0


def shown(value: Any) -> str:
    """Return a value as text that can be written anywhere."""
    try:
        return ascii(value)
    except Exception as exc:  # noqa: BLE001  a user's __repr__ may raise anything
        return f"<{type(value).__qualname__}: repr raised {type(exc).__name__}>"


def _cut(text: str, head: int, tail: int) -> str:
    left_out = len(text) - head - tail
    if left_out <= 0:
        return text
    return f"{text[:head]}\n… {left_out:,} characters left out …\n{text[len(text) - tail :]}"


def _escaped(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
