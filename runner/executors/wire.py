"""What a worker and the processes of its pool say to each other.

Pickles travel, over a socket that nobody else holds: both ends are one program, and what a task
gets may be any object that its annotations make. Each message is preceded by its length.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import socket
    from datetime import datetime

    from runner.codec import Fields
    from runner.lines import Line

LENGTH_BYTES = 8
MOST_BYTES = 2**40
"""What announces more is no message: eight letters of a text do."""
BEGUN = b"begun"
"""What a process answers when it has read a request, before it calls the function."""
PROGRESS = b"p"
"""What begins a message that says how far the job is, before its answer. No pickle begins so."""


class Request(NamedTuple):
    """A call for another process.

    Attributes:
        module: where the function is found there.
        qualname: its name in the module.
        values: the context: plain values of arq's dict.
        due: when the schedule that made the job was due.
        lines: how many of the lines that it logs are to come back.
    """

    module: str
    qualname: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: dict[str, Any]
    task: str
    due: datetime | None
    lines: int = 0


class Answer(NamedTuple):
    """How a call ended.

    Attributes:
        value: the pickled value, None when it failed.
        unit: the encoded writes of the job.
        error: the pickled exception, b"" when it cannot be pickled.
        described: the exception as text, when it failed.
        lines: what it logged, the last lines.
    """

    value: bytes | None
    unit: bytes = b""
    error: bytes = b""
    described: Fields | None = None
    lines: tuple[Line, ...] = ()

    @classmethod
    def read(cls, data: bytes) -> Answer:
        """Return an answer that came; raise anything when it is none."""
        return cls(*pickle.loads(data))  # noqa: S301  from a process of this worker


def framed(data: bytes) -> bytes:
    """Return a message with its length in front."""
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def receive(connection: socket.socket) -> bytes | None:
    """Wait for a message; None when the other end has closed."""
    head = _receive_exactly(connection, LENGTH_BYTES)
    if head is None:
        return None
    return _receive_exactly(connection, int.from_bytes(head, "big"))


def _receive_exactly(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        got = connection.recv_into(view[at:])
        if not got:
            return None
        at += got
    return bytes(data)


__all__ = ["BEGUN", "LENGTH_BYTES", "PROGRESS", "Answer", "Request", "framed", "receive"]
