"""Compose calls: chain, group and chord, in Celery's words, nested in each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

from runner.errors import ArgumentsError
from runner.tasks import Call, Step
from runner.types import Part

if TYPE_CHECKING:
    from collections.abc import Iterator

A = TypeVar("A")
B = TypeVar("B")
D = TypeVar("D")
E = TypeVar("E")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

OnFailure: TypeAlias = Literal["fail", "continue"]
ReleaseAfter: TypeAlias = Literal["committed", "submitted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What a node asks for beyond its call; None leaves it to the task.

    Attributes:
        name: its name in the flow.
        retries: how often it is run again when it raises.
        queue: the queue of its job.
        timeout: seconds an attempt may take.
        on_failure: "fail" skips what comes after it, and the flow has failed; "continue" lets
            that run with None in the place of its result.
        fallback: a call that runs in its place when it has failed.
        release_after: whether what comes after it starts when its writes are "committed", so
            that it can read them, or sooner, when they are "submitted".
    """

    name: str | None = None
    retries: int | None = None
    queue: str | None = None
    timeout: float | None = None
    on_failure: OnFailure | None = None
    fallback: Call[Any] | Step[Any, Any] | None = None
    release_after: ReleaseAfter | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not self.name:
            raise ArgumentsError("the name of a node must not be empty")
        if self.retries is not None and (type(self.retries) is not int or self.retries < 0):
            raise ArgumentsError(f"retries must be a whole number, not {self.retries!r}")
        if self.timeout is not None and not self.timeout > 0:
            raise ArgumentsError(f"timeout must be more than 0 s, not {self.timeout!r}")
        if self.on_failure not in (None, "fail", "continue"):
            raise ArgumentsError(
                f'on_failure must be "fail" or "continue", not {self.on_failure!r}'
            )
        if self.release_after not in (None, "committed", "submitted"):
            raise ArgumentsError(
                f'release_after must be "committed" or "submitted", not {self.release_after!r}'
            )
        if self.fallback is not None:
            self._check_fallback()

    def _check_fallback(self) -> None:
        if not isinstance(self.fallback, Call | Step):
            raise ArgumentsError(f"fallback takes task.call(...), not {self.fallback!r}")
        if self.release_after == "submitted":
            raise ArgumentsError(
                "a node with a fallback is released when it is committed: until then it may fail"
            )

    def over(self, inner: NodeOptions) -> NodeOptions:
        """Return these options with those of an inner part, which go first."""
        given = {
            name: mine if theirs is None else theirs
            for name in _OPTIONS
            for mine, theirs in ((getattr(self, name), getattr(inner, name)),)
        }
        return NodeOptions(**given)


_OPTIONS = tuple(NodeOptions.__dataclass_fields__)
NO_OPTIONS = NodeOptions()


@dataclass(frozen=True, slots=True)
class Chain(Part[R_co]):
    """Steps one after the other; the result is that of the last."""

    steps: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Group(Part[list[R_co]]):
    """Members that run at the same time; the result is the list of theirs, in order."""

    members: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.members)


@dataclass(frozen=True, slots=True)
class Chord(Part[R_co]):
    """A group, and a callback that gets the list of its results once all members have ended."""

    header: Any
    callback: Any


@dataclass(frozen=True, slots=True)
class Optioned(Part[R_co]):
    """A part whose calls have options; see `node`."""

    part: Any
    options: NodeOptions = field(default_factory=NodeOptions)


def node(
    part: Part[R] | Step[Any, R],
    *,
    name: str | None = None,
    retries: int | None = None,
    queue: str | None = None,
    timeout: float | timedelta | None = None,
    on_failure: OnFailure | None = None,
    fallback: Call[Any] | Step[Any, Any] | None = None,
    release_after: ReleaseAfter | None = None,
) -> Part[R]:
    """Give the calls of a part options; those of an inner `node` go first.

    Example:
        >>> chord(node(load.map(days), on_failure="continue", retries=2), rank.s())
    """
    timeout_s = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    options = NodeOptions(
        name=name,
        retries=retries,
        queue=queue,
        timeout=timeout_s,
        on_failure=on_failure,
        fallback=fallback,
        release_after=release_after,
    )
    return Optioned(part, options)


@overload
def chain(first: Step[Any, A] | Part[A], /) -> Chain[A]: ...
@overload
def chain(first: Step[Any, A] | Part[A], second: Step[A, B] | Part[B], /) -> Chain[B]: ...
@overload
def chain(
    first: Step[Any, A] | Part[A], second: Step[A, B] | Part[B], third: Step[B, D] | Part[D], /
) -> Chain[D]: ...
@overload
def chain(
    first: Step[Any, A] | Part[A],
    second: Step[A, B] | Part[B],
    third: Step[B, D] | Part[D],
    fourth: Step[D, E] | Part[E],
    /,
) -> Chain[E]: ...
@overload
def chain(
    first: Step[Any, Any] | Part[Any],
    second: Step[Any, Any] | Part[Any],
    third: Step[Any, Any] | Part[Any],
    fourth: Step[Any, Any] | Part[Any],
    fifth: Step[Any, Any] | Part[Any],
    /,
    *more: Step[Any, Any] | Part[Any],
) -> Chain[Any]: ...


def chain(*steps: Any) -> Chain[Any]:
    """Return steps that run one after the other.

    A step written by ``task.s(...)`` gets the result of the step before as its first argument;
    one written by ``task.call(...)`` only when it lacks exactly that.

    Example:
        >>> chain(load.call(1), clean.s(), store.s("flights"))

    Raises:
        ArgumentsError: there is none, or one is no part of a flow.
    """
    if not steps:
        raise ArgumentsError("a chain needs a step")
    return Chain(tuple(_checked(step, "chain") for step in steps))


@overload
def group(*members: Part[R] | Step[Any, R]) -> Group[R]: ...
@overload
def group(members: Iterable[Part[R] | Step[Any, R]], /) -> Group[R]: ...


def group(*members: Any) -> Group[Any]:
    """Return members that run at the same time; an iterable of them will do.

    Example:
        >>> group(load.call(1), load.call(2))

    Raises:
        ArgumentsError: one is no part of a flow.
    """
    given: Iterable[Any] = members
    if len(members) == 1 and isinstance(members[0], Iterable):
        given = members[0]
    return Group(tuple(_checked(member, "group") for member in given))


def chord(
    header: Part[list[A]] | Iterable[Part[A]],
    callback: Step[list[A], R] | Part[R],
) -> Chord[R]:
    """Return a group and what runs when all its members have ended.

    Example:
        >>> chord(load.map(days), rank.s())
    """
    members = header if isinstance(header, Part) else group(*header)
    return Chord(_checked(members, "chord"), _checked(callback, "chord"))


def in_chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Give lists of at most `size` values, in order; raise `ArgumentsError`."""
    if type(size) is not int or size < 1:
        raise ArgumentsError(f"size must be a whole number, 1 or more, not {size!r}")
    chunk: list[T] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _checked(part: Any, where: str) -> Any:
    if not isinstance(part, Part | Step):
        raise ArgumentsError(
            f"a {where} is made of task.call(...), task.s(...), chain, group and chord, "
            f"not of {part!r}"
        )
    return part


__all__ = [
    "Chain",
    "Chord",
    "Group",
    "NodeOptions",
    "Optioned",
    "chain",
    "chord",
    "group",
    "in_chunks",
    "node",
]
