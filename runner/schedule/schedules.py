"""Schedules at run time: what ``client.schedules`` offers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.errors import EnqueueError, ScheduleError, ScheduleNotFound, TaskNotFound, did_you_mean
from runner.schedule.book import Book, first_due, run_id
from runner.schedule.records import Offer, ScheduleInfo
from runner.schedule.ticker import conflict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runner.schedule.schedule import Schedule


class Schedules:
    """Add, change, pause, resume, run, remove and list the schedules of one queue.

    Those in the workers' `settings.py` are listed too, and can be paused, resumed and run;
    to change or remove one of them, change the settings.

    Example:
        >>> await client.schedules.add(cron("daily_report", "0 1 * * *", args=("north",)))
        >>> await client.schedules.pause("daily_report")
        >>> [info.name for info in await client.schedules.list() if info.paused]
        ['daily_report']
    """

    def __init__(self, book: Book) -> None:
        self._book = book

    async def add(self, schedule: Schedule, *, tasks: Iterable[str] | None = None) -> ScheduleInfo:
        """Add a schedule; a worker sees it within a second.

        Args:
            schedule: made by `runner.cron`.
            tasks: the tasks there are; by default those of the workers that live, if any.

        Raises:
            ScheduleConflict: there is one of that name.
            TaskNotFound: no worker knows its task.
            EncodeError: an argument cannot travel.
        """
        await self._check_task(schedule, tasks)
        (status,) = await self._book.put("add", [schedule])
        if isinstance(status, str):
            raise conflict(schedule.name, status)
        return await self.get(schedule.name)

    async def change(
        self, schedule: Schedule, *, tasks: Iterable[str] | None = None
    ) -> ScheduleInfo:
        """Put a schedule in the place of the one of that name.

        A schedule that is due as before keeps its next due time; counts and pause stay.

        Example:
            >>> info = await client.schedules.get("daily_report")
            >>> await client.schedules.change(replace(info.schedule, jitter_ms=5_000))

        Raises:
            ScheduleNotFound: there is none of that name.
            ScheduleConflict: it comes from the workers' settings.
            TaskNotFound: no worker knows its task.
            EncodeError: an argument cannot travel.
        """
        await self._check_task(schedule, tasks)
        (status,) = await self._book.put("change", [schedule])
        if isinstance(status, str):
            raise conflict(schedule.name, status)
        if status == -1:
            raise await self._not_found(schedule.name)
        return await self.get(schedule.name)

    async def pause(self, name: str) -> None:
        """Let a schedule make no more runs; raise `ScheduleNotFound`."""
        if not await self._book.pause(name, paused=True):
            raise await self._not_found(name)

    async def resume(self, name: str) -> None:
        """Let a schedule go on; what was due meanwhile is not made up for.

        Raises:
            ScheduleNotFound: there is none of that name.
            ScheduleError: it cannot be read, or is never due again.
        """
        schedule = await self._readable(name)
        due_ms = first_due(schedule, await self._book.now_ms())
        if not await self._book.pause(name, paused=False, due_ms=due_ms):
            raise await self._not_found(name)

    async def run(self, name: str) -> str:
        """Run a schedule's task now, paused or not; its due times stay as they are.

        Returns:
            The job's id; ``client.job(job_id)`` waits for it.

        Raises:
            ScheduleNotFound: there is none of that name.
            ScheduleError: it cannot be read.
            EnqueueError: Redis refused the job.
        """
        schedule = await self._readable(name)
        now_ms = await self._book.now_ms()
        offer = Offer("now", name, schedule, (now_ms,), 0, None, now_ms)
        (status,) = await self._book.offer("", [offer])
        if isinstance(status, str):
            raise EnqueueError(f"Redis refused the run of schedule {name!r}: {status}")
        if status == -1:
            raise await self._not_found(name)
        return run_id(offer, now_ms)

    async def remove(self, name: str) -> None:
        """Remove a schedule; jobs that it has made stay.

        Raises:
            ScheduleNotFound: there is none of that name.
            ScheduleConflict: it comes from the workers' settings.
        """
        (status,) = await self._book.remove("api", [name])
        if isinstance(status, str):
            raise conflict(name, status)
        if status == -1:
            raise await self._not_found(name)

    def of(self, queue: str) -> Schedules:
        """Return the schedules of another queue."""
        return Schedules(self._book.of(queue))

    async def list(self) -> list[ScheduleInfo]:
        """Return all schedules, those that are due next first."""
        return await self._book.infos(await self._book.names())

    async def page(self, *, start: int = 0, limit: int = 100) -> tuple[Sequence[ScheduleInfo], int]:
        """Return some of the schedules, those that are due next first, and how many there are."""
        if limit < 1:
            raise ScheduleError(f"limit is {limit}, but must be 1 or more")
        names = await self._book.names(max(start, 0), max(start, 0) + limit - 1)
        return await self._book.infos(names), await self._book.count()

    async def get(self, name: str) -> ScheduleInfo:
        """Return one schedule and its state; raise `ScheduleNotFound`."""
        found = await self._book.infos([name])
        if not found:
            raise await self._not_found(name)
        return found[0]

    async def _readable(self, name: str) -> Schedule:
        info = await self.get(name)
        if info.schedule is None:
            raise ScheduleError(f"schedule {name!r} cannot be read: {info.error}")
        return info.schedule

    async def _not_found(self, name: str) -> ScheduleNotFound:
        hint = did_you_mean(name, await self._book.names())
        return ScheduleNotFound(f"there is no schedule {name!r}{hint}", name=name)

    async def _check_task(self, schedule: Schedule, tasks: Iterable[str] | None) -> None:
        if schedule.queue is not None:
            return  # other workers may run it
        if tasks is None:
            fleet = await self._book.fleet()
            tasks = fleet.tasks if fleet.complete else ()
        known = set(tasks)
        if known and schedule.task not in known:
            hint = did_you_mean(schedule.task, known)
            raise TaskNotFound(f"no worker has a task {schedule.task!r}{hint}")
