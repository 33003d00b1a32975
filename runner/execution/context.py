"""What a task gets as its first argument."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.errors import UnitError
from runner.writer import JobCommits, JobDatabase, ReadPool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.client import Client


class Context(dict[Any, Any]):
    """What a task gets as its first argument: arq's dict, with our parts as attributes.

    The dict holds what arq puts there (``redis``, ``job_id``, ``job_try``, ``enqueue_time``,
    ``score``) and whatever ``on_startup`` left in it.

    Example:
        >>> @task
        ... async def ship(ctx: Context, order_id: int) -> None:
        ...     ctx.db.update("orders", key={"id": order_id}, shipped=True)
    """

    __slots__ = ("_commits", "_db", "_reads")

    def __init__(
        self,
        values: Mapping[Any, Any],
        reads: ReadPool | None = None,
        commits: JobCommits | None = None,
    ) -> None:
        super().__init__(values)
        self._reads = reads
        self._commits = commits
        self._db: JobDatabase | None = None

    @property
    def db(self) -> JobDatabase:
        """The job's writes, submitted with its completion or by `commit`; and its reads."""
        if self._db is None:
            self._db = JobDatabase(self._reads, self._commits)
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
