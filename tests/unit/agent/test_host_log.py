"""The host's log as evidence has it, with lines that the kernel has no more."""

import hashlib
from pathlib import Path

import pytest

from cima_runc.agent.events import Events
from cima_runc.agent.host_log import HostLog
from cima_runc.ima.log_copy import LogCopy
from tests.unit.ima.test_trimming import TrimmedLog


@pytest.fixture(name="kernel")
def _kernel(tmp_path: Path) -> TrimmedLog:
    kernel = TrimmedLog(tmp_path)
    for number in range(9):
        kernel.append(b"/bin/%d" % number)
    return kernel


def reader(kernel: TrimmedLog) -> HostLog:
    return HostLog(kernel.directory, 10, LogCopy(kernel.directory / "copy", "boot", keep=False))


@pytest.mark.parametrize("opened", ["before", "after"])
def test_evidence_goes_on_over_lines_that_are_gone(opened: str, kernel: TrimmedLog) -> None:
    """The agent's one log keeps the copy; the one for evidence reads it, opened early or late."""
    keeper = kernel.open()
    keeper.read_new()
    early = reader(kernel) if opened == "before" else None
    if early is not None:
        early.recent()
    kernel.append(b"/bin/seen-by-the-keeper-alone")
    keeper.read_new()
    kernel.trim(11)
    kernel.append(b"/bin/new")
    log = early or reader(kernel)
    latest = log.recent()[0]
    assert (latest.value, latest.lines) == (kernel.replay(), 12)
    assert log.redacted(12) == [entry.extends("sha256") for entry in kernel.all]
    assert [entry.data for entry in log.entries(12)] == [entry.data for entry in kernel.all]
    assert log.first().data == kernel.all[0].data
    assert log.at([3, 11, 99])[11].data == kernel.all[11].data
    assert log.entries_to(7) == 8
    # A restarted agent, too.
    keeper.close()
    again = kernel.open()
    again.read_new()
    assert again.line_of(hashlib.sha256(b"/bin/0").digest(), b"/bin/0", 10) == 1
    assert reader(kernel).recent()[0].value == kernel.replay()


class Writer:
    """Of a writer, what reading on needs: nothing."""


def test_the_log_is_kept_up_with(kernel: TrimmedLog) -> None:
    counted = kernel.directory / "runtime_measurements_count"
    counted.write_text("10\n")
    log = kernel.open()
    log.read_new()
    events = Events(writer=Writer(), sensor=None, kernel_log=log, on_progress=lambda: None)  # type: ignore[arg-type]
    events.keep_up()
    kernel.append(b"/bin/new")
    events.keep_up()
    assert log.count == 10  # the kernel counts no more than before
    counted.write_text("11\n")
    events.keep_up()
    assert log.count == 11
    kernel.trim(11)
    assert reader(kernel).entries(11)[-1].data == kernel.all[-1].data
