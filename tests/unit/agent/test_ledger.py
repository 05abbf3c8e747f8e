"""Gaps, and records that were late, with a TPM and a disk that fail."""

from pathlib import Path
from typing import Any

import pytest

from cima_runc.agent.binding_pcr import BindingPcr
from cima_runc.agent.core import Core
from cima_runc.agent.ledger import Ledger
from cima_runc.cpcr.bind import NO_ROOT
from cima_runc.cpcr.journal import Journal
from cima_runc.cpcr.register import extend
from cima_runc.cpcr.table import Table
from cima_runc.ml.contents import Lost
from cima_runc.ml.records import Record
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.tpm.device import TpmError


class ModelTpm:
    """A PCR that may fail."""

    def __init__(self) -> None:
        self.value = bytes(32)
        self.fails = False
        self.commands = 0

    def _command(self) -> None:
        self.commands += 1
        if self.fails:
            raise TpmError("it fails")

    def read_pcrs(self, pcrs: list[int]) -> dict[int, bytes]:
        self._command()
        return {12: self.value}

    def counters(self) -> tuple[int, int]:
        self._command()
        return 1, 0

    def extend(self, pcr: int, digest: bytes) -> None:
        self._command()
        self.value = extend(self.value, digest)


class Host:
    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.store.prepare()
        self.core = Core(Table())
        self.tpm = ModelTpm()
        self.journal = Journal.open(root / "journal.jsonl")
        pcr = BindingPcr(self.journal, self.tpm, 12)  # type: ignore[arg-type]
        self.ledger = Ledger(self.core, self.store, pcr)
        self.ledger.probe()
        for number in (1, 2):
            self.begin(number)
        self.ledger.write()
        self.ledger.bind()

    def begin(self, number: int) -> None:
        note = ContainerNote(
            registration=number,
            id=f"box{number}",
            boot_id="boot",
            mntns=number,
            cgroup="/",
            pid=1,
            start_ticks=1,
            bundle="/b",
            started="now",
            state="running",
        )
        note, records = self.core.register(note, bytes(32), [Lost(count=1, reason="x")], "now")
        self.store.create(note, bytes(32))
        self.ledger.add(number, records)

    def happens(self, number: int = 1) -> None:
        self.ledger.add(number, [self.core.add(number, Lost(count=7, reason="y"), "now")])

    def late(self, number: int = 1) -> list[str]:
        records: list[Record] = list(self.store.records(number))
        return [one.content["reason"] for one in records if one.content["count"] == 0]

    @property
    def gaps(self) -> list[str]:
        return [gap.kind for gap in self.journal.state.status.gaps.last]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "state")


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_probe_that_fails_is_a_gap_and_says_it_for_all(host: Host) -> None:
    host.tpm.fails = True
    host.ledger.probe()
    assert host.ledger.trouble is not None
    host.happens()
    host.ledger.write()
    with pytest.raises(TpmError):
        host.ledger.bind()
    host.tpm.fails = False
    host.ledger.bind()
    assert host.gaps == []  # found by the probe, not by whoever happens to bind
    host.ledger.probe()
    assert (host.gaps, host.ledger.trouble) == (["tpm"], None)
    assert host.late() == []
    host.ledger.probe()
    assert host.gaps == ["tpm"]


def test_a_failure_that_a_probe_finds_later_belongs_to_its_gap(host: Host) -> None:
    host.happens()
    host.ledger.write()
    host.tpm.fails = True
    with pytest.raises(TpmError):
        host.ledger.bind()
    host.ledger.probe()
    host.tpm.fails = False
    host.ledger.bind()
    host.ledger.probe()
    assert (host.gaps, host.late()) == (["tpm"], [])


def test_what_is_late_between_two_probes_says_so_itself(host: Host) -> None:
    host.happens()
    host.ledger.write()
    host.tpm.fails = True
    for _ in range(3):
        with pytest.raises(TpmError):
            host.ledger.bind()
    host.tpm.fails = False
    host.ledger.bind()
    assert host.late(1) == ["late: for a time the TPM failed"]
    assert host.late(2) == []
    assert host.gaps == []
    assert not host.core.changed
    host.ledger.bind()
    host.ledger.probe()
    assert len(host.late(1)) == 1


def test_a_disk_that_fails_between_two_probes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.happens(2)
    with monkeypatch.context() as disk:
        disk.setattr(host.store, "append", full)
        with pytest.raises(OSError, match="No space"):
            host.ledger.write()
        assert host.ledger.backlog == 1
    host.ledger.write()
    host.ledger.bind()
    assert host.late(2) == ["late: for a time the disk failed"]


def test_a_disk_that_a_probe_finds_full(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as disk:
        disk.setattr(host.store, "probe", full)
        host.ledger.probe()
        host.ledger.probe()
    host.ledger.probe()
    assert host.gaps == ["disk"]


def test_nothing_follows_an_end_so_that_the_host_says_it(host: Host) -> None:
    host.ledger.add(1, [host.core.end(1, "ended", "now", 5)])
    host.ledger.write()
    host.tpm.fails = True
    with pytest.raises(TpmError):
        host.ledger.bind()
    host.tpm.fails = False
    host.ledger.bind()
    assert host.gaps == ["tpm"]
    assert next(reversed(list(host.store.records(1)))).content["type"] == "exit"


def test_nothing_changed_nothing_is_done(host: Host) -> None:
    before = host.tpm.commands
    assert host.ledger.bind() >= 0
    assert host.tpm.commands == before


def test_a_tenants_bind_is_made_whether_or_not_anything_changed(host: Host) -> None:
    one, other = host.ledger.bind_for_quote(), host.ledger.bind_for_quote()
    assert one.bind.veil is not None
    assert other.bind.before == one.bind.expected
    assert other.bind.history not in (one.bind.history, one.bind.expected)
    assert NO_ROOT not in (one.root, other.root)
    assert one.root != other.root
    assert one.hostkey != other.hostkey
    assert one.table == other.table


def test_a_report_binds_only_where_something_changed(host: Host) -> None:
    last = host.ledger.bind_for_report()
    assert (last.root, last.bind.veil) == (NO_ROOT, None)
    assert host.ledger.bind_for_report() is last
    host.happens()
    host.ledger.write()
    after = host.ledger.bind_for_report()
    assert after.table != last.table
    host.tpm.value = extend(host.tpm.value, b"x" * 32)
    foreign = host.ledger.bind_for_report()
    assert foreign.status.foreign.count == 1
    host.core.forget(2)
    assert host.ledger.bind_for_report().table != foreign.table
    quoted = host.ledger.bind_for_quote()
    assert host.ledger.bind_for_report() is quoted


def test_a_foreign_change_is_in_the_status_of_the_next_bind(host: Host) -> None:
    host.tpm.value = bytes(32)
    host.happens()
    host.ledger.write()
    host.ledger.bind()
    assert host.ledger.last is not None
    assert host.ledger.last.status.foreign.count == 1
    assert host.ledger.last.bind.before == bytes(32)
