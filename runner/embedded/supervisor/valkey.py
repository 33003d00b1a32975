"""Valkey, or Redis, as a server of the supervisor."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from .messages import HOST
from .server import Server

if TYPE_CHECKING:
    from .children import Child, Children
    from .messages import RedisPlan

__all__ = ["Redis"]


class Redis(Server):
    """Valkey, or Redis."""

    name = "Valkey"

    def __init__(self, plan: RedisPlan, children: Children, start_timeout_s: float) -> None:
        super().__init__(children, plan.log, start_timeout_s)
        self._plan = plan

    async def prepare(self) -> None:
        """Do nothing: Valkey makes its own data."""

    def launch(self, port: int) -> Child:
        """Start the server with its settings on standard input and its data where it stands."""
        settings = {**self._plan.settings, "port": str(port), "bind": HOST}
        return self._children.start(
            [self._plan.program, "-"],
            folder=self._plan.folder,
            log=self._log,
            death=signal.SIGKILL,
            told="".join(f"{name} {value}\n" for name, value in settings.items()).encode(),
        )

    async def ready(self, child: Child, port: int) -> bool:
        """Say whether the server has loaded its data; INFO names its process."""
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection(HOST, port)
                writer.write(b"INFO\r\nQUIT\r\n")
                said = (await reader.read()).decode(errors="replace")
        except OSError:  # refused, reset, or the timeout
            return False
        finally:
            if writer is not None:
                writer.close()
        return f"process_id:{child.pid}\r" in said and "loading:0\r" in said

    async def end(self, child: Child) -> None:
        """Let the server write what it has to write, then end it."""
        await child.end(signal.SIGTERM, signal.SIGKILL)

    async def crash(self, child: Child) -> None:
        """End the server at once."""
        await child.end(signal.SIGKILL)
