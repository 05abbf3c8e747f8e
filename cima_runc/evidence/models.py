"""Evidence: what the agent hands to a verifier, as JSON.

``docs/evidence.md`` describes every field for those who write a verifier of their own. Source:
design, section 7.
"""

from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_core import from_json

from cima_runc.base import limits
from cima_runc.base.jsonio import JsonError, JsonTooDeepError, JsonTooLargeError, load_object
from cima_runc.base.text import printable
from cima_runc.evidence.disclosure import Disclosure
from cima_runc.evidence.errors import (
    EvidenceError,
    EvidenceFormatError,
    EvidenceTooDeepError,
    EvidenceTooLargeError,
    EvidenceVersionError,
    first_of,
)
from cima_runc.evidence.fields import U64, Base64, Digest, Hex, Model, PcrNumber

__all__ = [
    "EvidenceError",
    "EvidenceTooDeepError",
    "EvidenceTooLargeError",
    "EvidenceVersionError",
    "first_of",
]

VERSION = 1
"""The version of evidence that this program writes and reads."""

ContainerId = Annotated[str, Field(min_length=1, max_length=limits.CONTAINER_ID)]
Nonce = Annotated[Hex, Field(min_length=limits.NONCE_MIN, max_length=limits.NONCE_MAX)]
TreePath = Annotated[tuple[Digest, ...], Field(min_length=1, max_length=limits.TREE_DEPTH)]
_TpmBytes = Annotated[Base64, Field(max_length=limits.TPM_STRUCTURE)]


class Request(Model):
    """What a verifier asks for."""

    container: ContainerId
    """The container's id; over the unix socket how it begins is enough."""
    nonce: Nonce
    """16 to 64 random bytes of the verifier."""
    host: Disclosure = "none"
    """How much of the host's log is shown."""
    since: U64 = 0
    """The first record that is wanted."""
    boot_log: bool = False
    """Whether the firmware's event log is wanted."""


class QuotePart(Model):
    """What the TPM signed."""

    attest: _TpmBytes
    """TPMS_ATTEST."""
    signature: _TpmBytes
    """TPMT_SIGNATURE over it."""
    pcrs: Annotated[dict[str, Digest], Field(max_length=24)]
    """The values of the quoted PCRs, SHA-256 bank, by their decimal number."""


class AggregationPart(Model):
    """Where this request is among those that share the quote (RFC 9162 shape)."""

    index: U64
    size: Annotated[int, Field(ge=1, le=limits.WAITING_REQUESTS)]
    path: Annotated[tuple[Digest, ...], Field(max_length=limits.TREE_DEPTH)]


class AkPart(Model):
    """The attestation key."""

    public: _TpmBytes
    """TPMT_PUBLIC; whether it is enrolled is for the verifier to know."""
    certificate: Annotated[Base64, Field(max_length=limits.KEY_FILE)] | None = None
    """X.509 certificate (DER) by who has enrolled it, where the host has one: the signed record of
    the credential activation."""


class LeafPart(Model):
    """A register's leaf in the tree."""

    slot: Annotated[int, Field(ge=0, lt=1 << limits.TREE_DEPTH)]
    path: TreePath
    """The siblings from the leaf up, lowest first."""
    leaf: Digest
    """SHA256(0x00 || HMAC-SHA256(secret, cPCR || u64be(count)))."""
    count: U64
    """Number of records in the register."""


class ForeignChange(Model):
    """The binding PCR was changed by somebody else."""

    seq: U64
    """The last bind before."""
    expected: Digest
    found: Digest
    time: Annotated[str, Field(max_length=64)]


class ForeignPart(Model):
    """All such changes of this boot."""

    count: U64
    last: Annotated[tuple[ForeignChange, ...], Field(max_length=limits.FOREIGN_SHOWN)]
    """The latest of them, oldest first."""


class GapTime(Model):
    """For a time, the host could not write records down (``disk``) or bind them (``tpm``)."""

    source: Literal["disk", "tpm"]
    since: Annotated[str, Field(max_length=64)]
    until: Annotated[str, Field(max_length=64)]


class GapsPart(Model):
    """All such times of this boot; what ran then was recorded and bound afterwards."""

    count: U64 = 0
    last: Annotated[tuple[GapTime, ...], Field(max_length=limits.FOREIGN_SHOWN)] = ()
    """The latest of them, oldest first."""


class BindingPart(LeafPart):
    """How the container's leaf got into the binding PCR."""

    pcr: PcrNumber
    seq: U64
    """Number of the bind."""
    root: Digest
    """The tree's root."""
    history: Digest
    """The PCR's value before the bind."""
    dependencies: LeafPart | None = None
    """The leaf of the partition of its dependencies, None where it has none."""
    foreign: ForeignPart
    gaps: GapsPart = GapsPart()


class Sealed(Model):
    """The owner's part, encrypted to one of his keys (see :mod:`cima_runc.evidence.seal`)."""

    key: Digest
    """SHA-256 of the public key."""
    data: Base64
    """Encapsulated key and ciphertext."""


class RecordsPart(Model):
    """Records of a partition, and what connects them with its leaf."""

    secret: Digest
    """The secret that the leaf is made with."""
    cpcr: Digest
    """The register after ``count`` records."""
    since: U64
    """Number of the first record here."""
    records: list[Any]
    """The records from ``since`` to the last that was bound; each is checked when it is read."""


class OwnerPart(RecordsPart):
    """What only the container's owner may see: its partition, and what it relies on."""

    dependencies: RecordsPart | None = None
    """All records of the host services that the container relies on, None where its registration
    names none."""


class HostLine(Model):
    """An entry of the host's log that is shown."""

    template: Annotated[str, Field(max_length=255)]
    data: Annotated[Hex, Field(max_length=limits.IMA_LINE)]
    """Template data."""
    violation: bool
    """Whether IMA extended 0xFF bytes in place of a hash."""


class HostLog(Model):
    """The entries of the kernel's log for the host's PCR, from the first on."""

    disclosure: Disclosure
    pcr: PcrNumber
    entries: tuple[Digest | HostLine, ...] = ()
    """What the PCR was extended with, or the entry itself."""


class Evidence(Model):
    """One container's evidence for one request."""

    type: Literal["cima-evidence"]
    version: Literal[1]
    container: ContainerId
    nonce: Nonce
    quote: QuotePart
    aggregation: AggregationPart
    ak: AkPart
    binding: BindingPart
    sealed: Annotated[tuple[Sealed, ...], Field(max_length=limits.OWNERS)] = ()
    """The owner's part, once for each of his keys."""
    owner: OwnerPart | None = None
    """The owner's part in the clear, where the container has no owner's key."""
    host_log: HostLog
    boot_log: Base64 | None = None
    """The firmware's event log (TCG PC Client Platform Firmware Profile, section 10)."""

    def to_json(self) -> bytes:
        """Return the evidence as it is sent."""
        return self.model_dump_json(exclude_none=True).encode("utf-8")


def parse_evidence(raw: bytes, *, limit: int = limits.EVIDENCE) -> Evidence:
    """Read evidence, from anybody.

    Raises:
        EvidenceTooLargeError: more than ``limit`` bytes.
        EvidenceTooDeepError: nested too deep.
        EvidenceVersionError: of a version other than :data:`VERSION`.
        EvidenceFormatError: anything else that is wrong with it.
    """
    value = _load(raw, limit, "the evidence")
    version = value.get("version")
    if value.get("type") != "cima-evidence":
        raise EvidenceFormatError(
            "the file is not evidence: its type is not cima-evidence",
            hint="make one with: cima attest",
        )
    if type(version) is not int or version != VERSION:
        raise EvidenceVersionError(
            f"the evidence is of version {printable(str(version)[:20])}, expected {VERSION}",
            hint="verify it with the cima that belongs to the agent that made it",
        )
    try:
        return Evidence.model_validate(_tuples(value))
    except ValidationError as error:
        raise EvidenceFormatError(f"the evidence is not well formed: {first_of(error)}") from error


def parse_owner_part(raw: bytes) -> OwnerPart:
    """Read the decrypted owner's part.

    Raises:
        EvidenceError: as for :func:`parse_evidence`.
    """
    value = _load(raw, limits.EVIDENCE, "the owner's part")
    try:
        return OwnerPart.model_validate(_tuples(value))
    except ValidationError as error:
        raise EvidenceFormatError(
            f"the owner's part is not well formed: {first_of(error)}"
        ) from error


def parse_request(raw: bytes) -> Request:
    """Read a request.

    Raises:
        EvidenceFormatError: not one.
    """
    try:
        value = load_object(raw, what="the request", limit=limits.REQUEST)
        return Request.model_validate(value)
    except JsonError as error:
        raise EvidenceFormatError(error.what) from error
    except ValidationError as error:
        raise EvidenceFormatError(f"the request is not well formed: {first_of(error)}") from error


def _load(raw: bytes, limit: int, what: str) -> dict[str, Any]:
    if len(raw) <= limit and (quick := _quickly(raw)) is not None:
        return quick
    try:
        return load_object(raw, what=what, limit=limit)
    except JsonTooLargeError as error:
        raise EvidenceTooLargeError(error.what) from error
    except JsonTooDeepError as error:
        raise EvidenceTooDeepError(error.what) from error
    except JsonError as error:
        raise EvidenceFormatError(error.what, hint="make one with: cima attest") from error


def _quickly(raw: bytes) -> dict[str, Any] | None:
    """Read JSON in a third of the time, where it is easy to see that no key is doubled.

    In text where no white space stands before a colon, and no backslash before ``":``, each ``":``
    ends a key. None where it is otherwise, and for all that is wrong.
    """
    if any(odd in raw for odd in (b"\t", b"\n", b"\r", b" :", b'\\":')):
        return None
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError:
        return None
    if isinstance(value, dict) and _count_keys(value, limits.JSON_DEPTH) == raw.count(b'":'):
        return value
    return None


def _count_keys(value: dict[str, Any], levels: int) -> int:
    """Return how many keys the objects hold, a number too large where they go too deep."""
    objects: list[dict[str, Any]] = [value]
    arrays: list[list[Any]] = []
    count = 0
    # One level after the other: a call for each of a million values would be most of the work.
    for _ in range(levels):
        count += sum(map(len, objects))
        items = [*chain.from_iterable(map(dict.values, objects)), *chain.from_iterable(arrays)]
        objects = [item for item in items if type(item) is dict]
        arrays = [item for item in items if type(item) is list]
        if not objects and not arrays:
            return count
    return 1 << 64


def _tuples(value: Any) -> Any:
    """Return JSON's lists as the tuples that frozen models hold, but for the records."""
    if isinstance(value, dict):
        return {key: item if key == "records" else _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
