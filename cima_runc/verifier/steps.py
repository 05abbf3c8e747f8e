"""The checks of evidence, each of them pure, in the order in which :mod:`verify` does them.

Source: design, section 7.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, get_args

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cima_runc.base.text import printable
from cima_runc.cpcr import register
from cima_runc.cpcr.binding import Bind
from cima_runc.cpcr.tree import leaf_hash, root_from_path
from cima_runc.evidence.disclosure import Disclosure
from cima_runc.evidence.models import (
    BindingPart,
    Evidence,
    EvidenceError,
    LeafPart,
    OwnerPart,
    RecordsPart,
    parse_owner_part,
)
from cima_runc.evidence.qualify import Inclusion, request_leaf, root_of
from cima_runc.evidence.seal import UnsealError, key_id, unseal
from cima_runc.ml.records import Record, RecordError, digest_of, parse_fields
from cima_runc.tpm.structures import (
    ClockInfo,
    NotAQuoteError,
    NotGeneratedError,
    PublicArea,
    QuoteBody,
    StructureError,
    parse_public,
    parse_quote,
    parse_signature,
    signed_by,
)
from cima_runc.verifier import errors
from cima_runc.verifier.ak_certificate import AkAuthority, AkCertificateError
from cima_runc.verifier.boot_log import EventLogError, replay
from cima_runc.verifier.enrolled import EnrolledAk
from cima_runc.verifier.host_log import prefix_that_gives
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.state import Remembered

_ANEW = "ask for new evidence with a new nonce"
_WHOLE = "ask for the whole of it: --since 0"
_REPORT = "the host or somebody on the way changed it: do not rely on this host"


def check_key(evidence: Evidence, enrolled: EnrolledAk | AkAuthority) -> PublicArea:
    """The AK is the enrolled one, and a restricted fixedTPM signing key."""
    try:
        public = parse_public(evidence.ak.public)
    except StructureError as error:
        raise errors.AkAttributesError(error.what, hint=error.hint) from error
    if isinstance(enrolled, AkAuthority):
        try:
            enrolled.check(evidence.ak.certificate, public)
        except AkCertificateError as error:
            raise errors.AkNotEnrolledError(
                error.what,
                expected=f"a certificate by {enrolled.certificate.subject.rfc4514_string()}",
                found=public.name.hex(),
                hint=error.hint,
            ) from error
    elif not enrolled.is_key_of(public):
        raise errors.AkNotEnrolledError(
            "the evidence is signed with another attestation key",
            expected=enrolled.name.hex() if enrolled.name else _fingerprint(enrolled.spki),
            found=public.name.hex(),
            hint="enrol the host again if its TPM was cleared or changed: cima enroll",
        )
    missing = public.missing_attributes()
    if missing:
        raise errors.AkAttributesError(
            "the attestation key is not a restricted key that stays in its TPM",
            expected="fixedTPM, fixedParent, sensitiveDataOrigin, restricted, sign, not decrypt",
            found=f"lacking: {', '.join(missing)}",
            hint="enrol a key made by cima-agent: cima enroll",
        )
    return public


def check_signature(evidence: Evidence, public: PublicArea) -> None:
    """The AK signed the quote."""
    try:
        signature = parse_signature(evidence.quote.signature)
    except StructureError as error:
        raise errors.SignatureError(error.what, hint=error.hint) from error
    if not signed_by(public.key, signature, evidence.quote.attest):
        raise errors.SignatureError(
            "the quote is not signed by the attestation key",
            expected=f"a signature of {public.name.hex()}",
            found="another signature",
            hint=_REPORT,
        )


def check_quote(evidence: Evidence, public: PublicArea) -> QuoteBody:
    """A TPM made what was signed, and it is a quote, by a key of the endorsement hierarchy."""
    try:
        body = parse_quote(evidence.quote.attest)
    except NotGeneratedError as error:
        raise errors.QuoteMagicError(error.what, hint=_REPORT) from error
    except NotAQuoteError as error:
        raise errors.QuoteTypeError(error.what, hint=_REPORT) from error
    except StructureError as error:
        raise errors.QuoteFormatError(error.what, hint=_REPORT) from error
    if body.qualified_signer != public.endorsement_qualified_name:
        raise errors.AkHierarchyError(
            "the attestation key is no primary key of the endorsement hierarchy",
            expected=public.endorsement_qualified_name.hex(),
            found=body.qualified_signer.hex(),
            hint="other hierarchies obscure resetCount: enrol a key made by cima-agent",
        )
    return body


def check_disclosure(evidence: Evidence, host: Disclosure, boot_log: bool) -> None:
    """As much of the host's log is shown as was asked for, and the firmware's log too."""
    shown = evidence.host_log.disclosure
    levels = get_args(Disclosure)
    if levels.index(shown) < levels.index(host):
        raise errors.DisclosureError(
            "less of the host's log is shown than was asked for",
            expected=host,
            found=shown,
            hint=_ANEW,
        )
    if boot_log and evidence.boot_log is None:
        raise errors.DisclosureError(
            "the firmware's event log is not shown, which was asked for",
            expected="an event log",
            found="none",
            hint=_ANEW,
        )


def check_selection(evidence: Evidence, body: QuoteBody, policy: Policy) -> None:
    """The signed selection of PCRs is what was asked for, and so is what the evidence says."""
    wanted = policy.selection(evidence.host_log.disclosure)
    if body.pcrs != wanted:
        raise errors.PcrSelectionError(
            "other PCRs were quoted than asked for",
            expected=_numbers(wanted),
            found=_numbers(body.pcrs),
            hint="set boot_pcrs, binding_pcr and host_pcr in the policy as the agent has them",
        )
    if evidence.binding.pcr != policy.binding_pcr or (
        evidence.host_log.disclosure != "none" and evidence.host_log.pcr != policy.host_pcr
    ):
        raise errors.PcrSelectionError(
            "the evidence means other PCRs than the policy",
            expected=f"binding {policy.binding_pcr}, host {policy.host_pcr}",
            found=f"binding {evidence.binding.pcr}, host {evidence.host_log.pcr}",
            hint="set binding_pcr and host_pcr in the policy as the agent has them",
        )
    if set(evidence.quote.pcrs) != {str(pcr) for pcr in wanted}:
        raise errors.PcrSelectionError(
            "the evidence names other PCRs than were quoted",
            expected=_numbers(wanted),
            found=printable(" ".join(sorted(evidence.quote.pcrs))[:200]),
            hint=_REPORT,
        )


def check_request(evidence: Evidence, body: QuoteBody, nonce: bytes, container: str | None) -> None:
    """The quote was made for this nonce and this container."""
    if evidence.nonce != nonce:
        raise errors.NonceError(
            "the evidence answers another request",
            expected=nonce.hex(),
            found=evidence.nonce.hex(),
            hint=_ANEW,
        )
    if container is not None and evidence.container != container:
        raise errors.ContainerError(
            "the evidence is of another container",
            expected=printable(container),
            found=printable(evidence.container),
            hint="ask for the evidence of that container",
        )
    part = evidence.aggregation
    leaf = request_leaf(nonce, evidence.container)
    root = root_of(leaf, Inclusion(part.index, part.size, part.path))
    if root != body.extra_data:
        raise errors.QualifyingDataError(
            "the quote was not made for this nonce and container",
            expected=root.hex() if root else "a path that fits index and size",
            found=body.extra_data.hex(),
            hint=_ANEW,
        )


def check_values(evidence: Evidence, body: QuoteBody) -> dict[int, bytes]:
    """The PCR values are those that were quoted; returns them."""
    values = {pcr: evidence.quote.pcrs[str(pcr)] for pcr in body.pcrs}
    digest = hashlib.sha256(b"".join(values.values())).digest()
    if digest != body.pcr_digest:
        raise errors.PcrValuesError(
            "the PCR values are not those that were quoted",
            expected=body.pcr_digest.hex(),
            found=digest.hex(),
            hint=_REPORT,
        )
    return values


def check_clock(
    clock: ClockInfo, public: PublicArea, policy: Policy, remembered: Remembered | None
) -> bool:
    """The TPM's counters have not gone back; returns whether the host has booted in between."""
    if policy.require_safe_clock and not clock.safe:
        raise errors.ClockUnsafeError(
            "the TPM does not vouch for its clock",
            expected="safe",
            found="not safe: the host lost power without a shutdown",
            hint="ask again in an hour at the latest, or set require_safe_clock = false",
        )
    if remembered is None:
        return False
    if remembered.ak_name != public.name:
        raise errors.AkNotEnrolledError(
            "the container was attested with another key before",
            expected=remembered.ak_name.hex(),
            found=public.name.hex(),
            hint="it is on another host, or the TPM was cleared: begin with a new --state",
        )
    if clock.reset_count < remembered.reset_count:
        raise errors.ResetCountError(
            "the TPM's count of resets has gone back",
            expected=f"{remembered.reset_count} or more",
            found=str(clock.reset_count),
            hint="the TPM was cleared, or is a copy of an earlier one: enrol the host again",
        )
    if clock.safe and clock.clock < remembered.clock:
        raise errors.ClockError(
            "the TPM's clock has gone back",
            expected=f"{remembered.clock} ms or more",
            found=f"{clock.clock} ms",
            hint="the TPM was cleared, or is a copy of an earlier one: enrol the host again",
        )
    return clock.reset_count > remembered.reset_count


def check_binding(binding: BindingPart, values: dict[int, bytes]) -> None:
    """The root follows from leaf and path, and the binding PCR from the history."""
    _check_path(binding, binding.root, errors.TreePathError)
    bind = Bind(binding.seq, binding.root, binding.history)
    value = values[binding.pcr]
    if bind.expected == value:
        return
    if binding.history == value:
        raise errors.QuoteBeforeBindingError(
            "the quote is older than the binding",
            expected=bind.expected.hex(),
            found=f"{value.hex()}, the value before bind {binding.seq}",
            hint=_ANEW,
        )
    raise errors.BindingError(
        f"PCR {binding.pcr} is not the history extended with bind {binding.seq}",
        expected=bind.expected.hex(),
        found=value.hex(),
        hint=_REPORT,
    )


def owner_part(evidence: Evidence, key: X25519PrivateKey | None) -> OwnerPart:
    """Return the owner's part, decrypted where it is sealed."""
    if evidence.owner is not None:
        return evidence.owner
    if key is None:
        raise errors.OwnerKeyError(
            "the container's records are encrypted to its owner",
            expected="the owner's private key",
            found="none",
            hint="give it with --owner-key",
        )
    own = key_id(key.public_key().public_bytes_raw())
    for sealed in evidence.sealed:
        if sealed.key != own:
            continue
        try:
            raw = unseal(sealed.data, key, evidence.container, evidence.nonce)
            return parse_owner_part(raw)
        except UnsealError as error:
            raise errors.OwnerKeyError(
                "the owner's part does not open",
                expected=f"encrypted to {own.hex()} for this container and nonce",
                found="a ciphertext that was changed or made for another request",
                hint=_ANEW,
            ) from error
        except EvidenceError as error:
            raise errors.RecordFormatError(error.what, hint=_REPORT) from error
    raise errors.OwnerKeyError(
        "the records are encrypted to others",
        expected=own.hex(),
        found=" ".join(sealed.key.hex() for sealed in evidence.sealed) or "no recipient",
        hint="give the private key of the owner that the container was started with",
    )


@dataclass(frozen=True)
class Replayed:
    """Records that add up to the register."""

    records: list[Record]
    value: bytes
    """The register after them."""
    watched: bytes | None
    """The register after as many records as were remembered."""


def check_leaf(
    part: RecordsPart,
    leaf: LeafPart,
    *,
    start: bytes,
    name: str,
    watch: int | None = None,
) -> Replayed:
    """The records are all there and in order, and with the secret give the leaf.

    ``start`` is the register before the first of them, ``name`` what they must be named after;
    ``watch`` is the count after which the register's value is wanted.
    """
    records = _in_order(part, name)
    if part.since + len(records) != leaf.count:
        raise errors.RecordCountError(
            "there are not as many records as were bound",
            expected=f"{leaf.count} records",
            found=f"{part.since + len(records)}",
            hint=_REPORT,
        )
    value = start
    watched = value if watch == part.since else None
    sha256 = hashlib.sha256
    for record in records:
        value = sha256(value + record.digest).digest()
        if record.recnum + 1 == watch:
            watched = value
    if value != part.cpcr:
        raise errors.RegisterError(
            "the records do not add up to the register",
            expected=part.cpcr.hex(),
            found=value.hex(),
            hint=_REPORT,
        )
    found = leaf_hash(part.secret, value, leaf.count)
    if found != leaf.leaf:
        raise errors.LeafError(
            "secret, register and count do not give the leaf that was bound",
            expected=leaf.leaf.hex(),
            found=found.hex(),
            hint=_REPORT,
        )
    return Replayed(records, value, watched)


def check_digests(records: Sequence[Record]) -> None:
    """Each record's digest is that of its content."""
    for record in records:
        try:
            digest = digest_of(record.content_type, record.content)
        except RecordError as error:
            raise errors.RecordFormatError(f"record {record.recnum}: {error.what}") from error
        if digest != record.digest:
            raise errors.RecordDigestError(
                f"the content of record {record.recnum} is not what was measured",
                expected=record.digest.hex(),
                found=digest.hex(),
                hint=_REPORT,
            )


@dataclass(frozen=True)
class Registration:
    """What a container's first record says."""

    number: int
    """The registration's number on the host."""
    dependencies: int | None
    """The number of its dependencies' partition, None where they could not be found."""


def registration_of(records: Sequence[Record], container: str) -> Registration:
    """Read a container's first record."""
    match records:
        case [Record(content_type="cima", content=first), *_] if (
            first.get("type") == "register" and first.get("id") == container
        ):
            number, dependencies = first.get("registration"), first.get("dependencies")
            if _is_number(number) and (dependencies is None or _is_number(dependencies)):
                return Registration(number, dependencies)
    raise errors.RecordFormatError(
        "the first record is not the registration of this container",
        expected=f"a record register of {printable(container)}",
        found="another record",
        hint=_REPORT,
    )


def check_progress(
    binding: BindingPart,
    replayed: Replayed,
    registration: int,
    first: bytes,
    remembered: Remembered,
) -> None:
    """Neither the binding nor the container has gone back since the same boot's last evidence."""
    if binding.seq < remembered.seq:
        raise errors.RollbackError(
            "the number of binds has gone back",
            expected=f"{remembered.seq} or more",
            found=str(binding.seq),
            hint="the agent's state was lost or put back: do not rely on this host until it boots",
        )
    if first != remembered.first:
        if registration <= remembered.registration:
            raise errors.RollbackError(
                "an earlier registration of the container is shown",
                expected=f"a registration after {remembered.registration}",
                found=str(registration),
                hint=_REPORT,
            )
        return
    if binding.count < remembered.count or replayed.watched != remembered.cpcr:
        raise errors.RollbackError(
            "the container's records do not continue those that are remembered",
            expected=f"{remembered.cpcr.hex()} after {remembered.count} records",
            found=replayed.watched.hex() if replayed.watched else f"{binding.count} records",
            hint=_REPORT,
        )


def check_dependencies(
    part: RecordsPart | None, binding: BindingPart, named: int | None
) -> list[Record]:
    """The dependencies' partition is bound by the same root; returns its records.

    ``named`` is the partition that the container's registration names.
    """
    leaf = binding.dependencies
    if part is None or leaf is None:
        if named is not None:
            raise errors.DependenciesError(
                "the dependencies that the container's registration names are not shown",
                expected=str(named),
                found="none",
                hint=_ANEW,
            )
        return []
    _check_path(leaf, binding.root, errors.DependenciesError)
    if part.since:
        raise errors.DependenciesError("the dependencies' records are not all there", hint=_WHOLE)
    try:
        replayed = check_leaf(part, leaf, start=register.ZERO, name=_own_name(part))
        check_digests(replayed.records)
    except errors.VerificationError as error:
        raise errors.DependenciesError(
            f"the dependencies: {error.what}",
            expected=error.expected,
            found=error.found,
            hint=error.hint,
        ) from error
    shown = replayed.records[0].content.get("registration")
    if named != shown:
        raise errors.DependenciesError(
            "the dependencies are not those that the container's registration names",
            expected=str(named),
            found=str(shown),
            hint=_REPORT,
        )
    return replayed.records


def check_host_log(evidence: Evidence, values: dict[int, bytes]) -> int | None:
    """The host's log adds up to its PCR; returns after how many entries, None where not shown."""
    log = evidence.host_log
    if log.disclosure == "none":
        return None
    value = values[log.pcr]
    proved = prefix_that_gives(log.entries, value)
    if proved is None:
        raise errors.HostLogError(
            f"the host's log does not add up to PCR {log.pcr}",
            expected=value.hex(),
            found=f"no such value after any of {len(log.entries)} entries",
            hint=_REPORT,
        )
    return proved


def check_boot_log(evidence: Evidence, values: dict[int, bytes], policy: Policy) -> bool:
    """The event log, where there is one, adds up to the boot PCRs; returns whether there is."""
    if evidence.boot_log is None:
        return False
    try:
        replayed = replay(evidence.boot_log)
    except EventLogError as error:
        raise errors.BootLogError(error.what, hint=_ANEW) from error
    for pcr in policy.boot_pcrs:
        expected = replayed.get(pcr, bytes(32))
        if expected != values[pcr]:
            raise errors.BootLogError(
                f"the firmware's event log does not add up to PCR {pcr}",
                expected=values[pcr].hex(),
                found=expected.hex(),
                hint=_REPORT,
            )
    return True


def _check_path(leaf: LeafPart, root: bytes, error: Callable[..., Exception]) -> None:
    if leaf.slot >= 1 << len(leaf.path):
        found = f"slot {leaf.slot} of a tree of {1 << len(leaf.path)}"
    else:
        led = root_from_path(leaf.leaf, leaf.slot, leaf.path)
        if led == root:
            return
        found = led.hex()
    raise error(
        "the path does not lead from the leaf to the root",
        expected=root.hex(),
        found=found,
        hint=_REPORT,
    )


def _own_name(part: RecordsPart) -> str:
    """Return the id in a partition's first content, which every record must be named after."""
    match part.records:
        case [{"content": {"type": "register", "id": str(name)}}, *_]:
            return name
    raise errors.RecordFormatError("the first record is no registration", hint=_REPORT)


def _in_order(part: RecordsPart, name: str) -> list[Record]:
    records: list[Record] = []
    expected = part.since
    for value in part.records:
        record = _record(value)
        if record.recnum != expected:
            raise _disorder(part.records, part.since, expected, record.recnum)
        if record.cpcr != name:
            raise errors.ForeignRecordError(
                f"record {record.recnum} is of another container",
                expected=printable(name),
                found=printable(record.cpcr),
                hint=_REPORT,
            )
        records.append(record)
        expected += 1
    return records


def _disorder(values: list[Any], since: int, expected: int, found: int) -> errors.VerificationError:
    rest = values[expected - since :]
    later = [value.get("recnum") for value in rest if isinstance(value, dict)]
    kind: Callable[..., errors.VerificationError]
    if since <= found < expected:
        kind, what = errors.RecordRepeatedError, "stands there twice"
    elif expected in later:
        kind, what = errors.RecordOrderError, "is out of order"
    else:
        kind, what = errors.RecordMissingError, f"follows where {expected} is missing"
    return kind(
        f"record {found} {what}",
        expected=f"record {expected}",
        found=f"record {found}",
        hint=_REPORT,
    )


def _is_number(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 64


def _record(value: Any) -> Record:
    try:
        return parse_fields(value)
    except RecordError as error:
        raise errors.RecordFormatError(error.what, hint=_REPORT) from error


def _numbers(pcrs: Sequence[int]) -> str:
    return " ".join(map(str, pcrs)) or "none"


def _fingerprint(spki: bytes) -> str:
    return f"the key with SHA-256 {hashlib.sha256(spki).hexdigest()}"
