"""Tell subscribers what became of an attempt."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from runner import failures
from runner.events import (
    JobEnded,
    JobStarted,
    JobStuck,
    LeaseLost,
    UnitRefused,
    WorkerStarted,
    WorkerStopped,
)
from runner.execution.limits import shown
from runner.execution.records import AGAIN, NO_LETTER, Attempt, Ending, Host, now_ms
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.broker import Settlement
    from runner.errors import WriteRejected
    from runner.execution.records import Frames
    from runner.writer.entries import Unit

logger = logging.getLogger("arq.worker")


class Serves(Host, Protocol):
    """What the events of a worker say of it."""

    max_jobs: int
    burst: bool


def started(host: Host, attempt: Attempt) -> JobStarted:
    """Return the event of a job whose function is about to be called."""
    claimed = attempt.claimed
    return JobStarted(
        worker=host.name,
        queue=claimed.queue,
        job_id=claimed.job_id,
        task=attempt.record.task,
        attempt=attempt.number,
        crashes=claimed.crashes,
        enqueued_ms=attempt.record.enqueued_ms,
        due_ms=claimed.run_at_ms,
        started_ms=attempt.started_ms,
    )


def stuck(host: Host, attempt: Attempt, executor: str, frames: Frames) -> None:
    """Say, in the log and to subscribers, that a function goes on though its job has ended."""
    where, stack = shown(frames)
    logger.error(
        "job %s has ended, but its function goes on in the %s, at %s\n%s",
        attempt.ref,
        executor,
        where or "an unknown line",
        stack.rstrip(),
    )
    if host.events.wanted:
        host.events.emit(
            JobStuck(
                worker=host.name,
                queue=attempt.claimed.queue,
                job_id=attempt.claimed.job_id,
                task=attempt.record.task,
                attempt=attempt.number,
                executor=executor,
                where=where,
                stack=stack,
                at_ms=now_ms(),
            ),
        )


def lost(host: Host, attempt: Attempt) -> LeaseLost:
    """Return the event of a job that goes on here though somebody else has it by now."""
    return LeaseLost(
        worker=host.name,
        queue=attempt.claimed.queue,
        job_id=attempt.claimed.job_id,
        task=attempt.record.task,
        attempt=attempt.number,
        at_ms=now_ms(),
    )


def ended(host: Host, attempt: Attempt, ending: Ending, settled: Settlement | None) -> JobEnded:
    """Return the event of an attempt that ended so; `settled` None: it was not settled here."""
    claimed, outcome = attempt.claimed, ending.outcome
    exception = ending.result if isinstance(ending.result, BaseException) else None
    if outcome is Outcome.SUCCEEDED:
        exception = None  # a task may return an exception
    error_type, error = ("", "") if exception is None else failures.named(exception)
    return JobEnded(
        worker=host.name,
        queue=claimed.queue,
        job_id=claimed.job_id,
        task=attempt.record.task,
        attempt=attempt.number,
        crashes=claimed.crashes,
        outcome=outcome,
        is_final=outcome not in AGAIN and outcome is not Outcome.LOST_LEASE,
        ran=attempt.context is not None,
        committing=settled is not None and settled.mode == "submit",
        has_letter=host.history and outcome not in NO_LETTER,
        delay_s=ending.delay_s,
        enqueued_ms=attempt.record.enqueued_ms,
        due_ms=claimed.run_at_ms,
        started_ms=attempt.started_ms,
        ended_ms=attempt.ended_ms or now_ms(),
        error_type=error_type,
        error=error,
        exception=exception,
        limit=ending.limit,
    )


def worker_started(worker: Serves, queues: Sequence[str]) -> WorkerStarted:
    """Return the event of a worker that claims from these queues from now on."""
    return WorkerStarted(
        worker=worker.name,
        at_ms=now_ms(),
        queues=tuple(queues),
        functions=tuple(worker.functions),
        max_jobs=worker.max_jobs,
        burst=worker.burst,
    )


def worker_stopped(worker: Serves) -> WorkerStopped:
    """Return the event of a worker that has closed."""
    return WorkerStopped(
        worker=worker.name,
        at_ms=now_ms(),
        jobs_complete=worker.jobs_complete,
        jobs_failed=worker.jobs_failed,
        jobs_retried=worker.jobs_retried,
    )


def refused(worker: str, unit: Unit, why: WriteRejected) -> UnitRefused:
    """Return the event of a unit that the worker's writer did not apply."""
    whose = unit.job or unit.commit
    return UnitRefused(
        worker=worker,
        at_ms=now_ms(),
        entry=unit.entry,
        job_id=whose.job_id if whose else "",
        error=why,
    )
