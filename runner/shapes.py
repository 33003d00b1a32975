"""Compile an annotation into what it asks of a value: once for a task, not once for a job.

Where msgspec has no conversion to an annotation (a class of one's own, a Protocol, a Callable,
a union of two classes that look alike on the wire), and where there is no annotation, values
pass as they are: plain data with the msgpack codec, the same objects with pickle.
"""

from __future__ import annotations

import decimal
import inspect
import uuid
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, get_origin

import msgspec
from msgspec import inspect as described

from runner import codec

if TYPE_CHECKING:
    from collections.abc import Iterator

Classes: TypeAlias = tuple[type, ...]

_WIRE = codec.MsgpackCodec()


@dataclass(frozen=True, slots=True)
class Shape:
    """One annotation, compiled.

    Attributes:
        annotation: the type, or Any when values pass as they are.
        accepts: instances of these are what the annotation asks for, as far as a look at
            the class tells; what is inside a container is left to the worker's conversion.
        passes: decoded values of these classes need no conversion.
    """

    annotation: Any
    accepts: Classes
    passes: Classes

    def convert(self, value: Any) -> Any:
        """Turn decoded plain data into the annotated type; raise `DecodeError`."""
        if isinstance(value, self.passes):
            return value
        return codec.convert(value, self.annotation)

    def refusal(self, value: Any) -> str | None:
        """Return why the worker would refuse this value; None when it would not.

        A value of another class than expected is tried on the way that it would travel:
        a tuple will do for a list, and an ISO text for a datetime.
        """
        if isinstance(value, self.accepts):
            return None
        try:
            codec.convert(_WIRE.loads(_WIRE.dumps({"v": value}))["v"], self.annotation)
        except Exception as exc:  # noqa: BLE001  a model's own validators may raise anything
            return str(exc)
        return None

    def or_none(self) -> Shape:
        """Return the same shape with None welcome."""
        none = type(None)
        return replace(self, accepts=(*self.accepts, none), passes=(*self.passes, none))

    def __str__(self) -> str:
        return inspect.formatannotation(self.annotation)


ANYTHING = Shape(Any, accepts=(object,), passes=(object,))
"""The shape of what passes as it is."""


def shape_of(annotation: Any) -> Shape:
    """Compile an annotation; `ANYTHING` where there is none, or no conversion to it."""
    if annotation in (Any, object, inspect.Parameter.empty):
        return ANYTHING
    info = _understood(annotation)
    if info is None:
        return ANYTHING
    members = info.types if isinstance(info, described.UnionType) else (info,)
    classes = [_classes(member) for member in members]
    shape = Shape(
        annotation,
        accepts=tuple(kind for accepts, _ in classes for kind in accepts),
        passes=tuple(kind for _, passes in classes for kind in passes),
    )
    return ANYTHING if object in shape.passes else shape


def _understood(annotation: Any) -> described.Type | None:
    """Return msgspec's description of a type that it can convert to, alone or with our help."""
    try:
        # It refuses some that `type_info` describes, an enum of tuples for one.
        msgspec.msgpack.Decoder(annotation)
        info = described.type_info(annotation)
    except Exception:  # noqa: BLE001  looking at a class may run anything
        return None
    customs = (part for part in _parts(info) if isinstance(part, described.CustomType))
    return info if all(codec.converts_to(part.cls) for part in customs) else None


def _parts(info: described.Type) -> Iterator[Any]:
    """Give a description and every one inside it, each once, for types may hold themselves."""
    seen: set[int] = set()
    waiting: list[Any] = [info]
    while waiting:
        part = waiting.pop()
        if isinstance(part, tuple):
            waiting.extend(part)
        elif isinstance(part, described.Type | described.Field) and id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting.extend(getattr(part, name) for name in part.__struct_fields__)


class _IsDay(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, date) and not isinstance(value, datetime)


class _Day(metaclass=_IsDay):
    """A date that is no datetime: to Python every datetime is a date, to msgspec none is."""


_ARRAYS: Classes = (list, tuple, set, frozenset)
_BUFFERS: Classes = (bytes, bytearray, memoryview)

_TABLE: dict[type[described.Type], tuple[Classes, Classes]] = {
    # description: what is accepted, and what passes when no bounds are set
    described.AnyType: ((object,), (object,)),
    described.NoneType: ((type(None),), (type(None),)),
    described.BoolType: ((bool,), (bool,)),
    described.IntType: ((int,), (int,)),
    # An int does for a float. A bool is an int to Python, but not to msgspec.
    described.FloatType: ((float, int), (float, bool)),
    described.StrType: ((str,), (str,)),
    described.BytesType: (_BUFFERS, (bytes,)),
    described.ByteArrayType: (_BUFFERS, ()),
    described.MemoryViewType: (_BUFFERS, ()),
    described.DateTimeType: ((datetime,), ()),
    described.DateType: ((_Day,), ()),
    described.TimeType: ((time,), ()),
    described.TimeDeltaType: ((timedelta,), ()),
    described.DecimalType: ((decimal.Decimal,), ()),
    described.UUIDType: ((uuid.UUID,), ()),
    described.ListType: (_ARRAYS, (list,)),
    described.SetType: (_ARRAYS, ()),
    described.FrozenSetType: (_ARRAYS, ()),
    described.TupleType: (_ARRAYS, ()),
    described.VarTupleType: (_ARRAYS, ()),
    described.DictType: ((dict,), (dict,)),
    described.TypedDictType: ((dict,), ()),
}


def _classes(info: Any) -> tuple[Classes, Classes]:
    """Return which classes one member of an annotation accepts, and which pass unconverted."""
    row = _TABLE.get(type(info))
    if row is not None:
        accepts, passes = row
        return accepts, passes if _is_bare(info) else ()
    kind = getattr(info, "cls", None)
    if kind is None:
        return (object,), ()  # a literal and its like: left to the worker
    kind = get_origin(kind) or kind
    return (kind,), (kind,) if isinstance(info, described.EnumType) else ()


def _is_bare(info: Any) -> bool:
    """Tell whether a description sets no bounds, as a greatest value or a type of items."""
    fields = (getattr(info, name) for name in info.__struct_fields__)
    return all(field is None or isinstance(field, described.AnyType) for field in fields)


__all__ = ["ANYTHING", "Shape", "shape_of"]
