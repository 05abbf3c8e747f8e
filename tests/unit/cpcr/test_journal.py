import errno
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cima_runc.agent.binding_pcr import BindingPcr
from cima_runc.base import limits
from cima_runc.base.jsonio import JsonError
from cima_runc.cpcr.bind import Bind
from cima_runc.cpcr.journal import (
    Found,
    Journal,
    JournalError,
    JournalState,
    apply,
    reconcile,
)
from cima_runc.cpcr.register import extend
from cima_runc.cpcr.status import Gap, Status

HOUR = "2025-01-31T13:00:00Z"
ZERO = bytes(32)


def found(value: bytes, counters: tuple[int, int] = (1, 0)) -> Found:
    return Found(value, counters, HOUR)


def opened(path: Path, **known: bool) -> Journal:
    return Journal.open(path / "journal.jsonl", **known)


def begun(path: Path, value: bytes = ZERO) -> Journal:
    journal = opened(path)
    entry = journal.reconcile(found(value))
    assert entry is not None
    journal.add(entry)
    return journal


@pytest.mark.parametrize("known", [False, True])
def test_one_that_cannot_be_begun_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, known: bool
) -> None:
    """Nothing is bound over it until it can; whether one before was lost is not forgotten."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    boot = tmp_path / "boot"
    with monkeypatch.context() as disk:
        disk.setattr("cima_runc.cpcr.journal.replace_file", full)
        journal = opened(boot, boot_is_known=known)
        entry = journal.reconcile(found(ZERO))
        assert entry is not None
        assert entry["type"] == ("foreign" if known else "initial")
        for _ in range(2):
            with pytest.raises(OSError, match="full"):
                journal.add(entry)
        assert not journal.state.begun
        assert not (boot / "journal.jsonl").exists()
        assert opened(boot, boot_is_known=known).state == journal.state
    journal.add(entry)
    assert journal.state.begun
    journal.close()
    assert opened(boot, boot_is_known=True).state == journal.state


def test_the_first_value_is_read_and_durable_before_anything_else(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    with pytest.raises(JournalError):
        journal.add_bind(Bind(ZERO, b"d" * 32))
    entry = journal.reconcile(found(b"f" * 32, (7, 3)))
    assert entry == {"type": "initial", "value": (b"f" * 32).hex(), "counters": [7, 3]}
    journal.add(entry)
    state = opened(tmp_path).state
    assert state.status.initial == state.value == b"f" * 32
    assert state.counters == (7, 3)
    assert journal.reconcile(found(b"f" * 32, (7, 3))) is None


def test_what_is_about_to_happen_is_on_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is what a power cut leaves: all of it up to the last flush."""
    flushed: dict[int, int] = {}
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def flush(handle: int, real: Any = real) -> None:
            real(handle)
            flushed[os.fstat(handle).st_ino] = os.fstat(handle).st_size

        monkeypatch.setattr(os, name, flush)
    path = tmp_path / "journal.jsonl"

    def on_disk() -> list[Any]:
        found = path.stat()
        raw = path.read_bytes()[: flushed.get(found.st_ino, 0)]
        return [json.loads(line).get("type") for line in raw.splitlines()]

    journal = begun(tmp_path)
    before = on_disk()
    assert before[-1] == "initial"
    journal.add_bind(Bind(ZERO, b"d" * 32))
    assert on_disk() == [*before, "bind"]
    # That it is done the PCR itself says.
    journal.add({"type": "done"}, durable=False)
    assert on_disk() == [*before, "bind"]
    journal.add({"type": "gap", "kind": "tpm", "since": HOUR, "until": HOUR})
    assert on_disk() == [*before, "bind", "done", "gap"]


@pytest.mark.parametrize("veil", [None, b"v" * 32])
def test_after_a_crash_the_pcr_says_what_happened(tmp_path: Path, veil: bytes | None) -> None:
    journal = begun(tmp_path)
    bind = Bind(ZERO, b"d" * 32, veil)
    journal.add_bind(bind)
    state = opened(tmp_path).state
    assert state == journal.state
    assert state.pending is not None
    assert reconcile(state, found(bind.expected)) == {"type": "done"}
    for value in (bind.before, bind.history):
        entry = reconcile(state, found(value))
        assert entry == {"type": "abandoned", "value": value.hex()}
        assert reconcile(apply(state, entry), found(value)) is None
    entry = reconcile(state, found(b"x" * 32))
    assert entry is not None
    assert (entry["type"], entry["kind"]) == ("foreign", "changed")
    state = apply(state, entry)
    assert state.status.foreign.count == 1
    assert state.status.initial == ZERO
    assert reconcile(state, found(b"x" * 32)) is None


def test_a_tpm_that_began_anew_is_told_by_its_counters(tmp_path: Path) -> None:
    """Firmware may have filled the PCR: its value tells nothing."""
    state = begun(tmp_path).state
    for counters in ((2, 0), (1, 1)):
        for value in (b"firmware" * 4, b"x" * 32):
            entry = reconcile(state, found(value, counters))
            assert entry is not None
            assert entry["kind"] == "zero"
            after = apply(state, entry)
            assert (after.value, after.counters) == (value, counters)


def test_a_tpm_that_was_resumed_is_no_change(tmp_path: Path) -> None:
    state = begun(tmp_path).state
    entry = reconcile(state, found(ZERO, (1, 1)))
    assert entry == {"type": "counters", "counters": [1, 1]}
    state = apply(state, entry)
    assert state.status == Status.begin(ZERO)
    entry = reconcile(state, found(b"x" * 32, (1, 1)))
    assert entry is not None
    assert entry["kind"] == "changed"


@pytest.mark.parametrize("starts", [1, 2, 3])
@pytest.mark.parametrize("left", [None, b""])
def test_a_journal_that_was_lost_says_so_and_has_no_initial_value(
    tmp_path: Path, left: bytes | None, starts: int
) -> None:
    """However often the agent is killed before it has read the PCR."""
    if left is not None:
        (tmp_path / "journal.jsonl").write_bytes(left)
    for _ in range(starts):
        journal = opened(tmp_path, boot_is_known=True)
        journal.add({"type": "gap", "kind": "disk", "since": HOUR, "until": HOUR})
        journal.close()
    with pytest.raises(JournalError):
        journal.add({"type": "initial", "value": "00" * 32, "counters": [1, 0]})
    entry = journal.reconcile(found(b"x" * 32))
    assert entry is not None
    assert entry["kind"] == "journal"
    journal.add(entry)
    assert journal.reconcile(found(b"x" * 32)) is None
    status = opened(tmp_path, boot_is_known=True).state.status
    assert status.initial is None
    assert [change.kind for change in status.foreign.last] == ["journal"]


def test_a_journal_that_is_there_was_not_lost(tmp_path: Path) -> None:
    opened(tmp_path)
    journal = opened(tmp_path, boot_is_known=True)
    entry = journal.reconcile(found(ZERO))
    assert entry is not None
    assert entry["type"] == "initial"


def test_it_is_replaced_by_one_line_and_never_with_a_bind_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "JOURNAL_ENTRIES", 8)
    journal = begun(tmp_path)
    path = tmp_path / "journal.jsonl"
    value = ZERO
    sizes = []
    for number in range(40):
        bind = Bind(value, number.to_bytes(32, "big"), b"v" * 32)
        journal.add_bind(bind)
        lines = path.read_bytes().splitlines()
        assert json.loads(lines[-1])["type"] == "bind"
        assert opened(tmp_path).state == journal.state
        journal.add({"type": "done"}, durable=False)
        value = bind.expected
        sizes.append(len(path.read_bytes().splitlines()))
        if number == 20:
            journal.add({"type": "gap", "kind": "disk", "since": HOUR, "until": HOUR})
    # One line in the place of eight, as soon as the eighth is there and nothing is pending.
    assert sizes[:8] == [4, 6, 1, 3, 5, 7, 1, 3]
    assert max(sizes) <= 9
    assert journal.state.value == value
    assert journal.state.status.gaps.count == 1
    assert opened(tmp_path).state == journal.state


def test_what_an_earlier_agent_wrote_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a journal of an agent that is killed again and again would have no end."""
    monkeypatch.setattr(limits, "JOURNAL_ENTRIES", 8)
    begun(tmp_path).close()
    for _ in range(20):
        journal = opened(tmp_path)
        journal.add({"type": "gap", "kind": "disk", "since": HOUR, "until": HOUR})
        journal.close()
        assert len((tmp_path / "journal.jsonl").read_bytes().splitlines()) < 8
    assert opened(tmp_path).state.status.gaps.count == 20


def test_a_line_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    before = journal.state
    journal.add_bind(Bind(ZERO, b"d" * 32))
    longer = path.read_bytes()
    for size in range(len(whole), len(longer)):
        path.write_bytes(longer[:size])
        assert opened(tmp_path).state == before
        assert path.read_bytes() == whole


BIND = {"type": "bind", "before": "00" * 32, "history": "00" * 32, "expected": "11" * 32}
STATE = {
    "type": "state",
    "version": 2,
    "value": "00" * 32,
    "status": Status.begin(ZERO).model_dump(mode="json"),
    "counters": [1, 0],
}


@pytest.mark.parametrize(
    "lines",
    [
        [b"nonsense"],
        [{}],
        [{"type": "other"}],
        [{**STATE, "version": 3}],
        [{**STATE, "value": "0"}],
        [{**STATE, "value": 7}],
        [{**STATE, "value": "00" * 31}],
        [{**STATE, "counters": [1]}],
        [{**STATE, "counters": [1, True]}],
        [{**STATE, "status": {}}],
        [{key: value for key, value in STATE.items() if key != "status"}],
        [STATE, {**BIND, "before": "22" * 32}],
        [STATE, BIND, {**BIND, "before": "22" * 32}],
        [STATE, {"type": "done"}],
        [STATE, {"type": "abandoned", "value": "00" * 32}],
        [STATE, BIND, {"type": "abandoned", "value": "33" * 32}],
        [STATE, {"type": "initial", "value": "00" * 32, "counters": [1, 0]}],
        [STATE, {"type": "gap", "kind": "other", "since": HOUR, "until": HOUR}],
        [STATE, {"type": "gap", "kind": "tpm", "since": "13:04", "until": HOUR}],
    ],
)
def test_a_journal_that_is_not_ours_is_refused(tmp_path: Path, lines: list[Any]) -> None:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (tmp_path / "journal.jsonl").write_bytes(b"\n".join(raw) + b"\n")
    with pytest.raises((JournalError, JsonError)):
        opened(tmp_path)


# -- version 1 ----------------------------------------------------------------------------------


def version_1(path: Path, *entries: dict[str, Any]) -> Journal:
    raw = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
    (path / "journal.jsonl").write_bytes(raw)
    return opened(path)


def bind_1(seq: int, history: str, expected: str) -> dict[str, Any]:
    return {
        "type": "bind",
        "seq": seq,
        "root": "aa" * 32,
        "history": history * 32,
        "expected": expected * 32,
        "time": "2025-01-31T13:14:15.123Z",
    }


DONE_1 = {"type": "done", "seq": 1}
FOREIGN_1 = {
    "type": "foreign",
    "seq": 1,
    "expected": "11" * 32,
    "found": "22" * 32,
    "time": "2025-01-31T13:14:15.123Z",
}
GAP_1 = {
    "type": "gap",
    "source": "tpm",
    "since": "2025-01-31T13:14:15.123Z",
    "until": "2025-01-31T14:14:15.123Z",
}


def test_a_journal_of_version_1_is_read_for_its_values(tmp_path: Path) -> None:
    journal = version_1(
        tmp_path, bind_1(1, "00", "11"), DONE_1, FOREIGN_1, GAP_1, bind_1(2, "22", "33"), DONE_1
    )
    state = journal.state
    assert state.status.initial == ZERO
    assert state.value == b"\x33" * 32
    assert state.pending is None
    assert state.counters is None
    assert [change.time for change in state.status.foreign.last] == [HOUR]
    assert state.status.gaps.last == (Gap(kind="tpm", since=HOUR, until="2025-01-31T14:00:00Z"),)
    (line,) = (tmp_path / "journal.jsonl").read_bytes().splitlines()
    assert json.loads(line)["version"] == 2
    assert opened(tmp_path).state == state
    # What became of the TPM since is not known: no change is told by its counters.
    entry = reconcile(state, found(b"x" * 32))
    assert entry is not None
    assert entry["kind"] == "changed"
    assert reconcile(state, found(b"\x33" * 32)) == {"type": "counters", "counters": [1, 0]}


@pytest.mark.parametrize(
    ("value", "kind"), [("11", "abandoned"), ("22", "done"), ("33", "foreign")]
)
def test_a_bind_of_version_1_that_is_pending(tmp_path: Path, value: str, kind: str) -> None:
    journal = version_1(tmp_path, bind_1(1, "00", "11"), bind_1(2, "11", "22"))
    assert opened(tmp_path).state == journal.state
    entry = journal.reconcile(found(bytes.fromhex(value * 32)))
    assert entry is not None
    assert entry["type"] == kind
    assert journal.state.status.initial == ZERO


def test_an_abandoned_bind_of_version_1(tmp_path: Path) -> None:
    journal = version_1(tmp_path, bind_1(1, "00", "11"), {"type": "abandoned", "seq": 1})
    assert journal.state.value == ZERO
    assert journal.state.pending is None


def test_a_journal_of_version_1_that_is_there_was_not_lost(tmp_path: Path) -> None:
    """Also where nothing is bound yet: a host that upgrades has made no foreign change."""
    (tmp_path / "journal.jsonl").write_bytes(json.dumps(GAP_1).encode() + b"\n")
    journal = opened(tmp_path, boot_is_known=True)
    entry = journal.reconcile(found(ZERO))
    assert entry is not None
    assert entry["type"] == "initial"


def test_an_empty_journal_of_version_1(tmp_path: Path) -> None:
    journal = version_1(tmp_path)
    assert journal.state == JournalState(Status.begin())


@pytest.mark.parametrize(("source", "kind"), [("tpm", "tpm"), ("records", "disk")])
def test_a_gap_of_version_1_has_its_source(tmp_path: Path, source: str, kind: str) -> None:
    (gap,) = version_1(tmp_path, {**GAP_1, "source": source}).state.status.gaps.last
    assert gap.kind == kind


@pytest.mark.parametrize("goes_on_from", ["before", "history", "expected"])
def test_a_bind_may_follow_one_of_which_the_end_is_not_written(
    tmp_path: Path, goes_on_from: str
) -> None:
    journal = begun(tmp_path)
    journal.add_bind(Bind(ZERO, b"d" * 32, b"v" * 32))
    pending = journal.state.pending
    assert pending is not None
    assert len({pending.before, pending.history, pending.expected}) == 3
    journal.add_bind(Bind(getattr(pending, goes_on_from), b"e" * 32, b"w" * 32))
    assert opened(tmp_path).state == journal.state
    with pytest.raises(JournalError):
        journal.add_bind(Bind(b"x" * 32, b"e" * 32, b"w" * 32))


# -- a crash at every point ---------------------------------------------------------------------


class CrashError(Exception):
    """The agent was killed."""


class ModelTpm:
    """A PCR and the TPM's counters; kills whoever asks before or after a command."""

    def __init__(self) -> None:
        self.value = os.urandom(32)
        self.resets = 4
        self.restarts = 0
        self.budget: int | None = None
        self.ours: list[bytes] = []

    def _step(self) -> None:
        if self.budget is not None:
            if self.budget == 0:
                raise CrashError
            self.budget -= 1

    def read_pcrs(self, pcrs: list[int]) -> dict[int, bytes]:
        self._step()
        return {12: self.value}

    def counters(self) -> tuple[int, int]:
        self._step()
        return self.resets, self.restarts

    def extend(self, pcr: int, digest: bytes) -> None:
        self._step()
        self.value = extend(self.value, digest)
        self._step()


class CrashAnywhere(RuleBasedStateMachine):
    """Agents come, bind and are killed; others extend the PCR; the TPM begins anew or resumes."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "journal.jsonl"
        self.tpm = ModelTpm()
        self.initial: bytes | None = None
        self.wanted: list[str] = []
        self.pending_kind: str | None = None
        self.gaps = 0
        limits.JOURNAL_ENTRIES = 16
        self.restart()

    def teardown(self) -> None:
        limits.JOURNAL_ENTRIES = 1024
        self.directory.cleanup()

    def restart(self) -> None:
        self.tpm.budget = None
        self.journal = Journal.open(self.path)
        self.pcr = BindingPcr(self.journal, self.tpm, 12)  # type: ignore[arg-type]

    def note(self) -> None:
        """What the next look must find, told from what was done to the TPM."""
        if self.pending_kind is not None:
            self.wanted.append(self.pending_kind)
            self.pending_kind = None

    @rule(thoroughly=st.booleans())
    def settle(self, thoroughly: bool) -> None:
        if self.initial is None:
            self.initial = self.tpm.value
            self.pending_kind = None
        assert self.pcr.settle(thoroughly=thoroughly) == self.tpm.value
        self.note()

    @precondition(lambda self: self.initial is not None)
    @rule(veiled=st.booleans())
    def bind(self, veiled: bool) -> None:
        before = self.pcr.settle()
        self.note()
        digest = os.urandom(32)
        bind = self.pcr.extend(before, digest, veiled=veiled)
        assert (bind.veil is not None) == veiled
        assert self.tpm.value == bind.expected

    @precondition(lambda self: self.initial is not None)
    @rule(veiled=st.booleans(), steps=st.integers(0, 6))
    def bind_and_be_killed(self, veiled: bool, steps: int) -> None:
        before = self.pcr.settle()
        self.note()
        self.tpm.budget = steps
        with suppress(CrashError):
            self.pcr.extend(before, os.urandom(32), veiled=veiled)
        self.restart()

    @rule()
    def be_killed(self) -> None:
        self.restart()

    @precondition(lambda self: self.initial is not None)
    @rule()
    def somebody_extends(self) -> None:
        self.tpm.value = extend(self.tpm.value, os.urandom(32))
        self.pending_kind = self.pending_kind or "changed"

    @precondition(lambda self: self.initial is not None and self.pending_kind is None)
    @rule(value=st.binary(min_size=32, max_size=32))
    def the_tpm_begins_anew(self, value: bytes) -> None:
        self.pcr.settle(thoroughly=True)
        self.tpm.value = hashlib.sha256(value + os.urandom(4)).digest()
        self.tpm.resets += 1
        self.tpm.restarts = 0
        self.pending_kind = "zero"

    @precondition(lambda self: self.initial is not None and self.pending_kind is None)
    @rule()
    def the_tpm_resumes(self) -> None:
        self.tpm.restarts += 1
        self.pcr.settle(thoroughly=True)

    @precondition(lambda self: self.initial is not None)
    @rule()
    def a_gap(self) -> None:
        if self.journal.state.pending is None:
            self.pcr.add_gap(Gap(kind="disk", since=HOUR, until=HOUR))
            self.gaps += 1

    @invariant()
    def what_is_on_disk_is_what_it_holds(self) -> None:
        again = Journal.open(self.path).state
        assert again == self.journal.state
        status = again.status
        assert status.initial == self.initial
        assert status.foreign.count == len(self.wanted)
        assert [change.kind for change in status.foreign.last] == self.wanted[-8:]
        assert status.gaps.count == self.gaps


CrashAnywhere.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCrashAnywhere = CrashAnywhere.TestCase
