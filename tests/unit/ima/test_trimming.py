"""Lines that root removes from the kernel's log (Linux 7.2), as a state machine."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cima_runc.ima import kernel_log
from cima_runc.ima.entry import Entry, format_binary
from cima_runc.ima.kernel_log import KernelLog, KernelLogError, TrimmedUnseenError
from cima_runc.ima.log_copy import LogCopy, LogCopyError
from cima_runc.ima.template import pack_fields


class TrimmedLog:
    """A kernel's log that can be trimmed, and all that it ever held."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.all: list[Entry] = []
        self.gone = 0
        self.append(b"boot_aggregate")

    def append(self, path: bytes, template: bytes = b"ima-ng", *, violation: bool = False) -> None:
        digest = hashlib.sha256(path).digest()
        extra = [b"evm"] * 7 if template == b"evm-sig" else []
        data = pack_fields([b"sha256:\0" + digest, path + b"\0", *extra])
        template_hash = bytes(20) if violation else hashlib.sha1(data).digest()
        self.all.append(Entry(10, template_hash, template, data))
        self.write()

    def trim(self, count: int) -> None:
        self.gone += count
        self.write()

    def write(self) -> None:
        shown = self.all[self.gone :]
        lines = [
            b"10 %s %s sha256:%s %s%s\n"
            % (
                entry.template_hash.hex().encode(),
                entry.template,
                entry.digest[1].hex().encode(),  # type: ignore[index]
                entry.name,
                b" 65766d" * 7 if entry.template == b"evm-sig" else b"",
            )
            for entry in shown
        ]
        for name, data in (
            ("ascii_runtime_measurements", b"".join(lines)),
            ("binary_runtime_measurements", b"".join(format_binary(one) for one in shown)),
        ):
            (self.directory / name).write_bytes(data)

    def open(self, boot: str = "boot", *, keep: bool = True) -> KernelLog:
        return KernelLog.open(self.directory, LogCopy(self.directory / "copy", boot, keep=keep))

    def replay(self) -> bytes:
        value = bytes(32)
        for entry in self.all:
            value = hashlib.sha256(value + entry.extends("sha256")).digest()
        return value


@pytest.fixture(name="kernel")
def _kernel(tmp_path: Path) -> TrimmedLog:
    kernel = TrimmedLog(tmp_path)
    for number in range(9):
        kernel.append(b"/bin/%d" % number)
    return kernel


def test_nobody_is_kept_from_trimming(kernel: TrimmedLog) -> None:
    log = kernel.open()
    log.read_new()
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not [name for name in held if name.endswith("_runtime_measurements")]
    log.close()


@pytest.mark.parametrize("count", [1, 5, 10])
def test_reading_goes_on_after_lines_were_removed(count: int, kernel: TrimmedLog) -> None:
    log = kernel.open()
    assert log.read_new() == kernel.all
    kernel.trim(count)
    assert log.read_new() == []
    kernel.append(b"/bin/new")
    assert log.read_new() == kernel.all[-1:]
    assert log.replay(10).value == kernel.replay()
    assert log.line_of(hashlib.sha256(b"/bin/0").digest(), b"/bin/0") == 1


@pytest.mark.parametrize("count", [0, 1, 5, 10])
def test_an_agent_that_starts_again_goes_on(count: int, kernel: TrimmedLog) -> None:
    first = kernel.open()
    first.read_new()
    first.close()
    kernel.trim(count)
    kernel.append(b"/bin/while-it-was-down")
    again = kernel.open()
    assert again.read_new() == kernel.all
    assert again.explains(10, kernel.replay())
    # Those who only read the copy see the same.
    assert kernel.open(keep=False).read_new() == kernel.all


def test_trimmed_before_it_was_seen_is_named(kernel: TrimmedLog) -> None:
    kernel.trim(3)
    with pytest.raises(TrimmedUnseenError, match="removed before the agent first read"):
        kernel.open().read_new()
    assert not (kernel.directory / "copy/boot").exists()


def test_a_gap_does_not_add_up(kernel: TrimmedLog) -> None:
    """Lines that came and went unseen: what follows is read, and the PCR tells of them."""
    log = kernel.open()
    log.read_new()
    kernel.append(b"/bin/unseen")
    kernel.trim(11)
    kernel.append(b"/bin/later")
    assert log.read_new() == kernel.all[-1:]
    assert not log.explains(10, kernel.replay())


def test_another_boots_copy_is_nothing(kernel: TrimmedLog) -> None:
    log = kernel.open("old")
    log.read_new()
    log.close()
    kernel.trim(2)
    with pytest.raises(TrimmedUnseenError):
        kernel.open("new").read_new()
    assert not (kernel.directory / "copy/old").exists()


def test_a_changed_log_is_named(kernel: TrimmedLog) -> None:
    log = kernel.open()
    log.read_new()
    kernel.all[5], kernel.all[6] = kernel.all[6], kernel.all[5]
    kernel.trim(2)
    with pytest.raises(KernelLogError, match="does not go on as it was read"):
        log.read_new()


def test_a_copy_that_was_cut_off(kernel: TrimmedLog) -> None:
    log = kernel.open()
    log.read_new()
    log.close()
    copy = kernel.directory / "copy/boot"
    copy.write_bytes(copy.read_bytes()[:-7])
    kernel.trim(4)
    assert kernel.open().read_new() == kernel.all
    assert copy.read_bytes() == b"".join(format_binary(entry) for entry in kernel.all)


def test_a_full_disk_loses_nothing(kernel: TrimmedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log = kernel.open()
    log.read_new()
    kernel.append(b"/bin/new")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(LogCopyError, match="No space"):
            log.read_new()
    assert log.read_new() == kernel.all[-1:]
    log.close()
    kernel.trim(8)
    assert kernel.open().read_new() == kernel.all


@pytest.mark.parametrize(
    ("mode", "release", "trimmable"),
    [
        (0o440, "6.12.117+deb13-cloud-amd64", False),
        (0o440, "7.1.9", False),
        (0o440, "7.2.12-cloud-amd64", True),
        (0o440, "10.0", True),
        (0o660, "6.1.0-56-cloud-amd64", True),
        (0o440, "strange", False),
    ],
)
def test_which_kernels_let_root_remove_lines(mode: int, release: str, trimmable: bool) -> None:
    assert kernel_log._may_be_trimmed(mode, release) is trimmable


def test_a_log_that_cannot_be_trimmed_is_held_and_not_copied(
    kernel: TrimmedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_log, "_TRIMMING", (999, 0))
    (kernel.directory / "ascii_runtime_measurements").chmod(0o440)
    log = kernel.open()
    assert not log.trimmable
    assert log.read_new() == kernel.all
    assert not (kernel.directory / "copy").exists()


class Trimming(RuleBasedStateMachine):
    """Whatever comes, goes and restarts: what was read is what was logged, once and in order."""

    @initialize(directory=st.builds(lambda: None))
    def begin(self, directory: None) -> None:
        import tempfile

        self.temporary = tempfile.TemporaryDirectory()
        self.kernel = TrimmedLog(Path(self.temporary.name))
        self.log = self.kernel.open()
        self.read: list[Entry] = []
        self.number = 0
        self.look()

    def look(self) -> None:
        self.read += self.log.read_new()

    @rule(count=st.integers(1, 4), kind=st.sampled_from(["plain", "newline", "evm", "violation"]))
    def grow(self, count: int, kind: str) -> None:
        for _ in range(count):
            self.number += 1
            path = b"/bin/%d" % self.number + (b"\nx" if kind == "newline" else b"")
            template = b"evm-sig" if kind == "evm" else b"ima-ng"
            self.kernel.append(path, template, violation=kind == "violation")

    @rule()
    def read_on(self) -> None:
        self.look()

    @rule(part=st.floats(0, 1))
    def trim_what_was_read(self, part: float) -> None:
        self.kernel.trim(int(part * (len(self.read) - self.kernel.gone)))

    @rule()
    def restart(self) -> None:
        self.log.close()
        self.log = self.kernel.open()
        self.read = []
        self.look()

    @invariant()
    def nothing_is_lost_or_twice(self) -> None:
        if hasattr(self, "read"):
            assert self.read == self.kernel.all[: len(self.read)]
            assert self.log.count == len(self.read)

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.look()
            assert self.read == self.kernel.all
            assert self.log.replay(10).value == self.kernel.replay()
            self.log.close()
            self.temporary.cleanup()


TestTrimming = Trimming.TestCase
TestTrimming.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
