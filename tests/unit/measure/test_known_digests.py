import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base import limits
from cima_runc.measure.file_digest import Identity
from cima_runc.measure.known_digests import KnownDigests

FIRST, SECOND = Identity(8, 1, 100, 1, 1), Identity(8, 2, 100, 1, 1)


def test_what_is_kept_is_known_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    known = KnownDigests(path, "boot")
    known.add(FIRST, b"1" * 32)
    known.keep()
    assert path.stat().st_mode & 0o777 == 0o600
    known.add(SECOND, b"2" * 32)
    again = KnownDigests(path, "boot")
    assert again.get(FIRST) == b"1" * 32
    assert FIRST in again
    assert SECOND not in again
    assert again.get(FIRST._replace(ctime_ns=2)) is None


def test_nothing_is_known_of_another_boot(tmp_path: Path) -> None:
    known = KnownDigests(tmp_path / "digests.json", "boot")
    known.add(FIRST, b"1" * 32)
    known.keep()
    assert FIRST not in KnownDigests(tmp_path / "digests.json", "another boot")


def test_nothing_new_is_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    KnownDigests(path, "boot").keep()
    assert not path.exists()
    known = KnownDigests(path, "boot")
    known.add(FIRST, b"1" * 32)
    known.keep()
    written = path.stat().st_ino
    known.keep()
    KnownDigests(path, "boot").keep()
    assert path.stat().st_ino == written


def test_where_it_cannot_be_written_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = KnownDigests(tmp_path / "missing" / "digests.json", "boot")
    known.add(FIRST, b"1" * 32)
    with caplog.at_level(logging.WARNING):
        known.keep()
    assert "are not kept" in caplog.text
    assert FIRST in known


def test_no_more_than_so_many_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KNOWN_DIGESTS", 3)
    known = KnownDigests(tmp_path / "digests.json", "boot")
    all_of_them = [FIRST._replace(inode=inode) for inode in range(6)]
    for identity in all_of_them:
        known.add(identity, os.urandom(32))
    known.keep()
    for each in (known, KnownDigests(tmp_path / "digests.json", "boot")):
        assert [identity in each for identity in all_of_them] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"boot_id": "boot"}',
        '{"boot_id": "boot", "files": 1}',
        '{"boot_id": "boot", "files": [[1, 2, 3, 4, "%s"]]}' % ("00" * 32),
        '{"boot_id": "boot", "files": [[1, 2, 3, 4, 5, 6]]}',
        '{"boot_id": "boot", "files": [[1, 2, 3, 4, 5, "00"]]}',
        '{"boot_id": "boot", "files": [[1, 2, 3, 4, true, "%s"]]}' % ("00" * 32),
        '{"boot_id": "boot", "files": [[1, 2, 3, 4, 5, "%s"], []]}' % ("00" * 32),
    ],
    ids=lambda text: text[:60] or "empty",
)
def test_a_damaged_file_is_of_no_use_and_does_no_harm(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "digests.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        known = KnownDigests(path, "boot")
    assert Identity(1, 2, 3, 4, 5) not in known
    assert "is of no use" in caplog.text


@given(
    st.dictionaries(
        st.builds(Identity, *[st.integers(0, 2**64 - 1)] * 5),
        st.binary(min_size=32, max_size=32),
        max_size=20,
    )
)
def test_any_identity_comes_back(
    tmp_path_factory: pytest.TempPathFactory, digests: dict[Identity, bytes]
) -> None:
    path = tmp_path_factory.mktemp("known") / "digests.json"
    known = KnownDigests(path, "boot")
    for identity, digest in digests.items():
        known.add(identity, digest)
    known.keep()
    again = KnownDigests(path, "boot")
    assert {identity: again.get(identity) for identity in digests} == digests
