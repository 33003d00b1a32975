"""Tell how long jobs wait, and how long they run."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.middleware.base import Middleware

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.middleware.base import Execute, JobCall

logger = logging.getLogger("runner.timing")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTiming:
    """How long one attempt took.

    Attributes:
        waited_s: from when it was due until a worker had it.
        ran_s: its function, from call to end, with the wait for a thread or a process.
        error_type: the name of what it raised, "" for none.
    """

    task: str
    job_id: str
    attempt: int
    waited_s: float
    ran_s: float
    error_type: str


class Timing(Middleware):
    """Hand the times of each attempt to a function, or log those that are slow.

    Args:
        tell: a plain function of one `JobTiming`, called in the worker's loop.
        slow_s: without `tell`: log what waits or runs for so many seconds; 0 logs all.

    Example:
        >>> def observe(timing: JobTiming) -> None:
        ...     SECONDS.labels(timing.task).observe(timing.ran_s)
        >>> class WorkerSettings(runner.WorkerSettings):
        ...     middleware = [Timing(observe)]
    """

    def __init__(
        self, tell: Callable[[JobTiming], Any] | None = None, *, slow_s: float = 0
    ) -> None:
        self._tell = tell or self._log
        self._slow_s = slow_s

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        """Take the time."""
        began, error_type = time.perf_counter(), ""
        try:
            return await proceed(job)
        except BaseException as exc:
            error_type = type(exc).__name__
            raise
        finally:
            self._report(job, time.perf_counter() - began, error_type)

    def _report(self, job: JobCall, ran_s: float, error_type: str) -> None:
        timing = JobTiming(
            task=job.task,
            job_id=job.job_id,
            attempt=job.attempt,
            waited_s=max(job.started_ms - job.due_ms, 0) / 1000,
            ran_s=ran_s,
            error_type=error_type,
        )
        try:
            self._tell(timing)
        except Exception:
            logger.exception("the times of job %s could not be told", job.job_id)

    def _log(self, timing: JobTiming) -> None:
        if max(timing.waited_s, timing.ran_s) >= self._slow_s:
            logger.info(
                "%s:%s waited %.3f s, ran %.3f s%s",
                timing.job_id,
                timing.task,
                timing.waited_s,
                timing.ran_s,
                f", raised {timing.error_type}" if timing.error_type else "",
            )
