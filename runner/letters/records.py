"""Write dead letters down, whatever their jobs were made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from runner.types import DeadLetter


def encode_letter(dead: DeadLetter) -> bytes:
    """Encode a dead letter; arguments that are no plain data are kept as their repr."""
    try:
        return msgspec.msgpack.encode(dead, enc_hook=_shown)
    except (TypeError, ValueError, OverflowError, RecursionError):
        # A pickled job may hold what msgpack cannot: huge numbers, text that is not UTF-8.
        plain = msgspec.structs.replace(
            dead,
            job_id=_escaped(dead.job_id),
            task=_escaped(dead.task),
            args=[_shown(value) for value in dead.args],
            kwargs={_shown(name): _shown(value) for name, value in dead.kwargs.items()},
        )
        return msgspec.msgpack.encode(plain)


def _shown(value: Any) -> str:
    try:
        return ascii(value)
    except Exception as exc:  # noqa: BLE001  a user's __repr__ may raise anything
        return f"<{type(value).__qualname__}: repr raised {type(exc).__name__}>"


def _escaped(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
