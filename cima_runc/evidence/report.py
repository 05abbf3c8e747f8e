"""A host's report to its fleet's service: two lines of JSON.

The first is the payload, which the quote is made for; the second is the quote and what proves
itself. ``docs/fleet-report.md`` describes every field. Source: fleet, section 3; design, 7.
"""

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

import rfc8785
from pydantic import Field, ValidationError, model_validator

from cima_runc.base import limits
from cima_runc.base.jsonio import JsonError, JsonTooDeepError, JsonTooLargeError, load_object
from cima_runc.cpcr.inner import EMPTY
from cima_runc.cpcr.status import Status
from cima_runc.cpcr.table import MINIMUM_SLOTS
from cima_runc.evidence.errors import (
    EvidenceFormatError,
    EvidenceTooDeepError,
    EvidenceTooLargeError,
    first_of,
)
from cima_runc.evidence.fields import Base64, Count, Digest, Hex, Model, as_tuples
from cima_runc.evidence.models import AggregationPart, AkPart, HostLine, QuotePart
from cima_runc.evidence.request import Nonce

VERSION = 1
"""The version of reports that this program writes and reads."""

AkName = Annotated[Hex, Field(min_length=34, max_length=34)]
"""TPM_ALG_SHA256 and SHA-256 of the attestation key's public area."""
BootId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
"""The kernel's random id of a boot."""
Slot = Annotated[int, Field(ge=0, lt=limits.REPORT_SLOTS)]
_Slots = Annotated[int, Field(ge=MINIMUM_SLOTS, le=limits.REPORT_SLOTS)]
_Owner = Annotated[str, Field(pattern=r"^x25519:[A-Za-z0-9+/]{43}=$")]
_Id = Annotated[
    str,
    Field(
        max_length=limits.CONTAINER_ID,
        pattern=r"^(([0-9]{1,10}/)?[A-Za-z0-9_+,.-]+|dependencies:[0-9]{1,16})$",
    ),
]
"""Of a container, as runc allows it, with its user where that is not root; or of host services."""


class Listed(Model):
    """A container, or a partition of host services, of which something is new to the service.

    Of what the service cannot read, all of it but the slot is the host's word.
    """

    registration: Count
    slot: Slot | None
    """Where its register is; None: it has ended and another run of its line has followed."""
    id: _Id
    kind: Literal["container", "dependencies"]
    state: Literal["created", "running", "stopped"]
    count: Count
    """Records in its register at the bind."""
    boot_id: BootId | None
    """Its boot; None: this one."""
    line: Digest | None
    run: Annotated[Count, Field(ge=1)] | None
    owners: Annotated[tuple[_Owner, ...], Field(max_length=limits.OWNERS)]
    """Public keys of its owner."""
    services: Count | None
    """Registration of the partition of the host services that it relies on."""
    secret: Digest | None
    """What its register is masked with, where the service may read its records."""


class RecordsPart(Model):
    """Records of one registration that the service may read."""

    registration: Count
    since: Count
    """Number of the first of them."""
    records: Annotated[list[Any], Field(min_length=1)]
    """As in evidence; each is checked when it is read."""


class Payload(Model):
    """The first line: what the host says, and the quote is made for."""

    type: Literal["cima-report"] = "cima-report"
    version: Literal[1] = 1
    nonce: Nonce
    """As the service issued it."""
    ak: AkName
    boot_id: BootId
    hostkey: Digest
    status: Status
    root: Digest
    """The blinded tree's root; zero unless the bind was a tenant's."""
    history: Digest
    """The binding PCR's value before the bind, after its veil."""
    base: Digest | None
    """The table that the changes begin from; None: from all zeros."""
    slots: _Slots
    """Slots of the table now, a power of two."""
    changes: Annotated[tuple[tuple[Slot, Digest], ...], Field(max_length=limits.REPORT_SLOTS)]
    """Slots that are another now, ascending, and what is in them."""
    containers: Annotated[tuple[Listed, ...], Field(max_length=limits.REPORT_CONTAINERS)]
    records: Annotated[
        tuple[RecordsPart, ...], Field(strict=False, max_length=limits.REPORT_CONTAINERS)
    ]

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if self.slots & (self.slots - 1):
            raise ValueError("slots is no power of two")
        numbers = [slot for slot, _ in self.changes]
        if any(one >= other for one, other in itertools.pairwise(numbers)):
            raise ValueError("changes are not in ascending order of their slots")
        if numbers and numbers[-1] >= self.slots:
            raise ValueError("changes name a slot that the table does not have")
        if self.base is None and any(inner == EMPTY for _, inner in self.changes):
            raise ValueError("changes from all zeros name a slot that is empty")
        for what, several in (
            ("containers", [one.registration for one in self.containers]),
            ("records", [one.registration for one in self.records]),
        ):
            if len(set(several)) != len(several):
                raise ValueError(f"{what} name a registration twice")
        return self

    def to_line(self) -> bytes:
        """Return the payload as it is sent, without its newline."""
        return self.model_dump_json().encode("utf-8")


class ReportedLog(Model):
    """What the service has not confirmed yet of the host's log."""

    from_: Annotated[Count, Field(alias="from")]
    """How many entries the service has."""
    entries: tuple[Digest | HostLine, ...]
    """What the host's PCR was extended with after them, or the entry itself."""


class Proof(Model):
    """The second line."""

    quote: QuotePart
    aggregation: AggregationPart
    ak: AkPart
    host_log: ReportedLog | None
    """None: the host's log is not shown, and its PCR not quoted."""
    boot_log: Annotated[Base64, Field(max_length=limits.EVENT_LOG)] | None
    """The firmware's event log, once in a boot."""

    @model_validator(mode="before")
    @classmethod
    def _pcrs_beside_the_quote(cls, value: Any) -> Any:
        # On the wire, the values stand beside the quote: ``{quote, pcrs, aggregation, …}``.
        if isinstance(value, dict) and isinstance(value.get("quote"), dict) and "pcrs" in value:
            rest = {key: item for key, item in value.items() if key != "pcrs"}
            if "pcrs" in value["quote"]:
                raise ValueError("pcrs stand beside the quote, not in it")
            return {**rest, "quote": {**value["quote"], "pcrs": value["pcrs"]}}
        return value

    def to_line(self) -> bytes:
        """Return the proof as it is sent, without its newline."""
        value = self.model_dump(mode="json", by_alias=True)
        value["pcrs"] = value["quote"].pop("pcrs")
        if value["ak"]["certificate"] is None:
            del value["ak"]["certificate"]
        return json.dumps(value, separators=(",", ":")).encode("ascii")


@dataclass(frozen=True)
class Report:
    """A report that is well formed; nothing of it is proved."""

    line: bytes
    """The payload as it was sent, which the quote is made for."""
    payload: Payload
    proof: Proof

    def claim(self) -> bytes:
        """Return what the report's leaf is over, :func:`claim_digest`."""
        return claim_digest(self.payload.ak, self.payload.nonce, self.line)


def claim_digest(ak: bytes, nonce: bytes, line: bytes) -> bytes:
    """Return SHA-256 of the RFC 8785 bytes of ``{ak, nonce, payload}``, 32 bytes.

    ``ak`` is the name (34 bytes) in hex, ``nonce`` as it was issued in hex, ``payload`` the hex of
    SHA-256 over ``line``, the report's first line without its newline.
    """
    claim = {"ak": ak.hex(), "nonce": nonce.hex(), "payload": hashlib.sha256(line).hexdigest()}
    return hashlib.sha256(rfc8785.dumps(claim)).digest()


def report_body(line: bytes, proof: Proof) -> bytes:
    """Return a report as it is sent, before compression."""
    return line + b"\n" + proof.to_line() + b"\n"


def parse_report(body: bytes) -> Report:
    """Read a report, from anybody.

    Raises:
        EvidenceTooLargeError: more than ``limits.REPORT`` bytes.
        EvidenceTooDeepError: nested too deep.
        EvidenceFormatError: anything else that is wrong with it.
    """
    if len(body) > limits.REPORT:
        raise EvidenceTooLargeError(f"the report has more than {limits.REPORT} bytes")
    lines = body.removesuffix(b"\n").split(b"\n", 2)
    if len(lines) != 2:
        raise EvidenceFormatError("a report has two lines: the payload, and the proof")
    payload = _parse(Payload, lines[0], "the report's payload")
    return Report(lines[0], payload, _parse(Proof, lines[1], "the report's proof"))


_Any = TypeVar("_Any", bound=Model)


def _parse(kind: type[_Any], raw: bytes, what: str) -> _Any:
    try:
        value = load_object(raw, what=what, limit=limits.REPORT)
    except JsonTooLargeError as error:
        raise EvidenceTooLargeError(error.what) from error
    except JsonTooDeepError as error:
        raise EvidenceTooDeepError(error.what) from error
    except JsonError as error:
        raise EvidenceFormatError(error.what) from error
    try:
        return kind.model_validate(as_tuples(value))
    except ValidationError as error:
        raise EvidenceFormatError(f"{what} is not well formed: {first_of(error)}") from error
