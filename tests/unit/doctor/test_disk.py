import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from cima_runc.doctor import disk
from cima_runc.doctor.finding import UnfitError

MIB = 1 << 20


@dataclass
class Found:
    f_bavail: int
    f_frsize: int = 4096
    f_flag: int = 0
    f_files: int = 100_000
    f_favail: int = 90_000


def test_the_real_one(tmp_path: Path) -> None:
    assert disk.look(tmp_path / "not there yet", MIB).endswith("not there yet")


@pytest.mark.parametrize(
    ("found", "quota", "told"),
    [
        (Found(10 * 256), 1, "only 10 MiB are free"),
        (Found(1000 * 256), 4096, "storage.quota_mib allows 4095 MiB more"),
        (Found(1000 * 256, f_favail=3), 10, "only 3 more files"),
        (Found(1000 * 256, f_flag=os.ST_RDONLY), 10, "is read-only"),
    ],
)
def test_too_little(
    found: Found, quota: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "records").write_bytes(bytes(MIB))
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    with pytest.raises(UnfitError) as raised:
        disk.look(tmp_path, quota * MIB)
    assert told in raised.value.what and raised.value.hint


def test_what_is_used_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "records").write_bytes(bytes(4 * MIB))
    monkeypatch.setattr(os, "statvfs", lambda _: Found(98 * 256))
    assert disk.look(tmp_path, 100 * MIB)
    with pytest.raises(UnfitError, match="allows 99 MiB more"):
        disk.look(tmp_path, 103 * MIB)


def test_file_systems_without_a_count_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """btrfs tells none."""
    monkeypatch.setattr(os, "statvfs", lambda _: Found(1000 * 256, f_files=0, f_favail=0))
    assert disk.look(tmp_path, MIB)
