"""The workers of this repository: ``arq settings.WorkerSettings``.

Everything comes from the environment, with defaults for a machine of one's own:
``REDIS_URL``, ``DATABASE_URL``, ``RUNNER_CODEC`` ("pickle" while stock arq clients share the
queue), ``RUNNER_SIGNING_KEYS`` ("id:hex,id:hex", the first signs; unset: nothing is signed),
``RUNNER_MAX_JOBS``, ``RUNNER_HEALTH_PORT`` and ``RUNNER_HEALTH_HOST`` (probes and metrics; no port,
no probes), ``RUNNER_JOB_LOG`` (1: log jobs in Postgres), and ``RUNNER_LOG`` ("plain", "console" or
"json").
"""

from __future__ import annotations

import os
from datetime import timedelta

import runner
from jobs.departures import record_departure, refresh_delay_report, worst_routes
from jobs.routes import delays_of_days, rank_routes, sum_delays
from runner import RedisSettings, cron


class WorkerSettings(runner.WorkerSettings):
    """The tasks of the main job, and the schedules that go with them."""

    functions = (
        *(record_departure, worst_routes, refresh_delay_report),
        *(delays_of_days, sum_delays, rank_routes),
    )
    cron_jobs = (
        cron(refresh_delay_report, minute={0, 15, 30, 45}),
        # The flights' day ends in New York, also on the days on which clocks change there; a
        # night without workers is made up for.
        cron(
            refresh_delay_report,
            "5 0 * * *",
            name="close_the_day",
            timezone="America/New_York",
            catch_up="once",
            overlap="skip",
        ),
    )
    redis_settings = RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://localhost:6379"))
    database_url = os.environ.get("DATABASE_URL")
    codec = os.environ.get("RUNNER_CODEC", "msgpack")
    signing_keys = os.environ.get("RUNNER_SIGNING_KEYS") or None
    dead_letters_keep = timedelta(days=90)
    dead_letters_max = 500_000  # a year's file may be bad from the first line to the last
    max_jobs = int(os.environ.get("RUNNER_MAX_JOBS", "200"))
    health_port = (
        int(os.environ["RUNNER_HEALTH_PORT"]) if "RUNNER_HEALTH_PORT" in os.environ else None
    )
    health_host = os.environ.get("RUNNER_HEALTH_HOST", "127.0.0.1")
    job_log = os.environ.get("RUNNER_JOB_LOG") == "1"
