"""Histograms of times: bounds, and what can be read from counts between them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BOUNDS_MS = (
    *(1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70),
    *(100, 150, 200, 300, 500, 700),
    *(1_000, 1_500, 2_000, 3_000, 5_000, 7_000),
    *(10_000, 15_000, 20_000, 30_000, 45_000, 60_000, 90_000, 120_000, 180_000, 300_000),
    *(600_000, 1_200_000, 1_800_000, 3_600_000, 7_200_000, 14_400_000, 28_800_000, 86_400_000),
)
"""The upper ends, each inclusive, none but the last more than twice the one before; beyond the last
lies one more."""


def bucket(ms: float) -> int:
    """Return the number of the bucket that a time falls into."""
    return bisect_left(BOUNDS_MS, ms)


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took, in milliseconds, read from a histogram.

    What is read lies between the same bounds as the truth: at most twice as long, or half as long.

    Attributes:
        count: how many there were.
        mean: exact; 0 where there were none.
        p50: half were quicker.
        p95: 95 of 100 were quicker.
        p99: 99 of 100 were quicker.
    """

    count: int
    mean: float
    p50: float
    p95: float
    p99: float


def latency(counts: Mapping[int, int], sum_ms: float) -> Latency:
    """Read a histogram: counts by bucket, and the sum of all times."""
    count = sum(counts.values())
    mean = sum_ms / count if count else 0.0
    ordered = sorted(counts.items())  # once for three: pages show hundreds of them
    p50, p95, p99 = (_quantile(ordered, part * count) for part in (0.5, 0.95, 0.99))
    return Latency(count, mean, p50, p95, p99)


def _quantile(ordered: Sequence[tuple[int, int]], rank: float) -> float:
    """Return the time in ms that so many stayed below, evenly spread in its bucket."""
    below = 0
    for index, here in ordered:
        if here and below + here >= rank:
            if index >= len(BOUNDS_MS):
                return float(BOUNDS_MS[-1])
            least = BOUNDS_MS[index - 1] if index else 0
            return least + (BOUNDS_MS[index] - least) * (rank - below) / here
        below += here
    return 0.0
