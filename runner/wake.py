"""Wake an idle worker: by a token in Redis, or by the time at which a job is due.

A token is a hint, and nothing depends on one: the worker's poll delay stays the bound for
everything lost and for what stock clients enqueue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from runner import connections, keys
from runner.pipe import Pipe

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
        wake: called in the loop.
    """

    def __init__(self, queues: Sequence[str], wake: Callable[[], None]) -> None:
        self._keys = [keys.wake(queue) for queue in queues]
        self._wake = wake
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._connection: Redis | None = None
        self._pipe: Pipe | None = None

    def start(self, redis: Redis) -> None:
        """Listen on a connection of its own. Idempotent."""
        if self._pipe is None:
            self._connection = connections.another(redis.connection_pool)
            self._pipe = Pipe(self._connection, timeout_s=DEAD_S)
            self._listen()

    async def stop(self) -> None:
        """Stop listening and drop the timers. Idempotent."""
        for timer in (self._timer, self._again):
            if timer is not None:
                timer.cancel()
        self._timer = self._again = None
        if self._pipe is not None:
            pipe, self._pipe = self._pipe, None
            await pipe.close()
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

    def _listen(self) -> None:
        if self._pipe is not None:
            self._pipe.send(self._heard, "BLPOP", *self._keys, PENDING_S)

    def _heard(self, reply: Any) -> None:
        """Take a token, None when none came, or what went wrong; listen again."""
        if self._pipe is None:
            return  # stopped
        if isinstance(reply, BaseException):
            logger.debug("the wake connection failed: %s; connecting again", reply)
            self._again = asyncio.get_running_loop().call_later(RETRY_S, self._listen)
            return
        self._listen()
        if reply is not None:
            self._wake()
