"""What ``client.jobs.story`` offers: all that Redis knows of one job, whatever became of it.

A job that waits or runs is in its queue; one that has ended is known by its result, by its dead
letter, and by the list of jobs that ended last. Each of the three is kept for a while.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner import codec as codecs
from runner import failures, keys
from runner.errors import DecodeError
from runner.letters import decode_errors, decode_letter
from runner.types import UNKNOWN, AttemptError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from runner.codec import Codec, ResultRecord
    from runner.inspect.history import FinishedJob
    from runner.inspect.queued import JobInfo
    from runner.types import DeadLetter

ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStory:
    """One job, from its enqueue to its end.

    Attributes:
        job_id: its id.
        queue: its queue.
        task: its task's name, "" when nobody knows it any more.
        state: the value of a `JobState`, of an `Outcome`, or "ended" where only that is known.
        args: positional arguments, as plain data.
        kwargs: keyword arguments, as plain data.
        has_arguments: they are known.
        attempt: the number of the attempt that runs, is next, or was the last.
        crashes: how often it has lost its worker.
        worker: the name of the worker that has it, or had it last.
        enqueued_ms: when it was enqueued, Unix time in milliseconds; 0: unknown, as below.
        due_ms: when it may run, or might; of a running job when its lease ends.
        started_ms: when its last attempt began.
        ended_ms: when that ended.
        errors: what went wrong in its attempts, the oldest first.
        problem: why it cannot be read, or "".
        has_result: it returned, and what it returned is kept.
        result: that.
        is_queued: it is in its queue: it can be cancelled, or hurried, as far as it does not run.
        is_dead: there is a dead letter of it, which can be requeued.
    """

    job_id: str
    queue: str
    task: str = ""
    state: str = ENDED
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any]
    has_arguments: bool = False
    attempt: int = 1
    crashes: int = 0
    worker: str = ""
    enqueued_ms: int = 0
    due_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    errors: tuple[AttemptError, ...] = ()
    problem: str = ""
    has_result: bool = False
    result: Any = None
    is_queued: bool = False
    is_dead: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether it is in no queue any more."""
        return not self.is_queued


@dataclass(frozen=True, slots=True)
class Traces:
    """What Redis keeps of a job beside its queue."""

    result: bytes | None
    letter: bytes | None
    letter_errors: list[bytes]


async def traces_of(redis: Redis, job_id: str) -> Traces:
    """Read what is kept of a job that has ended, in one step."""
    raw = keys.raw_id(job_id)
    async with redis.pipeline(transaction=True) as pipe:
        untyped: Any = pipe  # typed for ids that are text
        for prefix in (keys.RESULT, keys.DEAD_LETTER):
            untyped.get(prefix.encode() + raw)
        untyped.lrange(keys.DEAD_ERRORS.encode() + raw, 0, -1)
        # A key of another type is none that anybody could read.
        found = await pipe.execute(raise_on_error=False)
    result, letter, errors = (None if isinstance(each, Exception) else each for each in found)
    return Traces(result, letter, errors or [])


def of_queued(job: JobInfo) -> JobStory:
    """Tell the story of a job that is in its queue."""
    return JobStory(
        job_id=job.job_id,
        queue=job.queue,
        task=job.task,
        state=job.state.value,
        args=job.args,
        kwargs=job.kwargs,
        has_arguments=not job.error,
        attempt=job.attempt,
        crashes=job.crashes,
        worker=job.worker,
        enqueued_ms=0 if job.enqueued is None else int(job.enqueued.timestamp() * 1000),
        due_ms=0 if job.due is None else int(job.due.timestamp() * 1000),
        errors=job.errors,
        problem=job.error,
        is_queued=True,
    )


def of_ended(
    job_id: str, queue: str, codec: Codec, traces: Traces, finished: FinishedJob | None
) -> JobStory | None:
    """Tell the story of a job that has ended; None when nobody knows of it."""
    if traces.letter is not None:
        letter = decode_letter(traces.letter, keys.raw_id(job_id), queue)
        return _of_letter(job_id, letter, decode_errors(traces.letter_errors))
    record, problem = None, ""
    if traces.result is not None:
        try:
            record = codecs.decode_result(codec, traces.result)
        except DecodeError as exc:
            problem = str(exc)
    if record is not None:
        return _of_result(job_id, queue, record, finished)
    if finished is None:
        return JobStory(job_id=job_id, queue=queue, kwargs={}, problem=problem) if problem else None
    return JobStory(
        job_id=job_id,
        queue=queue,
        task=finished.task,
        state=finished.outcome,
        kwargs={},
        attempt=finished.attempt,
        worker=finished.worker,
        enqueued_ms=finished.enqueued_ms,
        due_ms=finished.due_ms,
        started_ms=finished.started_ms,
        ended_ms=finished.ended_ms,
        errors=(_error_of(finished),) if finished.error else (),
        problem=problem,
    )


def _of_letter(job_id: str, letter: DeadLetter, errors: tuple[AttemptError, ...]) -> JobStory:
    last = AttemptError(
        attempt=letter.attempt,
        outcome=letter.outcome,
        error_type=letter.error_type,
        error=letter.error,
        traceback=letter.traceback,
        started_ms=letter.started_ms,
        ended_ms=letter.died_ms,
        worker=letter.worker,
        enqueued_ms=letter.enqueued_ms,
    )
    return JobStory(
        job_id=job_id,
        queue=letter.queue,
        task=letter.task,
        state=letter.outcome,
        args=tuple(letter.args),
        kwargs=letter.kwargs,
        has_arguments=letter.task != UNKNOWN,
        attempt=letter.attempt,
        worker=letter.worker,
        enqueued_ms=letter.enqueued_ms,
        started_ms=letter.started_ms,
        ended_ms=letter.died_ms,
        errors=(*errors, last),
        is_dead=True,
    )


def _of_result(
    job_id: str, queue: str, record: ResultRecord, finished: FinishedJob | None
) -> JobStory:
    outcome = "succeeded" if record.success else "failed"
    errors: tuple[AttemptError, ...] = ()
    if not record.success:
        described = failures.describe(record.result)
        errors = (
            AttemptError(
                attempt=record.attempt,
                outcome=outcome if finished is None else finished.outcome,
                error_type=described["type"],
                error=described["message"],
                traceback=described["traceback"],
                started_ms=record.started_ms,
                ended_ms=record.finished_ms,
                worker="" if finished is None else finished.worker,
            ),
        )
    return JobStory(
        job_id=job_id,
        queue=record.queue or queue,
        task=record.task,
        state=outcome if finished is None else finished.outcome,
        args=record.args,
        kwargs=record.kwargs,
        has_arguments=record.task != UNKNOWN,
        attempt=record.attempt,
        worker="" if finished is None else finished.worker,
        enqueued_ms=record.enqueued_ms,
        due_ms=0 if finished is None else finished.due_ms,
        started_ms=record.started_ms,
        ended_ms=record.finished_ms,
        errors=errors,
        has_result=record.success,
        result=record.result if record.success else None,
    )


def _error_of(finished: FinishedJob) -> AttemptError:
    kind, _, message = finished.error.partition(": ")
    return AttemptError(
        attempt=finished.attempt,
        outcome=finished.outcome,
        error_type=kind,
        error=message,
        started_ms=finished.started_ms,
        ended_ms=finished.ended_ms,
        worker=finished.worker,
    )


__all__ = ["JobStory", "Traces", "of_ended", "of_queued", "traces_of"]
