"""The soft limit of a function in a thread: it may come at any time, and the thread goes on."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from typing import Any

from runner.errors import SoftTimeLimit
from runner.executors.threads import Call, _work

CALLS = 400
ROUNDS = 20_000  # of a loop: half a millisecond or so


def count() -> int:
    rounds = 0
    for _ in range(ROUNDS):
        rounds += 1
    return rounds


class Thread:
    """One thread of the pool, without a pool."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=_work, args=(self.calls,), daemon=True)
        self.thread.start()

    async def call(self, soften_after_s: float) -> Call:
        attempt: Any = None  # a call by itself has no use for it
        done = asyncio.get_running_loop().create_future()
        call = Call(attempt, lambda _: count(), lambda _: done.set_result(None))
        self.calls.put(call)
        time.sleep(soften_after_s)  # noqa: ASYNC251  for a time shorter than the loop's turns
        call.soften()
        async with asyncio.timeout(10):
            await done
        return call


async def test_function_ends_or_is_told_and_the_thread_takes_the_next() -> None:
    thread = Thread()
    for number in range(CALLS):
        call = await thread.call(0.001 * number / CALLS)
        assert call.error is None or isinstance(call.error, SoftTimeLimit)
        assert call.error is not None or call.value == ROUNDS
    assert thread.thread.is_alive()
    thread.calls.put(None)
    thread.thread.join(10)
    assert not thread.thread.is_alive()
