"""A connection of redis-py's whose transport was taken over: replies are handed out in order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

import hiredis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from runner.errors import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    OnReply: TypeAlias = Callable[[Any], None]

CLOSE_TIMEOUT_S = 1.0

_ELSEWHERE = (ReadOnlyError, BusyLoadingError, MasterDownError, ClusterDownError)
_ELSEWHERE_TEXTS = ("MASTERDOWN ", "CLUSTERDOWN ")  # redis-py knows their classes in clusters only

CLOSED = RedisConnectionError("the client was closed")

_PUSH: Any = getattr(hiredis, "PushNotification", None)  # RESP3, since hiredis 3.2
_MORE = object()  # what the parser returns when a reply is not whole yet


class Link(asyncio.Protocol):
    """One connection, and those who wait for its replies.

    Nobody is held back when the socket is full: each caller waits for its reply anyway.

    Args:
        connection: a connection of redis-py's, connected; it owns nothing afterwards.
        timeout_s: how long a reply may take before the connection is given up.
        forget: told when this link takes no more calls.
    """

    def __init__(self, connection: Any, timeout_s: float, forget: Callable[[Link], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._forget = forget
        self._waiting: deque[tuple[OnReply, float]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._lost: asyncio.Future[None] = self.loop.create_future()
        self._why: BaseException | None = None
        self._retired = False
        self._replies = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,  # noqa: SLF001  see pipe.py
            notEnoughData=_MORE,
        )
        # The writer is kept, since it closes the transport when it is collected.
        self._writer: asyncio.StreamWriter = connection._writer  # noqa: SLF001
        self._transport = self._writer.transport
        connection._reader = connection._writer = None  # noqa: SLF001  it owns nothing any more
        self._transport.set_protocol(self)

    def send(self, on_reply: OnReply, packed: bytes) -> None:
        """Write a command, and put its caller in line for the replies."""
        self._waiting.append((on_reply, self.loop.time()))
        self._transport.write(packed)
        if self._watch is None:
            self._watch = self.loop.call_later(self._timeout_s, self._look_at_time)

    def data_received(self, data: bytes) -> None:
        """Hand replies out in order."""
        self._replies.feed(data)
        while True:
            try:
                reply = self._replies.gets()
            except InvalidResponse as exc:
                return self.abort(exc)
            if reply is _MORE:
                break
            if type(reply) is _PUSH:
                continue
            if not self._waiting:
                return self.abort(InvalidResponse("a reply that nobody asked for"))
            on_reply, _ = self._waiting.popleft()
            if isinstance(reply, BaseException) and turns_away(reply):
                self.retire()
                reply = refusal(reply)
            on_reply(reply)
        if self._retired and not self._waiting:
            self._transport.close()
        return None

    def eof_received(self) -> None:
        """Take no more calls: `connection_lost` follows."""
        self._forget(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits; asyncio calls it once, also after `abort` and `close`."""
        self._forget(self)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        why = self._why or exc or RedisConnectionError("the server closed the connection")
        waiting, self._waiting = self._waiting, deque()
        for on_reply, _ in waiting:
            on_reply(no_answer(why))
        if not self._lost.done():
            self._lost.set_result(None)

    def retire(self) -> None:
        """Take no more calls; close when those that wait have their replies."""
        self._retired = True
        self._forget(self)
        if not self._waiting:
            self._transport.close()

    def abort(self, why: BaseException | None = None) -> None:
        """Drop the connection at once."""
        self._why = self._why or why
        self._forget(self)
        self._transport.abort()

    async def close(self) -> None:
        """Close the connection, and wait until it is closed."""
        self._why = CLOSED
        self._transport.close()
        await asyncio.wait((self._lost,), timeout=CLOSE_TIMEOUT_S)
        if not self._lost.done():  # a peer that does not say goodbye
            self._transport.abort()
            await self._lost

    def _look_at_time(self) -> None:
        self._watch = None
        if not self._waiting:
            return
        waited_s = self.loop.time() - self._waiting[0][1]
        if waited_s >= self._timeout_s:
            self.abort(RedisTimeoutError(f"no reply within {self._timeout_s:g} s"))
        else:
            self._watch = self.loop.call_later(self._timeout_s - waited_s, self._look_at_time)


def turns_away(reply: BaseException) -> bool:
    """Tell whether an error says: not this server, or not now. Then nothing ran."""
    return isinstance(reply, _ELSEWHERE) or str(reply).startswith(_ELSEWHERE_TEXTS)


def no_connection(exc: BaseException) -> RedisUnavailable:
    """Return the error of calls that could not be sent."""
    hint = "; check the password in its address" if isinstance(exc, AuthenticationError) else ""
    if isinstance(exc, TimeoutError) and not str(exc):
        exc = RedisTimeoutError("it does not answer")
    error = RedisUnavailable(f"no connection to Redis: {exc}{hint}")
    error.__cause__ = exc if isinstance(exc, (RedisError, OSError)) else RedisConnectionError(exc)
    return error


def no_answer(exc: BaseException) -> RedisUnavailable:
    """Return the error of a call that was sent and got no reply."""
    error = RedisUnavailable(
        f"lost the connection to Redis: {exc}; whether the call ran is unknown",
        may_have_run=True,
    )
    error.__cause__ = exc
    return error


def refusal(exc: BaseException) -> RedisUnavailable:
    """Return the error of a call that the server turned away."""
    error = RedisUnavailable(f"Redis takes no calls there and now: {exc}")
    error.__cause__ = exc
    return error


__all__ = ["CLOSED", "Link", "OnReply", "no_answer", "no_connection", "refusal", "turns_away"]
