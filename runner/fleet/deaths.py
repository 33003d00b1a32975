"""Say what ended a process: its status, a signal, or the kernel for want of memory."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

MB = 1_000_000


def oom_kills() -> int | None:
    """Return how many processes of our control group the kernel has killed for memory.

    None where that cannot be known: outside Linux, or without version 2 of control groups.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text("ascii").splitlines():
            number, _, path = line.split(":", 2)
            if number == "0":
                return _oom_kills(Path("/sys/fs/cgroup") / path.lstrip("/"))
    return None


def _oom_kills(group: Path) -> int | None:
    for line in (group / "memory.events").read_text("ascii").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return None


def explain(status: int, *, rss: int = 0, oom_killed: bool = False) -> str:
    """Say in words how a process ended.

    Args:
        status: what `os.waitstatus_to_exitcode` makes of it: a signal is negative.
        rss: the memory it was last known to hold, in bytes.
        oom_killed: the kernel has counted one more process that it killed for memory.
    """
    if status >= 0:
        return f"ended with status {status}"
    held = f", it held {rss / MB:,.0f} MB when it last said so" if rss else ""
    if -status == signal.SIGKILL:
        if oom_killed:
            return f"was killed by the kernel: out of memory{held}"
        return f"was killed by SIGKILL (by somebody, or the kernel for want of memory{held})"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    core = " (a crash in native code)" if -status in _CRASHES else ""
    return f"was killed by {name}{core}{held}"


_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT})
