"""The binding PCR: read, compared with the journal, and extended, in the one order that survives
a crash at any point: the journal durable, then the TPM, then done.

Source: design, section 6.
"""

import logging
import secrets

from cima_runc.base import clock
from cima_runc.cpcr.bind import Bind
from cima_runc.cpcr.journal import Found, Journal
from cima_runc.cpcr.register import DIGEST_SIZE
from cima_runc.cpcr.status import Gap, Status
from cima_runc.tpm.device import Tpm

_log = logging.getLogger(__name__)


class BindingPcr:
    """One PCR of the SHA-256 bank and its journal. For one thread."""

    def __init__(self, journal: Journal, tpm: Tpm, pcr: int) -> None:
        self._journal = journal
        self._tpm = tpm
        self._pcr = pcr

    @property
    def status(self) -> Status:
        """What a bind says of the host, as it is now."""
        return self._journal.state.status

    @property
    def expected(self) -> bytes | None:
        """What the PCR's value must be; None before it was read in this boot."""
        state = self._journal.state
        return state.value if state.pending is None else state.pending.expected

    def settle(self, *, thoroughly: bool = False) -> bytes:
        """Compare the PCR with the journal, write down what differs, return the PCR's value.

        ``thoroughly``: also whether the TPM was resumed, which costs one more question.

        Raises:
            OSError: the journal could not be written.
            TpmError: the TPM does not answer.
        """
        value = self._tpm.read_pcrs([self._pcr])[self._pcr]
        state = self._journal.state
        if state.pending is None and value == state.value and not thoroughly:
            return value
        found = Found(value, self._tpm.counters(), clock.hour())
        while (entry := self._journal.reconcile(found)) is not None:
            if entry["type"] == "foreign":
                _log.warning("PCR %d is not what it was made: %s", self._pcr, entry["kind"])
            self._journal.add(entry)
        return value

    def extend(self, before: bytes, digest: bytes, *, veiled: bool) -> Bind:
        """Extend the PCR, whose value :meth:`settle` gave as ``before``, and return the bind.

        Raises:
            OSError, TpmError: as for :meth:`settle`, which will tell what has happened.
        """
        veil = secrets.token_bytes(DIGEST_SIZE) if veiled else None
        bind = Bind(before, digest, veil)
        self._journal.add_bind(bind)
        if veil is not None:
            self._tpm.extend(self._pcr, veil)
        self._tpm.extend(self._pcr, digest)
        # Not durable on purpose: should it be lost, the PCR's value says the same.
        self._journal.add({"type": "done"}, durable=False)
        return bind

    def add_gap(self, gap: Gap) -> None:
        """Write down that for a time records were not written, or not bound.

        Raises:
            OSError: it could not be written.
        """
        self._journal.add({"type": "gap", **gap.model_dump(mode="json")})
