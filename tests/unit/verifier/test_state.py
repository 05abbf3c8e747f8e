import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cima_runc.verifier.state import Remembered, StateDirectory, StateError, StateVersionError

AK, LINE = b"\0\x0b" + bytes(32), b"l" * 32
SEEN = Remembered(
    ak_name=AK,
    line=LINE,
    container="../../etc/passwd",
    run=2,
    boot_id="boot",
    registration=5,
    count=4,
    cpcr=b"c" * 32,
    inner=b"i" * 32,
    ended=None,
    earlier=(3, 4),
    dependencies=None,
    reset_count=1,
    restart_count=0,
    clock=2,
    initial=None,
    foreign=0,
    gaps=0,
    good_with=None,
    earlier_good_with=None,
    earlier_seen=True,
    untrusted_run=None,
    untrusted_with=None,
)


def later(**changes: Any) -> Remembered:
    return SEEN.model_copy(update=changes)


def test_round_trip(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path / "state")
    assert directory.recall(AK, LINE, "box") is None
    assert directory.since_of("box") is None
    directory.remember(SEEN)
    assert directory.recall(AK, LINE, "another id of the line") == SEEN
    assert directory.recall(AK, b"x" * 32, SEEN.container) is None
    assert directory.recall(AK[::-1], LINE, SEEN.container) is None
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "state"]
    directory.remember(later(good_with=b"r" * 32))
    assert directory.recall(AK, LINE, "box") != SEEN


def test_a_host_is_remembered_by_its_latest_evidence_of_whichever_line(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    assert directory.recall_host(AK) is None
    directory.remember(SEEN)
    directory.remember(later(line=b"m" * 32, clock=9, foreign=2))
    directory.remember(later(line=b"n" * 32, clock=5))
    known = directory.recall_host(AK)
    assert known is not None
    assert (known.counters, known.foreign) == ((1, 0, 9), 2)
    assert directory.recall_host(AK[::-1]) is None
    line = directory.recall(AK, LINE, "box")
    assert line is not None and line.foreign == 0
    (path,) = tmp_path.glob("*.host")
    path.write_bytes(b"{}")
    for use in (lambda: directory.recall_host(AK), lambda: directory.remember(SEEN)):
        with pytest.raises(StateError):
            use()


def test_what_to_ask_for_is_of_one_line_alone(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    directory.remember(SEEN)
    since = directory.since_of(SEEN.container)
    assert since is not None
    assert (since.run, since.count, since.inner) == (2, 4, b"i" * 32)
    directory.remember(later(line=b"m" * 32))
    assert directory.since_of(SEEN.container) is None


@pytest.mark.parametrize("changes", [{"clock": 1}, {"reset_count": 0, "clock": 9}])
def test_what_is_older_takes_no_place(tmp_path: Path, changes: dict[str, int]) -> None:
    """Two verifications of one line at once: the later quote stays, whichever ends first."""
    directory = StateDirectory(tmp_path)
    directory.remember(SEEN)
    directory.remember(later(count=3, **changes))
    assert directory.recall(AK, LINE, "box") == SEEN
    for newer in (later(restart_count=1, clock=0), later(reset_count=2, clock=0)):
        directory.remember(newer)
        assert directory.recall(AK, LINE, "box") == newer


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"\xff", b"[]", b'{"version": 2}', b'{"version": true}']
)
def test_damaged_state_is_no_new_beginning(tmp_path: Path, raw: bytes) -> None:
    directory = StateDirectory(tmp_path)
    directory.remember(SEEN)
    next(tmp_path.glob("*.json")).write_bytes(raw)
    for use in (lambda: directory.recall(AK, LINE, "box"), lambda: directory.remember(SEEN)):
        with pytest.raises(StateError, match="delete it"):
            use()


def test_state_of_version_1_is_refused_by_name(tmp_path: Path) -> None:
    """It is another file, so that it would otherwise not even be seen."""
    name = hashlib.sha256(b"box").hexdigest()
    (tmp_path / f"{name}.json").write_text(json.dumps({"version": 1, "container": "box"}))
    directory = StateDirectory(tmp_path)
    for use in (lambda: directory.recall(AK, LINE, "box"), lambda: directory.since_of("box")):
        with pytest.raises(StateVersionError, match="version 1"):
            use()
    assert directory.recall(AK, LINE, "another") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 3}', "\x00"])
def test_a_file_that_is_none_of_ours_spoils_no_other(tmp_path: Path, text: str) -> None:
    directory = StateDirectory(tmp_path)
    directory.remember(SEEN)
    (tmp_path / "result.json").write_text(text)
    assert directory.since_of(SEEN.container) == SEEN.since
    assert directory.recall(AK, LINE, SEEN.container) == SEEN


def test_a_file_of_another_line_is_none(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    directory.remember(SEEN)
    (path,) = tmp_path.glob("*.json")
    path.write_text(later(line=b"m" * 32).model_dump_json())
    with pytest.raises(StateError, match="another line"):
        directory.recall(AK, LINE, "box")
