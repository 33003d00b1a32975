"""The job log: jobs that ended, as rows in Postgres.

`rows` makes a row of an attempt, bounded and free of what Postgres would refuse; `collect` gathers
those of one worker and hands them to the writer, some hundred in a unit; `search` reads them. The
table is `runner/sql/migrations/0003_job_log.sql`; the elected writer deletes what is old.
"""

from runner.joblog.collect import Collector
from runner.joblog.search import JobLog, LoggedJob

__all__ = ["Collector", "JobLog", "LoggedJob"]
