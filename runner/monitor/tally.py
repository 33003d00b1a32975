"""Count how attempts end: little for each, the rest twice a second.

A drain of jobs that do nothing takes some 15 µs of CPU a job. So for each success six values are
appended to a list, and a few hundred successes are counted at once: their times are sorted, which
C does, and as they lie in few buckets, few bounds are looked for among them. The values stand
flat, because a tuple for each would let the garbage collector run more often; and not more of them,
because what is kept for longer than the processor's caches hold it costs more than the counting.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, field
from operator import sub
from typing import TYPE_CHECKING

from runner.execution.records import AGAIN
from runner.inspect.finished import error_of, packed
from runner.inspect.latency import BOUNDS_MS, bucket
from runner.types import UNKNOWN, Outcome

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from typing import Any, TypeAlias

    from runner.execution import Attempt, Ending

    Key: TypeAlias = tuple[str, str, str]
    Row: TypeAlias = tuple[Any, ...]

FOLDED = 250
"""How many successes of a task are counted at once: these, and so many before, may be listed."""

NOT_OVER = frozenset(outcome.value for outcome in AGAIN | {Outcome.LOST_LEASE})
"""Ends that no job is listed for: it runs elsewhere, or will again."""
_SUCCEEDED = Outcome.SUCCEEDED
_WIDTH, _JOB, _DUE, _STARTED, _ENDED = 6, 0, 3, 4, 5
"""The values of an attempt: id, number, when it was enqueued, due, started and ended."""


class _Cell:
    """Attempts of one queue, task and outcome since the last call.

    Attributes:
        values: those that ran and are not counted yet, flat.
        errors: of each of them its error, unless they have succeeded.
        before: those that were counted last, as they may be listed.
        unstarted: those whose function was never called, with their errors.
        count: how many are counted.
        waited: of these, how many waited for so long, by bucket.
        ran: of these, how many ran for so long, by bucket.
        waited_ms: how long they waited, all together.
        ran_ms: how long they ran.
    """

    __slots__ = (
        *("values", "errors", "before", "unstarted", "count"),
        *("waited", "ran", "waited_ms", "ran_ms"),
    )

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.errors: list[str] = []
        self.before: list[Any] = []
        self.unstarted: list[Row] = []
        self.count = 0
        self.waited: Counter[int] = Counter()
        self.ran: Counter[int] = Counter()
        self.waited_ms = self.ran_ms = 0.0

    def fold(self) -> None:
        """Count what is not counted yet."""
        values = self.before = self.values
        self.values = []
        due, started = values[_DUE::_WIDTH], values[_STARTED::_WIDTH]
        self.count += len(due)
        self.waited_ms += _spread(list(map(sub, started, due)), self.waited)
        self.ran_ms += _spread(list(map(sub, values[_ENDED::_WIDTH], started)), self.ran)

    def rows(self) -> Iterator[Row]:
        """Give those that may be listed, in order."""
        for values in (self.before, self.values):
            for at in range(0, len(values), _WIDTH):
                error = self.errors[at // _WIDTH : at // _WIDTH + 1]
                yield (*values[at : at + _WIDTH], *error)
        yield from self.unstarted

    def drop(self, job_id: str) -> bool | None:
        """Forget an attempt; return whether it was counted, None where it is not there."""
        for values in (self.values, self.before):
            ids = values[::_WIDTH]
            if job_id in ids:
                at = ids.index(job_id)
                del values[at * _WIDTH : (at + 1) * _WIDTH]
                del self.errors[at : at + 1]
                return values is self.before
        kept = [row for row in self.unstarted if row[_JOB] != job_id]
        is_there = len(kept) < len(self.unstarted)
        self.unstarted = kept
        return False if is_there else None


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
        most: how many jobs of each queue are listed, the last ones.

    Attributes:
        leases_lost: how many leases of its jobs were lost.
    """

    def __init__(self, worker: str, tasks: Container[str], *, most: int) -> None:
        self.worker = worker
        self.leases_lost = 0
        self._tasks = tasks
        self._most = most
        self._cells: dict[Key, _Cell] = {}
        self._taken: dict[Key, _Cell] = {}  # those that were taken last
        self._not_taken: Counter[Key] = Counter()  # what counts less, when it can
        self._queue, self._task = "", ""
        self._values: list[Any] = []  # of the cell that the last success was in

    def ended(self, attempt: Attempt, ending: Ending) -> None:
        """Count one attempt."""
        if ending.outcome is not _SUCCEEDED:
            self._ended_otherwise(attempt, ending)
            return
        claimed, record = attempt.claimed, attempt.record
        if record.task != self._task or claimed.queue != self._queue:
            self._turn_to(claimed.queue, record.task)
        values = self._values
        values += (
            claimed.job_id,
            attempt.number,
            record.enqueued_ms,
            claimed.run_at_ms,
            attempt.started_ms,
            attempt.ended_ms,
        )
        if len(values) == FOLDED * _WIDTH:
            cell = self._cell((self._queue, self._task, _SUCCEEDED.value))
            cell.fold()
            self._values = cell.values

    def _turn_to(self, queue: str, task: str) -> None:
        """Count successes of this task from now on: the next is most often of the same one."""
        self._queue, self._task = queue, task
        self._values = self._cell((queue, task, _SUCCEEDED.value)).values

    def _ended_otherwise(self, attempt: Attempt, ending: Ending) -> None:
        claimed, record, outcome = attempt.claimed, attempt.record, ending.outcome
        task = record.task if record.task in self._tasks else UNKNOWN
        cell = self._cell((claimed.queue, task, outcome.value))
        error = "" if outcome.value in NOT_OVER else error_of(ending.result)
        values = (
            claimed.job_id,
            attempt.number,
            record.enqueued_ms,
            claimed.run_at_ms,
            attempt.started_ms,
            attempt.ended_ms,
        )
        if attempt.context is None:
            cell.unstarted.append((*values, error))
        else:
            cell.values += values
            cell.errors.append(error)
        self.leases_lost += outcome is Outcome.LOST_LEASE

    def _cell(self, key: Key) -> _Cell:
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = _Cell()
        return cell

    def lost(self, queue: str, job_id: str) -> None:
        """Count an attempt as lost whose end Redis did not take."""
        self.leases_lost += 1
        task = UNKNOWN
        for cells in (self._cells, self._taken):
            for key, cell in cells.items():
                if key[0] != queue or key[2] in NOT_OVER:
                    continue
                was_counted = cell.drop(job_id)
                if was_counted is None:
                    continue
                task = key[1]
                if was_counted or cells is self._taken:
                    self._not_taken[key] += 1
                break
            if task != UNKNOWN:
                break
        self._cell((queue, task, Outcome.LOST_LEASE.value)).unstarted.append((job_id,))

    def take(self) -> tuple[list[Counted], dict[str, tuple[int, bytes]]]:
        """Return what was counted, and begin anew.

        Returns:
            The counts; and of each queue how many jobs are listed, and these, packed.
        """
        cells, self._cells = self._cells, {}
        self._queue = self._task = ""
        self._taken = cells
        listed: dict[str, list[Row]] = {}
        counted = []
        for key, cell in cells.items():
            if key[2] not in NOT_OVER:
                rows = cell.rows()
                listed.setdefault(key[0], []).extend((key[1], key[2], *row) for row in rows)
            if made := self._counted(key, cell):
                counted.append(made)
        by_queue = {}
        for queue, jobs in listed.items():
            jobs.sort(key=_end_of)
            last = jobs[-self._most :]
            by_queue[queue] = (len(last), packed(self.worker, last))
        return counted, by_queue

    def _counted(self, key: Key, cell: _Cell) -> Counted | None:
        before = cell.before
        cell.fold()
        cell.values, cell.before = cell.before, before  # as `lost` looks for them
        counted = Counted(
            *key,
            count=cell.count + len(cell.unstarted),
            waited=cell.waited,
            ran=cell.ran,
            waited_ms=int(cell.waited_ms),
            ran_ms=int(cell.ran_ms),
        )
        # What was counted too soon is taken back, and no count goes below what it was.
        counted.count -= min(self._not_taken.pop(key, 0), counted.count)
        return counted if counted.count or counted.ran else None


def _end_of(row: Row) -> int:
    end: int = row[2 + _ENDED]
    return end


def _spread(times: list[float], counts: Counter[int]) -> float:
    """Add times in ms to the counts of their buckets; return their sum. Sorts them."""
    total = sum(times)
    if not math.isfinite(total):  # a score may be infinite
        times = [ms if math.isfinite(ms) else 0 for ms in times]
        total = sum(times)
    times.sort()
    at = 0
    while at < len(times):
        index = bucket(times[at])
        is_last = index == len(BOUNDS_MS)
        end = len(times) if is_last else bisect_right(times, BOUNDS_MS[index], at)
        counts[index] += end - at
        at = end
    # Clocks differ: what seems to have begun before it was due has not waited.
    return total - sum(times[: bisect_left(times, 0)])
