"""More connections with the settings of a pool: behind Sentinel, by a unix socket, over TLS.

A pool may be bounded by ``max_connections``. What listens all the time (for a wake token, for
results) would take its connections away for good, so it has one of its own beside the pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis as redis_sync
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Mapping

TROUBLE = (RedisError, OSError, TimeoutError)
"""What a call to Redis raises when Redis is away, restarting, out of memory or slow."""

UNBOUNDED = 2**31
"""What redis-py takes for `max_connections` where none are given."""

WAIT_S = 20
"""How long a call waits for one of a bounded number of connections."""

# What redis-py's asyncio connections take that its blocking ones do not know, or take otherwise.
_ONLY_ASYNC = frozenset(
    {"redis_connect_func", "connection_pool", "single_connection_client", "parser_class"}
)


def another(pool: ConnectionPool) -> Redis:
    """Return a client with a pool of its own and the settings of this one."""
    settings = dict(pool.connection_kwargs)
    if not isinstance(pool, SentinelConnectionPool):
        return Redis.from_pool(ConnectionPool(pool.connection_class, **settings))
    del settings["connection_pool"]
    sentinel_pool: Any = SentinelConnectionPool  # it has no types
    return Redis.from_pool(
        sentinel_pool(
            pool.service_name,
            pool.sentinel_manager,
            connection_class=pool.connection_class,
            is_master=pool.is_master,
            check_connection=pool.check_connection,
            **settings,
        )
    )


def let_callers_wait(redis: Redis) -> None:
    """Let calls wait for a connection where their number is bounded, in place of failing."""
    pool = redis.connection_pool
    if type(pool) is ConnectionPool and pool.max_connections < UNBOUNDED:
        redis.connection_pool = BlockingConnectionPool(
            max_connections=pool.max_connections,
            timeout=WAIT_S,
            connection_class=pool.connection_class,
            **pool.connection_kwargs,
        )


async def close_sentinels(pool: ConnectionPool) -> None:
    """Close what a pool asked for the master's address; redis-py leaves that open."""
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def blocking(pool: ConnectionPool, *, timeout_s: float) -> redis_sync.Redis:
    """Return a blocking client with the settings of an asyncio pool, for a thread of its own."""
    settings = _for_blocking(pool.connection_kwargs, timeout_s)
    is_tls = "SSL" in pool.connection_class.__name__
    if isinstance(pool, SentinelConnectionPool):
        return _master(pool, settings, timeout_s, is_tls=is_tls)
    kind: Any = redis_sync.Connection
    if "path" in settings:
        kind = redis_sync.UnixDomainSocketConnection
    elif is_tls:
        kind = redis_sync.SSLConnection
    return redis_sync.Redis.from_pool(redis_sync.ConnectionPool(connection_class=kind, **settings))


def _for_blocking(settings: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    taken = {
        name: value
        for name, value in settings.items()
        if name not in _ONLY_ASYNC and not name.startswith("retry") and value is not None
    }
    return {**taken, "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}


def _master(
    pool: Any,
    settings: dict[str, Any],
    timeout_s: float,
    *,
    is_tls: bool,
) -> redis_sync.Redis:
    """Find the master as the pool does: by the same sentinels, anew for each connection."""
    manager = pool.sentinel_manager
    addresses = [
        (sentinel.connection_pool.connection_kwargs[part] for part in ("host", "port"))
        for sentinel in manager.sentinels
    ]
    sentinel_of: Any = redis_sync.Sentinel  # it has no types
    sentinel = sentinel_of(
        [(host, port) for host, port in addresses],
        min_other_sentinels=manager.min_other_sentinels,
        sentinel_kwargs=_for_blocking(manager.sentinel_kwargs, timeout_s),
    )
    master: redis_sync.Redis = sentinel.master_for(pool.service_name, ssl=is_tls, **settings)
    return master
