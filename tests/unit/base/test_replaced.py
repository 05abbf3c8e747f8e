"""Whoever replaces a file does it in one way, and leaves nothing where that fails."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cima_runc.base.durable import replace_file
from cima_runc.base.replaced import replace
from cima_runc.engines.change import replace_settings
from cima_runc.runtime import shim_settings
from cima_runc.runtime.shim import _replace
from cima_runc.runtime.shim_settings import ShimSettings, identity_of, write_companion


def of_a_bundle(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        _replace(directory, path.name, b"new", path.stat())
    finally:
        os.close(directory)


def of_the_launcher(path: Path) -> None:
    settings = path.parent.parent / "config.toml"
    settings.write_text("")
    identity = identity_of(str(settings))
    if not write_companion(identity, ShimSettings(), path=str(path), settings_file=str(settings)):
        raise OSError(errno.ENOSPC, "full")


WAYS: dict[str, Callable[[Path], Any]] = {
    "as all do": lambda path: replace(path, b"new"),
    "of our own": lambda path: replace_file(path, b"new"),
    "an engine's settings": lambda path: replace_settings(path, b"new", 0o600),
    "a bundle's configuration": of_a_bundle,
    "what the launcher reads": of_the_launcher,
}


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
@pytest.mark.parametrize("way", WAYS)
def test_a_failure_leaves_the_old_and_nothing_else(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim_settings, "_QUIET_NS", 0)
    path = tmp_path / "files/file"
    path.parent.mkdir()
    path.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fchmod", "replace"):
        with monkeypatch.context() as disk:
            disk.setattr(os, name, full)
            with pytest.raises(OSError):
                WAYS[way](path)
        assert [each.name for each in path.parent.iterdir()] == ["file"]
        assert path.read_bytes() == b"old"
    WAYS[way](path)
    assert [each.name for each in path.parent.iterdir()] == ["file"]
    assert path.read_bytes() != b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_mode_owner_and_directory(tmp_path: Path) -> None:
    made = replace(tmp_path / "one", b"1", mode=0o640, owner=(1, 2))
    found = (tmp_path / "one").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 1, 2)
    assert made.st_ino == found.st_ino
    directory = os.open(tmp_path, os.O_RDONLY)
    replace("one", b"2", directory=directory)
    os.close(directory)
    assert (tmp_path / "one").read_bytes() == b"2"
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600


def test_what_is_planted_at_the_temporary_name_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "new").symlink_to("other")
    with pytest.raises(FileExistsError):
        replace(tmp_path / "file", b"data", temporary=tmp_path / "new")
    assert (tmp_path / "new").is_symlink()
    assert not (tmp_path / "other").exists()
