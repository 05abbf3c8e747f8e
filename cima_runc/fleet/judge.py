"""The judge: appraises containers where something of them, their host, their policy or their
references has changed, and writes down the verdict.

What many containers have in common is read once, and written together: a host may begin to report
with hundreds of them. Source: fleet, section 5.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, delete, insert, or_, select, update

from cima_runc.base.text import printable
from cima_runc.fleet import appraisal, events, host_logs, hosts
from cima_runc.fleet.appraisal import HEAD, Earlier, HostFacts, Part, Pcrs, Services, State
from cima_runc.fleet.database import batched, update_all
from cima_runc.fleet.events import Told
from cima_runc.fleet.findings import Findings
from cima_runc.fleet.lines import SeenRun, SeenRuns
from cima_runc.fleet.schema import Appraisal, Container, Line, Record, table_of
from cima_runc.fleet.schema import Verdict as VerdictRow
from cima_runc.fleet.values import Choice, Choosing, Mode, Read, ValuesCache
from cima_runc.fleet.verdicts import (
    deadline_of,
    effective,
    facts_of,
    measured_line,
    measured_with_line,
)
from cima_runc.ml.contents import File, Measured
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.kernel_line import HostFile
from cima_runc.verifier.result import Finding as Found
from cima_runc.verifier.values import Values

_CONTAINER, _RECORD = table_of(Container), table_of(Record)
_APPRAISAL, _LINE = table_of(Appraisal), table_of(Line)
_KEPT = 4_096
"""Host services of which one process remembers what was found of them."""
_MODES: tuple[Mode, ...] = ("enforce", "observe")


@dataclass(frozen=True)
class News:
    """What has changed of a container."""

    records: tuple[Measured, ...] = ()
    """Records that are newly proved, and stored."""
    since: int = 0
    """Number of the first of them."""


_NONE = News()


class _KnownServices:
    """What was found of host services, which all containers of a host share and which seldom
    change; for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[object, ...], list[Found]] = OrderedDict()

    def get(self, mark: tuple[object, ...]) -> list[Found] | None:
        """Return what was found of services by some values."""
        with self._lock:
            if mark in self._kept:
                self._kept.move_to_end(mark)
            return self._kept.get(mark)

    def put(self, mark: tuple[object, ...], found: list[Found]) -> None:
        """Remember it."""
        with self._lock:
            self._kept[mark] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)


class Judge:
    """Appraises containers of hosts whose rows are locked."""

    def __init__(self, values: ValuesCache, pcrs: Pcrs) -> None:
        self._values = values
        self._pcrs = pcrs
        self._read: tuple[str, Read] | None = None
        self._known = _KnownServices()

    def _read_since(self, change: str | None) -> Read:
        """Return what was read since the latest change by a person, as the transaction saw it when
        it locked the host. What is read later may be newer than that, and never older."""
        if change is None:
            return Read()
        kept = self._read
        if kept is None or kept[0] != change:
            kept = self._read = (change, Read())
        return kept[1]

    def judge(
        self,
        connection: Connection,
        containers: Sequence[Mapping[str, Any]],
        host: Mapping[str, Any],
        news: Mapping[int, News],
        now: int,
    ) -> list[Verdict]:
        """Appraise what is new of containers of one host, all of it where their values are others;
        write down what is found, the verdicts, and the events where they are others. Return the
        verdicts on ``containers``.

        ``containers`` and ``host`` are their rows as they are now, earlier runs first, the host's
        as :func:`cima_runc.fleet.hosts.lock` gives it or alone; ``news`` is by their numbers.
        """
        judged: set[int] = set()
        verdicts: list[Verdict] = []
        while containers:
            choosing = Choosing(
                connection, [one["id"] for one in containers], self._read_since(host.get("change"))
            )
            sitting = _Sitting(
                connection,
                containers,
                host,
                values=self._values,
                pcrs=self._pcrs,
                choosing=choosing,
                known=self._known,
                news=news,
                now=now,
            )
            found = [sitting.judge(one, news.get(one["id"], _NONE)) for one in containers]
            sitting.end()
            verdicts = verdicts or found
            # By a verdict that is another the runs after it are judged anew, and those after them;
            # those after one that had none by a policy yet come with it.
            judged |= {one["id"] for one in containers}
            others = [
                one["registration"]
                for one, verdict in zip(containers, found, strict=True)
                if verdict.value != one["verdict"] and one["policy"] is not None
            ]
            containers, news = _followers(connection, host, others, judged), {}
        return verdicts


def _followers(
    connection: Connection,
    host: Mapping[str, Any],
    registrations: Sequence[int],
    judged: Collection[int],
) -> list[dict[str, Any]]:
    """Return the runs after these, of those that were not judged with them."""
    found: dict[int, dict[str, Any]] = {}
    for some in batched(registrations):
        rows = connection.execute(
            select(_CONTAINER).where(
                _CONTAINER.c.host == host["id"],
                _CONTAINER.c.previous_registration.in_(some),
                _CONTAINER.c.kind == "container",
            )
        ).mappings()
        found |= {row["id"]: dict(row) for row in rows if row["id"] not in judged}
    return sorted(found.values(), key=lambda one: (one["run"] or 0, one["id"]))


class _Boots:
    """What a host has proved in its boots, this one and earlier ones; for one transaction."""

    def __init__(self, connection: Connection, host: Mapping[str, Any]) -> None:
        self._connection = connection
        self._host = host
        self._facts: dict[str, HostFacts | None] = {host["boot_id"]: facts_of(host)}
        self._proved: dict[str, frozenset[bytes]] = {}
        self._files: dict[str, list[HostFile | None]] = {}

    def facts(self, boot_id: str) -> HostFacts | None:
        """Return what a boot had proved; None: nothing of it is kept, or all of it is waited for
        after a restore."""
        if boot_id not in self._facts:
            row = None
            if not hosts.awaits_resync(self._host):
                row = hosts.boot(self._connection, self._host["id"], boot_id)
            self._facts[boot_id] = facts_of(row) if row is not None else None
        return self._facts[boot_id]

    def proved(self, boot_id: str) -> frozenset[bytes]:
        """Return what the host's PCR was extended with."""
        if boot_id not in self._proved:
            found = host_logs.proved(self._connection, self._host["id"], boot_id)
            self._proved[boot_id] = found
        return self._proved[boot_id]

    def files(self, boot_id: str) -> list[HostFile | None]:
        """Return what the lines of the host's log say."""
        if boot_id not in self._files:
            found = host_logs.files(self._connection, self._host["id"], boot_id)
            self._files[boot_id] = found
        return self._files[boot_id]


def _seen_run(container: Mapping[str, Any]) -> SeenRun:
    """Return a container's row as a run of its line."""
    previous = container["previous"] or {}
    return SeenRun(
        row=container["id"],
        run=container["run"],
        registration=container["registration"],
        before=previous.get("run", 0),
        registration_before=previous.get("registration"),
    )


class _Services:
    """The host services that containers rely on; for one transaction."""

    def __init__(
        self,
        connection: Connection,
        boots: _Boots,
        container: Mapping[str, Any],
        *,
        may_be_gone: bool,
    ) -> None:
        self._connection = connection
        self._boots = boots
        self._boot_id: str = container["boot_id"]
        column = _CONTAINER.c
        self._row = connection.execute(
            select(
                column.id, column.slot, column.count, column.confirmed, column.held, column.cpcr
            ).where(
                column.host == container["host"],
                column.boot_id == container["boot_id"],
                column.registration == container["services"],
                column.kind == "dependencies",
            )
        ).first()
        row = self._row
        self._is_whole = (
            row is not None
            and 0 < row.confirmed == row.count
            and not row.held
            and (may_be_gone or row.slot is not None)
        )
        facts = boots.facts(self._boot_id)
        self._is_shown = facts is not None and facts.lines > 0

    @property
    def mark(self) -> tuple[object, ...]:
        """What tells these services from others, and from themselves with more records."""
        row = self._row
        if row is None:
            return ()
        return row.id, bytes(row.cpcr), row.confirmed, self._is_whole, self._is_shown

    @cached_property
    def proved(self) -> Services:
        """What is proved of them."""
        if self._row is None:
            return Services((), is_whole=False)
        raw = self._connection.execute(
            select(_RECORD.c.content)
            .where(_RECORD.c.container == self._row.id)
            .order_by(_RECORD.c.number)
        ).scalars()
        records = [measured_with_line(each) for each in raw]
        files = [(one.number, line) for one, line in records if isinstance(one.content, File)]
        shown = files if self._is_shown else []
        log = self._boots.proved(self._boot_id) if shown else frozenset()
        return Services(
            records=tuple(one for one, _ in records),
            is_whole=self._is_whole,
            without_line=tuple(at for at, line in shown if line is None),
            not_in_log=tuple(
                at
                for at, line in shown
                if line is not None and hashlib.sha256(line).digest() not in log
            ),
        )


class _Sitting:
    """What goes for containers of one host in one transaction; written by :meth:`end`."""

    def __init__(
        self,
        connection: Connection,
        containers: Sequence[Mapping[str, Any]],
        host: Mapping[str, Any],
        *,
        values: ValuesCache,
        pcrs: Pcrs,
        choosing: Choosing,
        known: _KnownServices,
        news: Mapping[int, News],
        now: int,
    ) -> None:
        self._connection = connection
        self._values = values
        self._pcrs = pcrs
        self._host = host
        self._now = now
        self._boots = _Boots(connection, host)
        self._choosing = choosing
        # Of those that no policy was for until now nothing is kept.
        before = [one["id"] for one in containers if one["policy"] or one["observed_policy"]]
        self._findings = Findings(connection, before)
        self._kept: dict[tuple[int, str], Mapping[str, Any]] = {}
        for some in batched(before):
            rows = connection.execute(
                select(_APPRAISAL).where(_APPRAISAL.c.container.in_(some))
            ).mappings()
            self._kept |= {(row["container"], row["mode"]): dict(row) for row in rows}
        self._before = self._runs_before(containers)
        self._forgetting = self._tell_other_lines(containers)
        self._going_on = sorted(number for number, one in news.items() if one.since > 0)
        self._heads: dict[int, list[tuple[int, bytes]]] | None = None
        self._services: dict[tuple[str, int, bool], _Services] = {}
        self._known = known
        self._judged: dict[int, Verdict] = {}
        self._appraised: list[dict[str, Any]] = []
        self._appraised_anew: list[dict[str, Any]] = []
        self._changed: list[tuple[int, dict[str, Any]]] = []
        self._verdicts: list[dict[str, Any]] = []
        self._told: list[Told] = []

    def judge(self, container: Mapping[str, Any], news: News) -> Verdict:
        """Appraise one container, after the runs before it."""
        if container["forgotten"]:
            return Verdict(container["verdict"])
        number = container["id"]
        choices = self._choosing.of(container, self._host["labels"])
        made: dict[Mode, tuple[Verdict, Choice]] = {}
        for mode in _MODES:
            if choices.get(mode):
                made[mode] = self._appraise(container, choices[mode], news)
            elif (number, mode) in self._kept:
                self._findings.forget(number, mode)
                self._connection.execute(
                    delete(_APPRAISAL).where(
                        _APPRAISAL.c.container == number, _APPRAISAL.c.mode == mode
                    )
                )
        verdict, choice = made.get("enforce", (Verdict.UNKNOWN, None))
        self._give(container, verdict, choice, made.get("observe"))
        self._judged[number] = verdict
        return verdict

    def end(self) -> None:
        """Write all of it."""
        connection = self._connection
        self._findings.flush()
        if self._appraised:
            connection.execute(insert(_APPRAISAL), self._appraised)
        if self._appraised_anew:
            connection.execute(
                update(_APPRAISAL).where(
                    _APPRAISAL.c.container == bindparam("of_container"),
                    _APPRAISAL.c.mode == bindparam("of_mode"),
                ),
                self._appraised_anew,
            )
        if self._verdicts:
            connection.execute(insert(table_of(VerdictRow)), self._verdicts)
        events.tell_all(connection, self._told, self._now)
        update_all(connection, _CONTAINER, self._changed)

    # -- one mode ---------------------------------------------------------------------------------

    def _appraise(
        self, container: Mapping[str, Any], choices: Sequence[Choice], news: News
    ) -> tuple[Verdict, Choice]:
        choice, number = choices[0], container["id"]
        mode = choice.mode
        kept = self._kept.get((number, mode))
        if len(choices) > 1:
            choice = self._chosen(container, choices, kept, news)
        values, identity = self._values.get(self._connection, choice)
        is_by_same = kept is not None and kept["values"] == identity
        done = kept["appraised"] if kept is not None else 0
        parts: dict[str, str] = dict(kept["parts"]) if kept is not None else {}
        appraised = container["confirmed"]
        if is_by_same and done == news.since and news.records:
            head = self._head(number, news.since)
            found = appraisal.own(head, news.records, values, container["secret"])
            self._findings.add(number, mode, found, self._now)
        elif not is_by_same or done != container["confirmed"]:
            records = self._all_records(container, news)
            found = appraisal.own((), records, values, container["secret"]) if records else []
            appraised = len(records)
            self._findings.replace(number, mode, "own", found, now=self._now)
        if not is_by_same:
            # Of a boot of which nothing is kept what failed stays, and nothing is TRUSTED by values
            # that were never compared with what the host had proved in it.
            parts.pop("host", None)
        for part, found in self._of_others(container, values, identity):
            digest = appraisal.digest_of(found)
            if parts.get(part) != digest:
                # By the same values, what failed once does not heal; but a run before may have
                # been judged anew.
                grows = is_by_same and part != "runs"
                self._findings.replace(number, mode, part, found, now=self._now, grows=grows)
                parts[part] = digest
        verdict = appraisal.verdict(
            self._findings.rules(number, mode),
            State(
                is_sealed=container["is_sealed"],
                place_proved=container["place_proved"],
                is_whole=container["confirmed"] > 0
                and appraised == container["confirmed"] == container["count"]
                and not container["held"],
                host_is_known="host" in parts,
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
            self._appraised.append({"container": number, "mode": mode, **row})
        elif any(kept[key] != value for key, value in row.items()):
            self._appraised_anew.append({"of_container": number, "of_mode": mode, **row})
        return verdict, choice

    def _of_others(
        self, container: Mapping[str, Any], values: Values, identity: str
    ) -> Iterable[tuple[Part, list[Found]]]:
        """Yield what is to be said of what a container stands on."""
        boot_id = container["boot_id"]

        def records() -> tuple[Measured, ...]:
            relied_on = self._services_of(container)
            return relied_on.proved.records if relied_on is not None else ()

        facts = self._boots.facts(boot_id)
        if container["kind"] == "container" and not container["is_sealed"]:
            # Of a boot of which nothing is kept, what was found stays.
            if facts is not None:
                yield "services", self._of_services(container, values, identity)
            yield (
                "runs",
                appraisal.runs(self._earlier(container), values.policy, late=container["late"]),
            )
        if facts is not None:
            yield (
                "host",
                appraisal.host(
                    facts, records, lambda: self._boots.files(boot_id), values, self._pcrs
                ),
            )

    def _of_services(
        self, container: Mapping[str, Any], values: Values, identity: str
    ) -> list[Found]:
        relied_on = self._services_of(container)
        if relied_on is None:
            return appraisal.services(None, values)
        mark = (*relied_on.mark, identity)
        found = self._known.get(mark)
        if found is None:
            services = relied_on.proved
            found = appraisal.services(services, values)
            # A line that is not in the log may be in it later.
            if not services.not_in_log:
                self._known.put(mark, found)
        return found

    def _chosen(
        self,
        container: Mapping[str, Any],
        choices: Sequence[Choice],
        kept: Mapping[str, Any] | None,
        news: News,
    ) -> Choice:
        """Of images with the same layers, return the one that the container is as, or the first."""
        for choice in choices:
            if kept is not None and self._values.get(self._connection, choice)[1] == kept["values"]:
                return choice
        records = self._all_records(container, news)
        for choice in choices:
            values = self._values.get(self._connection, choice)[0]
            found = appraisal.own((), records, values, container["secret"])
            if not any(one.severity == "fail" for one in found):
                return choice
        return choices[0]

    # -- what is looked at ------------------------------------------------------------------------

    def _all_records(self, container: Mapping[str, Any], news: News) -> tuple[Measured, ...]:
        if news.since == 0 and len(news.records) == container["confirmed"]:
            return news.records
        return self._records(container["id"])

    def _records(self, container: int) -> tuple[Measured, ...]:
        rows = self._connection.execute(
            select(_RECORD.c.content)
            .where(_RECORD.c.container == container)
            .order_by(_RECORD.c.number)
        ).scalars()
        return tuple(measured_line(raw) for raw in rows)

    def _head(self, container: int, until: int) -> tuple[Measured, ...]:
        """Return the first records of a container that goes on, as far as they come before
        ``until``."""
        if self._heads is None:
            self._heads = {}
            for some in batched(self._going_on):
                rows = self._connection.execute(
                    select(_RECORD.c.container, _RECORD.c.number, _RECORD.c.content)
                    .where(_RECORD.c.container.in_(some), _RECORD.c.number < HEAD)
                    .order_by(_RECORD.c.container, _RECORD.c.number)
                )
                for row in rows:
                    self._heads.setdefault(row.container, []).append((row.number, row.content))
        found = self._heads.get(container, ())
        return tuple(measured_line(raw) for number, raw in found if number < until)

    def _services_of(self, container: Mapping[str, Any]) -> _Services | None:
        if container["services"] is None:
            return None
        boot_id = container["boot_id"]
        # Of what has ended the services may have gone since.
        may_be_gone = container["has_ended"] or boot_id != self._host["boot_id"]
        key = (boot_id, container["services"], may_be_gone)
        if key not in self._services:
            self._services[key] = _Services(
                self._connection, self._boots, container, may_be_gone=may_be_gone
            )
        return self._services[key]

    def _runs_before(self, containers: Sequence[Mapping[str, Any]]) -> dict[int, Row[Any]]:
        """Return the runs that others say came before them, by registration."""
        column = _CONTAINER.c
        wanted = {one["previous"]["registration"] for one in containers if one["previous"]}
        found: dict[int, Row[Any]] = {}
        for some in batched(sorted(wanted)):
            rows = self._connection.execute(
                select(
                    column.id,
                    column.registration,
                    column.boot_id,
                    column.line,
                    column.run,
                    column.confirmed,
                    column.cpcr,
                    column.has_ended,
                    column.verdict,
                ).where(column.host == self._host["id"], column.registration.in_(some))
            )
            found |= {row.registration: row for row in rows}
        return found

    def _tell_other_lines(self, containers: Sequence[Mapping[str, Any]]) -> set[int]:
        """Return the containers that tell of their line as if a run that was seen had not been."""
        alone = self._first_seen(containers)
        runs = [
            (one["line"], _seen_run(one))
            for one in containers
            if one["line"] and one["run"] and one["confirmed"] and one["id"] not in alone
        ]
        after: dict[str, int] = {}
        for line, one in runs:
            after[line] = min(after.get(line, one.before), one.before)
        seen = self._seen_after(after)
        return {one.row for line, one in runs if seen[line].are_forgotten_by(one)}

    def _first_seen(self, containers: Sequence[Mapping[str, Any]]) -> set[int]:
        """Return the containers that are their line's first run, and the only one that was seen."""
        firsts = {one["id"]: one["line"] for one in containers if one["line"] and one["run"] == 1}
        found: set[int] = set()
        for some in batched(sorted(set(firsts.values()))):
            rows = self._connection.execute(
                select(_LINE.c.container).where(
                    _LINE.c.host == self._host["id"], _LINE.c.line.in_(some)
                )
            )
            found |= firsts.keys() & set(rows.scalars())
        return found

    def _seen_after(self, after: Mapping[str, int]) -> dict[str, SeenRuns]:
        """Return, of each line, the runs that were seen after the one of this number."""
        column = _CONTAINER.c
        found: dict[str, list[SeenRun]] = {line: [] for line in after}
        for some in batched(sorted(after.items())):
            later = [and_(column.line == line, column.run > run) for line, run in some]
            rows = self._connection.execute(
                select(column.line, column.id, column.run, column.registration, column.previous)
                .where(column.host == self._host["id"], column.kind == "container")
                .where(column.confirmed > 0, or_(*later))
            ).mappings()
            for row in rows:
                found[row["line"]].append(_seen_run(dict(row)))
        return {line: SeenRuns(runs) for line, runs in found.items()}

    def _earlier(self, container: Mapping[str, Any]) -> Earlier:
        if container["line"] is None or container["run"] is None or not container["confirmed"]:
            return Earlier("first")
        previous = container["previous"]
        if previous is None and container["run"] > 1:
            return Earlier("lost")
        if container["id"] in self._forgetting:
            return Earlier("forgotten")
        if previous is None:
            return Earlier("first")
        before = self._before.get(previous["registration"])
        if (
            before is None
            or before.boot_id != previous["boot_id"]
            or before.line != container["line"]
        ):
            return Earlier("not seen")
        verdict = self._judged.get(before.id, Verdict(before.verdict))
        if before.confirmed < previous["count"]:
            return Earlier("not seen", verdict)
        said = (previous["run"], previous["count"], previous["cpcr"])
        if said != (before.run, before.confirmed, before.cpcr.hex()):
            return Earlier("contradicted", verdict)
        return Earlier("seen" if before.has_ended else "end not seen", verdict)

    # -- the verdict ------------------------------------------------------------------------------

    def _give(
        self,
        container: Mapping[str, Any],
        verdict: Verdict,
        choice: Choice | None,
        observed: tuple[Verdict, Choice] | None,
    ) -> None:
        row: dict[str, Any] = {
            "verdict": verdict.value,
            "policy": choice.policy_name if choice is not None else None,
            "reference": choice.reference_name if choice is not None else None,
            "image": choice.image if choice is not None else None,
            "observed": observed[0].value if observed is not None else None,
            "observed_policy": observed[1].policy_name if observed is not None else None,
        }
        is_first = container["policy"] is None and container["since"] == self._now
        if verdict.value != container["verdict"] or is_first:
            row["since"] = self._now
            why = self._why(container, verdict, choice)
            said = {
                "verdict": verdict.value,
                "before": None if is_first else container["verdict"],
                "policy": row["policy"],
                "reference": row["reference"],
                "why": why,
            }
            number = container["id"]
            self._verdicts.append({"container": number, "time": self._now, **said})
            if container["kind"] == "container":
                data = {"container": printable(container["name"]), **said}
                # What it is now: it may have been appraised while its host does not report.
                data["verdict"] = effective(
                    verdict.value,
                    deadline_of(container, self._host, self._now),
                    has_ended=container["has_ended"],
                    now=self._now,
                ).value
                self._told.append(Told(events.Kind.VERDICT, data, container["host"], number))
        changed = {key: value for key, value in row.items() if container[key] != value}
        self._changed.append((container["id"], changed))

    def _why(self, container: Mapping[str, Any], verdict: Verdict, choice: Choice | None) -> str:
        if verdict is Verdict.UNTRUSTED:
            return self._findings.first_failure(container["id"])
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
        if container["boot_id"] != self._host["boot_id"]:
            return "what its host proved in that boot is not kept, to compare with other values"
        return "something keeps it from being trusted: see the findings"
