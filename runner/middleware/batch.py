"""Let the calls of `enqueue_many` go through middleware one by one, and travel together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.middleware.base import EnqueueCall, Middleware, around_enqueue
from runner.tasks import Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from runner.job import Job

    Carrying = tuple[Call[Any], dict[str, Any] | None]
    Send = Callable[[Sequence[Carrying]], Awaitable[list[Job[Any]]]]


@dataclass(slots=True)
class _Joined:
    """A call that has come through, and its job when that is queued."""

    index: int
    call: EnqueueCall
    job: asyncio.Future[Job[Any]]


class Batch:
    """One call of `enqueue_many`: all of it is sent when its last call has come through.

    A middleware may proceed with a call more than once: each time is a job. What comes when the
    others are sent goes alone.

    Args:
        send: enqueues calls, in order, with what each carries.
    """

    def __init__(self, middleware: Sequence[Middleware], send: Send) -> None:
        self._middleware = middleware
        self._send = send
        self._joined: list[_Joined] = []
        self._awaited: set[int] = set()
        self._is_sent = False
        self._failure: BaseException | None = None
        self._all_through = asyncio.Event()

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
        self._awaited.update(range(len(given)))
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

    async def _send_all(self) -> None:
        self._is_sent = True
        joined = sorted(self._joined, key=lambda one: one.index)  # stable
        try:
            jobs = await self._send([_carrying(one.call) for one in joined])
        except Exception as exc:
            for one in joined:
                if not one.job.done():  # those who stand around a call see it too
                    one.job.set_exception(exc)
                    one.job.exception()
            raise
        for one, job in zip(joined, jobs, strict=True):
            if not one.job.done():
                one.job.set_result(job)

    async def _one(self, index: int, call: EnqueueCall) -> Any:
        has_joined = False

        async def join(changed: EnqueueCall) -> Any:
            nonlocal has_joined
            has_joined = True
            if self._is_sent:
                (job,) = await self._send([_carrying(changed)])
                return job
            joined = _Joined(index, changed, asyncio.get_running_loop().create_future())
            self._joined.append(joined)
            self._seen(index)
            return await joined.job

        around = around_enqueue(self._middleware, join)
        assert around is not None
        try:
            return await around(call)
        except BaseException as exc:
            if not has_joined and self._failure is None:
                self._failure = exc
                self._all_through.set()
            raise
        finally:
            self._seen(index)  # also when its middleware did not proceed

    def _seen(self, index: int) -> None:
        self._awaited.discard(index)
        if not self._awaited:
            self._all_through.set()


def _carrying(call: EnqueueCall) -> Carrying:
    task = call.declared
    assert task is not None
    task.signature.check(task.name, call.args, call.kwargs)  # a layer may have changed them
    return Call(task, call.args, call.kwargs, call.options), call.carried or None
