"""Wake an idle worker: by a token in Redis, or by the time at which a job is due.

A token is a hint, and nothing depends on one: the worker's poll delay stays the bound for
everything lost and for what stock clients enqueue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from runner import connections, keys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio import Redis

logger = logging.getLogger("runner.wake")

PENDING_S = 20
"""How long one BLPOP stays pending. It is never cancelled to wait differently: a cancelled
BLPOP can take a token with it."""

DEAD_S = PENDING_S + 5
RETRY_S = 0.5


class Waker:
    """Call `wake` for each token, and at the time that `due_in` names.

    Args:
        queues: the queues whose tokens count.
        wake: called in the loop; sets the worker's event.
    """

    def __init__(self, queues: Sequence[str], wake: Callable[[], None]) -> None:
        self._keys = [keys.wake(queue) for queue in queues]
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._connection: Redis | None = None

    def start(self, redis: Redis) -> None:
        """Listen on a connection of its own. Idempotent."""
        if self._task is None:
            self._connection = connections.another(redis.connection_pool)
            self._task = asyncio.create_task(self._listen(self._connection), name="runner wake")

    async def stop(self) -> None:
        """Stop listening and drop the timer. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(RedisError, OSError):
                await connection.aclose()

    def due_in(self, delay_s: float) -> None:
        """Wake the worker after so many seconds, in place of an earlier timer."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(delay_s, 0), self._wake)

    async def _listen(self, connection: Redis) -> None:
        while True:
            try:
                async with asyncio.timeout(DEAD_S):
                    token = await connection.blpop(self._keys, timeout=PENDING_S)  # type: ignore[misc]
                if token is not None:
                    self._wake()
            except (RedisError, OSError, TimeoutError) as exc:
                logger.debug("the wake connection failed: %s; connecting again", exc)
                await asyncio.sleep(RETRY_S)
