"""Tell whoever listens in the process of the writer what a batch became."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runner.errors import WriteRejected
    from runner.writer.entries import Unit

__all__ = ["Told", "tell"]

logger = logging.getLogger("runner.writer")

Told: TypeAlias = "Callable[[Sequence[Unit], Mapping[str, WriteRejected], int], None]"
"""A plain function of units, of why some were refused, by entry, and of when the batch began."""


def tell(
    told: Sequence[Told],
    units: Sequence[Unit],
    refused: Mapping[str, WriteRejected],
    began_ns: int,
) -> None:
    """Tell that units are committed, or refused; what a listener raises is logged.

    Args:
        told: who listens.
        units: a batch, in the order of the stream.
        refused: why some of them were refused, by entry.
        began_ns: when Postgres was given the batch, Unix time in nanoseconds.
    """
    for listener in told:
        try:
            listener(units, refused, began_ns)
        except Exception:
            logger.exception("%r failed on a batch of the writer", listener)
