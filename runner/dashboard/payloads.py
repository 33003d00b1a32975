"""What is pickled is not unpickled for a look at it: a pickle runs what its bytes say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.codec import PickleCodec
from runner.errors import DecodeError

if TYPE_CHECKING:
    from runner.codec import Fields


class Unread(PickleCodec):
    """Writes as a fleet does that pickles, and reads nothing."""

    def loads(self, data: bytes) -> Fields:
        """Raise `DecodeError`."""
        raise DecodeError(
            f"{len(data):,} bytes, pickled: the dashboard does not unpickle; "
            "`runner jobs show` does"
        )


__all__ = ["Unread"]
