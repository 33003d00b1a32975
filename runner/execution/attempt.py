"""Run one attempt: load → admit → perform → classify → settle.

Exactly one place decides what became of an attempt (`classify`, and `admit` for those that
never start), and exactly one acts on it (`settlement`). Every end goes through the same
hooks, results and dead letters.

    claimed ──load──▶ record ──admit──▶ perform ──▶ ending ──settlement──▶ cycle
                │              │                   ▲
                └──────────────┴───────────────────┘   undecodable, expired, unknown task,
                                                       too many tries or crashes, aborted
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
from typing import TYPE_CHECKING, Any

from arq.jobs import DeserializationError
from arq.utils import ms_to_datetime
from arq.worker import RetryJob

from runner import codec, errors, logs
from runner.codec import JobRecord
from runner.errors import Cancel, DecodeError, Retry, Snooze
from runner.execution.context import Context
from runner.execution.lines import log, log_start
from runner.execution.records import (
    AGAIN,
    Attempt,
    Ending,
    Host,
    delay_after_refusal,
    max_tries_of,
    now_ms,
    timeout_of,
)
from runner.execution.report import started
from runner.execution.settlement import settlement
from runner.execution.steps import as_coroutine, go_on
from runner.middleware import CARRIED, JobCall
from runner.schedule import CRON_OPTION, ScheduledRun
from runner.tasks import Task, seconds
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from runner.broker import Claimed

logger = logging.getLogger("arq.worker")

LOOK_S = 0.1
LOOKS_AFTER_A_GAP = 50
"""For how long a time limit waits for the lease thread after the process was stopped: 5 s."""


async def run(host: Host, attempt: Attempt) -> None:
    """Run one attempt from its claim to its settlement."""
    try:
        ending = load(host, attempt) or await admit(host, attempt)
        if ending is None:
            ending = await perform(host, attempt)
    except Exception as exc:  # noqa: BLE001  whatever it is, the job must end
        ending = Ending(Outcome.FAILED, exc)
    if host.events.wanted:
        attempt.ended_ms = now_ms()
    log(host, attempt, ending)
    count(host, ending)
    await end(host, attempt, ending)


_UNKNOWN = JobRecord(
    task="<unknown>",
    args=(),
    kwargs={},
    attempt=None,
    enqueued_ms=0,
    options={},
)


def begin(claimed: Claimed) -> Attempt:
    """Return the job as it is before anything of it is known."""
    return Attempt(claimed, now_ms(), _UNKNOWN, claimed.attempt)


def load(host: Host, attempt: Attempt) -> Ending | None:
    """Decode the payload and find the function, or return how the job ends."""
    payload = attempt.claimed.payload
    if payload is None:
        return Ending(Outcome.EXPIRED, errors.JobExpired("job expired"))
    try:
        attempt.record = codec.decode_job(host.codec, payload, job_id=attempt.claimed.job_id)
    except DecodeError as exc:
        failure = DeserializationError("unable to deserialize job")
        failure.__cause__ = exc
        return Ending(Outcome.UNDECODABLE, failure)
    function = attempt.function = host.functions.get(attempt.record.task)
    if function is not None and isinstance(function.coroutine, Task):
        attempt.task = function.coroutine
    return None


async def admit(host: Host, attempt: Attempt) -> Ending | None:
    """Return None when the job may run now, or how it ends without having run."""
    record, claimed = attempt.record, attempt.claimed
    if claimed.job_id in host.aborting_tasks:
        return Ending(Outcome.ABORTED, asyncio.CancelledError())
    if attempt.function is None:
        hint = errors.did_you_mean(record.task, host.functions)
        message = f"function {record.task!r} not found{hint}"
        return Ending(Outcome.UNKNOWN_TASK, errors.TaskNotFound(message))
    expires_ms = record.options.get("exp")
    if expires_ms is not None and attempt.started_ms > expires_ms:
        return Ending(Outcome.EXPIRED, errors.JobExpired("job expired before it could start"))
    most = attempt.task.task_options.max_crashes if attempt.task else None
    most = host.max_crashes if most is None else most
    if claimed.crashes >= max(most, 1):
        message = f"the job lost its worker {claimed.crashes} times, max_crashes is {most}"
        return Ending(Outcome.TOO_MANY_CRASHES, errors.TooManyCrashes(message))
    if record.attempt and record.attempt > attempt.number:
        attempt.number = record.attempt
        await host.remember_try(claimed, record.attempt)
    max_tries = max_tries_of(host, attempt)
    if attempt.number > max_tries:
        message = f"max {max_tries} retries exceeded"
        return Ending(Outcome.TOO_MANY_TRIES, errors.TooManyTries(message))
    return None


async def perform(host: Host, attempt: Attempt) -> Ending:
    """Call the function under its time limit, and classify how it ended."""
    context = attempt.context = make_context(host, attempt)
    logs.bind(attempt.claimed.job_id, attempt.record.task, attempt.number)
    try:
        if host.on_job_start:
            await host.on_job_start(context)
        args, kwargs = arguments(attempt)
        log_start(attempt)
        if host.events.wanted:
            host.events.emit(started(host, attempt))
        timeout_s = timeout_of(host, attempt)
        if timeout_s is not None:
            host.limit_lease(attempt, timeout_s)
        assert attempt.function is not None
        if host.around is None:
            awaitable = attempt.function.coroutine(context, *args, **kwargs)
        else:
            awaitable = host.around(job_call(attempt, context, args, kwargs))
        coroutine = as_coroutine(awaitable)
        try:
            waits_for = coroutine.send(None)
        except StopIteration as stop:  # it is over, and has never waited
            value = stop.value
        else:
            value = await wait_out(host, attempt, go_on(coroutine, waits_for), timeout_s)
        attempt.unit = context.unit()
    except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  every end is classified
        if isinstance(exc, asyncio.CancelledError):
            # The cancellation ends here: what follows is the settlement.
            current_task().uncancel()
        return classify(host, attempt, exc)
    return Ending(Outcome.SUCCEEDED, value)


def job_call(
    attempt: Attempt,
    context: Context,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> JobCall:
    """Return what the middleware is given."""
    assert attempt.function is not None
    claimed, record = attempt.claimed, attempt.record
    return JobCall(
        ctx=context,
        job_id=claimed.job_id,
        queue=claimed.queue,
        task=record.task,
        attempt=attempt.number,
        enqueued_ms=record.enqueued_ms,
        due_ms=claimed.run_at_ms,
        started_ms=attempt.started_ms,
        args=args,
        kwargs=kwargs,
        carried=record.options.get(CARRIED) or {},
        function=attempt.function.coroutine,
    )


async def wait_out(
    host: Host,
    attempt: Attempt,
    function: Awaitable[Any],
    timeout_s: float | None,
) -> Any:
    """Let a function that waits go on to its end, or its time limit; others may cancel it."""
    this_task = current_task()
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def overrun(patience: int = LOOKS_AFTER_A_GAP) -> None:
        nonlocal timer
        if patience and host.leases_are_overdue():
            # The process was stopped for a while. First the leases: the job may be lost.
            timer = loop.call_later(LOOK_S, overrun, patience - 1)
            return
        attempt.timed_out = True
        this_task.cancel()

    host.job_tasks[attempt.claimed.job_id] = this_task
    if timeout_s is not None:
        timer = loop.call_later(timeout_s, overrun)
    try:
        return await function
    finally:
        if timer is not None:
            timer.cancel()
        host.job_tasks.pop(attempt.claimed.job_id, None)


def current_task() -> asyncio.Task[Any]:
    """Return the task that runs the attempt."""
    task = asyncio.current_task()
    assert task is not None
    return task


def make_context(host: Host, attempt: Attempt) -> Context:
    """Return arq's dict for this attempt, with our parts."""
    run = scheduled_run(host, attempt) if CRON_OPTION in attempt.record.options else None
    context = Context(host.ctx, host.reads, functools.partial(host.commits_of, attempt), run)
    context["job_id"] = attempt.claimed.job_id
    context["job_try"] = attempt.number
    context["enqueue_time"] = enqueue_time(attempt.record.enqueued_ms)
    run_at_ms = attempt.claimed.run_at_ms
    context["score"] = int(run_at_ms) if math.isfinite(run_at_ms) else 0
    if CRON_OPTION in attempt.record.options:
        context[CRON_OPTION] = attempt.record.options[CRON_OPTION]
    return context


def scheduled_run(host: Host, attempt: Attempt) -> ScheduledRun:
    """Return the attempt as the run of the schedule that made its job."""
    record = attempt.record
    option = tuple(record.options[CRON_OPTION])
    redis = host.ctx["redis"]
    return ScheduledRun(redis, host.codec, option, attempt.claimed, record.task, attempt.task)


enqueue_time = functools.lru_cache(maxsize=256)(ms_to_datetime)
"""arq's, for the jobs of one call, which have the same."""


def arguments(attempt: Attempt) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments as the task's annotations want them; raise what does not fit."""
    record = attempt.record
    if attempt.task is None:
        return record.args, record.kwargs
    attempt.task.signature.bind(record.task, record.args, record.kwargs)
    return attempt.task.signature.convert(record.args, record.kwargs)


def classify(  # noqa: C901, PLR0911  a list of rules, the first that fits decides
    host: Host,
    attempt: Attempt,
    exc: BaseException,
) -> Ending:
    """Decide what an exception means. The only place that does."""
    cancelled = isinstance(exc, asyncio.CancelledError)
    if attempt.lost_lease or isinstance(exc, errors.LeaseLost):
        return Ending(Outcome.LOST_LEASE, exc)
    if attempt.timed_out and (cancelled or isinstance(exc, TimeoutError)):
        timeout = TimeoutError()
        timeout.__cause__ = exc
        return Ending(Outcome.TIMED_OUT, timeout)
    if attempt.claimed.job_id in host.aborting_tasks and cancelled:
        return Ending(Outcome.ABORTED, exc)
    if isinstance(exc, Snooze):
        return snoozed(exc)
    if isinstance(exc, Cancel):
        return Ending(Outcome.CANCELLED, exc)
    if host.retry_jobs:
        if isinstance(exc, Retry):
            return Ending(Outcome.RETRIED, exc, (exc.defer_score or 0) / 1000 or None)
        if cancelled and host.stopping:
            return Ending(Outcome.HANDED_BACK, exc)
        if cancelled or isinstance(exc, RetryJob):
            return Ending(Outcome.RETRIED, exc)
        again_s = retry_delay(host, attempt, exc)
        if again_s is not None:
            return Ending(Outcome.RETRIED, exc, again_s)
    return Ending(Outcome.FAILED, exc, extra=extra_of(exc))


def snoozed(exc: Snooze) -> Ending:
    """Return how a snoozing attempt ends: a time that is none is the task's own fault."""
    delay_s: Any = seconds(exc.defer)
    if isinstance(delay_s, int | float) and math.isfinite(delay_s):
        return Ending(Outcome.SNOOZED, exc, delay_s)
    fault = errors.TaskError(f"Snooze takes seconds or a timedelta, not {exc.defer!r}")
    fault.__cause__ = exc
    return Ending(Outcome.FAILED, fault)


def extra_of(exc: BaseException) -> Any:
    """Return what arq logs beside an exception that has an `extra`."""
    extra = getattr(exc, "extra", None)
    try:
        return extra() if callable(extra) else extra
    except Exception as broken:  # noqa: BLE001  a user's method may raise anything
        return f"<extra raised {type(broken).__name__}>"


def retry_delay(host: Host, attempt: Attempt, exc: BaseException) -> float | None:
    """Return the seconds until a task with `retries` is tried again, None to give it up."""
    if attempt.context is not None and attempt.context.refused(exc):
        return delay_after_refusal(host, attempt)
    if attempt.task is None or attempt.task.task_options.retries is None:
        return None
    if isinstance(
        exc, errors.ArgumentsError | errors.CodecError | errors.UnitError | errors.UnitChanged
    ):
        return None  # the same bytes will not fit the next time either
    options = attempt.task.task_options
    if attempt.number > (options.retries or 0):
        return None
    return options.policy.delay(attempt=attempt.number, random=random.random())  # noqa: S311  jitter


def count(host: Host, ending: Ending) -> None:
    """Count the attempt as arq does."""
    if ending.outcome is Outcome.SUCCEEDED:
        host.jobs_complete += 1
    elif ending.outcome in AGAIN:
        host.jobs_retried += 1
    elif ending.outcome is not Outcome.LOST_LEASE:
        host.jobs_failed += 1


async def end(host: Host, attempt: Attempt, ending: Ending) -> None:
    """Run the hooks around the settlement, and settle."""
    context = attempt.context or make_context(host, attempt)
    context["outcome"] = ending.outcome.value
    attempt.is_over = True
    host.aborting_tasks.discard(attempt.claimed.job_id)
    is_lost = ending.outcome is Outcome.LOST_LEASE
    prepared = None if is_lost else settlement(host, attempt, ending)
    stopped = False
    if host.on_job_end:
        try:
            await guarded(host.on_job_end, context, "on_job_end")
        except asyncio.CancelledError:
            stopped = True  # the hook ends here, and not the job, which has ended already
    # A cancellation that comes meanwhile is raised when it is settled: the end of the job
    # stands, only the hook is skipped.
    if prepared is None:
        host.settler.report(attempt, ending, None)
    elif not host.after_job_end and not stopped:
        host.settler.pass_in(prepared, attempt, ending)
        return
    elif not await host.settler.settle(prepared, attempt, ending):
        context["outcome"] = Outcome.LOST_LEASE.value
    if stopped:
        raise asyncio.CancelledError
    if host.after_job_end:
        await guarded(host.after_job_end, context, "after_job_end")


async def guarded(hook: Any, context: Context, name: str) -> None:
    """Run a hook; its failure is logged and does not change what became of the attempt."""
    try:
        await hook(context)
    except Exception:
        logger.exception("the hook %s failed for job %s", name, context["job_id"])
