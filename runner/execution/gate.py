"""Ask whether a job of a limited task may run, between its admission and its start."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, assert_never

from runner import errors
from runner.execution.records import Attempt, Ending, Host, now_ms
from runner.types import Outcome

if TYPE_CHECKING:
    from runner.limits import Limited

AGAIN_S = 1.0


def limits_of(host: Host, attempt: Attempt) -> Limited | None:
    """Return the limits of an attempt: those of its task, and what the claim said of it."""
    options = attempt.task.task_options if attempt.task else None
    return host.gate.limited(
        attempt.record.task,
        attempt.claimed.gates,
        options.limits if options else (),
        options.weight if options else 1,
        functools.partial(_value_of, attempt),
    )


async def pass_gate(host: Host, attempt: Attempt) -> Ending | None:
    """Return None when the job may run now, or how this attempt ends."""
    assert attempt.limited is not None
    try:
        verdict = await host.gate.ask(attempt.claimed, attempt.record.task, attempt.limited)
    except errors.LimitUnavailable as exc:
        return Ending(Outcome.HANDED_BACK, exc, AGAIN_S)
    match verdict.answer:
        case "admitted":
            if verdict.delay_s:
                await asyncio.sleep(verdict.delay_s)
            attempt.started_ms = now_ms()
            return None
        case "delayed":
            return Ending(Outcome.DELAYED, delay_s=verdict.delay_s, limit=verdict.limit)
        case "parked":
            return Ending(Outcome.PARKED, limit=verdict.limit)
        case "lost":
            return Ending(Outcome.LOST_LEASE, errors.LeaseLost("the job is another worker's now"))
        case _:
            assert_never(verdict.answer)


def _value_of(attempt: Attempt, name: str) -> Any:
    """Return an argument by the name of its parameter; "" where there is none."""
    args, kwargs = attempt.given or (attempt.record.args, attempt.record.kwargs)
    if name in kwargs or attempt.task is None:
        return kwargs.get(name, "")
    return attempt.task.signature.value_of(name, args)
