"""Count how attempts end: little for each, the rest twice a second.

A drain of jobs that do nothing takes some 15 µs of CPU a job. So for each success one tuple is made
and appended; times are counted by `Counter` in C, a few hundred at once. Not more: what is kept for
longer than the processor's caches hold it costs more than the counting.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runner import codec
from runner.execution.records import AGAIN
from runner.inspect.finished import packed
from runner.inspect.latency import bucket
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from typing import Any, TypeAlias

    from runner.execution import Attempt, Ending

    Key: TypeAlias = tuple[str, str, str]
    Row: TypeAlias = tuple[Any, ...]

UNKNOWN = "<unknown>"
MOST_ERROR = 500
FOLDED = 250
"""How many successes of a task are counted at once: these, and so many before, may be listed."""

NOT_OVER = frozenset(outcome.value for outcome in AGAIN | {Outcome.LOST_LEASE})
"""Ends that no job is listed for: it runs elsewhere, or will again."""
_SUCCEEDED = Outcome.SUCCEEDED
_JOB, _DUE, _STARTED, _ENDED, _ERROR = 0, 3, 4, 5, 6
"""Of a row: id, attempt, when enqueued, due, started and ended, and of a failure its error."""


class _Cell:
    """Attempts of one queue, task and outcome since the last call.

    Attributes:
        rows: those that ran and are not counted yet.
        before: those that were counted last, as they may be listed.
        unstarted: those whose function was never called.
        count: how many are counted.
        waited: of these, how many waited for so many ms.
        ran: of these, how many ran for so many ms.
    """

    __slots__ = ("before", "count", "ran", "rows", "unstarted", "waited")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.before: list[Row] = []
        self.unstarted: list[Row] = []
        self.count = 0
        self.waited: Counter[int] = Counter()
        self.ran: Counter[int] = Counter()

    def fold(self) -> None:
        """Count the rows."""
        rows, self.rows = self.rows, []
        self.count += len(rows)
        try:
            # Whole ones, as there are few of them: scores have fractions.
            self.waited.update([int(row[_STARTED] - row[_DUE]) for row in rows])
        except (OverflowError, ValueError):  # a score may be infinite
            self.waited.update(_whole(row[_STARTED] - row[_DUE]) for row in rows)
        self.ran.update([row[_ENDED] - row[_STARTED] for row in rows])
        self.before = rows


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
        self._rows: list[Row] = []  # of the cell that the last success was in

    def ended(self, attempt: Attempt, ending: Ending) -> None:
        """Count one attempt."""
        if ending.outcome is not _SUCCEEDED:
            self._ended_otherwise(attempt, ending)
            return
        claimed, record = attempt.claimed, attempt.record
        if record.task != self._task or claimed.queue != self._queue:
            self._turn_to(claimed.queue, record.task)
        rows = self._rows
        rows.append(
            (
                claimed.job_id,
                attempt.number,
                record.enqueued_ms,
                claimed.run_at_ms,
                attempt.started_ms,
                attempt.ended_ms,
            )
        )
        if len(rows) == FOLDED:
            cell = self._cell((self._queue, self._task, _SUCCEEDED.value))
            cell.fold()
            self._rows = cell.rows

    def _turn_to(self, queue: str, task: str) -> None:
        """Count successes of this task from now on: the next is most often of the same one."""
        self._queue, self._task = queue, task
        self._rows = self._cell((queue, task, _SUCCEEDED.value)).rows

    def _ended_otherwise(self, attempt: Attempt, ending: Ending) -> None:
        claimed, record, outcome = attempt.claimed, attempt.record, ending.outcome
        task = record.task if record.task in self._tasks else UNKNOWN
        cell = self._cell((claimed.queue, task, outcome.value))
        row = (
            claimed.job_id,
            attempt.number,
            record.enqueued_ms,
            claimed.run_at_ms,
            attempt.started_ms,
            attempt.ended_ms,
            "" if outcome.value in NOT_OVER else _error(ending.result),
        )
        (cell.unstarted if attempt.context is None else cell.rows).append(row)
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
            found = _find(cells, queue, job_id)
            if found is None:
                continue
            key, rows, row = found
            task = key[1]
            rows.remove(row)
            if cells is self._taken or rows is cells[key].before:
                self._not_taken[key] += 1
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
                listed.setdefault(key[0], []).extend(_listed(key, cell))
            if made := self._counted(key, cell):
                counted.append(made)
        by_queue = {}
        for queue, rows in listed.items():
            rows.sort(key=_end_of)
            last = rows[-self._most :]
            by_queue[queue] = (len(last), packed(self.worker, last))
        return counted, by_queue

    def _counted(self, key: Key, cell: _Cell) -> Counted | None:
        taken = cell.rows, cell.before
        cell.fold()
        cell.rows, cell.before = taken  # as `lost` looks for them
        counted = Counted(
            *key,
            count=cell.count + len(cell.unstarted),
            waited=_by_bucket(cell.waited),
            ran=_by_bucket(cell.ran),
            waited_ms=_sum(cell.waited),
            ran_ms=_sum(cell.ran),
        )
        # What was counted too soon is taken back, and no count goes below what it was.
        counted.count -= min(self._not_taken.pop(key, 0), counted.count)
        return counted if counted.count or counted.ran else None


def _find(cells: dict[Key, _Cell], queue: str, job_id: str) -> tuple[Key, list[Row], Row] | None:
    for key, cell in cells.items():
        if key[0] != queue or key[2] in NOT_OVER:
            continue
        for rows in (cell.rows, cell.before, cell.unstarted):
            for row in rows:
                if row[_JOB] == job_id:
                    return key, rows, row
    return None


def _listed(key: Key, cell: _Cell) -> Iterable[Row]:
    """Return what is written down of the last jobs of a cell."""
    _, task, outcome = key
    for rows in (cell.before, cell.rows, cell.unstarted):
        for row in rows:
            yield (task, outcome, *row)


def _end_of(row: Row) -> int:
    end: int = row[2 + _ENDED]
    return end


def _whole(ms: float) -> int:
    return int(ms) if math.isfinite(ms) else 0


def _by_bucket(times: Counter[int]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for ms, count in times.items():
        counts[bucket(ms)] += count
    return counts


def _sum(times: Counter[int]) -> int:
    return sum(max(ms, 0) * count for ms, count in times.items())


def _error(result: object) -> str:
    if not isinstance(result, BaseException):
        return ""
    return f"{type(result).__qualname__}: {codec.message_of(result)}"[:MOST_ERROR]
