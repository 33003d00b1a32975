"""What Prometheus reads: its own parser agrees, whatever tasks and queues are called."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from runner.inspect.latency import BOUNDS_MS
from runner.inspect.queues import QueueLoad
from runner.inspect.workers import WorkerInfo
from runner.monitor.metrics import Totals, exposition
from runner.monitor.tally import Counted
from runner.types import WriterStatus
from runner.watch.vitals import Vitals

HOSTILE = ['a"b', "a\\b", "a\\nb", "new\nline", "{x}", "é ☃", "", 'runner_x{a="b"} 1\n# HELP']
INFO = WorkerInfo(
    name="w",
    host="h",
    pid=1,
    version="1",
    queues=("q",),
    tasks=(),
    state="draining",
    concurrency=10,
    running=2,
    jobs=(),
    succeeded=1,
    failed=0,
    retried=0,
    rss_bytes=1,
    loop_delay_ms=1.5,
    is_writer=False,
    started_ms=1_700_000_000_000,
    at_ms=0,
)
WRITER = WriterStatus(
    leader="elsewhere",
    position="1-0",
    backlog=1,
    backlog_bytes=2,
    lag_s=0.5,
    units=3,
    operations=4,
    batches=2,
    rejected=1,
    errors=7,
)


def counted(queue: str, task: str, outcome: str = "succeeded") -> Counted:
    times = Counter({0: 2, 5: 1, len(BOUNDS_MS): 1})
    return Counted(queue, task, outcome, 4, Counter({1: 4}), times, 8, 90_000_123)


def told(totals: Totals, **given: Any) -> str:
    holds = Vitals(rss=1, threads=2, files=3)
    facts: dict[str, Any] = {
        "holds": holds,
        "tasks": 4,
        "lost": 2,
        "loads": [],
        "writer": WRITER,
        **given,
    }
    return exposition(totals, INFO, **facts)


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_task_is_called_is_read_back(name: str) -> None:
    totals = Totals()
    totals.add([counted(name, name), counted(name, "other", "failed")])
    load = QueueLoad(queue=name, due=1, later=2, running=3, lag_s=4.5, is_paused=True)
    found = samples(told(totals, loads=[load], decisions={(name, "parked"): 3}))
    place = frozenset({"queue": name, "task": name}.items())
    assert found["runner_job_run_seconds_count", place] == 4
    assert found["runner_job_run_seconds_sum", place] == 90_000.123
    assert found["runner_attempts_total", place | {("outcome", "succeeded")}] == 4
    assert found["runner_queue_paused", frozenset({("queue", name)})] == 1
    decision = frozenset({"limit": name, "decision": "parked"}.items())
    assert found["runner_limit_decisions_total", decision] == 3


def test_histograms_are_those_that_the_library_would_write() -> None:
    class Library(Collector):
        def collect(self) -> Any:
            family = HistogramMetricFamily("runner_job_run_seconds", "x", labels=("queue", "task"))
            for task in ("one", "two"):
                below, buckets = 0, []
                cell = counted("q", task)
                for index, bound in enumerate((*BOUNDS_MS, None)):
                    below += cell.ran[index]
                    buckets.append(("+Inf" if bound is None else f"{bound / 1000:g}", below))
                family.add_metric(("q", task), buckets, cell.ran_ms / 1000)
            yield family

    registry = CollectorRegistry()
    registry.register(Library())
    expected = samples(generate_latest(registry).decode())
    totals = Totals()
    totals.add([counted("q", "one"), counted("q", "two")])
    found = samples(told(totals))
    of_runs = {key: value for key, value in found.items() if key[0].startswith("runner_job_run_")}
    assert of_runs == expected


def test_names_keep_the_conventions() -> None:
    totals = Totals()
    totals.add([counted("q", "t")])
    load = QueueLoad(queue="q", due=1, later=2, running=3, lag_s=4.5)
    text = told(totals, loads=[load], decisions={("l", "admitted"): 1})
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert re.fullmatch(r"runner_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")
        assert not re.search(r"_(ms|millis|kb|mb|minutes|percent|count)$", family.name)
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
    assert text.endswith("\n")
    assert "\n\n" not in text


def test_counters_and_buckets_only_grow() -> None:
    totals = Totals()
    before: dict[Any, float] = {}
    found: dict[Any, float] = {}
    for _ in range(5):
        totals.add([counted("q", "t"), counted("q", "t", "failed")])
        found = samples(told(totals))
        assert all(found[key] >= value for key, value in before.items())
        before = found
    buckets = sorted(
        (float(dict(labels)["le"]), value)
        for (name, labels), value in found.items()
        if name == "runner_job_run_seconds_bucket"
    )
    assert len(buckets) == len(BOUNDS_MS) + 1
    values = [value for _, value in buckets]
    assert values == sorted(values)


def test_the_writer_is_told_of_also_where_it_is_in_another_process() -> None:
    found = samples(told(Totals()))
    none: frozenset[tuple[str, str]] = frozenset()
    assert (found["runner_writer_leader", none], found["runner_writer_elected", none]) == (0, 1)
    assert found["runner_writer_errors_total", none] == 7
    assert "runner_writer" not in told(Totals(), writer=None).replace("runner_writer_leader", "")
