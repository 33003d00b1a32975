"""A coroutine whose first step was taken by hand goes on as if a task had run it all along."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

import pytest

from runner.execution.steps import as_coroutine, go_on

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="outside")


async def begun(
    coroutine: Coroutine[Any, Any, Any],
    run: Callable[..., Any] | None = None,
) -> Any:
    waits_for = coroutine.send(None) if run is None else run(coroutine.send, None)
    return await go_on(coroutine, waits_for, run)


async def test_value_comes_back_after_many_waits() -> None:
    async def count() -> int:
        for _ in range(3):
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return 3

    assert await begun(count()) == 3


async def test_exception_comes_out() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        await begun(fail())


async def test_exception_of_what_it_waits_for_can_be_caught_inside() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def recover() -> str:
        try:
            await future
        except ValueError:
            await asyncio.sleep(0)
            return "recovered"
        return "nothing happened"

    asyncio.get_running_loop().call_soon(future.set_exception, ValueError())
    assert await begun(recover()) == "recovered"


async def test_timeout_that_began_in_the_first_step_ends_it() -> None:
    async def limited() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "over"
        return "not over"

    assert await begun(limited()) == "over"


async def test_cancellation_reaches_it_and_comes_out() -> None:
    steps: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    task = asyncio.create_task(begun(wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert steps == ["cleaned up"]


async def test_every_step_is_in_its_own_context() -> None:
    async def change() -> list[str]:
        values = [seen.get()]
        seen.set("inside")
        await asyncio.sleep(0)
        return [*values, seen.get()]

    assert await begun(change(), contextvars.copy_context().run) == ["outside", "inside"]
    assert seen.get() == "outside"


async def test_closing_it_closes_the_coroutine() -> None:
    closed: list[bool] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    coroutine = wait()
    waiting: Any = go_on(coroutine, coroutine.send(None))
    waiting.send(None)
    waiting.close()
    assert closed == [True]


async def test_coroutine_that_is_closed_cleans_up_in_its_own_context() -> None:
    values: list[str] = []

    async def wait() -> None:
        token = seen.set("inside")
        try:
            await asyncio.Event().wait()
        finally:
            values.append(seen.get())
            seen.reset(token)  # raises in any other context

    coroutine, context = wait(), contextvars.copy_context()
    waiting: Any = go_on(coroutine, context.run(coroutine.send, None), context.run)
    waiting.send(None)
    waiting.close()
    assert values == ["inside"]


async def test_any_awaitable_can_be_stepped() -> None:
    class Later:
        def __await__(self) -> Generator[Any, Any, str]:
            yield from asyncio.sleep(0).__await__()
            return "later"

    async def at_once() -> str:
        return "at once"

    coroutine = at_once()
    assert as_coroutine(coroutine) is coroutine
    assert await coroutine == "at once"
    assert await begun(as_coroutine(Later())) == "later"
