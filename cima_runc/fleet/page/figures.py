"""What the overview shows beside counts: verdicts over time, and the latest findings."""

from typing import Any

from sqlalchemy import Connection, func, literal, select

from cima_runc.base.text import printable
from cima_runc.fleet import clock
from cima_runc.fleet.findings import are_for_all
from cima_runc.fleet.queries import Row, is_tenants, when
from cima_runc.fleet.schema import Container, Finding, Verdict, table_of

_CONTAINER, _VERDICT, _FINDING = table_of(Container), table_of(Verdict), table_of(Finding)
HOURS = 24
_HOUR = 3_600_000
VERDICTS = ("TRUSTED", "UNTRUSTED", "STALE", "UNKNOWN")


def by_hour(connection: Connection, tenant: int | None) -> list[Row]:
    """Return how many containers got which verdict in each of the last 24 hours."""
    first = clock.now() // _HOUR - HOURS + 1
    hour = _VERDICT.c.time // _HOUR
    rows = connection.execute(
        select(hour.label("hour"), _VERDICT.c.verdict, func.count().label("n"))
        .join(_CONTAINER, _CONTAINER.c.id == _VERDICT.c.container)
        .where(_VERDICT.c.time >= first * _HOUR, is_tenants(tenant))
        .group_by(hour, _VERDICT.c.verdict)
    )
    counts: dict[tuple[int, str], int] = {(row.hour, row.verdict): row.n for row in rows}
    return [
        {
            "time": (when(number * _HOUR) or "")[:16],
            "counts": {verdict: counts.get((number, verdict), 0) for verdict in VERDICTS},
        }
        for number in range(first, first + HOURS)
    ]


def latest_findings(connection: Connection, tenant: int | None, limit: int = 10) -> list[Row]:
    """Return what failed last, in containers whose policy is enforced."""
    rows = connection.execute(
        select(
            _FINDING.c.rule, _FINDING.c.what, _FINDING.c.time, _CONTAINER.c.uid, _CONTAINER.c.name
        )
        .join(_CONTAINER, _CONTAINER.c.id == _FINDING.c.container)
        .where(
            _FINDING.c.severity == "fail",
            _FINDING.c.mode == "enforce",
            _CONTAINER.c.kind == "container",
            is_tenants(tenant),
            literal(True) if tenant is None else are_for_all(),
        )
        .order_by(_FINDING.c.id.desc())
        .limit(limit)
    )
    made: list[dict[str, Any]] = [
        {
            "rule": row.rule,
            "what": row.what,
            "time": when(row.time),
            "uid": row.uid,
            "container": printable(row.name),
        }
        for row in rows
    ]
    return made
