"""The process that makes the processes of a worker's pool.

A worker has threads and an event loop, and must not be forked. So it starts one fresh
interpreter, which imports the modules of the tasks, does nothing else, and is forked for each
process of the pool: that takes milliseconds, and shares the memory of the modules. Where a module
has started a thread when it was imported, or the system is not Linux, a fresh interpreter is
started in place of a fork.

    worker ──one byte, and a socket──▶ forker ──fork──▶ process, at the other end of the socket
           ◀──"born 12"──"over 12 -9"──

A process that the system has no room for is answered by "none" and why: those that are there go on.
It ends when its worker does, and the processes end with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from runner.executors import child, wire
from runner.executors.tied import end_with, kill

if TYPE_CHECKING:
    from collections.abc import Sequence

LAST_WAIT_S = 2.0
"""How long processes may take to end by themselves when the worker closes."""


def program(module: str, *args: object) -> list[str]:
    """Return the command of an interpreter that knows the same modules, and calls ``main``."""
    lines = (
        f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main(*{tuple(args)!r})"
    )
    return [sys.executable, "-c", lines]


def main(control_fd: int, parent: int) -> None:
    """Be the forker, or, in a process that it made, run jobs."""
    end_with(parent)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # it ends with its worker, and not before
    control = socket.socket(fileno=control_fd)
    setup = wire.receive(control)
    if setup is None:
        return
    told = json.loads(setup)
    child.configure(told["log_format"])
    error = _import_all(told["modules"])
    control.sendall(wire.framed(error.encode()))
    if error:
        return
    forker = Forker(control, told["log_format"])
    connection = forker.serve()
    if connection is not None:
        child.serve(connection)


def _import_all(modules: Sequence[str]) -> str:
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:  # noqa: BLE001  a user's module may raise anything
            return f"{module} cannot be imported:\n{traceback.format_exc()}"
    return ""


class Forker:
    """Makes processes as it is told, and tells how they end.

    Args:
        control: the socket to the worker.
        log_format: see `child.configure`.
    """

    def __init__(self, control: socket.socket, log_format: str) -> None:
        self._control = control
        self._log_format = log_format
        self._pids: set[int] = set()
        self._woken, self._wakes = socket.socketpair()
        self._forks = sys.platform == "linux" and threading.active_count() == 1

    def serve(self) -> socket.socket | None:
        """Serve until the worker has closed; return a socket in a process that was made."""
        gc.collect()
        gc.freeze()  # what is there is shared with all processes: it need not be looked at again
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready, _, _ = select.select([self._control, self._woken], [], [])
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
                self._reap()
            if self._control in ready:
                try:
                    told, fds, _, _ = socket.recv_fds(self._control, 1, 1)
                except OSError:
                    told, fds = b"", []
                if not told:
                    break
                if not fds:  # the system takes away what has no room
                    self._tell("none", "it has too many open files")
                    continue
                connection = socket.socket(fileno=fds[0])
                if self._make(connection):
                    return connection
        self._end_all()
        return None

    def _make(self, connection: socket.socket) -> bool:
        """Make a process; return True in it."""
        this = os.getpid()
        try:
            pid = os.fork() if self._forks else self._spawn(connection.fileno(), this)
        except OSError as exc:
            connection.close()
            self._tell("none", exc)
            return False
        if pid == 0:
            self._become_child(this)
            return True
        connection.close()
        self._pids.add(pid)
        self._tell("born", pid)
        return False

    def _spawn(self, fd: int, parent: int) -> int:
        os.set_inheritable(fd, True)
        command = program("runner.executors.child", fd, parent, self._log_format)
        return os.posix_spawn(sys.executable, command, os.environ)

    def _become_child(self, parent: int) -> None:
        end_with(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (self._control, self._woken, self._wakes):
            end.close()

    def _reap(self) -> None:
        while self._pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self._pids.discard(pid)
            self._tell("over", pid, os.waitstatus_to_exitcode(status))

    def _tell(self, *words: object) -> None:
        with contextlib.suppress(OSError):  # the worker is gone, and so are we in a moment
            self._control.sendall(" ".join(map(str, words)).encode() + b"\n")

    def _end_all(self) -> None:
        until = time.monotonic() + LAST_WAIT_S
        while self._pids and time.monotonic() < until:
            select.select([self._woken], [], [], until - time.monotonic())
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
            self._reap()
        for pid in self._pids:
            kill(pid, signal.SIGKILL)


__all__ = ["main", "program"]
