"""Decide whether and when a failed attempt is followed by another: a pure value."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from runner.errors import SettingsError


class Backoff(enum.Enum):
    """How the delay grows from one try to the next."""

    CONSTANT = "constant"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The delays between the tries of one job.

    Attributes:
        backoff: how the delay grows.
        base: the first delay in seconds.
        cap: the longest delay in seconds.
        jitter: the part of a delay that is random, 0 to 1: with 1 the delay lies anywhere
            between nothing and its full length ("full jitter": Marc Brooker, "Exponential
            Backoff And Jitter", AWS Architecture Blog, 2015).

    Example:
        >>> RetryPolicy(base=2, cap=60).delay(attempt=3, random=0.5)
        6.0
    """

    backoff: Backoff = Backoff.EXPONENTIAL
    base: float = 1.0
    cap: float = 600.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if self.base < 0 or self.cap < self.base:
            raise SettingsError("a retry policy needs 0 <= base <= cap")
        if not 0 <= self.jitter <= 1:
            raise SettingsError("jitter lies between 0 and 1")

    def delay(self, *, attempt: int, random: float) -> float:
        """Return the seconds to wait after a failed attempt.

        Args:
            attempt: the number of the attempt that failed, counted from 1.
            random: a number from 0 to 1 that spreads jobs which failed together.
        """
        match self.backoff:
            case Backoff.CONSTANT:
                full = self.base
            case Backoff.LINEAR:
                full = self.base * attempt
            case Backoff.EXPONENTIAL:
                # 2**1024 does not fit a float; the cap is reached long before.
                full = self.base * 2.0 ** min(attempt - 1, 1000)
        full = min(full, self.cap)
        return full * (1 - self.jitter) + full * self.jitter * random
