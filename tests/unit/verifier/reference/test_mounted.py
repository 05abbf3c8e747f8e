"""Layers unpacked into a mount; the rules are checked against the kernel in integration."""

import io

from cima_runc.measure.mtree import Entry, format_manifest, parse_manifest, whiteout
from cima_runc.measure.xattrs import ACL_DEFAULT, OPAQUE
from cima_runc.verifier.reference.flatten import Flattened
from cima_runc.verifier.reference.layer import read_layer
from cima_runc.verifier.reference.mounted import mounted_entries
from cima_runc.verifier.reference.tar import read_tar
from tests.support.oci import archive, directory, member

ACL = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000500ffffffff")


def mounted(*layers: list[bytes]) -> list[Entry] | None:
    """Return the last of an image's layers."""
    below, found = Flattened(), None
    for members in layers:
        tree = read_layer(read_tar(io.BytesIO(archive(*members))))
        found = mounted_entries(tree, below)
        if found is None:
            return None
        assert parse_manifest(format_manifest(found)) == found
        below.add(found)
    return found


BELOW = [
    directory("d", 0o711, uid=5, xattrs={ACL_DEFAULT: ACL}),
    directory("d/e", 0o700),
    member("d/f"),
    member("link", kind=b"2", link="d"),
    member(".wh.nothing"),
]


def test_the_bottom_has_nothing_to_remove() -> None:
    assert [entry.path for entry in mounted(BELOW) or ()] == [b".", b"d", b"d/e", b"d/f", b"link"]


def test_only_what_is_there_is_removed() -> None:
    assert mounted(BELOW, [member("d/.wh.f"), member("d/.wh.g"), member(".wh.link")]) == [
        Entry(b".", "dir"),
        Entry(b"d", "dir", 0o711, 5, 0, xattrs=((ACL_DEFAULT, ACL),)),
        whiteout(b"d/f"),
        whiteout(b"link"),
    ]


def test_what_an_opaque_directory_hides_is_removed_one_by_one() -> None:
    upper = [directory("d", 0o700), member("d/.wh..wh..opq"), directory("d/e", 0o755)]
    assert mounted(BELOW, upper) == [
        Entry(b".", "dir"),
        Entry(b"d", "dir", 0o700, 0, 0, xattrs=((ACL_DEFAULT, ACL),)),
        Entry(b"d/e", "dir", 0o755, 0, 0, xattrs=(OPAQUE,)),
        whiteout(b"d/f"),
    ]


def test_a_directory_in_the_place_of_something_else_is_opaque() -> None:
    assert mounted(BELOW, [directory("link"), directory("link/x")]) == [
        Entry(b".", "dir"),
        Entry(b"link", "dir", 0o755, 0, 0, xattrs=(OPAQUE,)),
        Entry(b"link/x", "dir", 0o755, 0, 0),
    ]


def test_devices_are_left_out() -> None:
    upper = [member("null", kind=b"3", device=(1, 3)), member("x")]
    assert [entry.path for entry in mounted(BELOW, upper) or ()] == [b".", b"x"]


def test_what_goes_through_a_link_of_a_layer_below_is_not_known() -> None:
    """It would be where the link leads."""
    assert mounted(BELOW, [member("link/x")]) is None
    assert mounted(BELOW, [member("d/f/x")]) is None
