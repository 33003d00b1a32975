"""A module in whose interpreter processes can be forked only while there is room for them."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

from runner import Context, task
from runner.executors import forker

_fork = os.fork


def fork_with_room() -> int:
    """Fork, or say what a system says whose process table or control group is full."""
    if "CROWDED" in os.environ and Path(os.environ["CROWDED"]).exists():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork()


# Limits of the kernel do not hold for root, whom tests in containers run as.
if getattr(sys.modules["__main__"], "main", None) is forker.main:
    os.fork = fork_with_room


@task(executor="process")
def wait_for(_ctx: Context, note: str, end: str) -> int:
    """Say where the process comes from, and wait for a file."""
    Path(note).write_text(str(os.getppid()))
    while not Path(end).exists():
        time.sleep(0.01)
    return os.getpid()


@task(executor="process")
def pid(_ctx: Context) -> int:
    return os.getpid()
