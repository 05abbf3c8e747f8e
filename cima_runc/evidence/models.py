"""Evidence: what the agent hands to a verifier, as JSON.

``docs/evidence.md`` describes every field for those who write a verifier of their own. Source:
design, sections 6 and 7.
"""

from collections.abc import Sequence
from itertools import chain
from math import isinf
from typing import Annotated, Any, Literal, Self

import pydantic_core
from pydantic import Field, ValidationError, model_validator
from pydantic_core import from_json

from cima_runc.base import limits
from cima_runc.base.jsonio import JsonError, JsonTooDeepError, JsonTooLargeError, load_object
from cima_runc.base.text import printable
from cima_runc.cpcr.status import Status
from cima_runc.evidence.aggregation import DEPTH
from cima_runc.evidence.errors import (
    EvidenceFormatError,
    EvidenceTooDeepError,
    EvidenceTooLargeError,
    EvidenceVersionError,
    first_of,
)
from cima_runc.evidence.fields import Base64, Count, Digest, Hex, Model, PcrNumber, as_tuples
from cima_runc.evidence.request import ContainerId, Disclosure, Nonce, Request

VERSION = 2
"""The version of evidence that this program writes and reads."""

TreePath = Annotated[tuple[Digest, ...], Field(min_length=10, max_length=limits.TREE_DEPTH)]
Slot = Annotated[int, Field(ge=0, lt=1 << limits.TREE_DEPTH)]
Run = Annotated[Count, Field(ge=1)]
_TpmBytes = Annotated[Base64, Field(max_length=limits.TPM_STRUCTURE)]
_PCR_NAMES = frozenset(map(str, range(24)))


def _check_slot(slot: int, path: Sequence[bytes]) -> None:
    if slot >> len(path):
        raise ValueError(f"slot {slot} is not in a tree of 2^{len(path)} slots")


class QuotePart(Model):
    """What the TPM signed."""

    attest: _TpmBytes
    """TPMS_ATTEST."""
    signature: _TpmBytes
    """TPMT_SIGNATURE over it."""
    pcrs: Annotated[dict[str, Digest], Field(min_length=1, max_length=24)]
    """The values of the quoted PCRs, SHA-256 bank, by their decimal number."""

    @model_validator(mode="after")
    def _numbers_are_canonical(self) -> Self:
        if not self.pcrs.keys() <= _PCR_NAMES:
            raise ValueError("a PCR is a decimal number from 0 to 23")
        return self


class AggregationPart(Model):
    """Where this request is among the places that share the quote."""

    index: Annotated[int, Field(ge=0, lt=limits.AGGREGATION_PLACES)]
    path: Annotated[tuple[Digest, ...], Field(min_length=DEPTH, max_length=DEPTH)]
    """The siblings, lowest first."""


class AkPart(Model):
    """The attestation key."""

    public: _TpmBytes
    """TPMT_PUBLIC; whether it is enrolled is for the verifier to know."""
    certificate: Annotated[Base64, Field(max_length=limits.KEY_FILE)] | None = None
    """X.509 certificate (DER) by who has enrolled it, where the host has one: the signed record of
    the credential activation."""


class BindingPart(Model):
    """How the container's leaf got into the binding PCR."""

    pcr: PcrNumber
    status: Status
    host: Digest
    """SHA256(0x05 || hostkey || table)."""
    root: Digest
    """The blinded tree's root."""
    history: Digest
    """The PCR's value before the bind, after its veil."""
    slot: Slot
    leaf: Digest
    """SHA256(0x00 || blind || inner)."""
    path: TreePath
    """The siblings from the leaf up, lowest first."""

    @model_validator(mode="after")
    def _slot_is_in_the_tree(self) -> Self:
        _check_slot(self.slot, self.path)
        return self


class RunPart(Model):
    """The records of one run of the container's line."""

    run: Run
    id: ContainerId
    """The container that this run was."""
    registration: Count
    secret: Digest
    """What its register was masked with; the last run's makes the leaf."""
    since: Count
    """Number of the first record here."""
    records: list[Any]
    """The records from ``since`` on; each is checked when it is read."""


class MissingPart(Model):
    """Records of a run that the host does not keep any more."""

    run: Run
    from_: Annotated[Count, Field(alias="from")]
    """Number of the first of them."""
    to: Count
    """Number after the last of them."""


class ServicesPart(Model):
    """The host services that the container relies on: a partition with a leaf of its own under the
    same root. All of its records are here."""

    registration: Count
    slot: Slot
    leaf: Digest
    path: TreePath
    blind: Digest
    secret: Digest
    cpcr: Digest
    count: Count
    records: list[Any]

    @model_validator(mode="after")
    def _slot_is_in_the_tree(self) -> Self:
        _check_slot(self.slot, self.path)
        return self


class OwnerPart(Model):
    """What only the container's owner may see."""

    request: Request
    """What was asked, of which evidence shows the digest."""
    line: Digest
    """What the runs are runs of."""
    blind: Digest
    """What covers the leaf."""
    cpcr: Digest
    """The last run's register at the bind."""
    count: Count
    """How many records were in it then."""
    runs: Annotated[tuple[RunPart, ...], Field(min_length=1)]
    """Oldest first; the last one is the one with the leaf."""
    missing: tuple[MissingPart, ...]
    services: ServicesPart | None
    """None where the registration names none."""


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
    entries: tuple[Digest | HostLine, ...]
    """What the PCR was extended with, or the entry itself: ``redacted`` shows the first entry and
    hashes, ``full`` only entries, ``none`` nothing."""

    @model_validator(mode="after")
    def _as_disclosed(self) -> Self:
        shown = [isinstance(entry, HostLine) for entry in self.entries]
        fits = {
            "none": not shown,
            "redacted": bool(shown) and shown[0] and not any(shown[1:]),
            "full": bool(shown) and all(shown),
        }
        if not fits[self.disclosure]:
            raise ValueError(f"the entries are not those of a log that is {self.disclosure}")
        return self


class Outside(Model):
    """Evidence without what is under the seal: this is what everybody sees."""

    type: Literal["cima-evidence"]
    version: Literal[2]
    container: ContainerId
    nonce: Nonce
    request: Digest
    """SHA-256 of the request's RFC 8785 bytes."""
    quote: QuotePart
    aggregation: AggregationPart
    ak: AkPart
    binding: BindingPart
    sealed: Annotated[tuple[Base64, ...], Field(min_length=1, max_length=limits.OWNERS)] | None = (
        None
    )
    """The owner's part, once for each of the owner's keys, in no order: encapsulated key and
    ciphertext (see :mod:`cima_runc.evidence.seal`)."""
    host_log: HostLog
    boot_log: Base64 | None = None
    """The firmware's event log (TCG PC Client Platform Firmware Profile, section 10)."""

    def to_json(self, owner: bytes | None = None) -> bytes:
        """Return evidence as it is sent, with the ``owner`` part in the clear where there is one:
        as JSON, padded."""
        value = self.model_dump(mode="json", exclude={"owner"})
        for holder, key in ((value, "sealed"), (value, "boot_log"), (value["ak"], "certificate")):
            if holder[key] is None:
                del holder[key]
        raw = pydantic_core.to_json(value)
        return raw if owner is None else raw[:-1] + b',"owner":' + owner + b"}"


class Evidence(Outside):
    """One container's evidence for one request."""

    owner: OwnerPart | None = None
    """The owner's part in the clear, where the container has no owner's key."""

    @model_validator(mode="after")
    def _one_owner_part(self) -> Self:
        if (self.sealed is None) == (self.owner is None):
            raise ValueError("there is either sealed or owner")
        return self


def parse_evidence(raw: bytes, *, limit: int = limits.EVIDENCE) -> Evidence:
    """Read evidence, from anybody.

    Raises:
        EvidenceTooLargeError: more than ``limit`` bytes.
        EvidenceTooDeepError: nested too deep.
        EvidenceVersionError: of a version other than :data:`VERSION`.
        EvidenceFormatError: anything else that is wrong with it.
    """
    value = _load(raw, limit, "the evidence")
    if value.get("type") != "cima-evidence":
        raise EvidenceFormatError(
            "the file is not evidence: its type is not cima-evidence",
            hint="make one with: cima attest",
        )
    version = value.get("version")
    if type(version) is not int or version != VERSION:
        raise EvidenceVersionError(
            f"the evidence is of version {printable(str(version)[:20])}, expected {VERSION}",
            hint="verify it with the cima that belongs to the agent that made it",
        )
    if "sealed" in value and "owner" in value:
        raise EvidenceFormatError("the evidence is not well formed: it has sealed and owner")
    try:
        return Evidence.model_validate(as_tuples(value))
    except ValidationError as error:
        raise EvidenceFormatError(f"the evidence is not well formed: {first_of(error)}") from error


def parse_owner_part(raw: bytes) -> OwnerPart:
    """Read the decrypted owner's part.

    Raises:
        EvidenceError: as for :func:`parse_evidence`.
    """
    value = _load(raw, limits.EVIDENCE, "the owner's part")
    try:
        return OwnerPart.model_validate(as_tuples(value))
    except ValidationError as error:
        raise EvidenceFormatError(
            f"the owner's part is not well formed: {first_of(error)}"
        ) from error


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


_HOLDERS = frozenset({dict, list, float})


def _count_keys(value: dict[str, Any], levels: int) -> int:
    """Return how many keys the objects hold; a number too large where they go too deep, or one is
    in them that no double holds."""
    objects: list[dict[str, Any]] = [value]
    arrays: list[list[Any]] = []
    count = 0
    # One level after the other: a call for each of a million values would be most of the work.
    for _ in range(levels):
        count += sum(map(len, objects))
        items = chain(chain.from_iterable(map(dict.values, objects)), chain.from_iterable(arrays))
        holders = [item for item in items if type(item) in _HOLDERS]
        if any(type(item) is float and isinf(item) for item in holders):
            break
        objects = [item for item in holders if type(item) is dict]
        arrays = [item for item in holders if type(item) is list]
        if not objects and not arrays:
            return count
    return 1 << 64
