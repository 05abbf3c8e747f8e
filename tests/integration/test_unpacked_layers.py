"""A layer's manifest from its archive and from where others unpacked it are the same bytes.

umoci unpacks as the engines do, bsdtar in its own way and with its own mtree writer: two programs
that share nothing with this project.
"""

import io
import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from cima_runc.measure.idmap import IDENTITY
from cima_runc.measure.layer import open_layer, scan
from cima_runc.measure.mtree import Entry, escape, format_manifest, format_mode, parse_manifest
from cima_runc.measure.overlay import TREE
from cima_runc.verifier.reference.flatten import Flattened
from cima_runc.verifier.reference.image import read_image
from cima_runc.verifier.reference.layer import entries, read_layer
from cima_runc.verifier.reference.tar import read_tar
from tests.support.example_layers import BOTTOM, CAPABILITY, LINKED
from tests.support.oci import Layout, archive, directory, member

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to unpack owners and devices"),
]


def of_archive(data: bytes) -> list[bytes]:
    return lines(format_manifest(entries(read_layer(read_tar(io.BytesIO(data))))))


def lines(manifest: bytes) -> list[bytes]:
    return manifest.splitlines(keepends=True)


def of_directory(path: Path) -> list[bytes]:
    pieces: list[bytes] = []
    with open_layer(path) as root:
        scan(root, TREE, IDENTITY, pieces.append)
    return lines(b"".join(pieces))


def umoci(tmp_path: Path, *layers: bytes) -> Path:
    layout = Layout()
    layout.image(*layers)
    layout.write_directory(tmp_path / "oci")
    target = tmp_path / "unpacked"
    image = f"{tmp_path}/oci:latest"
    subprocess.run(["umoci", "raw", "unpack", "--image", image, target], check=True, timeout=60)
    return target


@pytest.mark.parametrize("layer", [BOTTOM, LINKED, archive()])
def test_umoci(tmp_path: Path, layer: bytes) -> None:
    assert of_directory(umoci(tmp_path, layer)) == of_archive(layer)


def test_a_layer_that_umoci_writes(tmp_path: Path) -> None:
    """umoci calls the root /, and packs what it unpacked."""
    tree, image = umoci(tmp_path / "first", BOTTOM), f"{tmp_path}/second:latest"
    for command in (
        ["init", "--layout", tmp_path / "second"],
        ["new", "--image", image],
        ["insert", "--image", image, tree, "/"],
    ):
        subprocess.run(["umoci", *command], check=True, timeout=60, capture_output=True)
    (manifest,) = read_image(tmp_path / "second").manifests
    # Directories that the first image does not list get an owner and a mode in the second.
    assert lines(manifest) == of_directory(tree)


def random_layer(seed: int) -> bytes:
    """Members in any order, replacing each other, with hard links and directories not listed."""
    chance = random.Random(seed)
    members: list[bytes] = []
    files: list[tuple[str, int, dict[str, int]]] = []
    for number in range(60):
        path = "/".join(chance.choices("abc", k=chance.randint(1, 4)))
        path = "".join(f"{part}{depth}/" for depth, part in enumerate(path.split("/")))[:-1]
        owner = {"uid": chance.choice([0, 1, 1000]), "gid": chance.choice([0, 5])}
        mode = chance.choice([0o644, 0o755, 0o4711, 0o1777, 0])
        kind = chance.choice(["file", "file", "dir", "dir", "link", "fifo", "cap", "hard"])
        name = f"{path}.{kind}"
        files = [file for file in files if file[0] != name]
        if kind == "dir":
            members.append(directory(path, mode, **owner))
        elif kind == "link":
            members.append(member(name, kind=b"2", link=f"x{number}", **owner))
        elif kind == "fifo":
            members.append(member(name, kind=b"6", mode=mode, **owner))
        elif kind == "hard" and files:
            target, mode, owner = chance.choice(files)
            members.append(member(name, kind=b"1", link=target, mode=mode, **owner))
        elif kind == "cap":
            xattrs = {"security.capability": CAPABILITY}
            members.append(member(name, b"%d" % number, mode=mode, xattrs=xattrs, **owner))
        elif kind == "file":
            members.append(member(name, chance.randbytes(number * 50), mode=mode, **owner))
            files.append((name, mode, owner))
    return archive(*members)


@pytest.mark.parametrize("seed", range(12))
def test_umoci_on_random_layers(tmp_path: Path, seed: int) -> None:
    layer = random_layer(seed)
    assert of_directory(umoci(tmp_path, layer)) == of_archive(layer)


def test_umoci_on_all_layers_at_once(tmp_path: Path) -> None:
    """Whiteouts and all: the flattened image is the tree that umoci unpacks."""
    top = archive(
        directory("etc"),
        member("etc/.wh.passwd"),
        member("etc/group", b"changed"),
        directory("var"),
        directory("var/cache"),
        member("var/cache/.wh..wh..opq"),
        member("var/cache/3", b"3"),
        member(".wh.run"),
        member("srv", b"a file where a directory was"),
        directory("home"),
        directory("home/user", 0o755),
    )
    target = umoci(tmp_path, BOTTOM, top)
    flattened = Flattened()
    for manifest in read_image(tmp_path / "oci").manifests:
        flattened.add(parse_manifest(manifest))
    found = [Entry(b".", "dir"), *(entry for entry, _ in flattened)]
    assert lines(format_manifest(found)) == of_directory(target)


def test_bsdtar(tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(BOTTOM)
    (tmp_path / "x").mkdir()
    subprocess.run(["bsdtar", "-xpf", tmp_path / "layer.tar", "-C", tmp_path / "x"], check=True)
    found = [
        re.sub(rb" xattr.system.posix_acl_access=\S+", b"", each) for each in of_archive(BOTTOM)
    ]
    assert of_directory(tmp_path / "x") == found  # it leaves access control lists out


def said_by_bsdtar(*arguments: object) -> set[tuple[str, str, str, str | None]]:
    """Path, type, mode and content of each entry, from bsdtar's own mtree writer."""
    command = ["bsdtar", "-cf", "-", "--format=mtree", "--options=!all,type,mode,sha256"]
    done = subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True)
    found = set()
    for line in done.stdout.decode("ascii").replace("\\\n", "").splitlines():
        if not line.startswith("."):
            continue
        path, *words = line.split()
        raw = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path).encode("latin-1")
        values = dict(word.split("=", 1) for word in words)
        name = raw.removeprefix(b"./")
        if values["type"] == "link":
            values["mode"] = "777"  # an archive may say otherwise; Linux has no other
        if name != b".":
            mode = format_mode(int(values["mode"], 8))
            found.add((escape(name), values["type"], mode, values.get("sha256digest")))
    return found


def said_by_us(manifest: list[bytes]) -> set[tuple[str, str, str, str | None]]:
    return {
        (
            escape(entry.path),
            entry.type,
            format_mode(entry.mode or 0),
            entry.sha256.hex() if entry.sha256 else None,
        )
        for entry in parse_manifest(b"".join(manifest))[1:]
    }


def test_bsdtars_own_manifest_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(BOTTOM)
    (tmp_path / "x").mkdir()
    subprocess.run(["bsdtar", "-xpf", tmp_path / "layer.tar", "-C", tmp_path / "x"], check=True)
    found = said_by_bsdtar("-C", tmp_path / "x", ".")
    assert len(found) > 30
    assert said_by_us(of_directory(tmp_path / "x")) == found


def test_bsdtars_own_manifest_of_an_archive(tmp_path: Path) -> None:
    """From the archive's headers, which do not list every directory nor hash hard links."""
    (tmp_path / "layer.tar").write_bytes(BOTTOM)
    ours = said_by_us(of_archive(BOTTOM))
    theirs = {each for each in said_by_bsdtar(f"@{tmp_path}/layer.tar") if "hard" not in each[0]}
    assert not theirs - ours
    missing = {path for path, *_ in ours - theirs}
    assert missing == {"big/hard\\040link", "home", "run", "var", "d" * 90}


def test_bsdtar_reads_our_manifest(tmp_path: Path) -> None:
    layer = archive(directory("d"), member("d/a b\n#\\", b"x", mode=0o4755), member("d/f", b"y"))
    (tmp_path / "m.mtree").write_bytes(b"".join(of_archive(layer)))
    done = subprocess.run(
        ["bsdtar", "-tvf", tmp_path / "m.mtree"], check=True, capture_output=True, text=True
    )
    assert [line.split(maxsplit=8)[8] for line in done.stdout.splitlines()] == [
        ".",
        "./d",
        "./d/a b\\n#\\\\",
        "./d/f",
    ]
    assert "-rwsr-xr-x" in done.stdout
