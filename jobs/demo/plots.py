"""Draw a run: departures committed a minute, and how far the writer was behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jobs.demo.watch import Sample

SMOOTH_S = 2.0
"""Rates are means over so many seconds: a batch commits all its departures at once."""

_INK, _BLUE, _ORANGE, _RED, _GRID = "#333333", "#1f6fb4", "#d9822b", "#c23030", "#dddddd"


class NoMatplotlibError(RuntimeError):
    """Raised when matplotlib is not installed."""


def rates(samples: Sequence[Sample], over_s: float = SMOOTH_S) -> list[tuple[float, float]]:
    """Return (seconds since the start, departures a second until then) for each sample."""
    points: list[tuple[float, float]] = []
    first = 0
    for sample in samples[1:]:
        while samples[first + 1].at_s <= sample.at_s - over_s:
            first += 1
        start = samples[first]
        seconds = sample.at_s - start.at_s
        points.append((sample.at_s, (sample.departures - start.departures) / seconds))
    return points


def draw_run(path: Path, samples: Sequence[Sample], kills: Sequence[float]) -> None:
    """Write the picture.

    Args:
        path: of the PNG.
        samples: of the run.
        kills: seconds since the start at which processes were killed.

    Raises:
        NoMatplotlibError: matplotlib is not installed.
    """
    try:
        # Imported here: it takes a second, and a run without it is a whole run.
        import matplotlib as mpl  # noqa: PLC0415

        mpl.use("Agg")
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError as exc:
        raise NoMatplotlibError(
            "matplotlib is not installed: pip install 'arq-runner[demo]'"
        ) from exc
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(9, 6), layout="constrained")
    points = rates(samples)
    times = [at for at, _ in points]
    above.fill_between(times, [rate * 60 for _, rate in points], color=_BLUE, alpha=0.2, lw=0)
    above.plot(times, [rate * 60 for _, rate in points], color=_BLUE, lw=1.6)
    above.set_ylabel("departures a minute")
    above.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    total = samples[-1].departures
    above.set_title(f"{total:,} departures through one writer", loc="left", color=_INK)
    seconds = [sample.at_s for sample in samples]
    below.plot(seconds, [sample.writer.lag_s for sample in samples], color=_ORANGE, lw=1.6)
    below.set_ylabel("lag of the writer, s")
    below.set_xlabel("seconds since the start")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, max(seconds))
        axes.grid(color=_GRID, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        for index, at in enumerate(kills):
            label = "SIGKILL" if index == 0 else None
            axes.axvline(at, color=_RED, lw=0.8, ls=":", label=label)
    if kills:
        above.legend(frameon=False, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
