"""How many processors this process may use: by its affinity, and by its control group."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


def usable() -> int:
    """Return the number of cores, at least 1; a container's share is rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    share = quota(GROUPS / "cpu.max")
    return max(1, cores if share is None else min(cores, math.ceil(share)))


def quota(path: Path) -> float | None:
    """Read the cores that a control group may use; None: all of them, or it is not known."""
    with contextlib.suppress(OSError, ValueError):
        limit, period = path.read_text("ascii").split()
        if limit != "max":
            return int(limit) / int(period)
    return None
