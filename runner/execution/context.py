"""What a task gets as its first argument."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import runner.writer
from runner.errors import ScheduleError, UnitError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime, timedelta

    from runner.client import Client
    from runner.schedule import ScheduledRun
    from runner.writer import JobCommits, JobDatabase, ReadPool


class Context(dict[Any, Any]):
    """What a task gets as its first argument: arq's dict, with our parts as attributes.

    The dict holds what arq puts there (``redis``, ``job_id``, ``job_try``, ``enqueue_time``,
    ``score``) and whatever ``on_startup`` left in it.

    Example:
        >>> @task
        ... async def ship(ctx: Context, order_id: int) -> None:
        ...     ctx.db.update("orders", key={"id": order_id}, shipped=True)
    """

    __slots__ = ("_commits", "_db", "_reads", "_run")

    def __init__(
        self,
        values: Mapping[Any, Any],
        reads: ReadPool | None = None,
        commits: Callable[[], JobCommits] | None = None,
        run: ScheduledRun | None = None,
    ) -> None:
        super().__init__(values)
        self._run = run
        self._reads = reads
        self._commits = commits
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

    def refused(self, exc: BaseException) -> bool:
        """Say whether an exception is the refusal of a commit of this very attempt."""
        return self._db is not None and self._db.refused is exc
