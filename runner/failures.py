"""Exceptions as plain data, and back: as results, letters and processes carry them."""

from __future__ import annotations

import asyncio
import os
from traceback import TracebackException
from typing import TYPE_CHECKING, Any

from runner import errors
from runner.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from traceback import FrameSummary
    from types import TracebackType

_STANDARD = os.path.dirname(asyncio.__file__).removesuffix("asyncio")  # noqa: PTH120  compared as texts
_OURS = os.path.join(os.path.dirname(__file__), "")  # noqa: PTH118, PTH120  as above
_CALLERS = tuple(
    _OURS + name
    for name in (
        *("execution", "executors", "middleware", "dependencies", "schedule", "limits"),
        *("many.py", "retry.py", "tasks.py", "traces.py"),
    )
)
"""What calls the users' own code. What else of ours calls others, as the codec does, is at work for
itself."""
_STEPS = os.path.join(_OURS, "execution", "steps.py")  # noqa: PTH118  as above


class RemoteTraceback(Exception):  # noqa: N818  it is shown as a cause, and says where
    """The traceback of another process, as the cause of what was raised there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def describe(exc: BaseException) -> dict[str, Any]:
    """Return an exception as plain data: class, message, traceback, attributes of ours."""
    if isinstance(exc, RemoteError):
        return {
            "type": exc.type_name,
            "message": exc.message,
            "traceback": exc.remote_traceback,
        }
    kind, message = named(exc)
    described: dict[str, Any] = {"type": kind, "message": message, "traceback": shown(exc)}
    if isinstance(exc, errors.WriteRejected):
        described["facts"] = {
            "sqlstate": exc.sqlstate,
            "table": exc.table,
            "constraint": exc.constraint,
            "detail": exc.detail,
            "statement": exc.statement,
            "parameters": list(exc.parameters),
        }
    return described


def named(exc: BaseException) -> tuple[str, str]:
    """Return an exception's class and message, of one from elsewhere those it had there.

    A hundredth of the time that `describe` takes, which looks up the lines of the traceback.
    """
    if isinstance(exc, RemoteError):
        return exc.type_name, exc.message
    kind = type(exc)
    in_module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return in_module + kind.__qualname__, message_of(exc)


def shown(exc: BaseException) -> str:
    """Return an exception with its traceback as text, without what of ours calls the user's code.

    Where nothing but our own frames is there, they stay: it is an error of ours.
    """
    trace = TracebackException(type(exc), exc, exc.__traceback__, compact=True, lookup_lines=False)
    told = list(_chained(trace, exc))
    theirs: set[int] = set()
    for one, error in reversed(told):  # causes before what they caused
        first = _first_of_users(frame.filename for frame in one.stack)
        says_why = one.__cause__ is not None and id(one.__cause__) in theirs
        if first is not None:
            one.stack[:] = _without_callers(one.stack[first:], also_last=says_why)
        elif says_why:
            one.stack.clear()
        elif not isinstance(error, RemoteTraceback):
            continue
        theirs.add(id(one))
    if isinstance(exc.__cause__, RemoteTraceback) and not trace.stack:
        return exc.__cause__.text  # it ends with the exception itself
    return _plain("".join(trace.format()))


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that begins with the user's code; all of it without any."""
    first, part = _first_of_users(_files(trace)), trace
    for _ in range(first or 0):
        assert part is not None
        part = part.tb_next
    return part


def is_standard(file: str) -> bool:
    """Say whether a file of code belongs to Python itself."""
    return file.startswith("<frozen ") or (
        file.startswith(_STANDARD) and "site-packages" not in file
    )


def _first_of_users(files: Iterable[str]) -> int | None:
    """Return which of the files that a stack goes through is the user's that was called first.

    None when there is none, or when it was called by what works for itself.
    """
    by_us = calls = False
    for index, file in enumerate(files):
        if file.startswith(_OURS):
            by_us, calls = True, file.startswith(_CALLERS)
        elif not by_us:
            return 0
        elif not is_standard(file):  # which stands between, where a context manager is theirs
            return index if calls else None
    return None


def _without_callers(frames: list[FrameSummary], *, also_last: bool) -> list[FrameSummary]:
    """Leave out what calls the user's code from other code of theirs, as from a middleware.

    Args:
        frames: from the first of the user's on.
        also_last: the error came from elsewhere, as out of another process, and was raised again.
    """
    last = max(i for i, frame in enumerate(frames) if not frame.filename.startswith(_OURS))
    last = len(frames) if also_last else last
    return [
        frame
        for index, frame in enumerate(frames)
        if frame.filename != _STEPS and (index > last or not frame.filename.startswith(_CALLERS))
    ]


def _files(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename
        trace = trace.tb_next


def _chained(
    trace: TracebackException, exc: BaseException
) -> Iterator[tuple[TracebackException, BaseException]]:
    """Give all that is shown with an exception, each before its causes; chains may be long."""
    left = [(trace, exc)]
    while left:
        trace, exc = left.pop()
        yield trace, exc
        for one, error in ((trace.__cause__, exc.__cause__), (trace.__context__, exc.__context__)):
            if one is not None and error is not None:
                left.append((one, error))
        if isinstance(exc, BaseExceptionGroup):
            left += zip(trace.exceptions or (), exc.exceptions, strict=False)


def _plain(text: str) -> str:
    """Write what UTF-8 has no bytes for, as file names may hold it, as an escape."""
    return text.encode(errors="backslashreplace").decode()


def message_of(exc: BaseException) -> str:
    """Return an exception's message as text that can be written anywhere."""
    try:
        return _plain(str(exc))
    except Exception as broken:  # noqa: BLE001  a user's __str__ may raise anything
        return f"<the exception's message raised {type(broken).__name__}>"


def _restore_rejection(message: str, facts: Any) -> errors.WriteRejected:
    given = facts if isinstance(facts, dict) else {}
    fields = ("sqlstate", "table", "constraint", "detail", "statement")
    shapes = given.get("parameters")
    return errors.WriteRejected(
        message,
        **{key: str(given.get(key, "")) for key in fields},
        parameters=tuple(map(str, shapes)) if isinstance(shapes, list) else (),
    )


def restore(described: dict[str, Any]) -> BaseException:
    """Make an exception of the data in a result.

    Only classes of a fixed list come back as themselves, so that bytes cannot choose
    what is constructed; `asyncio.CancelledError` is among them because arq's
    ``Job.abort`` waits for exactly that.
    """
    name = str(described.get("type", "Exception"))
    message = str(described.get("message", ""))
    known = _RESTORED.get(name)
    if known is not None:
        return known(message)
    if name == "runner.errors.WriteRejected":
        return _restore_rejection(message, described.get("facts"))
    return RemoteError(name, message, str(described.get("traceback", "")))


def _restored_classes() -> dict[str, type[BaseException]]:
    from arq.jobs import DeserializationError, SerializationError  # noqa: PLC0415  door to arq
    from arq.worker import JobExecutionFailed  # noqa: PLC0415  door to arq

    own = (
        errors.JobExpired,
        errors.JobCancelled,
        errors.TooManyTries,
        errors.TooManyCrashes,
        errors.ProcessDied,
        errors.TaskNotFound,
        errors.ArgumentsError,
        errors.EncodeError,
        errors.DecodeError,
        errors.Cancel,
    )
    theirs = (JobExecutionFailed, SerializationError, DeserializationError)
    named: dict[str, type[BaseException]] = {
        f"{kind.__module__}.{kind.__qualname__}": kind for kind in (*own, *theirs)
    }
    named["asyncio.exceptions.CancelledError"] = asyncio.CancelledError
    named["TimeoutError"] = TimeoutError
    return named


_RESTORED = _restored_classes()


__all__ = [
    "RemoteTraceback",
    "describe",
    "is_standard",
    "message_of",
    "named",
    "restore",
    "shown",
    "users_part",
]
