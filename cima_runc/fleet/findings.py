"""What was found of containers, as it is kept.

Findings are of a container, a mode and a part: what is found of a part replaces what was found of
it before. Source: fleet, section 5.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, delete, insert, or_, select
from sqlalchemy.sql.elements import ColumnElement

from cima_runc.fleet.appraisal import Part
from cima_runc.fleet.database import batched
from cima_runc.fleet.schema import Container, Finding, table_of
from cima_runc.fleet.values import Mode
from cima_runc.verifier.result import Finding as Found

_FINDING, _CONTAINER = table_of(Finding), table_of(Container)
FINDINGS = 1_000
"""Findings of one part that are kept; all decide the verdict as they come."""
_FOR_ALL = frozenset(
    {
        "boot_aggregate.differs",
        "boot_aggregate.no_tpm",
        "boot_aggregate.not_comparable",
        "host.foreign",
        "host.gaps",
        "host.log_hidden",
        "host.pcr",
        "host.pcr_changed",
        "host.pcr_selection",
        "host.pcrs_unknown",
        "host.reference",
    }
)
"""Rules of what evidence shows of a host to each of its tenants alike. All else that is found of a
host is by its log, which in full has what every container of it ran."""
OPERATORS = "what the host's log shows is not as it should be: its operator sees what"
"""What is said in the place of that."""


def is_for_all(part: str, rule: str) -> bool:
    """Whether what a finding says may be read by whoever has a container on the host."""
    return part != "host" or rule in _FOR_ALL


def are_for_all() -> ColumnElement[bool]:
    """Return the condition on ``finding`` that is as :func:`is_for_all`."""
    return or_(_FINDING.c.part != "host", _FINDING.c.rule.in_(_FOR_ALL))


def waiting_for_log(host: int) -> Select[tuple[int]]:
    """Return the query for containers of a host that rely on what was not in its log."""
    column = _FINDING.c
    return (
        select(column.container)
        .join(_CONTAINER, _CONTAINER.c.id == column.container)
        .where(_CONTAINER.c.host == host, column.rule == "dependencies.line")
    )


def _ranked(found: Sequence[Found]) -> list[Found]:
    """Return those that fail first, and then one of each rule, since a rule that only warns may
    keep a container from being TRUSTED: what is left out for want of room decides nothing more."""
    first: dict[tuple[str, str], int] = {}
    for at, one in enumerate(found):
        first.setdefault((one.severity, one.rule), at)
    firsts = set(first.values())
    order = sorted(
        range(len(found)), key=lambda at: (found[at].severity != "fail", at not in firsts)
    )
    return [found[at] for at in order]


class Findings:
    """The findings of containers whose hosts' rows are locked; written by :meth:`flush`."""

    def __init__(self, connection: Connection, containers: Sequence[int]) -> None:
        """Look for what is kept of ``containers``, by their rows' numbers."""
        self._connection = connection
        self._kept: dict[tuple[int, str], set[tuple[str, str, str]]] = {}
        self._rows: list[dict[str, Any]] = []
        self._failed: dict[int, tuple[str, str, str]] = {}
        column = _FINDING.c
        for some in batched(containers):
            rows = connection.execute(
                select(column.container, column.mode, column.part, column.severity, column.rule)
                .where(column.container.in_(some))
                .distinct()
            )
            for row in rows:
                kept = self._kept.setdefault((row.container, row.mode), set())
                kept.add((row.part, row.severity, row.rule))

    def rules(self, container: int, mode: Mode) -> set[tuple[str, str]]:
        """Return what there is of findings on a container: severity and rule of each."""
        return {(severity, rule) for _, severity, rule in self._kept.get((container, mode), ())}

    def replace(
        self,
        container: int,
        mode: Mode,
        part: Part,
        found: Sequence[Found],
        *,
        now: int,
        grows: bool = False,
    ) -> None:
        """Put what was found of a part into the place of what was found before; where it ``grows``,
        what failed stays."""
        kept = self._kept.setdefault((container, mode), set())
        before = {one for one in kept if one[0] == part}
        if before:
            column = _FINDING.c
            old = and_(column.container == container, column.mode == mode, column.part == part)
            if grows:
                stays = {one for one in before if one[1] == "fail"}
                found = self._without_known(found, old) if stays else found
                old, before = and_(old, column.severity != "fail"), before - stays
            if before:
                self._connection.execute(delete(_FINDING).where(old))
                kept -= before
        self._insert(container, mode, part, found, now=now)

    def _without_known(self, found: Sequence[Found], old: Any) -> list[Found]:
        column = _FINDING.c
        rows = self._connection.execute(
            select(column.rule, column.what).where(old, column.severity == "fail")
        ).all()
        failed = {(row.rule, row.what) for row in rows}
        return [
            one for one in found if one.severity != "fail" or (one.rule, one.what) not in failed
        ]

    def add(self, container: int, mode: Mode, found: Sequence[Found], now: int) -> None:
        """Add what was found of a container's own newer records."""
        if not found:
            return
        if not any(part == "own" for part, _, _ in self._kept.get((container, mode), ())):
            self._insert(container, mode, "own", found, now=now)
            return
        column = _FINDING.c
        rows = self._connection.execute(
            select(column.rule, column.what, column.record, column.severity).where(
                column.container == container, column.mode == mode, column.part == "own"
            )
        ).all()
        known = {(row.rule, row.what, row.record, row.severity) for row in rows}
        new = [one for one in found if (one.rule, one.what, one.record, one.severity) not in known]
        fails = any(row.severity == "fail" for row in rows)
        room = max(FINDINGS - len(rows), 0 if fails else 1)
        self._insert(container, mode, "own", new, now=now, room=room)

    def _insert(
        self,
        container: int,
        mode: Mode,
        part: Part,
        found: Sequence[Found],
        *,
        now: int,
        room: int = FINDINGS,
    ) -> None:
        ranked = _ranked(found)[:room]
        kept = self._kept.setdefault((container, mode), set())
        kept |= {(part, one.severity, one.rule) for one in ranked}
        fails = (one for one in ranked if mode == "enforce" and one.severity == "fail")
        if first := next(fails, None):
            self._failed.setdefault(container, (part, first.rule, first.what))
        self._rows += [
            {
                "container": container,
                "mode": mode,
                "part": part,
                "severity": one.severity,
                "rule": one.rule,
                "what": one.what,
                "record": one.record,
                "run": one.run,
                "path": one.path,
                "got": one.got,
                "expected": one.expected,
                "next": one.next,
                "time": now,
            }
            for one in ranked
        ]

    def forget(self, container: int, mode: Mode) -> None:
        """Remove all that was found of a container in a mode."""
        if self._kept.pop((container, mode), None):
            self._connection.execute(
                delete(_FINDING).where(_FINDING.c.container == container, _FINDING.c.mode == mode)
            )

    def first_failure(self, container: int) -> str:
        """Return the first of what a container is UNTRUSTED for, as all may read it who see the
        container: it becomes part of its history and of events."""
        column = _FINDING.c
        found = self._connection.execute(
            select(column.part, column.rule, column.what)
            .where(
                column.container == container,
                column.mode == "enforce",
                column.severity == "fail",
            )
            .order_by(column.id)
            .limit(1)
        ).first()
        first = found or self._failed.get(container)
        if first is None:
            return ""
        part, rule, what = first
        return str(what) if is_for_all(part, rule) else OPERATORS

    def flush(self) -> None:
        """Write what was found."""
        if self._rows:
            self._connection.execute(insert(_FINDING), self._rows)
            self._rows, self._failed = [], {}
