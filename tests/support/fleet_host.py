"""A host of a fleet, simulated: it measures nothing and signs everything, and lies where told to.

Written from fleet.md, not from the agent: what both agree on is what the service takes.
"""

import base64
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cima_runc.cpcr.bind import NO_ROOT, bind_digest
from cima_runc.cpcr.inner import EMPTY, inner
from cima_runc.cpcr.register import ZERO, extend
from cima_runc.cpcr.status import Status
from cima_runc.cpcr.table import Table, host_digest
from cima_runc.evidence.aggregation import aggregate
from cima_runc.evidence.fields import decode_hex
from cima_runc.evidence.report import claim_digest
from cima_runc.evidence.report_answer import Accepted, Answer, Confirmed, Resync
from cima_runc.evidence.request import Asker, leaf
from cima_runc.ima.template import Func, pack_fields
from cima_runc.measure.oci_config import hidden_value
from cima_runc.ml import contents
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import digest_of
from tests.support.software_tpm import SoftwareTpm

BOOT_PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)
_TIME = {"time": "2026-01-31T13:00:00Z"}


@dataclass
class Container:
    """A container of the host's, and its records as evidence shows them."""

    registration: int
    id: str
    slot: int | None
    line: bytes | None
    run: int | None
    secret: bytes
    partition: Partition
    owners: tuple[str, ...] = ()
    state: str = "running"
    kind: str = "container"
    boot_id: str = ""
    services: int | None = None
    """Registration of the host services that it relies on."""
    records: list[dict[str, Any]] = field(default_factory=list)
    shown: bool = False
    """Whether the service's key is among the owners'."""

    @property
    def is_readable(self) -> bool:
        """Whether the service may read its records."""
        return not self.owners or self.shown


@dataclass
class FleetHost:
    """A host with a software TPM."""

    tpm: SoftwareTpm = field(default_factory=SoftwareTpm)
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    shows_log: bool = True
    in_full: bool = False
    """Whether it shows each line of its log, not its hash."""
    violations: set[int] = field(default_factory=set)
    """Numbers of the log's lines that are violations."""
    table: Table = field(default_factory=Table)
    containers: dict[int, Container] = field(default_factory=dict)
    log: list[bytes] = field(default_factory=list)
    """What PCR 10 was extended with, or (first line) its template data."""
    piece: int = 1_000
    """Records in one report."""
    env: dict[str, str] = field(default_factory=dict)
    """What containers that start have in their environment."""

    def __post_init__(self) -> None:
        self.root = NO_ROOT
        self.confirmed = Confirmed(base=None, host_log=0, boot_log=False, records={}, held={})
        self._begin()

    def _begin(self) -> None:
        self.tpm.pcrs = dict.fromkeys(range(24), bytes(32))
        for pcr in BOOT_PCRS:
            if pcr < 8:
                self.tpm.extend(pcr, hashlib.sha256(b"firmware %d" % pcr).digest())
        self.status = Status.begin(self.tpm.pcrs[12])
        aggregate_ = hashlib.sha256(b"".join(self.tpm.pcrs[pcr] for pcr in range(10))).digest()
        self.log, self.violations = [], set()
        self._log(pack_fields([b"sha256:\0" + aggregate_, b"boot_aggregate\0"]))
        nothing = {"base": None, "host_log": 0, "boot_log": False}
        self.confirmed = self.confirmed.model_copy(update=nothing)
        self._before: dict[int, bytes] = {}
        self._slots = self.table.slots
        self.changed: set[int] = set()
        self.session: str | None = None
        self.bind()

    # -- what goes on ---------------------------------------------------------------------------

    def reboot(self, *, resets: int = 1) -> None:
        """Boot: containers are gone, their records are kept."""
        self.boot_id = str(uuid.uuid4())
        self.tpm.reset_count += resets
        for one in self.containers.values():
            one.slot = None
            one.state = "stopped"
        self.table = Table()
        self._begin()

    def host_runs(self, path: bytes, *, violation: bool = False) -> None:
        """Log a file of the host's."""
        digest = bytes(32) if violation else hashlib.sha256(path).digest()
        name = path.replace(b" ", b"_") + b"\0"
        self._log(pack_fields([b"sha256:\0" + digest, name]), violation=violation)

    def _log(self, data: bytes, *, violation: bool = False) -> None:
        if violation:
            self.violations.add(len(self.log))
        self.log.append(data)
        self.tpm.extend(10, self._extended(len(self.log) - 1))

    def _extended(self, number: int) -> bytes:
        if number in self.violations:
            return b"\xff" * 32
        return hashlib.sha256(self.log[number]).digest()

    def log_entries(self, since: int = 0) -> list[Any]:
        """Return the log's entries as they are shown, from a number on."""
        return [
            {"template": "ima-ng", "data": data.hex(), "violation": number in self.violations}
            if self.in_full or number == 0
            else self._extended(number).hex()
            for number, data in enumerate(self.log)
        ][since:]

    def start(
        self,
        name: str,
        owners: tuple[str, ...] = (),
        *,
        line: bytes | None = None,
        services: int | None = None,
    ) -> int:
        """Start a container; a second one of a line is its next run."""
        number = int.from_bytes(os.urandom(6), "big")
        line = line or hashlib.sha256(name.encode()).digest()
        before = max(
            (one for one in self.containers.values() if one.line == line),
            key=lambda one: one.run or 0,
            default=None,
        )
        if before is not None and before.state != "stopped":
            self.end(before.registration)
        made = Container(
            registration=number,
            id=name,
            slot=self.table.take(),
            line=line,
            run=before.run + 1 if before else 1,
            secret=os.urandom(32),
            partition=Partition(name),
            owners=owners,
            boot_id=self.boot_id,
            services=services,
        )
        self.containers[number] = made
        previous = None
        if before is not None:
            previous = contents.Previous(
                run=before.run,
                boot_id=before.boot_id,
                registration=before.registration,
                count=before.partition.count,
                cpcr=before.partition.cpcr,
                reason="deleted",
            )
        register = contents.Register(
            id=name,
            boot_id=self.boot_id,
            registration=number,
            cgroup=f"/{name}",
            namespaces={"mnt": 4026532000},
            dependencies=services,
            missing=(),
            line=line,
            run=made.run,
            previous=previous,
        )
        self.add(number, register)
        env = [f"{key}={hidden_value(made.secret, value)}" for key, value in self.env.items()]
        self.add(number, contents.Config(config={"process": {"args": ["/bin/sh"], "env": env}}))
        return number

    def serve(self, *paths: bytes) -> int:
        """Begin a partition of host services; each comes with its line of the kernel's log."""
        number = int.from_bytes(os.urandom(6), "big")
        name = f"dependencies:{number}"
        self.containers[number] = Container(
            registration=number,
            id=name,
            slot=self.table.take(),
            line=None,
            run=None,
            secret=os.urandom(32),
            partition=Partition(name),
            kind="dependencies",
            boot_id=self.boot_id,
        )
        register = contents.ServicesRegister(
            id=name,
            kind="dependencies",
            boot_id=self.boot_id,
            registration=number,
            services=(),
            missing=(),
        )
        self.add(number, register)
        for path in paths:
            self.service_runs(number, path)
        return number

    def service_runs(
        self, number: int, path: bytes, *, logged: bool = True, with_line: bool = True
    ) -> None:
        """Have a host service run a file; ``logged`` and ``with_line``: as it should be."""
        before = len(self.log)
        pcr = self.tpm.pcrs[10]
        self.host_runs(path)
        line = self.log[-1]
        if not logged:
            del self.log[before:]
            self.tpm.pcrs[10] = pcr
        self.run(number, path)
        if with_line:
            shown = {"template": "ima-ng", "data": _base64(line)}
            self.containers[number].records[-1]["line"] = shown

    def add(self, number: int, content: contents.Content) -> None:
        """Record a content."""
        one = self.containers[number]
        self._keep(one, one.partition.add(content, _TIME))

    def run(self, number: int, path: bytes, content: bytes | None = None) -> None:
        """Have a file run in a container."""
        one = self.containers[number]
        digest = hashlib.sha256(path if content is None else content).digest()
        self._keep(one, one.partition.add_file(digest, path, 4026532000, Func.BPRM_CHECK, _TIME))

    def _keep(self, one: Container, record: Any) -> None:
        one.records.append(json.loads(record.to_line()))
        self.changed.add(one.registration)

    def end(self, number: int) -> None:
        """End a container; its register stays."""
        self.containers[number].state = "stopped"
        self.add(number, contents.Exit(reason="deleted"))

    def forget(self, number: int) -> None:
        """Give a container's register up."""
        one = self.containers[number]
        if one.slot is not None:
            self.table.free(one.slot)
            one.slot = None
        self.changed.add(number)

    def bind(self, *, for_tenant: bool = False) -> None:
        """Bind all registers."""
        for one in self.containers.values():
            if one.slot is not None:
                value = inner(one.secret, one.partition.cpcr, one.partition.count)
                if self.table.inner(one.slot) != value:
                    self.table.set(one.slot, value)
        self.hostkey = os.urandom(32)
        self.root = os.urandom(32) if for_tenant else NO_ROOT
        if for_tenant:
            self.tpm.extend(12, os.urandom(32))
        self.history = self.tpm.pcrs[12]
        host = host_digest(self.hostkey, self.table.digest)
        digest = bind_digest(self.status.digest(), host, self.root)
        self.tpm.extend(12, digest)

    # -- reports --------------------------------------------------------------------------------

    def payload(self, nonce: bytes) -> dict[str, Any]:
        """Return what a report says, as JSON objects."""
        filled = dict(self.table.filled())
        if self.confirmed.base is None:
            changes = sorted(filled.items())
        else:
            before = self._before
            changes = [
                (slot, filled.get(slot, EMPTY))
                for slot in sorted(filled.keys() | before.keys())
                if filled.get(slot, EMPTY) != before.get(slot, EMPTY)
            ]
        slots = {slot for slot, _ in changes}
        listed, records, room = [], [], self.piece
        for one in self.containers.values():
            done = self._done(one)
            behind = one.is_readable and done < one.partition.count
            here = one.slot is not None and one.slot in slots
            if not here and not behind and one.registration not in self.changed:
                continue
            listed.append(self._listed(one))
            some = one.records[done : done + room] if one.is_readable else []
            if some:
                room -= len(some)
                part = {"registration": one.registration, "since": done, "records": some}
                records.append(part)
        base = self.confirmed.base
        return {
            "type": "cima-report",
            "version": 1,
            "nonce": nonce.hex(),
            "ak": self.tpm.ak_name.hex(),
            "boot_id": self.boot_id,
            "hostkey": self.hostkey.hex(),
            "status": self.status.model_dump(mode="json"),
            "root": self.root.hex(),
            "history": self.history.hex(),
            "base": None if base is None else base.hex(),
            "slots": self.table.slots,
            "changes": [[slot, value.hex()] for slot, value in changes],
            "containers": listed,
            "records": records,
        }

    def _done(self, one: Container) -> int:
        number = str(one.registration)
        return self.confirmed.records.get(number, 0) + self.confirmed.held.get(number, 0)

    def _listed(self, one: Container) -> dict[str, Any]:
        return {
            "registration": one.registration,
            "slot": one.slot,
            "id": one.id,
            "kind": one.kind,
            "state": one.state,
            "count": one.partition.count,
            "boot_id": None if one.boot_id == self.boot_id else one.boot_id,
            "line": None if one.line is None else one.line.hex(),
            "run": one.run,
            "owners": list(one.owners),
            "services": one.services,
            "secret": one.secret.hex() if one.is_readable else None,
        }

    def report(
        self,
        nonce: bytes,
        *,
        lie: Callable[[dict[str, Any]], None] = lambda payload: None,
        lie_after: Callable[[dict[str, Any]], None] = lambda proof: None,
        qualify: Callable[[bytes], bytes] = lambda root: root,
        pcrs: Sequence[int] | None = None,
        asker: Asker = Asker.HOST,
    ) -> bytes:
        """Return a report. ``lie`` changes the payload before it is quoted, ``lie_after`` the proof
        after that."""
        payload = self.payload(nonce)
        lie(payload)
        line = json.dumps(payload, separators=(",", ":")).encode()
        return (
            line
            + b"\n"
            + self.proof(
                line, payload, lie_after=lie_after, qualify=qualify, pcrs=pcrs, asker=asker
            )
        )

    def proof(
        self,
        line: bytes,
        payload: dict[str, Any],
        *,
        lie_after: Callable[[dict[str, Any]], None] = lambda proof: None,
        qualify: Callable[[bytes], bytes] = lambda root: root,
        pcrs: Sequence[int] | None = None,
        asker: Asker = Asker.HOST,
    ) -> bytes:
        """Quote for a first line, and return the second."""
        selection = tuple(sorted({*BOOT_PCRS, 12, *([10] if self.shows_log else [])}))
        selection = selection if pcrs is None else tuple(pcrs)
        claim = claim_digest(decode_hex(payload["ak"]), decode_hex(payload["nonce"]), line)
        root, (place,) = aggregate([leaf(asker, claim)])
        attest, signature = self.tpm.quote(selection, qualify(root))
        at = self.confirmed.host_log
        entries = self.log_entries(at)
        proof: dict[str, Any] = {
            "quote": {"attest": _base64(attest), "signature": _base64(signature)},
            "pcrs": {str(pcr): self.tpm.pcrs[pcr].hex() for pcr in selection},
            "aggregation": {"index": place.index, "path": [node.hex() for node in place.path]},
            "ak": {"public": _base64(self.tpm.ak_public)},
            "host_log": {"from": at, "entries": entries} if self.shows_log else None,
            "boot_log": None,
        }
        lie_after(proof)
        self._sent = (dict(self.table.filled()), self.table.slots, set(self.changed))
        return json.dumps(proof, separators=(",", ":")).encode() + b"\n"

    def heed(self, answer: Answer) -> None:
        """Take up what the service has confirmed."""
        if isinstance(answer, Accepted):
            now = answer.confirmed
            self.confirmed = now.model_copy(
                update={
                    "records": {**self.confirmed.records, **now.records},
                    "held": {**self.confirmed.held, **now.held},
                }
            )
            self._before, self._slots, sent = self._sent
            self.changed -= sent
            self.session = answer.session or self.session
        elif isinstance(answer, Resync):
            # This one keeps no old tables: from all zeros again.
            self.confirmed = answer.confirmed.model_copy(update={"base": None})
            self.changed = set(self.containers)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def replayed(one: Container) -> None:
    """Measure a container's records anew, after one was changed."""
    value = ZERO
    for record in one.records:
        digest = digest_of(record["content_type"], record["content"])
        record["digests"][0]["digest"] = digest.hex()
        value = extend(value, digest)
    one.partition._cpcr = value
