"""What the embedded servers decide without a server: programs, folders, settings, messages."""

from __future__ import annotations

import os
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from runner import embedded
from runner.embedded import folders, plan, programs
from runner.embedded.supervisor import messages, postgres, server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STRANGER = messages.Account(uid=54_321, gid=54_321)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "WHEELS", {"redis": "absent", "postgres": "absent"})
    monkeypatch.setattr(programs, "DEBIAN", tmp_path)


def _program(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(mode)
    return path


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(
    ("start", "said", "unsaid"),
    [
        (embedded.start, ["Valkey", "PostgreSQL", "REDIS_URL", "DATABASE_URL"], []),
        (
            partial(embedded.start, postgres=False),
            ["Valkey", "valkey-server", "REDIS_URL"],
            ["DATABASE_URL"],
        ),
        (
            partial(embedded.start, redis=False),
            ["PostgreSQL", "initdb", "DATABASE_URL"],
            ["REDIS_URL"],
        ),
    ],
)
def test_missing_programs_name_the_three_ways_out(
    start: Callable[[], embedded.Servers], said: list[str], unsaid: list[str]
) -> None:
    with pytest.raises(embedded.EmbeddedServerError) as raised:
        start()
    message = str(raised.value)
    assert all(word in message for word in ["pip install", "PATH", *said])
    assert not any(word in message for word in unsaid)


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_redis_is_found_on_the_path(tmp_path: Path, name: str) -> None:
    program = _program(tmp_path / name)
    assert programs.find_redis() == programs.RedisPrograms(program.resolve())


@pytest.mark.usefixtures("nothing_installed")
def test_postgres_is_found_beside_what_the_path_links_to(tmp_path: Path) -> None:
    real = tmp_path / "install/bin"
    _program(real / "initdb")
    (tmp_path / "postgres").symlink_to(_program(real / "postgres"))
    found = programs.find_postgres()
    assert found == programs.PostgresPrograms(real / "postgres", real / "initdb")


@pytest.mark.usefixtures("nothing_installed")
def test_postgres_of_debian_is_the_newest(tmp_path: Path) -> None:
    for version in ("9", "18", "17", "common"):
        for name in ("postgres", "initdb"):
            _program(tmp_path / version / "bin" / name)
    found = programs.find_postgres()
    assert found
    assert found.postgres == tmp_path / "18/bin/postgres"


@pytest.mark.usefixtures("nothing_installed")
def test_postgres_without_initdb_is_not_found(tmp_path: Path) -> None:
    _program(tmp_path / "postgres")
    assert programs.find_postgres() is None


def test_copy_links_what_all_may_read_and_copies_what_they_may_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    shared = _program(root / "package/bin/shared")
    private = _program(root / "package/lib/private", 0o700)
    (root / "package/lib").chmod(0o700)
    target = tmp_path / "target"
    programs.Wheel(root, ("package/bin/shared", "package/lib", "absent")).copy(target)
    assert (target / "package/bin/shared").samefile(shared)
    assert not (target / "package/lib/private").samefile(private)
    assert _mode(target / "package/lib/private") == _mode(target / "package/lib") == 0o755
    assert _mode(private) == _mode(root / "package/lib") == 0o700


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize(
    ("folder_mode", "program_mode", "reached"),
    [
        (0o755, 0o755, True),
        (0o711, 0o755, True),
        (0o700, 0o755, False),
        (0o750, 0o755, False),
        (0o755, 0o700, False),
        (0o755, 0o711, False),
    ],
)
def test_stranger_reaches_a_program_by_the_modes_on_the_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    folder_mode: int,
    program_mode: int,
    reached: bool,
) -> None:
    allows = folders._allows
    monkeypatch.setattr(
        folders,
        "_allows",
        lambda path, *how: not path.is_relative_to(tmp_path) or allows(path, *how),
    )
    program = _program(tmp_path / "folder/program", program_mode)
    tmp_path.chmod(0o755)
    program.parent.chmod(folder_mode)
    assert folders.may_reach(program, STRANGER) is reached
    assert folders.may_reach(program, None)


def test_sweep_takes_only_what_nobody_holds_and_is_not_young(tmp_path: Path) -> None:
    made = {name: tmp_path / f"{folders.PREFIX}{name}" for name in ("dead", "held", "young")}
    for folder in (*made.values(), tmp_path / "other"):
        folder.mkdir()
    held = folders.lock(made["held"])
    for name in ("dead", "held"):
        os.utime(made[name], (0, 0))
    os.utime(tmp_path / "other", (0, 0))
    folders.sweep(tmp_path)
    assert held is not None
    os.close(held)
    left = {path.name.removeprefix(folders.PREFIX) for path in tmp_path.iterdir()}
    assert left == {"held", "young", "other"}


@pytest.mark.parametrize(
    ("value", "redis", "postgres_word"),
    [
        (True, "yes", "on"),
        (False, "no", "off"),
        (3, "3", "3"),
        (0.5, "0.5", "0.5"),
        ("a", "a", "a"),
    ],
)
def test_settings_are_written_as_each_server_reads_them(
    value: plan.Setting, redis: str, postgres_word: str
) -> None:
    assert plan._words({"name": value}, yes="yes", no="no") == {"name": redis}
    assert plan._words({"name": value}, yes="on", no="off") == {"name": postgres_word}


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(
    "start",
    [
        partial(embedded.start, redis_settings={"PORT": 1}),
        partial(embedded.start, postgres_settings={"unix_socket_directories": "/tmp"}),
    ],
)
def test_settings_that_the_servers_need_as_they_are_are_refused(
    start: Callable[[], embedded.Servers],
) -> None:
    with pytest.raises(embedded.EmbeddedServerError, match="decide this themselves"):
        start()


def test_plan_and_answer_come_through_the_pipe_as_they_were() -> None:
    sent = messages.Plan(
        redis=messages.RedisPlan("valkey", "/data", "/log", {"save": '""'}),
        postgres=None,
        account=messages.Account(1, 2),
        temporary="/tmp/it's",
        start_timeout_s=1.5,
    )
    assert messages.Plan.from_line(sent.to_line()) == sent
    answer = messages.Answer(redis=messages.State(1, None), error="a\nb")
    assert messages.Answer.from_line(answer.to_line()) == answer
    assert answer.to_line().count(b"\n") == 1


def test_data_are_utf8_with_and_without_a_builtin_locale() -> None:
    assert "--builtin-locale=C.UTF-8" in postgres.initdb_options(18)
    assert "--locale-provider=builtin" not in postgres.initdb_options(16)
    assert all("UTF8" in postgres.initdb_options(version) for version in (16, 18))


@pytest.mark.parametrize(("mebibytes", "chosen"), [(63, "mmap"), (64, "posix")])
@pytest.mark.skipif("sys.platform != 'linux'", reason="the folder is that of Linux")
def test_small_shared_memory_is_not_used(
    monkeypatch: pytest.MonkeyPatch, mebibytes: int, chosen: str
) -> None:
    room = SimpleNamespace(f_frsize=1 << 20, f_blocks=mebibytes)
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    assert postgres.shared_memory_type() == chosen


@pytest.mark.parametrize(
    ("text", "pid"), [("123\n/data\n", 123), ("", None), ("no number\n", None), (None, None)]
)
def test_pid_file_is_read_or_passed_over(tmp_path: Path, text: str | None, pid: int | None) -> None:
    if text is not None:
        (tmp_path / "postmaster.pid").write_text(text)
    assert postgres.read_pid(tmp_path / "postmaster.pid") == pid


def test_log_is_quoted_from_where_the_start_began_and_not_at_length(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("old\nnew\n")
    assert server.tail(str(log), 4) == f"\n--- {log}\nnew"
    log.write_text("x" * 100_000)
    assert len(server.tail(str(log))) < 5_000
