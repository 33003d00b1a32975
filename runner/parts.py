"""What lives with a worker: started in the order of its needs, stopped in reverse.

The worker's own parts (see `Worker`) and the user's are in one list. A part starts when all that it
needs have started. The part ``jobs`` stands for the claiming and running of jobs: whatever does
not need it is there before the first job, and until the last job has ended. When a part does not
start, those that have are stopped again; so a start is whole, or did not happen.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from runner.errors import PartFailed, SettingsError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from arq.connections import ArqRedis

    from runner.bus import Bus
    from runner.events import Subscriber

logger = logging.getLogger("runner.parts")

JOBS = "jobs"
COMMAND_S = 5.0
MOST_SAID = 1_000_000
"""How many characters a command may say: they lie in Redis until somebody reads them."""
GIVE_UP_S = 5.0
"""How long a step has to end that was cancelled; beyond it nobody waits for it any more."""
OWN_STEP_S = 30.0
"""How long a step of the worker's own parts may take; what it does has shorter limits itself."""
OWN_COMMANDS = ("ping", "drain", "resume", "concurrency")


class Serving(Protocol):
    """What a part may use of its worker, which is a `runner.Worker`.

    Attributes:
        name: host, process id and a part of its own.
        ctx: what jobs find in their context.
        events: to emit events of one's own, and to subscribe.
        functions: what it runs, by name.
    """

    name: str
    ctx: dict[Any, Any]
    events: Bus
    functions: dict[str, Any]

    @property
    def pool(self) -> ArqRedis:
        """The worker's client."""
        ...

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with each event of `runner.events`; return what ends that."""
        ...


class Part:
    """Something that lives with a worker: a server of your own, a cache that is kept warm.

    Give objects of your subclasses to ``WorkerSettings.parts``. The connection to Redis is there
    when a part starts, and ``on_startup`` is through; ``on_shutdown`` comes when it has stopped.

    Attributes:
        name: by which others need it; by default the name of the class.
        needs: the names of the parts that are to be started before it, and stopped after it: of
            yours, or of the worker's: "monitor", "reads", "leases", "watch", "writer", "job log",
            "provided", "limits", "executors", "progress", "jobs", "schedules", "wake".
        start_s: how many seconds the start may take.
        stop_s: how many seconds the stop may take; None: any time.
        commands: what it can be told while it runs: the names of its methods, plain or async, that
            take a text and return one. `Client.workers.tell` and ``runner workers tell`` reach
            them, in workers with ``monitor=True``; one has five seconds.

    Example:
        >>> class Probe(Part):
        ...     async def start(self, worker):
        ...         self.server = await asyncio.start_server(self.answer, port=8080)
        ...
        ...     async def stop(self):
        ...         self.server.close()
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Sequence[str]] = ()
    start_s: ClassVar[float | None] = 30.0
    stop_s: ClassVar[float | None] = 30.0
    commands: ClassVar[Sequence[str]] = ()

    async def start(self, worker: Serving) -> None:
        """Begin; when this raises, the worker does not start, and `stop` is not called."""

    async def stop(self) -> None:
        """End; called once for each `start` that has ended well."""


class Parts:
    """The parts of one worker.

    Raises:
        SettingsError: two have one name, one needs what is not there, or they need each other.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._order = in_order(parts)
        self._started: list[Part] = []
        self._commands = commands_of(self._order)

    @property
    def commands(self) -> list[str]:
        """The names of all commands."""
        return list(self._commands)

    async def command(self, name: str, text: str) -> str:
        """Let the part whose command this is do it; return what it says.

        Raises:
            PartFailed: no part has it, its part has not started, it took too long, or said too
                much.
            Exception: what it raised.
        """
        part = self._commands.get(name)
        if part is None:
            raise PartFailed(f"no part has a command {name!r}{did_you_mean(name, self._commands)}")
        if part not in self._started:
            raise PartFailed(f"the part {name_of(part)!r} is not started")
        limit = asyncio.timeout(COMMAND_S)
        try:
            async with limit:
                said = getattr(part, name)(text)
                answer = str(await said if inspect.isawaitable(said) else said)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise PartFailed(f"the command {name!r} took longer than {COMMAND_S:g} s") from exc
        if len(answer) > MOST_SAID:
            raise PartFailed(
                f"{name!r} said {len(answer):,} characters, more than the {MOST_SAID:,} that may "
                "be sent: let it write them down, and say where"
            )
        return answer

    @property
    def names(self) -> list[str]:
        """The names of all parts, in the order in which they start."""
        return [name_of(part) for part in self._order]

    async def start(self, worker: Serving) -> None:
        """Start what has not started; stop it all again when one does not start.

        Raises:
            PartFailed: a part took longer than it may, or waited for what was cancelled.
            BaseException: what a part raised, with a note that names it.
        """
        for part in self._order:
            if part in self._started:
                continue
            try:
                await _step(part, "start", part.start_s, part.start(worker))
            except BaseException as exc:
                await self.stop()
                if not isinstance(exc, PartFailed):
                    exc.add_note(f"while the part {name_of(part)!r} of the worker started")
                raise
            self._started.append(part)

    async def stop(self, *, down_to: str | None = None) -> None:
        """Stop what has started, in reverse; one that does not stop does not keep the others.

        Args:
            down_to: the name of a part that goes on, with all that was started before it.
        """
        while self._started and name_of(self._started[-1]) != down_to:
            await _stopped(self._started.pop())


class Made(Part):
    """A part made of two functions: how the worker's own are written.

    Args:
        stop: undoes what was begun, also by a start that did not come to its end. Idempotent.
    """

    def __init__(
        self,
        name: str,
        *,
        start: Callable[[], object] | None = None,
        stop: Callable[[], object] | None = None,
        needs: Sequence[str] = (),
        start_s: float = OWN_STEP_S,
        stop_s: float | None = OWN_STEP_S,
    ) -> None:
        vars(self).update(name=name, needs=tuple(needs), start_s=start_s, stop_s=stop_s)
        self._start, self._stop = start, stop

    async def start(self, worker: Serving) -> None:  # noqa: ARG002  the functions know it
        """Call the one; when it raises, the other too."""
        try:
            await _done(self._start)
        except BaseException:
            await _stopped(self)
            raise

    async def stop(self) -> None:
        """Call the other."""
        await _done(self._stop)


async def _stopped(part: Part) -> None:
    """Stop a part within its time limit; that it fails to is logged."""
    try:
        await _step(part, "stop", part.stop_s, part.stop())
    except Exception:
        logger.exception("the part %r did not stop as it should", name_of(part))


async def _step(
    part: Part, does: str, limit_s: float | None, step: Coroutine[Any, Any, None]
) -> None:
    """Let a part start or stop, in a task of its own: so it cannot be waited for without end.

    Raises:
        PartFailed: it took longer than it may, or waited for what was cancelled: passed on, that
            would look as if the worker had been told to end.
        Exception: what it raised.
    """
    task = asyncio.get_running_loop().create_task(step, name=f"runner {does}s {name_of(part)}")
    try:
        await asyncio.wait([task], timeout=limit_s)
    except asyncio.CancelledError:
        await _give_up(part, does, task)
        raise
    if not task.done():
        cause = await _give_up(part, does, task)
        raise PartFailed(
            f"the part {name_of(part)!r} did not {does} within {limit_s:g} s"
        ) from cause
    if task.cancelled():
        raise PartFailed(f"the {does} of the part {name_of(part)!r} waited for what was cancelled")
    task.result()


async def _give_up(part: Part, does: str, task: asyncio.Task[None]) -> BaseException | None:
    """Cancel a step; return what it raised. A start that ends well all the same is taken back."""
    task.cancel()
    await asyncio.wait([task], timeout=GIVE_UP_S)
    if not task.done():
        logger.error("%r goes on though it was given up", task.get_name())
        return None
    error = None if task.cancelled() else task.exception()
    if does == "start" and error is None and not task.cancelled():
        await _stopped(part)
    return error


async def _done(function: Callable[[], object] | None) -> None:
    result = function() if function else None
    if asyncio.iscoroutine(result):
        await result


def commands_of(parts: Sequence[Part]) -> dict[str, Part]:
    """Return whose each command is."""
    owners: dict[str, Part] = {}
    for part in parts:
        _refuse_text(part, "commands", part.commands)
        for name in part.commands:
            if name in OWN_COMMANDS:
                raise SettingsError(
                    f"the part {name_of(part)!r} has a command {name!r}, as the worker has itself: "
                    "give it another name"
                )
            if name in owners:
                raise SettingsError(f"two parts have a command {name!r}: rename one of them")
            if not callable(getattr(part, name, None)):
                raise SettingsError(f"the part {name_of(part)!r} has no method {name!r}")
            owners[name] = part
    return owners


def name_of(part: Part) -> str:
    """Return the name by which others need a part."""
    return part.name or type(part).__name__


def in_order(parts: Sequence[Part]) -> list[Part]:
    """Return the parts in an order in which each stands behind what it needs.

    Otherwise their order is kept, but that ``jobs`` stands behind all that do not need it.
    """
    by_name = {name_of(part): part for part in parts}
    if len(by_name) < len(parts):
        twice = next(n for n in by_name if sum(name_of(part) == n for part in parts) > 1)
        raise SettingsError(f"two parts are called {twice!r}: give one of them another name")
    needs = {name: _needs(by_name, name) for name in by_name}
    if JOBS in needs:
        needs[JOBS] = [name for name in needs if not _leads_to(needs, name, JOBS)]
    order: dict[str, Part] = {}
    while len(order) < len(by_name):
        ready = next(
            (n for n in by_name if n not in order and all(need in order for need in needs[n])),
            None,
        )
        if ready is None:
            stuck = ", ".join(repr(name) for name in by_name if name not in order)
            raise SettingsError(f"these parts need each other: {stuck}")
        order[ready] = by_name[ready]
    return list(order.values())


def _needs(by_name: dict[str, Part], name: str) -> list[str]:
    _refuse_text(by_name[name], "needs", by_name[name].needs)
    for need in by_name[name].needs:
        if need not in by_name:
            hint = did_you_mean(need, by_name)
            raise SettingsError(f"the part {name!r} needs {need!r}, which is not there{hint}")
    return list(by_name[name].needs)


def _refuse_text(part: Part, what: str, names: Sequence[str]) -> None:
    if isinstance(names, str):
        raise SettingsError(
            f"the part {name_of(part)!r}: {what} is a text, but must be a tuple: ({names!r},)"
        )


def _leads_to(needs: dict[str, list[str]], name: str, goal: str) -> bool:
    """Say whether a part is, or needs by whatever way, another one."""
    seen: set[str] = set()
    ways = [name]
    while ways:
        at = ways.pop()
        if at == goal:
            return True
        if at not in seen:
            seen.add(at)
            ways += needs[at]
    return False


__all__ = ["JOBS", "Made", "Part", "Parts", "in_order", "name_of"]
