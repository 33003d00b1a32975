"""A TCP proxy that holds back every byte for a while in each direction, like a longer wire.

``python -m tests.benchmarks.proxy HOST PORT DELAY_MS``: prints its own port, and runs until it
is ended. Bytes that arrive while others wait are not held up by them: it adds latency and takes
no bandwidth. It runs on asyncio's select loop, because epoll and uvloop know only whole
milliseconds, and one direction is to take half of one.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import sys
from collections import deque

READ_BYTES = 1 << 18


class Wire(asyncio.Protocol):
    """One direction of one connection: what arrives here leaves at the other end, later."""

    def __init__(self, delay_s: float) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Wire | None = None
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._under_way: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport; never wait to fill a packet."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Hold the bytes back."""
        self._under_way.append(data)
        self._loop.call_later(self._delay_s, self._deliver)

    def _deliver(self) -> None:
        data = self._under_way.popleft()
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """Close the other end, behind what is under way."""
        self._loop.call_later(self._delay_s, self._close_other)

    def _close_other(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Entrance(Wire):
    """The end that clients connect to; it opens the other end first."""

    def __init__(self, host: str, port: int, delay_s: float) -> None:
        super().__init__(delay_s)
        self._address = (host, port)
        self._opening: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Read nothing until the other end is open."""
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        self._opening = self._loop.create_task(self._open(), name="proxy connection")

    async def _open(self) -> None:
        assert self.transport is not None
        try:
            _, far = await self._loop.create_connection(lambda: Wire(self._delay_s), *self._address)
        except OSError:
            self.transport.close()
            return
        self.other, far.other = far, self
        self.transport.resume_reading()


async def serve(host: str, port: int, delay_s: float) -> None:
    """Listen on a free loopback port until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Entrance(host, port, delay_s), "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main(host: str, port: str, delay_ms: str) -> None:
    """Run the proxy."""

    def loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(serve(host, int(port), float(delay_ms) / 1000))


if __name__ == "__main__":
    main(*sys.argv[1:])
