"""What travels comes back as it was, and bytes of any origin are harmless."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import pickle
import struct
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from arq.jobs import DeserializationError, SerializationError
from arq.worker import JobExecutionFailed
from hypothesis import given
from hypothesis import strategies as st

from runner import codec, errors, failures
from runner.codec import HookCodec, JobRecord, MsgpackCodec, PickleCodec, ResultRecord
from runner.errors import DecodeError, EncodeError, RemoteError, SettingsError

MSGPACK = MsgpackCodec()


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Item:
    sku: str
    price: Decimal


class Order(msgspec.Struct):
    number: int
    items: list[Item]


class Point(NamedTuple):
    x: int
    y: int


def record(*args: Any, **kwargs: Any) -> JobRecord:
    return JobRecord(
        task="t", args=args, kwargs=kwargs, attempt=None, enqueued_ms=1, options={"exp": 5}
    )


def result(value: Any, *, success: bool = True) -> ResultRecord:
    return ResultRecord(
        job_id="j",
        queue="q",
        task="t",
        args=(1,),
        kwargs={"k": 2},
        attempt=3,
        enqueued_ms=4,
        started_ms=5,
        finished_ms=6,
        success=success,
        result=value,
    )


VALUES = [
    pytest.param(Item("a", Decimal("1.50")), Item, id="dataclass"),
    pytest.param(Order(1, [Item("a", Decimal(2))]), Order, id="struct"),
    pytest.param(datetime(2024, 5, 1, 12, 30, 0, 5, tzinfo=UTC), datetime, id="aware datetime"),
    pytest.param(datetime(2024, 5, 1, 12, 30), datetime, id="naive datetime"),  # noqa: DTZ001
    pytest.param(date(2024, 5, 1), date, id="date"),
    pytest.param(time(1, 2, 3), time, id="time"),
    pytest.param(timedelta(days=1, microseconds=3), timedelta, id="timedelta"),
    pytest.param(Decimal("0.10"), Decimal, id="decimal"),
    pytest.param(UUID(int=7), UUID, id="uuid"),
    pytest.param(Colour.RED, Colour, id="enum"),
    pytest.param(b"\x00\xff", bytes, id="bytes"),
    pytest.param({1, 2}, set[int], id="set"),
    pytest.param(frozenset({"a"}), frozenset[str], id="frozenset"),
    pytest.param((1, "a"), tuple[int, str], id="tuple"),
    pytest.param(Point(1, 2), Point, id="named tuple"),
    pytest.param({1: "a"}, dict[int, str], id="numbers as keys"),
    pytest.param(2**64 - 1, int, id="largest number"),
    pytest.param(-(2**63), int, id="smallest number"),
    pytest.param(None, int | None, id="nothing"),
    pytest.param([Item("a", Decimal(1)), None], list[Item | None], id="nested"),
]


@pytest.mark.parametrize("name", ["msgpack", "pickle"])
@pytest.mark.parametrize(("value", "annotation"), VALUES)
def test_value_comes_back_as_the_annotation_says(name: str, value: Any, annotation: Any) -> None:
    chosen = codec.codec_named(name)
    data = codec.encode_job(chosen, record(value))
    (travelled,) = codec.decode_job(chosen, data).args
    assert codec.convert(travelled, annotation) == value


@pytest.mark.parametrize("chosen", [MSGPACK, PickleCodec(), HookCodec()], ids=lambda c: c.name)
def test_job_and_result_come_back_whole(chosen: Any) -> None:
    job = record(1, "a", key=[None, 2.5])
    assert codec.decode_job(chosen, codec.encode_job(chosen, job)) == job
    ended = result({"ok": True})
    assert codec.decode_result(chosen, codec.encode_result(chosen, ended)) == ended


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(plain, max_size=4), st.dictionaries(st.text(), plain, max_size=4))
def test_plain_data_comes_back_as_it_was(args: list[Any], kwargs: dict[str, Any]) -> None:
    job = codec.decode_job(MSGPACK, codec.encode_job(MSGPACK, record(*args, **kwargs)))
    assert (list(job.args), job.kwargs) == (args, kwargs)


# Bytes of any origin.


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def reads(data: bytes) -> None:
    """Read bytes as a job and as a result: either works or raises `DecodeError`."""
    for read in (codec.decode_job, codec.decode_result):
        with contextlib.suppress(DecodeError):
            read(MSGPACK, data)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read(data: bytes) -> None:
    reads(data)


@given(st.dictionaries(st.sampled_from([*"tfakxsrq", "id", "et", "st", "ft"]), plain))
def test_fields_of_any_type_are_refused_or_read(fields: dict[str, Any]) -> None:
    reads(msgspec.msgpack.encode(fields))


@given(st.data())
def test_truncated_job_is_refused(data: st.DataObject) -> None:
    whole = codec.encode_job(MSGPACK, record(1, "abc", k=[1, 2, {"x": b"y"}]))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DecodeError):
        codec.decode_job(MSGPACK, whole[:cut])


@given(st.data())
def test_altered_job_is_refused_or_read(data: st.DataObject) -> None:
    whole = bytearray(codec.encode_job(MSGPACK, record(1, "abc", k=[1, 2, {"x": b"y"}])))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    reads(bytes(whole))


@given(st.integers(-128, 127), st.binary(max_size=60))
def test_extension_of_any_kind_is_refused_or_read(code: int, inner: bytes) -> None:
    reads(msgspec.msgpack.encode({"r": msgspec.msgpack.Ext(code, inner)}))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x91" * 100_000, id="deep lists"),
        pytest.param(b"\x81\xa1a" * 100_000, id="deep dicts"),
        pytest.param(b"\xdd" + struct.pack(">I", 2**32 - 1), id="list of four billion"),
        pytest.param(b"\xdf" + struct.pack(">I", 2**32 - 1), id="dict of four billion"),
        pytest.param(b"\xc6" + struct.pack(">I", 2**32 - 1), id="four gigabytes"),
        pytest.param(b"\xdb" + struct.pack(">I", 2**32 - 1) + b"x", id="text of four gigabytes"),
        pytest.param(b"\x81\x90\x01", id="a list as a key"),
        pytest.param(b"\x81\xa1f\xa2\xff\xfe", id="text that is none"),
        pytest.param(b"\xc7\x0c\xff" + b"\xff" * 12, id="time beyond any calendar"),
        pytest.param(b"\x01", id="a number"),
        pytest.param(b"\xc1", id="a byte that msgpack has not"),
        pytest.param(msgspec.msgpack.encode([1]), id="a list"),
    ],
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        codec.decode_job(MSGPACK, data)
    with pytest.raises(DecodeError):
        codec.decode_result(MSGPACK, data)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_is_refused_and_never_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    fields = {"t": 1, "f": "f", "a": (Bomb(mark),), "k": {}, "et": 1}
    data = pickle.dumps(fields, protocol)
    with pytest.raises(DecodeError):
        codec.decode_job(MSGPACK, data)
    assert not mark.exists()
    pickle.loads(data)
    assert mark.exists(), "the pickle was a live one"


@pytest.mark.parametrize(
    "change",
    [
        {"f": 1},
        {"a": "text"},
        {"k": []},
        {"t": "1"},
        {"et": "now"},
        {"et": 2**62},
        {"et": -1},
        {"x": [1]},
        {"x": {"exp": "soon"}},
    ],
    ids=str,
)
def test_job_with_a_field_of_the_wrong_type_is_refused(change: dict[str, Any]) -> None:
    fields = {"t": 1, "f": "f", "a": [], "k": {}, "et": 1}
    codec.decode_job(MSGPACK, MSGPACK.dumps(fields))
    with pytest.raises(DecodeError, match="not a job"):
        codec.decode_job(MSGPACK, MSGPACK.dumps({**fields, **change}))


@given(plain, st.sampled_from([int, str, Item, Order, set[int], datetime, UUID, Colour, Bomb]))
def test_conversion_succeeds_or_says_that_it_does_not_fit(value: Any, annotation: Any) -> None:
    with contextlib.suppress(DecodeError):
        codec.convert(value, annotation)


def test_class_that_nothing_converts_to_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="no conversion"):
        codec.convert({}, Bomb)


# Values that cannot travel.


@pytest.mark.parametrize(
    "value",
    [object(), 2**64, -(2**63) - 1, 1j, "\ud800", lambda: None],
    ids=["object", "too large", "too small", "complex", "no text", "function"],
)
def test_value_that_cannot_travel_is_refused(value: Any) -> None:
    with pytest.raises(EncodeError):
        MSGPACK.dumps({"v": value})


def test_endless_value_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError):
        MSGPACK.dumps({"v": endless})


@pytest.mark.parametrize("chosen", [MSGPACK, PickleCodec()], ids=lambda c: c.name)
def test_result_that_cannot_travel_becomes_a_failure_that_says_so(chosen: Any) -> None:
    back = codec.decode_result(chosen, codec.encode_result(chosen, result(lambda: None)))
    assert back.success is False
    assert "unable to serialize result" in back.result
    assert back.args == (1,)


# Exceptions.


@pytest.mark.parametrize(
    "exc",
    [
        asyncio.CancelledError("why"),
        TimeoutError("why"),
        errors.JobExpired("why"),
        errors.TooManyTries("why"),
        errors.TooManyCrashes("why"),
        errors.TaskNotFound("why"),
        errors.Cancel("why"),
        JobExecutionFailed("why"),
        SerializationError("why"),
        DeserializationError("why"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_known_exception_comes_back_as_itself(exc: BaseException) -> None:
    back = codec.decode_result(MSGPACK, codec.encode_result(MSGPACK, result(exc, success=False)))
    assert type(back.result) is type(exc)
    assert str(back.result) == "why"


def test_other_exceptions_come_back_as_a_description() -> None:
    try:
        raise LookupError("no row")  # noqa: TRY301  it needs a traceback
    except LookupError as caught:
        data = codec.encode_result(MSGPACK, result(caught, success=False))
    error = codec.decode_result(MSGPACK, data).result
    assert isinstance(error, RemoteError)
    assert (error.type_name, error.message) == ("LookupError", "no row")
    assert 'raise LookupError("no row")' in error.remote_traceback


def test_rejected_write_keeps_its_facts() -> None:
    rejected = errors.WriteRejected(
        "no",
        sqlstate="23505",
        table="t",
        constraint="c",
        detail="d",
        parameters=("int", "str(3)"),
    )
    data = codec.encode_result(MSGPACK, result(rejected, success=False))
    error = codec.decode_result(MSGPACK, data).result
    assert isinstance(error, errors.WriteRejected)
    assert (error.sqlstate, error.table, error.constraint, error.detail) == ("23505", "t", "c", "d")
    assert error.parameters == ("int", "str(3)")


def test_bytes_do_not_choose_what_is_constructed() -> None:
    described = msgspec.msgpack.encode({"type": "builtins.exec", "message": "1/0"})
    fields = MSGPACK.loads(msgspec.msgpack.encode({"r": msgspec.msgpack.Ext(1, described)}))
    assert isinstance(fields["r"], RemoteError)


def test_message_that_is_no_text_travels_as_an_escape() -> None:
    described = failures.describe(OSError("/tmp/\udcff"))
    assert described["message"] == "/tmp/\\udcff"
    MSGPACK.dumps(described)


# Hooks and names.


def test_hooks_that_raise_are_codec_errors() -> None:
    def refuse(_value: Any) -> Any:
        raise KeyError("no")

    hooks = HookCodec(refuse, refuse)
    with pytest.raises(EncodeError):
        hooks.dumps({})
    with pytest.raises(DecodeError):
        hooks.loads(b"")


def test_hook_that_gives_no_fields_is_refused() -> None:
    with pytest.raises(DecodeError, match="expected a dict"):
        HookCodec(None, lambda _data: 5).loads(b"")


@pytest.mark.parametrize(("name", "hint"), [("msgpak", "msgpack"), ("pickel", "pickle")])
def test_unknown_codec_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=f"did you mean '{hint}'"):
        codec.codec_named(name)
