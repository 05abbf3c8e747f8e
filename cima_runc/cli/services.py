"""The services that this host's containers rely on, as reference values."""

import glob
import json
import os
from pathlib import Path

from cima_runc.base.errors import CimaError
from cima_runc.cli import context
from cima_runc.cli.appraise import read_partition
from cima_runc.cli.output import note
from cima_runc.config import Settings
from cima_runc.measure.file_digest import open_regular, sha256
from cima_runc.measure.mtree import escape
from cima_runc.ml.listing import boot_id, stored_notes
from cima_runc.ml.store import Store
from cima_runc.runtime.agent_socket import AgentUnavailableError, call_agent
from cima_runc.verifier.reference.file import HostReference
from cima_runc.verifier.reference.host import files_of_services
from cima_runc.verifier.rules.engines import INIT_PROGRAMS

_TIMEOUT_SECONDS = 60.0


class ServicesError(CimaError):
    """Nothing is known of this host's services."""


def host_reference() -> HostReference:
    """Return the files of all services that containers have relied on since this host booted.

    With them, the init programs that engines mount into containers (``--init``).

    Raises:
        ServicesError: no container has run since the host booted.
        CimaError: the records cannot be read.
    """
    found: dict[bytes, set[bytes]] = {}
    for number in sorted(_partitions(context.settings())):
        for path, digests in files_of_services(read_partition(f"dependencies:{number}")).items():
            found.setdefault(path, set()).update(digests)
    if not found:
        raise ServicesError(
            "no container has been measured since this host booted",
            hint="start one with each engine in use, then try again",
        )
    patterns = {source for sources in INIT_PROGRAMS.values() for source in sources}
    for name in sorted({name for pattern in patterns for name in glob.glob(pattern)}):
        digest = _digest_of(os.fsencode(name))
        if digest is not None:
            found.setdefault(os.fsencode(name), set()).add(digest)
    return HostReference(
        files={
            escape(path): tuple(sorted(digest.hex() for digest in found[path]))
            for path in sorted(found)
            if path.startswith(b"/")
        }
    )


def _partitions(settings: Settings) -> set[int]:
    try:
        rows = json.loads(call_agent(settings.shim.socket, "ps", b"{}", timeout=_TIMEOUT_SECONDS))
        numbers = [row["dependencies"] for row in rows]
    except AgentUnavailableError as error:
        note(f"{error}; taking what is stored")
        notes = stored_notes(Store(Path(settings.shim.state_dir)), boot_id())
        numbers = [each.dependencies for each in notes]
    return {number for number in numbers if number is not None}


def _digest_of(path: bytes) -> bytes | None:
    try:
        handle = open_regular(path)
    except (OSError, CimaError):
        return None
    try:
        return sha256(handle)[0]
    finally:
        os.close(handle)
