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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from arq.jobs import DeserializationError
from arq.utils import ms_to_datetime
from redis.exceptions import RedisError

from runner import codec, errors, logs
from runner.client import Client
from runner.codec import JobRecord
from runner.errors import DecodeError, Snooze
from runner.execution.calls import (
    NotStarted,
    called,
    current_task,
    expired,
    has_expired,
    run_elsewhere,
    starts,
    wait_out,
)
from runner.execution.context import Context
from runner.execution.gate import limits_of, pass_gate
from runner.execution.limits import is_soft_limit
from runner.execution.lines import log
from runner.execution.records import (
    AGAIN,
    LIMITED,
    Attempt,
    Ending,
    Host,
    decision_on_refusal,
    max_tries_of,
    now_ms,
)
from runner.execution.settlement import settlement
from runner.execution.steps import as_coroutine
from runner.keys import KEEP_MS
from runner.retry import Decision, Verdict, decide
from runner.schedule import CRON_OPTION, ScheduledRun
from runner.tasks import Task
from runner.types import UNKNOWN, Outcome
from runner.workflow import (
    REFERENCES,
    RETRIES,
    WITHIN,
    FlowStore,
    JobFlow,
    filled_arguments,
    has_waited,
    plain_encoder,
)

if TYPE_CHECKING:
    from runner.broker import Claimed

logger = logging.getLogger("arq.worker")

RESULTS_TIMEOUT_S = 30.0
RESULTS_AGAIN_S = 1.0


async def run(host: Host, attempt: Attempt, ending: Ending | None = None) -> None:
    """Run one attempt from its claim to its settlement, or only settle what has ended so."""
    if ending is None:
        try:
            ending = load(host, attempt) or admit(host, attempt)
            if ending is not None and is_late(attempt, ending) and await has_begun(host, attempt):
                ending = admit(host, attempt)
            if ending is None and attempt.number > attempt.claimed.attempt:
                await host.remember_try(attempt.claimed, attempt.number)
            if ending is None and attempt.limited is not None:
                ending = await take_results(host, attempt) or await pass_gate(host, attempt)
            if ending is None:
                ending = await perform(host, attempt)
        except Exception as exc:  # noqa: BLE001  whatever it is, the job must end
            ending = Ending(Outcome.FAILED, exc)
        if attempt.is_abandoned or attempt.is_left:
            return  # others have seen to it
    if host.events.watched:
        attempt.ended_ms = now_ms()
    log(host, attempt, ending)
    if attempt.limited is not None and ending.outcome in LIMITED:
        # It is back already, or parked: it never began, and no hook hears of it.
        host.settler.report(attempt, ending, None)
        return
    count(host, ending)
    await end(host, attempt, ending)


async def abandon(host: Host, attempt: Attempt) -> None:
    """Settle an attempt whose function does not heed its cancellation, without it."""
    logs.bind(attempt.claimed.job_id, attempt.record.task, attempt.number, host.name)
    await run(host, attempt, classify(host, attempt, asyncio.CancelledError()))


_UNKNOWN = JobRecord(
    task=UNKNOWN,
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
    limits: object = attempt.claimed.gates
    function = attempt.function = host.functions.get(attempt.record.task)
    if function is not None and isinstance(function.coroutine, Task):
        task = attempt.task = function.coroutine
        limits = limits or task.task_options.limits
    if limits:
        attempt.limited = limits_of(host, attempt)
    return None


def admit(host: Host, attempt: Attempt) -> Ending | None:
    """Return None when the job may run now, or how it ends without having run."""
    record, claimed = attempt.record, attempt.claimed
    if claimed.job_id in host.aborting_tasks:
        return Ending(Outcome.ABORTED, asyncio.CancelledError())
    if attempt.function is None:
        hint = errors.did_you_mean(record.task, host.functions)
        message = f"function {record.task!r} not found{hint}"
        return Ending(Outcome.UNKNOWN_TASK, errors.TaskNotFound(message))
    timed = record.options and ("exp" in record.options or WITHIN in record.options)
    if timed and has_expired(attempt, attempt.started_ms):
        return expired()
    if claimed.crashes and (ending := crashed_too_often(host, attempt)) is not None:
        return ending
    if record.attempt and record.attempt > attempt.number:
        attempt.number = record.attempt
    max_tries = max_tries_of(host, attempt)
    if attempt.number > max_tries:
        message = f"max {max_tries} retries exceeded"
        return Ending(Outcome.TOO_MANY_TRIES, errors.TooManyTries(message))
    return None


def is_late(attempt: Attempt, ending: Ending) -> bool:
    """Say whether a job that is there ends because it could not start in time."""
    return ending.outcome is Outcome.EXPIRED and attempt.claimed.payload is not None


async def has_begun(host: Host, attempt: Attempt) -> bool:
    """Look whether an attempt has ended to wait for a flow: that spends no try."""
    redis, enqueued_ms = host.ctx["redis"], attempt.record.enqueued_ms
    try:
        attempt.has_begun = await has_waited(redis, attempt.claimed, enqueued_ms)
    except (RedisError, OSError) as exc:
        logger.warning("could not see whether %s has begun: %s", attempt.ref, exc)
        attempt.has_begun = True  # to run late is better than not at all
    return attempt.has_begun


def crashed_too_often(host: Host, attempt: Attempt) -> Ending | None:
    """Return the end of a job that has lost so many leases that it is given up."""
    most = attempt.task.task_options.max_crashes if attempt.task else None
    most = host.max_crashes if most is None else most
    crashes = attempt.claimed.crashes
    if crashes < max(most, 1):
        return None
    message = f"the job lost its worker {crashes} times, max_crashes is {most}"
    return Ending(Outcome.TOO_MANY_CRASHES, errors.TooManyCrashes(message))


async def perform(host: Host, attempt: Attempt) -> Ending:
    """Call the function under its time limit, and classify how it ended."""
    context = attempt.context = make_context(host, attempt)
    logs.bind(attempt.claimed.job_id, attempt.record.task, attempt.number, host.name)
    try:
        if host.on_job_start:
            await host.on_job_start(context)
        options, task = attempt.record.options, attempt.task
        takes_results = bool(options) and REFERENCES in options
        args, kwargs = arguments(attempt, takes_results and await results_for(host, attempt))
        if task is not None and task.executor != "loop":
            value = await run_elsewhere(host, attempt, context, args, kwargs)
        else:
            timeout_s = starts(host, attempt)
            coroutine = as_coroutine(called(host, attempt, context, args, kwargs))
            try:
                waits_for = coroutine.send(None)
            except StopIteration as stop:  # it is over, and has never waited
                value = stop.value
            else:
                value = await wait_out(host, attempt, coroutine, waits_for, timeout_s)
            attempt.unit = context.unit()
    except NotStarted as exc:
        return exc.ending
    except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  every end is classified
        if isinstance(exc, asyncio.CancelledError) and not isinstance(exc, errors.SoftTimeLimit):
            # The cancellation ends here: what follows is the settlement.
            current_task().uncancel()
        return classify(host, attempt, exc)
    except BaseExceptionGroup as exc:  # as a TaskGroup wraps what is no `Exception`
        if exc.split((Exception, asyncio.CancelledError))[1] is not None:
            raise  # somebody wants the process to end
        return classify(host, attempt, exc)
    return Ending(Outcome.SUCCEEDED, value)


def make_context(host: Host, attempt: Attempt) -> Context:
    """Return arq's dict for this attempt, with our parts."""
    claimed, options = attempt.claimed, attempt.record.options
    of_schedule = bool(options) and CRON_OPTION in options
    context = Context(
        host.ctx,
        host.reads,
        lambda: host.commits_of(attempt),
        scheduled_run(host, attempt) if of_schedule else None,
        lambda: job_flow(host, attempt),
        board=host.progress,
    )
    context["job_id"] = claimed.job_id
    context["job_try"] = attempt.number
    context["enqueue_time"] = enqueue_time(attempt.record.enqueued_ms)
    context["score"] = int(claimed.run_at_ms) if math.isfinite(claimed.run_at_ms) else 0
    if of_schedule:
        context[CRON_OPTION] = options[CRON_OPTION]
    return context


def job_flow(host: Host, attempt: Attempt) -> JobFlow:
    """Return what the job sees of flows."""
    redis = host.ctx["redis"]
    store = (
        redis.flows
        if isinstance(redis, Client)
        else FlowStore(
            redis,
            host.codec,
            plain_encoder(host.codec),
            queue=host.queue_name,
            lifetime_ms=KEEP_MS,
        )
    )
    return JobFlow(store, attempt.claimed, attempt.record.enqueued_ms)


def scheduled_run(host: Host, attempt: Attempt) -> ScheduledRun:
    """Return the attempt as the run of the schedule that made its job."""
    record = attempt.record
    option = tuple(record.options[CRON_OPTION])
    redis = host.ctx["redis"]
    return ScheduledRun(redis, host.codec, option, attempt.claimed, record.task, attempt.task)


enqueue_time = functools.lru_cache(maxsize=256)(ms_to_datetime)
"""arq's, for the jobs of one call, which have the same."""


async def results_for(host: Host, attempt: Attempt) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a node with the results of others in their places.

    Raises:
        Snooze: Redis does not answer; the job is run again, and it costs no try.
    """
    record = attempt.record
    if attempt.given is not None:
        return attempt.given
    try:
        async with asyncio.timeout(RESULTS_TIMEOUT_S):
            return await filled_arguments(
                host.ctx["redis"],
                host.codec,
                attempt.claimed.job_id,
                (record.args, record.kwargs),
                record.options[REFERENCES],
            )
    except (RedisError, OSError) as exc:  # TimeoutError is an OSError
        logger.warning("could not read the results that %s takes: %s", attempt.ref, exc)
        raise Snooze(RESULTS_AGAIN_S) from exc


async def take_results(host: Host, attempt: Attempt) -> Ending | None:
    """Look at a node's limits with the results it takes: one may be the key of a limit."""
    if REFERENCES not in attempt.record.options:
        return None
    try:
        attempt.given = await results_for(host, attempt)
    except Exception as exc:  # noqa: BLE001  every end is classified
        return classify(host, attempt, exc)
    attempt.limited = limits_of(host, attempt)
    return None


def arguments(
    attempt: Attempt,
    given: tuple[tuple[Any, ...], dict[str, Any]] | Literal[False],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments as the task's annotations want them; raise what does not fit.

    Args:
        attempt: of the job.
        given: the arguments in place of those of the job, where others' results are among them.
    """
    args, kwargs = given or (attempt.record.args, attempt.record.kwargs)
    if attempt.task is None:
        return args, kwargs
    attempt.task.signature.bind(attempt.record.task, args, kwargs)
    return attempt.task.signature.convert(args, kwargs)


def classify(  # noqa: PLR0911  a list of rules, the first that fits decides
    host: Host,
    attempt: Attempt,
    exc: BaseException,
) -> Ending:
    """Decide what an exception means. The only place that does."""
    cancelled = isinstance(exc, asyncio.CancelledError)
    if attempt.lost_lease or isinstance(exc, errors.LeaseLost):
        return Ending(Outcome.LOST_LEASE, exc)
    timeout = overrun(host, attempt, exc)
    if timeout is not None:
        if attempt.goes_on:
            return Ending(Outcome.TIMED_OUT, timeout)  # another try would run beside it
        exc = timeout
    elif cancelled and attempt.claimed.job_id in host.aborting_tasks:
        return Ending(Outcome.ABORTED, exc)
    elif cancelled and host.retry_jobs:
        return Ending(Outcome.HANDED_BACK if host.stopping else Outcome.RETRIED, exc)
    decision = decision_on(host, attempt, exc, overran=timeout is not None)
    match decision.verdict:
        case Verdict.AGAIN if host.retry_jobs:
            return Ending(Outcome.RETRIED, exc, decision.delay_s)
        case Verdict.SNOOZE:
            return Ending(Outcome.SNOOZED, exc, decision.delay_s)
        case Verdict.CANCEL:
            return Ending(Outcome.CANCELLED, exc)
        case _ if timeout is not None:
            return Ending(Outcome.TIMED_OUT, exc)
        case _:
            final = decision.fault or exc
            return Ending(Outcome.FAILED, final, extra=extra_of(final))


def overrun(host: Host, attempt: Attempt, exc: BaseException) -> TimeoutError | None:
    """Return the error of an attempt that reached a time limit, None of one that did not."""
    cancelled = isinstance(exc, asyncio.CancelledError)
    hard = attempt.timed_out and (cancelled or isinstance(exc, TimeoutError))
    # A cancellation that somebody made of the soft limit, on its way out.
    made_of_it = cancelled and attempt.softened and not host.stopping
    made_of_it = made_of_it and attempt.claimed.job_id not in host.aborting_tasks
    if not hard and not made_of_it and not is_soft_limit(exc):
        return None
    limit_s = attempt.task.task_options.soft_timeout if attempt.task else None
    is_soft = limit_s is not None and not attempt.timed_out
    timeout = TimeoutError(f"the soft time limit of {limit_s:g} s") if is_soft else TimeoutError()
    timeout.__cause__ = exc
    return timeout


def extra_of(exc: BaseException) -> Any:
    """Return what arq logs beside an exception that has an `extra`."""
    extra = getattr(exc, "extra", None)
    try:
        return extra() if callable(extra) else extra
    except Exception as broken:  # noqa: BLE001  a user's method may raise anything
        return f"<extra raised {type(broken).__name__}>"


def decision_on(host: Host, attempt: Attempt, exc: BaseException, *, overran: bool) -> Decision:
    """Ask the task's policy what follows an exception."""
    policy = attempt.task.task_options.policy if attempt.task else None
    if policy is not None and RETRIES in attempt.record.options:
        policy = replace(policy, retries=attempt.record.options[RETRIES])
    if policy is not None and attempt.context is not None and attempt.context.refused(exc):
        return decision_on_refusal(host, attempt, exc)
    return decide(
        exc,
        attempt=attempt.number,
        policy=policy,
        max_tries=max_tries_of(host, attempt),
        random=random.random(),  # noqa: S311  jitter
        overran=overran,
    )


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
