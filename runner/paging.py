"""Pages of a sorted set that is looked through in calls of bounded size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from runner.errors import ArgumentsError


@dataclass(slots=True)
class Looks:
    """How many calls a search may still make, and where it stopped.

    Attributes:
        left: None for any number.
        stopped_at: the `after` of the page, "" while it goes on.
    """

    left: int | None
    stopped_at: str = ""

    def may_look(self, score: bytes | str | float, member: bytes) -> bool:
        """Count one call; note the place when there may be none."""
        if self.left is None:
            return True
        if self.left > 0:
            self.left -= 1
            return True
        self.stopped_at = place(score, member)
        return False


def place(score: bytes | str | float, member: bytes) -> str:
    """Return the `after` of a page that ends with this member."""
    shown = score.decode() if isinstance(score, bytes) else score
    return f"{shown} {member.hex()}"


def read_place(after: str) -> tuple[str, bytes]:
    """Return score and member behind which a page begins; raise `ArgumentsError`."""
    score, _, raw = after.partition(" ")
    try:
        member = b"" if math.isnan(float(score)) else bytes.fromhex(raw)
    except ValueError:
        member = b""
    if not member:
        raise ArgumentsError(f"after is {after!r}, and not the `after` of a page")
    return score, member


__all__ = ["Looks", "place", "read_place"]
