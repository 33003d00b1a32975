"""A process of a worker's pool: it runs one job after another, as its socket says.

Signals end a function, where it is Python that runs: SIGUSR1 raises `SoftTimeLimit` in it, and
SIGTERM raises `asyncio.CancelledError`, after which the process ends. An async function is
thrown the same where it waits. Without a function they do nothing, but that SIGTERM ends the
process.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import logging
import os
import pickle
import signal
import socket
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec
import uvloop

from runner import lines, logs
from runner.errors import EncodeError, SoftTimeLimit, TaskError
from runner.execution import Context, go_on
from runner.execution.limits import SoftCancellation
from runner.executors import wire
from runner.executors.failures import packed
from runner.executors.tied import end_with
from runner.executors.wire import Answer, Request
from runner.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from datetime import datetime

    from runner.progress import Progress


T = TypeVar("T")

WORDS_AT_ONCE, WORDS_A_SECOND = 100, 100
"""How many words of progress go to the worker: it has other jobs to hear of."""
MOST_LINES = 1_000
"""How many lines of a job come back, whatever is asked for."""


class ProcessContext(Context):
    """What a task gets in a process: who it is, and ``ctx.db`` to collect its writes."""

    __slots__ = ("_due",)

    def tell(self, request: Request) -> None:
        """Say which job this is."""
        self.update(request.values)
        self._due = request.due

    @property
    def client(self) -> NoReturn:
        """Refuse: the worker's client is in another process."""
        raise TaskError(
            "there is no ctx.client in a process: return what is to be enqueued, or open a "
            "connection by runner.connect there",
        )

    @property
    def due(self) -> datetime | None:
        """When the schedule that made this job was due, None when none did."""
        return self._due

    async def reschedule(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: Redis is out of reach."""
        raise TaskError("ctx.reschedule is not possible in a process: do it in an async task")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``ctx.progress(1, 3)``, as in a thread: it needs no event loop.

        Raises:
            TaskError: it is something else.
        """
        if getattr(coroutine, "cr_code", None) is Context.progress.__code__:
            try:
                coroutine.send(None)
            except StopIteration as stop:
                value: T = stop.value
                return value
        coroutine.close()
        raise TaskError(
            "in a process ctx.run is for ctx.progress: the worker's event loop, its client and its "
            "database are in another process",
        )


class Teller:
    """Where the job of a process says how far it is: it goes to the worker ahead of the answer.

    The worker gathers what comes too often; of what comes in a tight loop it gets the last word
    only, with the next that has room, or before the answer.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unsent: Progress | None = None
        self._room, self._at = float(WORDS_AT_ONCE), time.monotonic()

    async def say(self, _job_id: str, progress: Progress) -> None:
        """Send a word, if there is room for one."""
        now = time.monotonic()
        self._room = min(self._room + (now - self._at) * WORDS_A_SECOND, WORDS_AT_ONCE)
        self._at = now
        if self._room < 1:
            self._unsent = progress
            return
        self._room -= 1
        self._send(progress)

    def flush(self) -> None:
        """Send the last word, if it has not gone."""
        if self._unsent is not None:
            self._send(self._unsent)

    def _send(self, progress: Progress) -> None:
        self._unsent = None
        message = wire.framed(wire.PROGRESS + msgspec.msgpack.encode(progress))
        # What a signal raises between two bytes of a message would cut it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGTERM))
        try:
            self._connection.sendall(message)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class KeptLines(lines.Catcher):
    """The last lines of the job that runs: they go back with its answer."""

    def __init__(self, most: int) -> None:
        super().__init__("", most)
        self._lines: deque[lines.Line] = deque(maxlen=min(most, MOST_LINES))

    def take(self, _jobs: object, line: lines.Line) -> None:
        """Keep a line."""
        self._lines.append(line)

    def taken(self) -> tuple[lines.Line, ...]:
        """Return the lines, and stop listening."""
        self.close()
        return tuple(self._lines)


class Interrupts:
    """What signals do to the function that runs.

    Attributes:
        told_to_end: by SIGTERM; no further job is begun.
        is_idle: it waits for a request.
        raises: what an exception is given to while a function runs.
        pending: what came for a function that is about to be called.
    """

    def __init__(self) -> None:
        self.told_to_end = False
        self.is_idle = False
        self.raises: Callable[[type[BaseException]], None] | None = None
        self.pending: type[BaseException] | None = None

    def install(self) -> None:
        """Take the signals."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker
        signal.signal(signal.SIGUSR1, self._soften)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1, signal.SIGTERM))

    def wait(self) -> None:
        """Wait for a request: what comes now is for no function, or for one that is over."""
        self.install()  # a function may have changed it
        self.is_idle = True
        self.pending = None

    def begin(self, raises: Callable[[type[BaseException]], None]) -> None:
        """Let signals raise from now on, also what has come for this function."""
        self.raises = raises
        if self.pending is not None:
            raises(self.pending)

    def off(self) -> None:
        """Raise nothing any more: the function is over."""
        self.raises = None

    def _soften(self, *_: object) -> None:
        if self.raises is not None:
            self.raises(SoftTimeLimit)
        elif not self.is_idle and not self.told_to_end:
            self.pending = SoftTimeLimit

    def _terminate(self, *_: object) -> None:
        self.told_to_end = True
        if self.raises is not None:
            self.raises(asyncio.CancelledError)
        elif self.is_idle:
            raise SystemExit(0)
        else:
            self.pending = asyncio.CancelledError


class ChildWatch(SoftCancellation):
    """Turns the cancellation for the soft limit into what it is."""

    __slots__ = ()

    def interrupt(self, kind: type[BaseException]) -> None:
        """Cancel the function, for good or for its soft limit; from a signal's handler."""
        act = self.soften if kind is SoftTimeLimit else self.task.cancel
        self.loop.call_soon_threadsafe(act)


def configure(log_format: str) -> None:
    """Log as the worker does: in a format of ours, or, "" being none, as Python does."""
    if log_format:
        logs.configure(log_format)
    else:
        logging.basicConfig(level=logging.WARNING)


def main(fd: int, parent: int, log_format: str) -> None:
    """Be a process of the pool that was not forked."""
    end_with(parent)
    configure(log_format)
    serve(socket.socket(fileno=fd))


def serve(connection: socket.socket) -> None:
    """Run jobs until the worker has closed the socket."""
    os.setpgid(0, 0)  # who kills it kills what it started too
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # so it reads no terminal, and is not stopped
    this = os.getpid()
    interrupts = Interrupts()
    teller = Teller(connection)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop, connection:
        while not interrupts.told_to_end:
            interrupts.wait()
            request = wire.receive(connection)
            interrupts.is_idle = False
            if request is None:
                return
            connection.sendall(wire.framed(wire.BEGUN))
            answer = perform(request, interrupts, loop, teller)
            if os.getpid() != this:
                os._exit(0)  # a function has forked, and returned twice: the other one answers
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # a function may have put anything there
                    stream.flush()
            teller.flush()
            connection.sendall(wire.framed(pickle.dumps(tuple(answer))))


def perform(data: bytes, interrupts: Interrupts, loop: asyncio.Runner, teller: Teller) -> Answer:
    """Run one job; whatever it raises is its answer."""
    context = ProcessContext({}, board=teller)
    kept: list[KeptLines] = []
    error: BaseException
    try:
        value = _call(data, context, interrupts, loop, kept)
        return Answer(_pickled(value), context.unit(), lines=_taken(kept))
    except BaseException as exc:  # noqa: BLE001  sys.exit too is the job's end, and not ours
        error = exc
    finally:
        interrupts.off()
    return Answer(None, b"", *packed(error), lines=_taken(kept))


def _taken(kept: Iterable[KeptLines]) -> tuple[lines.Line, ...]:
    return tuple(line for one in kept for line in one.taken())


def _call(
    data: bytes,
    context: ProcessContext,
    interrupts: Interrupts,
    loop: asyncio.Runner,
    kept: list[KeptLines],
) -> Any:
    request = Request(*pickle.loads(data))  # noqa: S301  from the worker that made this process
    context.tell(request)
    if request.lines:
        kept.append(KeptLines(request.lines))
        kept[0].open()
    logs.bind(context.job_id, request.task, context.attempt)
    function = find(request.module, request.qualname)
    if asyncio.iscoroutinefunction(function):
        coroutine = function(context, *request.args, **request.kwargs)
        value, error = loop.run(_drive(coroutine, interrupts), context=contextvars.copy_context())
        if error is not None:
            raise error
        return value
    try:
        interrupts.begin(_raise)
        return function(context, *request.args, **request.kwargs)
    finally:
        interrupts.off()


def _raise(kind: type[BaseException]) -> NoReturn:
    raise kind


async def _drive(
    coroutine: Coroutine[Any, Any, Any],
    interrupts: Interrupts,
) -> tuple[Any, BaseException | None]:
    """Return the value or the error of an async function: a task would take one for another."""
    task = asyncio.current_task()
    assert task is not None
    watch = ChildWatch(task)
    interrupts.begin(watch.interrupt)
    try:
        waits_for = coroutine.send(None)
    except StopIteration as stop:
        return stop.value, None
    except BaseException as exc:  # noqa: BLE001  the job's answer
        return None, exc
    try:
        return await go_on(coroutine, waits_for, watch=watch), None
    except BaseException as exc:  # noqa: BLE001  as above
        return None, exc
    finally:
        interrupts.off()
        if watch.soft is not None:
            watch.soft.cancel()


def find(module: str, qualname: str) -> Callable[..., Any]:
    """Return the function of a task."""
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    function: Callable[..., Any] = found.function if isinstance(found, Task) else found
    return function


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as exc:
        raise EncodeError(
            f"the result, a {type(value).__qualname__}, cannot leave the process {os.getpid()}: "
            f"{exc}",
        ) from exc


__all__ = ["ProcessContext", "configure", "main", "serve"]
