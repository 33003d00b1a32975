"""Start programs as another user, with a death signal, and hear when they end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .messages import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .messages import Account

__all__ = ["POLL_S", "STOP_STEP_S", "Child", "Children", "adopt_orphans"]

STOP_STEP_S: Final = 10.0  # what each signal gets before the next, harder one
POLL_S: Final = 0.01
PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36


class Child:
    """One running program."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._gone = asyncio.Event()
        self.pid = popen.pid

    @property
    def runs(self) -> bool:
        """Whether the program has not ended yet."""
        return not self._gone.is_set()

    @property
    def returncode(self) -> int | None:
        """What the program returned; None while it runs."""
        return self._popen.returncode

    def reap(self) -> None:
        """Note the program's end, if it has come."""
        if self._popen.poll() is not None:
            self._gone.set()

    async def wait(self) -> None:
        """Wait for the program's end."""
        await self._gone.wait()

    async def end(self, *signals: signal.Signals) -> None:
        """Send each signal in turn, until one of them has ended the program."""
        for number in signals:
            if not self.runs:
                return
            self._popen.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_STEP_S):
                    await self.wait()
        if self.runs:
            raise ServerError(f"process {self.pid} outlived {', '.join(s.name for s in signals)}")

    def kill_session(self) -> None:
        """Kill the program and all that it has started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Children:
    """The programs that this process has started as the account; it hears when each ends."""

    def __init__(self, account: Account | None) -> None:
        self._account = account
        self._running: list[Child] = []

    def start(
        self,
        arguments: list[str],
        *,
        folder: str,
        log: str,
        death: signal.Signals,
        told: bytes = b"",
    ) -> Child:
        """Start a program in `folder`, with `told` on its standard input and its output in `log`.

        `death` is the signal that it gets when this process dies.
        """
        try:
            with Path(log).open("ab") as output:
                popen = subprocess.Popen(  # noqa: S603  the plan names the program; no shell
                    arguments,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=server_environment(),
                    start_new_session=True,
                    preexec_fn=before_exec(self._account, death),  # noqa: PLW1509  one thread
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerError(f"{arguments[0]} cannot be run: {error}") from error
        assert popen.stdin
        with contextlib.suppress(BrokenPipeError), popen.stdin as pipe:
            pipe.write(told)
        child = Child(popen)
        self._running.append(child)
        return child

    def reap(self) -> None:
        """Note which programs have ended; called at each SIGCHLD."""
        for child in self._running:
            child.reap()
        self._running = [child for child in self._running if child.runs]
        for pid in self._orphans():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    async def end_orphans(self) -> None:
        """Kill what killed programs have left, and wait until it is gone."""
        async with asyncio.timeout(STOP_STEP_S):
            while orphans := self._orphans():
                for pid in orphans:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(POLL_S)

    def _orphans(self) -> list[int]:
        """Return the processes that have become ours since the program that started them died."""
        own = {child.pid for child in self._running}
        return [pid for pid in children_of(os.getpid()) if pid not in own]


def adopt_orphans() -> None:
    """Become the parent of processes whose parent has died, where the system allows it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def children_of(pid: int) -> list[int]:
    """Return the processes that this one has started, as far as the system tells."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def before_exec(account: Account | None, death: signal.Signals) -> Callable[[], None]:
    """Return what a new process does before it becomes the program."""
    supervisor = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def become() -> None:
        if account:
            os.setgroups([])
            os.setgid(account.gid)
            os.setuid(account.uid)
        if prctl:
            prctl(PR_SET_PDEATHSIG, int(death))  # after setuid, which would clear it
        if os.getppid() != supervisor:
            os._exit(1)  # the supervisor died before the signal was set

    return become


def server_environment() -> dict[str, str]:
    """Return what servers know of the environment: no locale and no PG* of the user's."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "LC_ALL": "C",
        "TZ": "UTC",
    }
