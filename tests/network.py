"""A network namespace whose way to this machine can be cut, one address at a time.

Packets to an address that is cut go to a neighbour that does not exist: they are dropped without
a word, and the kernels on both sides try for as long as they are told to.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from typing import TYPE_CHECKING, Self

from tests.silence import Wire

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Network", "NetworkWire"]

NOBODY = "02:00:00:00:00:99"


class Network:
    """A namespace joined to this machine by one wire; two addresses of this machine on it."""

    def __init__(self) -> None:
        self.name = f"writer-{secrets.token_hex(4)}"
        number = secrets.randbelow(200) + 20
        self._there = f"10.213.{number}.9"
        self.addresses = (f"10.213.{number}.1", f"10.213.{number}.2")
        self._near, self._far = f"n{self.name[-8:]}", f"f{self.name[-8:]}"

    @property
    def command(self) -> list[str]:
        """What to put in front of a command that is to run inside."""
        return ["ip", "netns", "exec", self.name]

    @staticmethod
    def is_permitted() -> bool:
        """Say whether namespaces can be made here."""
        if shutil.which("ip") is None or os.geteuid() != 0:
            return False
        try:
            with Network():
                return True
        except subprocess.CalledProcessError:
            return False

    def cut(self, address: str) -> None:
        """Drop what is sent from inside to this address."""
        self._inside("neigh", "replace", address, "lladdr", NOBODY, "dev", self._far)

    def mend(self, address: str) -> None:
        """Let packets through again."""
        self._inside("neigh", "del", address, "dev", self._far)

    def __enter__(self) -> Self:
        _ip("netns", "add", self.name)
        try:
            _ip(
                *("link", "add", self._near, "type", "veth"),
                *("peer", "name", self._far, "netns", self.name),
            )
            for address in self.addresses:
                _ip("addr", "add", f"{address}/24", "dev", self._near)
            _ip("link", "set", self._near, "up")
            self._inside("addr", "add", f"{self._there}/24", "dev", self._far)
            self._inside("link", "set", self._far, "up")
        except BaseException:
            _ip("netns", "del", self.name)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _ip("netns", "del", self.name)  # and the wire with it

    def _inside(self, *words: str) -> None:
        _ip("-n", self.name, *words)


class NetworkWire(Wire):
    """A wire that the kernel cuts: this end forwards from one of the network's addresses."""

    def __init__(self, url: str, network: Network, address: str) -> None:
        super().__init__(url)
        self.host = address
        self._network = network

    def cut(self) -> None:
        """Drop what is sent from inside the namespace."""
        self._network.cut(self.host)

    def mend(self) -> None:
        """Let packets through again, those that the kernel still tries among them."""
        if self.is_cut():
            self._network.mend(self.host)

    def is_cut(self) -> bool:
        """Say whether it is cut now."""
        shown = subprocess.run(
            ["ip", "-n", self._network.name, "neigh", "show", self.host],
            check=True,
            capture_output=True,
            text=True,
        )
        return NOBODY in shown.stdout


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
