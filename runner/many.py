"""Tasks that take many jobs at once: one call gets a list, each job keeps its own outcome.

Each job runs as any other, in an attempt of its own with its own lease, tries and time limit. What
it calls is not the function: it hands its item in, and waits for its result. The function is called
when so many items are there, or the first has waited long enough.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from runner import logs
from runner.arguments import Signature, hints_of
from runner.dependencies import call as call_with
from runner.errors import SettingsError, TaskError
from runner.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Coroutine

    from runner.tasks import TaskOptions

R = TypeVar("R")

DEFAULT_WAIT_S = 0.2


class ManyContext(dict[Any, Any]):
    """What a function gets that takes many jobs: arq's dict of the worker, and each job's context.

    Attributes:
        jobs: the context of each job, in the order of the items; writes go through theirs.

    Example:
        >>> @task(batch=500, batch_wait=0.2)
        ... async def store(ctx: ManyContext, rows: list[Row]) -> list[int]:
        ...     for job, row in zip(ctx.jobs, rows):
        ...         job.db.insert("rows", **row)
    """

    __slots__ = ("jobs",)

    def __init__(self, jobs: list[Any]) -> None:
        super().__init__({k: v for k, v in jobs[0].items() if k not in _OF_ONE_JOB})
        self.jobs = jobs

    @property
    def client(self) -> Any:
        """The worker's client, to enqueue more jobs."""
        return self["redis"]


_OF_ONE_JOB = frozenset({"job_id", "job_try", "enqueue_time", "score", "outcome"})


@dataclass(slots=True)
class _Gathering:
    """The items of one worker that wait for the next call."""

    task: ManyTask[Any]
    items: list[Any] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)
    futures: list[asyncio.Future[Any]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    calls: set[asyncio.Task[None]] = field(default_factory=set)

    async def join(self, context: Any, item: Any) -> Any:
        """Hand an item in, and return its result when the call is over."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self.items.append(item)
        self.contexts.append(context)
        self.futures.append(future)
        if len(self.items) >= self.task.most:
            self._call()
        elif self.timer is None:
            self.timer = loop.call_later(self.task.wait_s, self._call)
        return await future

    def _call(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        waiting = [
            (item, context, future)
            for item, context, future in zip(self.items, self.contexts, self.futures, strict=True)
            if not future.done()  # its job was aborted meanwhile, or its time is up
        ]
        self.items, self.contexts, self.futures = [], [], []
        if not waiting:
            return
        items, contexts, futures = (list(part) for part in zip(*waiting, strict=True))
        call = asyncio.get_running_loop().create_task(
            self._run(items, contexts, futures), name=f"runner {self.task.name} of {len(items)}"
        )
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)
        left = len(futures)

        def ended(_: asyncio.Future[Any]) -> None:
            nonlocal left
            left -= 1
            if not left:
                call.cancel()  # nobody waits for it any more; it does nothing to one that is over

        for future in futures:
            future.add_done_callback(ended)

    async def _run(
        self, items: list[Any], contexts: list[Any], futures: list[asyncio.Future[Any]]
    ) -> None:
        # This runs in a context of one of them; what is logged here they say together.
        logs.bind_all([(job["job_id"], job["job_try"]) for job in contexts])
        results: list[Any]
        try:
            returned = await self.task.call_function(ManyContext(contexts), items)
            results = self.task.results_of(returned, len(items))
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        except BaseException as exc:  # noqa: BLE001  it belongs to the jobs, each of which has it
            for future in futures:
                _fail(future, exc)
            return
        for future, result in zip(futures, results, strict=True):
            if isinstance(result, Exception):
                _fail(future, result)
            elif not future.done():
                future.set_result(result)


def _fail(future: asyncio.Future[Any], exc: BaseException) -> None:
    """Give a job its exception, where it still waits for one."""
    if future.done():
        return
    if isinstance(exc, StopIteration):  # no future takes it
        exc = RuntimeError(f"it raised {exc!r}")
    future.set_exception(exc)


class ManyTask(Task[[Any], R]):
    """A task whose jobs each bring one item, and whose function takes a list of them.

    Args:
        function: takes a `ManyContext` and a list, and returns a list as long, with exceptions
            for the jobs that failed, or None.
        options: those of its jobs.
        most: how many items one call gets at most.
        wait_s: how long the first item waits for others.
    """

    def __init__(
        self,
        function: Callable[..., Awaitable[Any]],
        options: TaskOptions,
        *,
        most: int,
        wait_s: float,
    ) -> None:
        super().__init__(function, options)
        self.most = most
        self.wait_s = wait_s
        self.signature = Signature(_of_one(function, options.name, self.dependencies))
        self._gatherings: weakref.WeakKeyDictionary[Any, dict[int, _Gathering]] = (
            weakref.WeakKeyDictionary()
        )

    def __call__(self, ctx: Any, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, R]:
        """Hand one item in, and wait for the result of its job."""
        (item,) = (*args, *kwargs.values())
        # Each worker of a process, and each loop, gathers by itself.
        by_worker = self._gatherings.setdefault(asyncio.get_running_loop(), {})
        gathering = by_worker.setdefault(id(ctx.get("redis")), _Gathering(self))
        return gathering.join(ctx, item)

    def call_function(self, ctx: ManyContext, items: list[Any]) -> Awaitable[Any]:
        """Call the function itself, with what it wants provided."""
        if self.dependencies:
            return call_with(self.function, self.dependencies, ctx, (items,), {})
        returned: Awaitable[Any] = self.function(ctx, items)
        return returned

    def results_of(self, returned: Any, count: int) -> list[Any]:
        """Return a result for each item; raise `TaskError` when there are more or fewer."""
        if returned is None:
            return [None] * count
        if not isinstance(returned, list | tuple) or len(returned) != count:
            what = len(returned) if isinstance(returned, list | tuple) else repr(returned)
            raise TaskError(
                f"{self.name} got {count} items and returned {what}: return a list as long, in "
                "order, with exceptions for the jobs that failed, or None"
            )
        return list(returned)


def many_task(
    function: Callable[..., Awaitable[Any]],
    options: TaskOptions,
    *,
    most: int | None,
    wait_s: float | None,
) -> ManyTask[Any]:
    """Return a task that takes many jobs; raise `SettingsError` when it cannot be one."""
    if most is None:
        raise SettingsError(f"task {options.name!r}: batch_wait needs batch")
    if not inspect.iscoroutinefunction(function):
        raise SettingsError(f"task {options.name!r}: with batch= it must be an async function")
    return ManyTask(
        function, options, most=most, wait_s=DEFAULT_WAIT_S if wait_s is None else wait_s
    )


def _of_one(
    function: Callable[..., Any], name: str, provided: Container[str]
) -> Callable[..., Any]:
    """Return a function with the signature that each job of it has."""
    found = inspect.signature(function).parameters.values()
    parameters = [parameter for parameter in found if parameter.name not in provided]
    if len(parameters) != 2:  # noqa: PLR2004  the context and the list
        raise SettingsError(
            f"task {name!r}: with batch= the function takes the context and a list, and nothing "
            "more but what is provided"
        )
    hints = hints_of(function)

    @functools.wraps(function)
    async def one(ctx: Any, item: Any) -> Any:
        raise NotImplementedError

    del one.__wrapped__  # its signature is another
    context, items = parameters
    declared: Any = one
    declared.__signature__ = inspect.Signature(
        [context, items.replace(annotation=inspect.Parameter.empty)]
    )
    one.__annotations__ = {
        items.name: _item_of(hints.get(items.name)),
        "return": _item_of(hints.get("return")),
    }
    return one


def _item_of(hint: Any) -> Any:
    """Return what a list is of, Any where its annotation does not say."""
    found = get_args(hint)
    is_list = isinstance(origin := get_origin(hint), type) and issubclass(origin, list | tuple)
    return found[0] if is_list and found else Any


__all__ = ["ManyContext", "ManyTask", "many_task"]
