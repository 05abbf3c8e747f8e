"""The agent's one writer: records to disk, then the binding journal, then the TPM.

Everything that changes a register goes through here, in one thread, in this order: records
durable, journal durable, TPM extended. Only then may anything be acknowledged.
Source: design, section 6.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from cima_runc.agent.binding_pcr import BindingPcr
from cima_runc.agent.core import Core
from cima_runc.base import clock
from cima_runc.base.text import printable
from cima_runc.cpcr.bind import NO_ROOT, Bind, bind_digest
from cima_runc.cpcr.blinded import BlindedTree
from cima_runc.cpcr.register import DIGEST_SIZE
from cima_runc.cpcr.status import Gap, GapKind, Status
from cima_runc.cpcr.table import host_digest
from cima_runc.ml.records import Record
from cima_runc.ml.store import Store
from cima_runc.tpm.device import TpmError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trouble:
    """Records cannot be made durable or bound."""

    since: str
    """RFC 3339."""
    kind: GapKind
    reason: str
    """One line for people: it may name files."""


@dataclass(frozen=True)
class Bound:
    """What the binding PCR shows since the last bind, and what that was over."""

    bind: Bind
    status: Status
    hostkey: bytes
    """32 random bytes, for the host's own verifier alone."""
    table: bytes
    """The table of registers."""
    tree: BlindedTree | None
    """The blinded tree, of a bind for a tenant's quote."""

    @property
    def host(self) -> bytes:
        """SHA256(0x05 || hostkey || table)."""
        return host_digest(self.hostkey, self.table)

    @property
    def root(self) -> bytes:
        """The blinded tree's root, or zero bytes without one."""
        return NO_ROOT if self.tree is None else self.tree.root


class Ledger:
    """Holds what is not on disk yet and what is not bound yet."""

    def __init__(
        self,
        core: Core,
        store: Store,
        pcr: BindingPcr | None,
        on_bound: Callable[[], None] = lambda: None,
    ) -> None:
        """``pcr`` is None on a host without a TPM; ``on_bound()`` is called after each bind."""
        self._on_bound = on_bound
        self._core = core
        self._store = store
        self._pcr = pcr
        self._unwritten: dict[int, list[Record]] = {}
        self.last: Bound | None = None
        """What the last bind was over."""
        self._unbound = False
        self._late: dict[int, Trouble] = {}
        self._said: set[int] = set()
        self.trouble: Trouble | None = None
        """What keeps records from being written or bound, as the last probe found."""

    @property
    def backlog(self) -> int:
        """Records that could not be written yet: the disk is full or broken."""
        return sum(map(len, self._unwritten.values()))

    def add(self, registration: int, records: list[Record]) -> None:
        """Queue records, in order, for :meth:`write`."""
        if records:
            self._unwritten.setdefault(registration, []).extend(records)

    def drop(self, registration: int) -> None:
        """Forget what is queued of a container that is being removed."""
        self._unwritten.pop(registration, None)
        self._late.pop(registration, None)

    def write(self) -> None:
        """Make every queued record durable.

        Raises:
            OSError: a file could not be written; what is not on disk stays queued.
        """
        failed: dict[int, OSError] = {}
        for registration, records in self._unwritten.items():
            try:
                self._store.append(registration, records)
            except OSError as error:
                failed[registration] = error
        failed |= self._store.sync()
        self._unwritten = {number: self._unwritten[number] for number in failed}
        if failed:
            self._are_late(failed, "disk", next(iter(failed.values())))
            raise next(iter(failed.values()))

    # -- binding ------------------------------------------------------------------------------

    @property
    def status(self) -> Status | None:
        """What a bind says of the host, as it is now; None without a TPM."""
        return None if self._pcr is None else self._pcr.status

    @property
    def expected_value(self) -> bytes | None:
        """What the binding PCR must be; None without a TPM, or before it was read."""
        return None if self._pcr is None else self._pcr.expected

    def bind(self) -> float:
        """Bind every changed register into the TPM, once; nothing changed, nothing done.

        Returns the seconds that it took, the TPM's time included.

        Raises:
            OSError: the journal could not be written.
            TpmError: the TPM could not be read or extended; the next call finds out which.
        """
        began = time.monotonic()
        if self._pcr is not None and (self._core.changed or self._unbound):
            self._bind(self._pcr, for_tenant=False)
        return time.monotonic() - began

    def bind_for_quote(self) -> Bound:
        """Bind for a tenant's quote, whether or not anything has changed: with a blinded tree of
        its own, under a veil.

        Raises:
            OSError, TpmError: as for :meth:`bind`; also where there is no TPM.
        """
        return self._bind(self._needed(), for_tenant=True)

    def bind_for_report(self) -> Bound:
        """Return the last bind, or one made now where a register, the status or the PCR is not what
        that was over.

        Raises:
            OSError, TpmError: as for :meth:`bind_for_quote`.
        """
        pcr, last = self._needed(), self.last
        value = pcr.settle()
        if last is not None and not self._core.changed and not self._unbound:
            shown = (last.bind.expected, last.status, last.table)
            if shown == (value, pcr.status, self._core.table):
                return last
        return self._bind(pcr, for_tenant=False)

    def settle(self) -> bytes | None:
        """Compare the PCR with the journal, write down what differs, return the PCR's value.

        None without a TPM.

        Raises:
            OSError, TpmError: as for :meth:`bind`.
        """
        return None if self._pcr is None else self._pcr.settle()

    def probe(self) -> None:
        """Find out whether the disk takes records and the TPM answers, and write down since when
        they did not; never raises.

        Done at even times, whatever else is done: so gaps and changes by others are no meter of
        what containers do.
        """
        try:
            self._store.probe()
            self.write()
            if self._pcr is not None:
                self._pcr.settle(thoroughly=True)
            self._end_trouble()
        except (OSError, TpmError) as error:
            if self.trouble is None:
                self.trouble = _trouble(error)
                # What was late before belongs to this gap.
                since = min([late.since for late in self._late.values()] + [self.trouble.since])
                self.trouble = replace(self.trouble, since=since)
                self._late.clear()
                _log.error("records cannot be written or bound: %s", self.trouble.reason)

    def _end_trouble(self) -> None:
        if self.trouble is None:
            return
        since = clock.hour_of(self.trouble.since)
        if self._pcr is not None:
            self._pcr.add_gap(Gap(kind=self.trouble.kind, since=since, until=clock.hour()))
        _log.warning("all is recorded again; since %s: %s", since, self.trouble.reason)
        self.trouble = None

    def _needed(self) -> BindingPcr:
        if self._pcr is None:
            raise TpmError("there is no TPM to bind into", hint="see cima status")
        return self._pcr

    def _bind(self, pcr: BindingPcr, *, for_tenant: bool) -> Bound:
        concerned = self._core.changed_registrations
        try:
            before = pcr.settle()
            self._say_what_was_late(pcr)
            self._unbound = True
            table = self._core.update_table()
            bound = Bound(
                bind=_NOT_YET,
                status=pcr.status,
                hostkey=secrets.token_bytes(DIGEST_SIZE),
                table=table,
                tree=BlindedTree(self._core.inners) if for_tenant else None,
            )
            digest = bind_digest(bound.status.digest(), bound.host, bound.root)
            bind = pcr.extend(before, digest, veiled=for_tenant)
        except (OSError, TpmError) as error:
            self._are_late(concerned, _kind_of(error), error)
            raise
        self._unbound = False
        self._said.clear()
        self.last = bound = replace(bound, bind=bind)
        self._on_bound()
        return bound

    # -- late ---------------------------------------------------------------------------------

    def _are_late(self, registrations: Iterable[int], kind: GapKind, error: Exception) -> None:
        if self.trouble is not None:
            return  # the gap that will be written down says it
        late = _trouble(error)
        for registration in registrations:
            if registration not in self._said:
                self._late.setdefault(registration, replace(late, kind=kind))

    def _say_what_was_late(self, pcr: BindingPcr) -> None:
        """Record, where no gap of the whole host tells it, that records were late."""
        if not self._late or self.trouble is not None:
            return
        late, self._late = self._late, {}
        for registration, trouble in late.items():
            container = self._core.get(registration)
            if container is None:
                continue
            if container.note.state == "stopped":
                # Nothing follows a partition's end.
                since = clock.hour_of(trouble.since)
                pcr.add_gap(Gap(kind=trouble.kind, since=since, until=clock.hour()))
                continue
            reason = f"late: for a time the {_NAMES[trouble.kind]} failed"
            self._said.add(registration)
            self.add(registration, [self._core.lost(registration, 0, reason, clock.now())])
        self.write()


_NOT_YET = Bind(b"", b"")
_NAMES: dict[GapKind, str] = {"disk": "disk", "tpm": "TPM"}


def _kind_of(error: Exception) -> GapKind:
    return "tpm" if isinstance(error, TpmError) else "disk"


def _trouble(error: Exception) -> Trouble:
    return Trouble(clock.now(), _kind_of(error), printable(str(error)))
