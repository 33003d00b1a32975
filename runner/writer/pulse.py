"""Notice within a second that Postgres cannot be reached from here, while others may reach it.

The election lies in Redis, so a leader whose way to Postgres is cut would stay elected for as long
as its network keeps trying. When a statement has no answer after a moment, Postgres is asked over
another connection whether it speaks TLS: any server answers that with one byte, before it looks
at names or at its number of connections. Without an answer the leader lets others stand. It goes on
waiting for its own: a statement that is only slow is not given up, unless another is elected.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncpg import Connection, Record

    from runner.writer.election import Election

__all__ = ["Pulse", "address_of", "answers"]

LOOK_S = 0.15
PATIENCE_S = 0.3
PROBE_S = 0.4
GIVE_UP_S = 10.0
SSL_REQUEST = struct.pack("!ii", 8, 80877103)


class Pulse:
    """Whether what was asked of Postgres is being answered."""

    def __init__(self, connection: Connection[Record], election: Election) -> None:
        self._address = address_of(connection)
        self._election = election
        self._asked_at: float | None = None

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Note that Postgres is being asked something."""
        self._asked_at = time.monotonic()
        try:
            yield
        finally:
            self._asked_at = None

    async def watch(self) -> None:
        """Let others stand while Postgres answers neither the session nor a stranger.

        Raises:
            ConnectionResetError: that has been so for long; a new session is the better try.
        """
        if self._address is None:
            return  # a socket of this machine: no network lies in between
        doubted_at = 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            asked_at = self._asked_at
            if await self._is_answered(asked_at) or asked_at != self._asked_at:
                self._election.trust()
                doubted_at = 0.0
                continue
            await self._election.doubt("Postgres does not answer")
            doubted_at = doubted_at or time.monotonic()
            if time.monotonic() - doubted_at > GIVE_UP_S:
                raise ConnectionResetError("Postgres does not answer: the term is over")

    async def _is_answered(self, asked_at: float | None) -> bool:
        if asked_at is None or time.monotonic() - asked_at < PATIENCE_S:
            return True
        assert self._address is not None
        return await answers(self._address, PROBE_S)


def address_of(connection: Connection[Record]) -> tuple[str, int] | None:
    """Return where the session leads to; None for a socket of this machine."""
    transport = getattr(connection, "_transport", None)  # asyncpg has no door to its socket
    peer = transport.get_extra_info("peername") if transport else None
    return (peer[0], peer[1]) if isinstance(peer, tuple) else None


async def answers(address: tuple[str, int], timeout_s: float) -> bool:
    """Say whether a Postgres answers there, whatever it thinks of us."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(SSL_REQUEST)
                return bool(await reader.read(1))
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
