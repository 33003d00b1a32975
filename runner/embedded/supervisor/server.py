"""One server over its starts and stops."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .children import POLL_S
from .messages import HOST, ServerError, State

if TYPE_CHECKING:
    from .children import Child, Children

__all__ = ["Server", "free_port", "tail"]

# Below the ports that systems lend to outgoing connections: a client that keeps knocking on the
# port of a stopped server could otherwise be lent that very port, and hold it.
PORTS: Final = range(15_000, 32_768)
TAIL_BYTES: Final = 4_000


class Server(abc.ABC):
    """One server over its starts and stops: same port, same data."""

    name: str

    def __init__(self, children: Children, log: str, start_timeout_s: float) -> None:
        self._children = children
        self._log = log
        self._start_timeout_s = start_timeout_s
        self._port: int | None = None
        self._child: Child | None = None

    @abc.abstractmethod
    async def prepare(self) -> None:
        """Make the data if there are none, and see that they can be served."""

    @abc.abstractmethod
    def launch(self, port: int) -> Child:
        """Start the program."""

    @abc.abstractmethod
    async def ready(self, child: Child, port: int) -> bool:
        """Say whether the program serves, and is the one that was started."""

    @abc.abstractmethod
    async def end(self, child: Child) -> None:
        """End the program and keep its data whole."""

    @abc.abstractmethod
    async def crash(self, child: Child) -> None:
        """End the program as a crash would."""

    @property
    def state(self) -> State | None:
        """Where the server listens; None before its first start."""
        if self._port is None:
            return None
        return State(self._port, self._child.pid if self._child and self._child.runs else None)

    async def start(self) -> None:
        """Start the server and wait until it serves; nothing if it runs already."""
        if self._child and self._child.runs:
            return
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self.prepare()
                await self._launch_until_it_lasts()
        except TimeoutError:
            said = tail(self._log)
            await self.stop(kill=True)
            raise ServerError(
                f"{self.name} was not ready within {self._start_timeout_s:g} s{said}"
            ) from None

    async def stop(self, *, kill: bool = False) -> None:
        """End the server, gently or not; nothing if it does not run."""
        if self._child and self._child.runs:
            await (self.crash(self._child) if kill else self.end(self._child))

    async def restart(self, *, kill: bool = False) -> None:
        """End the server, gently or not, and start it again."""
        await self.stop(kill=kill)
        await self.start()

    async def _launch_until_it_lasts(self) -> None:
        port = self._port or free_port()
        while said := await self._launch(port):
            if self._port is None and "Address already in use" in said:
                port = free_port()
            elif not self.will_pass(said):
                raise ServerError(f"{self.name} ended while it started{said}")
            await asyncio.sleep(POLL_S)
        self._port = port

    async def _launch(self, port: int) -> str:
        """Start the program once; return what it said if it ended instead of serving."""
        begin = size(self._log)
        self._child = self.launch(port)
        while self._child.runs:
            if await self.ready(self._child, port):
                return ""
            await asyncio.sleep(POLL_S)
        return tail(self._log, begin)

    def will_pass(self, said: str) -> bool:
        """Say whether a start that ended with these words will succeed a little later."""
        del said
        return False


def free_port() -> int:
    """Return a port that nobody listens on now; another may take it before it is used."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise ServerError(f"no free port on {HOST} among 200 of {PORTS}")


def size(log: str) -> int:
    """Return how many bytes the log has now."""
    return Path(log).stat().st_size


def tail(log: str, begin: int = 0) -> str:
    """Return the end of what a log says after byte `begin`, under its name."""
    with Path(log).open("rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return f"\n--- {log}\n{file.read().decode(errors='replace').strip()}"
