"""A TCP proxy on the test's own loop that falls silent: a network that is cut without a word."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Wire", "wire_to"]


class Wire:
    """Passes bytes both ways until it is cut; then connections stay open and nothing arrives."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._sound = asyncio.Event()
        self._sound.set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._most: int | None = None
        self.stands = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.host = "127.0.0.1"
        self.url = url

    def cut(self) -> None:
        """Drop whatever is sent from now on, in both directions, new connections included."""
        self._sound.clear()

    def mend(self) -> None:
        """Let new bytes pass; what was dropped is lost, what was held back comes now."""
        self._sound.set()
        self._most = None
        self._flows.set()

    def hold_after(self, count: int) -> None:
        """Let so many bytes more of one connection through to the server, and then none.

        When that has come about, `stands` is set. Nothing is dropped.
        """
        self._most = count
        self._flows.clear()

    async def serve(self) -> asyncio.Server:
        """Listen on a free port, which `url` then names."""
        server = await asyncio.start_server(self._accept, self.host, 0)
        port = server.sockets[0].getsockname()[1]
        user = f"{self._target.username}@" if self._target.username else ""
        self.url = self._target._replace(netloc=f"{user}{self.host}:{port}").geturl()
        return server

    async def close(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()  # what was not sent may never be

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._sound.wait()
        assert self._target.hostname
        assert self._target.port
        far_reader, far_writer = await asyncio.open_connection(
            self._target.hostname, self._target.port
        )
        try:
            there = asyncio.create_task(
                self._pass(reader, far_writer, there=True), name="wire there"
            )
            back = asyncio.create_task(self._pass(far_reader, writer), name="wire back")
            try:
                await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
            finally:
                there.cancel()
                back.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
        finally:
            far_writer.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, there: bool = False
    ) -> None:
        passed = 0
        while data := await reader.read(1 << 16):
            if there and self._most is not None:
                passed += len(data)
                if passed > self._most:
                    self.stands.set()
                    await self._flows.wait()
            if self._sound.is_set():
                writer.write(data)
                await writer.drain()
        await self._sound.wait()  # the end of a connection does not get through either


@contextlib.asynccontextmanager
async def wire_to(url: str, wire: Wire | None = None) -> AsyncIterator[Wire]:
    """Lend a wire to the server that the URL names; one of another kind, where it is given."""
    wire = wire or Wire(url)
    server = await wire.serve()
    try:
        yield wire
    finally:
        server.close()
        await wire.close()
        await server.wait_closed()
