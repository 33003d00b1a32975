"""What can be known of the manifests and the unit without a cluster, and without systemd."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml

DOCKER = Path(__file__).resolve().parents[2] / "docker"
KUBERNETES = DOCKER / "kubernetes"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
VERSIONS = ("1.30", "1.37")

_COUNT = {"type": "integer", "minimum": 0}
_TEXTS = {
    name: {"type": "string"} for name in ("apiVersion", "kind", "name", "envSourceContainerName")
}
_SCALING = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
        "selectPolicy": {"enum": ["Max", "Min", "Disabled"]},
        "policies": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "value", "periodSeconds"],
                "properties": {
                    "type": {"enum": ["Pods", "Percent"]},
                    "value": {"type": "integer", "minimum": 1},
                    "periodSeconds": {"type": "integer", "minimum": 1, "maximum": 1800},
                },
            },
        },
    },
}
SCALED_OBJECT: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["scaleTargetRef", "triggers"],
            "properties": {
                "scaleTargetRef": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name"],
                    "properties": _TEXTS,
                },
                "pollingInterval": _COUNT,
                "cooldownPeriod": _COUNT,
                "minReplicaCount": _COUNT,
                "maxReplicaCount": _COUNT,
                "advanced": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "restoreToOriginalReplicaCount": {"type": "boolean"},
                        "horizontalPodAutoscalerConfig": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "name": {"type": "string"},
                                "behavior": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {"scaleUp": _SCALING, "scaleDown": _SCALING},
                                },
                            },
                        },
                    },
                },
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["type", "metadata"],
                        "properties": {
                            "type": {"const": "prometheus"},
                            "name": {"type": "string"},
                            "metricType": {"enum": ["AverageValue", "Value"]},
                            "authenticationRef": {"type": "object", "required": ["name"]},
                            "metadata": {
                                "type": "object",
                                "additionalProperties": {"type": "string"},
                                "required": ["serverAddress", "query", "threshold"],
                                "propertyNames": {
                                    "enum": [
                                        *("serverAddress", "query", "threshold"),
                                        *("activationThreshold", "namespace", "authModes"),
                                        *("ignoreNullValues", "unsafeSsl", "timeout"),
                                    ]
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""The part of the schema of KEDA's resource that is used here, and stricter: names, too."""


def manifests() -> dict[str, Any]:
    """Return the resources by file."""
    found = {path.name: yaml.safe_load(path.read_text("utf-8")) for path in KUBERNETES.iterdir()}
    listed = found.pop("kustomization.yaml")["resources"]
    assert set(listed) == set(found)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["worker.yaml", "service.yaml", "disruption.yaml"])
def test_manifests_fit_the_schemas_of_kubernetes(name: str, version: str) -> None:
    kubernetes_validate.validate(manifests()[name], version, strict=True)


def test_a_manifest_that_does_not_fit_would_be_found() -> None:
    wrong = manifests()["worker.yaml"]
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["paht"] = "/"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_scaled_object_fits_its_schema_and_names_the_deployment() -> None:
    scaled = manifests()["scaling.yaml"]
    jsonschema.validate(scaled, SCALED_OBJECT)
    spec, target = scaled["spec"], scaled["spec"]["scaleTargetRef"]
    deployment = manifests()["worker.yaml"]
    assert target["kind"] == deployment["kind"]
    assert target["apiVersion"] == deployment["apiVersion"]
    assert target["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "two would set the number of workers"
    # The workers tell the lag: without any, nobody would ask for one.
    assert 0 < spec["minReplicaCount"] < spec["maxReplicaCount"]


def test_the_probes_ask_what_workers_answer() -> None:
    (worker,) = manifests()["worker.yaml"]["spec"]["template"]["spec"]["containers"]
    probes = {name: worker[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness")}
    probes["readiness"] = worker["readinessProbe"]["httpGet"]
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/live",
        "liveness": "/live",
        "readiness": "/ready",
    }
    (port,) = worker["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    variables = {one["name"]: one.get("value") for one in worker["env"]}
    assert variables["RUNNER_HEALTH_PORT"] == str(port["containerPort"])
    assert variables["RUNNER_HEALTH_HOST"] == "0.0.0.0"


def test_the_service_and_the_budget_mean_the_workers() -> None:
    found = manifests()
    labels = found["worker.yaml"]["spec"]["template"]["metadata"]["labels"]
    assert found["worker.yaml"]["spec"]["selector"]["matchLabels"] == labels
    assert found["service.yaml"]["spec"]["selector"] == labels
    assert found["disruption.yaml"]["spec"]["selector"]["matchLabels"] == labels


def test_no_manifest_has_a_password_in_it() -> None:
    (worker,) = manifests()["worker.yaml"]["spec"]["template"]["spec"]["containers"]
    secrets = [one["name"] for one in worker["env"] if "secretKeyRef" in one.get("valueFrom", {})]
    assert secrets == ["REDIS_URL", "DATABASE_URL"]


def test_prometheus_scrapes_the_port_at_which_workers_answer() -> None:
    settings = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text("utf-8"))
    (job,) = settings["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert set(discovery["names"]) <= set(COMPOSE["services"])
    image = (DOCKER / "Dockerfile").read_text("utf-8")
    assert f"RUNNER_HEALTH_PORT={discovery['port']}" in image
    assert f"EXPOSE {discovery['port']}" in image
    assert ".[metrics" in image
    assert [
        name for name in settings["rule_files"] if not (DOCKER / "prometheus" / name).exists()
    ] == []


def test_what_compose_mounts_beside_it_is_there() -> None:
    mounted = [
        volume.partition(":")[0]
        for service in COMPOSE["services"].values()
        for volume in service.get("volumes", ())
        if volume.startswith(".")
    ]
    assert {"./prometheus", "./grafana/provisioning", "./grafana/dashboards"} <= set(mounted)
    assert [path for path in mounted if not (DOCKER / path).exists()] == []


def test_only_the_machine_itself_reaches_what_compose_publishes() -> None:
    published = [p for service in COMPOSE["services"].values() for p in service.get("ports", ())]
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_grafana_is_told_where_prometheus_and_its_dashboard_are() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text("utf-8"))
    (source,) = sources["datasources"]
    host = re.fullmatch(r"http://(\w+):9090", source["url"])
    assert host
    assert host[1] in COMPOSE["services"]
    boards = yaml.safe_load((provisioning / "dashboards/runner.yaml").read_text("utf-8"))
    (provider,) = boards["providers"]
    mounts = COMPOSE["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_the_unit_of_systemd_says_what_the_supervisor_heeds() -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names as they stand
    unit.read(DOCKER / "systemd" / "arq-runner.service", "utf-8")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["ExecReload"].endswith("-HUP $MAINPID")
    assert "runner worker settings.WorkerSettings" in service["ExecStart"]
