import hashlib
import os
import secrets
from pathlib import Path

import pytest

from cima_runc.base.jsonio import JsonError
from cima_runc.cpcr.binding import Bind, bind_digest
from cima_runc.cpcr.journal import Journal, JournalError, JournalState, apply, reconcile


def bind(seq: int = 1, history: bytes = bytes(32)) -> Bind:
    return Bind(seq, secrets.token_bytes(32), history)


def opened(path: Path) -> Journal:
    return Journal.open(path / "journal.jsonl")


def test_the_bind_is_the_designs() -> None:
    one = bind(seq=3, history=b"h" * 32)
    digest = hashlib.sha256(b"cima-bind-v1\0" + (3).to_bytes(8, "big") + one.root).digest()
    assert one.digest == digest == bind_digest(3, one.root)
    assert one.expected == hashlib.sha256(b"h" * 32 + digest).digest()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert journal.state == JournalState()
    one = bind()
    journal.add_bind(one, "now")
    assert opened(tmp_path).state == JournalState(one, True, 1, one.expected, 0)
    journal.add({"type": "done", "seq": 1})
    assert opened(tmp_path).state == JournalState(one, False, 1, one.expected, 0)


def test_a_line_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    one, two = bind(), bind(2)
    journal.add_bind(one, "now")
    whole = (tmp_path / "journal.jsonl").read_bytes()
    journal.add_bind(two, "now")
    for size in range(len(whole), (tmp_path / "journal.jsonl").stat().st_size - 1, 7):
        os.truncate(tmp_path / "journal.jsonl", size)
        assert opened(tmp_path).state.last == one
        assert (tmp_path / "journal.jsonl").read_bytes() == whole
        opened(tmp_path).add_bind(two, "now")


def test_after_a_crash_the_pcr_says_what_happened() -> None:
    one = bind(history=b"h" * 32)
    state = JournalState(one, True, 1, one.expected)
    assert reconcile(state, one.expected) == {"type": "done", "seq": 1}
    assert reconcile(state, one.history) == {"type": "abandoned", "seq": 1}
    foreign = reconcile(state, b"x" * 32)
    assert foreign is not None and foreign["type"] == "foreign"
    assert reconcile(apply(state, foreign), b"x" * 32) is None


def test_an_abandoned_bind_leaves_the_history() -> None:
    one = bind(history=b"h" * 32)
    state = apply(JournalState(one, True, 1, one.expected), {"type": "abandoned", "seq": 1})
    assert (state.value, state.last, state.seq) == (b"h" * 32, None, 1)
    assert reconcile(state, b"h" * 32) is None


def test_a_foreign_extend_is_counted_and_the_found_value_goes_on() -> None:
    one = bind()
    state = apply(JournalState(one, False, 1, one.expected), {"type": "done", "seq": 1})
    assert reconcile(state, one.expected) is None
    entry = reconcile(state, b"x" * 32)
    assert entry is not None
    assert (entry["expected"], entry["found"]) == (one.expected.hex(), (b"x" * 32).hex())
    state = apply(state, entry)
    assert (state.foreign, state.value) == (1, b"x" * 32)


def test_the_first_value_is_not_assumed() -> None:
    assert reconcile(JournalState(), b"x" * 32) is None


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"nonsense",
        b'{"type":"bind","seq":1,"root":"00","history":"00","expected":"11"}',
        b'{"type":"bind","seq":-1,"root":"00","history":"00","expected":"11"}',
        b'{"type":"other"}',
        b'{"type":"foreign","seq":1,"expected":"","found":"zz"}',
    ],
)
def test_a_journal_that_is_not_ours_is_refused(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(line + b"\n")
    with pytest.raises((JournalError, JsonError)):
        opened(tmp_path)
