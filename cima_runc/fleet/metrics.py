"""What Prometheus is told: counts, never names of hosts or containers."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cima_runc import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST
_OUTCOMES = ("accepted", "resync", "refused", "limited", "failed")


class Metrics:
    """The metrics of one process; gauges are of the whole service, read when they are asked for."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.reports = Counter(
            "cima_reports", "Hosts' reports, by what became of them", ["outcome"], registry=registry
        )
        for outcome in _OUTCOMES:
            self.reports.labels(outcome)
        self.refusals = Counter(
            "cima_report_refusals", "Refused reports, by the error", ["error"], registry=registry
        )
        self.seconds = Histogram(
            "cima_report_seconds",
            "Time from a whole report to its answer",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=registry,
        )
        self._containers = Gauge(
            "cima_containers", "Containers, by verdict", ["verdict"], registry=registry
        )
        self._hosts = Gauge("cima_hosts", "Hosts, by freshness", ["freshness"], registry=registry)
        self._waiting = Gauge(
            "cima_enrolments_waiting", "Hosts that wait for approval", registry=registry
        )
        self._backlog = Gauge("cima_backlog", "Work that waits", ["kind"], registry=registry)
        self._backlog_age = Gauge(
            "cima_backlog_age_seconds", "Age of the oldest work", ["kind"], registry=registry
        )
        Gauge("cima_verifier_info", "The version", ["version"], registry=registry).labels(
            __version__
        ).set(1)

    def text(self, overview: dict[str, Any], backlog: dict[str, Any]) -> bytes:
        """Return what Prometheus reads, with these views of :mod:`.queries`."""
        for verdict, count in overview["containers"].items():
            self._containers.labels(verdict).set(count)
        for freshness, count in overview["hosts"].items():
            self._hosts.labels(freshness).set(count)
        self._waiting.set(overview["enrolments_waiting"])
        for kind in ("jobs", "deliveries"):
            self._backlog.labels(kind).set(backlog[kind])
            self._backlog_age.labels(kind).set(backlog[f"{kind}_age"] / 1000)
        return generate_latest(self._registry)
