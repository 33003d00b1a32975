"""One connection to Redis that many calls share: commands go out at once, replies come in order.

redis-py makes the connection, with all that its settings say (TCP, TLS, unix socket, Sentinel,
password, database, RESP3), and the pipe takes its transport over. What is left of a call is to
pack it, to write it, and to hand its reply to whoever waits: a fifth of what
``execute_command`` costs. uvloop joins the writes of one tick into one packet.

Taken from redis-py 5 (arq pins it below 6), beside what is public: of a connection ``_reader``,
``_writer`` and ``_parser.parse_error``. Calls go through ``execute_command`` as before where a
connection is of a class that is not known here, where commands are to be repeated by redis-py
(``retry_on_error``, ``retry_on_timeout``), with a ``credential_provider``, and in a client of a
single connection. No publish and subscribe. The connection does not count in the pool's
``max_connections``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import hiredis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError

from runner.errors import RedisUnavailable
from runner.link import CLOSED, Link, no_answer, no_connection, refusal, turns_away
from runner.packing import PACKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from runner.link import OnReply
    from runner.scripts import Script

CALL_TIMEOUT_S = 30.0
"""How long a reply may take where the pool has no ``socket_timeout``: then the server is gone."""

SHORTEST_BACKOFF_S, LONGEST_BACKOFF_S = 0.02, 1.0

_KNOWN: frozenset[type] = frozenset(
    (
        Connection,
        SSLConnection,
        UnixDomainSocketConnection,
        SentinelManagedConnection,
        SentinelManagedSSLConnection,
        *PACKING,
    ),
)
_AWAY = (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError)


class Pipe:
    """Send commands over one connection, which is opened by the first call and again when lost.

    It belongs to the loop that it is used in; used in another one, it begins anew there.

    Args:
        redis: whose pool makes the connection, and who takes the calls when it cannot be used.
        timeout_s: how long a reply may take before the connection is given up; None: the
            pool's ``socket_timeout``, or `CALL_TIMEOUT_S`.
    """

    def __init__(self, redis: Redis, *, timeout_s: float | None = None) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: Link | None = None
        self._unsent: list[tuple[OnReply, tuple[Any, ...]]] = []
        self._opening: asyncio.Task[None] | None = None
        self._falls_back = False
        self._by_pool: set[asyncio.Task[None]] = set()
        self._failures = 0

    _leaves_repeating = True
    """Whether redis-py does what its settings say of repeating commands."""

    def send(self, on_reply: OnReply, *command: Any) -> None:
        """Send a command; `on_reply` gets its reply, or the exception in its place, once.

        `on_reply` must not raise. A `RedisUnavailable` says whether the command may have run.
        """
        link = self._link
        if link is None or link.loop is not asyncio.get_running_loop():
            return self._send_later(on_reply, command)
        try:
            packed = hiredis.pack_command(command)
        except (TypeError, ValueError) as exc:  # an argument that is no text, bytes or number
            return on_reply(exc)
        return link.send(on_reply, packed)

    def send_script(
        self,
        on_reply: OnReply,
        script: Script,
        keys: Sequence[Any],
        args: Sequence[Any],
    ) -> None:
        """Run a script by EVALSHA, or by EVAL where the server does not know it yet."""

        def answered(reply: Any) -> None:
            if isinstance(reply, NoScriptError):  # nothing ran
                self.send(on_reply, "EVAL", script.text, len(keys), *keys, *args)
            else:
                on_reply(reply)

        self.send(answered, "EVALSHA", script.sha, len(keys), *keys, *args)

    async def execute_command(self, *command: Any) -> Any:
        """Send a command and return its reply, as redis-py's method of this name does.

        A caller that is cancelled leaves the reply to nobody; the connection stays.

        Raises:
            RedisUnavailable: there is no connection, or no answer.
            ResponseError: the server's own.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.send(partial(_settle, future), *command)
        return await future

    async def evalsha(self, script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a script and return its reply; raise what `execute_command` does."""
        script.check(keys, args)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.send_script(partial(_settle, future), script, keys, args)
        return await future

    def renew(self) -> None:
        """Let the next call open a new connection: this one leads to the wrong server."""
        link, self._link = self._link, None
        if link is not None:
            link.retire()

    async def close(self) -> None:
        """Close the connection; calls that wait fail. Idempotent, and a later call opens again."""
        self._move_to(asyncio.get_running_loop())
        tasks = [*self._by_pool, *([self._opening] if self._opening else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._opening = None
        self._turn_away(CLOSED)  # also where the task had not begun
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    def _send_later(self, on_reply: OnReply, command: tuple[Any, ...]) -> None:
        self._move_to(asyncio.get_running_loop())
        if self._falls_back:
            task = asyncio.create_task(self._execute(on_reply, command), name="runner pipe call")
            self._by_pool.add(task)
            task.add_done_callback(self._by_pool.discard)
            return
        self._unsent.append((on_reply, command))
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="runner pipe")

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin anew in another loop: those who waited in the old one have gone with it."""
        if self._loop is loop:
            return
        if self._link is not None:
            with contextlib.suppress(RuntimeError):  # the old loop is closed
                self._link.loop.call_soon_threadsafe(self._link.abort)
        self._loop, self._link, self._opening = loop, None, None
        self._unsent, self._by_pool = [], set()

    async def _open(self) -> None:
        """Open the connection and send what waits for it, or tell all of them why not."""
        try:
            if self._failures:
                longest_s = min(SHORTEST_BACKOFF_S * 2**self._failures, LONGEST_BACKOFF_S)
                await asyncio.sleep(longest_s * random.uniform(0.5, 1))  # noqa: S311  jitter
            self._link = await self._make_link()
        except asyncio.CancelledError:
            self._opening = None
            self._turn_away(CLOSED)
            raise
        except Exception as exc:  # noqa: BLE001  whatever it is, it belongs to the callers
            self._opening = None
            self._failures = min(self._failures + 1, 10)
            self._turn_away(exc)
            return
        self._opening = None
        self._failures = 0
        unsent, self._unsent = self._unsent, []
        for on_reply, command in unsent:
            self.send(on_reply, *command)

    def _turn_away(self, why: BaseException) -> None:
        unsent, self._unsent = self._unsent, []
        for on_reply, _ in unsent:
            on_reply(no_connection(why))

    async def _make_link(self) -> Link | None:
        """Return a new connection, or None when the calls have to go through the pool."""
        pool: Any = self._redis.connection_pool  # it has no types
        connection = pool.make_connection()
        self._falls_back = (
            type(connection) not in _KNOWN
            or (self._leaves_repeating and bool(connection.retry_on_error))
            or connection.credential_provider is not None
            or self._redis.single_connection_client
        )
        if self._falls_back:
            return None
        timeout_s = self._timeout_s or connection.socket_timeout or CALL_TIMEOUT_S
        try:
            async with asyncio.timeout(timeout_s):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if connection._writer.is_closing():  # noqa: SLF001  see the head of the module
            await connection.disconnect(nowait=True)
            raise RedisConnectionError("the server closed the connection")
        return Link(connection, timeout_s, self._forget)

    def _forget(self, link: Link) -> None:
        if self._link is link:
            self._link = None

    async def _execute(self, on_reply: OnReply, command: tuple[Any, ...]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                reply: Any = await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            on_reply(no_answer(CLOSED))
            raise
        except Exception as exc:  # noqa: BLE001  whatever it is, it belongs to the caller
            reply = exc
            if turns_away(exc):
                reply = refusal(exc)
            elif isinstance(exc, _AWAY):
                reply = no_answer(exc)
        on_reply(reply)


class PlainPipe(Pipe):
    """A pipe that raises redis-py's own errors, for those who know what to do about each.

    So no command is repeated for them: a claim that redis-py sent twice would hold jobs of which
    nobody hears.
    """

    _leaves_repeating = False

    async def execute_command(self, *command: Any) -> Any:
        """Send a command and return its reply; raise what redis-py would raise."""
        try:
            return await super().execute_command(*command)
        except RedisUnavailable as exc:
            raise (exc.__cause__ or exc) from None


def _settle(future: asyncio.Future[Any], reply: Any) -> None:
    if future.done():
        return  # its caller was cancelled
    if isinstance(reply, BaseException):
        future.set_exception(reply)
    else:
        future.set_result(reply)


__all__ = ["Pipe", "PlainPipe"]
