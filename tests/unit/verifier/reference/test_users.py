"""Kind: a user that the image names, where engines write a number."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base import limits
from cima_runc.verifier.reference.file import (
    ImageReference,
    ReferenceFileError,
    format_reference,
    parse_reference,
)
from cima_runc.verifier.reference.image import read_image
from cima_runc.verifier.reference.users import NameFiles, _numbered
from tests.support.oci import Layout, archive, directory, member

PASSWD = (
    b"# users\n\nroot:x:0:0::/:/bin/sh\napp:x:33:34:,,,:/:/x\napp:x:7:7\nodd:x:-5:1\nb\xff:x:8:8"
)
GROUP = b"staff:x:50:app,root\r\nroot:x:0:\n"


def number(path: Path, user: str, *layers: bytes) -> str | None:
    layout = Layout()
    layout.image(*layers, config={"User": user})
    found = read_image(layout.write_directory(path)).reference.config
    assert found.user == user
    return found.user_number


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("app", "33"),
        ("app:staff", "33:50"),
        ("app:5", "33:5"),
        ("12:staff", "12:50"),
        ("root", "0"),
        ("root:root", "0:0"),
        ("app:", "33:"),
        (":staff", ":50"),
        *((user, None) for user in ("", ":", "12", "12:", "12:5", "nobody", "app:nobody")),
        *((user, None) for user in ("odd", "#", "# users", "app:x", "APP")),
    ],
)
def test_users_by_name(tmp_path: Path, user: str, expected: str | None) -> None:
    etc = archive(directory("etc/"), member("etc/passwd", PASSWD), member("./etc/group", GROUP))
    assert number(tmp_path / "x", user, etc) == expected


def test_the_files_that_the_container_will_see(tmp_path: Path) -> None:
    first = archive(member("etc/passwd", b"app:x:1:1\n"), member("etc/group", GROUP))
    other = archive(member("etc/passwd", b"app:x:2:2\n"))
    again = archive(member("/etc/passwd", b"app:x:3:3\n"))
    gone = archive(member("etc/.wh.passwd"))
    assert number(tmp_path / "a", "app", first, other) == "2"
    assert number(tmp_path / "b", "app", first, other, again) == "3"
    assert number(tmp_path / "c", "app", first, gone) is None
    large = archive(member("etc/passwd", b"app:x:1:1\n" + b"#" * limits.NAMES_FILE))
    assert number(tmp_path / "d", "app", large) is None
    assert number(tmp_path / "e", "app") is None


def groups(path: Path, *layers: bytes) -> dict[str, tuple[int, ...]] | None:
    layout = Layout()
    layout.image(*layers, config={})
    return read_image(layout.write_directory(path)).reference.config.user_groups


def test_groups_that_engines_give_a_user(tmp_path: Path) -> None:
    etc = archive(directory("etc/"), member("etc/passwd", PASSWD), member("./etc/group", GROUP))
    assert groups(tmp_path / "a", etc) == {"0": (0, 50), "33": (34, 50), "7": (7, 50), "8": (8,)}
    alone = archive(member("etc/passwd", PASSWD))
    assert groups(tmp_path / "b", alone) == {"0": (0,), "33": (34,), "7": (7,), "8": (8,)}
    assert groups(tmp_path / "c", archive(member("etc/group", GROUP))) == {}
    assert groups(tmp_path / "d", archive(member("etc/passwd"), member("etc/group"))) == {}


def texts(path: Path, *layers: bytes) -> dict[str, bytes]:
    layout = Layout()
    layout.image(*layers, config={})
    written = format_reference(read_image(layout.write_directory(path)).reference)
    found = parse_reference(written)
    assert isinstance(found, ImageReference) and format_reference(found) == written
    return {k: base64.b64decode(v.text) for k, v in found.files.items() if v.text is not None}


def test_texts_of_both_files_are_kept(tmp_path: Path) -> None:
    """As the container will see them, and of no other file."""
    first = archive(member("etc/passwd", b"app:x:1:1\n"), member("etc/shadow", b"app:x:1:1\n"))
    other = archive(member("etc/passwd", PASSWD), member("./etc/group", b""))
    assert texts(tmp_path / "a", first, other) == {"/etc/passwd": PASSWD, "/etc/group": b""}
    assert texts(tmp_path / "b", first, archive(member("etc/.wh.passwd"))) == {}
    for number, case in enumerate(UNREAD):
        found = texts(tmp_path / f"unread-{number}", archive(*UNREAD[case]))
        assert "/etc/group" not in found and "/etc/passwd" not in found, case


def test_a_text_that_is_none(tmp_path: Path) -> None:
    layout = Layout()
    layout.image(archive(member("etc/group", b"x")), config={})
    written = format_reference(read_image(layout.write_directory(tmp_path)).reference)
    assert b'"text": "eA=="' in written
    with pytest.raises(ReferenceFileError, match="text"):
        parse_reference(written.replace(b'"eA=="', b'"eA="'))


UNREAD = {
    "a link to nothing": [
        member("etc/passwd", kind=b"2", link="/run/passwd"),
        member("etc/group", kind=b"2", link="/run/group"),
    ],
    "too large": [member("etc/passwd", PASSWD + b"#" * limits.NAMES_FILE)],
    "too large behind a link": [
        member("etc/passwd", kind=b"2", link="../p"),
        member("p", PASSWD + b"#" * limits.NAMES_FILE),
    ],
    "groups too large": [member("etc/group", GROUP + b"#" * limits.NAMES_FILE)],
    "a directory": [directory("etc/passwd")],
}


@pytest.mark.parametrize("case", UNREAD)
def test_groups_of_files_that_were_not_read_are_not_known(tmp_path: Path, case: str) -> None:
    assert groups(tmp_path / "x", archive(*UNREAD[case])) is None


ELSEWHERE = {
    "links, as in what Nix builds": [
        member("etc/passwd", kind=b"2", link="/nix/store/x/etc/passwd"),
        member("etc/group", kind=b"2", link="../nix/store/x/etc/group"),
        member("nix/store/x/etc/passwd", kind=b"2", link="/nix/store/y/users"),
        member("nix/store/x/etc/group", GROUP),
        member("nix/store/y/users", PASSWD),
    ],
    "behind a link": [
        member("etc", kind=b"2", link="usr/etc"),
        member("usr/etc/passwd", PASSWD),
        member("usr/etc/group", GROUP),
    ],
    "names of other files": [
        member("usr/lib/passwd", PASSWD),
        member("etc/passwd", kind=b"1", link="usr/lib/passwd"),
        member("usr/lib/group", GROUP),
        member("etc/group", kind=b"1", link="usr/lib/group"),
    ],
    "names that tar has written otherwise": [
        member("/./etc//passwd", PASSWD),
        member("././etc/group", GROUP),
    ],
}


@pytest.mark.parametrize("case", ELSEWHERE)
@pytest.mark.parametrize("apart", [False, True])
def test_files_that_lie_elsewhere(tmp_path: Path, case: str, apart: bool) -> None:
    """Engines follow the image's links, whichever layer they and the files are in."""
    links = [*ELSEWHERE[case], member("etc/more", b"0" * len(PASSWD))]
    layers = [archive(*links), archive(member("tmp/x"))]
    if apart and "links" in case:
        layers = [archive(*links[3:]), archive(*links[:3])]
    assert number(tmp_path / "x", "app:staff", *layers) == "33:50"
    assert groups(tmp_path / "y", *layers) == {
        "0": (0, 50),
        "33": (34, 50),
        "7": (7, 50),
        "8": (8,),
    }
    layout = Layout()
    layout.image(*layers, config={})
    assert "/x" not in read_image(layout.write_directory(tmp_path / "z")).reference.config.homes
    assert "/" in read_image(tmp_path / "z").reference.config.homes


def test_homes_of_the_images_users(tmp_path: Path) -> None:
    """Whether the image has the directory or not: engines set HOME to it."""
    root, known = b"root:x:0:0::/root:/bin/sh\r\n", b"a:x:1:1::/home/a:\n"
    lines = root + known + b"b:x:2:2::rel:\nc:x:3:3:\nd:x:4:4::/\xff:\n"
    etc = archive(directory("etc/"), member("etc/passwd", lines))
    layout = Layout()
    layout.image(etc, config={})
    found = read_image(layout.write_directory(tmp_path / "x")).reference.config
    assert found.homes == ("/", "/home/a", "/root")


@given(st.text(), st.binary())
def test_anything(name: str, text: bytes) -> None:
    found = _numbered(name, text)
    assert found is None or found.isdecimal()
    assert NameFiles().number(name, {}) in {None, name} or name.isascii()
