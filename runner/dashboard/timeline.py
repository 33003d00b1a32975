"""What happened to one job, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.lengths import length

if TYPE_CHECKING:
    from runner.inspect import JobStory
    from runner.types import AttemptError

DEFERRED_MS = 1_000
"""A job that is due so long after its enqueue was to run later."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened, or will.

    Attributes:
        at_ms: when, Unix time in milliseconds; 0: nobody knows.
        what: in a few words.
        kind: the state that gives it its colour, "" for none.
        detail: what there is to say of it.
    """

    at_ms: int
    what: str
    kind: str = ""
    detail: str = ""


def moments(story: JobStory) -> list[Moment]:
    """Return what is known of a job, the oldest first."""
    found = _lives(story)
    if story.enqueued_ms and story.due_ms - story.enqueued_ms > DEFERRED_MS and story.has_ended:
        found.append(Moment(story.due_ms, "due", detail=_after(story.enqueued_ms, story.due_ms)))
    found += [_of_error(error) for error in story.errors]
    found.sort(key=lambda moment: moment.at_ms)
    return found + _last(story)


def _lives(story: JobStory) -> list[Moment]:
    """Return when a job was enqueued; one that had ended for good was so more than once."""
    known = {error.enqueued_ms for error in story.errors} | {story.enqueued_ms}
    times = sorted(known - {0})
    begun = [error.ended_ms for error in story.errors if error.ended_ms]
    is_first = bool(times) and all(times[0] <= ended_ms for ended_ms in begun)
    return [
        Moment(at_ms, "enqueued" if is_first and at_ms == times[0] else "requeued")
        for at_ms in times
    ]


def _last(story: JobStory) -> list[Moment]:
    """Return what goes on, comes next, or came last."""
    attempt, ran = story.attempt, _ran(story.started_ms, story.ended_ms, story.worker)
    by = f"on {story.worker}" if story.worker else ""
    known = {
        "running": Moment(story.started_ms, f"attempt {attempt} runs", "running", by),
        "queued": Moment(story.due_ms, "due: the next free worker takes it", "queued"),
        "deferred": Moment(story.due_ms, "due", "deferred"),
        "retrying": Moment(story.due_ms, f"attempt {attempt} is due", "retrying"),
        "parked": Moment(0, "held back by a limit or a pause", "parked"),
        "committing": Moment(0, "ended; its writes wait for the writer", "committing"),
        "succeeded": Moment(story.ended_ms, f"attempt {attempt} succeeded", "succeeded", ran),
    }
    if story.state in known:
        return [known[story.state]]
    if story.errors or not story.has_ended:
        return []
    return [Moment(story.ended_ms, story.state.replace("_", " "), story.state)]


def _of_error(error: AttemptError) -> Moment:
    what = (error.outcome or "failed").replace("_", " ")
    said = ": ".join(part for part in (error.error_type, error.error) if part)
    ran = _ran(error.started_ms, error.ended_ms, error.worker)
    detail = f"{ran}: {said}" if ran and said else ran or said
    return Moment(error.ended_ms, f"attempt {error.attempt} {what}", error.outcome, detail)


def _ran(started_ms: int, ended_ms: int, worker: str) -> str:
    ran = f"ran {length(max(ended_ms - started_ms, 0))}" if started_ms and ended_ms else ""
    by = f"on {worker}" if worker else ""
    return f"{ran} {by}".strip()


def _after(before_ms: int, ms: int) -> str:
    return f"{length(ms - before_ms)} later"


__all__ = ["Moment", "moments"]
