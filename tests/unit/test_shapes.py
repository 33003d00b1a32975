"""What an annotation accepts, what it converts to, and when it is left alone."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import ipaddress
import pathlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    AnyStr,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
)

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from runner.codec import MsgpackCodec, PickleCodec
from runner.errors import DecodeError, EncodeError
from runner.shapes import ANYTHING, Shape, shape_of

T = TypeVar("T")
SAIGON = dt.timezone(dt.timedelta(hours=7))


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Corner(enum.Enum):
    ORIGIN = (0, 0)


class Point(NamedTuple):
    x: int
    colour: Colour


class Money(msgspec.Struct):
    amount: Decimal
    currency: str = "VND"


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: set[str]


class Address(TypedDict):
    street: str
    opened: dt.date


@dataclass
class Line:
    sku: uuid.UUID
    price: Money
    tags: frozenset[str] = frozenset()


@dataclass
class Order:
    lines: list[Line]
    placed: dt.datetime
    after: Order | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Box(Generic[T]):
    inside: T


class Own:
    """A class that nobody can convert to."""


class Shows(Protocol):
    def show(self) -> str: ...


@dataclass
class HoldsOwn:
    own: Own


OrderId = NewType("OrderId", int)

AWARE = dt.datetime(2026, 11, 2, 3, 4, 5, 678901, tzinfo=SAIGON)
NAIVE = AWARE.replace(tzinfo=None)
LINE = Line(uuid.UUID(int=5), Money(Decimal("1.50")), frozenset({"a"}))
ORDER = Order([LINE], AWARE, Order([], NAIVE), {"any": [1, None]})

VALUES: list[tuple[Any, Any]] = [
    (1, int),
    (True, int),
    (2**64 - 1, int),
    (-(2**63), int),
    (1.5, float),
    (True, float),
    (float("inf"), float),
    ("x", str),
    (b"\xff\x00", bytes),
    (bytearray(b"x"), bytearray),
    (None, None),
    (AWARE, dt.datetime),
    (NAIVE, dt.datetime),
    (NAIVE.date(), dt.date),
    (NAIVE.time(), dt.time),
    (AWARE.timetz(), dt.time),
    (dt.timedelta(days=-3, microseconds=5), dt.timedelta),
    (Decimal("0.10"), Decimal),
    (uuid.UUID(int=7), uuid.UUID),
    (Colour.RED, Colour),
    (Level.HIGH, Level),
    (Rights.READ | Rights.WRITE, Rights),
    ({1, 2}, set[int]),
    (frozenset({Colour.RED}), frozenset[Colour]),
    ((1, "a"), tuple[int, str]),
    ((1, 2, 3), tuple[int, ...]),
    ([1, "a", None], list),
    ({"a": [1]}, dict),
    (Point(1, Colour.RED), Point),
    (Money(Decimal(2)), Money),
    (LINE, Line),
    (ORDER, Order),
    ([ORDER, ORDER], list[Order]),
    ({"a": {"b": [LINE]}}, dict[str, dict[str, list[Line]]]),
    ({uuid.UUID(int=1): AWARE}, dict[uuid.UUID, dt.datetime]),
    ({NAIVE.date(): 1}, dict[dt.date, int]),
    ({(1, 2): "a"}, dict[tuple[int, int], str]),
    ({Colour.RED: {Decimal("1.0")}}, dict[Colour, set[Decimal]]),
    ({b"k": 1}, dict[bytes, int]),
    (Dog({"sit"}), Cat | Dog),
    ([Cat(9), Dog(set())], list[Cat | Dog]),
    (Box(Box(1)), Box[Box[int]]),
    ({"street": "x", "opened": NAIVE.date()}, Address),
    (LINE, Line | None),
    (None, Optional[Line]),  # noqa: UP045  the old spelling is the point
    (1, Union[int, str, None]),  # noqa: UP007
    (Colour.RED, Colour | int | None),
    ([1, 2], Sequence[int]),
    ({"a": 1}, Mapping[str, int]),
    (OrderId(5), OrderId),
    ("a", Literal["a", "b", 3]),
    (3, Annotated[int, Meta(ge=1)]),
    (pathlib.PurePosixPath("/a/b"), pathlib.PurePosixPath),
    (ipaddress.ip_address("10.0.0.1"), ipaddress.IPv4Address),
    ([ipaddress.ip_network("10.0.0.0/8")], list[ipaddress.IPv4Network]),
]


def name_of(value: Any) -> str:
    """Return an id that is the same in each process: a repr may hold an address."""
    return str(getattr(value, "__name__", type(value).__name__))


def travelled(value: Any, codec: Any = None) -> Any:
    codec = codec or MsgpackCodec()
    return codec.loads(codec.dumps({"v": value}))["v"]


@pytest.mark.parametrize("codec", [MsgpackCodec(), PickleCodec()], ids=lambda codec: codec.name)
@pytest.mark.parametrize(("value", "annotation"), VALUES, ids=name_of)
def test_value_arrives_as_its_annotation_says(codec: Any, value: Any, annotation: Any) -> None:
    shape = shape_of(annotation)
    assert shape is not ANYTHING
    arrived = shape.convert(travelled(value, codec))
    assert arrived == value
    assert type(arrived) is type(value)


@pytest.mark.parametrize(("value", "annotation"), VALUES, ids=name_of)
def test_value_that_fits_is_accepted_at_the_caller(value: Any, annotation: Any) -> None:
    assert shape_of(annotation).refusal(value) is None


def test_not_a_number_travels() -> None:
    for annotation, value in ((float, float("nan")), (Decimal, Decimal("NaN"))):
        arrived = shape_of(annotation).convert(travelled(value))
        assert arrived != arrived  # noqa: PLR0124  what makes it no number


def test_aware_datetime_keeps_its_moment_and_arrives_in_utc() -> None:
    arrived = shape_of(dt.datetime).convert(travelled(AWARE))
    assert (arrived, arrived.utcoffset()) == (AWARE, dt.timedelta(0))


def test_int_arrives_as_a_float_where_a_float_is_asked_for() -> None:
    arrived = shape_of(float).convert(travelled(3))
    assert (arrived, type(arrived)) == (3.0, float)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Money(Decimal(2)), {"amount": "2", "currency": "VND"}),
        (NAIVE, "2026-11-02T03:04:05.678901"),
        (AWARE, AWARE),
        (dt.timedelta(seconds=1), "PT1S"),
        (Colour.RED, "red"),
        ((1, 2), [1, 2]),
        ({1}, [1]),
        (Decimal("1.50"), "1.50"),
        (b"x", b"x"),
    ],
)  # fmt: skip
def test_without_an_annotation_a_value_arrives_as_plain_data(value: Any, plain: Any) -> None:
    assert ANYTHING.convert(travelled(value)) == plain


# What nothing converts to.

LEFT_ALONE = [
    Any,
    object,
    Own,
    Shows,
    T,
    AnyStr,
    Callable,
    Callable[[int], str],
    Iterable[int],
    AsyncIterator[int],
    type,
    type[int],
    complex,
    range,
    Exception,
    Corner,
    list[Own],
    dict[str, Own],
    HoldsOwn,
    Own | None,
    Cat | dict[str, int],
    Line | Money,
    str | bytes,
    dt.datetime | dt.date,
    collections.Counter[str],
    "a name of nothing",
    5,
]


@pytest.mark.parametrize("annotation", LEFT_ALONE, ids=name_of)
@pytest.mark.parametrize("value", [1, "x", [1], {"a": 1}, None, Own()], ids=name_of)
def test_annotation_that_nothing_converts_to_leaves_values_alone(
    annotation: Any, value: Any
) -> None:
    shape = shape_of(annotation)
    assert shape is ANYTHING
    assert shape.refusal(value) is None
    assert shape.convert(value) is value


# What is refused at the caller.


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "1"),
        (int, 1.0),
        (int, None),
        (int, [1]),
        (int, Own()),
        (str, 1),
        (str, b"x"),
        (str, None),
        (float, "1.5"),
        (float, Decimal(1)),
        (bool, 1),
        (bool, "true"),
        (bytes, "YWJj"),
        (bytearray, "YWJj"),
        (list[int], "12"),
        (list[int], {"a": 1}),
        (list[int], 1),
        (dict[str, int], [1]),
        (set[int], "12"),
        (dt.date, AWARE),
        (dt.date, NAIVE),
        (dt.datetime, "yesterday"),
        (dt.datetime, 5),
        (dt.datetime, NAIVE.date()),
        (dt.timedelta, 5),
        (uuid.UUID, "five"),
        (Decimal, "five"),
        (Colour, "blue"),
        (Line, {"sku": "x"}),
        (Line, Money(Decimal(1))),
        (Point, (1,)),
        (Line | None, 5),
        (int | str, 1.5),
        (int | None, "x"),
        (Cat | Dog, Money(Decimal(1))),
        (ipaddress.IPv4Address, "nowhere"),
    ],
    ids=name_of,
)  # fmt: skip
def test_value_of_a_wrong_class_is_refused(annotation: Any, value: Any) -> None:
    assert shape_of(annotation).refusal(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (float, 1),
        (int, True),
        (float, True),
        (list[int], (1, 2)),
        (list[int], {1, 2}),
        (set[int], [1, 2]),
        (tuple[int, int], [1, 2]),
        (dt.datetime, "2026-11-02T03:04:05Z"),
        (dt.date, "2026-11-02"),
        (uuid.UUID, str(uuid.UUID(int=1))),
        (Decimal, 5),
        (Decimal, "1.5"),
        (Colour, "red"),
        (str, Colour.RED),
        (str, uuid.UUID(int=1)),
        (bytes, bytearray(b"x")),
        (bytes, memoryview(b"x")),
        (Money, {"amount": "1.5"}),
        (Point, [1, "red"]),
        (dict[str, int], collections.OrderedDict(a=1)),
        (Line | None, None),
    ],
    ids=name_of,
)
def test_value_that_the_worker_would_convert_is_accepted(annotation: Any, value: Any) -> None:
    shape = shape_of(annotation)
    assert shape.refusal(value) is None
    shape.convert(travelled(value))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (list[int], ["a"]),
        (dict[str, int], {1: 1}),
        (Annotated[int, Meta(gt=1)], 0),
        (Literal["a"], "b"),
    ],
)
def test_what_is_inside_is_left_to_the_worker(annotation: Any, value: Any) -> None:
    shape = shape_of(annotation)
    assert shape.refusal(value) is None
    with pytest.raises(DecodeError):
        shape.convert(value)


def test_text_is_never_taken_for_bytes() -> None:
    for annotation, value in ((bytes, "YWJj"), (list[bytes], ["YWJj"]), (bytearray, "YWJj")):
        with pytest.raises(DecodeError):
            shape_of(annotation).convert(value)


plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary() | st.datetimes() | st.just(Own()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
ASKED: st.SearchStrategy[Any] = st.sampled_from([annotation for _, annotation in VALUES])


@given(plain, ASKED)
def test_any_value_is_refused_or_accepted_and_nothing_raised(value: Any, annotation: Any) -> None:
    reason = shape_of(annotation).refusal(value)
    assert reason is None or isinstance(reason, str)


@given(plain, ASKED)
def test_what_the_caller_refuses_the_worker_would_refuse(value: Any, annotation: Any) -> None:
    shape = shape_of(annotation)
    if shape.refusal(value) is None:
        return
    try:
        arrived = travelled(value)
    except EncodeError:
        return
    with pytest.raises(DecodeError):
        shape.convert(arrived)


# Nesting.


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_deep_nesting_is_an_error_of_the_codec_on_both_sides() -> None:
    with pytest.raises(EncodeError, match="recursion"):
        MsgpackCodec().dumps({"v": nested(100_000)})
    data = b"\x81\xa1v" + b"\x91" * 100_000 + b"\x90"
    with pytest.raises(DecodeError, match="recursion"):
        MsgpackCodec().loads(data)


def test_types_that_hold_themselves_are_converted_as_deep_as_they_go() -> None:
    chain = Order([], NAIVE)
    for _ in range(50):
        chain = Order([], NAIVE, chain)
    assert shape_of(Order).convert(travelled(chain)) == chain


def test_conversion_that_goes_too_deep_is_a_decode_error() -> None:
    data: Any = None
    for _ in range(100_000):
        data = {"lines": [], "placed": "2026-11-02T03:04:05", "after": data}
    with pytest.raises(DecodeError, match="recursion"):
        shape_of(Order).convert(data)
    while data:  # taken apart one by one: all at once is as deep
        data = data.pop("after")


def test_shape_is_written_as_its_annotation() -> None:
    assert str(shape_of(list[int])) == "list[int]"
    assert str(shape_of(Line)).endswith("Line")


def test_or_none_welcomes_none() -> None:
    shape = shape_of(int)
    assert shape.refusal(None)
    welcoming = shape.or_none()
    assert isinstance(welcoming, Shape)
    assert (welcoming.refusal(None), welcoming.convert(None)) == (None, None)
