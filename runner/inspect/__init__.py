"""Look at the jobs of a queue while they wait and run, and change what becomes of them."""

from runner.inspect.jobs import Cancelled, JobFilter, JobInfo, JobPage, JobState, QueuedJobs

__all__ = ["Cancelled", "JobFilter", "JobInfo", "JobPage", "JobState", "QueuedJobs"]
