"""The writer and the reads speak TLS with Postgres, and tell what does not belong there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from runner import embedded
from runner.embedded import folders, programs
from runner.writer import ReadPool
from runner.writer.session import APPLICATION_NAME, close, connect
from tests.integration.test_writer_support import LASTING, engine, unit_of, writing
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.lasting_keys(*LASTING)

OPENSSL = shutil.which("openssl")
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
SPEAKERS = """
SELECT a.application_name, s.ssl FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)
 WHERE a.application_name LIKE 'arq-runner%' ORDER BY 1
"""


def _openssl(folder: Path, *words: str) -> None:
    assert OPENSSL
    subprocess.run([OPENSSL, *words], check=True, capture_output=True, cwd=folder)


def _authority(folder: Path, name: str) -> None:
    _openssl(
        folder,
        *("req", "-x509", *NEW_KEY, "-subj", f"/CN={name}", "-days", "2"),
        *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
    )


def _certificate(folder: Path, authority: str) -> None:
    """Make ``server.pem`` and ``server.key`` for 127.0.0.1, signed by the authority."""
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n", "utf-8")
    _openssl(
        folder,
        *("req", *NEW_KEY, "-subj", "/CN=postgres", "-keyout", "server.key", "-out", "server.csr"),
    )
    _openssl(
        folder,
        *("x509", "-req", "-in", "server.csr", "-days", "2", "-extfile", "names"),
        *("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial"),
        *("-out", "server.pem"),
    )


def _installed() -> programs.PostgresPrograms | None:
    """Return a Postgres that is not the wheel's, which is built without TLS."""
    for folder in programs._program_folders():
        found = programs.PostgresPrograms(folder / "postgres", folder / "initdb")
        if all(map(programs._runs, found.paths)):
            return found
    return None


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    """Lend a folder with the certificates, where Postgres's account may read its own."""
    if OPENSSL is None:
        pytest.skip("there is no openssl to make certificates with")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _authority(folder, "right")
        _authority(folder, "wrong")
        _certificate(folder, "right")
        account = folders.choose_account(None)
        if account:
            folder.chmod(0o755)
            os.chown(folder / "server.key", account.uid, account.gid)
        (folder / "server.key").chmod(0o600)
        yield folder


@pytest.fixture(scope="module")
def tls_url(certificates: Path) -> Iterator[str]:
    """Lend the URL of a Postgres that speaks TLS."""
    found = _installed()
    if found is None:
        pytest.skip("no Postgres is installed but the wheel's, which is built without TLS")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DATABASE_URL", raising=False)
        patch.setattr(programs, "find_postgres", lambda: found)
        servers = embedded.start(
            redis=False,
            fsync=False,
            postgres_settings={
                "ssl": True,
                "ssl_cert_file": str(certificates / "server.pem"),
                "ssl_key_file": str(certificates / "server.key"),
            },
        )
    with servers:
        yield servers.database_url


def _verified(url: str, folder: Path, authority: str) -> str:
    return f"{url}?sslmode=verify-full&sslrootcert={folder / f'{authority}.pem'}"


async def test_whatever_writes_or_reads_speaks_tls(
    redis_url: str, tls_url: str, certificates: Path
) -> None:
    url = _verified(tls_url, certificates, "right")
    async with engine(redis_url, url, "CREATE TABLE t (id int PRIMARY KEY)") as e:
        reads = ReadPool(url)
        try:
            async with writing(e.candidate()):
                await e.answered(await e.submit("j", unit_of(lambda u: u.insert("t", id=1))))
                assert await (await reads.pool()).fetchval("SELECT id FROM t") == 1
                assert await e.rows(SPEAKERS) == [
                    ("arq-runner reads", True),
                    (APPLICATION_NAME, True),
                ]
        finally:
            await reads.close()


async def test_a_cut_network_is_noticed_behind_tls_too(tls_url: str, certificates: Path) -> None:
    connection = await connect(_verified(tls_url, certificates, "right"))
    try:
        found = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert await connection.fetchval("SHOW statement_timeout") == "30s"
    finally:
        await close(connection)


async def test_a_server_that_nobody_vouches_for_is_refused(
    redis_url: str, tls_url: str, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = _verified(tls_url, certificates, "wrong")
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        await connect(url)
    async with engine(redis_url, tls_url) as e:
        e.database_url = url
        candidate = e.candidate()
        await candidate.start()
        try:
            await wait_until(
                lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text,
                description="the candidate says why it cannot write",
            )
            assert not candidate.leading
        finally:
            await candidate.stop()


async def test_a_server_without_tls_is_refused_where_tls_is_asked_for(
    database_url: str, certificates: Path
) -> None:
    with pytest.raises((OSError, asyncpg.PostgresError), match="SSL"):
        await connect(_verified(database_url, certificates, "right"))
