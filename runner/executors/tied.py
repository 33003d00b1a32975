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
    _signal_at_its_end(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def outlive() -> None:
    """Take `end_with` back."""
    _signal_at_its_end(0)


def _signal_at_its_end(signum: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def kill(pid: int, signum: int) -> None:
    """Send a process of a pool a signal, if it is there; SIGKILL: with the programs it started."""
    if signum == signal.SIGKILL:
        with contextlib.suppress(OSError):  # it has no group yet
            os.killpg(pid, signum)
            return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


__all__ = ["end_with", "kill", "outlive"]
