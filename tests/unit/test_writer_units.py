"""What users write arrives as exactly what they wrote, or fails at the call."""

from __future__ import annotations

import datetime as dt
import enum
import math
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import DecodeError, UnitError
from runner.writer.units import UnitBuilder, decode_operations, parse_shape

HANOI = dt.timezone(dt.timedelta(hours=7))


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


def carried(value: Any) -> Any:
    """Return a value as the writer would get it."""
    unit = UnitBuilder()
    unit.insert("t", c=value)
    return decode_operations(unit.encode())[0][1][0]


def unit_of(method: str, *args: Any, **kwargs: Any) -> UnitBuilder:
    unit = UnitBuilder()
    getattr(unit, method)(*args, **kwargs)
    return unit


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        2**63 - 1,
        -(2**63),
        1.5,
        math.inf,
        "text",
        "ü\U0001f600",
        b"\x00\xff",
        dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC),
        dt.datetime(1901, 1, 1, tzinfo=dt.UTC),
        dt.datetime(2026, 1, 2, 3, 4, 5, 678),  # noqa: DTZ001  naive on purpose
        dt.date(2026, 1, 2),
        dt.time(3, 4, 5, 678),
        dt.time(3, 4, tzinfo=HANOI),
        dt.timedelta(days=-3, seconds=5, microseconds=7),
        Decimal("1.10"),
        Decimal("1E+40"),
        uuid.UUID(int=7),
        [1, [dt.date(2026, 1, 2), None]],
        {"a": {"b": [Decimal(1)]}},
    ],
)
def test_a_value_arrives_with_its_type(value: Any) -> None:
    got = carried(value)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        ((1, [2, (3,)]), (1, [2, (3,)])),
        (bytearray(b"x"), b"x"),
        (dt.datetime(2026, 1, 1, 7, tzinfo=HANOI), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
    ],
)
def test_a_value_arrives_as_its_plain_form(value: Any, plain: Any) -> None:
    got = carried(value)
    assert got == plain
    assert type(got) is type(plain)


def test_nan_arrives_as_nan() -> None:
    assert math.isnan(carried(math.nan))
    assert carried(Decimal("NaN")).is_nan()


@given(st.decimals(allow_nan=False) | st.timedeltas() | st.dates() | st.datetimes() | st.uuids())
def test_any_tagged_value_arrives(value: Any) -> None:
    assert carried(value) == value


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "message"),
    [
        ("insert", ("t",), {}, "no columns"),
        ("insert", ("",), {"a": 1}, "cannot be a name"),
        ("insert", ("t",), {"a": 2**70}, r"t\.a: .*64 bits"),
        ("insert", ("t",), {"a": object()}, r"t\.a: a object cannot travel"),
        ("insert", ("t",), {"a": "\ud800"}, r"t\.a: .*surrogate"),
        ("insert", ("t",), {"a": {(1, 2): 3}}, r"t\.a: .*name in JSON"),
        ("upsert", ("t", {"a": 1}), {"key": ("id",)}, "the row has no 'id'"),
        ("upsert", ("t", {"id": 1}), {"key": ()}, "the key is empty"),
        ("upsert", ("t", {"id": 1}), {"key": "id"}, "is text"),
        ("upsert", ("t", {"id": 1, "total": 2}), {"update": ["totl"]}, "did you mean 'total'"),
        ("add", ("t",), {"key": {}, "n": 1}, "the key is empty"),
        ("add", ("t",), {"key": {"id": 1}}, "nothing to add"),
        ("add", ("t",), {"key": {"id": 1}, "id": 1}, "both in the key"),
        ("add", ("t",), {"key": {"id": 1}, "n": "1"}, "add a number"),
        ("add", ("t",), {"key": {"id": 1}, "n": True}, "add a number"),
        ("add", ("t",), {"key": {"id": 1}, "missing": "inser", "n": 1}, "did you mean 'insert'"),
        ("add", ("t",), {"key": {"id": math.nan}, "n": 1}, "equals nothing"),
        ("update", ("t",), {"key": {"id": None}, "n": 1}, "equals nothing"),
        ("update", ("t",), {"key": {}, "n": 1}, "every row"),
        ("update", ("t",), {"key": {"id": 1}}, "nothing to set"),
        ("delete", ("t",), {"key": {}}, "the key is empty"),
        ("execute", ("COMMIT",), {}, "begins with one of"),
        ("execute", ("/* x */ -- y\n ROLLBACK",), {}, "begins with one of"),
        ("execute", ("",), {}, "begins with one of"),
    ],
)
def test_what_can_never_work_fails_at_the_call(
    method: str, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    unit = UnitBuilder()
    with pytest.raises(UnitError, match=message):
        getattr(unit, method)(*args, **kwargs)
    assert len(unit) == 0


@pytest.mark.parametrize(
    "sql", ["select 1", " -- why\n/* a /* b */ WITH x AS (SELECT 1) SELECT 1", "Insert into t"]
)
def test_execute_takes_statements_that_keep_the_transaction(sql: str) -> None:
    assert len(unit_of("execute", sql)) == 1


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (unit_of("insert", "t", a=1, b=2), ("insert", ("a", "b"), (), ())),
        (unit_of("upsert", "t", {"id": 1, "a": 2}), ("upsert", ("id", "a"), ("id",), ("a",))),
        (
            unit_of("upsert", "t", {"id": 1, "a": 2}, update=[]),
            ("upsert", ("id", "a"), ("id",), ()),
        ),
        (unit_of("add", "t", key={"id": 1}, n=2), ("add", ("id", "n"), ("id",), ())),
        (unit_of("update", "t", key={"id": 1}, id=2), ("update", ("id", "id"), ("id",), ())),
        (unit_of("delete", "t", key={"a": 1, "b": 2}), ("delete", ("a", "b"), ("a", "b"), ())),
    ],
)
def test_a_shape_says_everything_but_the_values(
    unit: UnitBuilder, expected: tuple[object, ...]
) -> None:
    shape = parse_shape(decode_operations(unit.encode())[0][0])
    assert (shape.kind, shape.columns, shape.key, shape.overwritten) == expected


def test_the_values_are_those_of_the_call() -> None:
    tags = ["a"]
    unit = unit_of("insert", "t", tags=tags)
    tags.append("b")
    assert decode_operations(unit.encode())[0][1] == [["a"]]


def test_insert_many_keeps_all_rows_or_none() -> None:
    unit = UnitBuilder()
    unit.insert_many("t", [{"a": 1}, {"a": 2, "b": 3}])
    assert len(unit) == 2
    with pytest.raises(UnitError):
        unit.insert_many("t", [{"a": 1}, {}])
    assert len(unit) == 2
    unit.clear()
    assert len(unit) == 0
    assert decode_operations(unit.encode()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x91\x91\xa1t",
        b"\x91\x92\x01\x90",
        b"\x91\x92\xa1t\x91\xc7\x00\x63",
    ],
)
def test_bytes_of_anything_else_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_operations(data)


@pytest.mark.parametrize("text", ["", "{}", '["insert"]', '["drop","t",[]]', '["insert","t",[1]]'])
def test_a_text_that_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        parse_shape(text)


ASKED: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = [
    ("insert", ("t",), {"a": 1, "returning": ["id"]}, ("id",)),
    ("insert", ("t",), {"a": 1, "returning": True}, True),
    ("insert", ("t",), {"a": 1, "returning": False}, None),
    ("insert_many", ("t", [{"a": 1}]), {"returning": ("id", "a")}, ("id", "a")),
    ("upsert", ("t", {"id": 1, "a": 2}), {"returning": ["a"]}, ("a",)),
    ("add", ("t",), {"key": {"id": 1}, "n": 1, "returning": ["n"]}, ("n",)),
    ("update", ("t",), {"key": {"id": 1}, "n": 1, "returning": True}, True),
    ("delete", ("t",), {"key": {"id": 1}, "returning": ["id"]}, ("id",)),
    ("execute", ("SELECT 1",), {"returning": True}, True),
    ("execute", ("SELECT 1",), {}, None),
]


@pytest.mark.parametrize(("method", "args", "kwargs", "returning"), ASKED)
def test_a_shape_says_which_rows_come_back(
    method: str, args: tuple[Any, ...], kwargs: dict[str, Any], returning: Any
) -> None:
    unit = unit_of(method, *args, **kwargs)
    shape = parse_shape(decode_operations(unit.encode())[0][0])
    assert shape.returning == returning
    assert shape.kind == ("insert" if method == "insert_many" else method)
    assert unit.wants_rows is bool(returning)
    unit.clear()
    assert not unit.wants_rows


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "message"),
    [
        ("insert", ("t",), {"a": 1, "returning": []}, "names no column"),
        ("insert", ("t",), {"a": 1, "returning": "id"}, "give a list of columns"),
        ("delete", ("t",), {"key": {"id": 1}, "returning": [""]}, "cannot be a name"),
        ("execute", ("SELECT 1",), {"returning": ["id"]}, "name the columns in the SQL"),
    ],
)
def test_rows_that_cannot_be_asked_for_fail_at_the_call(
    method: str, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    unit = UnitBuilder()
    with pytest.raises(UnitError, match=message):
        getattr(unit, method)(*args, **kwargs)
    assert (len(unit), unit.calls, unit.wants_rows) == (0, (), False)


def test_calls_are_counted_by_their_operations() -> None:
    unit = UnitBuilder()
    unit.insert("t", a=1)
    unit.insert_many("t", [{"a": 1}, {"b": 2}])
    unit.insert_many("t", [])
    unit.execute("SELECT 1")
    assert unit.calls == (1, 2, 0, 1)
    assert len(unit) == 4
    unit.clear()
    assert not unit.calls


@pytest.mark.parametrize("text", ['["insert","t",["a"],{}]', '[{"returning":true}]', "[]"])
def test_a_question_without_its_shape_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        parse_shape(text)
