"""Digests of files that were hashed in this boot, for an agent that is restarted.

    {"boot_id": "…", "files": [[device, inode, size, mtime_ns, ctime_ns, "<hex digest>"], …]}

The file is a memory and no evidence: one that is lost, damaged or of another boot, in which a
device's number may be another's, only means that everything is hashed again.
"""

import json
import logging
from pathlib import Path
from typing import Any

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.durable import replace_file
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import load_object
from cima_runc.base.text import printable
from cima_runc.measure.file_digest import Identity

_log = logging.getLogger(__name__)


class KnownDigests:
    """SHA-256 (32 bytes) by the identity of the file that has it."""

    def __init__(self, path: Path, boot_id: str) -> None:
        """Go on with what is at ``path``, if that is of this boot."""
        self._path = path
        self._boot_id = boot_id
        self._digests = _read(path, boot_id)
        self._kept = len(self._digests)

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._digests

    def get(self, identity: Identity) -> bytes | None:
        """Return the digest of the file, if it is known."""
        return self._digests.get(identity)

    def add(self, identity: Identity, digest: bytes) -> None:
        """Remember a digest, unless too many are remembered."""
        if len(self._digests) < limits.KNOWN_DIGESTS:
            self._digests[identity] = digest

    def keep(self) -> None:
        """Write down what is new. Where that fails a restarted agent hashes again, and no worse."""
        if len(self._digests) == self._kept:
            return
        files = [[*identity, digest.hex()] for identity, digest in self._digests.items()]
        text = json.dumps({"boot_id": self._boot_id, "files": files})
        try:
            replace_file(self._path, text.encode("ascii"), durable=False)
        except OSError as error:
            _log.warning("digests of services' files are not kept: %s", printable(str(error)))
        else:
            self._kept = len(files)


def _read(path: Path, boot_id: str) -> dict[Identity, bytes]:
    try:
        raw = read_bounded(path, limits.KNOWN_DIGESTS_FILE)
        kept = load_object(raw, what="the file of known digests", limit=limits.KNOWN_DIGESTS_FILE)
        if kept.get("boot_id") != boot_id:
            return {}
        return dict(map(_entry, kept["files"]))
    except FileNotFoundError:
        return {}
    except (OSError, CimaError, LookupError, TypeError, ValueError) as error:
        _log.warning("%s is of no use: %s", printable(str(path)), printable(str(error)))
        return {}


def _entry(entry: Any) -> tuple[Identity, bytes]:
    *numbers, text = entry
    digest = bytes.fromhex(text)
    if len(digest) != 32 or not all(type(number) is int for number in numbers):
        raise ValueError("an entry is not of a file")
    return Identity(*numbers), digest
