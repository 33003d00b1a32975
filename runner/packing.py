"""Connections that write commands down in C.

redis-py's asyncio connections join a command's bytes in Python, about a microsecond for each
argument; a claim-and-settle call has thousands. hiredis does the same in a twentieth. (Its
own blocking connections use hiredis for both directions since redis-py 5.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hiredis
from redis.asyncio.connection import (
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import DataError

if TYPE_CHECKING:
    _Base = Connection
else:
    _Base = object


class _PackingInC(_Base):
    def pack_command(self, *args: Any) -> list[bytes]:
        """Return the command in the protocol's form, in one piece."""
        name = args[0]
        if isinstance(name, str):
            name = name.encode()
        if b" " in name:
            args = (*name.split(), *args[1:])
        try:
            return [hiredis.pack_command(args)]
        except TypeError as exc:
            raise DataError(f"a command takes bytes, text and numbers: {exc}") from exc


class PackingConnection(_PackingInC, Connection):
    """A connection over TCP."""


class PackingSSLConnection(_PackingInC, SSLConnection):
    """A connection over TLS."""


class PackingUnixConnection(_PackingInC, UnixDomainSocketConnection):
    """A connection over a unix socket."""


_FASTER: dict[type, type] = {
    Connection: PackingConnection,
    SSLConnection: PackingSSLConnection,
    UnixDomainSocketConnection: PackingUnixConnection,
}
PACKING: tuple[type, ...] = tuple(_FASTER.values())
"""The classes above."""


def pack_in_c(pool: ConnectionPool) -> None:
    """Let the pool's next connections pack in C; a pool of other kinds is left as it is."""
    pool.connection_class = _FASTER.get(pool.connection_class, pool.connection_class)
