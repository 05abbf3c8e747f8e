"""Logs of every template and hash that kernels write, and of those that are of no use."""

import contextlib
import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base.errors import CimaError
from cima_runc.ima.entry import Entry, format_binary, parse_ascii, parse_binary
from cima_runc.ima.kernel_log import KernelLog, KernelLogError, TrimmedUnseenError, usable
from cima_runc.ima.template import pack_fields
from tests.unit.ima.recorded import RECORDED

PATHS = (b"boot_aggregate", b"/usr/bin/python3.11", b"/usr/bin/with\nnewline", b"/usr/bin/a|b")
EXTRA: dict[bytes, list[bytes]] = {
    b"ima-ng": [],
    b"ima-sig": [b"\x03\x02signature"],
    b"ima-modsig": [b"sig", b"sha256:\0" + bytes(32), b"modsig"],
    b"evm-sig": [b"evm", b"names", b"lens", b"values", b"uid.", b"gid.", b"mo"],
    b"d-ng|n-ng": [],
    b"d-ng|n-ng|sig|imode": [b"", b"\1\2"],
    b"n-ng|d-ng": [],
}


def entry_of(template: bytes, path: bytes, algorithm: str = "sha256", kind: bytes = b"") -> Entry:
    digest = hashlib.new(algorithm, path).digest()
    fields = [kind + algorithm.encode() + b":\0" + digest, path + b"\0"]
    if template.startswith(b"n-ng"):
        fields.reverse()
    data = pack_fields([*fields, *EXTRA.get(template, [])])
    return Entry(10, hashlib.sha1(data).digest(), template, data)


def log_of(directory: Path, entries: list[Entry]) -> KernelLog:
    """The log of these entries; what the ascii one shows of further fields is not read."""
    lines = []
    for entry in entries:
        algorithm, digest = entry.digest or ("sha1", bytes(20))
        hexadecimal = entry.template_hash.hex().encode()
        shown = b"%s:%s" % (algorithm.encode(), digest.hex().encode())
        line = b"10 %s %s %s %s" % (hexadecimal, entry.template, shown, entry.name or b"")
        lines.append(line + b" 00" * len(EXTRA.get(entry.template, [])) + b"\n")
    (directory / "ascii_runtime_measurements").write_bytes(b"".join(lines))
    binary = b"".join(format_binary(entry) for entry in entries)
    (directory / "binary_runtime_measurements").write_bytes(binary)
    return KernelLog.open(directory)


@pytest.mark.parametrize("template", EXTRA, ids=bytes.decode)
def test_each_template_is_read(template: bytes, tmp_path: Path) -> None:
    entries = [entry_of(template, path) for path in PATHS]
    log = log_of(tmp_path, entries)
    assert log.read_new() == entries
    assert [entry.name for entry in entries] == list(PATHS)
    assert [entry.file for entry in entries] == [
        (hashlib.sha256(path).digest(), path) for path in PATHS
    ]
    usable(entries)
    assert log.line_of(hashlib.sha256(PATHS[1]).digest(), PATHS[1], 10) == 1


@pytest.mark.parametrize("template", [b"ima-ngv2", b"ima-sigv2"])
def test_templates_that_say_whose_digest_it_is(template: bytes, tmp_path: Path) -> None:
    """fs-verity's digest is of a tree of hashes: the file's SHA-256 it is not."""
    extra = [b""] if template == b"ima-sigv2" else []

    def one(path: bytes, kind: bytes) -> Entry:
        digest = kind + b"sha256:\0" + hashlib.sha256(path).digest()
        data = pack_fields([digest, path + b"\0", *extra])
        return Entry(10, hashlib.sha1(data).digest(), template, data)

    ima, verity = one(b"/bin/a", b"ima:"), one(b"/bin/a", b"verity:")
    assert ima.file == (hashlib.sha256(b"/bin/a").digest(), b"/bin/a")
    assert (verity.file, verity.name) == (None, b"/bin/a")
    line = b"10 %s %s ima:sha256:%s /bin/a" % (
        ima.template_hash.hex().encode(),
        template,
        hashlib.sha256(b"/bin/a").hexdigest().encode(),
    )
    assert parse_ascii(line + b" " * len(extra)) == ima


@pytest.mark.parametrize("algorithm", ["sha1", "sha384", "sha512", "sm3"])
def test_another_hash_is_named_with_the_argument_that_mends_it(
    algorithm: str, tmp_path: Path
) -> None:
    if algorithm not in hashlib.algorithms_available:
        pytest.skip("this machine's OpenSSL has none")
    entries = [entry_of(b"ima-ng", path, algorithm) for path in PATHS]
    log = log_of(tmp_path, entries)
    found = log.read_new()
    assert found == entries
    with pytest.raises(KernelLogError, match=f"with {algorithm}, not") as caught:
        usable(found)
    assert "ima_hash=sha256" in caught.value.hint


def test_a_boot_aggregate_of_another_bank_is_no_trouble(tmp_path: Path) -> None:
    """A TPM with a SHA-384 bank alone: the files' hashes are what they are."""
    entries = [entry_of(b"ima-ng", PATHS[0], "sha384"), entry_of(b"ima-ng", PATHS[1])]
    usable(log_of(tmp_path, entries).read_new())


@pytest.mark.parametrize("name", ["sha1", "sha384"])
def test_recorded_logs_of_other_hashes(name: str, tmp_path: Path) -> None:
    recorded = Path(__file__).parents[4] / "shared/cases/ima-log-other-hash" / name
    if not recorded.exists():
        pytest.skip("no ../shared")
    (tmp_path / "ascii_runtime_measurements").write_bytes(recorded.read_bytes())
    (tmp_path / "binary_runtime_measurements").touch()
    entries = KernelLog.open(tmp_path).read_new()
    assert [entry.name for entry in entries] == [b"boot_aggregate", b"/usr/bin/python3.11"]
    with pytest.raises(KernelLogError, match=f"hashes files with {name}"):
        usable(entries)


@pytest.mark.parametrize(
    ("template", "fields", "words"),
    [
        (b"d|n-ng", [bytes(20)], "ima_template=ima-sig"),
        (b"n-ng", [], "ima_template=ima-sig"),
        (b"ima", None, "ima_template=ima-sig"),
    ],
)
def test_templates_of_no_use(
    template: bytes, fields: list[bytes] | None, words: str, tmp_path: Path
) -> None:
    entries = []
    for path in PATHS[:2]:
        if fields is None:
            data = bytes(20) + path.ljust(256, b"\0")
        else:
            data = pack_fields([*fields, path + b"\0"])
        entries.append(Entry(10, hashlib.sha1(data).digest(), template, data))
    found = log_of(tmp_path, entries).read_new()
    assert [entry.name for entry in found] == list(PATHS[:2])
    with pytest.raises(KernelLogError, match="template") as caught:
        usable(found)
    assert words in caught.value.hint


def test_a_template_without_names(tmp_path: Path) -> None:
    data = pack_fields([b"sha256:\0" + bytes(32)])
    entry = Entry(10, hashlib.sha1(data).digest(), b"d-ng", data)
    with pytest.raises(KernelLogError, match="has no names"):
        log_of(tmp_path, [entry]).read_new()
    unknown = Entry(10, hashlib.sha1(data).digest(), b"mine", data)
    with pytest.raises(KernelLogError, match="mine is not known"):
        log_of(tmp_path, [unknown]).read_new()


def test_recorded_logs_are_of_use() -> None:
    for log in RECORDED:
        usable(KernelLog(log.directory / "ascii", log.directory / "binary").read_new())


def test_a_log_that_begins_in_its_midst(tmp_path: Path) -> None:
    log = log_of(tmp_path, [entry_of(b"ima-ng", PATHS[1])])
    with pytest.raises(
        TrimmedUnseenError, match="boot_aggregate: lines were removed before"
    ) as caught:
        log.read_new()
    assert "reboot" in caught.value.hint


templates = st.sampled_from([*EXTRA, b"ima"])


@given(templates, st.binary(min_size=1, max_size=200).filter(lambda path: b"\0" not in path))
def test_the_binary_form_is_read_back(template: bytes, path: bytes) -> None:
    if template == b"ima":
        data = bytes(20) + path.ljust(256, b"\0")
        entry = Entry(10, hashlib.sha1(data).digest(), template, data)
    else:
        entry = entry_of(template, path)
    raw = format_binary(entry)
    assert parse_binary(raw, 0) == (entry, len(raw))
    assert parse_binary(raw[:-1], 0) is None


@given(templates, st.binary(max_size=60))
def test_any_data_is_an_entry_or_an_error(template: bytes, data: bytes) -> None:
    raw = struct.pack("<I20sI", 10, hashlib.sha1(data).digest(), len(template)) + template
    with contextlib.suppress(CimaError):
        parse_binary(raw + struct.pack("<I", len(data)) + data, 0)


def test_the_two_forms_must_agree(tmp_path: Path) -> None:
    """Where the ascii line sends us to the binary log, it must be the same entry."""
    entries = [entry_of(b"evm-sig", path) for path in PATHS]
    log_of(tmp_path, entries)
    binary = b"".join(format_binary(entry) for entry in [entries[0], *entries[2:]])
    (tmp_path / "binary_runtime_measurements").write_bytes(binary)
    with pytest.raises(KernelLogError, match="is another than"):
        KernelLog.open(tmp_path).read_new()
