"""End with the parent process, whatever ends it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Let the kernel kill this process with its parent; end now if that is gone already.

    Elsewhere than on Linux a process of the pool ends when it next looks at its socket.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


def kill(pid: int, signum: int) -> None:
    """Send a process of a pool a signal, if it is there; SIGKILL: with the programs it started."""
    if signum == signal.SIGKILL:
        with contextlib.suppress(OSError):  # it has no group yet
            os.killpg(pid, signum)
            return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


__all__ = ["end_with", "kill"]
