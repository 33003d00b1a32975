"""Turn how an attempt ended into what happens in Redis."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from arq.constants import keep_cronjob_progress

from runner import broker, codec, failures
from runner.broker import Settlement
from runner.codec import ResultRecord
from runner.errors import EncodeError
from runner.execution.records import (
    AGAIN,
    GIVEN_BACK,
    NO_LETTER,
    Attempt,
    Ending,
    Host,
    decision_on_refusal,
    now_ms,
)
from runner.letters import REQUEUED, encode_letter, error_of, requeues
from runner.retry import Verdict
from runner.tasks import MOST_KEPT_S
from runner.types import DeadLetter, Outcome
from runner.workflow import JOB_PREFIX, WaitForFlow

logger = logging.getLogger("arq.worker")

MOST_DELAY_S = 10 * 366 * 24 * 3600.0
"""Who waits for ten years waits for ever: later scores mean that a job is parked."""


def settlement(host: Host, attempt: Attempt, ending: Ending) -> Settlement:
    """Turn an ending into what happens in Redis. The only place that does."""
    done = ending.outcome is Outcome.SUCCEEDED
    if not done and ending.outcome in AGAIN:
        gives_back = ending.outcome in GIVEN_BACK
        return Settlement(
            claimed=attempt.claimed,
            mode="back" if gives_back else "again",
            counter="" if gives_back else "retried",
            extra=delay_of(ending),
            letter=error_record(host, attempt, ending) if host.history and not gives_back else b"",
            slots=attempt.slots,
        )
    claimed, options = attempt.claimed, attempt.record.options
    keep_ms = keep_ms_of(host, attempt)
    # Of a node of a flow always: others may take it, however long it is kept beside that.
    is_wanted = keep_ms or claimed.job_id.startswith(JOB_PREFIX)
    result = encode(host, attempt, ending) if is_wanted else b""
    settled = Settlement(
        claimed=claimed,
        mode="done",
        counter="succeeded" if done else "failed",
        result=result,
        keep_ms=keep_ms if result else 0,
        extra=str(keep_cronjob_progress * 1000) if attempt.is_cron and attempt.context else "",
    )
    if claimed.crashes or options:
        settled.had_errors = claimed.crashes > 0 or REQUEUED in options
    if attempt.limited is not None:
        settled.slots = attempt.slots
    if done and attempt.unit:
        settled.mode = "submit"
        # The number 0 is kept for this unit: those of `commit` count from 1, in any attempt.
        settled.unit_id = f"{claimed.job_id}:{attempt.record.enqueued_ms}:0"
        settled.operations = attempt.unit
        had_errors = settled.had_errors or attempt.number > 1
        settled.header = header(host, attempt, keep_ms, had_errors=had_errors)
    elif not done and host.history and ending.outcome not in NO_LETTER:
        settled.letter = letter(host, attempt, ending)
    return settled


def delay_of(ending: Ending) -> str:
    """Return how long a job waits for its next try, in ms; and the flow whose end it waits for."""
    if ending.delay_s is None:
        return ""
    delay = str(in_ms(ending.delay_s))
    return f"{delay} {ending.result.flow_id}" if isinstance(ending.result, WaitForFlow) else delay


def in_ms(delay_s: float) -> int:
    """Return a delay in ms, such as a score can be: from now on, and within ten years."""
    return int(min(max(delay_s, 0), MOST_DELAY_S) * 1000)


def keep_ms_of(host: Host, attempt: Attempt) -> int:
    """Return how long the result is kept: 0 not at all, -1 for ever."""
    function = attempt.function
    forever = function.keep_result_forever if function else None
    if host.keep_result_forever if forever is None else forever:
        return -1
    kept_s = function.keep_result_s if function else None
    kept_s = host.keep_result_s if kept_s is None else kept_s
    # arq's own func() takes any number; Redis would refuse one beyond 63 bits.
    return -1 if kept_s > MOST_KEPT_S else int(kept_s * 1000)


def encode(host: Host, attempt: Attempt, ending: Ending) -> bytes:
    """Encode the result as arq keeps it; b"" when the codec takes not even an apology."""
    record = attempt.record
    result = ResultRecord(
        job_id=attempt.claimed.job_id,
        queue=attempt.claimed.queue,
        task=record.task,
        args=record.args,
        kwargs=record.kwargs,
        attempt=attempt.number,
        enqueued_ms=record.enqueued_ms,
        started_ms=attempt.started_ms,
        finished_ms=now_ms(),
        success=ending.outcome is Outcome.SUCCEEDED,
        result=ending.result,
    )
    try:
        blob = codec.encode_result(host.codec, result)
        if len(blob) <= broker.MAX_RESULT_BYTES:
            return blob
        logger.error("job %s: its result takes %s bytes, too many", attempt.ref, f"{len(blob):,}")
        return codec.encode_result(host.codec, without_value(result, len(blob)))
    except EncodeError:
        logger.critical("job %s: its result cannot be written down", attempt.ref, exc_info=True)
        return b""


def without_value(result: ResultRecord, size: int) -> ResultRecord:
    """Return what is kept in the place of a result that is too large: why there is none."""
    why = (
        f"unable to keep result: with its arguments it takes {size:,} bytes, more than the "
        f"{broker.MAX_RESULT_BYTES:,} allowed; return a reference to it"
    )
    return msgspec.structs.replace(result, success=False, result=why, args=(), kwargs={})


def header(host: Host, attempt: Attempt, keep_ms: int, *, had_errors: bool) -> bytes:
    """Return what the writer needs to settle the job when its unit is committed, or refused."""
    decision = decision_on_refusal(host, attempt)
    again_s = (decision.delay_s or 0) if decision.verdict is Verdict.AGAIN else None
    fields: tuple[Any, ...] = (
        attempt.claimed.job_id,
        attempt.claimed.queue,
        attempt.number,
        attempt.started_ms,
        attempt.ended_ms or now_ms(),
        keep_ms,
        keep_cronjob_progress * 1000 if attempt.is_cron else 0,
        -1 if again_s is None else in_ms(again_s),
        host.name,
        had_errors,
    )
    if trace := attempt.traceparent:
        fields = (*fields, trace)
    return msgspec.msgpack.encode(fields)


def error_record(host: Host, attempt: Attempt, ending: Ending) -> bytes:
    """Encode the error of an attempt that is followed by another."""
    return error_of(
        ending.result,
        attempt=attempt.number,
        outcome=ending.outcome.value,
        started_ms=attempt.started_ms,
        ended_ms=now_ms(),
        worker=host.name,
        enqueued_ms=attempt.record.enqueued_ms,
    )


def letter(host: Host, attempt: Attempt, ending: Ending) -> bytes:
    """Encode the dead letter of a job that ended for good without success."""
    described = failures.describe(ending.result)
    record = attempt.record
    return encode_letter(
        DeadLetter(
            job_id=attempt.claimed.job_id,
            queue=attempt.claimed.queue,
            task=record.task,
            args=list(record.args),
            kwargs=record.kwargs,
            attempt=attempt.number,
            outcome=ending.outcome.value,
            error_type=described["type"],
            error=described["message"],
            traceback=described["traceback"],
            enqueued_ms=record.enqueued_ms,
            died_ms=now_ms(),
            payload=attempt.claimed.payload or b"",
            started_ms=attempt.started_ms,
            worker=host.name,
            requeued=requeues(record.options),
        ),
    )
