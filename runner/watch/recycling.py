"""When a worker's process is to be replaced by a new one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from runner.errors import SettingsError

logger = logging.getLogger("runner.watch")

RECYCLED = 75
"""The status of a process that ended to be started anew: EX_TEMPFAIL of sysexits.h."""

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process may take until it is replaced; None: any amount.

    Attributes:
        jobs: attempts that have ended.
        soft: bytes of memory: beyond it the process finishes what it runs, and ends.
        hard: bytes of memory: beyond it the process hands back what it runs, and ends now.
        age_s: seconds since its worker began.
    """

    jobs: int | None = None
    soft: int | None = None
    hard: int | None = None
    age_s: float | None = None

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.jobs, self.soft, self.hard, self.age_s))

    @property
    def are_of_memory(self) -> bool:
        """Whether any of them is."""
        return self.soft is not None or self.hard is not None

    def heeded(self, rss: int) -> Limits:
        """Return what of these limits a process can heed that holds so much before its first job.

        Another one in its place would be beyond its limits as well: with the soft one there would
        be no end of replacements, and with the hard one each job would be given up.

        Raises:
            SettingsError: the hard limit is reached.
        """
        if self.hard is not None and rss >= self.hard:
            raise SettingsError(
                f"max_memory_hard_mb is {self.hard / MB:,.0f}, and must be more than the "
                f"{rss / MB:,.0f} MB that this worker holds before its first job"
            )
        if self.soft is not None and rss >= self.soft:
            logger.error(
                "max_memory_mb is %s, and this worker holds %s MB before its first job: the limit "
                "is not heeded, set a higher one",
                f"{self.soft / MB:,.0f}",
                f"{rss / MB:,.0f}",
            )
            return replace(self, soft=None)
        return self

    def reached(self, *, jobs: int, rss: int, age_s: float) -> str:
        """Say which limit is reached, in words; "" when none is."""
        if self.jobs is not None and jobs >= self.jobs:
            return f"it has run {jobs} jobs, max_jobs_per_process is {self.jobs}"
        if self.soft is not None and rss >= self.soft:
            return f"it holds {rss / MB:,.0f} MB, max_memory_mb is {self.soft / MB:,.0f}"
        if self.age_s is not None and age_s >= self.age_s:
            return f"it is {age_s:,.0f} s old, max_age is {self.age_s:,.0f} s"
        return ""

    def broken(self, rss: int) -> str:
        """Say that the hard limit is reached; "" when it is not."""
        if self.hard is not None and rss >= self.hard:
            return f"it holds {rss / MB:,.0f} MB, max_memory_hard_mb is {self.hard / MB:,.0f}"
        return ""
