"""A rate as a sliding window: no window of the period ever holds more than so many admissions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from runner.errors import LimitError
from runner.limits.texts import period_shown

MOST_LOGGED = 100_000


@dataclass(frozen=True, slots=True)
class Window:
    """At most `count` admissions in any window of `period_us`, by an exact log of the last ones.

    One more is admitted when the one that is `count` back lies a whole period in the past. The
    rule is in ``limit_window.lua``. It is the sliding window log of the literature, kept as a
    list: Cloudflare, "How we built rate limiting capable of scaling to millions of domains" (2017),
    compares it with the counters that only estimate.

    Its weakness: it remembers a time of eight bytes for each admission of a period, so it takes
    100,000 at most; and all of a window's admissions may come at its very beginning. Windows are
    half open: an admission exactly one period after another is in the next window.

    Example:
        >>> @task(rate="100/m")
        ... async def send_mail(ctx: Context, address: str) -> None: ...
    """

    count: int
    period_us: int
    kind: ClassVar[Literal["window"]] = "window"
    burst: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.count > MOST_LOGGED:
            raise LimitError(
                f"a rate of {self.count} in one period is too much for an exact window, which "
                f"takes {MOST_LOGGED}: give burst= for a token bucket, or name a shorter period",
            )

    @property
    def most(self) -> int:
        """The greatest weight that ever fits."""
        return self.count

    def __str__(self) -> str:
        return f"{self.count}/{period_shown(self.period_us)}"
