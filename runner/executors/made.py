"""A process of a worker's pool, seen from the worker, and the worker's end of what makes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from runner.errors import ProcessDied, TaskError
from runner.executors import wire
from runner.executors.forker import program
from runner.executors.tied import kill
from runner.executors.wire import Answer
from runner.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0

_PAGE = resource.getpagesize()
_decode_progress = msgspec.msgpack.Decoder(Progress).decode


class Child:
    """One process of the pool, seen from the worker.

    Attributes:
        calls: how many jobs it was given.
        is_spent: it was told to end, and gets no other job.
        has_begun: it has read the request of its job, and hears signals.
        killed_why: why the worker kills it, when that is not the end of its job's time.
    """

    def __init__(
        self,
        pid: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        status: asyncio.Future[int | None],
        connection: socket.socket,
    ) -> None:
        self.pid = pid
        self.calls = 0
        self.is_spent = False
        self.has_begun = False
        self.killed_why = ""
        self._reader = reader
        self._writer = writer
        self._status = status
        self._connection = connection
        status.add_done_callback(self._hear_the_rest)

    def _hear_the_rest(self, _: object) -> None:
        """Read what it has said, and nothing else: what it left behind may hold its socket."""
        if sys.platform == "linux":  # elsewhere what it has said might be lost
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RD)

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended."""
        return self._status.done() or self._reader.at_eof()

    async def begin(self, request: bytes) -> None:
        """Hand over a request; raise `ProcessDied` if it was not taken, and so has not begun."""
        self.calls += 1
        self.has_begun = False
        try:
            self._writer.write(wire.framed(request))
            await self._writer.drain()
            if await self._frame() != wire.BEGUN:
                raise await self._mumbled()
            self.has_begun = True
        except (asyncio.IncompleteReadError, OSError):
            raise await self._death("took a job") from None

    async def answer(self, hear: Callable[[Progress], Awaitable[None]]) -> Answer:
        """Wait for the end of its job; raise `ProcessDied` if it comes to none.

        What a function writes into a socket that is not its own is nothing that can be read: the
        process is killed then, because nobody knows where the next message begins.

        Args:
            hear: called with each word of how far it is.
        """
        while True:
            try:
                frame = await self._frame()
            except (asyncio.IncompleteReadError, OSError):
                raise await self._death("ended its job") from None
            try:
                if not frame.startswith(wire.PROGRESS):
                    return Answer.read(frame)
                progress = _decode_progress(frame[len(wire.PROGRESS) :])
            except Exception:  # noqa: BLE001  bytes of anybody's
                raise await self._mumbled() from None
            await hear(progress)

    def rss(self) -> int:
        """Return its resident memory in bytes; 0 where that is not known."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_bytes().split()[1]) * _PAGE
        except (OSError, IndexError):
            return 0

    def tell(self, signum: signal.Signals) -> None:
        """Send it a signal, unless it is known to have ended."""
        if not self._status.done():
            kill(self.pid, signum)

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
        size = int.from_bytes(head, "big")
        if size > wire.MOST_BYTES:
            raise await self._mumbled()
        return await self._reader.readexactly(size)

    async def _mumbled(self) -> ProcessDied:
        self.killed_why = "something in it wrote into the socket by which it answers"
        self.end(signal.SIGKILL)
        return await self._death("answered")

    async def _death(self, before: str) -> ProcessDied:
        self.is_spent = True
        status: int | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                status = await asyncio.shield(self._status)
        if self.killed_why:
            message = f"the process {self.pid} was killed: {self.killed_why}"
            return ProcessDied(message, signal=signal.SIGKILL)
        if status is None:
            return ProcessDied(f"the process {self.pid} was lost before it {before}")
        if status >= 0:
            message = f"the process {self.pid} ended with status {status} before it {before}"
            return ProcessDied(message, exit_status=status)
        name = _name_of(-status)
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
        self._births: list[asyncio.Future[tuple[int, asyncio.Future[int | None]]]] = []
        self._deaths: dict[int, asyncio.Future[int | None]] = {}
        self._lock = asyncio.Lock()

    async def make(self) -> Child:
        """Make a process; raise `TaskError` when that is not possible."""
        async with self._lock:
            if self._control is None:
                await self._start()
            ours, theirs = socket.socketpair()
            birth: asyncio.Future[tuple[int, asyncio.Future[int | None]]]
            birth = asyncio.get_running_loop().create_future()
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
                    pid, death = await birth
            except BaseException:
                ours.close()  # it ends at once, should it come to life
                raise
        ours.setblocking(False)
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return Child(pid, reader, writer, death, ours)

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
        if words[0] == "none":
            birth = self._births.pop(0)
            if not birth.done():
                why = " ".join(words[1:])
                birth.set_exception(TaskError(f"no process could be made: {why}"))
            return
        pid = int(words[1])
        if words[0] == "born":
            self._deaths[pid] = asyncio.get_running_loop().create_future()
            birth = self._births.pop(0)
            if not birth.done():
                birth.set_result((pid, self._deaths[pid]))  # it may be over with the next word
        else:
            death = self._deaths.pop(pid, None)
            if death is not None and not death.done():
                death.set_result(int(words[2]))


def _name_of(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # one of those for real time
        return f"signal {signum}"


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


__all__ = ["END_TIMEOUT_S", "Child", "Maker"]
