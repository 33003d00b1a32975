"""Let the calls of `enqueue_many` go through middleware one by one, and travel together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from runner.middleware.base import EnqueueCall, Middleware, around_enqueue
from runner.tasks import Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from runner.job import Job

    Carrying = tuple[Call[Any], dict[str, Any] | None]
    Send = Callable[[Sequence[Carrying]], Awaitable[list[Job[Any]]]]


class Batch:
    """One call of `enqueue_many`: all of it is sent when its last call has come through.

    Args:
        send: enqueues calls, in order, with what each carries.
    """

    def __init__(self, middleware: Sequence[Middleware], send: Send) -> None:
        self._middleware = middleware
        self._send = send
        self._through: dict[int, EnqueueCall] = {}
        self._missing = 0
        self._failure: BaseException | None = None
        self._all_through = asyncio.Event()
        self._jobs: asyncio.Future[dict[int, Job[Any]]] = asyncio.get_running_loop().create_future()

    async def enqueue(self, calls: Iterable[Call[Any]]) -> list[Job[Any]]:
        """Enqueue what comes through; nothing when the middleware raises for one of them."""
        given = [
            EnqueueCall(
                task=call.task.name,
                args=call.args,
                kwargs=call.kwargs,
                options=call.options,
                declared=call.task,
            )
            for call in calls
        ]
        if not given:
            return []
        self._missing = len(given)
        tasks = [
            asyncio.create_task(self._one(index, call), name="runner enqueues by middleware")
            for index, call in enumerate(given)
        ]
        try:
            await self._all_through.wait()
            if self._failure is None:
                await self._send_all()
                return list(await asyncio.gather(*tasks))
            raise self._failure
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._jobs.cancel()

    async def _send_all(self) -> None:
        order = sorted(self._through)
        try:
            jobs = await self._send([_carrying(self._through[index]) for index in order])
        except Exception as exc:
            self._jobs.set_exception(exc)  # those who stand around a call see it too
            self._jobs.exception()
            raise
        self._jobs.set_result(dict(zip(order, jobs, strict=True)))

    async def _one(self, index: int, call: EnqueueCall) -> Any:
        async def join(changed: EnqueueCall) -> Any:
            self._through[index] = changed
            self._count()
            return (await asyncio.shield(self._jobs))[index]

        around = around_enqueue(self._middleware, join)
        assert around is not None
        try:
            return await around(call)
        except BaseException as exc:
            if index not in self._through and self._failure is None:
                self._failure = exc
                self._all_through.set()
            raise
        finally:
            if index not in self._through:  # its middleware did not proceed
                self._count()

    def _count(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self._all_through.set()


def _carrying(call: EnqueueCall) -> Carrying:
    task = call.declared
    assert task is not None
    task.signature.check(task.name, call.args, call.kwargs)  # a layer may have changed them
    return Call(task, call.args, call.kwargs, call.options), call.carried or None
