"""What supervisor and member tell each other: one JSON object a line, over a socket.

=========  ==========  ========================================================================
from       ``say``     means
=========  ==========  ========================================================================
member     ready       it claims from now on; ``stop_s`` is what SIGTERM may take
member     recycle     it wants to be replaced, and ``why``; it goes on until it is told to drain
member     leaving     it ends now, without being told, and ``why``
member     vitals      ``rss`` in bytes, ``threads``, ``files``, ``jobs`` that have ended
supervisor drain       claim no more, finish what runs, end
=========  ==========  ========================================================================

The end of the stream tells a member that its supervisor is gone, however it went.
"""

from __future__ import annotations

import json
from typing import Any, Final

SOCKET: Final = "RUNNER_FLEET_SOCKET"
"""The environment variable with the number of a member's end of the socket."""

PLACE: Final = "RUNNER_FLEET_PLACE"
"""That with the number of its place in the fleet, from 1."""

BAD_SETTINGS: Final = 78
"""A member's status when its settings cannot be loaded: EX_CONFIG of sysexits.h."""

MOST_TEXT: Final = 10_000
"""How many characters of a text are sent, each in 12 bytes at most: a message must fit into the
socket, or is lost."""

RECYCLED: Final = 75
"""The status of a worker that ended to be started anew: EX_TEMPFAIL of sysexits.h."""


def encode(say: str, **fields: Any) -> bytes:
    """Return one line; of a long text its beginning and its end."""
    short = {name: _short(value) for name, value in fields.items()}
    return json.dumps({"say": say, **short}).encode() + b"\n"


def _short(value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= MOST_TEXT:
        return value
    half = MOST_TEXT // 2
    return f"{value[:half]} [...] {value[-half:]}"


class Lines:
    """Puts the messages of a stream together again."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the messages that are complete now; what was cut off is none."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [message for line in lines if (message := _message(line)) is not None]


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and "say" in message else None
