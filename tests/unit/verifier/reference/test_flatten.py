import pytest

from cima_runc.measure.mtree import ROOT, Entry, whiteout
from cima_runc.measure.xattrs import OPAQUE
from cima_runc.verifier.reference.flatten import Flattened


def directory(path: bytes, mode: int = 0o755, opaque: bool = False) -> Entry:
    return Entry(path, "dir", mode, 0, 0, xattrs=(OPAQUE,) if opaque else ())


def fifo(path: bytes, mode: int = 0) -> Entry:
    return Entry(path, "fifo", mode, 0, 0)


LOWER = [
    ROOT,
    directory(b"d", 0o700),
    fifo(b"d/a"),
    fifo(b"d/b"),
    directory(b"d/c"),
    fifo(b"d/c/x"),
]
ALL = {b"d": (0o700, 0), b"d/a": (0, 0), b"d/b": (0, 0), b"d/c": (0o755, 0), b"d/c/x": (0, 0)}


def flat(*layers: list[Entry]) -> dict[bytes, tuple[int | None, int]]:
    found = Flattened()
    for layer in layers:
        found.add(layer)
    return {entry.path: (entry.mode, layer) for entry, layer in found}


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        ([ROOT], ALL),
        ([ROOT, whiteout(b"d/x")], ALL),
        (
            [ROOT, directory(b"d"), whiteout(b"d/a"), fifo(b"d/b", 7), whiteout(b"d/c")],
            {b"d": (0o755, 1), b"d/b": (7, 1)},
        ),
        ([ROOT, whiteout(b"d")], {}),
        ([ROOT, directory(b"d", opaque=True), fifo(b"d/z")], {b"d": (0o755, 1), b"d/z": (0, 1)}),
        ([ROOT, fifo(b"d")], {b"d": (0, 1)}),
        ([Entry(b".", "dir", xattrs=(OPAQUE,)), fifo(b"z")], {b"z": (0, 1)}),
        (
            [ROOT, directory(b"d"), fifo(b"d/c")],
            {b"d": (0o755, 1), b"d/a": (0, 0), b"d/b": (0, 0), b"d/c": (0, 1)},
        ),
    ],
)
def test_as_overlayfs_does(upper: list[Entry], expected: dict) -> None:
    assert flat(LOWER, upper) == expected


def test_a_directory_over_a_file_has_nothing_of_lower_layers() -> None:
    assert flat(LOWER, [ROOT, fifo(b"d")], [ROOT, directory(b"d")]) == {b"d": (0o755, 2)}
