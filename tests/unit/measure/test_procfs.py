import mmap
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.measure.procfs import (
    ProcfsError,
    flag_value,
    parse_maps,
    parse_unix_listeners,
    without_deleted,
)

paths = st.binary(min_size=1, max_size=200).map(
    lambda raw: b"/" + raw.replace(b"\0", b"_").replace(rb"\012", b"_")
)
addresses = st.integers(0, 2**47)


def line_of(
    start: int, end: int, executable: bool, device: str, inode: int, path: bytes, deleted: bool
) -> bytes:
    """A line as show_map_vma writes it: padded to column 73, newlines in the path escaped."""
    head = f"{start:08x}-{end:08x} r-{'-x'[executable]}p 00000000 {device} {inode} "
    shown = path.replace(b"\n", rb"\012") + (b" (deleted)" if deleted else b"")
    return head.ljust(73).encode() + shown + b"\n"


@given(
    st.lists(
        st.tuples(addresses, addresses, st.booleans(), st.integers(1, 2**63), paths, st.booleans()),
        max_size=20,
    )
)
def test_every_executable_file_is_found_and_no_other(
    lines: list[tuple[int, int, bool, int, bytes, bool]],
) -> None:
    text = b"".join(
        line_of(start, end, executable, "fd:00", inode, path, deleted)
        for start, end, executable, inode, path, deleted in lines
    )
    text += b"7ffc0-7ffc1 r-xp 00000000 00:00 0      [vdso]\n"
    text += b"7ffd0-7ffd1 r-xp 00000000 00:00 0 \n"
    found = parse_maps(text)
    expected = {
        (inode, without_deleted(path)) for _, _, executable, inode, path, _ in lines if executable
    }
    assert {(m.inode, without_deleted(m.path)) for m in found} == expected
    for mapping in found:
        start, end = mapping.name.split("-")
        assert (int(start, 16), int(end, 16)) == (mapping.start, mapping.end)
        assert f"{mapping.start:x}" == start


def test_a_newline_and_a_removed_file() -> None:
    text = line_of(0x400000, 0x401000, True, "08:01", 7, b"/a\nb c", True)
    (mapping,) = parse_maps(text)
    assert mapping.path == b"/a\nb c"
    assert mapping.name == "400000-401000"


@given(st.binary(max_size=300))
def test_anything_else_is_refused(text: bytes) -> None:
    try:
        parse_maps(text)
    except ProcfsError:
        return


@pytest.mark.parametrize("text", [b"\n", b"x\n", b"0-1 r-xp 0 0:0\n", b"0-1 r-xp 0 0:0 z /a\n"])
def test_lines_that_are_none(text: bytes) -> None:
    with pytest.raises(ProcfsError):
        parse_maps(text)


def test_maps_of_this_process_with_a_name_that_is_hard_to_read(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/new\nline \xff (deleted) x"
    Path(os.fsdecode(name)).write_bytes(b"\0" * mmap.PAGESIZE)
    with Path(os.fsdecode(name)).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    found = {mapping.path for mapping in parse_maps(Path("/proc/self/maps").read_bytes())}
    assert name in found
    Path(os.fsdecode(name)).unlink()
    found = {mapping.path for mapping in parse_maps(Path("/proc/self/maps").read_bytes())}
    assert name in found
    mapped.close()


def test_listening_sockets_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        before = parse_unix_listeners(Path("/proc/net/unix").read_bytes(), os.fsencode(path))
        assert before == set()
        listener.listen()
        client.connect(str(path))
        accepted, _ = listener.accept()
        found = parse_unix_listeners(Path("/proc/net/unix").read_bytes(), os.fsencode(path))
        assert found == {os.fstat(listener.fileno()).st_ino}
        accepted.close()


@given(st.binary(max_size=400), st.binary(max_size=20))
def test_sockets_from_anything(text: bytes, path: bytes) -> None:
    assert all(number >= 0 for number in parse_unix_listeners(text, path)) or b"-" in text


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["shim", "-address", "/a"], "/a"),
        (["shim", "--address", "/a"], "/a"),
        (["shim", "-address=/a=b"], "/a=b"),
        (["shim", "--address="], ""),
        (["shim", "-address"], None),
        (["shim", "-addresses", "/a", "address", "/b"], None),
        ([], None),
    ],
)
def test_flags(argv: list[str], value: str | None) -> None:
    assert flag_value(argv, "address") == value
