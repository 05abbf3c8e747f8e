"""Reports of a simulated host, true and false."""

from collections.abc import ValuesView
from dataclasses import replace
from typing import Any

import pytest

from cima_runc.cpcr.sparse import SparseTable
from cima_runc.cpcr.status import Foreign
from cima_runc.evidence.report import parse_report
from cima_runc.evidence.report_answer import Accepted, Resync
from cima_runc.evidence.report_nonce import NonceExpiredError, NonceForgedError, NonceMaker
from cima_runc.ml.contents import File
from cima_runc.verifier import errors
from cima_runc.verifier.report import errors as refused
from cima_runc.verifier.report.check import wanted
from cima_runc.verifier.report.known import Known, KnownRegister, KnownTable
from tests.support.fleet_host import FleetHost
from tests.support.fleet_keeper import Keeper
from tests.support.fleet_lies import LIES, OWNER, changed_in, tell


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


class Counting(dict[int, KnownRegister]):
    """What is kept, and how often somebody has gone through all of it."""

    walks = 0

    def values(self) -> ValuesView[KnownRegister]:
        self.walks += 1
        return super().values()


def test_what_is_listed_without_a_slot_is_looked_for_at_once() -> None:
    """Kind: a host lists as many as there is room for, and each costs a walk along all others."""
    host, keeper = pair()
    host.start("one")
    host.bind()
    send(host, keeper)

    def list_many(payload: dict[str, Any]) -> None:
        one = {"slot": None, "kind": "container", "state": "stopped", "count": 0, "boot_id": None}
        one |= {"line": "11" * 32, "run": 1, "owners": [], "services": None, "secret": "22" * 32}
        payload["containers"] += [
            {"registration": number, "id": f"many{number}", **one} for number in range(500)
        ]

    walks = []
    for lie in (lambda _: None, list_many):
        host.start("another")
        host.bind()
        kept = Counting(keeper.known.registers)
        keeper.known = replace(keeper.known, registers=kept)
        send(host, keeper, lie=lie)
        walks.append(kept.walks)
    assert walks[0] == walks[1]


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


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_by_name(name: str) -> None:
    host, keeper = pair()
    tell(host, keeper, name)


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
        send(host, keeper, lie=changed_in("containers", owners=[OWNER]))
    with pytest.raises(errors.RollbackError):
        send(host, keeper, lie=changed_in("containers", count=1))
    with pytest.raises(errors.StatusError):
        host.status = host.status.model_copy(update={"initial": b"\1" * 32})
        host.bind()
        send(host, keeper)


def test_the_first_value_is_lost_with_a_foreign_extend_alone() -> None:
    """As `cima verify` has it: a journal that was lost is counted."""
    host, keeper = pair()
    host.start("one")
    host.bind()
    send(host, keeper)
    lost = host.status.model_copy(update={"initial": None})
    host.status = lost
    host.bind()
    with pytest.raises(errors.StatusError):
        send(host, keeper)
    host.status = lost.with_foreign(Foreign(kind="journal", time="2026-01-01T13:00:00Z"))
    host.bind()
    send(host, keeper)
    assert keeper.known.status is not None and keeper.known.status.initial is None


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
