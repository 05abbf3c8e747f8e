"""The kustomize bases: rendered by kubectl, and what comes is of the API's own schemas.

The schemas are those of the package kubernetes-validate, which pip brings when the test runs: it is
larger than all else that is installed to develop this.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

BASES = Path(__file__).parents[2] / "examples/kubernetes"
VALIDATOR = "kubernetes-validate==1.37.0"
WITHOUT_SCHEMA = {"ServiceMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator: not of Kubernetes's own API."""

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl renders the bases, and is not installed"
)


def rendered(name: str) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", BASES / name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return list(yaml.safe_load_all(done.stdout))


NAMES = sorted(path.parent.name for path in BASES.glob("*/kustomization.yaml"))


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("validator")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", root, VALIDATOR]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.skip(f"pip does not bring {VALIDATOR}: {done.stderr[-200:]}")
    return root


@pytest.mark.parametrize("name", NAMES)
def test_it_renders_what_the_api_takes(name: str, validator: Path, tmp_path: Path) -> None:
    objects = [one for one in rendered(name) if one["kind"] not in WITHOUT_SCHEMA]
    script = "import sys, yaml, kubernetes_validate as k\n" + (
        "for one in yaml.safe_load_all(open(sys.argv[1])):\n"
        "    k.validate(one, '1.32', strict=True); print(one['kind'])\n"
    )

    def validated(given: list[dict[str, Any]]) -> "subprocess.CompletedProcess[str]":
        path = tmp_path / "objects.yaml"
        path.write_text(yaml.safe_dump_all(given))
        return subprocess.run(
            [sys.executable, "-c", script, path],
            env={**os.environ, "PYTHONPATH": str(validator)},
            capture_output=True,
            text=True,
            check=False,
        )

    done = validated(objects)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [one["kind"] for one in objects]
    if objects:
        wrong = {**objects[0], "spce": {}}
        assert validated([wrong]).returncode != 0, "the check must be able to fail"


def test_the_service_has_few_rights() -> None:
    (deployment,) = (one for one in rendered("fleet-service") if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    for one in (*pod["initContainers"], *pod["containers"]):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_its_settings_are_settings() -> None:
    from cima_runc.fleet.settings import read_settings

    assert read_settings(BASES / "fleet-service/verifier.toml").port == 8443


def test_monitoring_finds_the_service() -> None:
    services = [one for one in rendered("fleet-service") if one["kind"] == "Service"]
    (monitor,) = (one for one in rendered("monitoring") if one["kind"] == "ServiceMonitor")
    (service,) = services
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"]
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


def test_a_node_reports_after_it_is_installed() -> None:
    (daemons,) = (one for one in rendered("node") if one["kind"] == "DaemonSet")
    first = daemons["spec"]["template"]["spec"]["initContainers"]
    assert [one["name"] for one in first] == ["install", "fleet"]
    maps = {one["metadata"]["name"] for one in rendered("node") if one["kind"] == "ConfigMap"}
    used = {
        volume["configMap"]["name"]
        for volume in daemons["spec"]["template"]["spec"]["volumes"]
        if "configMap" in volume
    }
    assert used <= maps
