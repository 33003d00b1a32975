"""Tasks that treat the process they run in badly: other processes import them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runner import Context, SoftTimeLimit, task

KEPT: list[bytearray] = []


class NotAnError(Exception):
    """An exception that is read back as something else."""

    def __reduce__(self) -> Any:
        return str, ("no exception",)


class Unspeakable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("no words for it")


@task(executor="process")
def pid(_ctx: Context) -> int:
    return os.getpid()


@task(executor="process")
def die_of(_ctx: Context, signum: int) -> None:
    os.kill(os.getpid(), signum)


@task(executor="process")
def same(_ctx: Context, value: Any) -> Any:
    return value


@task(executor="process")
def fork_and_both_return(_ctx: Context) -> int:
    os.fork()
    return os.getpid()


@task(executor="process")
def fork_and_die(_ctx: Context, note: str) -> None:
    """Leave a process behind that holds everything, and die."""
    if child := os.fork():
        Path(note).write_text(str(child))
        os._exit(3)
    time.sleep(3600)


@task(executor="process")
def start_program(_ctx: Context, note: str) -> None:
    program = subprocess.Popen(["sleep", "3600"])
    Path(note).write_text(str(program.pid))
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(3600)


@task(executor="process")
def close_everything(_ctx: Context) -> None:
    os.closerange(3, 256)


@task(executor="process")
def close_streams(_ctx: Context) -> int:
    os.close(0)
    sys.stdout.close()
    sys.stderr = None
    sys.stdout = None
    return os.getpid()


@task(executor="process")
def write_garbage(_ctx: Context, data: bytes) -> int:
    """Write into every socket there is."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):  # noqa: PTH115
                os.write(int(name), data)
    return 1


@task(executor="process")
def print_much(_ctx: Context, lines: int) -> int:
    for number in range(lines):
        print(number, "x" * 100)  # noqa: T201
    return lines


@task(executor="process")
def large(_ctx: Context, data: bytes) -> int:
    return len(data)


@task(executor="process", keep_result=0)
def large_result(_ctx: Context, megabytes: int) -> bytes:
    return b"x" * (megabytes * 1_000_000)


@task(executor="process")
def out_of_memory(_ctx: Context) -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**30, hard))
    try:
        return len(bytearray(2**31))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@task(executor="process")
def raise_not_an_error(_ctx: Context) -> None:
    raise NotAnError("one")


@task(executor="process")
def raise_unspeakable(_ctx: Context) -> None:
    raise Unspeakable


@task(executor="process")
def raise_interrupt(_ctx: Context) -> None:
    raise KeyboardInterrupt


@task(executor="process")
def raise_cancelled(_ctx: Context) -> None:
    raise asyncio.CancelledError


@task(executor="process")
def ignore_signals(_ctx: Context) -> int:
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
    return os.getpid()


@task(executor="process")
def tidy(_ctx: Context, note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    try:
        time.sleep(3600)
    except asyncio.CancelledError:
        Path(note + ".tidy").touch()
        raise


class Slow:
    """An argument that takes a while to be read, in the process alone."""

    def __init__(self, note: str, seconds: float) -> None:
        self.note, self.seconds = note, seconds

    def __reduce__(self) -> Any:
        return _read_slowly, (self.note, self.seconds, os.getpid())


def _read_slowly(note: str, seconds: float, sender: int) -> Slow:
    if os.getpid() != sender:
        Path(note).write_text(str(os.getpid()))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass
    return Slow(note, seconds)


@task(executor="process", soft_timeout=0.2, timeout=20)
def softened(_ctx: Context) -> str:
    try:
        time.sleep(3600)
    except SoftTimeLimit:
        return "in time"
    return "never"


@task(executor="process")
def stop_itself(_ctx: Context, note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)


@task(executor="process", timeout=1)
def stop_itself_with_limit(_ctx: Context, note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)


@task(executor="process")
def hold(_ctx: Context, megabytes: int) -> int:
    """Leak memory."""
    KEPT.append(bytearray(os.urandom(1024)) * (megabytes * 1000))
    return os.getpid()


@task(executor="process")
def eat(_ctx: Context) -> None:
    """Eat memory until somebody ends it."""
    while True:
        KEPT.append(bytearray(os.urandom(1024)) * 10_000)
        time.sleep(0.02)


@task(executor="process")
def busy(_ctx: Context, seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@task(executor="process")
def take_slow(_ctx: Context, _slow: Any, note: str) -> None:
    Path(note).touch()
    time.sleep(3600)


PICKLED: list[Any] = [take_slow]
HOSTILE: list[Any] = [value for value in globals().values() if isinstance(value, type(pid))]
