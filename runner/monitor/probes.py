"""A small HTTP server on the worker's loop: probes, and metrics.

It answers GET and HEAD of a few paths, one request a connection, and is meant for the machine
itself and for those who scrape: it has no TLS and no passwords, so it listens on the loopback
unless it is told otherwise. Whoever asks slowly, or too much at once, is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

logger = logging.getLogger("runner.monitor")

REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
MOST_HEAD = 16 * 1024
MOST_AT_ONCE = 32
PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered."""

    status: int
    body: str
    kind: str = PLAIN


Answers: TypeAlias = "Callable[[], Awaitable[Reply]]"


class Probes:
    """Answer on one port.

    Args:
        paths: what answers for each path.

    Attributes:
        port: where it listens, 0 before it does.
    """

    def __init__(self, paths: Mapping[str, Answers]) -> None:
        self.port = 0
        self._paths = paths
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int, *, shares: bool = False) -> None:
        """Listen; raise `OSError` when the port is taken.

        Args:
            host: the address.
            port: the port, 0 for a free one.
            shares: others that share it may listen there too.
        """
        self._server = await asyncio.start_server(
            self._connected, host, port, limit=MOST_HEAD, reuse_port=shares or None
        )
        self.port = self._server.sockets[0].getsockname()[1]
        logger.info("probes and metrics: http://%s:%d/", host, self.port)

    async def stop(self) -> None:
        """Stop listening, and cut off who is connected. Idempotent."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MOST_AT_ONCE:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(
            self._serve(reader, writer), name="runner probe"
        )
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                reply = await self._answer(method, rest.partition(" ")[0].partition("?")[0])
                writer.write(_encoded(reply, with_body=method != "HEAD"))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked is gone, too slow, or no client of HTTP
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()

    async def _answer(self, method: str, path: str) -> Reply:
        if method not in ("GET", "HEAD"):
            return Reply(405, "only GET and HEAD\n")
        answer = self._paths.get(path)
        if answer is None:
            return Reply(404, f"there are {', '.join(self._paths)}\n")
        try:
            return await answer()
        except Exception:
            logger.exception("%s could not be answered", path)
            return Reply(500, "an error, see the worker's log\n")


def _encoded(reply: Reply, *, with_body: bool) -> bytes:
    body = reply.body.encode()
    head = (
        f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\n"
        f"Content-Type: {reply.kind}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
