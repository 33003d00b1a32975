"""Gather the ends of one worker's jobs, and let the writer log them.

Rows go to the writer some hundred in a unit, when there are so many, and twice a second. A row
stands for a job's last attempt; its key is the job's id and the end of that attempt, so a unit
that is applied twice changes nothing. What becomes known later mends a row, in whatever order the
two arrive: the writer refused what the job had written, or somebody else had the job by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, TypeAlias

from runner.errors import RunnerError, WriterBacklogFull
from runner.execution.records import AGAIN, now_ms
from runner.joblog import rows
from runner.types import Outcome
from runner.writer.answers import Answers
from runner.writer.submit import OURS, SentUnit, Submitter
from runner.writer.units import UnitBuilder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from runner.errors import WriteRejected
    from runner.execution import Attempt, Ending
    from runner.writer.entries import JobHeader, Unit

__all__ = ["Collector"]

logger = logging.getLogger("runner.joblog")

TABLE = "runner.job_log"
KEY = ("job_id", "ended_at")
ROWS_AT_ONCE = 500
TICK_S = 0.5
MOST_WAITING = 20_000
MOST_SENT = 2_000
FULL_TIMEOUT_S = 10.0
PERCENT = 25
"""How much of the room for what waits for the writer the log may fill: workers claim no jobs that
write from half of it on, and the log is to hold nobody up."""
STOP_TIMEOUT_S = 5.0

_NOT_OVER = AGAIN | {Outcome.LOST_LEASE}
_End: TypeAlias = "tuple[Attempt, Ending, int]"


class Collector:
    """The rows of one process: a `Watcher` of a worker, and a listener of the writer.

    Args:
        worker: the worker's name.

    Attributes:
        dropped: rows that found no room, because Redis was away, or too much waited for the writer.
    """

    def __init__(self, worker: str) -> None:
        self.dropped = 0
        self._worker = worker
        self._ended: list[_End] = []
        self._sent: dict[tuple[str, str], int] = {}  # by queue and id: the ends that went last
        self._refused: list[tuple[JobHeader, WriteRejected]] = []
        self._lost: list[tuple[str, int]] = []
        self._full = asyncio.Event()
        self._submitter: Submitter | None = None
        self._answers: Answers | None = None
        self._task: asyncio.Task[None] | None = None

    def ended(self, attempt: Attempt, ending: Ending) -> None:
        """Take up the end of a job."""
        if ending.outcome in _NOT_OVER:
            return
        if len(self._ended) >= MOST_WAITING:
            self._drop(1, "too many jobs end")
            return
        self._ended.append((attempt, ending, attempt.ended_ms or now_ms()))
        if len(self._ended) >= ROWS_AT_ONCE:
            self._full.set()

    def lost(self, queue: str, job_id: str) -> None:
        """Take the end of a job back that somebody else has."""
        for place in range(len(self._ended) - 1, -1, -1):
            if _job(self._ended[place][0]) == (queue, job_id):
                del self._ended[place]
                return
        if ended_ms := self._sent.pop((queue, job_id), 0):
            self._lost.append((job_id, ended_ms))

    def told(
        self, units: Sequence[Unit], refused: Mapping[str, WriteRejected], _began: int
    ) -> None:
        """Take up what the writer in this process refused of jobs that had ended well."""
        for unit in units if refused else ():
            if unit.job is not None and unit.entry in refused:
                self._refused.append((unit.job, refused[unit.entry]))

    async def start(self, redis: Redis) -> None:
        """Begin to hand rows over. Idempotent."""
        if self._task is None:
            self._answers = Answers(redis)
            self._submitter = Submitter(
                redis, self._answers, full_timeout_s=FULL_TIMEOUT_S, percent=PERCENT
            )
            self._task = asyncio.create_task(self._run(), name="runner job log")

    async def stop(self) -> None:
        """Hand over what is there, for a few seconds; then stop. Idempotent."""
        task, self._task = self._task, None
        if task is None or self._submitter is None or self._answers is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._flush()
        await self._submitter.close(timeout_s=STOP_TIMEOUT_S)
        await self._answers.close()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._full.wait()
            self._full.clear()
            try:
                await self._flush()
            except Exception:
                logger.exception("the job log failed; it goes on")

    async def _flush(self) -> None:
        """Hand over all that is there, a page at a time; where there is no room, it waits here."""
        while self._ended or self._refused or self._lost:
            page, self._ended = self._ended[:ROWS_AT_ONCE], self._ended[ROWS_AT_ONCE:]
            refused, self._refused = self._refused, []
            lost, self._lost = self._lost, []
            unit = UnitBuilder()
            self._write(unit, page)
            _write_refused(unit, refused)
            for job_id, ended_ms in lost:
                unit.delete(TABLE, key=_key(job_id, ended_ms))
            self._sent |= {_job(attempt): ended_ms for attempt, _, ended_ms in page}
            while len(self._sent) > MOST_SENT:
                del self._sent[next(iter(self._sent))]
            try:
                await self._send(unit)
            except WriterBacklogFull as exc:
                room = max(MOST_WAITING - len(self._ended), 0)
                if page[room:]:
                    self._drop(len(page[room:]), str(exc))
                self._ended = [*page[:room], *self._ended]
                self._refused = [*refused, *self._refused]
                self._lost = [*lost, *self._lost]
                return

    def _write(self, unit: UnitBuilder, page: Iterable[_End]) -> None:
        for attempt, ending, ended_ms in page:
            try:
                row = self._row(attempt, ending, ended_ms)
            except Exception:
                # A class of the user's may do anything when it is looked at.
                logger.exception("job %s cannot be logged", attempt.ref)
                continue
            # A refusal that came first knows neither of the three.
            unit.upsert(TABLE, row, key=KEY, update=("task", "enqueued_at", "arguments"))

    def _row(self, attempt: Attempt, ending: Ending, ended_ms: int) -> dict[str, Any]:
        claimed, record = attempt.claimed, attempt.record
        is_done = ending.outcome is Outcome.SUCCEEDED
        error_type, error = ("", "") if is_done else rows.error_of(ending.result)
        return {
            **_key(claimed.job_id, ended_ms),
            "task": rows.text(record.task, rows.MOST_NAME),
            "queue": rows.text(claimed.queue, rows.MOST_NAME),
            "outcome": ending.outcome.value,
            "attempt": attempt.number,
            "enqueued_at": rows.moment(record.enqueued_ms),
            "started_at": rows.moment(attempt.started_ms) if attempt.context else None,
            "error_type": error_type,
            "error": error,
            "arguments": rows.arguments(attempt),
            "worker": rows.text(self._worker, rows.MOST_NAME),
        }

    async def _send(self, unit: UnitBuilder) -> None:
        """Let a unit into the stream: from then on it outlives this process.

        Raises:
            WriterBacklogFull: there is no room for it yet.
        """
        if not len(unit) or self._submitter is None:
            return
        sent = SentUnit(
            self._submitter, self._submitter.new_id() + OURS, unit.encode(), waits=False
        )
        sent.future.add_done_callback(_seen)
        try:
            self._submitter.send(sent)
            # Shielded: a unit whose future is cancelled is not sent, and `stop` sends what is left.
            await asyncio.shield(sent.future)
        except WriterBacklogFull:
            raise
        except RunnerError as exc:
            self._drop(len(unit), str(exc))

    def _drop(self, count: int, why: str) -> None:
        if not self.dropped:
            logger.warning("jobs are missing in the job log from now on: %s", why)
        self.dropped += count


def _write_refused(unit: UnitBuilder, refused: Iterable[tuple[JobHeader, WriteRejected]]) -> None:
    for job, why in refused:
        outcome = Outcome.FAILED if job.again_ms < 0 else Outcome.RETRIED
        error_type, error = rows.error_of(why)
        row = {
            **_key(job.job_id, job.finished_ms),
            "queue": rows.text(job.queue, rows.MOST_NAME),
            "outcome": outcome.value,
            "attempt": job.attempt,
            "started_at": rows.moment(job.started_ms),
            "error_type": error_type,
            "error": error,
            "worker": rows.text(job.worker, rows.MOST_NAME),
        }
        unit.upsert(TABLE, row, key=KEY, update=("outcome", "error_type", "error"))


def _seen(future: asyncio.Future[Any]) -> None:
    """Look at what became of a unit, also when nobody waits for it any more."""
    if not future.cancelled():
        future.exception()


def _job(attempt: Attempt) -> tuple[str, str]:
    return attempt.claimed.queue, attempt.claimed.job_id


def _key(job_id: str, ended_ms: int) -> dict[str, Any]:
    return {"job_id": rows.identity(job_id), "ended_at": rows.moment(ended_ms)}
