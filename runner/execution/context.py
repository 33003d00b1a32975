"""What a task gets as its first argument."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import runner.writer
from runner.errors import FlowError, ScheduleError, TaskError, UnitError
from runner.progress import checked

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from datetime import datetime, timedelta

    from runner.client import Client
    from runner.progress import Progress
    from runner.schedule import ScheduledRun
    from runner.workflow import JobFlow
    from runner.writer import JobCommits, JobDatabase, ReadPool

T = TypeVar("T")


class Bridge(Protocol):
    """What a function in a thread has of the event loop."""

    cancelled: bool

    def run(self, coroutine: Coroutine[Any, Any, T], /) -> T:
        """Run a coroutine in the event loop, and return its value."""
        ...


class Board(Protocol):
    """Where a job says how far it is."""

    async def say(self, job_id: str, progress: Progress, /) -> None:
        """Take the word of a job."""
        ...


class Trace(Protocol):
    """What a tracer keeps with an attempt."""

    traceparent: str


class Context(dict[Any, Any]):
    """What a task gets as its first argument: arq's dict, with our parts as attributes.

    The dict holds what arq puts there (``redis``, ``job_id``, ``job_try``, ``enqueue_time``,
    ``score``) and whatever ``on_startup`` left in it.

    Example:
        >>> @task
        ... async def ship(ctx: Context, order_id: int) -> None:
        ...     ctx.db.update("orders", key={"id": order_id}, shipped=True)
    """

    __slots__ = (
        "_board",
        "_bridge",
        "_commits",
        "_db",
        "_flow",
        "_make_flow",
        "_reads",
        "_run",
        "_trace",
    )

    def __init__(
        self,
        values: Mapping[Any, Any],
        reads: ReadPool | None = None,
        commits: Callable[[], JobCommits] | None = None,
        run: ScheduledRun | None = None,
        flow: Callable[[], JobFlow] | None = None,
        *,
        board: Board | None = None,
    ) -> None:
        super().__init__(values)
        self._board = board
        self._run = run
        self._reads = reads
        self._commits = commits
        self._make_flow = flow
        self._flow: JobFlow | None = None
        self._db: JobDatabase | None = None

    @property
    def db(self) -> JobDatabase:
        """The job's writes, submitted with its completion or by `commit`; and its reads."""
        if self._db is None:
            # By its module, which imports asyncpg at the first use.
            commits = self._commits() if self._commits else None
            self._db = runner.writer.JobDatabase(self._reads, commits)
        return self._db

    @property
    def flow(self) -> JobFlow:
        """The flow that this job is a node of, to let it grow; and flows to wait for."""
        if self._flow is None:
            if self._make_flow is None:
                raise FlowError("this context belongs to no worker; it has no flow")
            self._flow = self._make_flow()
        return self._flow

    @property
    def client(self) -> Client:
        """The worker's client, to enqueue more jobs."""
        client: Client = self["redis"]
        return client

    @property
    def job_id(self) -> str:
        """The id of this job."""
        job_id: str = self["job_id"]
        return job_id

    @property
    def attempt(self) -> int:
        """The number of this try, counted from 1."""
        attempt: int = self["job_try"]
        return attempt

    @property
    def due(self) -> datetime | None:
        """When the schedule that made this job was due, None when none did."""
        return None if self._run is None else self._run.due

    @property
    def traceparent(self) -> str:
        """The trace and span of this attempt as W3C writes them, "" where nothing traces."""
        return self._trace.traceparent if hasattr(self, "_trace") else ""

    @property
    def trace(self) -> Trace | None:
        """What traces this attempt, None where nothing does."""
        return getattr(self, "_trace", None)

    @trace.setter
    def trace(self, trace: Trace) -> None:
        self._trace = trace

    async def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far this job is, as often as you like: what is said too often is gathered.

        `Job.progress` reads it. It is a word to those who watch, and nothing rests on it: while
        Redis is away the last one waits.

        Args:
            done: how much is done, in a unit of your own.
            total: of how much; None where nobody knows.
            message: a short text, cut after 500 characters.

        Raises:
            ArgumentsError: a number makes no sense.
        """
        await self.pass_on(checked(done, total, message, self.attempt))

    async def pass_on(self, word: Progress) -> None:
        """Say what the job has said in another process."""
        if self._board is not None:
            await self._board.say(self.job_id, word)

    @property
    def cancelled(self) -> bool:
        """Whether this job is to end, or has ended already: for functions that run in a thread.

        A thread cannot be stopped. A function that works for long looks here now and then.
        """
        return hasattr(self, "_bridge") and self._bridge.cancelled

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the worker's event loop, from a function that runs in a thread.

        So such a function enqueues, reads and commits: ``ctx.run(ctx.db.commit())``. When the job
        is cancelled meanwhile, so is the coroutine.

        Raises:
            TaskError: this is no thread of a job.
        """
        if not hasattr(self, "_bridge"):
            coroutine.close()
            raise TaskError(
                "ctx.run is for functions that run in a thread: an async function awaits, and "
                "in a process there is no event loop of the worker",
            )
        return self._bridge.run(coroutine)

    def connect_thread(self, bridge: Bridge) -> None:
        """Let a function in a thread reach the event loop."""
        self._bridge = bridge

    async def reschedule(
        self,
        when: float | timedelta | datetime | None,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Decide when the schedule that made this job is due next, and with which arguments.

        It holds from now on, also if this job fails afterwards. A run whose worker is
        killed runs again and decides again.

        Args:
            when: seconds or a timedelta from now, a time with a zone, or None: not before
                somebody resumes the schedule.
            args: what the runs to come get behind their context, until one decides otherwise
                or the schedule is changed; without these two they get what this one got.
            kwargs: the same, by name.

        Returns:
            False when a later run of the schedule has begun to decide, or another worker
            has this job by now: nothing was changed.

        Raises:
            ScheduleError: no schedule made this job, or `when` makes no sense.
            ArgumentsError: the arguments do not fit the task.
            EncodeError: an argument cannot travel.
        """
        if self._run is None:
            raise ScheduleError(f"job {self.job_id} was not made by a schedule")
        return await self._run.decide(when, args, kwargs)

    def unit(self) -> bytes:
        """Return the encoded writes that are not committed yet, or b"" when there are none.

        Raises:
            UnitError: rows are asked for that nobody would get.
            WriterUnavailable: whether a commit of the job was submitted is unknown.
        """
        if self._db is None:
            return b""
        self._db.check_submitted()
        if len(self._db) == 0:
            return b""
        if self._db.wants_rows:
            raise UnitError(
                "returning= asks for rows, but the job ended without them: they come back by "
                "`await ctx.db.commit()`"
            )
        return self._db.encode()

    def end(self) -> None:
        """Refuse writes from now on: the job has ended, and its function goes on."""
        if self._db is None:
            self._db = runner.writer.JobDatabase()
        self._db.end()

    def refused(self, exc: BaseException) -> bool:
        """Say whether an exception is the refusal of a commit of this very attempt."""
        return self._db is not None and self._db.refused is exc
