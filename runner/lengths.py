"""Lengths of time as people read them, in the command line and on the dashboard."""

from __future__ import annotations

__all__ = ["coarse", "length"]

_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000))
_WHOLE = 10


def length(ms: float) -> str:
    """Return a length of time: 850 ms, 1.2 s, 3.5 min."""
    if ms < 0:
        return f"-{length(-ms)}"
    for unit, one in _UNITS:
        if ms >= one:
            return f"{ms / one:.1f} {unit}"
    return f"{ms:.0f} ms"


def coarse(ms: float) -> str:
    """Return how far away a time is, no finer than that interests: 850 ms, 1 s, 3.5 min, 12 min."""
    for unit, one in _UNITS:
        if ms >= one:
            whole = ms / one
            return (
                f"{whole:.0f} {unit}" if whole >= _WHOLE or unit == "s" else f"{whole:.1f} {unit}"
            )
    return f"{ms:.0f} ms"
