"""What every side's own file shares inside that side's environment; the standard library only.

The benchmark hands everything over by environment variables, so that a worker is started by
its own command line and nothing of ours stands between.
"""

from __future__ import annotations

import logging
import os
import time
from urllib.parse import urlsplit

REDIS_URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0")
HOST = urlsplit(REDIS_URL).hostname or "127.0.0.1"
PORT = urlsplit(REDIS_URL).port or 6379
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "100"))
LOG_LEVEL = os.environ.get("BENCH_LOG", "WARNING")
KEEP_RESULT_S = 3600
NAP_S = 0.01


def quiet() -> None:
    """Log nothing below WARNING, whatever a command line sets up later, unless asked for more."""
    if LOG_LEVEL == "WARNING":
        logging.disable(logging.INFO)


def record_start(sent_ns: int) -> None:
    """Note that the job sent at `sent_ns` has started now; a line is one write."""
    _append("BENCH_STARTS", f"{sent_ns} {time.time_ns()}\n")


def record_ready() -> None:
    """Note that this worker is up."""
    _append("BENCH_READY", f"{os.getpid()}\n")


def record_end(found: int, wanted: int) -> None:
    """Note that the last node of a flow has started; it must have got what it waited for."""
    if found != wanted:
        raise ValueError(f"the flow ended with {found}, not {wanted}")
    record_start(1)


def use_uvloop() -> None:
    """Make uvloop's the loops that this process will make."""
    import asyncio  # noqa: PLC0415  workers without asyncio need neither
    import warnings  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def _append(variable: str, line: str) -> None:
    path = os.environ.get(variable)
    if path:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
