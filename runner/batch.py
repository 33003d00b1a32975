"""Join what is asked for in one tick of the loop into one call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class Gathered(Generic[T]):
    """Hand everything added in one tick to `send`, one batch after the other.

    A task of its own sends, so that a cancelled caller drops only its own wait; while one
    call is under way the next batch gathers, so batches grow with the load and a lone item
    waits for nothing.

    Args:
        send: called with each batch. It must not raise: what goes wrong belongs to the items.
        name: the name of the sending task.
    """

    def __init__(self, send: Callable[[list[T]], Awaitable[None]], name: str) -> None:
        self._send = send
        self._name = name
        self._waiting: list[T] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, item: T) -> None:
        """Let this item travel with the next batch."""
        self._waiting.append(item)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send_all(), name=self._name)

    async def drain(self) -> None:
        """Wait until all that was added has been sent."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _send_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            await self._send(batch)
