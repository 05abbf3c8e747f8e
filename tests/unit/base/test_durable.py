import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base.durable import AppendFile


def failing(name: str, code: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have os.NAME fail until the returned function is called; a write writes half before."""
    real = getattr(os, name)

    def fail(handle: int, *rest: Any) -> Any:
        if name == "write":
            real(handle, rest[0][: len(rest[0]) // 2])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, fail)
    return lambda: monkeypatch.setattr(os, name, real)


def test_lines_are_appended_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = AppendFile(path)
    file.append(b"one\n")
    file.sync()
    file.append(b"two\n")
    file.close()
    AppendFile(path).append(b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"


@given(st.binary(max_size=300), st.integers(0, 200_000))
def test_a_cut_off_last_line_is_removed(tmp_path_factory: Any, rest: bytes, size: int) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines"
    whole = b"x" * size + b"\n"
    path.write_bytes(whole + rest)
    AppendFile(path).close()
    assert path.read_bytes() == whole + rest[: rest.rfind(b"\n") + 1]


def test_a_write_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    file = AppendFile(path)
    file.append(b"one\n")
    mend = failing("write", errno.ENOSPC, monkeypatch)
    with pytest.raises(OSError, match="No space left") as raised:
        file.append(b"two\n")
    assert raised.value.filename == str(path)
    mend()
    assert path.read_bytes() == b"one\n"
    file.append(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_what_cannot_be_taken_back_now_is_taken_back_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    file = AppendFile(path)
    mends = [failing(name, errno.EIO, monkeypatch) for name in ("write", "ftruncate")]
    with pytest.raises(OSError, match="Input/output"):
        file.append(b"one\n")
    assert path.read_bytes() == b"on"
    mends[0]()
    with pytest.raises(OSError, match="Input/output"):
        file.append(b"one\n")
    mends[1]()
    file.append(b"one\n")
    assert path.read_bytes() == b"one\n"


def test_what_was_not_made_durable_is_to_be_appended_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    file = AppendFile(path)
    file.append(b"one\n")
    file.sync()
    file.append(b"two\n")
    mend = failing("fdatasync", errno.EIO, monkeypatch)
    with pytest.raises(OSError, match="Input/output"):
        file.sync()
    mend()
    file.append(b"two\n")
    file.sync()
    assert path.read_bytes() == b"one\ntwo\n"


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("stays")
    (tmp_path / "symbolic").symlink_to(tmp_path / "target")
    (tmp_path / "hard").hardlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        AppendFile(tmp_path / "symbolic")
    with pytest.raises(OSError, match="no regular file with one name"):
        AppendFile(tmp_path / "hard")
    assert (tmp_path / "target").read_text() == "stays"
