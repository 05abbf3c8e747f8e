"""Verdicts: what follows from the findings on a container, and from the time.

A verdict is written where something of the container, its host, its policy or its references has
changed; that it is STALE follows from the host's deadline wherever it is read, so that no process
has to live for it. Source: fleet, section 5.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from cima_runc.base.text import printable
from cima_runc.cpcr.status import Status
from cima_runc.evidence.fields import as_tuples
from cima_runc.fleet import appraisal, events
from cima_runc.fleet.appraisal import HEAD, Earlier, HostFacts, Part, State
from cima_runc.fleet.schema import (
    Appraisal,
    Container,
    Finding,
    Host,
    Line,
    Record,
    table_of,
)
from cima_runc.fleet.schema import Verdict as VerdictRow
from cima_runc.fleet.values import Choice, Mode, ValuesCache, choose
from cima_runc.ml import contents
from cima_runc.ml.contents import Measured
from cima_runc.ml.records import parse_fields
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.result import Finding as Found

_CONTAINER, _HOST, _RECORD = table_of(Container), table_of(Host), table_of(Record)
_APPRAISAL, _FINDING, _LINE = table_of(Appraisal), table_of(Finding), table_of(Line)
_MODES: tuple[Mode, ...] = ("enforce", "observe")
FINDINGS = 1_000
"""Findings of one part that are kept; all decide the verdict as they come."""


def effective(verdict: str, deadline: int | None, *, has_ended: bool, now: int) -> Verdict:
    """Return a verdict as it is now.

    :func:`is_stale` says the same of rows, and why.
    """
    kept = Verdict(verdict)
    if kept is Verdict.UNTRUSTED or has_ended:
        return kept
    return Verdict.STALE if deadline is None or deadline < now else kept


def is_stale(now: int) -> ColumnElement[bool]:
    """Return the condition on ``container`` and ``host`` that a verdict is STALE at ``now``.

    What was TRUSTED or UNKNOWN and was not proved again in time is STALE. UNTRUSTED stays: a
    partition only grows. An ended container's verdict is of what ran, which was proved to its end.
    Of a boot that is over nothing is proved again, nor of a host that is no longer enrolled. Where
    nothing at all is known of a host's freshness, as after a restore, UNKNOWN stays UNKNOWN.
    """
    verdict = _CONTAINER.c.verdict
    late = (_HOST.c.deadline < now) | (
        _HOST.c.deadline.is_(None) & (verdict != Verdict.UNKNOWN.value)
    )
    other_boot = _CONTAINER.c.boot_id != _HOST.c.boot_id
    return and_(
        verdict != Verdict.UNTRUSTED.value,
        _CONTAINER.c.has_ended.is_(False),
        late | other_boot | (_HOST.c.state != "enrolled"),
    )


def deadline_of(container: Mapping[str, Any], host: Mapping[str, Any]) -> int | None:
    """Return until when a container's verdict holds; None: it does not hold.

    Of a boot that is over nothing is proved again, nor of a host that is no longer enrolled.
    """
    if host["state"] != "enrolled" or container["boot_id"] != host["boot_id"]:
        return None
    deadline: int | None = host["deadline"]
    return deadline


@dataclass(frozen=True)
class News:
    """What has changed of a container."""

    records: tuple[Measured, ...] = ()
    """Records that are newly proved, and stored."""
    since: int = 0
    """Number of the first of them."""


class Judge:
    """Appraises containers of hosts whose rows are locked."""

    def __init__(self, values: ValuesCache) -> None:
        self._values = values

    def judge(
        self,
        connection: Connection,
        container: Mapping[str, Any],
        host: Mapping[str, Any],
        news: News,
        now: int,
    ) -> Verdict:
        """Appraise what is new of a container, all of it where its values are others; write down
        what is found, the verdict, and the event where it is another.

        ``container`` and ``host`` are their rows as they are now.
        """
        if container["forgotten"]:
            return Verdict(container["verdict"])
        choices = choose(connection, container, host["labels"])
        kept = {
            row["mode"]: dict(row)
            for row in connection.execute(
                select(_APPRAISAL).where(_APPRAISAL.c.container == container["id"])
            ).mappings()
        }
        made: dict[Mode, tuple[Verdict, Choice]] = {}
        for mode in _MODES:
            if choices.get(mode):
                made[mode] = self._appraise(
                    connection,
                    container,
                    host,
                    choices[mode],
                    kept=kept.get(mode),
                    news=news,
                    now=now,
                )
            elif mode in kept:
                for table in (_APPRAISAL, _FINDING):
                    connection.execute(
                        delete(table).where(
                            table.c.container == container["id"], table.c.mode == mode
                        )
                    )
        verdict, choice = made.get("enforce", (Verdict.UNKNOWN, None))
        observed = made.get("observe")
        self._settle(connection, container, verdict, choice, observed=observed, now=now)
        return verdict

    # -- one mode ---------------------------------------------------------------------------------

    def _appraise(
        self,
        connection: Connection,
        container: Mapping[str, Any],
        host: Mapping[str, Any],
        choices: Sequence[Choice],
        *,
        kept: Mapping[str, Any] | None,
        news: News,
        now: int,
    ) -> tuple[Verdict, Choice]:
        choice = choices[0]
        if len(choices) > 1:
            choice = self._chosen(connection, container, choices, kept)
        values, identity = self._values.get(connection, choice)
        goes_on = (
            kept is not None and kept["values"] == identity and kept["appraised"] == news.since
        )
        is_same = (
            kept is not None
            and kept["values"] == identity
            and kept["appraised"] == container["confirmed"]
        )
        parts: dict[str, str] = dict(kept["parts"]) if kept is not None else {}
        mode, appraised = choice.mode, container["confirmed"]
        if goes_on and news.records:
            head = self._records(connection, container["id"], until=min(HEAD, news.since))
            found = appraisal.own(head, news.records, values)
            self._add(connection, container["id"], mode, found, now)
        elif not is_same:
            records = self._records(connection, container["id"])
            found = appraisal.own((), records, values) if records else []
            appraised = len(records)
            self._replace(connection, container["id"], mode, "own", found, now=now)
        relied_on = self._services(connection, container)
        earlier = self._earlier(connection, container)
        others: dict[Part, list[Found]] = {}
        if container["kind"] == "container" and not container["is_sealed"]:
            others["services"] = appraisal.services(relied_on, values)
            others["runs"] = appraisal.runs(earlier, values.policy)
        facts = facts_of(host)
        if facts is not None and container["boot_id"] == host["boot_id"]:
            others["host"] = appraisal.host(facts, relied_on or (), values.policy)
        for part, found in others.items():
            digest = appraisal.digest_of(found)
            if parts.get(part) != digest:
                # By the same values, what failed once does not heal; but a run before may have
                # been judged anew.
                grows = kept is not None and kept["values"] == identity and part != "runs"
                self._replace(connection, container["id"], mode, part, found, now=now, grows=grows)
                parts[part] = digest
        rows = connection.execute(
            select(_FINDING.c.severity, _FINDING.c.rule)
            .where(_FINDING.c.container == container["id"], _FINDING.c.mode == mode)
            .distinct()
        ).all()
        verdict = appraisal.verdict(
            [(row.severity, row.rule) for row in rows],
            State(
                is_sealed=container["is_sealed"],
                place_proved=container["place_proved"],
                is_whole=container["confirmed"] > 0
                and appraised == container["confirmed"] == container["count"]
                and not container["held"],
                has_policy=True,
                has_reference=choice.reference is not None,
                vanished=container["vanished"],
            ),
            values,
        )
        row = {
            "values": identity,
            "policy": choice.policy_name,
            "reference": choice.reference_name,
            "appraised": appraised,
            "parts": parts,
            "verdict": verdict.value,
        }
        if kept is None:
            connection.execute(
                insert(_APPRAISAL).values(container=container["id"], mode=mode, **row)
            )
        elif any(kept[key] != value for key, value in row.items()):
            connection.execute(
                update(_APPRAISAL)
                .where(_APPRAISAL.c.container == container["id"], _APPRAISAL.c.mode == mode)
                .values(**row)
            )
        return verdict, choice

    def _chosen(
        self,
        connection: Connection,
        container: Mapping[str, Any],
        choices: Sequence[Choice],
        kept: Mapping[str, Any] | None,
    ) -> Choice:
        """Of images with the same layers, return the one that the container is as, or the first."""
        for choice in choices:
            if kept is not None and self._values.get(connection, choice)[1] == kept["values"]:
                return choice
        records = self._records(connection, container["id"])
        for choice in choices:
            found = appraisal.own((), records, self._values.get(connection, choice)[0])
            if not any(one.severity == "fail" for one in found):
                return choice
        return choices[0]

    def _records(
        self, connection: Connection, container: int, *, until: int | None = None
    ) -> tuple[Measured, ...]:
        if until == 0:
            return ()
        query = select(_RECORD.c.content).where(_RECORD.c.container == container)
        if until is not None:
            query = query.where(_RECORD.c.number < until)
        rows = connection.execute(query.order_by(_RECORD.c.number)).scalars()
        return tuple(measured_line(raw) for raw in rows)

    def _services(
        self, connection: Connection, container: Mapping[str, Any]
    ) -> tuple[Measured, ...] | None:
        if container["services"] is None:
            return None
        found = connection.execute(
            select(_CONTAINER.c.id).where(
                _CONTAINER.c.host == container["host"],
                _CONTAINER.c.boot_id == container["boot_id"],
                _CONTAINER.c.registration == container["services"],
                _CONTAINER.c.kind == "dependencies",
            )
        ).scalar()
        return self._records(connection, found) if found is not None else ()

    def _earlier(self, connection: Connection, container: Mapping[str, Any]) -> Earlier:
        if container["line"] is None or container["run"] is None or not container["confirmed"]:
            return Earlier("first")
        if container["run"] == 1:
            known = connection.execute(
                select(_LINE.c.container, _LINE.c.run).where(
                    _LINE.c.host == container["host"],
                    _LINE.c.line == container["line"],
                    _LINE.c.container < container["id"],
                )
            ).first()
            # The line's latest run is this one itself, or one that came after it.
            return Earlier("first") if known is None else Earlier("forgotten")
        previous = container["previous"]
        if previous is None:
            return Earlier("lost")
        before = (
            connection.execute(
                select(_CONTAINER).where(
                    _CONTAINER.c.host == container["host"],
                    _CONTAINER.c.boot_id == previous["boot_id"],
                    _CONTAINER.c.registration == previous["registration"],
                )
            )
            .mappings()
            .first()
        )
        if before is None or before["line"] != container["line"]:
            return Earlier("not seen")
        verdict = Verdict(before["verdict"])
        if before["confirmed"] < previous["count"]:
            return Earlier("not seen", verdict)
        said = (previous["run"], previous["count"], previous["cpcr"])
        if said != (before["run"], before["confirmed"], before["cpcr"].hex()):
            return Earlier("contradicted", verdict)
        return Earlier("seen" if before["has_ended"] else "end not seen", verdict)

    # -- findings ---------------------------------------------------------------------------------

    def _replace(
        self,
        connection: Connection,
        container: int,
        mode: Mode,
        part: Part,
        found: Sequence[Found],
        *,
        now: int,
        grows: bool = False,
    ) -> None:
        column = _FINDING.c
        old = and_(column.container == container, column.mode == mode, column.part == part)
        if grows:
            rows = connection.execute(
                select(column.rule, column.what).where(old, column.severity == "fail")
            ).all()
            failed = {(row.rule, row.what) for row in rows}
            found = [
                one for one in found if one.severity != "fail" or (one.rule, one.what) not in failed
            ]
            old = and_(old, column.severity != "fail")
        connection.execute(delete(_FINDING).where(old))
        self._insert(connection, container, mode, part, found, now=now)

    def _add(
        self, connection: Connection, container: int, mode: Mode, found: Sequence[Found], now: int
    ) -> None:
        if not found:
            return
        column = _FINDING.c
        rows = connection.execute(
            select(column.rule, column.what, column.record, column.severity).where(
                column.container == container, column.mode == mode, column.part == "own"
            )
        ).all()
        known = {(row.rule, row.what, row.record, row.severity) for row in rows}
        new = [one for one in found if (one.rule, one.what, one.record, one.severity) not in known]
        fails = any(row.severity == "fail" for row in rows)
        room = max(FINDINGS - len(rows), 0 if fails else 1)
        self._insert(connection, container, mode, "own", new, now=now, room=room)

    def _insert(
        self,
        connection: Connection,
        container: int,
        mode: Mode,
        part: Part,
        found: Sequence[Found],
        *,
        now: int,
        room: int = FINDINGS,
    ) -> None:
        # Those that fail first: what is left out for want of room decides nothing more.
        ranked = sorted(found, key=lambda one: one.severity != "fail")[:room]
        if ranked:
            connection.execute(
                insert(_FINDING),
                [
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
                ],
            )

    # -- the verdict ------------------------------------------------------------------------------

    def _settle(
        self,
        connection: Connection,
        container: Mapping[str, Any],
        verdict: Verdict,
        choice: Choice | None,
        *,
        observed: tuple[Verdict, Choice] | None,
        now: int,
    ) -> None:
        row: dict[str, Any] = {
            "verdict": verdict.value,
            "policy": choice.policy_name if choice is not None else None,
            "reference": choice.reference_name if choice is not None else None,
            "image": choice.image if choice is not None else None,
            "observed": observed[0].value if observed is not None else None,
            "observed_policy": observed[1].policy_name if observed is not None else None,
        }
        is_first = container["policy"] is None and container["since"] == now
        if verdict.value != container["verdict"] or is_first:
            row["since"] = now
            why = self._why(connection, container, verdict, choice)
            before = None if is_first else container["verdict"]
            connection.execute(
                insert(table_of(VerdictRow)).values(
                    container=container["id"],
                    time=now,
                    verdict=verdict.value,
                    before=before,
                    policy=row["policy"],
                    reference=row["reference"],
                    why=why,
                )
            )
            if container["kind"] == "container":
                events.tell(
                    connection,
                    events.Kind.VERDICT,
                    {
                        "container": printable(container["name"]),
                        "verdict": verdict.value,
                        "before": before,
                        "policy": row["policy"],
                        "reference": row["reference"],
                        "why": why,
                    },
                    host=container["host"],
                    container=container["id"],
                    now=now,
                )
        changed = {key: value for key, value in row.items() if container[key] != value}
        if changed:
            connection.execute(
                update(_CONTAINER).where(_CONTAINER.c.id == container["id"]).values(**changed)
            )

    def _why(
        self,
        connection: Connection,
        container: Mapping[str, Any],
        verdict: Verdict,
        choice: Choice | None,
    ) -> str:
        if verdict is Verdict.UNTRUSTED:
            found = connection.execute(
                select(_FINDING.c.what)
                .where(
                    _FINDING.c.container == container["id"],
                    _FINDING.c.mode == "enforce",
                    _FINDING.c.severity == "fail",
                )
                .order_by(_FINDING.c.id)
                .limit(1)
            ).scalar()
            return found or ""
        if verdict is Verdict.TRUSTED:
            return "all that ran is as the reference values and the policy want it"
        if container["is_sealed"]:
            return "place proved: its records are for its owner"
        if container["vanished"]:
            return "its register was given up before its end was proved"
        if choice is None:
            return "no policy is assigned to it"
        if choice.reference is None:
            return "there are no reference values of its image"
        if container["confirmed"] != container["count"]:
            return "not all of its records are proved yet"
        return "something keeps it from being trusted: see the findings"


def facts_of(host: Mapping[str, Any]) -> HostFacts | None:
    """Return what a host's row says that its last report proved; None before the first."""
    if host["status"] is None:
        return None
    log = host["log"] or {}
    return HostFacts(
        status=Status.model_validate(as_tuples(host["status"])),
        pcrs={int(pcr): bytes.fromhex(value) for pcr, value in host["pcrs"].items()},
        lines=host["log_lines"],
        aggregate=log.get("aggregate", "another"),
        violations=log.get("violations", 0),
        disclosure=log.get("disclosure", "redacted"),
        violated=tuple(bytes.fromhex(path) for path in log.get("violated", ())),
    )


def measured_line(raw: bytes) -> Measured:
    """Return a stored record as rules look at it."""
    value = json.loads(raw)
    value.pop("line", None)
    return contents.measured(parse_fields(value))
