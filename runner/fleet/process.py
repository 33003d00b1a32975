"""One worker process: started with a socket to it, heard, told, and ended.

::

    starting ──ready──▶ serving ──drain──▶ leaving ──▶ gone
        └──────────────────┴───── dies ──────────────────▲
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from .messages import SOCKET, Lines, encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RECEIVED_BYTES = 65536
STOP_S = 10.0
"""What ending may take beyond the worker's own patience, before it is killed."""


class Member:
    """One worker process.

    Attributes:
        ready: set when it claims, and when it is gone.
        gone: set when it has ended; `status` says how.
        wants_out: set when it asks to be replaced, or is gone.
        why: what it asks for a replacement for, or leaves for.
        stop_s: how long it may take to end on SIGTERM.
        vitals: what it last said of itself.
        leaving: it was told to drain or to end.
        told: it was told to end, by a signal.
    """

    def __init__(self, number: int, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.number = number
        self.started = time.monotonic()
        self.ready = asyncio.Event()
        self.gone = asyncio.Event()
        self.wants_out = asyncio.Event()
        self.serves = False
        self.leaving = False
        self.told = False
        self.killed = False
        self.status: int | None = None
        self.why = ""
        self.stop_s = STOP_S
        self.vitals: dict[str, Any] = {}
        self._lines = Lines()
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            theirs.set_inheritable(True)
            self.pid = os.posix_spawn(
                command[0],
                list(command),
                {**environment, SOCKET: str(theirs.fileno())},
                # A group of its own: Ctrl-C reaches the supervisor, which passes it on, once.
                setpgroup=0,
                setsigmask=(),
            )
        asyncio.get_running_loop().add_reader(self._socket, self._hear)

    @property
    def name(self) -> str:
        """How log lines call it."""
        return f"worker {self.number} (pid {self.pid})"

    @property
    def age_s(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.started

    def _hear(self) -> None:
        try:
            data = self._socket.recv(RECEIVED_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket)
            return
        for message in self._lines.feed(data):
            self._heard(message)

    def _heard(self, message: dict[str, Any]) -> None:
        match message["say"]:
            case "ready":
                self.serves = True
                self.stop_s = message["stop_s"] + STOP_S
                self.ready.set()
            case "recycle":
                self.why = message["why"]
                self.wants_out.set()
            case "leaving":
                self.why = message["why"]
            case "vitals":
                self.vitals = message

    def drain(self) -> None:
        """Let it claim no more, finish, and end."""
        self.leaving = True
        with contextlib.suppress(OSError):  # it is gone already
            self._socket.send(encode("drain"))

    def tell(self, signum: signal.Signals) -> None:
        """Send it a signal to end by."""
        self.leaving = self.told = True
        if self.status is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it now, and all that it has started in its group."""
        if self.status is not None:
            return
        self.killed = self.leaving = self.told = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def ended(self, status: int) -> None:
        """Note its end, and end what it has left behind."""
        self._hear_the_rest()
        self.status = status
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._socket.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for event in (self.ready, self.gone, self.wants_out):
            event.set()

    def _hear_the_rest(self) -> None:
        """Read what it said last: why it leaves."""
        with contextlib.suppress(OSError):
            while data := self._socket.recv(RECEIVED_BYTES):
                for message in self._lines.feed(data):
                    self._heard(message)
