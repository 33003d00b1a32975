"""The one elected writer: units of writes travel to it, and it applies them in batches.

Submit (`units`, `database`) → stream (`stream`) → plan and apply (`plan`, `apply`) → settle
(`settle`); who may write is decided in `election`, and `candidate` puts it all together.
"""

from __future__ import annotations

from runner.writer.adoption import adopt_database
from runner.writer.candidate import Candidate
from runner.writer.commits import Commits, JobCommits
from runner.writer.database import JobDatabase, ReadPool
from runner.writer.office import adopt
from runner.writer.status import writer_status
from runner.writer.units import UnitBuilder

__all__ = [
    "Candidate",
    "Commits",
    "JobCommits",
    "JobDatabase",
    "ReadPool",
    "UnitBuilder",
    "adopt",
    "adopt_database",
    "writer_status",
]
