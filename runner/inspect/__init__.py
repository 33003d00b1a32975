"""Look at jobs, queues, workers and what has happened; change what becomes of jobs and workers."""

from runner.inspect.history import BAD, FinishedJob, History, LogLine, Period, job_log
from runner.inspect.jobs import Cancelled, JobPage, QueuedJobs
from runner.inspect.latency import Latency
from runner.inspect.queued import JobFilter, JobInfo, JobState
from runner.inspect.queues import QueueLoad, queue_loads
from runner.inspect.story import JobStory
from runner.inspect.workers import RunningJob, WorkerInfo, Workers, begun_ms

__all__ = [
    "BAD",
    "Cancelled",
    "FinishedJob",
    "History",
    "JobFilter",
    "JobInfo",
    "JobPage",
    "JobState",
    "JobStory",
    "Latency",
    "LogLine",
    "Period",
    "QueueLoad",
    "QueuedJobs",
    "RunningJob",
    "WorkerInfo",
    "Workers",
    "begun_ms",
    "job_log",
    "queue_loads",
]
