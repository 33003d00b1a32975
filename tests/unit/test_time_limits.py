"""What a task may declare about where it runs and for how long."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from runner import SoftTimeLimit, Worker, task
from runner.errors import SettingsError
from runner.execution.limits import frames_of, is_soft_limit, shown


async def in_loop(_ctx: Any) -> None: ...


def in_thread(_ctx: Any) -> None: ...


def generates(_ctx: Any) -> Any:
    yield 1


async def generates_async(_ctx: Any) -> Any:
    yield 1


@pytest.mark.parametrize(
    ("function", "executor", "place"),
    [
        (in_loop, None, "loop"),
        (in_loop, "loop", "loop"),
        (in_loop, "process", "process"),
        (in_thread, None, "thread"),
        (in_thread, "thread", "thread"),
        (in_thread, "process", "process"),
    ],
)
def test_place_follows_from_the_function_and_the_option(
    function: Any, executor: Any, place: str
) -> None:
    assert task(executor=executor)(function).executor == place


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (in_loop, {"executor": "thread"}, "is async"),
        (in_thread, {"executor": "loop"}, "would block the event loop"),
        (in_thread, {"executor": "moon"}, "executor is 'moon'"),
        (generates, {}, "is a generator"),
        (generates_async, {}, "is a generator"),
        (partial(in_thread), {"name": "partial"}, "must be a function"),
        (lambda _ctx: None, {"executor": "process"}, "at the top of a module"),
        (in_loop, {"soft_timeout": 0}, "soft_timeout is 0"),
        (in_loop, {"soft_timeout": 5, "timeout": 5}, "must be less than its timeout"),
        (in_loop, {"soft_timeout": timedelta(minutes=1), "timeout": 5}, "soft_timeout is 60 s"),
    ],
)
def test_what_contradicts_itself_is_refused_where_it_is_declared(
    function: Any, options: dict[str, Any], message: str
) -> None:
    function.__qualname__ = getattr(function, "__qualname__", "partial")
    with pytest.raises(SettingsError, match=message):
        task(**options)(function)


async def test_worker_holds_soft_limits_to_its_own_time_limit() -> None:
    slow = task(soft_timeout=20)(in_loop)
    with pytest.raises(SettingsError, match="must be less than its timeout, 10 s"):
        Worker([slow], job_timeout=10, handle_signals=False)


@pytest.mark.parametrize(
    ("exc", "soft"),
    [
        (SoftTimeLimit(), True),
        (asyncio.CancelledError(), False),
        (BaseExceptionGroup("", [SoftTimeLimit()]), True),
        (BaseExceptionGroup("", [SoftTimeLimit(), ValueError()]), True),
        (BaseExceptionGroup("", [SoftTimeLimit(), KeyboardInterrupt()]), False),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), False),
        (ExceptionGroup("", [ValueError()]), False),
    ],
)
def test_soft_limit_is_known_in_a_group_too(exc: BaseException, soft: bool) -> None:
    assert is_soft_limit(exc) is soft


async def test_place_where_a_coroutine_hangs_is_the_users_line() -> None:
    async def inner() -> None:
        await asyncio.Event().wait()  # here

    async def outer() -> None:
        await inner()

    waits = asyncio.create_task(outer())
    await asyncio.sleep(0)
    where, stack = shown(list(frames_of(waits.get_coro())))
    waits.cancel()
    assert where.startswith(__file__)
    assert where.endswith("in inner")
    assert "await asyncio.Event().wait()  # here" in stack
    assert shown([]) == ("", "")
