"""A report's first line: what a snapshot says, with records as they are stored.

Stored records are JSON already and are not read again but for ``meta``.
"""

import json
from collections import OrderedDict
from typing import Any

from cima_runc.agent.assembly import Assembly
from cima_runc.agent.attester import AttestError
from cima_runc.agent.fleet.snapshot import Listing, Sent, Snapshot
from cima_runc.evidence.report import VERSION
from cima_runc.ml.store import Store

_PLACES = 65_536
"""Partitions of which is remembered where the next record stands."""


class StoredRecords:
    """Reads on in partitions: costs what is new, not what is there. For one thread."""

    def __init__(self, store: Store, assembly: Assembly) -> None:
        self._store = store
        self._assembly = assembly
        self._places: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """Number of a record and the byte at which it begins, by registration."""

    def count(self, registration: int) -> int:
        """Return how many records there are.

        Raises:
            OSError: there is no such partition.
        """
        return sum(1 for _ in self._store.lines_from(registration, 0))

    def read(self, listing: Listing, since: int, room: int) -> list[bytes]:
        """Return records from number ``since`` on, up to ``room`` bytes but one at least, as the
        service is shown them.

        Raises:
            AttestError, KernelLogError, OSError: they cannot be read, or are not all there.
        """
        number = listing.note.registration
        recnum, at = self._places.get(number, (0, 0))
        if recnum > since:
            recnum, at = 0, 0
        found: list[bytes] = []
        size = 0
        for line, after in self._store.lines_from(number, at):
            if recnum >= listing.count or size > room:
                break
            if recnum >= since:
                size += len(line)
                if found and size > room:
                    break
                found.append(line)
            else:
                self._places[number] = (recnum + 1, after)
            recnum, at = recnum + 1, after
        if number in self._places:
            self._places.move_to_end(number)
        while len(self._places) > _PLACES:
            self._places.popitem(last=False)
        if since < listing.count and not found:
            raise AttestError("a container's stored records are not all there")
        return self._assembly.records(found, services=listing.note.kind == "dependencies")


def compose(
    snapshot: Snapshot,
    *,
    nonce: bytes,
    ak: bytes,
    boot_id: str,
    sent: Sent,
    stored: StoredRecords,
    room: int,
) -> bytes:
    """Return the line; at most about ``room`` bytes of it are records.

    Raises:
        AttestError, KernelLogError, OSError: records cannot be read.
    """
    bound = snapshot.bound
    head = {
        "type": "cima-report",
        "version": VERSION,
        "nonce": nonce.hex(),
        "ak": ak.hex(),
        "boot_id": boot_id,
        "hostkey": bound.hostkey.hex(),
        "status": bound.status.model_dump(mode="json"),
        "root": bound.root.hex(),
        "history": bound.bind.history.hex(),
        "base": None if snapshot.base is None else snapshot.base.hex(),
        "slots": snapshot.slots,
        "changes": [[slot, value.hex()] for slot, value in snapshot.changes],
        "containers": [_listed(one, boot_id) for one in snapshot.listings],
    }
    parts = []
    for one in snapshot.listings:
        since = sent.records.get(one.note.registration, 0)
        if one.secret is None or since >= one.count or room <= 0:
            continue
        records = stored.read(one, since, room)
        room -= sum(map(len, records))
        parts.append(
            b'{"registration":%d,"since":%d,"records":[%s]}'
            % (one.note.registration, since, b",".join(records))
        )
    text = json.dumps(head, separators=(",", ":")).encode("ascii")
    return text[:-1] + b',"records":[' + b",".join(parts) + b"]}"


def _listed(one: Listing, boot_id: str) -> dict[str, Any]:
    note = one.note
    return {
        "registration": note.registration,
        "slot": one.slot,
        "id": note.id,
        "kind": note.kind,
        "state": note.state if one.slot is not None else "stopped",
        "count": one.count,
        "boot_id": None if note.boot_id == boot_id else note.boot_id,
        "line": note.line,
        "run": note.run,
        "owners": list(note.owners),
        "services": note.dependencies,
        "secret": None if one.secret is None else one.secret.hex(),
    }
