"""Alert rules and dashboard ask for metrics, labels and values that the service has."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from cima_runc.fleet.metrics import Metrics

TOP = Path(__file__).parents[3]
EXAMPLES = TOP / "examples"
_SELECTED = re.compile(r"\b(cima_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_GROUPED = re.compile(r"by \(([^)]*)\)")


def has() -> dict[str, list[dict[str, str]]]:
    """The samples that a service tells of itself, with their labels."""
    metrics = Metrics()
    metrics.refusals.labels("QuoteError").inc()
    metrics.seconds.observe(0.1)
    overview = {
        "containers": dict.fromkeys(("TRUSTED", "UNTRUSTED", "STALE", "UNKNOWN"), 1),
        "hosts": dict.fromkeys(("fresh", "stale", "never"), 1),
        "enrolments_waiting": 1,
    }
    backlog = {"jobs": 1, "jobs_age": 1, "deliveries": 1, "deliveries_age": 1}
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(metrics.text(overview, backlog).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def check(expression: str) -> None:
    there = has()
    selected = _SELECTED.findall(expression)
    assert selected, expression
    for name, chosen in selected:
        assert name in there, f"{expression}: the service has no {name}"
        labels = dict(_LABEL.findall(chosen))
        assert any(labels.items() <= one.items() for one in there[name]), expression
        for group in _GROUPED.findall(expression):
            wanted = {label.strip() for label in group.split(",")}
            assert all(wanted <= one.keys() for one in there[name]), expression


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((EXAMPLES / "fleet/alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_alerts_are_of_metrics_that_there_are() -> None:
    for rule in rules():
        check(rule["expr"])
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        # Counts and names of errors alone: an alert names no container.
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= {
            "error",
            "kind",
        }


def test_each_alert_has_its_part_of_the_operators_page() -> None:
    page = (TOP / "docs/fleet/operate.md").read_text()
    assert [rule["alert"] for rule in rules()] == re.findall(r"^### (Cima\w+)$", page, re.M)


def test_the_dashboard_is_of_metrics_that_there_are() -> None:
    board = json.loads((EXAMPLES / "fleet/dashboard.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    asked = set()
    for panel in panels:
        for target in panel["targets"]:
            check(target["expr"])
            asked |= {name for name, _ in _SELECTED.findall(target["expr"])}
    told = {name for name in has() if not name.endswith(("_created", "_count", "_sum"))}
    assert asked == told, "each metric has a panel"


def test_the_operators_rules_are_the_same() -> None:
    one = yaml.safe_load((EXAMPLES / "fleet/alerts.yaml").read_text())
    other = yaml.safe_load((EXAMPLES / "kubernetes/monitoring/rules.yaml").read_text())
    assert other["spec"] == one


def test_a_check_that_can_fail() -> None:
    for wrong in ('cima_containers{verdict="FINE"}', "cima_nothing", "sum by (x) (cima_hosts)"):
        try:
            check(wrong)
        except AssertionError:
            continue
        raise AssertionError(wrong)
