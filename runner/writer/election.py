"""Elect one candidate by a key in Redis with a short life, which is its heartbeat too.

The key only says who may try: the advisory lock in Postgres and the epoch in the position row
decide who writes. So nothing is lost when two candidates believe in themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from runner import keys
from runner.scripts import load

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Election", "NotElected"]

logger = logging.getLogger("runner.writer")

RENEWALS_A_TERM = 3


class NotElected(Exception):  # noqa: N818  not a failure: somebody else is
    """Raised when another candidate holds the key."""


@dataclass(slots=True)
class Election:
    """One candidate's part in the election.

    Attributes:
        redis: where the key is.
        name: the candidate.
        term_s: how long a heartbeat counts.
        renewed_at: when the key was last known to be ours; monotonic, 0 for never.
        doubted: whether the candidate lets others stand, because it may not be able to write.
    """

    redis: Redis
    name: str
    term_s: float
    renewed_at: float = 0.0
    doubted: bool = False

    async def stand(self) -> bool:
        """Take the key, or keep it; return whether it is ours."""
        asked_at = time.monotonic()
        async with asyncio.timeout(self.term_s):
            won = await load("writer_elect").call(
                self.redis, keys=[keys.LEADER], args=[self.name, int(self.term_s * 1000)]
            )
        self.renewed_at = asked_at if won else 0.0
        return bool(won)

    async def keep(self) -> None:
        """Renew the key until another has it; a Redis that does not answer decides nothing.

        Raises:
            NotElected: another candidate has the key.
        """
        while True:
            await asyncio.sleep(self.term_s / RENEWALS_A_TERM)
            try:
                elected = not await self._holder() if self.doubted else await self.stand()
            except (RedisError, OSError, TimeoutError) as exc:
                logger.warning("cannot renew the writer's election: %s", repr(exc))
                continue
            if not elected:
                raise NotElected("another candidate was elected")

    async def doubt(self, why: str) -> None:
        """Give the key up until `trust`, so that whoever can write may."""
        if not self.doubted:
            logger.warning("%s: another may be the writer", why)
            self.doubted = True
        await self.resign()

    def trust(self) -> None:
        """Renew the key again, unless another has it by now."""
        self.doubted = False

    async def _holder(self) -> bytes | None:
        async with asyncio.timeout(self.term_s):
            holder: bytes | None = await self.redis.get(keys.LEADER)
        return holder

    def is_current(self) -> bool:
        """Say whether the last renewal still counts."""
        return time.monotonic() - self.renewed_at < self.term_s

    async def resign(self) -> None:
        """Give the key up; never raises, because the key ends by itself."""
        self.renewed_at = 0.0
        try:
            async with asyncio.timeout(self.term_s):
                await load("writer_resign").call(self.redis, keys=[keys.LEADER], args=[self.name])
        except (RedisError, OSError, TimeoutError) as exc:
            logger.info("could not give the writer's key up, it ends by itself: %s", exc)
