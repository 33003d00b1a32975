"""A wire to Redis that a test can slow down, or cut between a request and its reply."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import AsyncIterator

READ_BYTES = 1 << 16


@dataclass
class Wire:
    """One listening port in front of a server.

    Attributes:
        url: the server's address, by way of the proxy.
        delay_s: how long each piece is held back, in both directions.
        cut: requests that contain this are forwarded; their connection is closed when the
            reply comes, and the reply is thrown away. b"" cuts nothing.
        cuts: how often that happened.
        most_cuts: after how many no more are cut.
        mute: requests that contain this are thrown away, and nobody is told; b"" loses none.
        muted: how often that happened.
    """

    host: str
    port: int
    url: str = ""
    delay_s: float = 0
    cut: bytes = b""
    cuts: int = 0
    most_cuts: int = sys.maxsize
    mute: bytes = b""
    muted: int = 0
    pipes: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.pipes.add(task)
        far_reader, far_writer = await asyncio.open_connection(self.host, self.port)
        is_cut = asyncio.Event()
        try:
            with contextlib.suppress(OSError):
                async with asyncio.TaskGroup() as both:
                    back = both.create_task(self._back(far_reader, writer, is_cut))
                    await self._forth(reader, far_writer, is_cut)
                    back.cancel()
        finally:
            self.pipes.discard(task)
            for end in (writer, far_writer):
                end.close()

    async def _forth(self, reader: StreamReader, writer: StreamWriter, cut: asyncio.Event) -> None:
        while data := await reader.read(READ_BYTES):
            await asyncio.sleep(self.delay_s)
            if self.cut and self.cut in data:
                cut.set()
            if self.mute and self.mute in data:
                self.muted += 1
                continue
            writer.write(data)

    async def _back(self, reader: StreamReader, writer: StreamWriter, cut: asyncio.Event) -> None:
        while data := await reader.read(READ_BYTES):
            await asyncio.sleep(self.delay_s)
            if cut.is_set():
                self.cuts += 1
                if self.cuts >= self.most_cuts:
                    self.cut = b""
                writer.close()
                return
            writer.write(data)
        writer.close()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Wire]:
    """Lend a wire to the server at this URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    wire = Wire(parts.hostname, parts.port)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wire.url = urlunsplit(parts._replace(netloc=f"127.0.0.1:{port}"))
    try:
        yield wire
    finally:
        server.close()
        pipes = list(wire.pipes)
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)
