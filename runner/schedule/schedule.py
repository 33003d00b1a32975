"""Declare schedules: a task, when it is due, and what happens to runs that are late or overlap."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args, overload

from arq.cron import CronJob
from arq.cron import cron as arq_cron
from arq.typing import WEEKDAYS

from runner.errors import ScheduleError, did_you_mean
from runner.schedule.missed import CatchUp
from runner.schedule.triggers import Cron, Every, Perpetual, Trigger, read
from runner.schedule.zones import name_of
from runner.tasks import SyncTask, Task, seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from datetime import timedelta, tzinfo

    from arq.typing import OptionType, WeekdayOptionType, WorkerCoroutine

Overlap: TypeAlias = Literal["allow", "skip", "cancel_older"]

PREFIX = "cron:"
MAX_CAUGHT_UP = 1_000
MAX_NAME_BYTES = 200
MOST_SECONDS = 100 * 366 * 24 * 3600
"""More is no number of seconds that anybody means."""
MOST_JITTER_MS = 30 * 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a task runs, with which arguments, and under which rules. Made by `cron`.

    Attributes:
        name: names the schedule among those of its queue.
        task: the task's name.
        trigger: when it is due.
        args: what the task gets behind its context.
        kwargs: the same, by name.
        jitter_ms: each run starts up to so much later than it is due; how much follows from
            name and due time, so that all workers agree.
        run_at_startup: run it also when a worker starts, once a minute at most.
        catch_up: what is done about missed due times; see `runner.schedule.missed`.
        catch_up_max: how many runs "all" makes at most.
        grace_ms: how late a due time may be without having been missed.
        overlap: what happens when the run before has not ended: "allow" both, "skip" the
            new one, or "cancel_older".
        queue: the queue of its jobs; None: the one in whose book the schedule is.
        expires: seconds after which a run that has not started is given up.
        job_id: one id for all of its jobs, in place of one for each due time.
        id_prefix: what the ids of its jobs begin with; "cron:" and the name by default.
        function: what `task` names, where it is known.
    """

    name: str
    task: str
    trigger: Trigger
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    jitter_ms: int = 0
    run_at_startup: bool = False
    catch_up: CatchUp = "skip"
    catch_up_max: int = 100
    grace_ms: int | None = None
    overlap: Overlap = "allow"
    queue: str | None = None
    expires: float | None = None
    job_id: str | None = None
    id_prefix: str | None = None
    function: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_choice(self.name, "catch_up", self.catch_up, get_args(CatchUp))
        _check_choice(self.name, "overlap", self.overlap, get_args(Overlap))
        if self.jitter_ms > MOST_JITTER_MS:
            raise ScheduleError(f"schedule {self.name!r}: jitter must be 30 days at most")
        if not 1 <= self.catch_up_max <= MAX_CAUGHT_UP:
            raise ScheduleError(
                f"schedule {self.name!r}: catch_up_max must be 1 to {MAX_CAUGHT_UP}, "
                f"not {self.catch_up_max}",
            )
        if self.catch_up == "all" and self.overlap != "allow":
            raise ScheduleError(
                f'schedule {self.name!r}: catch_up="all" makes several runs at once, and '
                f"overlap={self.overlap!r} leaves one of them; take one or the other",
            )
        if isinstance(self.function, Task):
            self.function.signature.check(self.task, self.args, dict(self.kwargs))

    def job_id_at(self, due_ms: int) -> str:
        """Return the id of the job for one due time."""
        if self.job_id is not None:
            return self.job_id
        prefix = PREFIX + self.name if self.id_prefix is None else self.id_prefix
        return f"{prefix}:{due_ms}"

    def start_ms(self, due_ms: int) -> int:
        """Return when the run of one due time starts: some way into the jitter's window."""
        if not self.jitter_ms:
            return due_ms
        digest = hashlib.blake2b(f"{self.name}:{due_ms}".encode(), digest_size=8).digest()
        return due_ms + int.from_bytes(digest) % (self.jitter_ms + 1)

    def fields(self) -> dict[str, Any]:
        """Return the schedule as plain data, without its call: what `of` reads."""
        return {
            "trigger": self.trigger.fields(),
            "jitter": self.jitter_ms,
            "startup": self.run_at_startup,
            "catch_up": self.catch_up,
            "most": self.catch_up_max,
            "grace": self.grace_ms,
            "overlap": self.overlap,
            "queue": self.queue,
            "expires": self.expires,
            "job_id": self.job_id,
            "id_prefix": self.id_prefix,
        }

    @classmethod
    def of(
        cls,
        name: str,
        task: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        fields: Mapping[str, Any],
    ) -> Schedule:
        """Return the schedule of what `fields` returned; raise `ScheduleError`."""
        try:
            _check_kinds(fields)
            return cls(
                name=name,
                task=task,
                trigger=read(list(fields["trigger"])),
                args=args,
                kwargs=kwargs,
                jitter_ms=int(fields["jitter"]),
                run_at_startup=bool(fields["startup"]),
                catch_up=fields["catch_up"],
                catch_up_max=int(fields["most"]),
                grace_ms=fields["grace"],
                overlap=fields["overlap"],
                queue=fields["queue"],
                expires=fields["expires"],
                job_id=fields["job_id"],
                id_prefix=fields["id_prefix"],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as exc:
            raise ScheduleError(f"schedule {name!r} cannot be read: {exc!r}") from exc


@overload
def cron(
    coroutine: Callable[..., Awaitable[Any]] | Task[..., Any] | str,
    when: str | Every | Perpetual,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    name: str | None = None,
    timezone: str | tzinfo | None = None,
    jitter: float | timedelta = 0,
    run_at_startup: bool = False,
    catch_up: CatchUp = "skip",
    catch_up_max: int = 100,
    grace: float | timedelta | None = None,
    overlap: Overlap | None = None,
    queue: str | None = None,
    expires: float | timedelta | None = None,
) -> Schedule: ...


@overload
def cron(
    coroutine: str | WorkerCoroutine | Task[..., Any],
    *,
    name: str | None = None,
    month: OptionType = None,
    day: OptionType = None,
    weekday: WeekdayOptionType = None,
    hour: OptionType = None,
    minute: OptionType = None,
    second: OptionType = 0,
    microsecond: int = 123_456,
    run_at_startup: bool = False,
    unique: bool = True,
    job_id: str | None = None,
    timeout: float | timedelta | None = None,
    keep_result: float | None = 0,
    keep_result_forever: bool | None = False,
    max_tries: int | None = 1,
) -> CronJob: ...


def cron(coroutine: Any, when: Any = None, **options: Any) -> Any:
    """Schedule a task: for `cron_jobs` of the settings, or for `client.schedules.add`.

    Each due time makes one job, with ten workers as with one, through killed workers,
    restarts and clocks that differ: Redis keeps the schedule's next due time, its clock says
    when that has come, and the script that enqueues moves it on.

    Args:
        coroutine: a task, an async function, or a task's name.
        when: an expression of five or six fields (see `Cron` for it and for what happens
            when clocks are changed), `every`, or `perpetual`. Without it this is arq's own
            `cron`, with its keywords.
        options: by keyword, beside arq's, what follows.

            args, kwargs: what the task gets behind its context.
            name: the schedule's name; the task's name by default.
            timezone: of the expression: a name, an offset ("+05:30") or a tzinfo; UTC.
            jitter: seconds; each run starts up to so much later, spread over the window.
            run_at_startup: run also when a worker starts; workers that start within a
                minute share one run.
            catch_up: about due times that passed while no worker ran: "skip" them, "once"
                for all of them, or "all" of the last `catch_up_max`.
            grace: seconds that a due time may be late without counting as missed; by
                default half of the time to the next one, 2 s at least and 60 s at most.
            overlap: when the run before has not ended: "allow", "skip" the new run, or
                "cancel_older", which needs workers with `allow_abort_jobs`. "allow" by
                default, and "skip" for a perpetual task.
            queue: the queue of the jobs, in place of the task's.
            expires: seconds after which a run that has not started is given up.

    Example:
        >>> from runner import cron, every
        >>> cron_jobs = [
        ...     cron(daily_report, "0 1 * * *", timezone="Asia/Ho_Chi_Minh", catch_up="once"),
        ...     cron(collect, "*/10 * * * * *", overlap="skip"),
        ...     cron(poll_sensor, every(0.25), args=("north",), name="sensor-north"),
        ...     cron(clean_up, every(hours=6), jitter=600),
        ...     cron(tidy, hour={3, 15}, minute=30),  # arq's form
        ... ]
        >>> cron_jobs[0].trigger.timezone
        'Asia/Ho_Chi_Minh'

    Raises:
        ScheduleError: an option makes no sense.
    """
    if when is None:
        return _arqs(coroutine, **options)
    return _scheduled(coroutine, when, **options)


def _scheduled(
    target: Any,
    when: Any,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    name: str | None = None,
    timezone: str | tzinfo | None = None,
    jitter: float | timedelta = 0,
    run_at_startup: bool = False,
    catch_up: CatchUp = "skip",
    catch_up_max: int = 100,
    grace: float | timedelta | None = None,
    overlap: Overlap | None = None,
    queue: str | None = None,
    expires: float | timedelta | None = None,
) -> Schedule:
    """Make the schedule that `cron` describes."""
    task, function = _task_of(target)
    if overlap is None:
        overlap = "skip" if isinstance(when, Perpetual) else "allow"
    declared = function.task_options if isinstance(function, Task) else None
    return Schedule(
        name=task if name is None else name,
        task=task,
        trigger=_trigger_of(when, timezone),
        args=tuple(args),
        kwargs=dict(kwargs or {}),
        jitter_ms=_milliseconds(jitter, "jitter"),
        run_at_startup=run_at_startup,
        catch_up=catch_up,
        catch_up_max=catch_up_max,
        grace_ms=None if grace is None else _milliseconds(grace, "grace"),
        overlap=overlap,
        queue=queue or (declared.queue if declared else None),
        expires=_expires(expires) or (declared.expires if declared else None),
        function=function,
    )


def _arqs(coroutine: Any, **options: Any) -> CronJob:
    """Return arq's cron job, also of a task that is no async function, which arq refuses."""
    if not isinstance(coroutine, SyncTask):
        return arq_cron(coroutine, **options)

    async def stands_in(_ctx: Any) -> None:
        """Be what arq looks at."""

    stands_in.__qualname__ = coroutine.__qualname__
    job = arq_cron(cast(Any, stands_in), **options)
    job.coroutine = coroutine
    return job


def _task_of(target: Any) -> tuple[str, Any]:
    if isinstance(target, Task):
        return target.name, target
    if isinstance(target, str) and target:
        return target, None
    if inspect.iscoroutinefunction(target):
        return target.__qualname__, target
    raise ScheduleError(f"cron takes a task, an async function or a task's name, not {target!r}")


def _trigger_of(when: Any, timezone: str | tzinfo | None) -> Trigger:
    if isinstance(when, str):
        where = timezone if isinstance(timezone, str) else name_of(timezone) if timezone else "UTC"
        return Cron(when, where)
    if not isinstance(when, Every | Perpetual):
        raise ScheduleError(
            f"cron takes an expression, every(...) or perpetual(...), not {when!r}",
        )
    if timezone is not None:
        raise ScheduleError("a time zone belongs to an expression, not to an interval")
    return when


def scheduled(job: CronJob, where: tzinfo | None) -> Schedule | None:
    """Return arq's cron job as a schedule, None for one that each worker runs for itself.

    Its fields are those of the wall clock of `where`, None being this machine's zone. As in
    arq, day and weekday must both fit.
    """
    if not job.unique:
        return None
    weekday = job.weekday
    if isinstance(weekday, str):
        weekday = WEEKDAYS.index(weekday.lower())
    days = None if weekday is None else [(day + 1) % 7 for day in _numbers(weekday)]
    parts = (job.second, job.minute, job.hour, job.day, job.month, days)
    expression = " ".join("*" if part is None else _listed(part) for part in parts)
    return Schedule(
        name=job.name,
        task=job.name,
        trigger=Cron(expression, name_of(where), round(job.microsecond / 1000), both_days=True),
        run_at_startup=job.run_at_startup,
        job_id=job.job_id,
        # arq's ids, so that a stock worker beside ours enqueues the same job, not a second one.
        id_prefix=job.name,
    )


def split(
    cron_jobs: Sequence[CronJob | Schedule], where: tzinfo | None, *, keeps: bool
) -> tuple[list[CronJob], list[Schedule]]:
    """Return the cron jobs that stay arq's, and the schedules that are kept in Redis.

    With `keeps` arq's cron jobs are among these, but for those that are not unique: each
    worker runs them for itself.

    Raises:
        ScheduleError: two schedules have one name.
    """
    check_names(cron_jobs)
    stock: list[CronJob] = []
    schedules: dict[str, Schedule] = {}
    for job in cron_jobs:
        if isinstance(job, Schedule):
            schedules[job.name] = job
        elif keeps and (made := scheduled(job, where)) is not None:
            if made.name in schedules:
                # arq lets one function have several cron jobs, all of one name.
                made = replace(made, name=f"{made.name} {made.trigger}")
            schedules[made.name] = made
        else:
            stock.append(job)
    return stock, list(schedules.values())


def functions_of(cron_jobs: Iterable[CronJob | Schedule]) -> list[Any]:
    """Return the tasks and functions that schedules bring with them."""
    found = (job.function for job in cron_jobs if isinstance(job, Schedule))
    return [function for function in found if function is not None]


def check_names(cron_jobs: Iterable[CronJob | Schedule]) -> None:
    """Raise `ScheduleError` when two have one name: each keeps its due time under its own."""
    names: set[str] = set()
    for job in cron_jobs:
        if isinstance(job, Schedule) and job.name in names:
            raise ScheduleError(
                f"two schedules are called {job.name!r}; give one of them a name=...",
            )
        names.add(job.name)


def check_for_worker(schedules: Iterable[Schedule], tasks: Iterable[str], *, aborts: bool) -> None:
    """Raise what keeps a worker from running its schedules.

    Raises:
        ScheduleError: one names a task that the worker does not have, and no queue of other
            workers; or it cancels jobs, and the worker does not abort any.
    """
    names = list(tasks)
    for schedule in schedules:
        if schedule.queue is None and schedule.task not in names:
            hint = did_you_mean(schedule.task, names)
            raise ScheduleError(
                f"schedule {schedule.name!r}: this worker has no task {schedule.task!r}{hint}",
            )
        if schedule.overlap == "cancel_older" and not aborts:
            raise ScheduleError(
                f'schedule {schedule.name!r}: overlap="cancel_older" needs a worker with '
                "allow_abort_jobs = True",
            )


def _numbers(option: Any) -> list[int]:
    return [option] if isinstance(option, int) else [int(value) for value in option]


def _listed(option: Any) -> str:
    return ",".join(str(number) for number in sorted(_numbers(option)))


def _milliseconds(given: float | timedelta, name: str) -> int:
    value: Any = seconds(given)
    if not isinstance(value, int | float) or not 0 <= value <= MOST_SECONDS:
        raise ScheduleError(f"{name} must be a number of seconds, 0 or more, not {given!r}")
    return round(value * 1000)


def _expires(given: float | timedelta | None) -> float | None:
    return None if given is None else _milliseconds(given, "expires") / 1000


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise ScheduleError(
            f"a schedule's name is a text of 1 to {MAX_NAME_BYTES} bytes, not {name!r}"
        )
    if not name.isprintable():
        raise ScheduleError(f"a schedule's name is printable text, not {name!a}")


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("queue", "job_id", "id_prefix"), (str,)),
    **dict.fromkeys(("grace", "expires"), (int, float)),
}


def _check_kinds(fields: Mapping[str, Any]) -> None:
    for option, kinds in _KINDS.items():
        if fields[option] is not None and not isinstance(fields[option], kinds):
            raise TypeError(f"{option} is {fields[option]!r}")


def _check_choice(name: str, option: str, given: Any, choices: tuple[str, ...]) -> None:
    if given not in choices:
        wanted = ", ".join(map(repr, choices))
        raise ScheduleError(f"schedule {name!r}: {option} must be one of {wanted}, not {given!r}")


__all__ = [
    "Overlap",
    "Schedule",
    "check_for_worker",
    "check_names",
    "cron",
    "functions_of",
    "scheduled",
    "split",
]
