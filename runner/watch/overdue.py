"""Find jobs that run far beyond the usual time of their task."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING

from runner.events import JobEnded
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from runner.events import Event
    from runner.execution import Attempt

KEPT = 100
"""How many durations of a task are remembered."""
ENOUGH = 20
"""How many of them it takes to know what is usual."""
LEAST_S = 1.0
"""What is shorter is never called long."""
_USUAL = 0.95
MOST_GAP_S = 1.0
"""How long a look may be after the last for all of the time between to count."""


class Overdue:
    """Remembers how long jobs take, and names those that take `factor` times as long.

    Usual is what 95 of the last 100 successful runs of the task did not exceed in this process;
    before twenty of them, nothing is.

    Args:
        running: returns the attempts that run now.
    """

    def __init__(self, factor: float, running: Callable[[], Iterable[Attempt]]) -> None:
        self._factor = factor
        self._running = running
        self._durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._running_s: dict[str, float] = {}  # by token and job id
        self._named: set[str] = set()
        self._looked_at = time.monotonic()

    def hear(self, event: Event) -> None:
        """Note how long a job took; a subscriber of the worker's events."""
        if isinstance(event, JobEnded) and event.outcome is Outcome.SUCCEEDED:
            self._durations[event.task].append((event.ended_ms - event.started_ms) / 1000)

    def look(self) -> Iterator[tuple[Attempt, float, float]]:
        """Yield what runs too long, once each: the attempt, its seconds, and the usual ones."""
        now = time.monotonic()
        # In a longer gap the process was stopped. The clocks of the wall may be set meanwhile.
        gap_s, self._looked_at = min(now - self._looked_at, MOST_GAP_S), now
        running = {
            attempt.claimed.token + attempt.claimed.job_id: attempt for attempt in self._running()
        }
        before, self._running_s = self._running_s, {}
        self._named &= running.keys()
        for key, attempt in running.items():
            running_s = self._running_s[key] = before.get(key, 0.0) + gap_s
            if key in self._named or running_s < LEAST_S:
                continue
            usual_s = self.usual(attempt.record.task)
            if usual_s is not None and running_s > max(usual_s * self._factor, LEAST_S):
                self._named.add(key)
                yield attempt, running_s, usual_s

    def usual(self, task: str) -> float | None:
        """Return the usual seconds of a task, None when they are not known yet."""
        durations = self._durations.get(task)
        if durations is None or len(durations) < ENOUGH:
            return None
        return sorted(durations)[int(len(durations) * _USUAL)]
