"""Try the hosts of an address one by one, each with its share of the time.

asyncpg has one time limit for all hosts: the first that does not answer would use it up.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import asyncpg

from runner.errors import WriterUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["first_of", "one_by_one"]

logger = logging.getLogger("runner.writer")

T = TypeVar("T")


async def first_of(
    database_url: str, connect: Callable[[str, float], Awaitable[T]], *, timeout_s: float
) -> T:
    """Return what `connect` gives for the first host that takes it: called with a URL and seconds.

    What it raises for the last host goes up.
    """
    *urls, last = one_by_one(database_url)
    share_s = timeout_s / (len(urls) + 1)
    for url in urls:
        try:
            return await connect(url, share_s)
        except (WriterUnavailable, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            logger.info("a host of the database_url is passed over: %r", exc)
    return await connect(last, share_s)


def one_by_one(database_url: str) -> list[str]:
    """Return an address with several hosts as addresses with one each."""
    try:
        parts = urlsplit(database_url)
    except ValueError:  # asyncpg has more to say about it
        return [database_url]
    user, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return [database_url]
    return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]
