"""How many jobs run at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from runner.errors import LimitError
from runner.limits.texts import checked_name


@dataclass(frozen=True, slots=True)
class Running:
    """At most `count` jobs at once, from their admission to their settlement.

    A job that may not run is parked: its id stays in its queue's set with a score that never
    comes, and the settlement that frees a slot gives it to the first in order. Nobody polls. A slot
    belongs to a job, not to a worker: a job that is claimed again because its worker was killed has
    it still. It is a counting semaphore with a queue (Dijkstra, 1965).

    Its weakness: while a killed worker's job waits for the rest of its lease, its slot is not used;
    and a job under several limits may wait long when each of them is full of others' jobs.
    """

    count: int
    kind: ClassVar[Literal["running"]] = "running"
    period_us: ClassVar[int] = 0
    burst: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise LimitError(
                f"max_running must be a whole number, 1 or more, not {self.count!r}; to let "
                f"nothing run, pause the task",
            )

    def __str__(self) -> str:
        return f"{self.count} at once"


@dataclass(frozen=True, slots=True)
class RunningLimit:
    """A limit on jobs at once that several tasks may share.

    Args:
        name: tasks with limits of one name share them, in all workers.
        max_running: how many jobs may run at once.
        key: the parameter of the tasks whose every value has slots of its own; None: one for all.

    Example:
        >>> database = RunningLimit("reports-database", 5)
        >>> @task(limits=[database])
        ... async def monthly_report(ctx: Context, month: str) -> None: ...
    """

    name: str
    max_running: int
    key: str | None = None

    def __post_init__(self) -> None:
        checked_name(self.name)
        Running(self.max_running)

    @property
    def rule(self) -> Running:
        """The rule."""
        return Running(self.max_running)
