"""PostgreSQL as a server of the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .children import POLL_S, STOP_STEP_S
from .messages import HOST, ServerError
from .server import Server, tail

if TYPE_CHECKING:
    from .children import Child, Children
    from .messages import PostgresPlan

__all__ = ["Postgres"]

SMALL_SHARED_MEMORY: Final = 64 << 20
BUILTIN_LOCALE_SINCE: Final = 17  # the PostgreSQL that brought its own locale provider


class Postgres(Server):
    """PostgreSQL: its data stand in `data`; `initdb` makes them beside it, then a rename."""

    name = "Postgres"

    def __init__(self, plan: PostgresPlan, children: Children, start_timeout_s: float) -> None:
        super().__init__(children, plan.log, start_timeout_s)
        self._plan = plan
        self._data = Path(plan.folder) / "data"

    async def prepare(self) -> None:
        """Make the data if there are none, or see that nobody else serves them."""
        if self._data.exists():
            await self._free_the_pid_file()
        else:
            await self._init()

    async def _init(self) -> None:
        fresh = self._data.with_name("new")
        shutil.rmtree(fresh, ignore_errors=True)  # what an interrupted start has left
        version = major_version(self._plan.postgres)
        child = self._children.start(
            [self._plan.initdb, "-D", str(fresh), *initdb_options(version)],
            folder=self._plan.folder,
            log=self._log,
            death=signal.SIGKILL,
        )
        try:
            await child.wait()
        finally:
            if child.runs:
                child.kill_session()
        if child.returncode != 0:
            raise ServerError(f"initdb returned {child.returncode}{tail(self._log)}")
        fresh.rename(self._data)

    async def _free_the_pid_file(self) -> None:
        """Remove a pid file whose number has gone to another program since the crash.

        A number that nobody has is left to Postgres, which then also looks at its shared memory.
        """
        pid_file = self._data / "postmaster.pid"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_STEP_S):
                while (pid := read_pid(pid_file)) and serves(pid, self._data):  # noqa: ASYNC110  another's child
                    await asyncio.sleep(POLL_S)  # it was told to end, and is about to
        pid = read_pid(pid_file)
        if pid is None or not alive(pid):
            return
        if serves(pid, self._data):
            raise ServerError(f"process {pid} already serves {self._data}: end it first")
        pid_file.unlink(missing_ok=True)

    def launch(self, port: int) -> Child:
        """Start the server on loopback TCP only: without a socket file no path is too long."""
        settings = {
            "dynamic_shared_memory_type": shared_memory_type(),
            **self._plan.settings,
            "port": str(port),
            "listen_addresses": HOST,
            "unix_socket_directories": "",
        }
        options = [word for item in settings.items() for word in ("-c", "=".join(item))]
        return self._children.start(
            [self._plan.postgres, "-D", str(self._data), *options],
            folder=self._plan.folder,
            log=self._log,
            death=signal.SIGQUIT,
        )

    async def ready(self, child: Child, port: int) -> bool:
        """Say whether the server has written "ready" into its pid file, as pg_ctl reads it."""
        del port
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return lines[0] == str(child.pid) and [line.strip() for line in lines[7:8]] == ["ready"]

    async def end(self, child: Child) -> None:
        """Cut the connections and write all down; less politely, if that takes too long."""
        await child.end(signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)

    async def crash(self, child: Child) -> None:
        """Kill the server and the processes of its connections."""
        await child.end(signal.SIGKILL)
        await self._children.end_orphans()

    def will_pass(self, said: str) -> bool:
        """Say yes while connections of a killed server are still ending."""
        return "pre-existing shared memory block" in said


def initdb_options(version: int) -> list[str]:
    """Return how data are made: UTF-8 whatever the system's locales, trust, no sync to disk."""
    if version >= BUILTIN_LOCALE_SINCE:
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    else:
        locale = ["--locale=C"]
    return ["-U", "postgres", "-A", "trust", "-E", "UTF8", "-N", "--no-instructions", *locale]


def major_version(postgres: str) -> int:
    """Return the major version that the program says it is."""
    try:
        said = subprocess.check_output([postgres, "--version"], timeout=10, text=True)  # noqa: S603  the plan names the program
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(f"{postgres} cannot be run: {error}") from error
    if found := re.search(r"\d+", said):
        return int(found[0])
    raise ServerError(f"{postgres} does not tell its version: {said.strip()!r}")


def shared_memory_type() -> str:
    """Return where Postgres shares memory: in its data if the shared-memory folder is small."""
    if sys.platform != "linux":
        return "posix"
    try:
        room = os.statvfs("/dev/shm")  # noqa: S108  only its size is read
    except OSError:
        return "mmap"
    return "mmap" if room.f_frsize * room.f_blocks < SMALL_SHARED_MEMORY else "posix"


def read_pid(pid_file: Path) -> int | None:
    """Return the number on the first line of a pid file; None without a file or a number."""
    try:
        return int(pid_file.read_text().split("\n")[0])
    except (OSError, ValueError):
        return None


def alive(pid: int) -> bool:
    """Say whether a process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def serves(pid: int, data: Path) -> bool:
    """Say whether the process is a Postgres on these data, which it makes its working folder."""
    if Path("/proc/self/cwd").exists():
        try:
            return Path(f"/proc/{pid}/cwd").samefile(data)
        except OSError:
            return False
    asked = ["ps", "-o", "command=", "-p", str(pid)]
    return str(data) in subprocess.run(asked, capture_output=True, text=True, check=False).stdout  # noqa: S603  a fixed program
