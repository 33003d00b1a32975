"""What tests of every tier share: waiting for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

__all__ = ["run_apart", "start_python", "wait_until"]

T = TypeVar("T")
POLL_S = 0.01


@overload
async def wait_until(
    predicate: Callable[[], Awaitable[T]], *, description: str, timeout_s: float = 10
) -> T: ...


@overload
async def wait_until(
    predicate: Callable[[], T], *, description: str, timeout_s: float = 10
) -> T: ...


async def wait_until(
    predicate: Callable[[], Any], *, description: str, timeout_s: float = 10
) -> Any:
    """Wait until `predicate`, synchronous or not, gives something true, and return that.

    Raises AssertionError after `timeout_s`, with the description and what was given last::

        await wait_until(lambda: events, description="the worker says that it has started")
    """
    value: Any = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                given = predicate()
                value = await given if inspect.isawaitable(given) else given
                if value:
                    return value
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(
            f"within {timeout_s:g} s this did not come true: {description} (last: {value!r})"
        ) from None


def run_apart(work: Coroutine[None, None, T]) -> T:
    """Run a coroutine in an event loop and thread of its own, for synchronous fixtures."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def start_python(folder: Path, environment: dict[str, str], *words: str) -> Process:
    """Start this Python with these arguments; what it prints can be read."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *words),
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
