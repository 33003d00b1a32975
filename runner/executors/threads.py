"""Run functions that are not async in threads of the worker's own.

A thread cannot be stopped. What can be done about one that does not end is done here:

- The pool is bounded, and a call that goes on keeps its place in it until it returns.
- At the soft limit `SoftTimeLimit` is raised in the thread, at whatever line of Python it has
  reached; a call into C hears of it when it returns.
- At the hard limit, and when it is aborted or has lost its lease, the job ends without the
  function, whose writes are refused from then on (`AttemptOver`).
- When the worker stops, the function has a grace to end, and its job ends as ever. Beyond the
  grace the job is left to its lease, which is renewed until the function returns, the process
  ends, or the job's time is up: it does not run elsewhere beside itself.

The threads are daemons, so a process that is told to end does, whatever they do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import ctypes
import functools
import logging
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from runner.errors import SoftTimeLimit, TaskError
from runner.execution import report
from runner.execution.limits import LOOK_S, Limits, frames_under
from runner.executors.failures import as_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from runner.execution import Attempt, Host
    from runner.execution.records import Frames
    from runner.leases import Leases

logger = logging.getLogger("arq.worker")

T = TypeVar("T")


class Call:
    """One call of a function, on its way into a thread and back.

    Attributes:
        done: resolved in the loop, with the value and the error, when the thread is free again.
        returned: called by the thread, with the call, when it is.
        cancelled: the job is to end, or has ended.
    """

    def __init__(
        self,
        attempt: Attempt,
        function: Callable[[Call], Any],
        returned: Callable[[Call], None],
    ) -> None:
        self.attempt = attempt
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.value: Any = None
        self.error: BaseException | None = None
        self.cancelled = False
        self._function = function
        self._returned = returned
        self._context = contextvars.copy_context()
        self._thread_id = 0
        self._awaits: concurrent.futures.Future[Any] | None = None
        # Whoever takes it decides: the loop, to raise the soft limit, or the thread, to end
        # without. `list.pop` is one step.
        self._right_to_raise = [True]
        self._was_raised = threading.Event()
        self._has_struck = False
        self._is_softened = False

    def perform(self) -> None:
        """Call the function, in this thread."""
        self.error = SoftTimeLimit()  # should that come before the first line, or with the last
        try:
            self._thread_id = threading.get_ident()
            self._call()
            self._refuse_soft_limit()
        except SoftTimeLimit:
            # It may come between any two steps of the above, but only once.
            self._refuse_soft_limit()
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is the worker
            self.loop.call_soon_threadsafe(self._returned, self)

    def _call(self) -> None:
        try:
            self.value = self._context.run(self._function, self)
        except BaseException as exc:  # noqa: BLE001  the job's end, whatever it is
            self.error = exc
        else:
            self.error = None

    def soften(self) -> bool:
        """Raise `SoftTimeLimit` in the thread, unless the function is over; False: not begun."""
        if not self._thread_id:
            return False
        try:
            self._right_to_raise.pop()
        except IndexError:
            return True  # it is over
        awaits = self._awaits  # the thread sets it to None when it likes
        self._is_softened = True
        if awaits is not None and awaits.cancel():
            # `run` raises it: a thread that waits would hear of the other only afterwards.
            self._has_struck = True
        else:
            _raise_in_thread(self._thread_id, self._strike())
        self._was_raised.set()
        return True

    def _refuse_soft_limit(self) -> None:
        """Return when nothing can be raised in this thread any more.

        What is on its way is waited for. To take it back (``PyThreadState_SetAsyncExc`` with NULL)
        would leave CPython 3.11 and 3.12 looking for it for ever, and under a tracer in a loop.
        """
        try:
            self._right_to_raise.pop()
        except IndexError:
            try:
                self._was_raised.wait()
                while not self._has_struck:
                    time.sleep(0)
            except SoftTimeLimit:  # here it is; `suppress` itself could be struck
                pass

    def _strike(self) -> type[SoftTimeLimit]:
        """Return the class of the one `SoftTimeLimit` that is raised here: it notes when it is."""

        class Strike(SoftTimeLimit):
            def __init__(strike, *args: object) -> None:  # noqa: N805  the call is `self`
                super().__init__(*args)
                self._has_struck = True

        for name in ("__name__", "__qualname__", "__module__"):
            setattr(Strike, name, getattr(SoftTimeLimit, name))
        return Strike

    def cancel(self) -> None:
        """Tell the function that its job is to end; what it awaits is cancelled."""
        self.cancelled = True
        self._cancel_awaited()

    def _cancel_awaited(self) -> None:
        awaits = self._awaits  # the thread sets it to None when it likes
        if awaits is not None:
            awaits.cancel()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop, from the function's thread, and return its value."""
        if threading.get_ident() != self._thread_id:
            coroutine.close()
            raise TaskError("ctx.run is for the thread of the job itself")
        if self._is_cancelled():
            coroutine.close()
            raise asyncio.CancelledError
        awaits = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        self._awaits = awaits
        try:
            if self._is_cancelled():  # in between
                awaits.cancel()
            return awaits.result()
        except concurrent.futures.CancelledError:
            if self._is_softened and not self.cancelled:
                raise SoftTimeLimit from None
            raise asyncio.CancelledError from None
        finally:
            self._awaits = None
            awaits.cancel()  # also when the soft limit was raised here

    def finish(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop also when the job is to end: it closes something."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()
        except RuntimeError:
            coroutine.close()  # where the loop is closed, so is what it held
            raise

    def _is_cancelled(self) -> bool:
        return self.cancelled

    def frames(self) -> Any:
        """Return where the thread is, None when it is not known."""
        return sys._current_frames().get(self._thread_id)  # noqa: SLF001  there is no other way


class ThreadLimits(Limits):
    """The time limits of a function that runs in a thread."""

    __slots__ = ("_call",)

    def __init__(self, host: Host, attempt: Attempt, call: Call) -> None:
        task = asyncio.current_task()
        assert task is not None
        super().__init__(host, attempt, task)
        self._call = call

    def frames(self) -> Frames:
        """Return where the thread is."""
        return frames_under(self._call.frames())

    def soften(self) -> None:
        """Raise `SoftTimeLimit` in the thread."""
        if self._call.soften():
            self.attempt.softened = True
        else:
            self.soft = self.loop.call_later(LOOK_S, self.soften)


class Threads:
    """The threads of one worker.

    Args:
        most: how many there may be; calls beyond it wait, and their leases are renewed.
        leases: renewed for a job that is left to them, also when the worker has closed.
    """

    def __init__(self, host: Host, *, most: int, leases: Leases) -> None:
        self._host = host
        self._leases = leases
        self._free = asyncio.Semaphore(most)
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._stuck: set[Call] = set()

    @property
    def stuck(self) -> int:
        """How many functions go on whose jobs have ended."""
        return len(self._stuck)

    async def run(
        self,
        attempt: Attempt,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        starts: Callable[[], float | None],
    ) -> Any:
        """Return what the attempt's function returns in a thread."""
        await self._free.acquire()
        try:
            timeout_s = starts()
        except BaseException:
            self._free.release()
            raise
        assert attempt.task is not None
        assert attempt.context is not None
        task: Any = attempt.task
        function = functools.partial(task.call_in_thread, attempt.context, args, kwargs)
        call = Call(attempt, function, functools.partial(self._returned, self._calls))
        attempt.context.connect_thread(call)
        self._begin(call)
        limits = attempt.limits = ThreadLimits(self._host, attempt, call)
        limits.start(timeout_s)
        try:
            await self._wait(call)
        finally:
            limits.stop()
            attempt.limits = None
        if call.error is not None:
            raise as_failure(call.error)
        attempt.unit = attempt.context.unit()
        return call.value

    def stop(self) -> None:
        """Let threads end as soon as they are free. Idempotent."""
        for _ in range(self._threads):
            self._calls.put(None)
        self._calls = queue.SimpleQueue()
        self._threads = self._idle = 0

    def _begin(self, call: Call) -> None:
        if self._idle:
            self._idle -= 1
        else:
            self._threads += 1
            threading.Thread(
                target=_work,
                args=(self._calls,),
                name=f"runner job thread {self._threads}",
                daemon=True,
            ).start()
        self._calls.put(call)

    def _returned(self, calls: queue.SimpleQueue[Call | None], call: Call) -> None:
        self._free.release()
        if calls is self._calls:
            self._idle += 1
        call.done.set_result(None)
        if call in self._stuck:
            self._stuck.discard(call)
            logger.warning("job %s: its function has returned after all", call.attempt.ref)
            if call.attempt.is_left:
                self._leases.remove(call.attempt.claimed.token, call.attempt.claimed.job_id)

    async def _wait(self, call: Call) -> None:
        """Return when the function has; leave it alone when the job has to end without it."""
        while not call.done.done():
            try:
                await asyncio.wait([call.done])
            except asyncio.CancelledError:
                if self._is_over(call):
                    self._leave(call)
                    raise
                _uncancel()
                if self._host.stopping:
                    await self._wait_at_stop(call)
                # Somebody else's cancellation means another try, beside this one: not here.

    async def _wait_at_stop(self, call: Call) -> None:
        call.cancel()
        try:
            await asyncio.wait([call.done], timeout=self._host.cancel_grace_s)
        except asyncio.CancelledError:
            if self._is_over(call):
                self._leave(call)
                raise
            _uncancel()
        if not call.done.done():
            call.attempt.is_left = True
            self._leave(call)
            self._leases.keep(call.attempt.claimed)
            raise asyncio.CancelledError

    def _is_over(self, call: Call) -> bool:
        """Say whether the job has to end now, with its function or without."""
        attempt = call.attempt
        aborted = attempt.claimed.job_id in self._host.aborting_tasks
        return attempt.timed_out or attempt.lost_lease or aborted

    def _leave(self, call: Call) -> None:
        """Go on without a function that cannot be stopped."""
        call.cancel()
        if call.done.done():
            return
        attempt = call.attempt
        assert attempt.context is not None
        attempt.context.end()
        attempt.goes_on = True
        self._stuck.add(call)
        report.stuck(self._host, attempt, "thread", frames_under(call.frames()))


def _work(calls: queue.SimpleQueue[Call | None]) -> None:
    while (call := calls.get()) is not None:
        call.perform()
        del call  # and what it holds, while there is nothing to do


def _uncancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


def _raise_in_thread(thread_id: int, kind: type[BaseException]) -> None:
    """Let a thread raise an exception at its next line of Python."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(kind))


__all__ = ["Threads"]
