"""A rate as a token bucket: a steady rate, and a burst that may go beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from runner.errors import LimitError
from runner.limits.texts import period_shown


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of `burst` tokens, filled at `count` in `period_us`; an admission takes its weight.

    Kept as one number, the time at which the bucket will be full: the generic cell rate algorithm
    (GCRA, ITU-T I.371, annex A, as virtual scheduling). The rule is in ``limit_bucket.lua``.

    Its weakness: after a quiet time a window may hold the burst beside what the rate gives, so what
    is promised of any time is ``burst + rate x time``, up to twice the rate for a burst of one
    period. With ``burst=1`` jobs start one by one, evenly spaced, and a start that is late is time
    that is lost.

    Example:
        >>> @task(rate="100/m", burst=20, rate_key="tenant_id")
        ... async def call_api(ctx: Context, tenant_id: int) -> None: ...
    """

    count: int
    period_us: int
    burst: int
    kind: ClassVar[Literal["bucket"]] = "bucket"

    def __post_init__(self) -> None:
        if type(self.burst) is not int or self.burst < 1:
            raise LimitError(f"burst must be a whole number, 1 or more, not {self.burst!r}")

    @property
    def most(self) -> int:
        """The greatest weight that ever fits."""
        return self.burst

    def __str__(self) -> str:
        return f"{self.count}/{period_shown(self.period_us)} burst {self.burst}"
