"""Report jobs that fail to Sentry."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from typing import TYPE_CHECKING, Any

from arq.worker import RetryJob

from runner.errors import Retry, SettingsError, Snooze
from runner.middleware.base import Middleware
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.bus import Bus
    from runner.middleware.base import Execute, JobCall
    from runner.writer.batch import Refusals
    from runner.writer.entries import Unit

logger = logging.getLogger("runner.sentry")

SCOPE = "runner:sentry"
"""Where a job's context holds its scope, until it is known how it ended."""

_FAILURES = frozenset(
    {
        Outcome.FAILED,
        Outcome.TIMED_OUT,
        Outcome.EXPIRED,
        Outcome.UNKNOWN_TASK,
        Outcome.UNDECODABLE,
        Outcome.TOO_MANY_TRIES,
        Outcome.TOO_MANY_CRASHES,
    }
)
_ASKED_FOR = (Retry, Snooze, RetryJob)


class Sentry(Middleware):
    """Send each job that fails to Sentry, once, with its task, id, queue and attempt as tags.

    Each job has a scope of its own, so what one adds to it does not show at another. A failure is
    what ends a job for good: an exception that no retry follows, a time limit, a write that
    Postgres refuses, and what never runs, as a job that has expired, or whose task is unknown.
    `Retry`, `Snooze` and `Cancel` are none, and neither is an abort. Call ``sentry_sdk.init``
    yourself, in the settings module and before the settings.

    Args:
        retries: send, as warnings, exceptions that are followed by another attempt too.

    Example:
        >>> class WorkerSettings(runner.WorkerSettings):
        ...     middleware = [Sentry()]

    Raises:
        SettingsError: the package sentry-sdk, 2.0 or newer, is not installed.
    """

    def __init__(self, *, retries: bool = False) -> None:
        try:
            # By name: who does not report to Sentry need not have it.
            self._isolation_scope: Any = importlib.import_module("sentry_sdk").isolation_scope
            ignore_logger = importlib.import_module("sentry_sdk.integrations.logging").ignore_logger
        except (ImportError, AttributeError):
            raise SettingsError("Sentry needs its SDK: pip install 'sentry-sdk>=2'") from None
        # The worker logs how jobs fail: the SDK would send those lines as events of their own.
        ignore_logger("arq.worker")
        switch_off_arq()
        self._retries = retries

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        """Run the job in a scope of its own."""
        with self._isolation_scope() as scope:
            _describe(scope, job.task, job.job_id, job.queue, job.attempt)
            job.ctx[SCOPE] = scope
            return await proceed(job)

    def join(self, worker: str, events: Bus) -> None:  # noqa: ARG002  Sentry knows the host
        """Watch how attempts end."""
        events.watch(self)

    def ended(self, attempt: Any, ending: Any) -> None:
        """Send what has failed; this decides nothing, so it may not raise."""
        try:
            self._look_at(attempt, ending)
        except Exception:
            logger.exception("the end of job %s could not be sent to Sentry", attempt.ref)

    def lost(self, queue: str, job_id: str) -> None:
        """Hear that an end did not count: it was one all the same."""

    def _look_at(self, attempt: Any, ending: Any) -> None:
        if ending.outcome in _FAILURES:
            level = "warning" if ending.outcome is Outcome.EXPIRED else "error"
        elif self._retries and ending.outcome is Outcome.RETRIED:
            level = "warning"
        else:
            return
        error = ending.result
        if not isinstance(error, Exception) or isinstance(error, _ASKED_FOR):
            return  # a worker that stops, or what the function asked for
        claimed = attempt.claimed
        scope = None if attempt.context is None else attempt.context.get(SCOPE)
        if scope is not None:
            scope.capture_exception(error, level=level)
            return
        with self._isolation_scope() as scope:
            _describe(scope, attempt.record.task, claimed.job_id, claimed.queue, attempt.number)
            scope.capture_exception(error, level=level)

    def committed(self, units: Sequence[Unit], refused: Refusals, began_ns: int) -> None:  # noqa: ARG002
        """Send what Postgres refuses of jobs that had ended well, and that do not run again."""
        for unit in units if refused else ():
            job, why = unit.job, refused.get(unit.entry)
            if job is None or why is None or (job.again_ms >= 0 and not self._retries):
                continue
            with self._isolation_scope() as scope:
                _describe(scope, "", job.job_id, job.queue, job.attempt)
                scope.capture_exception(why, level="warning" if job.again_ms >= 0 else "error")


def switch_off_arq() -> None:
    """Switch Sentry's own integration of arq off, where it is on: it is, where arq is installed.

    It makes plain coroutines of the functions of a worker, so that tasks lose what they declare,
    and a worker with a task that runs in a thread does not start.
    """
    if (sdk := sys.modules.get("sentry_sdk")) is None:
        return
    with contextlib.suppress(AttributeError):  # a version that is organized in another way
        if sdk.get_client().integrations.pop("arq", None) is not None:
            logger.info("Sentry's integration of arq is switched off: runner.Sentry() knows tasks")


def _describe(scope: Any, task: str, job_id: str, queue: str, attempt: int) -> None:
    if task:
        scope.set_transaction_name(task)
    tags = {"task": task, "job_id": job_id, "queue": queue, "attempt": attempt}
    for name, value in tags.items():
        if value != "":
            scope.set_tag(f"job.{name}", value)
