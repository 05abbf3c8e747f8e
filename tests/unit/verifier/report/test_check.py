"""Reports of a simulated host, true and false."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cima_runc.cpcr.sparse import SparseTable
from cima_runc.evidence import errors as format_errors
from cima_runc.evidence.report import parse_report
from cima_runc.evidence.report_answer import Accepted, Resync
from cima_runc.evidence.report_nonce import NonceExpiredError, NonceForgedError, NonceMaker
from cima_runc.evidence.request import Asker
from cima_runc.ml.contents import File
from cima_runc.verifier import errors
from cima_runc.verifier.report import errors as refused
from cima_runc.verifier.report.check import wanted
from cima_runc.verifier.report.known import Known, KnownTable
from tests.support.fleet_host import FleetHost
from tests.support.fleet_keeper import Keeper

OWNER = "x25519:" + "A" * 43 + "="


def pair() -> tuple[FleetHost, Keeper]:
    host = FleetHost()
    return host, Keeper(host.tpm.ak_public)


def send(host: FleetHost, keeper: Keeper, **lies: Any) -> Accepted | Resync:
    answer = keeper.take(host.report(keeper.nonce(), **lies))
    host.heed(answer)
    return answer


def test_a_host_is_followed_from_its_first_report_on() -> None:
    host, keeper = pair()
    number = host.start("one")
    sealed = host.start("two", (OWNER,))
    host.bind()
    answer = send(host, keeper)
    assert isinstance(answer, Accepted)
    assert answer.confirmed.base == host.table.digest
    assert answer.confirmed.records == {str(number): 2}
    assert keeper.known.registers[number].is_whole
    assert not keeper.known.registers[sealed].is_whole
    assert keeper.known.registers[sealed].owners == (OWNER,)
    assert keeper.last is not None and keeper.last.new_boot
    host.run(number, b"/bin/sh")
    host.host_runs(b"/usr/bin/dockerd")
    host.bind()
    send(host, keeper)
    assert [one.path for one in keeper.contents(number) if isinstance(one, File)] == [b"/bin/sh"]
    assert keeper.last.host_log is not None and keeper.last.host_log.lines == 2
    assert len(keeper.last.host_entries) == 1


def test_where_nothing_has_changed_nothing_is_read() -> None:
    host, keeper = pair()
    host.start("one")
    host.bind()
    send(host, keeper)

    def load() -> SparseTable:
        raise AssertionError("the table is read")

    assert keeper.known.table is not None
    table = replace(keeper.known.table, load=load)
    keeper.known = Known(**{**keeper.known.__dict__, "table": table, "registers": {}})
    body = host.report(keeper.nonce())
    assert len(body) < 4096
    assert not wanted(parse_report(body)).registrations
    assert isinstance(keeper.take(body), Accepted)
    assert keeper.last is not None and keeper.last.table is None


def test_records_in_pieces_are_proved_with_the_last_of_them() -> None:
    host, keeper = pair()
    host.piece = 3
    number = host.start("one")
    for at in range(6):
        host.run(number, b"/bin/%d" % at)
    host.bind()
    answer = send(host, keeper)
    assert isinstance(answer, Accepted)
    assert answer.confirmed.records == {str(number): 0}
    assert answer.confirmed.held == {str(number): 3}
    send(host, keeper)
    host.run(number, b"/bin/late")
    host.bind()
    send(host, keeper)
    assert keeper.known.registers[number].proved.count == 9
    assert keeper.known.registers[number].held is None
    assert len(keeper.contents(number)) == 9


def test_a_run_that_was_let_go_is_proved_by_the_run_after_it() -> None:
    host, keeper = pair()
    first = host.start("one")
    host.run(first, b"/bin/sh")
    second = host.start("one")
    host.forget(first)
    host.bind()
    send(host, keeper)
    assert keeper.known.registers[first].is_whole
    assert keeper.known.registers[first].proved.ended
    assert keeper.known.registers[second].is_whole


def test_a_run_of_the_boot_before_is_proved_by_the_run_after_it() -> None:
    host, keeper = pair()
    first = host.start("one")
    host.bind()
    send(host, keeper)
    host.run(first, b"/bin/sh")
    host.end(first)
    host.reboot()
    host.start("one")
    host.bind()
    send(host, keeper)
    assert keeper.last is not None and keeper.last.new_boot
    assert [one.kind for one in keeper.last.events] == ["boot"]
    assert keeper.known.registers[first].proved.count == 4
    assert keeper.known.registers[first].is_whole


def test_an_end_that_was_proved_is_no_event_and_another_is() -> None:
    host, keeper = pair()
    good, bad = host.start("one"), host.start("two")
    host.bind()
    send(host, keeper)
    host.end(good)
    host.bind()
    send(host, keeper)
    host.forget(good)
    host.forget(bad)
    host.bind()
    send(host, keeper)
    assert keeper.last is not None
    assert [(one.kind, one.registration) for one in keeper.last.events] == [("let-go", bad)]
    assert {one.registration for one in keeper.last.gone} == {good, bad}


def test_a_service_that_was_restored_is_synchronised() -> None:
    host, keeper = pair()
    number = host.start("one")
    host.bind()
    send(host, keeper)
    week_ago = keeper.known, {number: list(keeper.records[number])}
    host.run(number, b"/bin/sh")
    host.host_runs(b"/bin/host")
    host.bind()
    send(host, keeper)
    keeper.known, keeper.records = week_ago
    host.run(number, b"/bin/more")
    host.bind()
    answer = send(host, keeper)
    assert isinstance(answer, Resync)
    assert answer.confirmed.records == {str(number): 2}
    assert isinstance(send(host, keeper), Accepted)
    assert keeper.known.registers[number].proved.count == 4


def test_a_base_that_is_not_the_service_s_changes_nothing() -> None:
    host, keeper = pair()
    host.start("one")
    host.bind()
    send(host, keeper)
    before = keeper.known

    def lie(payload: dict[str, Any]) -> None:
        payload["base"] = "11" * 32

    assert isinstance(send(host, keeper, lie=lie), Resync)
    assert keeper.known == before


def test_hibernation_is_named() -> None:
    host, keeper = pair()
    send(host, keeper)
    host.tpm.restart_count += 1
    send(host, keeper)
    assert keeper.last is not None
    assert [one.kind for one in keeper.last.events] == ["hibernation"]


def test_a_tenant_s_bind_is_shown_with_its_root() -> None:
    host, keeper = pair()
    host.start("one")
    host.bind(for_tenant=True)
    assert isinstance(send(host, keeper), Accepted)


# -- lies ------------------------------------------------------------------------------------------


def _payload(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def lie(payload: dict[str, Any]) -> None:
        payload.update(changes)

    return lie


def _first(part: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    def lie(payload: dict[str, Any]) -> None:
        payload[part][0].update(changes)

    return lie


def _change(payload: dict[str, Any]) -> None:
    payload["changes"][0][1] = "77" * 32


def _other_slot(payload: dict[str, Any]) -> None:
    slot = (payload["changes"][0][0] + 1) % payload["slots"]
    payload["changes"][0][0] = slot
    payload["containers"][0]["slot"] = slot


def _unlisted(payload: dict[str, Any]) -> None:
    payload["containers"], payload["records"] = [], []


def _record(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def lie(payload: dict[str, Any]) -> None:
        payload["records"][0]["records"][-1].update(changes)

    return lie


def _dropped(payload: dict[str, Any]) -> None:
    del payload["records"][0]["records"][1]


def _digest(payload: dict[str, Any]) -> None:
    payload["records"][0]["records"][-1]["digests"][0]["digest"] = "55" * 32


def _twice(payload: dict[str, Any]) -> None:
    other = {**payload["containers"][0], "registration": 7}
    payload["containers"].append(other)


def _stranger(payload: dict[str, Any]) -> None:
    payload["records"].append({**payload["records"][0], "registration": 7})


LIES: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "a register that is not bound": ({"lie": _change}, errors.BindingError),
    "another slot": ({"lie": _other_slot}, errors.BindingError),
    "a root that does not fit": ({"lie": _payload(root="22" * 32)}, errors.BindingError),
    "another hostkey": ({"lie": _payload(hostkey="22" * 32)}, errors.BindingError),
    "another history": ({"lie": _payload(history="22" * 32)}, errors.BindingError),
    "more slots": ({"lie": _payload(slots=2048)}, errors.BindingError),
    "another's name": ({"lie": _payload(ak="000b" + "33" * 32)}, refused.AkNameError),
    "another's key": (
        {"lie_after": lambda proof: proof["ak"].update(public="AAAA")},
        refused.AkNameError,
    ),
    "a forged quote": (
        {"lie_after": lambda proof: proof["quote"].update(signature=_signature())},
        errors.SignatureError,
    ),
    "other PCRs": ({"pcrs": (10, 12)}, errors.PcrSelectionError),
    "other values": (
        {"lie_after": lambda proof: proof["pcrs"].update({"0": "44" * 32})},
        errors.PcrValuesError,
    ),
    "a quote for another": ({"qualify": lambda root: bytes(32)}, errors.QualifyingDataError),
    "a tenant's quote": ({"asker": Asker.OUTSIDE}, errors.QualifyingDataError),
    "a container that is not listed": ({"lie": _unlisted}, refused.SlotError),
    "two containers in one slot": ({"lie": _twice}, refused.SlotError),
    "records of nobody": ({"lie": _stranger}, refused.SecretError),
    "another secret": ({"lie": _first("containers", secret="66" * 32)}, errors.RegisterError),
    "records of another container": ({"lie": _record(cpcr="two")}, errors.ForeignRecordError),
    "another container's id": ({"lie": _first("containers", id="two")}, errors.ForeignRecordError),
    "another run": ({"lie": _first("containers", run=7)}, refused.ListedError),
    "a record less": ({"lie": _dropped}, errors.RecordMissingError),
    "a record changed": ({"lie": _digest}, errors.RecordDigestError),
    "fewer records than come": ({"lie": _first("containers", count=1)}, errors.RecordCountError),
    "a type that nobody knows": (
        {"lie": _record(content_type="cima", content={"type": "holiday"})},
        errors.RecordTypeError,
    ),
    "a log that does not add up": (
        {"lie_after": lambda proof: proof["host_log"]["entries"].append("12" * 32)},
        errors.HostLogError,
    ),
    "no log": (
        {"lie_after": lambda proof: proof.update(host_log={"from": 0, "entries": []})},
        errors.HostLogError,
    ),
    "a boot log of another": (
        {"lie_after": lambda proof: proof.update(boot_log="AAAA")},
        errors.BootLogError,
    ),
    **{
        f"an id that is {what}": (
            {"lie": _first("containers", id=name)},
            format_errors.EvidenceFormatError,
        )
        for what, name in (
            ("SQL", "x'; DROP TABLE hosts; --"),
            ("HTML", "<script>alert(1)</script>"),
            ("a terminal's escape", "\x1b]0;owned\x07"),
            ("a path", "../../etc/passwd"),
            ("two lines", "one\ntwo"),
            ("nothing", ""),
        )
    },
    "an owner that is HTML": (
        {"lie": _first("containers", owners=["<b>"])},
        format_errors.EvidenceFormatError,
    ),
    "a boot that is SQL": ({"lie": _payload(boot_id="' OR 1")}, format_errors.EvidenceFormatError),
    "a field too many": ({"lie": _payload(trusted=True)}, format_errors.EvidenceFormatError),
    "slots that are none": ({"lie": _payload(slots=1025)}, format_errors.EvidenceFormatError),
}


def _signature() -> str:
    host = FleetHost()
    proof = json.loads(host.report(bytes(16)).split(b"\n")[1])
    signature: str = proof["quote"]["signature"]
    return signature


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_by_name(name: str) -> None:
    lies, expected = LIES[name]
    host, keeper = pair()
    number = host.start("one")
    host.run(number, b"/bin/sh")
    if name == "a log that does not add up":
        # Entries beyond what is extended are the kernel's way; this one was extended otherwise.
        host.log[0] = host.log[0] + b"\0"
    host.bind()
    with pytest.raises(expected) as caught:
        send(host, keeper, **lies)
    assert type(caught.value) is expected
    assert keeper.known == Known(ak=host.tpm.ak_public)


def test_a_report_is_taken_once() -> None:
    host, keeper = pair()
    body = host.report(keeper.nonce())
    keeper.take(body)
    with pytest.raises(refused.OldReportError):
        keeper.take(body)


def test_old_reports_and_clocks_that_go_back_are_refused_by_name() -> None:
    host, keeper = pair()
    old = host.report(keeper.nonce())
    send(host, keeper)
    with pytest.raises(errors.ClockError):
        keeper.take(old)
    for name, kind in (
        ("clock", errors.ClockError),
        ("restart_count", errors.RestartCountError),
        ("reset_count", errors.ResetCountError),
    ):
        host, keeper = pair()
        host.tpm.restart_count = host.tpm.reset_count = 5
        send(host, keeper)
        setattr(host.tpm, name, 1)
        with pytest.raises(kind):
            send(host, keeper)


def test_a_second_host_with_the_same_key_is_refused_by_name() -> None:
    host, keeper = pair()
    send(host, keeper)
    copy = FleetHost(tpm=host.tpm)
    with pytest.raises(refused.BootIdError):
        send(copy, keeper)


def test_nonces_are_for_one_host_and_a_minute() -> None:
    host, keeper = pair()
    other = NonceMaker(bytes([1] * 32))
    for nonce in (other.issue(keeper.ak_name, keeper.now), bytes(56), bytes(16)):
        with pytest.raises(NonceForgedError):
            keeper.take(host.report(nonce))
    with pytest.raises(NonceForgedError):
        keeper.take(host.report(keeper.nonces.issue(b"\0\x0b" + bytes(32), keeper.now)))
    body = host.report(keeper.nonce())
    keeper.now += 61
    with pytest.raises(NonceExpiredError):
        keeper.take(body)


def test_a_clock_that_is_not_safe_is_refused() -> None:
    host, keeper = pair()
    host.tpm.safe = False
    with pytest.raises(errors.ClockUnsafeError):
        send(host, keeper)


def test_what_was_readable_stays_so_and_nothing_goes_back() -> None:
    host, keeper = pair()
    number = host.start("one")
    host.bind()
    send(host, keeper)
    host.run(number, b"/bin/sh")
    host.bind()

    def hide(payload: dict[str, Any]) -> None:
        payload["containers"][0].update(secret=None)
        payload["records"] = []

    with pytest.raises(refused.SecretError):
        send(host, keeper, lie=hide)
    with pytest.raises(refused.ListedError):
        send(host, keeper, lie=_first("containers", owners=[OWNER]))
    with pytest.raises(errors.RollbackError):
        send(host, keeper, lie=_first("containers", count=1))
    with pytest.raises(errors.StatusError):
        host.status = host.status.model_copy(update={"initial": b"\1" * 32})
        host.bind()
        send(host, keeper)


def test_a_run_that_was_let_go_must_be_what_the_run_after_it_says() -> None:
    host, keeper = pair()
    first = host.start("one")
    host.bind()
    send(host, keeper)
    host.start("one")
    host.forget(first)
    host.bind()

    def lie(payload: dict[str, Any]) -> None:
        for one in payload["containers"]:
            if one["slot"] is None:
                one["count"] -= 1
        payload["records"] = [part for part in payload["records"] if part["registration"] != first]

    with pytest.raises(errors.RunError):
        # Before it was readable and whole up to there, so this would be a shorter end.
        send(host, keeper, lie=lie)


def test_a_table_is_the_host_s_own() -> None:
    host, keeper = pair()
    for at in range(40):
        host.start(f"c{at}")
    host.bind()
    send(host, keeper)
    table = keeper.known.table
    assert table is not None
    assert table.digest == host.table.digest
    again = SparseTable.from_bytes(table.load().to_bytes())
    assert KnownTable.of(again).digest == table.digest
