"""What Grafana, Prometheus and KEDA ask for is what a worker tells: every name, every label."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import runner
from runner import Context, task
from tests.engine import serving
from tests.integration.test_writer_support import LASTING
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCKER = Path(__file__).resolve().parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/runner.json").read_text("utf-8"))
PROMETHEUS = frozenset({"instance", "job"})
"""The labels that Prometheus itself puts on what it scrapes."""

_SELECTOR = re.compile(r"\b(runner_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_BY = re.compile(r"\bby\s*\(([^)]*)\)")


@task
async def works(_ctx: Context) -> None: ...


@task
async def breaks(_ctx: Context) -> None:
    raise ValueError("as it should")


def expressions() -> Iterator[tuple[str, str, str]]:
    """Give each expression: where it stands, its text, and the legend that goes with it."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']!r}", target["expr"], target["legendFormat"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert found
            yield f"variable {variable['name']!r}", f"sum by ({found[2]}) ({found[1]})", ""
    rules = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text("utf-8"))
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        yield f"alert {rule['alert']}", rule["expr"], ""
    scaled = yaml.safe_load((DOCKER / "kubernetes/scaling.yaml").read_text("utf-8"))
    for trigger in scaled["spec"]["triggers"]:
        yield "ScaledObject", trigger["metadata"]["query"], ""


def test_every_panel_has_expressions_and_a_place_of_its_own() -> None:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert all(target["expr"] for panel in panels for target in panel["targets"])
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for at in (panel["gridPos"] for panel in DASHBOARD["panels"]):
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.lasting_keys(*LASTING, "runner:*")
async def test_what_is_asked_for_is_told(redis_url: str, database_url: str) -> None:
    async with (
        serving(
            redis_url,
            [works, breaks],
            monitor=True,
            health_port=0,
            database_url=database_url,
        ) as worker,
        runner.connect(redis_url) as client,
    ):
        await client.enqueue(works)
        await client.enqueue(breaks)

        async def scraped() -> Any:
            monitor = worker.monitor
            if monitor is None or monitor.probes is None or not monitor.probes.port:
                return None
            labels = await labels_of(f"http://127.0.0.1:{monitor.probes.port}/metrics")
            told = "runner_writer_units_total" in labels and "runner_attempts_total" in labels
            return labels if told else None

        labels: dict[str, set[str]] = await wait_until(scraped, description="all is told")
    asked = 0
    for place, expression, legend in expressions():
        metrics = set()
        for name, selectors in _SELECTOR.findall(expression):
            assert name in labels, f"{place}: no worker tells {name}"
            assert set(_LABEL.findall(selectors)) <= labels[name] | PROMETHEUS, place
            metrics.add(name)
        assert metrics, place
        known = set.union(*(labels[name] for name in metrics)) | PROMETHEUS
        grouped = {label.strip() for by in _BY.findall(expression) for label in by.split(",")}
        assert grouped <= known, f"{place}: {grouped - known}"
        shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
        assert shown <= (grouped or known), f"{place}: its legend names {shown}"
        asked += 1
    assert asked > 40


def test_every_expression_is_one_that_prometheus_reads() -> None:
    for place, expression, _ in expressions():
        plain = (
            expression.replace("$__rate_interval", "5m")
            .replace("$queue", "q")
            .replace("$task", "t")
        )
        try:
            promql_parser.parse(plain)
        except ValueError as exc:
            pytest.fail(f"{place}: {exc}")


async def labels_of(url: str) -> dict[str, set[str]]:
    """Scrape; return the labels of each series by its name."""

    def read() -> str:
        with urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())

    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(read)):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels
