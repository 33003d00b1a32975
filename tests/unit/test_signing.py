"""What is signed, what verifies, and which keys are keys."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import codec
from runner.codec import HookCodec, JobRecord, MsgpackCodec, PickleCodec, ResultRecord
from runner.errors import DecodeError, EncodeError, SettingsError
from runner.signing import MAC_BYTES, KeyRing, SignedCodec, chosen_codec

if TYPE_CHECKING:
    from collections.abc import Callable

OLD, NEW = b"o" * 32, b"n" * 32
JOB: codec.Fields = {"t": None, "f": "add", "a": [1, 2], "k": {}, "et": 5}
RESULT: codec.Fields = {
    **JOB, "s": True, "r": 3, "st": 6, "ft": 7, "q": "arq:queue", "id": "j",
}  # fmt: skip


class Watched:
    """An inner codec that knows what it was given to read."""

    name = "watched"

    def __init__(self) -> None:
        self.inner = MsgpackCodec()
        self.read: list[bytes] = []

    def dumps(self, fields: codec.Fields) -> bytes:
        return self.inner.dumps(fields)

    def loads(self, data: bytes) -> codec.Fields:
        self.read.append(data)
        return self.inner.loads(data)


def signed(keys: Any = (("new", NEW), ("old", OLD)), inner: Any = None) -> SignedCodec:
    return SignedCodec(inner or MsgpackCodec(), keys)


def job_record(**options: Any) -> JobRecord:
    return JobRecord(
        task="add", args=(1, 2), kwargs={}, attempt=None, enqueued_ms=5, options=options
    )


def result_record(value: Any = 3, job_id: str = "j") -> ResultRecord:
    return ResultRecord(
        job_id=job_id,
        queue="arq:queue",
        task="add",
        args=(1, 2),
        kwargs={},
        attempt=1,
        enqueued_ms=5,
        started_ms=6,
        finished_ms=7,
        success=True,
        result=value,
    )


def test_signed_bytes_are_laid_out_as_written() -> None:
    data = signed().dumps(JOB)
    body = MsgpackCodec().dumps(JOB)
    assert data[:6] == b"\xc1j\x03new"
    assert len(data) == 6 + MAC_BYTES + len(body)
    assert data.endswith(body)
    assert signed().dumps(RESULT)[:2] == b"\xc1r"


@pytest.mark.parametrize("inner", [MsgpackCodec(), PickleCodec(), HookCodec()])
def test_job_and_result_come_back_whole(inner: Any) -> None:
    chosen = signed(inner=inner)
    job = job_record(exp=9)
    assert codec.decode_job(chosen, codec.encode_job(chosen, job)) == job
    result = result_record()
    assert codec.decode_result(chosen, codec.encode_result(chosen, result)) == result


@given(st.data())
def test_any_flipped_bit_is_a_decode_error_before_anything_is_read(data: st.DataObject) -> None:
    inner = Watched()
    chosen = signed(inner=inner)
    whole = bytearray(chosen.dumps(data.draw(st.sampled_from([JOB, RESULT]))))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    for loads in (chosen.loads, chosen.loads_job, chosen.loads_result):
        with pytest.raises(DecodeError):
            loads(bytes(whole))
    assert inner.read == []


@given(st.integers(0, 200))
def test_bytes_that_are_cut_off_are_a_decode_error(length: int) -> None:
    whole = signed().dumps(JOB)
    with pytest.raises(DecodeError):
        signed().loads(whole[: min(length, len(whole) - 1)])


@given(st.binary(max_size=100) | st.binary(max_size=100).map(b"\xc1j\x03new".__add__))
def test_random_bytes_are_a_decode_error(data: bytes) -> None:
    inner = Watched()
    with pytest.raises(DecodeError):
        signed(inner=inner).loads(data)
    assert inner.read == []


def test_hostile_pickle_is_not_unpickled_without_a_key() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("unpickled",))

    chosen = signed(inner=PickleCodec())
    with pytest.raises(DecodeError, match="not signed"):
        chosen.loads(pickle.dumps(Bomb()))


def test_result_replayed_as_a_job_is_a_decode_error() -> None:
    inner = Watched()
    chosen = signed(inner=inner)
    data = codec.encode_result(chosen, result_record())
    with pytest.raises(DecodeError, match="not signed as a job"):
        codec.decode_job(chosen, data)
    with pytest.raises(DecodeError, match="not signed as a job"):
        chosen.loads_job(data)
    assert inner.read == []


def test_job_replayed_as_a_result_is_a_decode_error() -> None:
    chosen = signed()
    with pytest.raises(DecodeError, match="not signed as a result"):
        codec.decode_result(chosen, codec.encode_job(chosen, job_record()))


def test_result_is_no_job_without_a_signature_either() -> None:
    plain = MsgpackCodec()
    with pytest.raises(DecodeError, match="fields of a result"):
        codec.decode_job(plain, codec.encode_result(plain, result_record()))


def test_relabelled_result_is_a_decode_error() -> None:
    data = bytearray(signed().dumps(RESULT))
    data[1:2] = b"j"
    with pytest.raises(DecodeError, match="signature is wrong"):
        signed().loads_job(bytes(data))


def test_job_is_refused_under_another_id() -> None:
    chosen = signed()
    data = codec.encode_job(chosen, job_record(id="mine"))
    assert codec.decode_job(chosen, data, job_id="mine").task == "add"
    with pytest.raises(DecodeError, match="under another id: 'mine'"):
        codec.decode_job(chosen, data, job_id="yours")


def test_job_of_a_stock_client_names_no_id_and_runs_under_any() -> None:
    chosen = signed()
    data = codec.encode_job(chosen, job_record())
    assert codec.decode_job(chosen, data, job_id="any").task == "add"


def test_signed_result_of_another_job_is_refused() -> None:
    chosen = signed()
    data = codec.encode_result(chosen, result_record(job_id="mine"))
    assert codec.decode_result(chosen, data, job_id="mine").result == 3
    with pytest.raises(DecodeError, match="for another job"):
        codec.decode_result(chosen, data, job_id="yours")


# Rotation.


@pytest.mark.parametrize(
    ("writer", "reader", "reads"),
    [
        ([("old", OLD)], [("old", OLD), ("new", NEW)], True),
        ([("old", OLD), ("new", NEW)], [("new", NEW), ("old", OLD)], True),
        ([("new", NEW), ("old", OLD)], [("old", OLD), ("new", NEW)], True),
        ([("new", NEW)], [("old", OLD)], False),
        ([("old", NEW)], [("old", OLD)], False),
        ([("other", OLD)], [("old", OLD)], False),
    ],
    ids=[
        "new key is known, not used yet",
        "new key signs",
        "not everybody has changed yet",
        "unknown key",
        "other key under a known id",
        "known key under another id",
    ],
)
def test_keys_rotate(writer: Any, reader: Any, reads: bool) -> None:
    data = signed(writer).dumps(JOB)
    if reads:
        assert signed(reader).loads(data) == JOB
    else:
        with pytest.raises(DecodeError):
            signed(reader).loads(data)


def test_first_key_signs_unless_another_is_named() -> None:
    keys = {"new": NEW, "old": OLD}
    assert b"new" in signed(keys).dumps(JOB)
    assert b"old" in SignedCodec(MsgpackCodec(), keys, current="old").dumps(JOB)
    with pytest.raises(SettingsError, match="no key 'next'"):
        SignedCodec(MsgpackCodec(), keys, current="next")


# Keys.

TEXT = f"new:{NEW.hex()},old:{OLD.hex()}"


@pytest.mark.parametrize(
    "given_keys",
    [
        {"new": NEW, "old": OLD},
        [("new", NEW), ("old", OLD)],
        (("new", bytearray(NEW)), ("old", OLD)),
        TEXT,
        f" new:{NEW.hex()} , old:{OLD.hex()} ,",
    ],
    ids=["mapping", "pairs", "bytearray", "text", "text with spaces"],
)
def test_keys_are_given_in_any_of_the_forms(given_keys: Any) -> None:
    ring = KeyRing.of(given_keys)
    assert dict(ring.keys) == {"new": NEW, "old": OLD}
    assert ring.current == "new"


@pytest.mark.parametrize(
    ("given_keys", "why"),
    [
        ({}, "holds no key"),
        ("", "holds no key"),
        (" , ", "holds no key"),
        ({"a": b"k" * 15}, "'a' has 15 bytes.* 16 to 64"),
        ({"a": b"k" * 65}, "'a' has 65 bytes"),
        ({"a": "k" * 32}, "'a' is a str, but must be bytes"),
        ({"": NEW}, "1 to 32"),
        ({"a b": NEW}, "1 to 32"),
        ({"a:b": NEW}, "1 to 32"),
        ({"é": NEW}, "1 to 32"),
        ({"a\n": NEW}, "1 to 32"),
        ({"a" * 33: NEW}, "1 to 32"),
        ({5: NEW}, "1 to 32"),
        ([("a", NEW), ("a", OLD)], "'a' is given twice"),
        (f"a:{NEW.hex()},a:{OLD.hex()}", "'a' is given twice"),
        ("a", "id:hex"),
        ("a:xyz", "'a' is not hexadecimal"),
        ("a:abc", "'a' is not hexadecimal"),
        (5, "takes"),
        ([NEW], "takes"),
    ],
)
def test_keys_that_are_none_are_refused(given_keys: Any, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        KeyRing.of(given_keys)


@pytest.mark.parametrize(
    "given_keys",
    ["5ec2e7-in-place-of-an-id!:00", "a:5ec2e7zz", {"a": "5ec2e7" * 8}, [("a", b"5ec2e7")]],
)
def test_no_message_shows_a_key(given_keys: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        KeyRing.of(given_keys)
    shown = f"{caught.value} {caught.value.__cause__} {caught.value.__context__ and ''}"
    assert "5ec2e7" not in shown


def test_no_repr_shows_a_key() -> None:
    secret = b"5ec2e7" * 4
    for shown in (repr(KeyRing.of({"a": secret})), repr(signed({"a": secret}))):
        assert "5ec2e7" not in shown
        assert "a" in shown


# Choosing a codec.


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("msgpack", None, "msgpack"),
        ("pickle", None, "pickle"),
        ("msgpack", TEXT, "signed msgpack"),
        ("pickle", {"a": NEW}, "signed pickle"),
    ],
)
def test_codec_is_signed_when_there_are_keys(name: str, keys: Any, expected: str) -> None:
    chosen = chosen_codec(name, keys)
    assert chosen is not None
    assert chosen.name == expected
    assert codec.signs(chosen) is (keys is not None)


def test_no_codec_and_no_keys_choose_none() -> None:
    assert chosen_codec(None) is None


def test_keys_without_a_codec_are_refused() -> None:
    with pytest.raises(SettingsError, match="needs a codec"):
        chosen_codec(None, TEXT)


def test_codec_that_signs_is_not_signed_again() -> None:
    with pytest.raises(SettingsError, match="signs already"):
        chosen_codec(signed(), TEXT)
    assert chosen_codec(signed()) is not None


@pytest.mark.parametrize(
    ("reader", "hint"),
    [(MsgpackCodec(), "give the signing_keys"), (PickleCodec(), "give the signing_keys")],
)
def test_reader_without_keys_is_told_why_it_cannot_read(reader: Any, hint: str) -> None:
    with pytest.raises(DecodeError, match=hint):
        reader.loads(signed().dumps(JOB))


def test_value_that_cannot_travel_is_an_encode_error_as_ever() -> None:
    with pytest.raises(EncodeError):
        signed().dumps({"v": object()})


def test_result_that_cannot_travel_is_a_signed_apology() -> None:
    chosen = signed()
    read = codec.decode_result(chosen, codec.encode_result(chosen, result_record(object())))
    assert (read.success, "unable to serialize" in read.result) == (False, True)


def test_inner_bytes_that_are_no_fields_are_a_decode_error() -> None:
    bytes_of: Callable[[Any], bytes] = lambda _fields: b"\x05"  # noqa: E731  a hook
    chosen = signed(inner=HookCodec(bytes_of, lambda _data: 5))
    with pytest.raises(DecodeError, match="expected a dict"):
        chosen.loads(chosen.dumps(JOB))


def test_body_of_another_kind_than_its_label_is_a_decode_error() -> None:
    chosen = signed(inner=HookCodec(lambda _fields: b"x", lambda _data: RESULT))
    with pytest.raises(DecodeError, match="hold another"):
        chosen.loads_job(chosen.dumps(JOB))


# The codec behind hooks.


def test_codec_is_found_behind_its_own_hooks() -> None:
    chosen = signed()
    assert codec.codec_of(chosen.dumps, chosen.loads) is chosen
    assert codec.reader_of(chosen.loads) is chosen


@pytest.mark.parametrize(
    ("serializer", "deserializer"),
    [
        (None, None),
        (pickle.dumps, pickle.loads),
        (json.dumps, json.loads),
        (Watched().dumps, Watched().loads),
        (signed().dumps, signed().loads),
        (signed().dumps, None),
        (None, signed().loads),
        (MsgpackCodec().dumps, signed().loads_job),
    ],
)
def test_hooks_that_are_no_codecs_own_stay_hooks(serializer: Any, deserializer: Any) -> None:
    assert isinstance(codec.codec_of(serializer, deserializer), HookCodec)
