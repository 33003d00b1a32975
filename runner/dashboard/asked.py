"""Read addresses and forms, and write links: ids and names may be any bytes.

An id that is no text comes back as the `str` with surrogate escapes that the rest of the package
knows it by. A page is text, so in forms such an id is percent-encoded, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from runner.errors import ArgumentsError

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_FIELDS = 100
MOST_TEXT = 2_000


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for.

    Attributes:
        root: what stands in front of the dashboard's own paths: "" or "/admin/jobs".
        path: the path behind it.
        fields: the fields of the address or of the form; of several of a name the last.
        may_act: whoever asks may act.
    """

    root: str
    path: str
    fields: Mapping[str, str] = field(default_factory=dict)
    may_act: bool = False

    def text(self, name: str, default: str = "") -> str:
        """Return a field without space around it."""
        return self.fields.get(name, default).strip()[:MOST_TEXT]

    def raw(self, name: str = "id") -> str:
        """Return a field as it is; raise `ArgumentsError` without it."""
        text = self.fields.get(name, "")
        if not text:
            raise ArgumentsError(f"the field {name!r} is missing")
        return text

    def id(self, name: str = "id") -> str:
        """Return a field of a form, that `spelled` has written; raise as `raw` does."""
        text = self.raw(name)
        return unquote_to_bytes(text).decode(errors="surrogateescape")

    def number(self, name: str, default: int = 0, *, most: int = 1_000_000) -> int:
        """Return a whole number from 0 to `most`; the default for anything else."""
        text = self.text(name)
        return min(int(text), most) if text.isascii() and text.isdigit() else default


def fields_of(encoded: bytes) -> dict[str, str]:
    """Read ``a=1&b=2``; raise `ArgumentsError` for more than a person would send."""
    try:
        pairs = parse_qsl(
            encoded.decode("latin-1"),
            keep_blank_values=True,
            errors="surrogateescape",
            max_num_fields=MOST_FIELDS,
        )
    except ValueError as exc:
        raise ArgumentsError(f"too many fields: {exc}") from None
    return dict(pairs)


def spelled(text: str) -> str:
    """Write an id as ASCII, so that `Asked.id` reads the same id."""
    return quote(text.encode(errors="surrogateescape"), safe="")


def address(root: str, path: str, **fields: object) -> str:
    """Return the address of a page; fields that are empty or None are left out."""
    given = [(name, str(value)) for name, value in fields.items() if value not in ("", None)]
    query = "&".join(f"{name}={spelled(value)}" for name, value in given)
    return f"{root}{path}?{query}" if query else f"{root}{path}"


__all__ = ["Asked", "address", "fields_of", "spelled"]
