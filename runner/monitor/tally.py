"""Count how attempts end: little for each, the rest a few times a second.

A drain of jobs that do nothing takes about 15 µs of CPU a job, so what is done for each one is two
appends and a tuple; histograms are made of them by `Counter` in C when they are taken.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from runner import codec
from runner.execution.records import AGAIN
from runner.inspect.history import FinishedJob
from runner.inspect.latency import bucket
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from typing import Any

    from runner.execution import Attempt, Ending

UNKNOWN = "<unknown>"
MOST_ERROR = 500

_NOT_OVER = AGAIN | {Outcome.LOST_LEASE}
_SUCCEEDED = Outcome.SUCCEEDED


class _Cell:
    """Attempts of one queue, task and outcome since the last call."""

    __slots__ = ("count", "ran", "waited")

    def __init__(self) -> None:
        self.count = 0  # those that never ran; the others are counted by their times
        self.waited: list[float] = []  # ms
        self.ran: list[int] = []  # ms


@dataclass(slots=True)
class Counted:
    """Attempts of one queue, task and outcome: how many, and their times by bucket."""

    queue: str
    task: str
    outcome: str
    count: int = 0
    waited: Counter[int] = field(default_factory=Counter)
    ran: Counter[int] = field(default_factory=Counter)
    waited_ms: int = 0
    ran_ms: int = 0

    def add(self, other: Counted) -> None:
        """Add the counts of another."""
        self.count += other.count
        self.waited.update(other.waited)
        self.ran.update(other.ran)
        self.waited_ms += other.waited_ms
        self.ran_ms += other.ran_ms


class Tally:
    """What has ended in one worker: a `Watcher` of its events.

    Args:
        worker: its name.
        tasks: what it can run: names that others made up are counted together.
        most: how many jobs that ended are remembered until they are taken; of more than that
            the first ones.

    Attributes:
        leases_lost: how many leases of its jobs were lost.
    """

    def __init__(self, worker: str, tasks: Container[str], *, most: int) -> None:
        self.worker = worker
        self.leases_lost = 0
        self._tasks = tasks
        self._cells: dict[tuple[str, str, str], _Cell] = {}
        self._queue, self._task = "", ""
        self._waited: Callable[[float], None]
        self._ran: Callable[[int], None]
        self._turn_to("", "")
        self._most = self._room = most
        self._finished: list[tuple[Any, ...]] = []
        self._taken: list[tuple[Any, ...]] = []  # those that were taken last
        self._not_taken: Counter[tuple[str, str, str]] = Counter()  # what counts less, when it can

    def ended(self, attempt: Attempt, ending: Ending) -> None:
        """Count one attempt."""
        if ending.outcome is not _SUCCEEDED:
            self._ended_otherwise(attempt, ending)
            return
        claimed, record, started_ms = attempt.claimed, attempt.record, attempt.started_ms
        if record.task != self._task or claimed.queue != self._queue:
            self._turn_to(claimed.queue, record.task)
        self._waited(started_ms - claimed.run_at_ms)
        self._ran(attempt.ended_ms - started_ms)
        if self._room:
            self._room -= 1
            self._finished.append(
                (
                    claimed.queue,
                    claimed.job_id,
                    record.task,
                    attempt.number,
                    record.enqueued_ms,
                    claimed.run_at_ms,
                    started_ms,
                    attempt.ended_ms,
                )
            )

    def _turn_to(self, queue: str, task: str) -> None:
        """Count successes of this task from now on: the next is most often of the same one."""
        cell = self._cell(queue, task, "succeeded")
        self._queue, self._task = queue, task
        self._waited, self._ran = cell.waited.append, cell.ran.append

    def lost(self, queue: str, job_id: str) -> None:
        """Count an attempt as lost whose end Redis did not take."""
        self.leases_lost += 1
        task = UNKNOWN
        told = (job for job in (*self._finished, *self._taken) if job[:2] == (queue, job_id))
        job = next(told, None)
        if job is not None:
            task = job[2]
            self._not_taken[queue, task, job[8] if job[8:] else "succeeded"] += 1
            if job in self._finished:
                self._finished.remove(job)
        self._cell(queue, task, Outcome.LOST_LEASE.value).count += 1

    def _ended_otherwise(self, attempt: Attempt, ending: Ending) -> None:
        claimed, record, outcome = attempt.claimed, attempt.record, ending.outcome
        task = record.task if record.task in self._tasks else UNKNOWN
        cell = self._cell(claimed.queue, task, outcome.value)
        if attempt.context is None:
            cell.count += 1
        else:
            cell.waited.append(attempt.started_ms - claimed.run_at_ms)
            cell.ran.append(max(attempt.ended_ms - attempt.started_ms, 0))
        self.leases_lost += outcome is Outcome.LOST_LEASE
        if outcome in _NOT_OVER or not self._room:
            return
        self._room -= 1
        self._finished.append(
            (
                claimed.queue,
                claimed.job_id,
                task,
                attempt.number,
                record.enqueued_ms,
                claimed.run_at_ms,
                attempt.started_ms,
                attempt.ended_ms,
                outcome.value,
                _error(ending.result),
            )
        )

    def _cell(self, queue: str, task: str, outcome: str) -> _Cell:
        return self._cells.setdefault((queue, task, outcome), _Cell())

    def take(self) -> tuple[list[Counted], dict[str, list[bytes]]]:
        """Return what was counted, and by queue the jobs that ended, encoded; begin anew."""
        cells, self._cells = self._cells, {}
        self._turn_to("", "")
        del cells["", "", "succeeded"]
        finished = self._taken = self._finished
        self._finished, self._room = [], self._most
        by_queue: dict[str, list[bytes]] = {}
        for job in finished:
            by_queue.setdefault(job[0], []).append(self._encode(*job[1:]))
        counted = [_counted(key, cell) for key, cell in cells.items()]
        for cell in counted:
            # What was counted too soon is taken back, and no count goes below what it was.
            key = (cell.queue, cell.task, cell.outcome)
            less = min(self._not_taken.pop(key, 0), cell.count)
            cell.count -= less
        return counted, by_queue

    def _encode(  # noqa: PLR0917  the order of what `ended` notes
        self,
        job_id: str,
        task: str,
        attempt: int,
        enqueued_ms: int,
        due_ms: float,
        started_ms: int,
        ended_ms: int,
        outcome: str = "succeeded",
        error: str = "",
    ) -> bytes:
        job = FinishedJob(
            job_id=job_id.encode(errors="backslashreplace").decode(),
            task=task,
            outcome=outcome,
            attempt=attempt,
            enqueued_ms=enqueued_ms,
            due_ms=_due(due_ms),
            started_ms=started_ms,
            ended_ms=ended_ms,
            worker=self.worker,
            error=error,
        )
        return msgspec.msgpack.encode(job)


def _counted(key: tuple[str, str, str], cell: _Cell) -> Counted:
    waited, ran = _whole(cell.waited), Counter(cell.ran)
    return Counted(
        *key,
        count=cell.count + len(cell.ran),
        waited=_by_bucket(waited),
        ran=_by_bucket(ran),
        waited_ms=_sum(waited),
        ran_ms=_sum(ran),
    )


def _whole(times: list[float]) -> Counter[int]:
    """Count times by whole milliseconds; a score may be infinite, and a clock may be ahead."""
    try:
        return Counter(map(int, times))
    except (OverflowError, ValueError):
        return Counter(int(ms) if math.isfinite(ms) else 0 for ms in times)


def _by_bucket(times: Counter[int]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for ms, count in times.items():
        counts[bucket(ms)] += count
    return counts


def _sum(times: Counter[int]) -> int:
    return sum(max(ms, 0) * count for ms, count in times.items())


def _due(ms: float) -> int:
    return int(ms) if math.isfinite(ms) else 0


def _error(result: object) -> str:
    if not isinstance(result, BaseException):
        return ""
    text = f"{type(result).__qualname__}: {codec.message_of(result)}"[:MOST_ERROR]
    return text.encode(errors="backslashreplace").decode()
