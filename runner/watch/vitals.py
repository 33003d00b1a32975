"""What this process holds: memory, threads, open files."""

from __future__ import annotations

import os
import resource
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

_PAGE = resource.getpagesize()
_STAT = Path("/proc/self/stat")
_FILES = "/proc/self/fd" if _STAT.exists() else "/dev/fd"
# In /proc/self/stat behind the name, which may hold anything but ends with the last bracket.
_THREADS, _RSS = 17, 21


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a process holds.

    Attributes:
        rss: resident memory in bytes; where there is no /proc, the most it ever was.
        threads: those of Python, and those of libraries.
        files: open file descriptors: files, sockets, pipes.
    """

    rss: int
    threads: int
    files: int


def memory() -> tuple[int, int]:
    """Return the resident memory in bytes, and the number of threads: about 10 µs."""
    try:
        fields = _STAT.read_bytes().rpartition(b")")[2].split()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024), threading.active_count()
    return int(fields[_RSS]) * _PAGE, int(fields[_THREADS])


def read() -> Vitals:
    """Look at this process."""
    rss, threads = memory()
    return Vitals(rss, threads, len(os.listdir(_FILES)) - 1)  # noqa: PTH208  names alone; one of them is the listing itself
