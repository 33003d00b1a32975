"""The one elected writer: units of writes travel to it, and it applies them in batches.

Submit (`units`, `database`) → stream (`stream`) → plan (`profiles`, `plan`, `steps`) → apply
(`apply`, `batch`) → settle (`settle`); who may write is decided in `election`, and `candidate` puts
it all together.

What is named here is imported when it is first asked for: a worker without a database does
not pay for asyncpg.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.writer.adoption import adopt_database
    from runner.writer.backlog import BOUND_ENTRIES, Bounds
    from runner.writer.candidate import Candidate
    from runner.writer.commits import Commits, JobCommits
    from runner.writer.database import JobDatabase, ReadPool
    from runner.writer.guards import STATEMENT_TIMEOUT_S
    from runner.writer.office import adopt
    from runner.writer.status import writer_status
    from runner.writer.units import UnitBuilder
    from runner.writer.written import JobWrites, writes_of

__all__ = [
    "BOUND_ENTRIES",
    "STATEMENT_TIMEOUT_S",
    "Bounds",
    "Candidate",
    "Commits",
    "JobCommits",
    "JobDatabase",
    "JobWrites",
    "ReadPool",
    "UnitBuilder",
    "adopt",
    "adopt_database",
    "writer_status",
    "writes_of",
]

_MODULES = {
    "BOUND_ENTRIES": "backlog",
    "Bounds": "backlog",
    "Candidate": "candidate",
    "Commits": "commits",
    "JobCommits": "commits",
    "JobDatabase": "database",
    "JobWrites": "written",
    "ReadPool": "database",
    "STATEMENT_TIMEOUT_S": "guards",
    "UnitBuilder": "units",
    "adopt": "office",
    "adopt_database": "adoption",
    "writer_status": "status",
    "writes_of": "written",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
