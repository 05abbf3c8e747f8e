"""What a service keeps of a host, as far as the next report must be compared with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from cima_runc.cpcr import register
from cima_runc.cpcr.sparse import SparseTable
from cima_runc.cpcr.status import Status
from cima_runc.ml.contents import Previous

State = Literal["created", "running", "stopped"]
Kind = Literal["container", "dependencies"]


@dataclass(frozen=True, order=True)
class Counters:
    """The TPM's, which only grow, in this order."""

    reset_count: int
    restart_count: int
    clock: int
    """Milliseconds; goes on over resets."""


@dataclass(frozen=True)
class KnownLog:
    """The host's log, as far as it is proved."""

    lines: int
    """Entries of the host's PCR."""
    value: bytes
    """The PCR after them."""


@dataclass(frozen=True)
class KnownTable:
    """The table of registers; what is in it is read only where something has changed."""

    digest: bytes
    slots: int
    load: Callable[[], SparseTable]

    @classmethod
    def of(cls, table: SparseTable) -> "KnownTable":
        """Return a table that is in memory."""
        return cls(table.digest, table.slots, lambda: table)


@dataclass(frozen=True)
class Chain:
    """A partition from its beginning to some record."""

    count: int = 0
    cpcr: bytes = register.ZERO
    previous: Previous | None = None
    """What its ``register`` record names as the run before."""
    ended: bool = False
    """Whether its last record is an ``exit``."""
    late: int = 0
    """Records after an ``exit``: there should be none."""


@dataclass(frozen=True)
class KnownRegister:
    """One registration."""

    registration: int
    boot_id: str
    slot: int | None
    """None: it has none any more."""
    id: str
    kind: Kind
    line: bytes | None
    run: int | None
    owners: tuple[str, ...]
    services: int | None
    state: State
    said: int
    """Records in its register, of a listing that was accepted: on the host's word until they are
    proved."""
    secret: bytes | None
    """None: the service may not read its records."""
    proved: Chain = field(default_factory=Chain)
    held: Chain | None = None
    """Where records came that are not proved yet: the partition after them."""

    @property
    def is_whole(self) -> bool:
        """Whether all records that its register has are proved; of what the service may not read,
        none are."""
        return self.secret is not None and self.proved.count == self.said


@dataclass(frozen=True)
class Known:
    """What is kept of one host."""

    ak: bytes
    """TPMT_PUBLIC of the enrolled attestation key."""
    counters: Counters | None = None
    """Of the last report that was accepted; None: there was none."""
    boot_id: str | None = None
    table: KnownTable | None = None
    """None: none in this boot."""
    status: Status | None = None
    host_log: KnownLog | None = None
    """None: it was never shown in this boot."""
    registers: Mapping[int, KnownRegister] = field(default_factory=dict)
    """Those that :func:`~cima_runc.verifier.report.check.wanted` names, more do no harm."""
