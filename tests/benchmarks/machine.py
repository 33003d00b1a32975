"""Say on what machine, and with what settings, something was measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe() -> str:
    """Return processor, cores, memory and kernel in one line."""
    return (
        f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores, {_memory_gb():.0f} GB, "
        f"{platform.system()} {platform.release()}"
    )


def load() -> str:
    """Return the machine's load average of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
