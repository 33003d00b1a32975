"""What views work with: one client, and what many of them ask for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from runner.errors import ArgumentsError, did_you_mean
from runner.inspect import begun_ms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from runner.client import Client
    from runner.dashboard.asked import Asked
    from runner.inspect import WorkerInfo
    from runner.limits import Paused
    from runner.tasks import Task

T = TypeVar("T")

"""What says that Redis is away, or did not answer in time."""

FRESH_S = 0.8
"""What many pages ask for is asked of Redis once in so many seconds."""
MOST_QUEUES = 30


class Desk:
    """The dashboard's client, opened when it is first needed.

    Args:
        connect: opens it.
        queues: those to show; those that workers read are found, and shown too.
        tasks: tasks whose parameters are known.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Client]],
        queues: Sequence[str],
        tasks: Sequence[Task[..., Any]],
    ) -> None:
        self._connect = connect
        self._client: Client | None = None
        self._opening = asyncio.Lock()
        self._named = tuple(queues)
        self.tasks = {task.name: task for task in tasks}
        self._workers = Fresh[list["WorkerInfo"]]()
        self._paused = Fresh["Paused"]()

    async def client(self) -> Client:
        """Return the client."""
        if self._client is None:
            async with self._opening:
                if self._client is None:
                    self._client = await self._connect()
        return self._client

    async def aclose(self) -> None:
        """Close the client. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers that live."""
        client = await self.client()
        return await self._workers.get(client.workers.list)

    async def begun_ms(self) -> int:
        """Return when the first of them began to work; 0 where none is."""
        return begun_ms(await self.workers())

    async def paused(self) -> Paused:
        """Return the queues and tasks that are paused."""
        client = await self.client()
        return await self._paused.get(client.paused)

    def forget(self) -> None:
        """Ask anew what was asked before: something was changed."""
        self._workers, self._paused = Fresh(), Fresh()

    async def queues(self) -> list[str]:
        """Return the queues to show: those that were named, and those that workers read."""
        found = (queue for worker in await self.workers() for queue in worker.queues)
        return list(dict.fromkeys((*self._named, *found)))[:MOST_QUEUES]

    async def queue(self, asked: Asked) -> str:
        """Return the queue that a page is about, the first where it names none.

        Raises:
            ArgumentsError: it is none of those that are shown.
        """
        known = await self.queues()
        name = asked.text("queue") or known[0]
        if name not in known:
            # Whatever else bears that name in Redis is nobody's queue.
            raise ArgumentsError(f"there is no queue {name!r} here{did_you_mean(name, known)}")
        return name

    async def names_of_tasks(self) -> list[str]:
        """Return the tasks that workers run, or that are known."""
        found = {name for worker in await self.workers() for name in worker.tasks}
        return sorted(found | self.tasks.keys())

    def task(self, name: str) -> Task[..., Any] | str | None:
        """Return a task by its name, or the name; None for ""."""
        return self.tasks.get(name, name) or None


class Fresh(Generic[T]):
    """A value that is asked for again when it is old; those who ask at once share one call."""

    def __init__(self) -> None:
        self._values: list[T] = []
        self._at = 0.0
        self._asking = asyncio.Lock()

    async def get(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the value, asked for if need be."""
        async with self._asking:
            if not self._values or time.monotonic() - self._at > FRESH_S:
                self._values = [await ask()]
                self._at = time.monotonic()
            return self._values[0]


__all__ = ["Desk", "Fresh"]
