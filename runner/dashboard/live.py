"""Server-sent events: the part of a page that changes, sent when it has changed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from runner.connections import TROUBLE
from runner.dashboard.pages import NotThere
from runner.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

logger = logging.getLogger("runner.dashboard")

EVERY_S = 1.0
STILL_HERE_S = 15.0
LONGEST_S = 600.0
"""Then the browser asks anew, and is asked who it is."""
MOST_STREAMS = 200
MOST_KEPT = 256

Make = Callable[[], Awaitable[str]]


class Live:
    """The streams of one dashboard. Those who look at one page share what is read for it."""

    def __init__(self) -> None:
        self._closing = asyncio.Event()
        self._count = 0
        self._kept: OrderedDict[str, _Part] = OrderedDict()

    @property
    def is_full(self) -> bool:
        """Whether as many look as may."""
        return self._count >= MOST_STREAMS

    def close(self) -> None:
        """End all streams. Idempotent."""
        self._closing.set()

    async def stream(self, name: str, make: Make) -> AsyncIterator[bytes]:
        """Give the events of one page.

        Args:
            name: tells pages, and what their viewers may see, apart.
            make: makes the part of the page that changes.
        """
        self._count += 1
        try:
            yield b"retry: 2000\n\n"
            async for event in self._events(name, make):
                yield event
        finally:
            self._count -= 1

    async def _events(self, name: str, make: Make) -> AsyncIterator[bytes]:
        until = time.monotonic() + LONGEST_S
        said_at, last = time.monotonic(), ""
        while time.monotonic() < until and not self._closing.is_set():
            try:
                part = await self._part(name, make)
                event = _event("page", part)
            except TROUBLE as exc:
                part = f"Redis does not answer ({type(exc).__name__}). Trying again."
                event = _event("trouble", part)
            except (RunnerError, NotThere) as exc:
                part = str(exc)
                event = _event("trouble", part)
            except Exception:
                part = "Something went wrong in the dashboard. Its log says what."
                if part != last:  # and not each second
                    logger.exception("%s failed", name)
                event = _event("trouble", part)
            if part != last:
                last, said_at = part, time.monotonic()
                yield event
            elif time.monotonic() - said_at > STILL_HERE_S:
                said_at = time.monotonic()
                yield b": still here\n\n"
            await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(EVERY_S):
                await self._closing.wait()
        except TimeoutError:
            pass

    async def _part(self, name: str, make: Make) -> str:
        """Return the part, made anew when it is as old as the time between two events."""
        kept = self._kept.setdefault(name, _Part())
        self._kept.move_to_end(name)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return await kept.get(make)


class _Part:
    __slots__ = ("_at", "_making", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._at = -EVERY_S
        self._making = asyncio.Lock()

    async def get(self, make: Make) -> str:
        async with self._making:
            if time.monotonic() - self._at >= EVERY_S * 0.9:
                self._text = await make()
                self._at = time.monotonic()
            return self._text


def _event(kind: str, text: str) -> bytes:
    lines = text.replace("\r", "").split("\n")
    data = "".join(f"data: {line}\n" for line in lines)
    return f"event: {kind}\n{data}\n".encode(errors="backslashreplace")


__all__ = ["Live"]
