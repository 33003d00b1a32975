"""Hands out what happens in a worker: events to subscribers, ends of attempts to watchers."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, Protocol

from runner.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runner.events import Event, Subscriber

logger = logging.getLogger("runner.events")


class Watcher(Protocol):
    """Counts every attempt of a worker, at a fraction of what events cost.

    It may not keep what it is given; what it raises is logged. It hears of an end when the
    function has ended and before Redis has confirmed it; the rare ends that Redis does not take
    are told by `lost`.
    """

    def ended(self, attempt: Any, ending: Any, /) -> None:
        """Hear how an attempt (`runner.execution`) ended."""
        ...

    def lost(self, queue: str, job_id: str, /) -> None:
        """Hear that an end that was told did not count: somebody else has the job."""
        ...


class Bus:
    """Hands each event to every subscriber, in the order in which they came.

    Raises:
        SettingsError: a subscriber is no plain function.
    """

    def __init__(self, subscribers: Iterable[Subscriber] = ()) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()
        self.wanted = False
        """Whether anybody subscribes: look here before an event is made."""
        self.watchers: tuple[Watcher, ...] = ()
        self.on_end: Callable[[Any, Any], None] | None = None
        """Tells all watchers of an end; None where there are none."""
        self.watched = False
        """Whether anybody wants to know how attempts end, as events or not."""
        for subscriber in subscribers:
            self.subscribe(subscriber)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with each event from now on; return what ends that."""
        if not is_subscriber(subscriber):
            raise SettingsError(
                f"a subscriber is a plain function of one event, not {subscriber!r}: let it hand "
                f"longer work to a task of its own",
            )
        self._subscribers = (*self._subscribers, subscriber)
        self.wanted = self.watched = True

        def unsubscribe() -> None:
            left = list(self._subscribers)
            if subscriber in left:
                left.remove(subscriber)
            self._subscribers = tuple(left)
            self.wanted = bool(left)
            self.watched = self.wanted or bool(self.watchers)

        return unsubscribe

    def watch(self, watcher: Watcher, *, is_ours: bool = False) -> Callable[[], None]:
        """Tell `watcher` of each end; return what ends that.

        Args:
            watcher: hears of ends.
            is_ours: it raises nothing, so it is called without a guard, at every end of a drain.
        """
        told = watcher if is_ours else _Guarded(watcher)
        self._set_watchers((*self.watchers, told))

        def unwatch() -> None:
            self._set_watchers(tuple(other for other in self.watchers if other is not told))

        return unwatch

    def _set_watchers(self, watchers: tuple[Watcher, ...]) -> None:
        self.watchers = watchers
        self.watched = self.wanted or bool(watchers)
        # Most often there is one: a loop over it would cost as much as what it does.
        one = watchers[0].ended if watchers else None
        self.on_end = self._tell_all if watchers[1:] else one

    def _tell_all(self, attempt: Any, ending: Any) -> None:
        for watcher in self.watchers:
            watcher.ended(attempt, ending)

    def emit(self, event: Event) -> None:
        """Hand out one event; what a subscriber raises is logged."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except (Exception, asyncio.CancelledError):  # a job is not cancelled by this one
                logger.exception("the subscriber %r failed on %s", subscriber, type(event).__name__)


class _Guarded:
    """A watcher of somebody else: an end is settled whatever it raises."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def ended(self, attempt: Any, ending: Any, /) -> None:
        try:
            self._watcher.ended(attempt, ending)
        except (Exception, asyncio.CancelledError):
            logger.exception("the watcher %r failed on an end", self._watcher)

    def lost(self, queue: str, job_id: str, /) -> None:
        try:
            self._watcher.lost(queue, job_id)
        except (Exception, asyncio.CancelledError):
            logger.exception("the watcher %r failed on an end that did not count", self._watcher)


def is_subscriber(value: Any) -> bool:
    """Say whether this can be called with an event and be done when it returns."""
    call = getattr(value, "__call__", None)  # noqa: B004  an object may have an async __call__
    is_async = inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(call)
    return callable(value) and not is_async


__all__ = ["Bus", "Watcher", "is_subscriber"]
