"""Containers and programs that a test starts by the hundred, and the list that it keeps of them."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.vm import guest

RUNTIME = "cima-runc"


def program(name: str) -> bytes:
    """A static x86-64 ELF program that writes "ran" and ends with status 0; no two are alike."""
    code = bytes.fromhex(
        "b801000000 bf01000000 488d3510000000 ba04000000 0f05"  # write(1, text, 4)
        "31ff b83c000000 0f05"  # _exit(0)
    )
    text = b"ran\n" + name.encode()
    size = 64 + 56 + len(code) + len(text)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, size, size, 4096)
    return header + segment + code + text


@dataclass
class Started:
    """One container, as it was started."""

    id: str
    path: bytes
    """Its program, as the container sees it."""
    digest: str
    status: int
    out: str
    err: str

    @property
    def ran(self) -> bool:
        return self.out == "ran\n"


class Bundles:
    """Bundles over one root file system of programs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "rootfs"
        for name in ("bin", "proc", "dev", "sys", "tmp"):
            (self.root / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", self.root / "bin/busybox")
        for applet in ("sh", "sleep", "cat"):
            (self.root / "bin" / applet).symlink_to("busybox")
        guest.ok("runc", "spec", "--bundle", directory)
        self._spec = json.loads((directory / "config.json").read_text())
        (directory / "config.json").unlink()

    def install(self, name: str) -> str:
        """Put a program of its own into /bin; returns its digest."""
        content = program(name)
        path = self.root / "bin" / name
        path.write_bytes(content)
        path.chmod(0o755)
        return hashlib.sha256(content).hexdigest()

    def bundle(self, name: str, *args: str) -> Path:
        bundle = self.directory / name
        bundle.mkdir()
        spec = json.loads(json.dumps(self._spec))
        spec["process"] |= {"terminal": False, "args": list(args)}
        spec["root"] = {"path": str(self.root), "readonly": False}
        # What runtimes make slow and this has nothing to do with.
        spec["linux"].pop("seccomp", None)
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    def _command(self, name: str, *args: str) -> list[str]:
        return [RUNTIME, "run", "--bundle", str(self.bundle(name, *args)), name]

    def start(self, name: str, script: str) -> subprocess.Popen[str]:
        """Start a container of the shell that runs ``script``."""
        command = self._command(name, "/bin/sh", "-c", script)
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, name: str) -> Started:
        """Run a container of one program of its own to its end."""
        digest = self.install(name)
        done = subprocess.run(
            self._command(name, f"/bin/{name}"),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return Started(
            name, os.fsencode(f"/bin/{name}"), digest, done.returncode, done.stdout, done.stderr
        )
