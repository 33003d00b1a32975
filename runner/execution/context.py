"""What a task gets as its first argument."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import runner.writer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.client import Client
    from runner.writer import JobDatabase, ReadPool


class Context(dict[Any, Any]):
    """What a task gets as its first argument: arq's dict, with our parts as attributes.

    The dict holds what arq puts there (``redis``, ``job_id``, ``job_try``, ``enqueue_time``,
    ``score``) and whatever ``on_startup`` left in it.

    Example:
        >>> @task
        ... async def ship(ctx: Context, order_id: int) -> None:
        ...     ctx.db.update("orders", key={"id": order_id}, shipped=True)
    """

    __slots__ = ("_db", "_reads")

    def __init__(self, values: Mapping[Any, Any], reads: ReadPool | None = None) -> None:
        super().__init__(values)
        self._reads = reads
        self._db: JobDatabase | None = None

    @property
    def db(self) -> JobDatabase:
        """The job's writes, submitted together with its completion; and its reads."""
        if self._db is None:
            # By its module, which imports asyncpg at the first use.
            self._db = runner.writer.JobDatabase(self._reads)
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
        """Return the encoded unit of writes, or b"" when the job wrote nothing."""
        if self._db is None or len(self._db) == 0:
            return b""
        return self._db.encode()
