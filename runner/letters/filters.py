"""Say which dead letters, or which jobs, are meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from runner.errors import ArgumentsError
from runner.letters.records import shown
from runner.tasks import Task
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from runner.types import DeadLetter

Arguments = Mapping["str | int", Any]
"""Values that arguments must have, by the parameter's name or by place, counted from 0."""

MOST_DIGITS = 9
"""Of a place. A name of more is a name."""


def read_argument(text: str) -> tuple[str | int, Any]:
    """Read ``name=value``: the value is JSON, or else text; a whole number names a place.

    Raises:
        ArgumentsError: it is not of that form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ArgumentsError(f"{text!r} must be name=value, or place=value")
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        read = value
    is_place = name.isascii() and name.isdigit() and len(name) <= MOST_DIGITS
    return int(name) if is_place else name, read


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Which dead letters are meant: those that fit all that is given; nothing given: all.

    Attributes:
        task: a task, or its name.
        error: the class of the last error: itself, its name, or its qualified name.
        text: what the last error's message holds.
        outcome: how the job ended, such as "timed_out".
        since: died then or later.
        until: died before.
        arguments: values that arguments must have. By name they are found where they were given
            by name, and where the task is known also where they were given by place.
        known: tasks whose parameters are known, beside `task`.

    Example:
        >>> LetterFilter(task="place_order", error="ConnectionError", arguments={"order_id": 42})
    """

    task: Task[..., Any] | str | None = None
    error: type[BaseException] | str | None = None
    text: str | None = None
    outcome: Outcome | str | None = None
    since: datetime | None = None
    until: datetime | None = None
    arguments: Arguments | None = None
    known: Iterable[Task[..., Any]] = ()

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise ArgumentsError(f"{name} needs a time zone: datetime(..., tzinfo=...)")
        if self.outcome is not None:
            known = [outcome.value for outcome in Outcome]
            if self.outcome_name not in known:
                raise ArgumentsError(f"outcome is one of {known}, not {self.outcome!r}")

    @property
    def task_name(self) -> str | None:
        """The task's name."""
        return name_of(self.task)

    @property
    def outcome_name(self) -> str | None:
        """The outcome's value."""
        return self.outcome.value if isinstance(self.outcome, Outcome) else self.outcome

    @property
    def error_name(self) -> str | None:
        """The error's name, qualified where a class was given."""
        if not isinstance(self.error, type):
            return self.error
        if self.error.__module__ == "builtins":
            return self.error.__qualname__
        return f"{self.error.__module__}.{self.error.__qualname__}"

    @property
    def says_nothing(self) -> bool:
        """Whether a letter need not be read to know that it fits."""
        return not self.needles() and not self.arguments

    def needles(self) -> list[bytes]:
        """Return bytes that every letter holds that fits."""
        texts = (self.task_name, self.error_name, self.text, self.outcome_name)
        return [text.encode(errors="surrogatepass") for text in texts if text]

    def fits(self, letter: DeadLetter) -> bool:
        """Tell whether a letter is meant; its time is not looked at."""
        if self.task is not None and letter.task != self.task_name:
            return False
        if self.outcome is not None and letter.outcome != self.outcome_name:
            return False
        error = self.error_name
        if error is not None and not f".{letter.error_type}".endswith(f".{error}"):
            return False
        if self.text is not None and self.text not in letter.error:
            return False
        if not self.arguments:
            return True
        task = task_of(letter.task, self.task, self.known)
        return fit_arguments(self.arguments, task, letter.args, letter.kwargs)


def name_of(task: Task[..., Any] | str | None) -> str | None:
    """Return the name of a task, or the text that is one."""
    return task.name if isinstance(task, Task) else task


def task_of(
    name: str, task: Task[..., Any] | str | None, known: Iterable[Task[..., Any]]
) -> Task[..., Any] | None:
    """Return the task of that name, where it is known."""
    if isinstance(task, Task) and task.name == name:
        return task
    return next((one for one in known if one.name == name), None)


def fit_arguments(
    wanted: Arguments,
    task: Task[..., Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> bool:
    """Tell whether a call has these values, compared as plain data."""
    given: dict[str | int, Any] = dict(enumerate(args))
    if task is not None:
        given.update(task.signature.named(tuple(args), dict(kwargs)))
    given.update(kwargs)
    return all(
        name in given and _are_equal(_plain(value), _plain(given[name]))
        for name, value in wanted.items()
    )


def _are_equal(left: Any, right: Any) -> bool:
    # To Python True is 1; who asks for one does not mean the other.
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _plain(value: Any) -> Any:
    if type(value) in (int, str, bool):
        return value
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(value, enc_hook=shown))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return shown(value)
