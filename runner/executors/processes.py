"""Run functions in processes of a pool: killed at their time limit, and replaced.

Each process runs one job at a time. What is told to end has a grace to tidy up (SIGTERM), and is
killed then; at the hard limit, and when its lease is lost, it is killed at once. One that dies by
itself fails its job with `ProcessDied`, and no other. The processes end with the worker, also
when that is killed (see `tied`).
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import sys
from typing import TYPE_CHECKING, Any, Protocol

from runner import lines
from runner.errors import DecodeError, EncodeError, ProcessDied, SettingsError
from runner.execution.limits import LOOK_S, Limits
from runner.executors.failures import as_failure, unpacked
from runner.executors.made import END_TIMEOUT_S, Child, Maker
from runner.executors.wire import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runner.execution import Attempt, Host
    from runner.tasks import Task

MEMORY_LOOK_S = 0.25
BEGIN_TRIES = 3
"""A process that dies before it has read a request is replaced, unseen by the job."""


class MemoryLimits(Protocol):
    """How many bytes of memory a process may hold; see `runner.watch.recycling.Limits`."""

    @property
    def soft(self) -> int | None:
        """Beyond it a process is replaced, when its job has ended."""

    @property
    def hard(self) -> int | None:
        """Beyond it a process is killed."""

    def broken(self, rss: int, /) -> str:
        """Say that the hard limit is reached; "" when it is not."""


class ProcessLimits(Limits):
    """The time limits of a function that runs in a process, and that of its memory."""

    __slots__ = ("_look", "_memory", "child")

    def __init__(self, host: Host, attempt: Attempt, child: Child, memory: MemoryLimits) -> None:
        task = asyncio.current_task()
        assert task is not None
        super().__init__(host, attempt, task)
        self.child = child
        self._memory = memory
        self._look: asyncio.TimerHandle | None = None

    def start(self, timeout_s: float | None) -> None:
        """Set the clocks going, and look at the memory of the process from time to time."""
        super().start(timeout_s)
        if self._memory.hard is not None:
            self._look = self.loop.call_later(MEMORY_LOOK_S, self._look_at_memory)

    def stop(self) -> None:
        """Stop the clocks. Idempotent."""
        super().stop()
        if self._look is not None:
            self._look.cancel()

    def _look_at_memory(self) -> None:
        if why := self._memory.broken(self.child.rss()):
            self.child.killed_why = why
            self.child.end(signal.SIGKILL)
        else:
            self._look = self.loop.call_later(MEMORY_LOOK_S, self._look_at_memory)

    def soften(self) -> None:
        """Raise `SoftTimeLimit` in the process."""
        if self.child.has_begun:
            self.attempt.softened = True
            self.child.tell(signal.SIGUSR1)
        else:  # a process that has just been made would hear no signal, or die of it
            self.soft = self.loop.call_later(LOOK_S, self.soften)


class Processes:
    """The processes of one worker: made when they are needed, and used again.

    Args:
        tasks: the tasks that run in processes.
        most: how many processes there may be; jobs beyond it wait, and their leases are renewed.
        calls_per_process: how many jobs a process gets before it is replaced; None: any number.
        memory: how much one may hold: beyond the soft limit it is replaced after its job, at the
            hard one it is killed, and its job fails.
    """

    def __init__(
        self,
        host: Host,
        *,
        tasks: Iterable[Task[..., Any]],
        most: int,
        calls_per_process: int | None,
        memory: MemoryLimits,
    ) -> None:
        self._host = host
        self._found = {task.name: _place_of(task) for task in tasks}
        self._maker = Maker(module for module, _ in self._found.values())
        self._free = asyncio.Semaphore(most)
        self._calls_per_process = calls_per_process
        self._memory = memory
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
            limits = ProcessLimits(self._host, attempt, child, self._memory)
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
        fat = self._memory.soft is not None and child.rss() >= self._memory.soft
        if child.is_spent or worn or fat:
            child.close()
        else:
            self._idle.append(child)

    async def _ask(self, limits: ProcessLimits, request: bytes) -> Answer:
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

    async def _talk(self, limits: ProcessLimits, request: bytes) -> Answer:
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

    async def _end(self, limits: ProcessLimits, talk: asyncio.Task[Answer]) -> None:
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


def _value(worker: str, attempt: Attempt, answer: Answer) -> Any:
    """Return the value of an answer, and leave its writes in the attempt; raise its error."""
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


__all__ = ["Processes"]
