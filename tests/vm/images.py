"""Images made without a registry: archives as `docker save` writes them, for every engine."""

import io
import os
import stat
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import oci
from tests.vm import guest

DIRECTORY = Path("/root/images")

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""vfs_cap_data of revision 2: CAP_NET_BIND_SERVICE, effective."""

SMALL = 16 * 1024


def busybox() -> list[bytes]:
    return [_tar(guest.make_tree())]


def minbase() -> set[str]:
    """All files of the packages that a Debian minbase with Python is made of."""
    shown = guest.ok("dpkg-query", "-W", "-f", "${Package} ${Priority} ${Essential}\n")
    installed = [line.split() for line in shown.splitlines()]
    packages = {name for name, *words in installed if {"required", "yes"} & set(words)}
    others = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks")]
    others += ["--no-replaces", "--no-enhances", "--installed", "--recurse"]
    lines = guest.ok("apt-cache", "depends", *others, "apt", "python3", *packages).splitlines()
    needed = {line for line in lines if line[:1].isalnum()} & {name for name, *_ in installed}
    return {os.path.realpath(path) for path in guest.ok("dpkg", "-L", *needed).splitlines()}


def debian() -> list[bytes]:
    """A Debian minbase with Python and setuid programs, filled up to some 10,000 files.

    The guest is one, with more packages: of these only small files are taken.
    """
    base = minbase()

    def wanted(path: str, info: os.stat_result) -> bool:
        return path in base or not stat.S_ISREG(info.st_mode) or info.st_size < SMALL

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for link in ("bin", "lib", "lib64", "sbin"):
            archive.add(f"/{link}", link, recursive=False)
        for name in ("proc", "sys", "dev", "tmp", "run", "app"):
            archive.addfile(_directory(name))
        for top in ("usr", "etc", "var"):
            for at, directories, files in os.walk(f"/{top}"):
                skipped = at.startswith(("/var/lib/", "/var/cache")) and "/dpkg" not in at
                if skipped and at not in {"/var/lib", "/var/cache"}:
                    directories.clear()
                    continue
                directories.sort()
                archive.add(at, at.lstrip("/"), recursive=False)
                links = [name for name in directories if os.path.islink(f"{at}/{name}")]
                for name in sorted([*files, *links]):
                    path = f"{at}/{name}"
                    if wanted(path, os.lstat(path)):
                        archive.add(path, path.lstrip("/"), recursive=False)
    script = b"#!/usr/bin/python3\nimport json, subprocess\n"
    script += b"subprocess.run(['/usr/bin/mount', '--version'], check=True)\nprint('it ran')\n"
    return [out.getvalue(), oci.archive(oci.member("app/main", script, mode=0o755))]


def odd() -> list[bytes]:
    """Whiteouts, opaque directories, hard links, capabilities, a FIFO, over four layers."""
    first = oci.archive(
        oci.directory("del"),
        oci.member("del/a", b"a"),
        oci.member("del/b", b"b"),
        oci.directory("opaque", mode=0o1777),
        oci.directory("opaque/deep"),
        oci.member("opaque/deep/x", b"x"),
        oci.member("file", b"to be a directory"),
        oci.directory("dir"),
        oci.member("dir/inside", b"inside"),
        oci.directory("owned", mode=0o750, uid=1000, gid=2000),
        oci.member("owned/file", b"o", mode=0o640, uid=1000, gid=2000),
    )
    second = oci.archive(
        oci.directory("del"),
        oci.member("del/.wh.a"),
        oci.directory("opaque", mode=0o711),
        oci.member("opaque/.wh..wh..opq"),
        oci.member("opaque/new", b"new"),
        oci.member(".wh.dir"),
        oci.directory("hard"),
        oci.member("hard/one", b"#!/bin/sh\necho one\n", mode=0o755),
        oci.member("hard/two", kind=b"1", link="hard/one", mode=0o755),
        oci.member("capable", b"x", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        oci.member("fifo", kind=b"6", mode=0o600),
        oci.member("null", kind=b"3", mode=0o666, device=(1, 3)),
        oci.member("setuid", b"s", mode=0o6755),
        oci.member("name with space\n\xff".encode("latin-1"), b"n"),
    )
    third = oci.archive(
        oci.member("owned/more/deep", b"its directories are not listed"),
        oci.directory("file", mode=0o700),
        oci.member("file/now", b"in a directory"),
        oci.member("dir", b"now a file"),
        oci.member("link", kind=b"2", link="/hard/one"),
        oci.member("del/c", kind=b"2", link="b"),
    )
    return [*busybox(), first, second, third]


def numbered() -> list[bytes]:
    """Users and groups, and not the one that it runs as."""
    etc = oci.archive(
        oci.directory("etc"),
        oci.member("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        oci.member("etc/group", b"root:x:0:\nstaff:x:50:\n", mode=0o640, gid=50),
        oci.directory("work"),
        oci.member("work/own", b"own", mode=0o640, uid=1001, gid=1001),
    )
    return [*busybox(), etc]


IMAGES: dict[str, tuple[Callable[[], list[bytes]], dict[str, Any]]] = {
    "busybox": (busybox, {"Cmd": ["/bin/script"]}),
    "debian": (debian, {"Cmd": ["/app/main"]}),
    "odd": (odd, {"Cmd": ["/hard/two"]}),
    "numbered": (numbered, {"Cmd": ["/bin/script"], "User": "1001", "WorkingDir": "/work"}),
}


def archive(name: str) -> Path:
    """The image's archive, loaded into Docker, Podman and containerd."""
    path = DIRECTORY / f"{name}.tar"
    if path.exists():
        return path
    DIRECTORY.mkdir(exist_ok=True)
    make, config = IMAGES[name]
    building = path.with_suffix(".new")
    oci.docker_save(building, *make(), tag=f"{name}:latest", config=config)
    for load in (["docker", "load", "-i"], ["podman", "load", "-i"], ["ctr", "image", "import"]):
        guest.ok(*load, building, timeout=900)  # an emulated guest on a busy machine
    return building.rename(path)


def _tar(tree: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(tree, ".")
    return out.getvalue()


def _directory(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info
