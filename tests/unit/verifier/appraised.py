"""A container and its image for tests of the appraisal: honest, to be changed by each test."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import oci

from cima_runc.ima.template import Func
from cima_runc.measure.mtree import Entry, digest, format_manifest
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import Record
from cima_runc.verifier.appraisal import Appraised, References, appraise
from cima_runc.verifier.policy import Policy, parse_policy
from cima_runc.verifier.reference.file import HostReference, ImageReference
from cima_runc.verifier.reference.image import read_image
from cima_runc.verifier.result import Finding

BUSYBOX, SCRIPT, LIBRARY = b"busybox", b"#!/bin/sh\n", b"library"

NAMESPACES = {"mnt": 4026532180, "pid": 4026532181, "uts": 4026532182, "user": 0xEFFFFFFD}


def image(tmp_path: Path) -> ImageReference:
    """Two layers: /bin -> usr/bin, a program with two names, a script, a library, /app."""
    layers = [
        oci.archive(
            oci.directory("usr"),
            oci.directory("usr/bin"),
            oci.directory("usr/lib"),
            oci.directory("etc"),
            oci.member("bin", kind=b"2", link="usr/bin"),
            oci.member("usr/bin/busybox", BUSYBOX, mode=0o755),
            oci.member("usr/bin/sh", kind=b"1", link="usr/bin/busybox", mode=0o755),
            oci.member("usr/lib/lib.so", LIBRARY),
        ),
        oci.archive(
            oci.directory("app"),
            oci.member("app/script", SCRIPT, mode=0o755),
            oci.member("app/loop", kind=b"2", link="/app/loop"),
            oci.member("app/run", kind=b"2", link="../bin/sh"),
        ),
    ]
    process = {"Entrypoint": ["/app/script"], "Cmd": ["now"], "Env": ["PATH=/bin"]}
    layout = oci.Layout()
    layout.image(*layers, config=process)
    return read_image(layout.write_directory(tmp_path / "image")).reference


def upper(*entries: Entry, kind: str = "upper") -> dict[str, Any]:
    """A layer of no image, as the ``rootfs`` record has it."""
    manifest = format_manifest([Entry(b".", "dir"), *entries])
    return {
        "kind": kind,
        "digest": digest(manifest),
        "entries": len(entries),
        "files": sum(entry.type == "file" for entry in entries),
        "bytes": 0,
        "changed": [],
        "changed_count": 0,
        "manifest": manifest.decode("ascii"),
    }


CONFIG: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "args": ["/app/script", "now"],
        "cwd": "/",
        "env": ["PATH=0011", "HOSTNAME=2233"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]},
    },
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {
            "destination": "/etc/hosts",
            "type": "bind",
            "source": "/var/lib/docker/containers/0123abcd/hosts",
            "options": ["rbind", "rprivate"],
        },
    ],
    "linux": {
        "namespaces": [{"type": kind} for kind in ("mount", "network", "pid", "ipc", "uts")],
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": [
            *("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
        ],
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
    },
}


@dataclass
class Box:
    """What a container's records will say."""

    image: ImageReference
    config: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(CONFIG))
    rootfs: dict[str, Any] = field(default_factory=dict)
    files: list[tuple[bytes, bytes, Func]] = field(default_factory=list)
    more: list[dict[str, Any]] = field(default_factory=list)
    namespaces: dict[str, int] = field(default_factory=lambda: dict(NAMESPACES))
    missing: list[str] = field(default_factory=list)
    register: dict[str, Any] = field(default_factory=dict)
    """More of the ``register`` record."""
    relies_on: int | None = None
    host: HostReference | None = None
    dependencies: list[Record] = field(default_factory=list)

    @classmethod
    def honest(cls, reference: ImageReference) -> "Box":
        """A container of the image, just as it should be."""
        layers = [
            {
                "kind": "lower",
                "digest": layer.digest,
                "entries": layer.entries,
                "files": layer.files,
                "bytes": layer.bytes,
                "changed": [],
                "changed_count": 0,
            }
            for layer in reference.layers
        ]
        rootfs = {
            "type": "rootfs",
            "mode": "full",
            "format": "cima-layer-1",
            "filesystem": "overlay",
            "reason": "",
            "root": {"mode": "0755", "uid": 0, "gid": 0},
            "layers": [*layers, upper()],
        }
        box = cls(reference, rootfs=rootfs)
        box.ran("/app/script")
        box.ran("/usr/bin/busybox")
        box.ran("/usr/lib/lib.so", Func.MMAP_CHECK)
        return box

    def ran(self, path: str, func: Func = Func.BPRM_CHECK) -> None:
        """A file of the image ran."""
        sha256 = self.image.files[path].sha256
        assert sha256 is not None
        self.files.append((path.encode(), bytes.fromhex(sha256), func))

    def records(self) -> list[Record]:
        """The records."""
        partition = Partition("box")
        meta = {"time": "now"}
        register = {
            "type": "register",
            "id": "box",
            "boot_id": "6f4b4c55",
            "registration": 7,
            "cgroup": "/box",
            "namespaces": self.namespaces,
            "dependencies": self.relies_on,
            "missing": self.missing,
            **self.register,
        }
        contents = [register, {"type": "config", "config": self.config}, self.rootfs]
        records = [partition.add(content, meta) for content in contents]
        for path, sha256, func in self.files:
            record = partition.add_file(sha256, path, NAMESPACES["mnt"], func, meta)
            if record is not None:
                records.append(record)
        return [*records, *(partition.add(content, meta) for content in self.more)]

    def appraise(self, policy: str | Policy = "") -> Appraised:
        """Appraise them."""
        insisted = parse_policy(policy.encode()) if isinstance(policy, str) else policy
        references = References(self.image, self.host)
        return appraise(self.records(), references, insisted, self.dependencies)

    def failed(self, policy: str = "") -> list[Finding]:
        """What makes it untrusted."""
        return [each for each in self.appraise(policy).findings if each.severity == "fail"]
