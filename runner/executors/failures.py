"""Carry what a function raised out of its thread or process."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING

from runner import failures
from runner.errors import RemoteError, TaskError
from runner.execution.limits import is_soft_limit
from runner.failures import RemoteTraceback

if TYPE_CHECKING:
    from runner.codec import Fields


def as_failure(error: BaseException) -> BaseException:
    """Return what a job failed with: `sys.exit` elsewhere does not end the worker."""
    if isinstance(error, Exception | asyncio.CancelledError) or is_soft_limit(error):
        return error
    failure = TaskError(f"the task raised {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def packed(error: BaseException) -> tuple[bytes, Fields]:
    """Return an exception as a pickle, b"" when it has none that can be read, and as text."""
    try:
        data = pickle.dumps(error)
        # Made a moment ago; but what __init__ asks for may be missing, or it is another thing.
        if not isinstance(pickle.loads(data), BaseException):  # noqa: S301
            data = b""
    except Exception:  # noqa: BLE001  a user's class may raise anything
        data = b""
    return data, failures.describe(error)


def unpacked(data: bytes, described: Fields) -> BaseException:
    """Return an exception of another process, with its traceback as its cause."""
    if data:
        try:
            error = pickle.loads(data)  # noqa: S301  from a process of this worker
        except Exception:  # noqa: BLE001  as above
            data = b""
        else:
            error.__cause__ = RemoteTraceback(described["traceback"])
            assert isinstance(error, BaseException)
            return error
    return RemoteError(described["type"], described["message"], described["traceback"])


__all__ = ["as_failure", "packed", "unpacked"]
