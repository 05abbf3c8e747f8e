"""The kernel's log, where reading it fails for a while."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cima_runc.agent.events import Events
from cima_runc.ima import kernel_log
from cima_runc.ima.log_copy import LogCopyError
from tests.unit.ima.test_trimming import TrimmedLog


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrimmedLog:
    monkeypatch.setattr(kernel_log, "_may_be_trimmed", lambda mode, release: True)
    monkeypatch.setattr(kernel_log, "_BUSY_SECONDS", 0.0)
    (tmp_path / "runtime_measurements_count").write_text("1")
    return TrimmedLog(tmp_path)


def refuse(log: TrimmedLog, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernel refuse to open its log."""
    really = os.open

    def refused(path: Any, *arguments: Any, **named: Any) -> int:
        if Path(os.fsdecode(path)).parent == log.directory:
            raise OSError(number, os.strerror(number), str(path))
        return really(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refused)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EMFILE, errno.EIO, None])
def test_what_passes_is_waited_for(
    log: TrimmedLog, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who removes lines keeps others out meanwhile (EBUSY). Afterwards it is read on, though the
    kernel counts no more lines than before: else these could be removed unread."""
    reader = log.open()
    events = Events(writer=None, sensor=None, kernel_log=reader, on_progress=lambda: None)  # type: ignore[arg-type]
    events.keep_up()
    assert (reader.count, events.log_error) == (1, None)
    log.append(b"/bin/new")
    (log.directory / "runtime_measurements_count").write_text("2")
    with monkeypatch.context() as patched:
        if number is None:  # the copy cannot be written

            def full(*_: object) -> None:
                raise LogCopyError("no room")

            patched.setattr(reader._copy, "append", full)
        else:
            refuse(log, number, patched)
        for _ in range(2):
            events.keep_up()
        assert reader.count == 1
        assert (events.log_error is None) == (number is None)
    events.keep_up()
    assert (reader.count, events.log_error) == (2, None)


def test_what_is_no_log_is_given_up(log: TrimmedLog) -> None:
    reader = log.open()
    events = Events(writer=None, sensor=None, kernel_log=reader, on_progress=lambda: None)  # type: ignore[arg-type]
    events.read_kernel_log()
    before = log.all[:]
    log.all.clear()
    log.append(b"boot_aggregate", b"evm-sig")
    events.read_kernel_log()
    told = events.log_error
    assert told is not None
    log.all[:] = before
    log.append(b"/bin/new")
    events.read_kernel_log()
    assert (reader.count, events.log_error) == (1, told)
