"""Write values down so that exactly their types come back: what msgpack has no name for."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import sys
import uuid
from collections.abc import Iterable, Mapping
from decimal import Decimal
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import msgspec

if TYPE_CHECKING:
    import asyncpg

__all__ = ["PLAIN", "encode_plain", "read_extension", "tagged"]

PLAIN = frozenset({type(None), bool, int, float, str, bytes})
"""The classes that msgpack takes, and gives back, as they are."""

# Extension types of msgpack for what msgspec would flatten to text. An aware datetime has
# a type in msgpack itself.
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID, _TUPLE, _RANGE, _BITS = range(1, 10)

encode_plain = msgspec.msgpack.Encoder().encode


def tagged(value: Any) -> Any:
    """Return the value in a form from which exactly its type comes back."""
    kind = type(value)
    if kind in PLAIN:
        return value
    tag = _TAGS.get(kind)
    if tag is not None:
        return tag(value)
    if isinstance(value, enum.Enum):
        return tagged(value.value)
    if isinstance(value, Mapping):
        return {_dict_key(name): tagged(item) for name, item in value.items()}
    # A subclass, such as a str of some library: its plain value is what is stored.
    for base, write in (*_asyncpg_tags(), *_PLAINLY, *_TAGS.items()):
        if isinstance(value, base):
            return write(value)
    raise TypeError(f"a {kind.__qualname__} cannot travel to the database; give plain data")


def _dict_key(name: Any) -> str | int:
    if isinstance(name, enum.Enum):
        name = name.value
    if type(name) not in (str, int):
        raise TypeError(f"{name!r} cannot be a name in JSON; use text")
    return cast("str | int", name)


def _tag_datetime(value: dt.datetime) -> Any:
    if value.tzinfo is None:
        return msgspec.msgpack.Ext(_DATETIME, value.isoformat().encode())
    return value.astimezone(dt.UTC)


def _tag_timedelta(value: dt.timedelta) -> Any:
    text = f"{value.days} {value.seconds} {value.microseconds}"
    return msgspec.msgpack.Ext(_TIMEDELTA, text.encode())


def _tag_tuple(value: Iterable[Any]) -> Any:
    # asyncpg tells a row from an array, and a closed path from an open one, by the class.
    return msgspec.msgpack.Ext(_TUPLE, encode_plain([tagged(item) for item in value]))


def _tag_range(value: asyncpg.Range[Any]) -> Any:
    bounds = (value.lower, value.upper, value.lower_inc, value.upper_inc, value.isempty)
    return msgspec.msgpack.Ext(_RANGE, encode_plain([tagged(bound) for bound in bounds]))


def _tag_path(value: asyncpg.Path) -> Any:
    points = [tuple(point) for point in value.points]
    return tagged(tuple(points) if value.is_closed else points)


def _tag_bits(value: asyncpg.BitString) -> Any:
    return msgspec.msgpack.Ext(_BITS, value.as_string().encode())


def _asyncpg_tags() -> tuple[tuple[type, Any], ...]:
    """Return what writes asyncpg's own classes; nothing before somebody has imported it."""
    if "asyncpg" not in sys.modules:
        return ()
    asyncpg = import_module("asyncpg")
    return (
        (asyncpg.Range, _tag_range),
        (asyncpg.BitString, _tag_bits),
        (asyncpg.Path, _tag_path),
    )


_PLAINLY: tuple[tuple[type, Any], ...] = (
    *((kind, kind) for kind in (bool, int, float, str, bytes)),
    (dt.datetime, _tag_datetime),
    (bytearray, bytes),
    (memoryview, bytes),
)


_TAGS: dict[type, Any] = {
    list: lambda value: [tagged(item) for item in value],
    tuple: _tag_tuple,
    dict: lambda value: {_dict_key(name): tagged(item) for name, item in value.items()},
    dt.datetime: _tag_datetime,
    dt.date: lambda value: msgspec.msgpack.Ext(_DATE, value.isoformat().encode()),
    dt.time: lambda value: msgspec.msgpack.Ext(_TIME, value.isoformat().encode()),
    dt.timedelta: _tag_timedelta,
    Decimal: lambda value: msgspec.msgpack.Ext(_DECIMAL, str(value).encode()),
    uuid.UUID: lambda value: msgspec.msgpack.Ext(_UUID, value.bytes),
    **dict.fromkeys(
        (
            *(ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface),
            *(ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface),
        ),
        str,
    ),
}


def _read_timedelta(data: memoryview) -> dt.timedelta:
    days, seconds, microseconds = bytes(data).split()
    return dt.timedelta(int(days), int(seconds), int(microseconds))


def _read_tuple(data: memoryview) -> tuple[Any, ...]:
    return tuple(_decode(data))


def _read_range(data: memoryview) -> Any:
    lower, upper, lower_inc, upper_inc, is_empty = _decode(data)
    kind = import_module("asyncpg").Range
    return kind(lower, upper, lower_inc=lower_inc, upper_inc=upper_inc, empty=is_empty)


def _read_bits(data: memoryview) -> Any:
    return import_module("asyncpg").BitString(str(data, "ascii"))


_READERS: dict[int, Any] = {
    _DATETIME: lambda data: dt.datetime.fromisoformat(str(data, "ascii")),
    _DATE: lambda data: dt.date.fromisoformat(str(data, "ascii")),
    _TIME: lambda data: dt.time.fromisoformat(str(data, "ascii")),
    _TIMEDELTA: _read_timedelta,
    _DECIMAL: lambda data: Decimal(str(data, "ascii")),
    _UUID: lambda data: uuid.UUID(bytes=bytes(data)),
    _TUPLE: _read_tuple,
    _RANGE: _read_range,
    _BITS: _read_bits,
}


def read_extension(code: int, data: memoryview) -> Any:
    """Read a value that `tagged` wrote; raise ValueError for a type that is none of ours."""
    reader = _READERS.get(code)
    if reader is None:
        raise ValueError(f"unknown extension type {code}")
    return reader(data)


_decode = msgspec.msgpack.Decoder(list[Any], ext_hook=read_extension).decode
