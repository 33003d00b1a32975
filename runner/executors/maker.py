"""One process of the pool as the worker sees it, and what has them made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import socket
from typing import TYPE_CHECKING

import msgspec

from runner.errors import ProcessDied, TaskError
from runner.executors import wire
from runner.executors.forker import program
from runner.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0
LAST_WORDS_S = 1.0
"""How long a process that has ended is listened to: its last message may be on its way."""

_PAGE = resource.getpagesize()
_decode_progress = msgspec.msgpack.Decoder(Progress).decode


class Child:
    """One process of the pool, seen from the worker.

    Attributes:
        calls: how many jobs it was given.
        is_spent: it was told to end, and gets no other job.
        why: what it was told to end for, where its job is to say so.
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
        self.why = ""
        self._reader = reader
        self._writer = writer
        self._status = status
        # Who was forked in a job may hold the socket open, and it would never come to its end.
        status.add_done_callback(self._ended)

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

    def end(self, signum: signal.Signals, why: str = "") -> None:
        """Tell it to end."""
        self.is_spent, self.why = True, why
        self.tell(signum)

    def resident(self) -> int:
        """Return the memory it holds, in bytes; 0 where the system does not say."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:  # noqa: PTH123  no disk behind it
                return int(file.read().split()[1]) * _PAGE
        except (OSError, ValueError, IndexError):
            return 0

    def close(self) -> None:
        """Let go of it: it ends when it has no job, or after it."""
        self._writer.close()

    async def closed(self) -> None:
        """Wait until nothing of the socket is left."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def _ended(self, _status: asyncio.Future[int | None]) -> None:
        asyncio.get_running_loop().call_later(LAST_WORDS_S, self._writer.close)

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
            self.tell(signal.SIGKILL)  # it has closed its socket, and may go on
            return ProcessDied(f"the process {self.pid} was lost before it {before}")
        if status >= 0:
            message = f"the process {self.pid} ended with status {status} before it {before}"
            return ProcessDied(message, exit_status=status)
        name = signal.Signals(-status).name
        hint = ": out of memory?" if -status == signal.SIGKILL else ""
        hint = f": {self.why}" if self.why else hint
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
