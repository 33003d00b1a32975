"""Run functions in processes of a pool: killed at their time limit, and replaced.

Each process runs one job at a time. What is told to end has a grace to tidy up (SIGTERM), and is
killed then; at the hard limit, and when its lease is lost, it is killed at once. One that dies by
itself fails its job with `ProcessDied`, and no other. The processes end with the worker, also
when that is killed (see `tied`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from runner import lines
from runner.errors import DecodeError, EncodeError, ProcessDied, SettingsError, TaskError
from runner.execution.limits import Limits
from runner.executors import wire
from runner.executors.failures import as_failure, unpacked
from runner.executors.forker import program
from runner.executors.wire import Answer, Request
from runner.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from runner.execution import Attempt, Host
    from runner.tasks import Task

logger = logging.getLogger("arq.worker")

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0
BEGIN_TRIES = 3
"""A process that dies before it has read a request is replaced, unseen by the job."""

_decode_progress = msgspec.msgpack.Decoder(Progress).decode


class Child:
    """One process of the pool, seen from the worker.

    Attributes:
        calls: how many jobs it was given.
        is_spent: it was told to end, and gets no other job.
    """

    def __init__(
        self,
        pid: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        status: asyncio.Future[int | None],
    ) -> None:
        self.pid = pid
        self.calls = 0
        self.is_spent = False
        self._reader = reader
        self._writer = writer
        self._status = status

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended."""
        return self._status.done() or self._reader.at_eof()

    async def begin(self, request: bytes) -> None:
        """Hand over a request; raise `ProcessDied` if it was not taken, and so has not begun."""
        self.calls += 1
        try:
            self._writer.write(wire.framed(request))
            await self._writer.drain()
            await self._frame()
        except (asyncio.IncompleteReadError, OSError):
            raise await self._death("took a job") from None

    async def answer(self, hear: Callable[[Progress], Awaitable[None]]) -> bytes:
        """Wait for the end of its job; raise `ProcessDied` if it comes to none.

        Args:
            hear: called with each word of how far it is.
        """
        while True:
            try:
                frame = await self._frame()
            except (asyncio.IncompleteReadError, OSError):
                raise await self._death("ended its job") from None
            if not frame.startswith(wire.PROGRESS):
                return frame
            await hear(_decode_progress(frame[len(wire.PROGRESS) :]))

    def tell(self, signum: signal.Signals) -> None:
        """Send it a signal, unless it is known to have ended."""
        if not self._status.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def end(self, signum: signal.Signals) -> None:
        """Tell it to end."""
        self.is_spent = True
        self.tell(signum)

    def close(self) -> None:
        """Let go of it: it ends when it has no job, or after it."""
        self._writer.close()

    async def closed(self) -> None:
        """Wait until nothing of the socket is left."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _frame(self) -> bytes:
        head = await self._reader.readexactly(wire.LENGTH_BYTES)
        return await self._reader.readexactly(int.from_bytes(head, "big"))

    async def _death(self, before: str) -> ProcessDied:
        self.is_spent = True
        status: int | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                status = await asyncio.shield(self._status)
        if status is None:
            return ProcessDied(f"the process {self.pid} was lost before it {before}")
        if status >= 0:
            message = f"the process {self.pid} ended with status {status} before it {before}"
            return ProcessDied(message, exit_status=status)
        name = signal.Signals(-status).name
        hint = ": out of memory?" if -status == signal.SIGKILL else ""
        message = f"the process {self.pid} was ended by {name} before it {before}{hint}"
        return ProcessDied(message, signal=-status)


class Maker:
    """The worker's end of the forker.

    Args:
        modules: what the forker imports.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = sorted(set(modules))
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._births: list[asyncio.Future[int]] = []
        self._deaths: dict[int, asyncio.Future[int | None]] = {}
        self._lock = asyncio.Lock()

    async def make(self) -> Child:
        """Make a process; raise `TaskError` when that is not possible."""
        async with self._lock:
            if self._control is None:
                await self._start()
            ours, theirs = socket.socketpair()
            birth: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._births.append(birth)
            with theirs:
                try:
                    assert self._control is not None
                    socket.send_fds(self._control, [b"+"], [theirs.fileno()])
                except OSError as exc:
                    ours.close()
                    self._births.remove(birth)
                    raise TaskError(f"no process could be made: {exc}") from exc
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    pid = await birth
            except BaseException:
                ours.close()  # it ends at once, should it come to life
                raise
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        return Child(pid, reader, writer, self._deaths[pid])

    async def start(self) -> None:
        """Start the forker; raise `TaskError` when a module cannot be imported there."""
        async with self._lock:
            if self._control is None:
                await self._start()

    async def stop(self) -> None:
        """Let the forker end, and its processes with it. Idempotent."""
        if self._control is not None:
            self._control.shutdown(socket.SHUT_WR)
        if self._process is not None:
            await _ended(self._process)
            self._process = None
        if self._reading is not None:
            await self._reading
            self._reading = None

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *program("runner.executors.forker", theirs.fileno(), os.getpid()),
                pass_fds=(theirs.fileno(),),
            )
        ours.setblocking(False)
        told = {"modules": self._modules, "log_format": _log_format()}
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await loop.sock_sendall(ours, wire.framed(json.dumps(told).encode()))
                head = await _receive_exactly(ours, wire.LENGTH_BYTES)
                error = (await _receive_exactly(ours, int.from_bytes(head, "big"))).decode()
        except (OSError, TimeoutError) as exc:
            error = f"it did not answer: {exc!r}"
        except BaseException:
            ours.close()
            raise
        if error:
            ours.close()
            await _ended(self._process)
            self._process = None
            raise TaskError(f"the process that makes processes for tasks cannot start: {error}")
        self._control = ours
        self._reading = loop.create_task(self._read(ours), name="runner processes")

    async def _read(self, control: socket.socket) -> None:
        """Hear how processes begin and end, until the forker has ended."""
        loop = asyncio.get_running_loop()
        data = b""
        with control:
            while True:
                try:
                    got = await loop.sock_recv(control, 65536)
                except OSError:
                    got = b""
                if not got:
                    break
                *lines, data = (data + got).split(b"\n")
                for line in lines:
                    self._hear(line.decode().split())
        self._control = None
        births, self._births = self._births, []
        for birth in births:
            if not birth.done():
                birth.set_exception(TaskError("the process that makes processes has died"))
        deaths, self._deaths = self._deaths, {}
        for death in deaths.values():
            if not death.done():
                death.set_result(None)

    def _hear(self, words: list[str]) -> None:
        pid = int(words[1])
        if words[0] == "born":
            self._deaths[pid] = asyncio.get_running_loop().create_future()
            birth = self._births.pop(0)
            if not birth.done():
                birth.set_result(pid)
        else:
            death = self._deaths.pop(pid, None)
            if death is not None and not death.done():
                death.set_result(int(words[2]))


class ProcessLimits(Limits):
    """The time limits of a function that runs in a process."""

    __slots__ = ("child",)

    def __init__(self, host: Host, attempt: Attempt, child: Child) -> None:
        task = asyncio.current_task()
        assert task is not None
        super().__init__(host, attempt, task)
        self.child = child

    def soften(self) -> None:
        """Raise `SoftTimeLimit` in the process."""
        self.attempt.softened = True
        self.child.tell(signal.SIGUSR1)


class Processes:
    """The processes of one worker: made when they are needed, and used again.

    Args:
        tasks: the tasks that run in processes.
        most: how many processes there may be; jobs beyond it wait, and their leases are renewed.
        calls_per_process: how many jobs a process gets before it is replaced; None: any number.
    """

    def __init__(
        self,
        host: Host,
        *,
        tasks: Iterable[Task[..., Any]],
        most: int,
        calls_per_process: int | None,
    ) -> None:
        self._host = host
        self._found = {task.name: _place_of(task) for task in tasks}
        self._maker = Maker(module for module, _ in self._found.values())
        self._free = asyncio.Semaphore(most)
        self._calls_per_process = calls_per_process
        self._idle: list[Child] = []

    async def start(self) -> None:
        """Get ready to make processes, if there are tasks for them.

        Raises:
            TaskError: a module of a task cannot be imported in another process.
        """
        if self._found:
            await self._maker.start()

    async def stop(self) -> None:
        """Let all processes end. Idempotent."""
        idle, self._idle = self._idle, []
        for child in idle:
            child.close()
        await asyncio.gather(*(child.closed() for child in idle))
        await self._maker.stop()

    async def run(
        self,
        attempt: Attempt,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        starts: Callable[[], float | None],
    ) -> Any:
        """Return what the attempt's function returns in a process."""
        request = self._request(attempt, args, kwargs)
        async with self._free:
            child = await self._take()
            try:
                timeout_s = starts()
            except BaseException:
                self._idle.append(child)
                raise
            limits = ProcessLimits(self._host, attempt, child)
            try:
                limits.start(timeout_s)
                answer = await self._ask(limits, request)
            finally:
                limits.stop()
                self._give_back(limits.child)
        return _value(self._host.name, attempt, answer)

    def _request(
        self,
        attempt: Attempt,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> bytes:
        assert attempt.task is not None
        assert attempt.context is not None
        module, qualname = self._found[attempt.task.name]
        values = {key: attempt.context[key] for key in _VALUES}
        request = Request(
            *(module, qualname, args, kwargs, values, attempt.record.task, attempt.context.due),
            lines=lines.wanted(self._host.name),
        )
        try:
            return pickle.dumps(tuple(request))
        except Exception as exc:
            raise EncodeError(f"the arguments cannot travel to a process: {exc}") from exc

    async def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if not child.is_gone:
                return child
            child.close()
        return await self._maker.make()

    def _give_back(self, child: Child) -> None:
        worn = self._calls_per_process is not None and child.calls >= self._calls_per_process
        if child.is_spent or worn:
            child.close()
        else:
            self._idle.append(child)

    async def _ask(self, limits: ProcessLimits, request: bytes) -> bytes:
        """Return the answer of a process; end the process when the job has to end."""
        talk = asyncio.get_running_loop().create_task(
            self._talk(limits, request),
            name=f"runner process of {limits.attempt.claimed.job_id}",
        )
        try:
            await asyncio.wait([talk])
        except asyncio.CancelledError:
            limits.task.uncancel()
            await self._end(limits, talk)
            if talk.cancelled() or isinstance(talk.exception(), ProcessDied):
                raise
        return talk.result()

    async def _talk(self, limits: ProcessLimits, request: bytes) -> bytes:
        for tries_left in reversed(range(BEGIN_TRIES)):
            try:
                await limits.child.begin(request)
            except ProcessDied:
                if not tries_left:
                    raise
                limits.child.close()
                limits.child = await self._maker.make()
            else:
                break
        context = limits.attempt.context
        assert context is not None
        return await limits.child.answer(context.pass_on)

    async def _end(self, limits: ProcessLimits, talk: asyncio.Task[bytes]) -> None:
        """End a process: gently, unless the job's time is up."""
        attempt = limits.attempt
        if not attempt.timed_out and not attempt.lost_lease:
            limits.child.end(signal.SIGTERM)
            try:
                await asyncio.wait([talk], timeout=self._host.cancel_grace_s)
            except asyncio.CancelledError:  # told again, or its time is up meanwhile
                limits.task.uncancel()
        if not talk.done():
            limits.child.end(signal.SIGKILL)
            await asyncio.wait([talk], timeout=END_TIMEOUT_S)
        if not talk.done():
            talk.cancel()
            await asyncio.wait([talk])


_VALUES = ("job_id", "job_try", "enqueue_time", "score")
"""What of the context travels; the rest belongs to the worker's process."""


def _value(worker: str, attempt: Attempt, data: bytes) -> Any:
    """Return the value of an answer, and leave its writes in the attempt; raise its error."""
    answer = Answer(*pickle.loads(data))  # noqa: S301  from a process of this worker
    lines.hand_over(worker, attempt.claimed.job_id, attempt.number, answer.lines)
    if answer.value is None:
        assert answer.described is not None
        raise as_failure(unpacked(answer.error, answer.described))
    attempt.unit = answer.unit
    try:
        return pickle.loads(answer.value)  # noqa: S301  as above
    except Exception as exc:
        raise DecodeError(f"the result cannot be read in the worker: {exc}") from exc


def _place_of(task: Task[..., Any]) -> tuple[str, str]:
    """Return the module and the name by which another process finds a task."""
    module = task.function.__module__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if spec is None:
            raise SettingsError(
                f"task {task.name!r} runs in a process, which has to import it: move it from the "
                f"program that was started to a module",
            )
        module = spec.name
    return module, task.function.__qualname__


def _log_format() -> str:
    """Return the format of ours that this process logs in, "" when it logs in another."""
    names = (handler.get_name() or "" for handler in logging.getLogger().handlers)
    return next((name[len("runner.") :] for name in names if name.startswith("runner.")), "")


async def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        got = await asyncio.get_running_loop().sock_recv(connection, size - len(data))
        if not got:
            raise ConnectionResetError("it ended")
        data += got
    return data


async def _ended(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


__all__ = ["Processes"]
