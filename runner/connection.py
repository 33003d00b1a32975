"""Connect to Redis: from a URL or arq's settings to a client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from arq.connections import RedisSettings
from arq.connections import create_pool as arq_create_pool

from runner import connections, keys
from runner.client import MAX_PAYLOAD_BYTES, Client
from runner.errors import SettingsError
from runner.middleware import check
from runner.packing import pack_in_c
from runner.signing import SigningKeys, chosen_codec
from runner.tasks import EnqueueOptions, WhenFull, seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence
    from datetime import timedelta
    from types import TracebackType

    from runner.codec import Codec
    from runner.middleware import Middleware


class Connecting:
    """The value of `connect`: await it, or enter it with ``async with``."""

    def __init__(self, make: Callable[[], Awaitable[Client]]) -> None:
        self._make = make
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._make().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._make()
        return self._client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            await self._client.aclose()


def connect(
    redis: str | RedisSettings = "redis://localhost:6379",
    *,
    codec: str | Codec = "msgpack",
    signing_keys: SigningKeys | None = None,
    queue: str = keys.DEFAULT_QUEUE,
    max_length: int | None = None,
    when_full: WhenFull = "raise",
    full_timeout: float | timedelta | None = None,
    max_payload_bytes: int = MAX_PAYLOAD_BYTES,
    middleware: Sequence[Middleware] = (),
) -> Connecting:
    """Connect to Redis and return a client.

    Args:
        redis: a URL (``redis://``, ``rediss://``, ``unix://``) or arq's `RedisSettings`.
        codec: "msgpack" (safe, the default), "pickle" (fleets in migration), or your own.
        signing_keys: sign jobs, and read signed results only; the same keys as the workers'.
            A mapping or pairs of key id and key, or a text "id:hex,id:hex"; the first signs.
        queue: the queue of tasks that name none.
        max_length: how many jobs a queue may hold, those that run or are deferred among
            them, for this client to add one; None: any number.
        when_full: what a call does when the queue holds so many: "raise" `QueueFull`, or
            "wait" for room.
        full_timeout: seconds that it waits before it raises `QueueFull`; None: without end.
        max_payload_bytes: how large an encoded job may be.
        middleware: what stands around each call that enqueues, the first outermost.

    Example:
        >>> async with runner.connect("redis://localhost") as client:
        ...     await client.enqueue(place_order, 42)

        A producer that is held back when workers fall behind:

        >>> client = await runner.connect(url, max_length=100_000, when_full="wait")

    Raises:
        ArgumentsError: a bound makes no sense.
        SettingsError: the codec is unknown, or the keys are not right.
    """
    settings = settings_of(redis) if isinstance(redis, str) else redis
    chosen = chosen_codec(codec, signing_keys)
    assert chosen is not None  # None is what a worker may have
    bound = EnqueueOptions(
        max_length=max_length,
        when_full=when_full,
        full_timeout=seconds(full_timeout),
    )

    layers = check(middleware)

    async def make() -> Client:
        client = await open_client(settings, codec=chosen, queue=queue, middleware=layers)
        client.bound = bound
        client.max_payload_bytes = max_payload_bytes
        return client

    return Connecting(make)


def settings_of(url: str) -> RedisSettings:
    """Read the address of a Redis; raise `SettingsError` when it is none."""
    try:
        return RedisSettings.from_dsn(url)
    except (RuntimeError, ValueError) as exc:
        # Not the whole text: there may be a password in it.
        scheme = url.partition("://")[0] if "://" in url else "no scheme"
        raise SettingsError(
            f"not an address of Redis ({scheme}): give redis://host:port/number, rediss://… or "
            f"unix://…",
        ) from exc


async def open_client(
    settings: RedisSettings,
    *,
    codec: Codec,
    queue: str,
    expires_extra_ms: int = keys.KEEP_MS,
    middleware: Sequence[Middleware] = (),
) -> Client:
    """Make a client by arq's own pool factory, so that every one of its settings counts."""
    pool = await arq_create_pool(settings)
    pack_in_c(pool.connection_pool)
    await pool.connection_pool.disconnect()
    reset: Any = pool.connection_pool.reset  # it has no types
    reset()  # what was opened so far packs in Python: make it anew
    client = Client(connection_pool=pool.connection_pool)
    # The pool object of arq goes; its connections live on in the client, which closes them.
    client.auto_close_connection_pool = True
    client.job_serializer = codec.dumps
    client.job_deserializer = cast(Any, codec.loads)
    connections.let_callers_wait(client)
    client.default_queue_name = queue
    client.expires_extra_ms = expires_extra_ms
    client.middleware = tuple(middleware)
    return client


__all__ = ["Connecting", "connect", "open_client"]
