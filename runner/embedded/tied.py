"""Run a module as a program that ends when its parent does, whatever ends the parent.

    python tied.py <pid of the parent> <module> [arguments]

A parent that is killed cannot end its children, and they would go on for ever. On Linux the
kernel does it then: the parent-death signal is set before the module's program takes this
process over. Elsewhere a thread waits until the parent is another one. Run by its path, with
the standard library alone: importing the package would double the time to start.
"""

from __future__ import annotations

import ctypes
import os
import platform
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LOOK_AGAIN_S = 0.5


def main() -> None:
    """Tie this process to its parent, then become the module's program."""
    parent, module, *arguments = sys.argv[1:]
    if platform.system() == "Linux":
        _die_with_parent(int(parent))
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606
    _watch_parent(int(parent))
    sys.path[0] = str(Path.cwd())  # as ``python -m`` has it, and not this file's folder
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _die_with_parent(parent: int) -> None:
    # The signal survives exec. It is sent when the *thread* that made this process ends, so
    # processes are to be made from the parent's main thread, which ends with it.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the signal was set
        sys.exit(1)


def _watch_parent(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_AGAIN_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


if __name__ == "__main__":
    main()
