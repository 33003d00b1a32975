"""Tell systemd how the service is, by its datagram socket; without systemd, nothing happens."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Sends states to ``NOTIFY_SOCKET``; see sd_notify(3).

    Takes the variables out of the environment: they are not meant for the workers.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address, usec, pid = (environment.pop(name, "") for name in VARIABLES)
        # A name that begins with @ is abstract: in the address it begins with a zero byte.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_ours = not pid or pid == str(os.getpid())
        self.watchdog_s = int(usec) / 2e6 if address and usec.isdigit() and is_ours else None
        """How often `alive` is to be called: half of what systemd waits. None: never."""

    def ready(self, status: str) -> None:
        """Say that the service serves."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a rolling restart has begun; `ready` ends it."""
        # systemd compares this clock, CLOCK_MONOTONIC, with its own.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the service ends."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Say that the supervisor's loop turns."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say in words how the service is."""
        self._send(f"STATUS={text}")

    def _send(self, *states: str) -> None:
        if not self._address:
            return
        # A systemd that does not listen is no reason to end.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door,
        ):
            door.setblocking(False)
            door.sendto("\n".join(states).encode(), self._address)
