"""A pooler between the writer and Postgres is refused: the lock would not hold."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from runner.errors import WriterUnavailable
from runner.writer.session import connect
from tests.integration.test_writer_support import LASTING, engine
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PGBOUNCER = os.environ.get("PGBOUNCER") or shutil.which(
    "pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin"
)
IGNORED = (
    "ignore_startup_parameters = synchronous_commit,idle_session_timeout,jit,row_security,"
    "idle_in_transaction_session_timeout,tcp_user_timeout,transaction_timeout,plan_cache_mode,"
    "enable_seqscan,enable_hashjoin,enable_mergejoin\n"
)

pytestmark = pytest.mark.lasting_keys(*LASTING)


def _port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port


def _with_port(url: str, port: int) -> str:
    return urlsplit(url)._replace(netloc=f"postgres@127.0.0.1:{port}").geturl()


@contextlib.asynccontextmanager
async def pgbouncer(database_url: str, folder: Path, settings: str) -> AsyncIterator[str]:
    """Run a PgBouncer in front of the server, and lend the URL that leads through it."""
    assert PGBOUNCER
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    users = folder / "users.txt"
    users.write_text('"postgres" ""\n', "utf-8")
    ini = folder / "pgbouncer.ini"
    ini.write_text(
        f"[databases]\n* = host=127.0.0.1 port={_port_of(database_url)}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {users}\n{settings}",
        "utf-8",
    )
    users.chmod(0o644)
    ini.chmod(0o644)
    account = ["-u", "nobody"] if os.getuid() == 0 else []  # it refuses to run as root
    process = await asyncio.create_subprocess_exec(
        *(PGBOUNCER, *account, str(ini)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:

        async def listens() -> bool:
            assert process.returncode is None, "PgBouncer did not start"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        _: bool = await wait_until(listens, description="PgBouncer listens")
        yield _with_port(database_url, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Lend a folder where another account may look, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer, on PATH or as $PGBOUNCER")
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("pool_mode = session\n", "were refused, as PgBouncer does"),
        (f"pool_mode = session\n{IGNORED}", "a connection pooler such as PgBouncer"),
        (f"pool_mode = transaction\n{IGNORED}", "a connection pooler such as PgBouncer"),
    ],
)
async def test_pgbouncer_is_refused_with_the_reason(
    database_url: str, open_folder: Path, settings: str, reason: str
) -> None:
    async with pgbouncer(database_url, open_folder, settings) as url:
        with pytest.raises(WriterUnavailable, match=reason) as caught:
            await connect(url)
    assert "leads to Postgres itself" in str(caught.value)


@contextlib.asynccontextmanager
async def pooler(database_url: str) -> AsyncIterator[str]:
    """Stand in between as a pooler does: the key that it gives to clients is its own."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near, far = await asyncio.open_connection("127.0.0.1", _port_of(database_url))

        async def there() -> None:
            while data := await reader.read(1 << 16):
                far.write(data)

        async def back() -> None:
            while data := await near.read(1 << 16):
                at = data.find(b"K\0\0\0\x0c")  # BackendKeyData
                if at >= 0:
                    (pid,) = struct.unpack_from("!i", data, at + 5)
                    data = data[: at + 5] + struct.pack("!i", -pid) + data[at + 9 :]
                writer.write(data)

        with contextlib.suppress(OSError):
            await asyncio.gather(there(), back())
        far.close()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield _with_port(database_url, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.lasting_tasks("Task-*")  # the connections of the stand-in end with its sockets
async def test_a_pooler_is_known_by_the_key_that_it_gives(
    redis_url: str, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runner.writer")
    async with pooler(database_url) as url:
        with pytest.raises(WriterUnavailable, match="a connection pooler such as PgBouncer"):
            await connect(url)
        async with engine(redis_url, database_url) as e:
            e.database_url = url
            candidate = e.candidate()
            await candidate.start()
            await wait_until(
                lambda: "the writer cannot work: a connection pooler" in caplog.text,
                description="the candidate says why it cannot work",
            )
            assert not candidate.leading
            await candidate.stop()
