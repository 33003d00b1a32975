"""Decide which due times of a schedule are run now: pure, the same in every worker.

A due time is *missed* when it is older than the schedule's grace. A worker that was busy or
killed for a moment misses nothing: all due times within the grace are run, each once, whatever
the policy says. The policy, `catch_up`, is about those that are older, after a downtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, assert_never

from runner.schedule.triggers import Perpetual

if TYPE_CHECKING:
    from runner.schedule.triggers import Trigger

CatchUp: TypeAlias = Literal["skip", "once", "all"]

MAX_RUNS = 200
"""Due times that one look at a schedule runs at most; the next look goes on behind them."""

LEAST_GRACE_MS, MOST_GRACE_MS = 2_000, 60_000


@dataclass(frozen=True, slots=True)
class Runs:
    """What one look at a schedule decides.

    Attributes:
        due_ms: the due times to run, the oldest first.
        next_ms: the due time behind them, None when there is none.
    """

    due_ms: tuple[int, ...]
    next_ms: int | None


def runs_of(
    trigger: Trigger,
    *,
    due_ms: int,
    now_ms: int,
    grace_ms: int | None,
    catch_up: CatchUp,
    most: int,
) -> Runs:
    """Return what to run of a schedule whose next due time has come.

    Args:
        trigger: when it is due.
        due_ms: the oldest due time that nobody has run.
        now_ms: Redis's time, not earlier than `due_ms`.
        grace_ms: how late a due time may be without having been missed; None: half of the
            time to the next one, two seconds at least and a minute at most.
        catch_up: what is done about missed ones: nothing ("skip"), one run for all of them
            at the latest of these times ("once"), or one each for the last `most` ("all").
        most: see `catch_up`.
    """
    if isinstance(trigger, Perpetual):
        # One run at a time, however late; it counts from now on.
        return Runs((due_ms,), trigger.after(now_ms))
    grace_ms = _grace(due_ms, trigger.after(due_ms)) if grace_ms is None else grace_ms
    edge = now_ms - grace_ms
    if due_ms >= edge:
        runs = _up_to_now(trigger, due_ms, now_ms)
    else:
        missed = _missed(trigger, due_ms, edge, catch_up, most)
        runs = missed + _up_to_now(trigger, trigger.after(edge - 1), now_ms)
    if len(runs) > MAX_RUNS:
        return Runs(tuple(runs[:MAX_RUNS]), runs[MAX_RUNS])
    return Runs(tuple(runs), trigger.after(now_ms))


def _grace(due_ms: int, following: int | None) -> int:
    if following is None:
        return MOST_GRACE_MS
    return min(max((following - due_ms) // 2, LEAST_GRACE_MS), MOST_GRACE_MS)


def _up_to_now(trigger: Trigger, first: int | None, now_ms: int) -> list[int]:
    """Return the due times from this one up to now, one more than `MAX_RUNS` at most."""
    runs: list[int] = []
    at = first
    while at is not None and at <= now_ms and len(runs) <= MAX_RUNS:
        runs.append(at)
        at = trigger.after(at)
    return runs


def _missed(
    trigger: Trigger, since_ms: int, edge_ms: int, catch_up: CatchUp, most: int
) -> list[int]:
    match catch_up:
        case "skip":
            return []
        case "once":
            return _last(trigger, since_ms, edge_ms, 1)
        case "all":
            return _last(trigger, since_ms, edge_ms, most)
        case _:
            assert_never(catch_up)


def _last(trigger: Trigger, since_ms: int, edge_ms: int, count: int) -> list[int]:
    """Return the last `count` due times from `since_ms`, which is one, to before `edge_ms`.

    A trigger only counts forward: it is asked from a point that lies further back each time.
    """
    following = trigger.after(since_ms)
    if following is None or following >= edge_ms:
        return [since_ms]
    span = (following - since_ms) * (count + 1)
    while True:
        start = edge_ms - span
        whole = start <= since_ms
        found = [since_ms] if whole else []
        at = trigger.after(since_ms if whole else start - 1)
        while at is not None and at < edge_ms:
            found.append(at)
            at = trigger.after(at)
        if whole or len(found) >= count:
            return found[-count:]
        span *= 4
