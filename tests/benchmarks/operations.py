"""What traces and the job log cost: CPU of client and worker for each no-op job, on against off.

``python -m tests.benchmarks.operations [rounds] [jobs] [variant …]``: each round enqueues and
drains the same number of jobs in a fresh process, once for each variant, in turn. ``api`` has
middleware that traces, and no SDK of OpenTelemetry; ``unsampled`` an SDK that keeps nothing;
``traced`` one that keeps every span, and throws it away in the place of sending it. ``log`` and
``database`` have a Postgres; what the writer does is not counted.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from typing import Any

import uvloop
from arq.constants import default_queue_name

import runner
from runner import RedisSettings, Worker, embedded, task

ROUNDS, JOBS, WARM = 5, 20_000, 500
VARIANTS = ("off", "api", "unsampled", "traced", "database", "log")


@task
async def nothing(ctx: runner.Context, number: int) -> None:
    """Do nothing."""


def settings_of(variant: str, database_url: str) -> dict[str, Any]:
    """Return the settings of the worker; import OpenTelemetry only where it is asked for."""
    match variant:
        case "off":
            return {}
        case "database":
            return {"database_url": database_url, "writer": False}
        case "log":
            return {"database_url": database_url, "writer": False, "job_log": True}
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  only where it is used
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON  # noqa: PLC0415

    from runner.traces import Tracing  # noqa: PLC0415

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:  # noqa: ARG002
            return SpanExportResult.SUCCESS

    provider = None
    if variant != "api":
        provider = TracerProvider(sampler=ALWAYS_ON if variant == "traced" else ALWAYS_OFF)
        provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return {"middleware": [Tracing(provider)]}


def spent_s() -> float:
    """Return the seconds of CPU of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def drain(url: str, settings: dict[str, Any], queue: str) -> float:
    """Run a burst worker; return its seconds of CPU."""
    worker = Worker(
        [nothing],
        redis_settings=RedisSettings.from_dsn(url),
        queue_name=queue,
        burst=True,
        history=True,
        codec="msgpack",
        max_jobs=500,
        keep_result=0,
        handle_signals=False,
        use_uvloop=True,
        **settings,
    )
    before = spent_s()
    await worker.async_run()
    await worker.close()
    return spent_s() - before


async def one(url: str, database_url: str, variant: str, jobs: int) -> tuple[float, float]:
    """Enqueue and drain; return the seconds of CPU of both."""
    settings = settings_of(variant, database_url)
    layers = settings.get("middleware", ())
    async with runner.connect(url, middleware=layers) as client:
        await client.flushdb()
        warm = nothing.options(queue="warm")
        await client.enqueue_many([warm.call(number) for number in range(WARM)])
        before = spent_s()
        for start in range(0, jobs, 5_000):
            await client.enqueue_many([nothing.call(start + number) for number in range(5_000)])
        enqueued = spent_s() - before
    await drain(url, settings, "warm")
    return enqueued, await drain(url, settings, default_queue_name)


def main(rounds: int, jobs: int, names: list[str]) -> None:
    """Print the medians and the least."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with embedded.start() as servers:
        for _ in range(rounds):
            for name in names:
                command = [sys.executable, "-m", "tests.benchmarks.operations", "--one"]
                command += [servers.redis_url, servers.database_url, name, str(jobs)]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[name].append(json.loads(said))
    for name, rows in found.items():
        client, worker = ([row[side] * 1e6 / jobs for row in rows] for side in (0, 1))
        report = (
            f"{name:>10}  enqueue {statistics.median(client):6.2f} µs a job "
            f"(least {min(client):6.2f}), run {statistics.median(worker):6.2f} µs "
            f"(least {min(worker):6.2f})"
        )
        print(report)  # noqa: T201  what it is for


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        at, database_at, name, count = sys.argv[2:6]
        result = uvloop.run(one(at, database_at, name, int(count)))
        print(json.dumps(result))  # noqa: T201  to its parent
    else:
        given = sys.argv[1:]
        main(
            int(given[0]) if given else ROUNDS,
            int(given[1]) if given[1:] else JOBS,
            given[2:] or list(VARIANTS),
        )
