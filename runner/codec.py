"""Write jobs and results as bytes, and read them back without trusting them."""

from __future__ import annotations

import ipaddress
import logging
import pathlib
import pickle
from typing import Annotated, Any, Protocol, TypeAlias, cast

import msgspec

from runner.errors import DecodeError, EncodeError, SettingsError, did_you_mean
from runner.failures import describe, restore

Fields: TypeAlias = dict[str, Any]

logger = logging.getLogger("arq.jobs")

_END_OF_CALENDAR_MS = 253_402_300_800_000  # the year 10000: no datetime goes so far
_EXCEPTION = 1  # the msgpack extension type of an exception in a result
_SIGNED = b"\xc1"  # begins signed bytes; neither msgpack nor a pickle can begin so
_TEXTUAL: tuple[type, ...] = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
    pathlib.PurePath,
)
"""Classes that travel as their text."""
_BYTES = (bytes, bytearray, memoryview)
"""Bytes travel as bytes; msgspec would take any text for them, as base64."""
_PYDANTIC_TEXTUAL = ("pydantic.networks", "pydantic_core._pydantic_core")


class Codec(Protocol):
    """Turn arq's dict of a job or of a result into bytes and back.

    The two methods have the form of arq's ``job_serializer`` and ``job_deserializer``.
    """

    name: str

    def dumps(self, fields: Fields) -> bytes:
        """Encode; raise `EncodeError` for a value that cannot travel."""
        ...

    def loads(self, data: bytes) -> Fields:
        """Decode; raise `DecodeError` for bytes that are not of this codec."""
        ...


class JobRecord(msgspec.Struct, frozen=True):
    """One job as it travels: arq's five fields, and ours in ``options``."""

    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attempt: int | None
    enqueued_ms: int
    options: dict[str, Any]


class _JobOnWire(msgspec.Struct, gc=False):
    """A job as msgspec reads it at once; what is not quite so goes through `Codec.loads`."""

    f: str
    a: tuple[Any, ...]
    k: dict[str, Any]
    t: int | None
    et: Annotated[int, msgspec.Meta(ge=0, lt=_END_OF_CALENDAR_MS)]
    x: dict[str, Any] | None = None
    s: Any = msgspec.UNSET
    r: Any = msgspec.UNSET


class ResultRecord(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={
        "attempt": "t",
        "task": "f",
        "args": "a",
        "kwargs": "k",
        "enqueued_ms": "et",
        "success": "s",
        "result": "r",
        "started_ms": "st",
        "finished_ms": "ft",
        "queue": "q",
        "job_id": "id",
    },
):
    """One result as it travels, field for field as arq keeps it, under arq's names.

    ``result`` is an exception instance when ``success`` is false.
    """

    attempt: int
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    enqueued_ms: int
    success: bool
    result: Any
    started_ms: int
    finished_ms: int
    queue: str
    job_id: str


class PickleCodec:
    """arq's own format. Only for fleets in migration: unpickling runs what the bytes say."""

    name = "pickle"

    def dumps(self, fields: Fields) -> bytes:
        """Pickle the fields."""
        try:
            return pickle.dumps(fields)
        except Exception as exc:
            raise EncodeError(f"cannot pickle: {exc}") from exc

    def loads(self, data: bytes) -> Fields:
        """Unpickle bytes of a trusted fleet."""
        try:
            fields = pickle.loads(data)  # noqa: S301  asked for by codec="pickle"
        except Exception as exc:
            raise DecodeError(f"not a pickle: {exc}{_why_not(data)}") from exc
        return _checked(fields)


class MsgpackCodec:
    """msgpack by msgspec: plain data only, nothing in the bytes is ever executed.

    Dataclasses, msgspec Structs, pydantic models, datetimes, Decimal, UUID, enums and
    sets are written as plain data; a task's annotations turn them back.
    """

    name = "msgpack"

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)
        self._decoder = msgspec.msgpack.Decoder(ext_hook=_decode_extension)
        self._job_decoder = msgspec.msgpack.Decoder(_JobOnWire, ext_hook=_decode_extension)

    def dumps(self, fields: Fields) -> bytes:
        """Encode the fields; raise `EncodeError` naming what cannot travel."""
        try:
            return self._encoder.encode(fields)
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            # UnicodeEncodeError of a lone surrogate is a ValueError.
            raise EncodeError(f"cannot encode: {exc}") from exc

    def loads(self, data: bytes) -> Fields:
        """Decode bytes of any origin; raise `DecodeError` unless they hold fields."""
        try:
            fields = self._decoder.decode(data)
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as exc:
            raise DecodeError(f"not a msgpack job or result: {exc}{_why_not(data)}") from exc
        return _checked(fields)

    def job(self, data: bytes) -> JobRecord | None:
        """Decode a plain job at once; None: `loads` says what it is, or what is wrong with it."""
        try:
            read = self._job_decoder.decode(data)
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError):
            return None
        if read.x or (read.s is not msgspec.UNSET and read.r is not msgspec.UNSET):
            return None
        return JobRecord(read.f, read.a, read.k, read.t, read.et, {})

    def result(self, record: ResultRecord) -> bytes | None:
        """Encode a result at once, as `dumps` would; None: `dumps` says what is wrong with it."""
        try:
            return self._encoder.encode(record)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return None


def codec_named(name: str) -> Codec:
    """Return the codec of that name: ``"msgpack"`` or ``"pickle"``."""
    match name:
        case "msgpack":
            return MsgpackCodec()
        case "pickle":
            return PickleCodec()
        case _:
            known = ("msgpack", "pickle")
            raise SettingsError(
                f"unknown codec {name!r}{did_you_mean(name, known)}; known: {known}",
            )


class HookCodec:
    """A codec made of arq's ``job_serializer`` and ``job_deserializer`` hooks."""

    name = "hooks"

    def __init__(self, serializer: Any = None, deserializer: Any = None) -> None:
        self._dumps = serializer or pickle.dumps
        self._loads = deserializer or pickle.loads

    def dumps(self, fields: Fields) -> bytes:
        """Encode by the user's hook."""
        try:
            return cast(bytes, self._dumps(fields))
        except EncodeError:
            raise
        except Exception as exc:
            raise EncodeError(f"the serializer failed: {exc}") from exc

    def loads(self, data: bytes) -> Fields:
        """Decode by the user's hook."""
        try:
            fields = self._loads(data)
        except DecodeError:
            raise
        except Exception as exc:
            raise DecodeError(f"the deserializer failed: {exc}") from exc
        return _checked(fields)


def codec_of(serializer: Any = None, deserializer: Any = None) -> Codec:
    """Return the codec behind arq's two hooks: one of ours, where they are its methods."""
    owner = _owner(deserializer)
    if owner is not None and serializer == owner.dumps:
        return owner
    return HookCodec(serializer, deserializer)


def reader_of(deserializer: Any = None) -> Codec:
    """Return what reads as arq's hook does: a codec of ours, where the hook is its method."""
    return _owner(deserializer) or HookCodec(None, deserializer)


def _owner(deserializer: Any) -> Codec | None:
    owner = getattr(deserializer, "__self__", None)
    ours = isinstance(owner, MsgpackCodec | PickleCodec | HookCodec) or signs(owner)
    return owner if ours and owner is not None and deserializer == owner.loads else None


def signs(codec: object) -> bool:
    """Tell whether a codec signs what it writes."""
    return getattr(codec, "signs", False) is True


def encode_job(codec: Codec, record: JobRecord) -> bytes:
    """Encode one job; raise `EncodeError`."""
    fields: Fields = {
        "t": record.attempt,
        "f": record.task,
        "a": record.args,
        "k": record.kwargs,
        "et": record.enqueued_ms,
    }
    if record.options:
        fields["x"] = record.options
    return codec.dumps(fields)


def decode_job(codec: Codec, data: bytes, *, job_id: str = "") -> JobRecord:
    """Decode one job of ours or of a stock client; raise `DecodeError`.

    With `job_id`, a job whose bytes name another id is refused: signed jobs of our clients
    name theirs, so that nobody runs one again under another id.
    """
    if isinstance(codec, MsgpackCodec) and (record := codec.job(data)) is not None:
        return record
    fields = getattr(codec, "loads_job", codec.loads)(data)
    if is_result(fields):
        raise DecodeError("not a job: these are the fields of a result")
    try:
        task, args, kwargs = fields["f"], fields["a"], fields["k"]
        attempt, enqueued_ms = fields["t"], fields["et"]
        options = fields.get("x") or {}
    except KeyError as exc:
        raise DecodeError(f"not a job: field {exc} is missing") from exc
    if not (
        isinstance(task, str)
        and isinstance(args, (list, tuple))
        and isinstance(kwargs, dict)
        and all(isinstance(name, str) for name in kwargs)
        and (attempt is None or isinstance(attempt, int))
        and isinstance(enqueued_ms, int)
        and 0 <= enqueued_ms < _END_OF_CALENDAR_MS
        and isinstance(options, dict)
        and isinstance(options.get("exp", 0), int)
    ):
        raise DecodeError("not a job: a field has the wrong type, or no sensible value")
    if job_id and options.get("id", job_id) != job_id:
        raise DecodeError(f"this job was signed under another id: {options['id']!a}")
    return JobRecord(
        task=task,
        args=tuple(args),
        kwargs=kwargs,
        attempt=attempt,
        enqueued_ms=enqueued_ms,
        options=options,
    )


def encode_result(codec: Codec, record: ResultRecord) -> bytes:
    """Encode one result; a value that cannot travel becomes a failure that says so."""
    if isinstance(codec, MsgpackCodec) and (encoded := codec.result(record)) is not None:
        return encoded
    fields: Fields = {
        "t": record.attempt,
        "f": record.task,
        "a": record.args,
        "k": record.kwargs,
        "et": record.enqueued_ms,
        "s": record.success,
        "r": record.result,
        "st": record.started_ms,
        "ft": record.finished_ms,
        "q": record.queue,
        "id": record.job_id,
    }
    try:
        return codec.dumps(fields)
    except EncodeError as exc:
        ref = f"{record.job_id}:{record.task}"
        logger.warning("error serializing result of %s", ref, exc_info=True)
        fields.update(s=False, r=f"unable to serialize result: {exc}")
    try:
        return codec.dumps(fields)
    except EncodeError:
        fields.update(a=(), k={}, r="unable to serialize result or arguments")
        return codec.dumps(fields)


def decode_result(codec: Codec, data: bytes, *, job_id: str = "") -> ResultRecord:
    """Decode one result of ours or of a stock worker; raise `DecodeError`.

    With `job_id`, a signed result of another job is refused.
    """
    try:
        fields = getattr(codec, "loads_result", codec.loads)(data)
    except DecodeError as exc:
        raise DecodeError(f"unable to deserialize job result: {exc}") from exc
    if job_id and signs(codec) and fields.get("id", job_id) != job_id:
        raise DecodeError(f"this result was signed for another job: {fields['id']!a}")
    try:
        return ResultRecord(
            job_id=str(fields.get("id", "<unknown>")),
            queue=str(fields.get("q", "<unknown>")),
            task=fields["f"],
            args=tuple(fields["a"]),
            kwargs=fields["k"],
            attempt=fields["t"],
            enqueued_ms=fields["et"],
            started_ms=fields["st"],
            finished_ms=fields["ft"],
            success=fields["s"],
            result=fields["r"],
        )
    except (KeyError, TypeError) as exc:
        raise DecodeError(f"unable to deserialize job result: {exc}") from exc


def canonical_encoder() -> msgspec.msgpack.Encoder:
    """Return what writes a value as jobs carry it, the sets in it in one order."""
    return msgspec.msgpack.Encoder(enc_hook=_encode_other, order="deterministic")


def is_result(fields: Fields) -> bool:
    """Tell the fields of a result from those of a job: only a result says how it went."""
    return "s" in fields and "r" in fields


def _why_not(data: Any) -> str:
    """Return what there is to say about bytes of another codec."""
    signed = isinstance(data, bytes) and data.startswith(_SIGNED)
    return "; it is signed: give the signing_keys of the fleet" if signed else ""


def _checked(fields: Any) -> Fields:
    if not isinstance(fields, dict):
        raise DecodeError(f"expected a dict of fields, got {type(fields).__name__}")
    return fields


def _encode_other(value: Any) -> Any:
    """Give msgspec plain data for what it does not know; it calls this for the rest only."""
    if isinstance(value, BaseException):
        return msgspec.msgpack.Ext(_EXCEPTION, msgspec.msgpack.encode(describe(value)))
    kind = type(value)
    if _is_pydantic(kind):
        # As objects, not as JSON: JSON has no bytes, and writes a secret as asterisks.
        # By the fields' own names, and without what is computed from others.
        return value.model_dump(mode="python", by_alias=False, round_trip=True)
    if isinstance(value, _TEXTUAL) or kind.__module__ in _PYDANTIC_TEXTUAL:
        return str(value)
    raise TypeError(
        f"a {kind.__qualname__} cannot travel; use plain data, a dataclass, "
        f"a msgspec Struct or a pydantic model",
    )


def _decode_extension(code: int, data: memoryview) -> Any:
    if code != _EXCEPTION:
        raise ValueError(f"unknown extension type {code}")
    described = msgspec.msgpack.decode(data)
    return restore(_checked(described))


def convert(value: Any, annotation: Any) -> Any:
    """Turn decoded plain data into the annotated type; raise `DecodeError` if it does not fit."""
    try:
        return msgspec.convert(
            value,
            annotation,
            dec_hook=_convert_other,
            builtin_types=_BYTES,
        )
    except (
        msgspec.ValidationError,
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        NotImplementedError,
    ) as exc:
        raise DecodeError(str(exc)) from exc


def converts_to(kind: type) -> bool:
    """Tell whether `convert` makes instances of a class that msgspec does not know."""
    return kind is object or _is_pydantic(kind) or issubclass(kind, _TEXTUAL)


def _is_pydantic(kind: type) -> bool:
    """Tell a pydantic model from its methods: pydantic need not be installed."""
    return hasattr(kind, "model_validate") and hasattr(kind, "model_dump")


def _convert_other(kind: Any, value: Any) -> Any:
    if _is_pydantic(kind):
        return _validate(kind, value)
    if isinstance(value, kind):
        return value
    if issubclass(kind, _TEXTUAL) and isinstance(value, str):
        return kind(value)
    raise NotImplementedError(f"no conversion to {kind!r}")


def _validate(model: Any, value: Any) -> Any:
    """Make a model of plain data, whose dates and sets arrive as text and lists: not strict."""
    try:
        return model.model_validate(value, strict=False, by_alias=True, by_name=True)
    except TypeError:  # pydantic before 2.11 knows no such names
        return model.model_validate(value, strict=False)
