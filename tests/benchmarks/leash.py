"""Become another program that ends with its parent, and by itself after a time limit.

``python -I -S leash.py PARENT SECONDS PROGRAM ARGUMENTS…``: the process keeps its id, so what is
measured is the program alone. Linux sends SIGTERM when the parent dies; the alarm ends programs
that handle neither.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: str, seconds: str, *command: str) -> None:
    """Tie this process to its parent and a time limit, and run the command in its place."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the benchmark has ended already")
    signal.alarm(int(seconds))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
