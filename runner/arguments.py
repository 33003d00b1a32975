"""A task's signature: calls are checked at the caller, arguments converted in the worker."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from runner.errors import ArgumentsError, DecodeError, did_you_mean
from runner.shapes import ANYTHING, Shape, shape_of
from runner.types import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

ARQS = {
    "_job_id": "key",
    "_queue_name": "queue",
    "_defer_until": "at",
    "_defer_by": "delay",
    "_expires": "expires",
}
"""What `enqueue_job` takes, and the option that does it for `enqueue`."""

_PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class _Shapes:
    """The shapes of one signature.

    Attributes:
        places: name and shape of each parameter that has a place.
        accepts: the classes that `places` accept, for the quick look.
        rest: name and shape of ``*args``; None: there is none.
        named: the shape of each parameter that takes a keyword.
        others: the shape of ``**kwargs``.
        converts: whether the worker has anything to convert.
    """

    places: list[tuple[str, Shape]]
    accepts: list[tuple[type, ...]]
    rest: tuple[str, Shape] | None
    named: dict[str, Shape]
    others: Shape
    returns: Shape
    converts: bool


class _Spelled(str):
    """An annotation that is text already (PEP 563): shown without quotation marks."""

    __slots__ = ()

    @classmethod
    def of(cls, annotation: object) -> object:
        return cls(annotation) if isinstance(annotation, str) else annotation

    def __repr__(self) -> str:
        return str(self)


class Signature:
    """A task's parameters behind the context, but for those provided, and what it returns.

    How many arguments it takes is known at once. The annotations are resolved when they are
    first needed, so that they may name what is defined further down in the module.
    """

    def __init__(
        self, function: Callable[..., Any], provided: Container[str] = frozenset()
    ) -> None:
        signature = inspect.signature(function)
        behind_context = list(signature.parameters.values())[1:]
        parameters = [p for p in behind_context if p.name not in provided]
        self._provided = provided
        self._function = function
        self._signature = signature.replace(parameters=parameters)
        self._parameters = parameters
        plain = [p for p in parameters if p.kind in _PLAIN]
        only_named = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        self._most = len(plain)
        self._rest = _first_of_kind(parameters, inspect.Parameter.VAR_POSITIONAL)
        self._others = _first_of_kind(parameters, inspect.Parameter.VAR_KEYWORD)
        required = [p for p in (*plain, *only_named) if p.default is inspect.Parameter.empty]
        self._required = frozenset(p.name for p in required)
        self._required_plain = sum(p in plain for p in required)
        # Where a parameter that takes a keyword stands: arguments by position fill it first.
        self._places = dict.fromkeys((p.name for p in only_named), sys.maxsize)
        for place, parameter in enumerate(plain):
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
                self._places[parameter.name] = place
        self._compiled: _Shapes | None = None

    @property
    def names(self) -> list[str]:
        """The names of the parameters behind the context."""
        return [parameter.name for parameter in self._parameters]

    def __str__(self) -> str:
        """Return the parameters behind the context as they are declared."""
        shown = [p.replace(annotation=_Spelled.of(p.annotation)) for p in self._parameters]
        returned = _Spelled.of(self._signature.return_annotation)
        return str(self._signature.replace(parameters=shown, return_annotation=returned))

    @property
    def takes_others(self) -> bool:
        """Whether it takes keywords of any name."""
        return self._others is not None

    @property
    def returns(self) -> Shape:
        """The shape of the task's result."""
        return self._shapes().returns

    def check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `ArgumentsError`, naming the parameter, for a call that cannot be right.

        The classes of the arguments are looked at, no deeper: a list with wrong items is
        found by the worker's conversion.

        Args:
            name: the task's name, for the message.
            args: the arguments behind the context.
            kwargs: the same, by name.
        """
        self.bind(name, args, kwargs)
        shapes = self._compiled or self._shapes()
        fits = len(args) <= self._most
        for value, classes in zip(args, shapes.accepts, strict=False):
            if not isinstance(value, classes):
                fits = False
        for key, value in kwargs.items():
            if not isinstance(value, shapes.named.get(key, shapes.others).accepts):
                fits = False
        if not fits:
            self._look_closer(name, args, kwargs)

    def bind(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `ArgumentsError` unless every parameter gets one argument, and none is left."""
        if self._binds(len(args), kwargs):
            return
        for key in kwargs:
            if key in self._provided:
                raise ArgumentsError(
                    f"{name}{self._signature}: {key!r} is provided, and is no argument of a job",
                    parameter=key,
                )
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as exc:
            unknown = [key for key in kwargs if key not in self._places]
            hint = _hint_of(unknown[0], self._places) if unknown else ""
            raise ArgumentsError(f"{name}{self._signature}: {exc}{hint}") from None

    def convert(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Turn decoded plain data into what the annotations say; raise `DecodeError`.

        The arguments must have passed `bind`.
        """
        shapes = self._compiled or self._shapes()
        if not shapes.converts:
            return args, kwargs
        places = shapes.places
        if shapes.rest is not None and len(args) > len(places):
            places = places + [shapes.rest] * (len(args) - len(places))
        converted = [
            value if isinstance(value, shape.passes) else _convert(name, shape, value)
            for value, (name, shape) in zip(args, places, strict=False)
        ]
        named = {
            name: _convert(name, shapes.named.get(name, shapes.others), value)
            for name, value in kwargs.items()
        }
        return tuple(converted), named

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Give each argument of a call with the name of its parameter."""
        for index, value in enumerate(args):
            if index < self._most:
                yield self._parameters[index].name, value
            else:
                yield f"*{self._rest}", value
        yield from kwargs.items()

    def value_of(self, name: str, args: tuple[Any, ...]) -> Any:
        """Return what a parameter gets that no keyword names: by its place, its default, or ""."""
        place = self._places.get(name, sys.maxsize)
        if place < len(args):
            return args[place]
        parameter = self._signature.parameters.get(name)
        # A limit that is set while workers run may name a parameter that there is not.
        if parameter is None or parameter.default is inspect.Parameter.empty:
            return ""
        return parameter.default

    def check_parameter(self, task: str, name: str) -> None:
        """Raise `ArgumentsError` when a task has no such parameter."""
        if name not in self._signature.parameters and not self.takes_others:
            hint = did_you_mean(name, self.names)
            raise ArgumentsError(f"{task} has no parameter {name!r}{hint}")

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return a call's arguments by name, defaults among them; the call must have passed `bind`.

        However a call is spelled, what it gives each parameter is the same.
        """
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        named = bound.arguments
        others = named.pop(self._others) if self._others else {}
        return {**others, **named}

    def _binds(self, given: int, kwargs: dict[str, Any]) -> bool:
        """Tell at once that a call is right, as nearly all are; what is not goes a longer way."""
        if given > self._most and self._rest is None:
            return False
        filled = min(given, self._required_plain)
        for name in kwargs:
            place = self._places.get(name)
            if place is None:
                if self._others is None or name in self._provided:
                    return False
            elif place < given:
                return False
            elif name in self._required:
                filled += 1
        return filled == len(self._required)

    def _look_closer(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shapes = self._shapes()
        at_places = [shape for _, shape in shapes.places]
        rest = ANYTHING if shapes.rest is None else shapes.rest[1]
        by_place = [*at_places[: len(args)], *[rest] * (len(args) - len(at_places))]
        by_name = [shapes.named.get(key, shapes.others) for key in kwargs]
        arguments = self.named(args, kwargs)
        for (parameter, value), shape in zip(arguments, (*by_place, *by_name), strict=True):
            # What another node will give is looked at by the worker.
            reason = None if isinstance(value, Reference) else shape.refusal(value)
            if reason is not None:
                given = type(value).__qualname__
                raise ArgumentsError(
                    f"{name}: parameter {parameter!r} takes {shape}, not {given}: {reason}",
                    parameter=parameter,
                    expected=str(shape),
                    given=given,
                )

    def _shapes(self) -> _Shapes:
        if self._compiled is None:
            hints = hints_of(self._function)
            shapes = {p.name: _shape_of(p, hints) for p in self._parameters}
            places = [(p.name, shapes[p.name]) for p in self._parameters[: self._most]]
            self._compiled = _Shapes(
                places=places,
                accepts=[shape.accepts for _, shape in places],
                rest=None if self._rest is None else (f"*{self._rest}", shapes[self._rest]),
                named={name: shapes[name] for name in self._places},
                others=ANYTHING if self._others is None else shapes[self._others],
                returns=shape_of(hints.get("return", Any)),
                converts=any(shape is not ANYTHING for shape in shapes.values()),
            )
        return self._compiled


def _first_of_kind(parameters: list[inspect.Parameter], kind: object) -> str | None:
    return next((p.name for p in parameters if p.kind is kind), None)


def _hint_of(unknown: str, known: Iterable[str]) -> str:
    if unknown in ARQS:
        return f"; arq's {unknown} is task.options({ARQS[unknown]}=…) here"
    return did_you_mean(unknown, known)


def _shape_of(parameter: inspect.Parameter, hints: dict[str, Any]) -> Shape:
    shape = shape_of(hints.get(parameter.name, Any))
    # `limit: int = None` says in the old way that None is welcome.
    if parameter.default is None and shape is not ANYTHING:
        return shape.or_none()
    return shape


def _convert(name: str, shape: Shape, value: Any) -> Any:
    try:
        return shape.convert(value)
    except DecodeError as exc:
        raise DecodeError(f"parameter {name!r}: {exc}") from exc


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the resolved annotations; one that cannot be resolved means Any.

    It may name what exists for type checkers only, or a class inside a function.
    """
    try:
        return get_type_hints(function, include_extras=True)
    except Exception:  # noqa: BLE001  resolving runs the annotation, which may raise anything
        hints: dict[str, Any] = {}
        for name, annotation in getattr(function, "__annotations__", {}).items():
            hints.update(_hint(name, annotation, getattr(function, "__globals__", {})))
        return hints


def _hint(name: str, annotation: Any, known: dict[str, Any]) -> dict[str, Any]:
    holder = type("_", (), {"__annotations__": {name: annotation}})
    try:
        return get_type_hints(holder, known, include_extras=True)
    except Exception:  # noqa: BLE001  the same, for one of them
        return {name: Any}


__all__ = ["Signature", "hints_of"]
