"""A candidate in a process of its own: ``python -m tests.writer_process REDIS DATABASE NAME``."""

from __future__ import annotations

import asyncio
import logging
import sys

from redis.asyncio import Redis

from runner.codec import MsgpackCodec
from runner.writer import Candidate


async def main(redis_url: str, database_url: str, name: str) -> None:
    """Stand for election until killed."""
    candidate = Candidate(
        redis=Redis.from_url(redis_url), database_url=database_url, codec=MsgpackCodec(), name=name
    )
    await candidate.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    asyncio.run(main(*sys.argv[1:]))
