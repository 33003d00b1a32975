"""A call is held to the signature: how many, of which classes, and what the worker makes of it."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import codec
from runner.arguments import Signature
from runner.codec import MsgpackCodec
from runner.errors import ArgumentsError, DecodeError
from runner.shapes import ANYTHING


@dataclass
class Item:
    sku: str


class Own:
    """A class that nobody can convert to."""


# At the top of the module, where their annotations can be resolved.


async def nothing(_ctx: Any) -> None: ...


async def plain(_ctx: Any, a: int, b: str = "", c: float | None = None) -> str:
    return f"{a} {b} {c}"


async def named(_ctx: Any, a: int, *, b: str, c: bytes = b"") -> list[Item]:
    return [Item(f"{a} {b} {c!r}")]


async def first(_ctx: Any, a: int, b: int, /, c: int = 0) -> None: ...


async def rest(_ctx: Any, a: int, *more: Item, **by_name: UUID) -> None: ...


async def old(_ctx: Any, a: int = None, at: datetime = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013  the old way is the point


async def untyped(_ctx, a, b=1): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201


async def odd(_ctx: Any, a: Own, b: list[Own], c: Missing, d: int) -> Own:  # type: ignore[name-defined]  # noqa: F821, ARG001
    return a


async def ahead(_ctx: Any, a: Later) -> Later:
    return a


@dataclass
class Later:
    """Defined behind the function that names it."""

    n: int


FUNCTIONS = [nothing, plain, named, first, rest, old, untyped, odd]


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (nothing, (), {}),
        (plain, (1,), {}),
        (plain, (1, "b", 2.5), {}),
        (plain, (1,), {"c": None, "b": "x"}),
        (plain, (), {"a": 1}),
        (plain, (1, "b", 2), {}),
        (plain, (True,), {}),
        (named, (1,), {"b": ""}),
        (named, (), {"a": 1, "b": "", "c": bytearray(b"")}),
        (first, (1, 2), {"c": 3}),
        (rest, (1,), {}),
        (rest, (1, Item("a"), Item("b")), {"x": UUID(int=1)}),
        (rest, (), {"a": 1, "x": UUID(int=1)}),
        (old, (), {}),
        (old, (None, None), {}),
        (old, (1,), {"at": datetime.now(UTC)}),
        (untyped, (object(),), {"b": object()}),
        (odd, (1, 2, 3, 4), {}),
    ],
)
def test_call_that_fits_passes(function: Any, args: Any, kwargs: Any) -> None:
    Signature(function).check("t", args, kwargs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "said"),
    [
        (plain, (), {}, "missing a required argument: 'a'"),
        (plain, (1, "", 1.0, 2), {}, "too many positional arguments"),
        (plain, (1,), {"a": 2}, "multiple values for argument 'a'"),
        (plain, (1,), {"bb": "x"}, "unexpected keyword argument 'bb'"),
        (plain, (1,), {"_job_id": "x"}, r"arq's _job_id is task\.options\(key=…\) here"),
        (plain, (1,), {"colour": 1}, "'colour'$"),
        (named, (1,), {}, "missing a required (keyword-only )?argument: 'b'"),
        (named, (1, "x"), {}, "too many positional"),
        (named, (1,), {"b": "", "by": 1}, "'by'"),
        (named, (), {"b": ""}, "argument: 'a'"),
        (first, (1,), {"b": 2}, "'b'"),
        (rest, (), {"x": UUID(int=1)}, "'a'"),
        (nothing, (1,), {}, "too many"),
    ],
)
def test_call_that_does_not_bind_is_refused(
    function: Any, args: Any, kwargs: Any, said: str
) -> None:
    with pytest.raises(ArgumentsError, match=said) as caught:
        Signature(function).check("shop.sell", args, kwargs)
    assert str(caught.value).startswith("shop.sell(")


def test_near_name_is_suggested() -> None:
    async def resize(_ctx: Any, width: int = 0) -> None: ...

    with pytest.raises(ArgumentsError, match="'widht'; did you mean 'width'"):
        Signature(resize).check("resize", (), {"widht": 1})


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "facts"),
    [
        (plain, ("1",), {}, ("a", "int", "str")),
        (plain, (None,), {}, ("a", "int", "NoneType")),
        (plain, (1, 2), {}, ("b", "str", "int")),
        (plain, (1, "", "x"), {}, ("c", r"float \| None", "str")),
        (plain, (1,), {"b": b""}, ("b", "str", "bytes")),
        (named, (1,), {"b": "", "c": "text"}, ("c", "bytes", "str")),
        (rest, (1, Item("a"), 5), {}, ("*more", ".*Item", "int")),
        (rest, (1,), {"x": 5}, ("x", ".*UUID", "int")),
        (old, ("x",), {}, ("a", "int", "str")),
        (odd, (1, 2, 3, "x"), {}, ("d", "int", "str")),
    ],
)
def test_argument_of_a_wrong_class_is_refused_by_name(
    function: Any, args: Any, kwargs: Any, facts: tuple[str, str, str]
) -> None:
    parameter, expected, given_class = facts
    with pytest.raises(ArgumentsError) as caught:
        Signature(function).check("shop.sell", args, kwargs)
    error = caught.value
    assert (error.parameter, error.given) == (parameter, given_class)
    assert re.fullmatch(expected, error.expected)
    assert str(error).startswith(f"shop.sell: parameter {parameter!r} takes {error.expected}, not ")


names = st.sampled_from(["a", "b", "c", "at", "x", "more", "by_name"])
scalars = st.none() | st.integers(0, 5) | st.text(max_size=2) | st.just(Item("x"))


@given(
    st.sampled_from(FUNCTIONS),
    st.lists(scalars, max_size=5),
    st.dictionaries(names, scalars, max_size=4),
)
def test_quick_look_and_pythons_own_binding_agree(
    function: Any, args: list[Any], kwargs: dict[str, Any]
) -> None:
    whole = inspect.signature(function)
    try:
        whole.bind(None, *args, **kwargs)
        binds = True
    except TypeError:
        binds = False
    signature = Signature(function)
    assert signature._binds(len(args), kwargs) == binds
    if binds:
        signature.bind("t", tuple(args), kwargs)
    else:
        with pytest.raises(ArgumentsError):
            signature.bind("t", tuple(args), kwargs)


def wire(value: Any) -> Any:
    return MsgpackCodec().loads(MsgpackCodec().dumps({"v": value}))["v"]


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (plain, (1, "b", 2.5), {}),
        (plain, (1,), {"b": "x", "c": None}),
        (named, (1,), {"b": "", "c": b"\xff"}),
        (rest, (1, Item("a"), Item("b")), {"x": UUID(int=1), "y": UUID(int=2)}),
        (old, (None,), {"at": None}),
        (old, (1,), {"at": datetime(2026, 1, 1, tzinfo=UTC)}),
        (untyped, ([1, {"a": 2}],), {"b": None}),
    ],
)
def test_arguments_arrive_as_they_were_given(function: Any, args: Any, kwargs: Any) -> None:
    converted = Signature(function).convert(tuple(wire(list(args))), wire(kwargs))
    assert converted == (args, kwargs)


def test_int_of_an_optional_bool_or_int_stays_what_it_is() -> None:
    args, _ = Signature(plain).convert((True, "", 1), {})
    assert (args[0] is True, type(args[2])) == (True, float)


def test_arguments_without_annotations_are_not_touched() -> None:
    args: tuple[Any, ...] = ([1],)
    kwargs: dict[str, Any] = {"b": {}}
    converted = Signature(untyped).convert(args, kwargs)
    assert converted[0] is args
    assert converted[1] is kwargs


def test_annotations_that_nothing_converts_to_are_decided_once() -> None:
    signature = Signature(odd)
    own = Own()
    for _ in range(2):
        assert signature.convert((own, [own], own, 5), {}) == ((own, [own], own, 5), {})
    assert signature.returns is ANYTHING


def test_annotation_may_name_what_is_defined_later() -> None:
    signature = Signature(ahead)
    assert signature.convert(({"n": 1},), {}) == ((Later(1),), {})
    assert signature.returns.convert({"n": 2}) == Later(2)


def test_annotation_that_raises_while_it_is_resolved_is_left_alone() -> None:
    async def broken(_ctx: Any, a: 1 / 0, b: int) -> None: ...  # type: ignore[valid-type]

    signature = Signature(broken)
    assert signature.convert(("x", 1), {}) == (("x", 1), {})
    with pytest.raises(ArgumentsError, match="'b'"):
        signature.check("t", (1, "x"), {})


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "name"),
    [
        (plain, ("x",), {}, "a"),
        (plain, (1,), {"c": []}, "c"),
        (rest, (1, {"sku": 5}), {}, r"\*more"),
        (rest, (1,), {"x": "no uuid"}, "x"),
    ],
)
def test_bytes_that_do_not_fit_are_a_decode_error_by_name(
    function: Any, args: Any, kwargs: Any, name: str
) -> None:
    with pytest.raises(DecodeError, match=f"parameter '{name}'"):
        Signature(function).convert(args, kwargs)


def test_arguments_are_told_by_the_names_of_their_parameters() -> None:
    told = list(Signature(rest).named((1, 2, 3), {"x": 4}))
    assert told == [("a", 1), ("*more", 2), ("*more", 3), ("x", 4)]


def test_result_is_of_the_annotated_class() -> None:
    assert Signature(named).returns.convert([{"sku": "a"}]) == [Item("a")]
    assert Signature(nothing).returns.convert(None) is None
    assert Signature(untyped).returns is ANYTHING


def test_keywords_that_are_no_names_make_no_job() -> None:
    fields: codec.Fields = {"t": None, "f": "t", "a": [], "k": {1: 2}, "et": 1}
    with pytest.raises(DecodeError, match="not a job"):
        codec.decode_job(MsgpackCodec(), MsgpackCodec().dumps(fields))
