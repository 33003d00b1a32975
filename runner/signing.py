"""Sign jobs and results, so that no byte of unknown origin reaches a deserializer.

Signed bytes are ``0xC1``, a kind (``j`` or ``r``), the length of the key's id and the id, a
MAC of 16 bytes, and the body that the inner codec wrote. Neither msgpack nor a pickle begins
with 0xC1, so unsigned bytes are told at once. The MAC is BLAKE2b with the key, over
everything else: a result does not verify as a job.

What a signature does not do: it hides nothing, and who can write to Redis can still remove
jobs or put an old signed job back. Our clients write the job's id into what they sign, so
it can come back under that id only; a stock arq client's jobs under any.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

from runner.codec import Codec, Fields, codec_named, is_result
from runner.errors import DecodeError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SigningKeys: TypeAlias = "Mapping[str, bytes] | Sequence[tuple[str, bytes]] | str"
"""Key ids and keys, the first signs: a mapping, pairs, or a text ``"id:hex,id:hex"``."""

MAGIC = 0xC1
JOB, RESULT = ord("j"), ord("r")
MAC_BYTES = 16
LEAST_KEY_BYTES, MOST_KEY_BYTES = 16, 64
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
_PERSON = b"arq-runner"
_KIND_AT, _LENGTH_AT, _ID_AT = 1, 2, 3
_NAMES = {JOB: "job", RESULT: "result"}


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of a fleet by their ids; the first signs, each of them verifies.

    Its text and its errors name ids, never keys.
    """

    keys: Mapping[str, bytes]

    @classmethod
    def of(cls, given: SigningKeys) -> KeyRing:
        """Return the checked keys.

        Raises:
            SettingsError: there is none, an id is given twice or has other letters than
                A-Z, a-z, 0-9, ".", "_" and "-", or a key has not 16 to 64 bytes.
        """
        ring: dict[str, bytes] = {}
        for key_id, key in _pairs(given):
            _check(key_id, key)
            if key_id in ring:
                raise SettingsError(f"signing_keys: the key id {key_id!r} is given twice")
            ring[key_id] = bytes(key)
        if not ring:
            raise SettingsError("signing_keys holds no key; leave it out (None) to sign nothing")
        return cls(ring)

    @property
    def current(self) -> str:
        """The id of the key that signs."""
        return next(iter(self.keys))

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self.keys)})"


class SignedCodec:
    """A codec that signs what another one writes, and verifies before that one reads.

    To change keys without a stop: give every process the new key behind the old one, then
    put it first everywhere, and drop the old one when nothing signed by it is left.

    The methods have the form of arq's hooks. For a stock worker give ``loads_job`` as its
    deserializer: it takes no result for a job.

    Args:
        inner: the codec of the bodies. With "pickle", whoever holds a key can run code.
        keys: see `SigningKeys`.
        current: the id of the key that signs; the first by default.

    Example:
        >>> signed = SignedCodec(MsgpackCodec(), {"2026-11": key, "2026-05": old_key})
        >>> pool = await arq.create_pool(
        ...     job_serializer=signed.dumps,
        ...     job_deserializer=signed.loads,
        ... )
    """

    signs = True

    def __init__(
        self,
        inner: Codec,
        keys: SigningKeys | KeyRing,
        current: str | None = None,
    ) -> None:
        ring = keys if isinstance(keys, KeyRing) else KeyRing.of(keys)
        self._current = ring.current if current is None else current
        if self._current not in ring.keys:
            raise SettingsError(f"signing_keys has no key {current!r}; it has {list(ring.keys)}")
        self.inner = inner
        self.name = f"signed {inner.name}"
        self._ids = tuple(ring.keys)
        # Hashing the key is half the work: done once here, and copied for each message.
        self._macs = {
            key_id.encode(): blake2b(key=key, digest_size=MAC_BYTES, person=_PERSON)
            for key_id, key in ring.keys.items()
        }
        current_id = self._current.encode()
        self._heads = {kind: _head(kind, current_id) for kind in _NAMES}
        self._signer = self._macs[current_id]

    def __repr__(self) -> str:
        return f"SignedCodec({self.inner!r}, keys {self._ids}, signs with {self._current!r})"

    def dumps(self, fields: Fields) -> bytes:
        """Encode and sign; raise `EncodeError` for a value that cannot travel."""
        head = self._heads[RESULT if is_result(fields) else JOB]
        body = self.inner.dumps(fields)
        mac = self._signer.copy()
        mac.update(head)
        mac.update(body)
        return b"".join((head, mac.digest(), body))

    def loads(self, data: bytes) -> Fields:
        """Verify and decode a job or a result; raise `DecodeError`."""
        return self._loads(data, (JOB, RESULT))

    def loads_job(self, data: bytes) -> Fields:
        """Verify and decode a job; raise `DecodeError` for all else, a result among it."""
        return self._loads(data, (JOB,))

    def loads_result(self, data: bytes) -> Fields:
        """Verify and decode a result; raise `DecodeError` for all else."""
        return self._loads(data, (RESULT,))

    def _loads(self, data: bytes, kinds: tuple[int, ...]) -> Fields:
        body = self._verified(data, kinds)
        fields = self.inner.loads(body)
        if is_result(fields) != (data[_KIND_AT] == RESULT):
            raise DecodeError("the bytes are signed as one kind and hold another")
        return fields

    def _verified(self, data: bytes, kinds: tuple[int, ...]) -> bytes:
        """Return the body; raise `DecodeError` unless a key that we know signed all of it."""
        if len(data) <= _ID_AT or data[0] != MAGIC:
            raise DecodeError("not signed, and only signed bytes are read here")
        if data[_KIND_AT] not in kinds:
            wanted = " or ".join(_NAMES[kind] for kind in kinds)
            raise DecodeError(f"not signed as a {wanted}")
        mac_at = _ID_AT + data[_LENGTH_AT]
        body_at = mac_at + MAC_BYTES
        known = self._macs.get(data[_ID_AT:mac_at])
        if known is None:
            raise DecodeError(
                f"signed with the key {data[_ID_AT:mac_at]!r}, and known are {self._ids}",
            )
        mac, body = known.copy(), data[body_at:]
        mac.update(data[:mac_at])
        mac.update(body)
        if not hmac.compare_digest(mac.digest(), data[mac_at:body_at]):
            raise DecodeError("the signature is wrong: the bytes were altered, or cut off")
        return body


def chosen_codec(codec: str | Codec | None, keys: SigningKeys | None = None) -> Codec | None:
    """Return the codec of a setting: by its name or as given, signed when there are keys.

    Raises:
        SettingsError: the codec is unknown, the keys are not right, or there is no codec
            to sign for.
    """
    chosen = codec_named(codec) if isinstance(codec, str) else codec
    if keys is None:
        return chosen
    if chosen is None:
        raise SettingsError(
            "signing_keys needs a codec; sign with serializer hooks of your own through "
            "SignedCodec(HookCodec(serializer, deserializer), keys)",
        )
    if getattr(chosen, "signs", False):
        raise SettingsError("this codec signs already; give signing_keys or a SignedCodec")
    return SignedCodec(chosen, keys)


def _head(kind: int, key_id: bytes) -> bytes:
    return bytes((MAGIC, kind, len(key_id))) + key_id


def _pairs(given: SigningKeys) -> Iterable[tuple[str, bytes]]:
    if isinstance(given, str):
        return [_pair(text) for text in given.split(",") if text.strip()]
    pairs = given.items() if hasattr(given, "items") else given
    try:
        return [(key_id, key) for key_id, key in pairs]
    except (TypeError, ValueError):
        raise SettingsError(
            "signing_keys takes {id: key}, [(id, key), ...], or a text 'id:hex,id:hex'",
        ) from None


def _pair(text: str) -> tuple[str, bytes]:
    key_id, colon, digits = text.strip().partition(":")
    if not colon:
        raise SettingsError("signing_keys: each key of a text is written id:hex")
    try:
        return key_id, bytes.fromhex(digits)
    except ValueError:
        raise SettingsError(f"signing_keys: the key {key_id!r} is not hexadecimal") from None


def _check(key_id: object, key: object) -> None:
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        # Not shown: a key that stands in the id's place would be.
        raise SettingsError("signing_keys: a key id is 1 to 32 of A-Z a-z 0-9 . _ -")
    if not isinstance(key, bytes | bytearray):
        raise SettingsError(
            f"signing_keys: the key {key_id!r} is a {type(key).__name__}, but must be bytes",
        )
    if not LEAST_KEY_BYTES <= len(key) <= MOST_KEY_BYTES:
        raise SettingsError(
            f"signing_keys: the key {key_id!r} has {len(key)} bytes, but must have "
            f"{LEAST_KEY_BYTES} to {MOST_KEY_BYTES}; secrets.token_bytes(32) makes one",
        )


__all__ = ["KeyRing", "SignedCodec", "SigningKeys", "chosen_codec"]
