"""What a host looks like, to be compared with what it looks like later."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.vm import guest

OF_OTHERS = re.compile(
    r"^/(root|tmp|opt/cima-test|etc/cni|var/(log|cache|tmp))(/|$)"
    r"|^/var/lib/(dpkg|docker|containerd|containers|systemd|cni|xfsprogs|cima-lab-boots)(/|$)"
    r"|/__pycache__(/|$)"
    # What useradd, Docker and Podman leave behind themselves.
    r"|^/etc/((passwd|group|shadow|gshadow|subuid|subgid)-|\.pwd\.lock|docker/key\.json)$"
    r"|^/etc/containers/networks(/netavark\.lock)?$"
)
"""What changes on a host without cima-runc, and dpkg's own records."""

Picture = dict[str, list[str]]


def take() -> Picture:
    """Return what the host has, a list of lines for each kind of thing."""
    return {
        "files": sorted(_files("/")),
        "units": _lines("systemctl", "list-unit-files", "--no-legend", "--plain"),
        "users": _lines("getent", "passwd"),
        "groups": _lines("getent", "group"),
        "pins": sorted(str(path) for path in Path("/sys/fs/bpf").rglob("*")),
        "packages": _lines("dpkg-query", "--show", "--showformat", "${Package} ${Status}\n"),
        "of dpkg": sorted(map(str, Path("/var/lib/dpkg").rglob("*cima*"))),
        "answers": [line for line in _debconf() if "cima" in line],
        "sockets": sorted(map(str, Path("/run").glob("cima/*"))),
    }


def differences(before: Picture, now: Picture) -> list[str]:
    """Return what is there in one only, a line each."""
    return [
        f"{kind}: {sign} {line}"
        for kind in before
        for sign, lines in (
            ("-", set(before[kind]) - set(now[kind])),
            ("+", set(now[kind]) - set(before[kind])),
        )
        for line in sorted(lines)
    ]


def _lines(*command: str) -> list[str]:
    return sorted(guest.ok(*command).splitlines())


def _debconf() -> list[str]:
    file = Path("/var/cache/debconf/config.dat")
    return file.read_text().splitlines() if file.exists() else []


def _files(top: str) -> Iterator[str]:
    device = os.lstat(top).st_dev
    waiting = [top]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if OF_OTHERS.search(entry.path):
                    continue
                about = f"{entry.path} {stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid}"
                if entry.is_dir(follow_symlinks=False):
                    if found.st_dev == device:
                        waiting.append(entry.path)
                    yield about
                elif entry.is_symlink():
                    yield f"{about} -> {os.readlink(entry.path)}"
                elif entry.path.startswith("/etc/") and entry.is_file():
                    digest = hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()
                    yield f"{about} {found.st_size} {digest[:16]}"
                else:
                    yield f"{about} {found.st_size}"
