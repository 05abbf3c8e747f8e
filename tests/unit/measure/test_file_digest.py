import hashlib
import os
import threading
from pathlib import Path

import pytest

from cima_runc.base import limits
from cima_runc.measure.file_digest import FileDigestError, identity_of, open_regular, sha256


def test_the_digest_is_of_the_open_file_whatever_its_name_says(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(b"old" * 1_000_000)
    handle = open_regular(str(file))
    before = identity_of(str(file))
    new = tmp_path / "new"
    new.write_bytes(b"new")
    new.rename(file)
    digest, identity = sha256(handle)
    os.close(handle)
    assert digest == hashlib.sha256(b"old" * 1_000_000).digest()
    assert identity[:4] == before[:4]
    assert identity_of(str(file)) != before


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    handle = open_regular(str(tmp_path / "empty"))
    assert sha256(handle)[0] == hashlib.sha256().digest()
    os.close(handle)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null")):
        with pytest.raises((FileDigestError, IsADirectoryError)):
            open_regular(str(path))


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", limits.HOST_SERVICE_FILE + 1)
    handle = open_regular(str(tmp_path / "large"))
    with pytest.raises(FileDigestError, match="more than"):
        sha256(handle)
    os.close(handle)


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "changing"
    file.touch()
    os.truncate(file, 256 * limits.MIB)
    handle = open_regular(str(file))
    stop = threading.Event()

    def write() -> None:
        with file.open("r+b") as other:
            while not stop.is_set():
                os.pwrite(other.fileno(), b"x", 0)
                stop.wait(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(FileDigestError, match="changed"):
            sha256(handle)
    finally:
        stop.set()
        writer.join()
        os.close(handle)
