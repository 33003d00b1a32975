"""Exceptions as plain data, and back: as results, letters and processes carry them."""

from __future__ import annotations

import asyncio
import traceback as traceback_module
from typing import Any

from runner import errors
from runner.errors import RemoteError


def describe(exc: BaseException) -> dict[str, Any]:
    """Return an exception as plain data: class, message, traceback, attributes of ours."""
    if isinstance(exc, RemoteError):
        return {
            "type": exc.type_name,
            "message": exc.message,
            "traceback": exc.remote_traceback,
        }
    kind = type(exc)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    described: dict[str, Any] = {
        "type": name,
        "message": message_of(exc),
        "traceback": _plain("".join(traceback_module.format_exception(exc))),
    }
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


__all__ = ["describe", "message_of", "restore"]
