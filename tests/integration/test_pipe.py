"""One connection for many calls: whose reply is whose, and what becomes of calls when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest
import uvloop
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from runner.errors import RedisUnavailable
from runner.pipe import Pipe, PlainPipe
from runner.scripts import load
from tests.support import run_apart, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.servers import ChaosServers

pytestmark = pytest.mark.timeout(30)


class Middle:
    """A proxy between a pipe and its server that cuts replies in two, or keeps them back."""

    def __init__(
        self, url: str, *, path: Path | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._far = urlsplit(url)
        self._path = path
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.cut_after: int | None = None
        """How many bytes of replies still pass before the connection is cut."""
        self.is_silent = False
        """Replies are swallowed."""

    async def __aenter__(self) -> str:
        if self._path is not None:
            self._server = await asyncio.start_unix_server(self._accept, self._path)
            return f"unix://{self._path}"
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        scheme = "rediss" if self._tls else "redis"
        return urlunsplit(self._far._replace(scheme=scheme, netloc=f"127.0.0.1:{port}"))

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer), name="proxy")
        self._serving.add(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._far.hostname, self._far.port)
        there = asyncio.create_task(self._there(reader, far_writer), name="proxy there")
        try:
            while data := await far_reader.read(65536):
                if self.is_silent:
                    continue
                if self.cut_after is not None:
                    data, self.cut_after = data[: self.cut_after], self.cut_after - len(data)
                writer.write(data)
                if self.cut_after is not None and self.cut_after <= 0:
                    self.cut_after = None
                    break
        finally:
            there.cancel()
            await asyncio.gather(there, return_exceptions=True)
            for end in (writer, far_writer):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    @staticmethod
    async def _there(reader: asyncio.StreamReader, far: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            far.write(data)
        far.close()


@contextlib.asynccontextmanager
async def piped(url: str, **settings: Any) -> AsyncIterator[Pipe]:
    """Lend a pipe over a pool with these settings."""
    redis = Redis(connection_pool=ConnectionPool.from_url(url, **settings))
    pipe = Pipe(redis)
    try:
        yield pipe
    finally:
        await pipe.close()
        await redis.aclose(close_connection_pool=True)


@pytest.fixture
async def pipe(redis_url: str) -> AsyncIterator[Pipe]:
    async with piped(redis_url) as opened:
        yield opened


def link_of(pipe: Pipe) -> Any:
    return pipe._link


async def connections_named(url: str, name: str) -> int:
    async with Redis.from_url(url) as redis:
        return sum(client["name"] == name for client in await redis.client_list())


# Whose reply is whose


async def test_each_call_gets_its_own_reply_over_one_connection(pipe: Pipe) -> None:
    replies = await asyncio.gather(*(pipe.execute_command("ECHO", n) for n in range(1_000)))
    assert replies == [b"%d" % n for n in range(1_000)]
    ids = await asyncio.gather(*(pipe.execute_command("CLIENT", "ID") for _ in range(10)))
    assert len(set(ids)) == 1


async def test_cancelled_callers_leave_the_connection_and_the_others_alone(pipe: Pipe) -> None:
    before = await pipe.execute_command("CLIENT", "ID")
    calls = [asyncio.create_task(pipe.execute_command("ECHO", n)) for n in range(100)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [reply for reply in done if isinstance(reply, bytes)] == [
        b"%d" % n for n in range(1, 100, 2)
    ]
    assert await pipe.execute_command("CLIENT", "ID") == before


async def test_error_reply_is_its_callers_alone(pipe: Pipe) -> None:
    await pipe.execute_command("SET", "text", "t")
    commands = (("ECHO", "a"), ("LPUSH", "text", "x"), ("ECHO", "b"))
    calls = [pipe.execute_command(*command) for command in commands]
    first, error, last = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, last) == (b"a", b"b")
    assert isinstance(error, ResponseError)
    assert "WRONGTYPE" in str(error)


async def test_argument_that_cannot_travel_is_its_callers_alone(pipe: Pipe) -> None:
    await pipe.execute_command("PING")
    bad = pipe.execute_command("ECHO", object())
    replies = await asyncio.gather(bad, pipe.execute_command("ECHO", "b"), return_exceptions=True)
    assert isinstance(replies[0], TypeError)
    assert replies[1] == b"b"


async def test_argument_that_cannot_travel_is_found_before_there_is_a_connection(
    pipe: Pipe,
) -> None:
    bad = pipe.execute_command("ECHO", object())
    replies = await asyncio.gather(bad, pipe.execute_command("ECHO", "b"), return_exceptions=True)
    assert isinstance(replies[0], TypeError)
    assert replies[1] == b"b"


async def test_large_arguments_and_replies_pass_whole(pipe: Pipe) -> None:
    blob = bytes(range(256)) * 16_384  # 4 MB
    small, large, last = await asyncio.gather(
        pipe.execute_command("ECHO", "small"),
        pipe.execute_command("ECHO", blob),
        pipe.execute_command("ECHO", "last"),
    )
    assert (small, last) == (b"small", b"last")
    assert large == blob


async def test_script_that_the_server_does_not_know_is_sent_whole(
    chaos_servers: ChaosServers,
) -> None:
    script = load("results")
    async with piped(chaos_servers.redis_url) as pipe:
        for _ in range(2):
            await pipe.execute_command("SCRIPT", "FLUSH")
            assert await pipe.evalsha(script, ["queue"], ["channel", 1000, "id"]) == [None]
            assert await pipe.execute_command("SCRIPT", "EXISTS", script.sha) == [1]


async def test_messages_that_nobody_asked_for_are_no_replies(redis_url: str) -> None:
    """With RESP3 the server pushes invalidations between replies."""
    key = uuid4().hex
    async with piped(redis_url, protocol=3) as pipe, Redis.from_url(redis_url) as other:
        await pipe.execute_command("CLIENT", "TRACKING", "ON")
        for n in range(3):
            await pipe.execute_command("GET", key)
            await other.set(key, n)
            assert await pipe.execute_command("ECHO", n) == b"%d" % n


# What redis-py's settings say


async def test_password_user_name_and_database_of_the_address_count(redis_url: str) -> None:
    user = f"u{uuid4().hex}"
    parts = urlsplit(redis_url)
    url = urlunsplit(parts._replace(netloc=f"{user}:secret@{parts.hostname}:{parts.port}"))
    async with Redis.from_url(redis_url) as admin:
        await admin.execute_command("ACL", "SETUSER", user, "on", ">secret", "~*", "+@all")
        try:
            async with piped(url, client_name=user) as pipe:
                assert await pipe.execute_command("ACL", "WHOAMI") == user.encode()
                assert await pipe.execute_command("CLIENT", "GETNAME") == user.encode()
                await pipe.execute_command("SET", "here", 1)
                assert await admin.get("here") == b"1"
        finally:
            await admin.execute_command("ACL", "DELUSER", user)


async def test_wrong_password_is_named_and_nothing_ran(redis_url: str) -> None:
    parts = urlsplit(redis_url)
    url = urlunsplit(parts._replace(netloc=f"nobody:wrong@{parts.hostname}:{parts.port}"))
    async with piped(url) as pipe:
        with pytest.raises(RedisUnavailable, match="password") as caught:
            await pipe.execute_command("PING")
        assert not caught.value.may_have_run
        assert isinstance(caught.value.__cause__, AuthenticationError)
        assert "wrong" not in str(caught.value)


def socket_of(pipe: Pipe, what: str) -> Any:
    return link_of(pipe)._transport.get_extra_info(what)


def carries(
    new_loop: Callable[[], asyncio.AbstractEventLoop], middle: Middle, what: str, **settings: Any
) -> bool:
    """Send what is short, long and cut off through this proxy; tell of the first connection."""

    async def scenario() -> bool:
        async with middle as url, piped(url, **settings) as pipe:
            parts = (b"a", b"x" * 3_000_000, b"b")
            assert await asyncio.gather(*(pipe.execute_command("ECHO", p) for p in parts)) == [
                *parts
            ]
            found = socket_of(pipe, what) is not None
            middle.cut_after = 3
            with pytest.raises(RedisUnavailable):
                await pipe.execute_command("ECHO", "cut")
            assert await pipe.execute_command("ECHO", "again") == b"again"
            return found

    with asyncio.Runner(loop_factory=new_loop) as loop:
        return loop.run(scenario())


LOOPS = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@LOOPS
def test_tcp_is_taken_over(
    redis_url: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    assert carries(new_loop, Middle(redis_url), "socket")


@LOOPS
def test_unix_socket_is_taken_over(
    redis_url: str, tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    assert carries(new_loop, Middle(redis_url, path=tmp_path / "s"), "socket")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate by openssl")
@LOOPS
def test_tls_is_taken_over(
    redis_url: str, tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 1 -subj /CN=test"
    subprocess.run(make.split(), cwd=tmp_path, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    middle = Middle(redis_url, tls=tls)
    assert carries(new_loop, middle, "cipher", ssl_ca_certs=str(tmp_path / "cert"))


class OwnConnection(Connection):
    """A connection of a class that the pipe cannot know."""


@pytest.mark.parametrize(
    "settings",
    [{"connection_class": OwnConnection}, {"retry_on_error": [RedisConnectionError]}],
    ids=["unknown class", "redis-py repeats"],
)
async def test_pool_takes_the_calls_that_the_pipe_cannot(
    redis_url: str, settings: dict[str, Any]
) -> None:
    async with piped(redis_url, **settings) as pipe:
        replies = await asyncio.gather(*(pipe.execute_command("ECHO", n) for n in range(10)))
        assert replies == [b"%d" % n for n in range(10)]
        with pytest.raises(ResponseError):
            await pipe.execute_command("NO-SUCH-COMMAND")
        assert link_of(pipe) is None


class Password(UsernamePasswordCredentialProvider):
    """Whoever gives passwords may change them: redis-py asks anew for each connection."""


@pytest.mark.parametrize(
    ("settings", "for_client", "for_engine"),
    [
        ({}, "pipe", "pipe"),
        ({"protocol": 3}, "pipe", "pipe"),
        ({"client_name": "shop"}, "pipe", "pipe"),
        ({"socket_timeout": 5, "socket_connect_timeout": 5}, "pipe", "pipe"),
        ({"socket_keepalive": True, "health_check_interval": 1}, "pipe", "pipe"),
        ({"max_connections": 1}, "pipe", "pipe"),
        ({"decode_responses": False, "encoding": "latin-1"}, "pipe", "pipe"),
        ({"retry": Retry(NoBackoff(), 3)}, "pipe", "pipe"),
        # redis-py repeats what may be repeated; the engine knows better what may.
        ({"retry_on_timeout": True}, "pool", "pipe"),
        ({"retry_on_error": [RedisConnectionError]}, "pool", "pipe"),
        ({"credential_provider": Password("default", "")}, "pool", "pool"),
        ({"connection_class": OwnConnection}, "pool", "pool"),
    ],
    ids=lambda value: "+".join(value) or "defaults" if isinstance(value, dict) else value,
)
async def test_settings_of_a_pool_choose_the_way_of_the_calls(
    redis_url: str, settings: dict[str, Any], for_client: str, for_engine: str
) -> None:
    redis = Redis(connection_pool=ConnectionPool.from_url(redis_url, **settings))
    for kind, way in ((Pipe, for_client), (PlainPipe, for_engine)):
        pipe = kind(redis)
        try:
            assert await pipe.execute_command("ECHO", "a") == b"a"
            named = await pipe.execute_command("CLIENT", "GETNAME")
            assert named == (settings.get("client_name", "").encode() or None)
            assert way == ("pool" if link_of(pipe) is None else "pipe")
        finally:
            await pipe.close()
    await redis.aclose(close_connection_pool=True)


async def test_client_of_a_single_connection_keeps_to_it(redis_url: str) -> None:
    pool = ConnectionPool.from_url(redis_url)
    async with Redis(connection_pool=pool, single_connection_client=True) as redis:
        pipe = PlainPipe(redis)
        ids = {await pipe.execute_command("CLIENT", "ID"), await redis.client_id()}
        assert len(ids) == 1
        await pipe.close()
    await pool.disconnect()


async def test_pool_that_loses_its_server_leaves_the_outcome_open(
    chaos_servers: ChaosServers,
) -> None:
    async with piped(chaos_servers.redis_url, connection_class=OwnConnection) as pipe:
        await pipe.execute_command("PING")
        await chaos_servers.stop_redis(kill=True)
        with pytest.raises(RedisUnavailable) as caught:
            await pipe.execute_command("PING")
        assert caught.value.may_have_run


# What breaks


async def test_connection_cut_within_a_reply_fails_those_who_wait(redis_url: str) -> None:
    middle = Middle(redis_url)
    async with middle as url, piped(url) as pipe:
        await pipe.execute_command("PING")
        middle.cut_after = 1_007  # the first reply whole, and some of the second
        first, *others = await asyncio.gather(
            *(pipe.execute_command("ECHO", "x" * 990) for _ in range(5)), return_exceptions=True
        )
        assert first == b"x" * 990
        assert [type(other) for other in others] == [RedisUnavailable] * 4
        assert len({id(other) for other in others}) == 4
        assert all(other.may_have_run for other in others if isinstance(other, RedisUnavailable))
        assert await pipe.execute_command("ECHO", "again") == b"again"
        assert middle.connections == 2


async def test_server_that_falls_silent_fails_those_who_wait(redis_url: str) -> None:
    middle = Middle(redis_url)
    async with middle as url, piped(url, socket_timeout=0.2) as pipe:
        await pipe.execute_command("PING")
        middle.is_silent = True
        replies = await asyncio.gather(
            *(pipe.execute_command("ECHO", n) for n in range(3)), return_exceptions=True
        )
        assert [type(reply) for reply in replies] == [RedisUnavailable] * 3
        for reply in replies:
            assert isinstance(reply, RedisUnavailable)
            assert reply.may_have_run
            assert isinstance(reply.__cause__, RedisTimeoutError)
        middle.is_silent = False
        assert await pipe.execute_command("ECHO", "again") == b"again"


async def test_server_that_is_silent_from_the_start_is_given_up(redis_url: str) -> None:
    middle = Middle(redis_url)
    middle.is_silent = True
    async with middle as url, piped(url, socket_timeout=0.2) as pipe:
        with pytest.raises(RedisUnavailable, match="no connection") as caught:
            await pipe.execute_command("PING")
        assert not caught.value.may_have_run


async def test_bytes_that_are_no_reply_end_the_connection() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with piped(url, lib_name=None, lib_version=None) as pipe:
            with pytest.raises(RedisUnavailable, match="lost the connection"):
                await pipe.execute_command("PING")
    finally:
        server.close()


async def test_calls_to_a_server_that_is_down_did_not_run(chaos_servers: ChaosServers) -> None:
    async with piped(chaos_servers.redis_url) as pipe:
        await pipe.execute_command("PING")
        await chaos_servers.stop_redis(kill=True)
        await wait_until(lambda: link_of(pipe) is None, description="the pipe sees it")
        replies = await asyncio.gather(
            *(pipe.execute_command("PING") for _ in range(3)), return_exceptions=True
        )
        assert [type(reply) for reply in replies] == [RedisUnavailable] * 3
        for reply in replies:
            assert isinstance(reply, RedisUnavailable)
            assert not reply.may_have_run
            assert isinstance(reply.__cause__, RedisConnectionError)
        await chaos_servers.start_redis()
        assert await pipe.execute_command("PING") == b"PONG"


async def test_idle_connection_that_the_server_ends_costs_no_call(redis_url: str) -> None:
    async with piped(redis_url) as pipe, Redis.from_url(redis_url) as admin:
        number = await pipe.execute_command("CLIENT", "ID")
        await admin.client_kill_filter(_id=number)
        await wait_until(lambda: link_of(pipe) is None, description="the pipe sees it")
        assert await pipe.execute_command("CLIENT", "ID") > number


async def test_server_that_turns_calls_away_is_left(chaos_servers: ChaosServers) -> None:
    """A replica without its primary says MASTERDOWN: after a failover the primary is elsewhere."""
    async with (
        piped(chaos_servers.redis_url) as pipe,
        Redis.from_url(chaos_servers.redis_url) as admin,
    ):
        before = await pipe.execute_command("CLIENT", "ID")
        await admin.config_set("replica-serve-stale-data", "no")
        await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(RedisUnavailable, match="MASTERDOWN") as caught:
            await pipe.execute_command("GET", "key")
        assert not caught.value.may_have_run
        await admin.execute_command("REPLICAOF", "NO", "ONE")
        assert await pipe.execute_command("CLIENT", "ID") > before


# Its end


async def test_closed_pipe_leaves_no_connection_and_opens_again(redis_url: str) -> None:
    name = uuid4().hex
    async with piped(redis_url, client_name=name) as pipe:
        await pipe.close()  # before it was ever used
        await pipe.execute_command("PING")
        assert await connections_named(redis_url, name) == 1
        await pipe.close()
        await pipe.close()
        await _none_named(redis_url, name)
        assert await pipe.execute_command("PING") == b"PONG"
    await _none_named(redis_url, name)


async def _none_named(url: str, name: str) -> None:
    async def gone() -> bool:
        return await connections_named(url, name) == 0

    await wait_until(gone, description="the server has seen the end of the connection")


@pytest.mark.parametrize("ticks", [1, 3])
async def test_close_before_there_is_a_connection_fails_those_who_wait(
    redis_url: str, ticks: int
) -> None:
    name = uuid4().hex
    async with piped(redis_url, client_name=name) as pipe:
        call = asyncio.create_task(pipe.execute_command("PING"))
        for _ in range(ticks):
            await asyncio.sleep(0)
        await pipe.close()
        with pytest.raises(RedisUnavailable, match="closed") as caught:
            await call
        assert not caught.value.may_have_run
        await _none_named(redis_url, name)


async def test_close_fails_those_who_wait_for_a_reply(redis_url: str) -> None:
    async with piped(redis_url) as pipe:
        await pipe.execute_command("PING")
        call = asyncio.create_task(pipe.execute_command("BLPOP", uuid4().hex, 20))
        await asyncio.sleep(0)
        await pipe.close()
        with pytest.raises(RedisUnavailable, match="closed") as caught:
            await call
        assert caught.value.may_have_run


# Loops


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # nobody closes in the first loop
@LOOPS
def test_pipe_begins_anew_in_another_loop(
    redis_url: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Also where a call was under way when the first loop ended."""
    pipe = Pipe(Redis.from_url(redis_url))

    async def leave() -> None:
        assert await pipe.execute_command("ECHO", 1) == b"1"
        blocked = asyncio.create_task(pipe.execute_command("BLPOP", uuid4().hex, 1))
        await asyncio.sleep(0)
        blocked.cancel()

    async def go_on() -> None:
        assert await pipe.execute_command("ECHO", 2) == b"2"
        await pipe.close()

    with asyncio.Runner(loop_factory=new_loop) as loop:
        loop.run(leave())
    run_apart(go_on())
    gc.collect()  # the first loop's transport, here and not in another test
