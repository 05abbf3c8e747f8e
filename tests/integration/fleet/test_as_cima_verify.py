"""The service calls nothing TRUSTED that ``cima verify``, with the same values, would not.

Both are given the same: what a host reports, and evidence of the same records, log and PCRs.
"""

import hashlib
import itertools
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from cima_runc.base import limits
from cima_runc.cpcr.status import Status
from cima_runc.fleet import appraisal, changes, queries
from cima_runc.fleet.schema import Host, HostBoot, HostLogPart, table_of
from cima_runc.verifier.enrolled import parse_enrolled_ak
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.reference.file import HostReference, ImageReference, format_reference
from cima_runc.verifier.values import Values, read_values
from cima_runc.verifier.verify import verify
from tests.support.fleet_host import FleetHost, replayed
from tests.support.fleet_image import POLICY, VARIABLE, image, reference_file, start
from tests.support.served_fleet import ServedFleet, eventually
from tests.support.twin_evidence import disclosure, twin

KNOWN = (b"/usr/bin/dockerd", b"/usr/bin/runc", b"/usr/lib/one.so", b"/usr/lib/two.so")
HOST = HostReference(files={path.decode(): (hashlib.sha256(path).hexdigest(),) for path in KNOWN})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ImageReference:
    return image(tmp_path_factory.mktemp("image"))


@dataclass
class Case:
    """A host with a container, and what both are told to insist on."""

    fleet: ServedFleet
    reference: ImageReference
    policy: str = ""
    tables: str = ""
    with_host: bool = True
    host: FleetHost = field(default_factory=FleetHost)

    def __post_init__(self) -> None:
        name = f"case-{secrets.token_hex(4)}"
        self.text = self.policy + POLICY + self.tables
        self.fleet.write(changes.add_policy, name, self.text)
        self.fleet.write(
            changes.assign,
            name,
            {"label": {"case": name}},
            image_reference="app",
            host_reference="hosts" if self.with_host else None,
        )
        self.fleet.enrol(self.host, case=name)
        self.name = f"web-{name}"
        self.services = self.host.serve(*KNOWN[:2])
        self.begin()

    def begin(self) -> None:
        """Start the container, or its next run."""
        self.number = start(self.host, self.name, self.reference, services=self.services)

    def values(self) -> Values:
        files = [reference_file(self.reference)]
        files += [format_reference(HOST)] if self.with_host else []
        return read_values(files, self.text.encode())

    def service_says(self) -> str:
        rows = self.fleet.get("/v1/containers", None, name=self.name, everything=True)
        (found,) = (one for one in rows if one["registration"] == str(self.number))
        return str(found["verdict"])

    def cima_verify_says(self) -> str:
        forger, values = twin(self.host, self.number), self.values()
        nonce, shown = secrets.token_bytes(16), disclosure(self.host)
        request = forger.request(nonce, host=shown)
        expected = Expectation(
            nonce=nonce,
            ak=parse_enrolled_ak(forger.pem()),
            container=self.name,
            host=shown,
            policy=values.policy,
        )
        found = verify(forger.evidence(request), expected, appraisal=values.appraisal)
        self.why = found
        return found.verdict.value


def begun(fleet: ServedFleet, reference: ImageReference, **named: Any) -> Case:
    if not fleet.get("/v1/references"):
        fleet.write(changes.add_reference, "app", reference_file(reference))
        fleet.write(changes.add_reference, "hosts", format_reference(HOST))
    return Case(fleet, reference, **named)


# -- what may happen on a host ------------------------------------------------------------------


def more_foreign(case: Case) -> None:
    said = case.host.status.model_dump(mode="json")
    said["foreign"]["count"] += 1
    said["foreign"]["last"] = [{"kind": "changed", "time": "2026-01-31T13:00:00Z"}]
    case.host.status = Status.model_validate_json(json.dumps(said))


def many_violations(case: Case) -> None:
    for at in range(520):
        case.host.host_runs(b"/srv/%d" % at, violation=True)
    case.host.host_runs(KNOWN[0], violation=True)


def restart(case: Case) -> None:
    case.begin()


def set_shown(**shown: bool) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        for name, value in shown.items():
            setattr(case.host, name, value)

    return change


HAPPENS: dict[str, Callable[[Case], object]] = {
    "nothing": lambda case: None,
    "a report": lambda case: case.fleet.sync(case.host),
    "a service's known library": lambda case: case.host.service_runs(case.services, KNOWN[2]),
    "a service's strange library": lambda case: case.host.service_runs(case.services, b"/x"),
    "a line that no log has": lambda case: case.host.service_runs(
        case.services, KNOWN[3], logged=False
    ),
    "a service's record without its line": lambda case: case.host.service_runs(
        case.services, KNOWN[2], with_line=False
    ),
    "a known file of the host": lambda case: case.host.host_runs(KNOWN[3]),
    "a strange file of the host": lambda case: case.host.host_runs(b"/usr/bin/stranger"),
    "a violation of a service": lambda case: case.host.host_runs(KNOWN[0], violation=True),
    "a violation of another": lambda case: case.host.host_runs(b"/srv/db", violation=True),
    "violations by the hundred": many_violations,
    "a boot PCR is extended": lambda case: case.host.tpm.extend(4, b"\1" * 32),
    "the binding PCR is extended": more_foreign,
    "a strange program": lambda case: case.host.run(case.number, b"/tmp/strange"),
    "a known program": lambda case: case.host.run(case.number, b"/bin/tool", b"tool"),
    "a restart": restart,
    "the end": lambda case: (
        case.host.end(case.number) if case.host.containers[case.number].state != "stopped" else None
    ),
    "the log is hidden": set_shown(shows_log=False),
    "the log is shown": set_shown(shows_log=True),
    "the log is shown in full": set_shown(shows_log=True, in_full=True),
}
KEYS = {
    "": "",
    "restarts": "allow_restarts = true\n",
    "foreign": "allow_foreign_extends = false\n",
    "another binding PCR": "binding_pcr = 13\n",
    "another host PCR": "host_pcr = 11\n",
    "more boot PCRs": "boot_pcrs = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 15]\n",
    "no clock": "require_safe_clock = false\n",
}
TABLES = {
    "": "",
    "violations": "[host]\nallow_violations = true\n",
    "required": "[dependencies]\nrequired = true\n",
    "allowed": '[[dependencies.files]]\npath = "/x"\n',
}


def both(case: Case, *happens: str) -> tuple[str, str]:
    """Let things happen, report, and return what the service and ``cima verify`` say."""
    for name in happens:
        HAPPENS[name](case)
    case.fleet.sync(case.host)
    return case.service_says(), case.cima_verify_says()


TABLE: list[tuple[tuple[str, ...], dict[str, Any], str, str]] = [
    (("nothing",), {}, "TRUSTED", "TRUSTED"),
    (("a report", "a service's known library"), {}, "TRUSTED", "TRUSTED"),
    (("a service's strange library",), {}, "UNTRUSTED", "UNTRUSTED"),
    (("a service's strange library",), {"tables": TABLES["allowed"]}, "TRUSTED", "TRUSTED"),
    (("a line that no log has",), {}, "UNKNOWN", "UNTRUSTED"),
    (("a report", "a line that no log has"), {}, "UNKNOWN", "UNTRUSTED"),
    (("a line that no log has",), {"with_host": False}, "UNKNOWN", "UNTRUSTED"),
    (("a service's record without its line",), {}, "UNTRUSTED", "UNTRUSTED"),
    (("the log is hidden", "a line that no log has"), {}, "TRUSTED", "TRUSTED"),
    (("a report", "the log is hidden"), {}, "UNKNOWN", "TRUSTED"),
    (("a report", "the log is hidden", "a report", "the log is shown"), {}, "TRUSTED", "TRUSTED"),
    (("a strange file of the host",), {}, "TRUSTED", "TRUSTED"),
    (("the log is shown in full", "a known file of the host"), {}, "TRUSTED", "TRUSTED"),
    (("the log is shown in full", "a strange file of the host"), {}, "UNTRUSTED", "UNTRUSTED"),
    (
        ("the log is shown in full", "a report", "a strange file of the host"),
        {},
        "UNTRUSTED",
        "UNTRUSTED",
    ),
    (("the log is shown in full",), {"with_host": False}, "UNKNOWN", "UNTRUSTED"),
    (("a violation of another",), {}, "UNTRUSTED", "UNTRUSTED"),
    (("a violation of another",), {"tables": TABLES["violations"]}, "TRUSTED", "TRUSTED"),
    (("the log is shown in full", "a violation of another"), {}, "TRUSTED", "TRUSTED"),
    (("the log is shown in full", "violations by the hundred"), {}, "UNTRUSTED", "UNTRUSTED"),
    (("a boot PCR is extended",), {}, "UNTRUSTED", "UNTRUSTED"),
    (("a report", "a boot PCR is extended"), {}, "UNTRUSTED", "UNTRUSTED"),
    (("a report", "the binding PCR is extended"), {"policy": KEYS["foreign"]}, *["UNTRUSTED"] * 2),
    (("nothing",), {"policy": KEYS["another binding PCR"]}, "UNTRUSTED", "UNTRUSTED"),
    (("nothing",), {"policy": KEYS["another host PCR"]}, "UNTRUSTED", "UNTRUSTED"),
    (("nothing",), {"policy": KEYS["more boot PCRs"]}, "UNTRUSTED", "UNTRUSTED"),
    (("nothing",), {"tables": TABLES["required"], "with_host": False}, *["UNTRUSTED"] * 2),
    (("a restart",), {}, "TRUSTED", "TRUSTED"),
    (("a strange program", "a report", "a restart"), {}, "UNTRUSTED", "UNTRUSTED"),
    (("a strange program", "a restart"), {"policy": KEYS["restarts"]}, "TRUSTED", "TRUSTED"),
]  # type: ignore[assignment]


def test_both_say_of_each_case(fleet: ServedFleet, reference: ImageReference) -> None:
    wrong = []
    for happens, named, *wanted in TABLE:
        case = begun(fleet, reference, **named)
        found = both(case, *happens)
        if list(found) != wanted:
            wrong.append((happens, named, wanted, found, case.why.refusal, case.why.findings))
    assert not wrong, wrong


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_whatever_happens_the_service_trusts_no_more_than_cima_verify(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
    )
    @given(
        happens=st.lists(st.sampled_from(sorted(HAPPENS)), max_size=6),
        key=st.sampled_from(sorted(KEYS)),
        table=st.sampled_from(sorted(TABLES)),
        with_host=st.booleans(),
    )
    def check(happens: list[str], key: str, table: str, with_host: bool) -> None:
        case = begun(fleet, reference, policy=KEYS[key], tables=TABLES[table], with_host=with_host)
        service, tool = both(case, *happens)
        assert service != "TRUSTED" or tool == "TRUSTED", (service, tool, case.why)

    check()


# -- what evidence cannot show, and reports can --------------------------------------------------


@pytest.mark.parametrize(
    ("value", "verdict"), [(VARIABLE[1], "TRUSTED"), ("--require=/data/x", "UNTRUSTED")]
)
def test_a_variable_of_the_image(
    fleet: ServedFleet, reference: ImageReference, value: str, verdict: str
) -> None:
    case = begun(fleet, reference)
    case.host.env = {VARIABLE[0]: value}
    case.begin()
    assert both(case, "nothing") == (verdict, verdict)


def test_records_of_services_that_are_withheld_keep_from_trust(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    case = begun(fleet, reference)
    assert both(case)[0] == "TRUSTED"
    case.host.service_runs(case.services, b"/x")
    case.host.bind()

    def withhold(payload: dict[str, Any]) -> None:
        payload["records"] = []

    fleet.report(case.host, lie=withhold)
    assert case.service_says() == "UNKNOWN"
    case.host.changed.add(case.services)
    fleet.sync(case.host)
    assert case.service_says() == "UNTRUSTED"


def test_a_register_of_services_that_is_given_up_keeps_from_trust(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    case = begun(fleet, reference)
    assert both(case)[0] == "TRUSTED"
    case.host.forget(case.services)
    case.host.bind()
    fleet.report(case.host)
    assert case.service_says() == "UNKNOWN"


def test_a_container_cannot_come_to_rely_on_other_services(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    case = begun(fleet, reference)
    assert both(case)[0] == "TRUSTED"
    case.host.containers[case.number].services = case.host.serve(*KNOWN[:2])
    case.host.changed.add(case.number)
    case.host.bind()
    answer = fleet.report(case.host)
    assert (answer.type, getattr(answer, "error", "")) == ("refused", "ListedError")


def test_a_boot_that_was_over_does_not_come_back(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    case = begun(fleet, reference)
    assert both(case)[0] == "TRUSTED"
    first = case.host.boot_id
    case.host.reboot()
    fleet.sync(case.host)
    case.host.reboot()
    case.host.boot_id = first
    case.host.bind()
    answer = fleet.report(case.host)
    assert (answer.type, getattr(answer, "error", "")) == ("refused", "BootIdError")


def test_lines_beyond_what_is_kept_prove_nothing(
    fleet: ServedFleet, reference: ImageReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FLEET_LOG", 4)
    case = begun(fleet, reference)
    assert both(case)[0] == "TRUSTED"
    for path in KNOWN[2:]:
        case.host.service_runs(case.services, path)
    fleet.sync(case.host)
    assert case.service_says() == "UNKNOWN"


def test_what_lines_say_beyond_what_is_kept_is_of_no_known_file(
    fleet: ServedFleet, reference: ImageReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FLEET_LOG_SHOWN", 400)
    case = begun(fleet, reference)
    case.host.in_full = True
    assert both(case)[0] == "TRUSTED"
    for path in KNOWN[2:]:
        case.host.host_runs(path)
        fleet.sync(case.host)
    assert case.service_says() == "UNTRUSTED"


def test_entries_that_an_earlier_version_confirmed_are_asked_for_again(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    case = begun(fleet, reference)
    assert both(case)[0] == "TRUSTED"
    # As a process would, in an upgrade, that keeps no entries.
    case.host.service_runs(case.services, KNOWN[2])
    fleet.sync(case.host)
    with fleet.service.database.write() as connection:
        ours = table_of(Host).c.ak_name == case.host.tpm.ak_name.hex()
        said = connection.execute(select(table_of(Host).c.log).where(ours)).scalar_one()
        said.pop("kept")
        connection.execute(update(table_of(Host)).where(ours).values(log=said))
        connection.execute(delete(table_of(HostLogPart)).where(table_of(HostLogPart).c.first > 0))
    case.host.service_runs(case.services, KNOWN[3])
    case.host.bind()
    assert fleet.report(case.host).type == "resync"
    fleet.sync(case.host)
    assert case.service_says() == "TRUSTED"


def test_containers_of_boots_that_are_over_are_appraised_by_what_these_had_proved(
    fleet: ServedFleet, reference: ImageReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = begun(fleet, reference)
    case.host.end(case.number)
    assert both(case)[0] == "TRUSTED"
    name = case.name.removeprefix("web-")
    pcr = case.host.tpm.pcrs[0].hex()
    case.host.reboot()
    fleet.sync(case.host)

    def policy_is(text: str) -> str:
        fleet.write(changes.add_policy, name, text + POLICY)
        while fleet.service.worker.jobs():
            pass
        eventually(lambda: fleet.query(queries.backlog)["jobs"] == 0)
        return case.service_says()

    assert policy_is(f'pcr_values = {{ 0 = ["{pcr}"] }}\n') == "TRUSTED"
    assert policy_is(f'pcr_values = {{ 0 = ["{"0" * 64}"] }}\n') == "UNTRUSTED"
    # What is older than it is kept is gone, and so is what could be compared with others.
    later = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: later() + 91 * 86_400 * 10**9)
    fleet.service.worker.retention()
    monkeypatch.setattr(time, "time_ns", later)
    assert (
        fleet.query(lambda connection: connection.execute(select(table_of(HostBoot))).all()) == []
    )


# -- lines that do not go on from where they were -------------------------------------------------


def test_a_line_that_goes_on_from_before_a_bad_run_is_not_trusted(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    """A host whose state was put back to before it: by its number, or by skipping it."""
    for skips in (False, True):
        case = begun(fleet, reference)
        assert both(case)[0] == "TRUSTED"
        first = case.number
        case.begin()
        case.host.run(case.number, b"/tmp/strange")
        fleet.sync(case.host)
        assert case.service_says() == "UNTRUSTED"
        bad = case.host.containers.pop(case.number)
        case.host.containers[first].state = "stopped"
        case.begin()
        one = case.host.containers[case.number]
        if skips:
            one.run = 3
            one.records[0]["content"]["run"] = 3
            replayed(one)
        case.host.containers[bad.registration] = bad
        fleet.sync(case.host)
        assert (case.service_says(), one.run) == ("UNTRUSTED", 3 if skips else 2)
        # Nor is the one that follows on it, nor it itself because it is followed.
        del case.host.containers[bad.registration]
        before = case.number
        case.begin()
        case.host.containers[bad.registration] = bad
        fleet.sync(case.host)
        assert case.service_says() == "UNTRUSTED"
        case.number = before
        assert case.service_says() == "UNTRUSTED"


def test_runs_that_came_while_nobody_listened_are_told_of_in_any_order(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    """The latest first, as an agent does: it has the register that proves the others."""
    for order in itertools.permutations(range(3)):
        case = begun(fleet, reference)
        numbers = [case.number]
        for _ in range(2):
            case.begin()
            case.host.forget(numbers[-1])
            numbers.append(case.number)
        case.host.bind()
        there, case.host.containers = case.host.containers, {}
        services = there.pop(case.services)
        case.host.containers = {services.registration: services, numbers[2]: there[numbers[2]]}
        fleet.sync(case.host)
        for at in order:
            case.host.containers[numbers[at]] = there[numbers[at]]
            case.host.changed.add(numbers[at])
            for _ in range(3):
                fleet.report(case.host)
        for _ in range(4):
            case.host.changed |= set(numbers)
            fleet.report(case.host)
        says = []
        for case.number in numbers:
            says.append(case.service_says())
        assert says == ["TRUSTED"] * 3, order


def test_services_are_looked_at_once_however_many_containers_rely_on_them(
    fleet: ServedFleet, reference: ImageReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = begun(fleet, reference)
    assert both(case)[0] == "TRUSTED"
    looks: list[int] = []
    real = appraisal.services

    def counted(*arguments: Any) -> Any:
        looks.append(1)
        return real(*arguments)

    monkeypatch.setattr(appraisal, "services", counted)
    for at in range(3):
        start(case.host, f"{case.name}-{at}", reference, services=case.services)
        fleet.sync(case.host)
        assert fleet.container(f"{case.name}-{at}")["verdict"] == "TRUSTED"
    assert looks == []
    # What is new of them is looked at.
    case.host.service_runs(case.services, b"/x")
    fleet.sync(case.host)
    assert looks
    assert case.service_says() == "UNTRUSTED"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_was_found_of_a_boot_stays_when_nothing_of_it_is_kept(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    case = begun(fleet, reference)
    case.host.service_runs(case.services, KNOWN[3], logged=False)
    case.host.end(case.number)
    assert both(case)[0] == "UNKNOWN"
    case.host.reboot()
    fleet.sync(case.host)
    with fleet.service.database.write() as connection:
        for table in (HostBoot, HostLogPart):
            connection.execute(table_of(table).delete())
    # All are appraised anew, by the same values.
    fleet.write(changes.add_policy, "another", POLICY)
    while fleet.service.worker.jobs():
        pass
    eventually(lambda: fleet.query(queries.backlog)["jobs"] == 0)
    assert case.service_says() == "UNKNOWN"
