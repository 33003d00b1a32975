"""One Valkey and one Postgres for a whole test run, started when a test first asks.

The process that starts the run (with xdist, the controller) holds them; the other processes ask it
for their addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import threading
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import redis

from runner import embedded
from tests import template
from tests.support import run_apart

if TYPE_CHECKING:
    from collections.abc import Iterator

REDIS_DATABASES = 1024
LEASE_S = 3600


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the run's servers are, and the database that tests clone."""

    redis_url: str
    database_url: str
    template: str


@dataclass(frozen=True, slots=True)
class Door:
    """Where another process of the run asks for the addresses."""

    port: int
    key: bytes

    def ask(self) -> Addresses:
        """Return the addresses; the first to ask waits until the servers have started."""
        with Client(("127.0.0.1", self.port), authkey=self.key) as connection:
            answer = connection.recv()
        if isinstance(answer, str):
            raise embedded.EmbeddedServerError(answer)
        return cast(Addresses, answer)


class Host:
    """Starts the servers once, when first asked, and stops them at the end of the run."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._servers: embedded.Servers | None = None
        self._addresses: Addresses | None = None
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._door: Door | None = None
        self._closing = threading.Event()

    def ask(self) -> Addresses:
        """Return the addresses; the first to ask waits until the servers have started."""
        with self._starting:
            if self._servers is None:
                self._servers = embedded.start(
                    fsync=False, redis_settings={"databases": REDIS_DATABASES}
                )
            if self._addresses is None:
                addresses = Addresses(
                    redis_url=self._servers.redis_url,
                    database_url=self._servers.database_url,
                    template=f"template_{os.getpid()}_{secrets.token_hex(3)}",
                )
                run_apart(_make_template(addresses))
                self._addresses = addresses
            return self._addresses

    def open_door(self) -> Door:
        """Let other processes ask, from now on."""
        if self._listener is None:
            key = secrets.token_bytes()
            self._listener = Listener(("127.0.0.1", 0), authkey=key)
            self._door = Door(cast("tuple[str, int]", self._listener.address)[1], key)
            self._thread = threading.Thread(
                target=self._answer, args=(self._listener,), name="servers", daemon=True
            )
            self._thread.start()
        assert self._door
        return self._door

    def _answer(self, listener: Listener) -> None:
        while not self._closing.is_set():
            with (
                contextlib.suppress(EOFError, OSError, AuthenticationError),
                listener.accept() as connection,
            ):
                connection.send(self._addresses_or_error())

    def _addresses_or_error(self) -> Addresses | str:
        if self._closing.is_set():
            return "the test run is over"
        try:
            return self.ask()
        except Exception as error:  # noqa: BLE001  the process that asks raises it
            return f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """Stop listening and end the servers, as far as they have been started."""
        self._closing.set()
        if self._listener and self._thread and self._door:
            with contextlib.suppress(embedded.EmbeddedServerError):
                self._door.ask()  # wakes the thread, which then sees that it is over
            self._thread.join()
            self._listener.close()
        if self._servers:
            with self._servers:
                if self._addresses:
                    url, name = self._addresses.database_url, self._addresses.template
                    run_apart(_drop_database(url, name))


async def _make_template(addresses: Addresses) -> None:
    await _create_database(addresses.database_url, addresses.template, template="template0")
    url = urlsplit(addresses.database_url)._replace(path=f"/{addresses.template}").geturl()
    connection = await asyncpg.connect(url)
    try:
        await template.fill(connection)
    finally:
        await connection.close()


async def _create_database(url: str, name: str, *, template: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    finally:
        await connection.close()


async def _drop_database(url: str, name: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@contextlib.contextmanager
def database(addresses: Addresses, *, template: str | None = None) -> Iterator[str]:
    """Lend the URL of a fresh clone of the template; drop it afterwards, connections and all."""
    name = f"test_{secrets.token_hex(6)}"
    run_apart(
        _create_database(addresses.database_url, name, template=template or addresses.template)
    )
    try:
        yield with_path(addresses.database_url, name)
    finally:
        run_apart(_drop_database(addresses.database_url, name))


@contextlib.contextmanager
def redis_database(addresses: Addresses) -> Iterator[str]:
    """Lend the URL of an empty database number that no other test uses; empty it afterwards."""
    with redis.Redis.from_url(with_path(addresses.redis_url, "0")) as leases:
        number, lease = _lease(leases, addresses)
        url = with_path(addresses.redis_url, str(number))
        try:
            yield url
        finally:
            with redis.Redis.from_url(url) as own:
                own.flushdb()
            leases.delete(lease)


def _lease(leases: redis.Redis, addresses: Addresses) -> tuple[int, str]:
    """Take a number that is free and empty: what is in a user's own server stays there."""
    settings = cast("dict[str, str]", leases.config_get("databases"))
    count = int(settings["databases"])
    for number in random.sample(range(1, count), count - 1):
        lease = f"tests:lease:{number}"
        if leases.set(lease, os.getpid(), nx=True, ex=LEASE_S):
            with redis.Redis.from_url(with_path(addresses.redis_url, str(number))) as own:
                if own.dbsize() == 0:
                    return number, lease
            leases.delete(lease)
    raise AssertionError(f"none of the {count} databases of {addresses.redis_url} is free")


def with_path(url: str, path: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{path}"))


class ChaosServers:
    """A Valkey and a Postgres of one test's own, for it to stop, kill and start again.

    Whatever Valkey has answered survives its being killed; so does what Postgres has committed.
    """

    def __init__(self, servers: embedded.Servers) -> None:
        self.sync = servers
        self.redis_url = servers.redis_url
        self.database_url = servers.database_url

    @property
    def redis_pid(self) -> int | None:
        """The process of Valkey; None while it is stopped."""
        return self.sync.redis_pid

    @property
    def postgres_pid(self) -> int | None:
        """The process of Postgres; None while it is stopped."""
        return self.sync.postgres_pid

    async def start_redis(self) -> None:
        """Start Valkey again, on the same port and data."""
        await asyncio.to_thread(self.sync.start_redis)

    async def stop_redis(self, *, kill: bool = False) -> None:
        """Stop Valkey; with `kill`, as a crash would."""
        await asyncio.to_thread(self.sync.stop_redis, kill=kill)

    async def restart_redis(self, *, kill: bool = False) -> None:
        """Stop Valkey and start it again."""
        await asyncio.to_thread(self.sync.restart_redis, kill=kill)

    async def start_postgres(self) -> None:
        """Start Postgres again, on the same port and data."""
        await asyncio.to_thread(self.sync.start_postgres)

    async def stop_postgres(self, *, kill: bool = False) -> None:
        """Stop Postgres; with `kill`, as a crash would."""
        await asyncio.to_thread(self.sync.stop_postgres, kill=kill)

    async def restart_postgres(self, *, kill: bool = False) -> None:
        """Stop Postgres and start it again."""
        await asyncio.to_thread(self.sync.restart_postgres, kill=kill)
