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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner import lines
from runner.errors import DecodeError, EncodeError, ProcessDied, SettingsError
from runner.execution.limits import Limits
from runner.executors.failures import as_failure, unpacked
from runner.executors.maker import END_TIMEOUT_S, Child, Maker
from runner.executors.wire import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runner.execution import Attempt, Host
    from runner.tasks import Task

BEGIN_TRIES = 3
"""A process that dies before it has read a request is replaced, unseen by the job."""

LOOK_S = 0.25
"""How often the memory of a process is looked at while it has a job."""
MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wear:
    """What a process may take until it is replaced; None: any amount.

    Attributes:
        calls: jobs that it was given.
        soft: bytes of resident memory after a job.
        hard: bytes of resident memory at any time: then it is killed, and its job fails.
    """

    calls: int | None = None
    soft: int | None = None
    hard: int | None = None

    def is_worn(self, child: Child) -> bool:
        """Say whether a process gets no other job."""
        if self.calls is not None and child.calls >= self.calls:
            return True
        return self.soft is not None and child.resident() >= self.soft

    def broken(self, child: Child) -> str:
        """Say why a process is to be killed, "" where it is not."""
        rss = 0 if self.hard is None else child.resident()
        if self.hard is None or rss < self.hard:
            return ""
        held, most = f"{rss / MB:,.0f} MB", f"{self.hard / MB:,.0f}"
        return f"it held {held}, max_memory_hard_mb is {most}"


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
        wear: when a process is replaced.
    """

    def __init__(
        self,
        host: Host,
        *,
        tasks: Iterable[Task[..., Any]],
        most: int,
        wear: Wear,
    ) -> None:
        self._host = host
        self._found = {task.name: _place_of(task) for task in tasks}
        self._maker = Maker(module for module, _ in self._found.values())
        self._free = asyncio.Semaphore(most)
        self._wear = wear
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
        if child.is_spent or self._wear.is_worn(child):
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
            await self._watch(limits, talk)
        except asyncio.CancelledError:
            limits.task.uncancel()
            await self._end(limits, talk)
            if talk.cancelled() or isinstance(talk.exception(), ProcessDied):
                raise
        return talk.result()

    async def _watch(self, limits: ProcessLimits, talk: asyncio.Task[bytes]) -> None:
        """Wait for the answer, and kill a process that takes more memory than it may."""
        look_s = None if self._wear.hard is None else LOOK_S
        while not (await asyncio.wait([talk], timeout=look_s))[0]:
            if why := self._wear.broken(limits.child):
                limits.child.end(signal.SIGKILL, why)

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


__all__ = ["Processes"]
