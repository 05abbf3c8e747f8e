"""The kernel's ascii log as a test wants it."""

import hashlib
from pathlib import Path

from cima_runc.ima.kernel_log import KernelLog
from cima_runc.ima.template import pack_fields


class WrittenLog:
    """A log in a directory, to which a test appends."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "ascii_runtime_measurements"
        self._file.touch()
        (directory / "binary_runtime_measurements").touch()
        self._count = 0
        self.append(10, bytes(32), b"boot_aggregate")
        self.log = KernelLog.open(directory)

    def append(self, pcr: int, digest: bytes, path: bytes) -> int:
        """Append a line (ima-ng) and return its index."""
        data = pack_fields([b"sha256:\0" + digest, path.replace(b" ", b"_") + b"\0"])
        template = hashlib.sha1(data).hexdigest().encode()
        name = path.replace(b" ", b"_")
        line = b"%d %s ima-ng sha256:%s %s\n" % (pcr, template, digest.hex().encode(), name)
        with self._file.open("ab") as file:
            file.write(line)
        self._count += 1
        return self._count - 1
