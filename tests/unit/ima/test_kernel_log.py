import hashlib
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cima_runc.ima.entry import Entry, parse_binary
from cima_runc.ima.kernel_log import KernelLog, KernelLogError
from cima_runc.ima.template import pack_fields
from tests.unit.ima.recorded import RECORDED, RecordedLog

every_kernel = pytest.mark.parametrize("log", RECORDED, ids=lambda log: log.kernel)


def binary_entries(raw: bytes) -> list[Entry]:
    entries, offset = [], 0
    while (found := parse_binary(raw, offset)) is not None:
        entry, offset = found
        entries.append(entry)
    assert offset == len(raw)
    return entries


def open_log(log: RecordedLog) -> KernelLog:
    return KernelLog(log.directory / "ascii", log.directory / "binary")


def test_there_are_recordings_of_both_kernels() -> None:
    assert [log.kernel[:10] for log in RECORDED] == ["linux-6.1.", "linux-6.12"]


@every_kernel
def test_ascii_and_binary_log_are_the_same_entries(log: RecordedLog) -> None:
    assert open_log(log).read_new() == binary_entries(log.binary)


@every_kernel
def test_the_replay_agrees_with_the_tpm(log: RecordedLog) -> None:
    kernel_log = open_log(log)
    kernel_log.read_new()
    for pcr in (10, 11):
        assert kernel_log.explains(pcr, log.pcrs["sha256"][pcr])
    assert not kernel_log.explains(10, bytes(31) + b"\1")


@every_kernel
def test_the_sha1_bank_agrees_too(log: RecordedLog) -> None:
    value, values = bytes(20), [bytes(20)]
    for entry in binary_entries(log.binary):
        if entry.pcr == 10:
            value = hashlib.sha1(value + entry.extends("sha1")).digest()
            values.append(value)
    assert log.pcrs["sha1"][10] in values


@every_kernel
def test_names_that_break_lines_are_found_whole(log: RecordedLog) -> None:
    kernel_log = open_log(log)
    names = [entry.file[1] for entry in kernel_log.read_new() if entry.file]
    forged = b"a\n11_da39a3ee5e6b4b0d3255bfef95601890afd80709_ima-sig_sha256:" + b"0" * 64
    assert b"/root/with\nnewline" in names
    assert b"/root/caf\xe9" in names
    assert b"/root/" + forged + b"_/bin/evil" in names
    assert not any(name == b"/bin/evil" for name in names)


@every_kernel
def test_a_line_is_found_by_digest_and_path(log: RecordedLog) -> None:
    kernel_log = open_log(log)
    entries = kernel_log.read_new()
    digest, path = next(e.file for e in entries if e.file and e.file[1] == b"/root/with_space")
    index = kernel_log.line_of(digest, b"/root/with space")
    assert index is not None and entries[index].file == (digest, path)
    assert kernel_log.line_of(digest, b"/root/another") is None
    assert kernel_log.line_of(bytes(32), path) is None


@every_kernel
def test_there_is_a_violation_that_extends_ones(log: RecordedLog) -> None:
    violations = [entry for entry in open_log(log).read_new() if entry.violation]
    assert [entry.extends("sha256") for entry in violations] == [b"\xff" * 32]


@every_kernel
def test_reading_goes_on_where_it_ended(log: RecordedLog, tmp_path: Path) -> None:
    ascii_file, binary_file = tmp_path / "ascii", tmp_path / "binary"
    binary_file.write_bytes(log.binary)
    cut = log.ascii.index(b"\n", 3000) + 1
    ascii_file.write_bytes(log.ascii[:cut])
    kernel_log = KernelLog(ascii_file, binary_file)
    first = kernel_log.read_new()
    assert kernel_log.read_new() == []
    with ascii_file.open("ab") as file:
        file.write(log.ascii[cut:])
    assert first + kernel_log.read_new() == binary_entries(log.binary)


@every_kernel
def test_a_flipped_bit_is_found(log: RecordedLog, tmp_path: Path) -> None:
    at = log.ascii.index(b"sha256:", 2000) + 10
    flipped = log.ascii[:at] + bytes([log.ascii[at] ^ 1]) + log.ascii[at + 1 :]
    (tmp_path / "ascii").write_bytes(flipped)
    at = log.binary.index(b"sha256:\0", 2000) + 10
    (tmp_path / "binary").write_bytes(
        log.binary[:at] + bytes([log.binary[at] ^ 1]) + log.binary[at + 1 :]
    )
    with pytest.raises(Exception, match="does not have the hash"):
        KernelLog(tmp_path / "ascii", tmp_path / "binary").read_new()


def test_a_log_without_its_beginning_is_refused(tmp_path: Path) -> None:
    log = RECORDED[0]
    (tmp_path / "ascii").write_bytes(log.ascii[log.ascii.index(b"\n") + 1 :])
    (tmp_path / "binary").write_bytes(log.binary)
    with pytest.raises(KernelLogError, match="boot_aggregate"):
        KernelLog(tmp_path / "ascii", tmp_path / "binary").read_new()


names = st.binary(min_size=1, max_size=40).map(
    lambda raw: raw.replace(b"\0", b"").replace(b" ", b"_") or b"x"
)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"ima-ng", b"ima-sig", b"ima-ngv2"]), names, st.booleans()),
        max_size=8,
    )
)
@example([(b"ima-ng", b"/a\n/b", True), (b"ima-ng", b"/c", False)])
@example([(b"ima-ng", b"/a\n10 " + b"0" * 40 + b" ima-ng sha256:" + b"0" * 64 + b" /b", True)])
def test_whatever_a_file_is_called_an_entry_is_read_once(
    files: list[tuple[bytes, bytes, bool]],
) -> None:
    ascii_log, binary_log, expected = b"", b"", []
    for template, name, violation in [(b"ima-ng", b"boot_aggregate", False), *files]:
        value = bytes(32) if violation else hashlib.sha256(name).digest()
        algorithm = b"ima:sha256" if template == b"ima-ngv2" else b"sha256"
        fields = [algorithm + b":\0" + value, name + b"\0"]
        fields += [b""] if template == b"ima-sig" else []
        data = pack_fields(fields)
        digest = bytes(20) if violation else hashlib.sha1(data).digest()
        shown = b"%s:%s %s" % (algorithm, value.hex().encode(), name)
        shown += b" " if template == b"ima-sig" else b""
        ascii_log += b"10 %s %s %s\n" % (digest.hex().encode(), template, shown)
        binary_log += struct.pack("<I20sI", 10, digest, len(template)) + template
        binary_log += struct.pack("<I", len(data)) + data
        expected.append((violation, name))
    with tempfile.TemporaryDirectory() as directory:
        for file, raw in (("ascii", ascii_log), ("binary", binary_log)):
            (Path(directory) / file).write_bytes(raw)
        log = KernelLog(Path(directory) / "ascii", Path(directory) / "binary")
        found = [(entry.violation, (entry.file or (b"", b""))[1]) for entry in log.read_new()]
        log.close()
    assert found == expected
