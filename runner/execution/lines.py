"""The lines that an attempt logs: arq's own, word for word."""

from __future__ import annotations

import logging
from typing import Any, assert_never

from arq.utils import args_to_string, truncate

from runner import codec, failures
from runner.errors import Retry
from runner.execution.records import Attempt, Ending, Host, max_tries_of, now_ms
from runner.types import Outcome

logger = logging.getLogger("arq.worker")


def log_start(attempt: Attempt) -> None:
    """Write arq's line for a job that starts."""
    if not logger.isEnabledFor(logging.INFO):
        return
    record = attempt.record
    extra = f" try={attempt.number}" if attempt.number > 1 else ""
    delayed_ms = attempt.started_ms - attempt.claimed.run_at_ms
    if delayed_ms > 1200:  # noqa: PLR2004  arq's threshold
        extra += f" delayed={delayed_ms / 1000:0.2f}s"
    logger.info(
        "%6.2fs → %s(%s)%s",
        (attempt.started_ms - record.enqueued_ms) / 1000,
        attempt.ref,
        _arguments_shown(record),
        extra,
    )


def log(host: Host, attempt: Attempt, ending: Ending) -> None:  # noqa: C901, PLR0912  a line each
    """Write arq's line for how an attempt ended."""
    if ending.outcome is Outcome.SUCCEEDED and not logger.isEnabledFor(logging.INFO):
        return
    took_s = (now_ms() - attempt.started_ms) / 1000
    waited_s = (now_ms() - attempt.record.enqueued_ms) / 1000
    job_id, ref, exc = attempt.claimed.job_id, attempt.ref, ending.result
    match ending.outcome:
        case Outcome.SUCCEEDED:
            shown = "" if exc is None or not host.log_results else _shown(exc)
            logger.info("%6.2fs ← %s ● %s", took_s, ref, shown)
        case Outcome.RETRIED | Outcome.SNOOZED if ending.delay_s or isinstance(exc, Retry):
            logger.info("%6.2fs ↻ %s retrying job in %0.2fs", took_s, ref, ending.delay_s or 0)
        case Outcome.RETRIED | Outcome.HANDED_BACK | Outcome.SNOOZED:
            logger.info("%6.2fs ↻ %s cancelled, will be run again", took_s, ref)
        case Outcome.DELAYED:
            logger.debug(
                "%6.2fs ⧗ %s waits %.2fs for %s", took_s, ref, ending.delay_s, ending.limit
            )
        case Outcome.PARKED:
            logger.debug("%6.2fs ⧗ %s is parked: %s", took_s, ref, ending.limit or "paused")
        case Outcome.ABORTED if attempt.context is None:
            logger.info("%6.2fs ⊘ %s aborted before start", waited_s, ref)
        case Outcome.ABORTED:
            logger.info("%6.2fs ⊘ %s aborted", took_s, ref)
        case Outcome.EXPIRED:
            logger.warning("job %s expired", job_id)
        case Outcome.UNDECODABLE:
            logger.error("deserializing job %s failed", job_id, exc_info=exc)
        case Outcome.UNKNOWN_TASK:
            logger.warning("job %s, %s", job_id, exc)
        case Outcome.TOO_MANY_TRIES:
            logger.warning(
                "%6.2fs ! %s max retries %d exceeded",
                waited_s,
                ref,
                max_tries_of(host, attempt),
            )
        case Outcome.TOO_MANY_CRASHES | Outcome.CANCELLED:
            logger.warning("%6.2fs ! %s given up: %s", took_s, ref, exc)
        case Outcome.LOST_LEASE:
            logger.warning("%6.2fs ! %s lost its lease, it runs elsewhere", took_s, ref)
        case Outcome.FAILED | Outcome.TIMED_OUT:
            logger.error(
                "%6.2fs ! %s failed, %s: %s",
                took_s,
                ref,
                type(exc).__name__,
                failures.message_of(exc),
                exc_info=(type(exc), exc, failures.users_part(exc.__traceback__)),
                extra={"extra": ending.extra},
            )
        case _:
            assert_never(ending.outcome)


def _arguments_shown(record: codec.JobRecord) -> str:
    try:
        return args_to_string(record.args, record.kwargs)
    except Exception as exc:  # noqa: BLE001  a user's __repr__, or lists nested a thousand deep
        return f"<repr raised {type(exc).__name__}>"


def _shown(value: Any) -> str:
    try:
        return truncate(repr(value))
    except Exception as exc:  # noqa: BLE001  a user's __repr__ may raise anything
        return f"<repr raised {type(exc).__name__}>"
