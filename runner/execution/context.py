"""What a task gets as its first argument."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import runner.writer
from runner.errors import FlowError, ScheduleError, UnitError
from runner.keys import FAR_OFF_MS
from runner.schedule import CRON_OPTION, decide_next
from runner.schedule.triggers import MOST_INTERVAL_MS
from runner.tasks import seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta

    from runner.client import Client
    from runner.workflow import JobFlow
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

    __slots__ = ("_commits", "_db", "_flow", "_make_flow", "_reads")

    def __init__(
        self,
        values: Mapping[Any, Any],
        reads: ReadPool | None = None,
        commits: Callable[[], JobCommits] | None = None,
        flow: Callable[[], JobFlow] | None = None,
    ) -> None:
        super().__init__(values)
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
        option = self.get(CRON_OPTION)
        return None if option is None else datetime.fromtimestamp(option[2] / 1000, UTC)

    async def reschedule(self, when: float | timedelta | datetime | None) -> bool:
        """Decide when the schedule that made this job is due next.

        It holds from now on, also if this job fails afterwards. A run whose worker is
        killed runs again and decides again.

        Args:
            when: seconds or a timedelta from now, a time with a zone, or None: not before
                somebody resumes the schedule.

        Returns:
            False when a later run of the schedule has begun to decide: nothing was changed.

        Raises:
            ScheduleError: no schedule made this job, or `when` makes no sense.
        """
        option = self.get(CRON_OPTION)
        if option is None:
            raise ScheduleError(f"job {self.job_id} was not made by a schedule")
        at_ms = delay_ms = None
        if isinstance(when, datetime):
            if when.tzinfo is None:
                raise ScheduleError("when needs a time zone: datetime(..., tzinfo=...)")
            at_ms = min(int(when.timestamp() * 1000), FAR_OFF_MS)
        elif when is not None:
            delay_s = seconds(when)
            if not 0 <= delay_s * 1000 <= MOST_INTERVAL_MS:
                raise ScheduleError(f"when takes seconds, from 0 to ten years, not {when!r}")
            delay_ms = round(delay_s * 1000)
        queue, name, _ = option
        return await decide_next(
            self["redis"],
            queue=queue,
            name=name,
            job_id=self.job_id,
            delay_ms=delay_ms,
            at_ms=at_ms,
        )

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
