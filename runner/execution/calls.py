"""Call the function of an attempt: in the loop, or elsewhere, with the middleware around it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from runner import errors
from runner.execution.limits import LoopLimits
from runner.execution.lines import log_start
from runner.execution.records import Attempt, Ending, Host, now_ms, timeout_of
from runner.execution.report import started
from runner.execution.steps import go_on
from runner.middleware import CARRIED, JobCall
from runner.types import Outcome
from runner.workflow import WITHIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from runner.execution.context import Context


def starts(host: Host, attempt: Attempt, *, again: bool = False) -> float | None:
    """Say that the function is about to be called; return the seconds it may take."""
    if not again:
        log_start(attempt)
        if host.events.wanted:
            host.events.emit(started(host, attempt))
    timeout_s = timeout_of(host, attempt)
    if timeout_s is not None:
        host.limit_lease(attempt, timeout_s)
    return timeout_s


def called(
    host: Host,
    attempt: Attempt,
    context: Context,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call the function, or the middleware around it; return what is to be awaited."""
    assert attempt.function is not None
    task = attempt.task
    function = task.function if task and task.is_plain else attempt.function.coroutine
    if host.around is None:
        return function(context, *args, **kwargs)
    return host.around(job_call(attempt, context, args, kwargs, function))


def job_call(
    attempt: Attempt,
    context: Context,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    function: Callable[..., Awaitable[Any]],
) -> JobCall:
    """Return what the middleware is given."""
    claimed, record = attempt.claimed, attempt.record
    carried = record.options.get(CARRIED)
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
        carried=carried if isinstance(carried, dict) else {},  # it may be anybody's payload
        function=function,
    )


async def wait_out(
    host: Host,
    attempt: Attempt,
    coroutine: Coroutine[Any, Any, Any],
    waits_for: Any,
    timeout_s: float | None,
) -> Any:
    """Let a function that waits go on to its end, or its time limit; others may cancel it."""
    this_task = current_task()
    limits = attempt.limits = LoopLimits(host, attempt, this_task, coroutine)
    host.job_tasks[attempt.claimed.job_id] = this_task
    limits.start(timeout_s)
    try:
        return await go_on(coroutine, waits_for, watch=limits)
    finally:
        limits.stop()
        attempt.limits = None
        forget_task(host, attempt, this_task)


async def run_elsewhere(
    host: Host,
    attempt: Attempt,
    context: Context,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Let a function run in a thread or a process; it may wait for its turn there.

    The middleware stands around it here in the loop, and around its wait.
    """
    began = False

    def start() -> float | None:
        nonlocal began
        if not began and has_expired(attempt, now_ms()):
            raise NotStarted(expired())
        timeout_s = starts(host, attempt, again=began)  # a middleware may proceed once more
        began = True
        return timeout_s

    async def function(_ctx: Any, *args: Any, **kwargs: Any) -> Any:
        return await host.executors.run(attempt, args, kwargs, start)

    this_task = current_task()
    host.job_tasks[attempt.claimed.job_id] = this_task
    try:
        if host.around is None:
            return await host.executors.run(attempt, args, kwargs, start)
        value = await host.around(job_call(attempt, context, args, kwargs, function))
    finally:
        forget_task(host, attempt, this_task)
    take_writes(attempt, context)
    return value


def take_writes(attempt: Attempt, context: Context) -> None:
    """Take what the middleware around a thread or a process has written by the job's context."""
    written = context.unit()
    assert attempt.task is not None
    if attempt.task.executor == "thread":  # the function itself has written there
        attempt.unit = written
    elif written:
        raise errors.UnitError(
            "a middleware wrote by ctx.db around a function that runs in a process, which has a "
            "unit of its own: let the function write",
        )


def forget_task(host: Host, attempt: Attempt, task: asyncio.Task[Any]) -> None:
    """Let nobody cancel a function that is over; a later attempt may be in its place."""
    if host.job_tasks.get(attempt.claimed.job_id) is task:
        del host.job_tasks[attempt.claimed.job_id]


def current_task() -> asyncio.Task[Any]:
    """Return the task that runs the attempt."""
    task = asyncio.current_task()
    assert task is not None
    return task


def has_expired(attempt: Attempt, at_ms: int) -> bool:
    """Say whether a job that has not started before may not start any more.

    A job that was tried, or whose worker was lost, has started: its other tries do not expire.
    """
    expires_ms = attempt.record.options.get("exp")
    within_s = attempt.record.options.get(WITHIN)
    if within_s is not None:  # a node of a flow, since it was queued
        expires_ms = attempt.claimed.run_at_ms + within_s * 1000
    has_started = attempt.claimed.attempt > 1 or attempt.claimed.crashes or attempt.has_begun
    if expires_ms is None or has_started:
        return False
    return bool(at_ms > expires_ms)


def expired() -> Ending:
    """Return the end of a job that could not start in time."""
    return Ending(Outcome.EXPIRED, errors.JobExpired("job expired before it could start"))


class NotStarted(BaseException):
    """Raised in the place of a function's start, when its job ends without it.

    It comes through middleware, and is no failure of the function: nobody is to report it.
    """

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending
