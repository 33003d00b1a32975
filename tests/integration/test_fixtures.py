"""The fixtures of this suite: each test has its own Redis database and its own Postgres one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest
from redis.asyncio import Redis

if TYPE_CHECKING:
    from tests.servers import ChaosServers


@pytest.mark.parametrize("turn", range(3))
async def test_redis_database_is_empty_at_first(redis_url: str, turn: int) -> None:
    async with Redis.from_url(redis_url) as client:
        assert await client.dbsize() == 0
        await client.set("left", turn)


@pytest.mark.parametrize("turn", range(3))
async def test_postgres_database_is_empty_at_first(database_url: str, turn: int) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE left_over ()")
    assert turn >= 0
    await connection.close()


async def test_chaos_servers_come_back(chaos_servers: ChaosServers) -> None:
    async with Redis.from_url(chaos_servers.redis_url) as client:
        await client.set("kept", 1)
        await chaos_servers.restart_redis(kill=True)
        assert await client.get("kept") == b"1"
