"""The run of a schedule, as its own job sees it: it decides when the next one is due."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from runner import codec as codecs
from runner import keys
from runner.codec import Codec, JobRecord
from runner.errors import ScheduleError
from runner.schedule.triggers import MOST_INTERVAL_MS
from runner.scripts import load
from runner.tasks import Task, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from redis.asyncio import Redis

    from runner.broker import Claimed


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """A job that a schedule made, while a worker holds it.

    Attributes:
        redis: the worker's pool.
        codec: the codec of the fleet's jobs.
        option: the book's queue, the schedule's name, and the due time in ms.
        claimed: the claim; who has lost it decides nothing.
        task: the task's name.
        declared: the declared task, None for a plain function.
    """

    redis: Redis
    codec: Codec
    option: tuple[str, str, int]
    claimed: Claimed
    task: str
    declared: Task[..., Any] | None

    @property
    def due(self) -> datetime:
        """When the schedule was due."""
        return datetime.fromtimestamp(self.option[2] / 1000, UTC)

    async def decide(
        self,
        when: float | timedelta | datetime | None,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
    ) -> bool:
        """Set the next due time, and its arguments if any are given; see `Context.reschedule`."""
        at_ms = delay_ms = None
        if isinstance(when, datetime):
            if when.tzinfo is None:
                raise ScheduleError("when needs a time zone: datetime(..., tzinfo=...)")
            at_ms = min(int(when.timestamp() * 1000), keys.FAR_OFF_MS)
        elif when is not None:
            delay_s = seconds(when)
            if not 0 <= delay_s * 1000 <= MOST_INTERVAL_MS:
                raise ScheduleError(f"when takes seconds, from 0 to ten years, not {when!r}")
            delay_ms = round(delay_s * 1000)
        call = b""
        if args is not None or kwargs is not None:
            call = self._encode(tuple(args or ()), dict(kwargs or {}))
        queue, name, _ = self.option
        return await decide_next(
            self.redis,
            queue=queue,
            name=name,
            job_id=self.claimed.job_id,
            delay_ms=delay_ms,
            at_ms=at_ms,
            claimed=self.claimed,
            call=call,
        )

    def _encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        if self.declared is not None:
            self.declared.signature.check(self.task, args, kwargs)
        queue, name, _ = self.option
        record = JobRecord(
            task=self.task,
            args=args,
            kwargs=kwargs,
            attempt=None,
            enqueued_ms=0,
            options={"id": call_id(queue, name)},
        )
        return codecs.encode_job(self.codec, record)


def call_id(queue: str, name: str) -> str:
    """Return what the call of a schedule's next run is signed for."""
    return f"schedule-call:{queue}:{name}"


async def decide_next(
    redis: Redis,
    *,
    queue: str,
    name: str,
    job_id: str,
    delay_ms: int | None,
    at_ms: int | None,
    claimed: Claimed | None = None,
    call: bytes = b"",
) -> bool:
    """Set a schedule's next due time for its latest job.

    Args:
        redis: the pool.
        queue: the queue in whose book the schedule is.
        name: the schedule.
        job_id: the job that decides.
        delay_ms: until then, or else `at_ms`.
        at_ms: Unix time in ms; without both the schedule makes no more runs.
        claimed: the claim that the job must still have.
        call: the encoded arguments of the runs to come; b"" leaves them as they are.

    Returns:
        False when the job is not the schedule's latest, or runs elsewhere by now.
    """
    jobs_queue = queue if claimed is None else claimed.queue
    status = await load("schedule_next").call(
        redis,
        keys=[keys.schedules(queue), jobs_queue, keys.held(jobs_queue)],
        args=[
            keys.schedule_book(queue),
            name,
            job_id.encode(errors="surrogateescape"),
            "" if delay_ms is None else delay_ms,
            "" if at_ms is None else at_ms,
            "" if claimed is None else claimed.token,
            0 if claimed is None else claimed.attempt,
            call,
        ],
    )
    return bool(status != -1)


__all__ = ["ScheduledRun", "call_id", "decide_next"]
