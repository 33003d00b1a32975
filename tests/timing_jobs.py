"""Tasks for the tests of processes and their time limits: other processes import them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import Context, Retry, SoftTimeLimit, task

FOREVER_S = 3600.0


class Unpicklable(Exception):  # noqa: N818
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


@dataclass
class Point:
    x: int
    y: int


@task(executor="process")
def add(_ctx: Context, one: int, two: int = 0) -> int:
    return one + two


@task(executor="process")
def pid(_ctx: Context) -> int:
    return os.getpid()


@task(executor="process")
def who(ctx: Context) -> list[Any]:
    return [ctx.job_id, ctx.attempt, "redis" in ctx]


@task(executor="process")
def move(_ctx: Context, point: Point) -> Point:
    assert isinstance(point, Point)
    return Point(point.x + 1, point.y)


@task(executor="process")
def count_up(ctx: Context, total: int, seconds: float = 0) -> int:
    for number in range(1, total + 1):
        ctx.run(ctx.progress(number, total * 2, f"number {number}"))
        time.sleep(seconds)
    return total


@task(executor="process")
async def count_up_async(ctx: Context, total: int) -> int:
    for number in range(1, total + 1):
        await ctx.progress(number, total)
        await asyncio.sleep(0)
    return total


@task(executor="process")
def wait_there(ctx: Context) -> None:
    ctx.run(asyncio.sleep(1))


@task(executor="process")
async def add_async(_ctx: Context, one: int, two: int) -> int:
    await asyncio.sleep(0)
    return one + two


@task(executor="process")
def insert(ctx: Context, number: int) -> int:
    ctx.db.insert("t", id=number)
    return number


@task(executor="process")
def fail(_ctx: Context) -> None:
    raise ValueError("broken in a process")


@task(executor="process")
def fail_oddly(_ctx: Context) -> None:
    raise Unpicklable(1, 2)


@task(executor="process")
def leave(_ctx: Context) -> None:
    sys.exit(3)


@task(executor="process")
def lambda_result(_ctx: Context) -> Any:
    return lambda: None


@task(executor="process")
def asks_for_client(ctx: Context) -> None:
    ctx.client  # noqa: B018  the property raises


@task(executor="process", retries=2)
def again(ctx: Context) -> int:
    if ctx.attempt < 2:
        raise Retry
    return ctx.attempt


@task(executor="process")
def segfault(_ctx: Context) -> None:
    ctypes.string_at(0)


@task(executor="process")
def exit_at_once(_ctx: Context, status: int) -> None:
    os._exit(status)


@task(executor="process", retries=1)
def die_once(ctx: Context) -> int:
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return ctx.attempt


@task(executor="process", timeout=1)
def spin(_ctx: Context, note: str) -> None:
    """Hold the interpreter of the process, and let nothing stop it."""
    Path(note).write_text(str(os.getpid()))
    while True:
        try:
            while True:
                pass
        except BaseException:  # noqa: BLE001  what it does not heed is the point
            pass


@task(executor="process")
def wait_in_process(_ctx: Context, note: str) -> str:
    Path(note).write_text(str(os.getpid()))
    try:
        time.sleep(FOREVER_S)
    finally:
        Path(note + ".tidy").write_text("tidy")
    return "woken"


@task(executor="process", timeout=60, soft_timeout=0.3)
def tidy_in_process(_ctx: Context) -> str:
    try:
        time.sleep(FOREVER_S)
    except SoftTimeLimit:
        return "tidy"
    return "never"


@task(executor="process", timeout=60, soft_timeout=0.3)
async def tidy_in_process_async(_ctx: Context) -> str:
    try:
        await asyncio.sleep(FOREVER_S)
    except SoftTimeLimit:
        return "tidy"
    return "never"


@task(executor="process", timeout=60, soft_timeout=0.3)
def late_in_process(_ctx: Context) -> None:
    time.sleep(FOREVER_S)


@task(executor="process", timeout=30, soft_timeout=0.02)
def close_to_its_limit(_ctx: Context, number: int) -> int:
    """End at about the time of the soft limit: before it, with it, or behind it."""
    until = time.monotonic() + 0.02
    while time.monotonic() < until:
        pass
    return number


@task(executor="process")
def compute(_ctx: Context, seconds: float) -> int:
    """Hold the interpreter of the process for so long."""
    until = time.monotonic() + seconds
    turns = 0
    while time.monotonic() < until:
        turns += 1
    return os.getpid()


@task
def add_in_thread(_ctx: Context, one: int, two: int = 0) -> int:
    return one + two


@task
def thread_name(_ctx: Context) -> str:
    return threading.current_thread().name


IN_PROCESSES: list[Any] = [
    add,
    pid,
    who,
    move,
    add_async,
    insert,
    fail,
    fail_oddly,
    leave,
    lambda_result,
    asks_for_client,
    again,
    segfault,
    exit_at_once,
    die_once,
    spin,
    wait_in_process,
    tidy_in_process,
    tidy_in_process_async,
    late_in_process,
    close_to_its_limit,
    compute,
]
