"""What a middleware is, and how several become one call.

The layers are put together once, when the client or the worker is made; a method that a middleware
does not override is no layer at all. Without layers there is nothing to call.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from runner.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runner.bus import Bus
    from runner.job import Job
    from runner.tasks import EnqueueOptions, Task
    from runner.writer.batch import Refusals
    from runner.writer.entries import Unit

CARRIED = "carried"
"""Under which name of the payload's options travels what middleware sends along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueCall:
    """A job that is about to be enqueued; `dataclasses.replace` makes another of it.

    Attributes:
        task: the task's name.
        declared: the task itself, None when only its name was given.
        options: what the call asks for; of a call by arq's ``enqueue_job`` the key and the queue,
            and to change them changes nothing.
        carried: what travels with the job for the middleware of the worker: put plain data in.
    """

    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: EnqueueOptions
    declared: Task[..., Any] | None = None
    carried: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCall:
    """A job whose function is about to be called; `dataclasses.replace` makes another of it.

    Attributes:
        ctx: what the function gets as its first argument.
        attempt: the number of this try, counted from 1.
        enqueued_ms: when it was enqueued, a Unix time.
        due_ms: when it was to run.
        started_ms: when this worker had it.
        carried: what the middleware of the client has sent along.
    """

    ctx: Any
    job_id: str
    queue: str
    task: str
    attempt: int
    enqueued_ms: int
    due_ms: float
    started_ms: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    carried: Mapping[str, Any]
    function: Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowCall:
    """A flow, or a batch, that is about to be started.

    Attributes:
        name: what it is called.
        flow_id: its id, None for one by chance.
    """

    name: str
    flow_id: str | None


Enqueue: TypeAlias = "Callable[[EnqueueCall], Awaitable[Job[Any] | None]]"
Execute: TypeAlias = Callable[[JobCall], Awaitable[Any]]
StartFlow: TypeAlias = Callable[[FlowCall], Awaitable[str]]


class Middleware:
    """Stands around the enqueueing of jobs, or their running, or both: override what you need.

    Give it to ``runner.connect(middleware=[...])`` for what a service enqueues, and to
    ``WorkerSettings.middleware`` for what a worker runs, and what its jobs enqueue. The first of
    a list is the outermost.

    Example:
        >>> class Quota(Middleware):
        ...     async def enqueue(self, call, proceed):
        ...         await spend(call.task)              # raise, and nothing is enqueued
        ...         return await proceed(call)
        ...
        ...     async def execute(self, job, proceed):
        ...         async with connection() as db:      # around the function
        ...             return await proceed(job)
    """

    async def enqueue(self, call: EnqueueCall, proceed: Enqueue) -> Job[Any] | None:
        """Stand around one call of `enqueue`, `enqueue_job` or of `enqueue_many`.

        The job comes back when it is queued. What `enqueue_many` is given travels together: its
        calls wait for each other in `proceed`.
        """
        return await proceed(call)

    def carry(self, task: str, carried: dict[str, Any]) -> None:
        """Add to what travels with a job: plain data, for `JobCall.carried`.

        Called for each job that is enqueued, and for each node of a flow, which does not come
        through `enqueue`; in the context of who enqueues it.

        Args:
            task: the name of the task.
            carried: what other middleware has added.
        """

    async def execute(self, job: JobCall, proceed: Execute) -> Any:
        """Stand around one call of a job's function: within its time limit, behind its arguments.

        Around a function that runs in a thread or a process it stands in the event loop: it begins
        before one is free, and the time limit holds for the function alone. `job.ctx` is the
        function's own in a thread, and in a process another.

        What the function raises comes through here: also `Retry`, `Snooze` and `Cancel`, which are
        no failures, and `asyncio.CancelledError`, which must be let through.
        """
        return await proceed(job)

    async def start(self, call: FlowCall, proceed: StartFlow) -> str:
        """Stand around the start of a flow, a chain, a group, a chord or a batch; return its id."""
        return await proceed(call)

    def traceparent(self) -> str:
        """Return what ties a unit that a service submits to its trace, as W3C writes it, or "".

        Called for each call of `runner.database(middleware=[...])` that writes, in the context of
        its caller; it travels with the unit, for `committed`.
        """
        return ""

    def join(self, worker: str, events: Bus) -> None:
        """Hear, once and before it connects, in which worker this stands, to watch its events."""

    def committed(self, units: Sequence[Unit], refused: Refusals, began_ns: int) -> None:
        """Hear, in the process of the elected writer, what was committed. Be quick.

        Called behind each batch, also for units of other workers: those of `refused` were not
        applied. What this raises is logged.
        """


def around_enqueue(middleware: Iterable[Middleware], last: Enqueue) -> Enqueue | None:
    """Put the layers around enqueueing together, around `last`; None when there are none."""
    layers = [one.enqueue for one in middleware if _overrides(one, "enqueue")]
    return _composed(layers, last) if layers else None


def carriers(middleware: Iterable[Middleware]) -> tuple[Callable[[str, dict[str, Any]], None], ...]:
    """Return what adds to what travels with each job."""
    return tuple(one.carry for one in middleware if _overrides(one, "carry"))


def around_execute(middleware: Iterable[Middleware]) -> Execute | None:
    """Put the layers around running together; None when there are none."""
    layers = [one.execute for one in middleware if _overrides(one, "execute")]
    return _composed(layers, _call) if layers else None


def around_start(middleware: Iterable[Middleware], last: StartFlow) -> StartFlow | None:
    """Put the layers around the start of flows together; None when there are none."""
    layers = [one.start for one in middleware if _overrides(one, "start")]
    return _composed(layers, last) if layers else None


def all_of(middleware: Iterable[Middleware], method: str) -> tuple[Any, ...]:
    """Return this method of all that override it."""
    return tuple(getattr(one, method) for one in middleware if _overrides(one, method))


def check(middleware: Sequence[Middleware]) -> tuple[Middleware, ...]:
    """Return the middleware; raise `SettingsError` for what is none."""
    for one in middleware:
        if not isinstance(one, Middleware):
            raise SettingsError(
                f"middleware takes objects of a subclass of runner.Middleware, not {one!r}"
            )
    return tuple(middleware)


def _composed(layers: Sequence[Callable[..., Any]], last: Callable[..., Any]) -> Any:
    for layer in reversed(layers):
        last = functools.partial(layer, proceed=last)
    return last


def _overrides(one: Middleware, method: str) -> bool:
    return getattr(type(one), method) is not getattr(Middleware, method)


def _call(job: JobCall) -> Awaitable[Any]:
    return job.function(job.ctx, *job.args, **job.kwargs)
