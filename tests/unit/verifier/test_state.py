from pathlib import Path

import pytest

from cima_runc.verifier.state import Remembered, StateDirectory, StateError

SEEN = Remembered(
    container="../../etc/passwd",
    ak_name=b"\0\x0b" + bytes(32),
    reset_count=1,
    clock=2,
    seq=3,
    count=4,
    cpcr=b"c" * 32,
    first=b"f" * 32,
    registration=5,
    dependencies=None,
    appraised_with=None,
)


def test_round_trip(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path / "state")
    assert directory.load(SEEN.container) is None
    directory.store(SEEN)
    assert directory.load(SEEN.container) == SEEN
    assert directory.load("other") is None
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "state"]
    directory.store(SEEN.model_copy(update={"appraised_with": b"r" * 32}))
    assert directory.load(SEEN.container) != SEEN


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b"[]"])
def test_damaged_state_is_no_new_beginning(tmp_path: Path, raw: bytes) -> None:
    directory = StateDirectory(tmp_path)
    directory.store(SEEN)
    next(tmp_path.glob("*.json")).write_bytes(raw)
    with pytest.raises(StateError, match="delete it"):
        directory.load(SEEN.container)
