"""Report what jobs raise to Sentry."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from arq.worker import RetryJob

from runner.errors import Cancel, Retry, SettingsError, Snooze
from runner.middleware.base import Middleware

if TYPE_CHECKING:
    from runner.middleware.base import Execute, JobCall

_NO_FAILURES = (Retry, Snooze, Cancel, RetryJob)


class Sentry(Middleware):
    """Send what a job raises to Sentry, with the job's task, id and attempt as tags.

    Each job has a scope of its own, so what one adds to it does not show at another. `Retry`,
    `Snooze` and `Cancel` are no failures and are not sent; an exception that `retries` will meet
    is sent, with its attempt. Call ``sentry_sdk.init`` yourself, in the settings module.

    Example:
        >>> class WorkerSettings(runner.WorkerSettings):
        ...     middleware = [Sentry()]

    Raises:
        SettingsError: the package sentry-sdk, 2.0 or newer, is not installed.
    """

    def __init__(self) -> None:
        try:
            # By name: it is not among the packages that are installed here.
            self._isolation_scope: Any = importlib.import_module("sentry_sdk").isolation_scope
        except (ImportError, AttributeError):
            raise SettingsError("Sentry needs its SDK: pip install 'sentry-sdk>=2'") from None

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        """Run the job in a scope of its own."""
        with self._isolation_scope() as scope:
            scope.set_transaction_name(job.task)
            for name in ("task", "job_id", "queue", "attempt"):
                scope.set_tag(f"job.{name}", getattr(job, name))
            try:
                return await proceed(job)
            except _NO_FAILURES:
                raise
            except Exception as exc:
                scope.capture_exception(exc)
                raise
