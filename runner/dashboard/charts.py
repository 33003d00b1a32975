"""Small charts as SVG: what happened minute by minute. Colours come from the style sheet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 480, 96
SMALL_WIDTH, SMALL_HEIGHT = 120, 28


@dataclass(frozen=True, slots=True)
class Bar:
    """One minute: how many ended well, and how many did not; `label` says so."""

    well: int
    badly: int
    label: str


def bars(minutes: Sequence[Bar], *, title: str) -> Markup:
    """Draw columns, what went wrong on top, each with its figures as a tooltip."""
    highest = max((bar.well + bar.badly for bar in minutes), default=0) or 1
    step = WIDTH / max(len(minutes), 1)
    parts = [_open(WIDTH, HEIGHT, "chart", title)]
    parts.append(
        Markup('<line class="axis" x1="0" y1="{0}" x2="{1}" y2="{0}"/>').format(HEIGHT - 0.5, WIDTH)
    )
    for index, bar in enumerate(minutes):
        well = _scaled(bar.well, highest, HEIGHT - 2)
        badly = _scaled(bar.badly, highest, HEIGHT - 2)
        x, width = index * step + 0.75, max(step - 1.5, 0.5)
        parts.append(Markup("<g><title>{}</title>").format(bar.label))
        # Something to point at, also where nothing happened.
        parts.append(_rect("touch", index * step, 0, step, HEIGHT))
        if well:
            parts.append(_rect("well", x, HEIGHT - 1 - well, width, well))
        if badly:
            parts.append(_rect("badly", x, HEIGHT - 1 - well - badly, width, badly))
        parts.append(Markup("</g>"))
    return Markup("").join([*parts, Markup("</svg>")])


def line(values: Sequence[float], *, title: str) -> Markup:
    """Draw a sparkline."""
    highest = max(values, default=0) or 1
    step = SMALL_WIDTH / max(len(values) - 1, 1)
    points = " ".join(
        f"{index * step:.1f},{SMALL_HEIGHT - 2 - _scaled(value, highest, SMALL_HEIGHT - 4):.1f}"
        for index, value in enumerate(values)
    )
    return _open(SMALL_WIDTH, SMALL_HEIGHT, "spark", title) + Markup(
        '<polyline points="{}"/></svg>'
    ).format(points)


def progress(part: float, *, title: str, kind: str = "") -> Markup:
    """Draw how much is done, 0 to 1."""
    part = min(max(part, 0.0), 1.0)
    head = Markup(
        '<svg class="progress {0}" viewBox="0 0 100 6" preserveAspectRatio="none" role="img">'
        '<title>{1}</title><rect class="whole" width="100" height="6"/>'
    ).format(kind, title)
    return head + Markup('<rect class="done" width="{:.1f}" height="6"/></svg>').format(part * 100)


def _open(width: int, height: int, kind: str, title: str) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">'
    ).format(kind, width, height, escape(title))


def _rect(kind: str, x: float, y: float, width: float, height: float) -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        kind, x, y, width, height
    )


def _scaled(value: float, highest: float, height: float) -> float:
    """Return a height; what is not nothing can be seen."""
    return max(value / highest * height, 1.5) if value > 0 else 0.0


__all__ = ["Bar", "bars", "line", "progress"]
