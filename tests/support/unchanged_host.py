"""A simulated host on which nothing changes: its reports cost little but the signature.

A host's report differs from the last in nonce and quote alone; thousands of hosts fit into one
process beside the service.
"""

import base64
import json
import os

from cima_runc.cpcr.tree import root_from_path
from cima_runc.evidence.aggregation import DEPTH
from cima_runc.evidence.report import claim_digest
from cima_runc.evidence.request import Asker, leaf
from tests.support.fleet_host import BOOT_PCRS, FleetHost

_NONCE = "the nonce"


class UnchangedHost:
    """A host whose last report was accepted, and that has nothing new."""

    def __init__(self, host: FleetHost) -> None:
        self.tpm = host.tpm
        payload = host.payload(b"")
        assert payload["base"] is not None
        assert not payload["changes"] and not payload["containers"]
        line = json.dumps({**payload, "nonce": _NONCE}, separators=(",", ":")).encode()
        self._before, self._after = line.split(_NONCE.encode())
        self._selection = tuple(sorted({*BOOT_PCRS, 10, 12}))
        # The other places are nobody's: drawn once, where a host draws them for each quote.
        self._index = int.from_bytes(os.urandom(2), "big") % (1 << DEPTH)
        self._path = tuple(os.urandom(32) for _ in range(DEPTH))
        self._rest = json.dumps(
            {
                "pcrs": {str(pcr): self.tpm.pcrs[pcr].hex() for pcr in self._selection},
                "aggregation": {"index": self._index, "path": [one.hex() for one in self._path]},
                "ak": {"public": base64.b64encode(self.tpm.ak_public).decode()},
                "host_log": {"from": host.confirmed.host_log, "entries": []},
                "boot_log": None,
            },
            separators=(",", ":"),
        ).encode()[1:]

    def report(self, nonce: bytes) -> bytes:
        """Return the next report."""
        line = self._before + nonce.hex().encode() + self._after
        claim = claim_digest(self.tpm.ak_name, nonce, line)
        root = root_from_path(leaf(Asker.HOST, claim), self._index, self._path)
        attest, signature = self.tpm.quote(self._selection, root)
        return b'%b\n{"quote":{"attest":"%b","signature":"%b"},%b\n' % (
            line,
            base64.b64encode(attest),
            base64.b64encode(signature),
            self._rest,
        )
