"""The enrolled key of a TPM signed a quote, of the PCRs and for the request that were asked for."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cima_runc.base.text import printable
from cima_runc.cpcr.tree import root_from_path
from cima_runc.evidence.models import Evidence
from cima_runc.evidence.request import Asker, leaf
from cima_runc.tpm.structures import ClockInfo, PublicArea, QuoteBody, StructureError, parse_public
from cima_runc.verifier import errors
from cima_runc.verifier.ak_certificate import AkAuthority, AkCertificateError
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.signed_quote import signed_quote
from cima_runc.verifier.steps.hints import ANEW, REPORT
from cima_runc.verifier.steps.parsed import Parsed

KnownBy = Literal["name", "certificate", "key"]
"""How the attestation key is known: by its TPM name, which covers its attributes; by a certificate,
which holds the name; by the key alone, its attributes on the evidence's word."""


@dataclass(frozen=True)
class Signed:
    """A quote that the enrolled key signed, whatever it is of."""

    evidence: Evidence
    public: PublicArea
    label: str
    """What the host was called when it was enrolled; a label, it proves nothing."""
    known_by: KnownBy
    body: QuoteBody


@dataclass(frozen=True)
class Quoted:
    """A fresh quote, and the PCR values that it stands for."""

    signed: Signed
    values: Mapping[int, bytes]

    @property
    def evidence(self) -> Evidence:
        """The evidence."""
        return self.signed.evidence

    @property
    def clock(self) -> ClockInfo:
        """The TPM's counters at the quote."""
        return self.signed.body.clock


def check_signed(parsed: Parsed, wanted: Expectation) -> Signed:
    """The AK is the enrolled one, a restricted fixedTPM signing key, and it signed a quote."""
    evidence = parsed.evidence
    try:
        public = parse_public(evidence.ak.public)
    except StructureError as error:
        raise errors.AkAttributesError(error.what, hint=error.hint) from error
    label, known_by = _check_enrolled(evidence, public, wanted)
    missing = public.missing_attributes()
    if missing:
        raise errors.AkAttributesError(
            "the attestation key is not a restricted key that stays in its TPM",
            expected="fixedTPM, fixedParent, sensitiveDataOrigin, restricted, sign, not decrypt",
            found=f"lacking: {', '.join(missing)}",
            hint="enrol a key made by cima-agent: cima enroll",
        )
    return Signed(evidence, public, label, known_by, signed_quote(evidence.quote, public))


def check_quoted(signed: Signed, wanted: Expectation) -> Quoted:
    """It is of the PCRs that were asked for, made for this request, with a clock that holds."""
    _check_disclosure(signed.evidence, wanted)
    _check_selection(signed, wanted)
    _check_qualified(signed, wanted)
    values = _values(signed)
    if wanted.policy.require_safe_clock and not signed.body.clock.safe:
        raise errors.ClockUnsafeError(
            "the TPM does not vouch for its clock",
            expected="safe",
            found="not safe: the host lost power without a shutdown",
            hint="ask again in an hour at the latest, or set require_safe_clock = false",
        )
    return Quoted(signed, values)


def _check_enrolled(
    evidence: Evidence, public: PublicArea, wanted: Expectation
) -> tuple[str, KnownBy]:
    enrolled = wanted.ak
    if isinstance(enrolled, AkAuthority):
        try:
            return enrolled.check(evidence.ak.certificate, public), "certificate"
        except AkCertificateError as error:
            raise errors.AkNotEnrolledError(
                error.what,
                expected=enrolled.described,
                found=public.name.hex(),
                hint=error.hint,
            ) from error
    if not enrolled.is_key_of(public):
        raise errors.AkNotEnrolledError(
            "the evidence is signed with another attestation key",
            expected=enrolled.name.hex() if enrolled.name else _fingerprint(enrolled.spki),
            found=public.name.hex(),
            hint="enrol the host again if its TPM was cleared or changed: cima enroll",
        )
    return enrolled.label, "name" if enrolled.name else "key"


def _check_disclosure(evidence: Evidence, wanted: Expectation) -> None:
    if evidence.host_log.disclosure != wanted.host:
        raise errors.DisclosureError(
            "the host's log is not shown as it was asked for",
            expected=wanted.host,
            found=evidence.host_log.disclosure,
            hint=f"{ANEW}, or verify with --host as it was asked for",
        )
    if (evidence.boot_log is not None) != wanted.boot_log:
        asked, found = ("an event log", "none") if wanted.boot_log else ("none", "an event log")
        raise errors.DisclosureError(
            "the firmware's event log is not shown as it was asked for",
            expected=asked,
            found=found,
            hint=f"{ANEW}, or verify with --boot-log as it was asked for",
        )


def _check_selection(signed: Signed, wanted: Expectation) -> None:
    evidence, policy = signed.evidence, wanted.policy
    selection = policy.selection(wanted.host)
    if signed.body.pcrs != selection:
        raise errors.PcrSelectionError(
            "other PCRs were quoted than asked for",
            expected=_numbers(selection),
            found=_numbers(signed.body.pcrs),
            hint="set boot_pcrs, binding_pcr and host_pcr in the policy as the agent has them",
        )
    if evidence.binding.pcr != policy.binding_pcr or evidence.host_log.pcr != policy.host_pcr:
        raise errors.PcrSelectionError(
            "the evidence means other PCRs than the policy",
            expected=f"binding {policy.binding_pcr}, host {policy.host_pcr}",
            found=f"binding {evidence.binding.pcr}, host {evidence.host_log.pcr}",
            hint="set binding_pcr and host_pcr in the policy as the agent has them",
        )
    if set(evidence.quote.pcrs) != {str(pcr) for pcr in selection}:
        raise errors.PcrSelectionError(
            "the evidence names other PCRs than were quoted",
            expected=_numbers(selection),
            found=printable(" ".join(sorted(evidence.quote.pcrs))[:200]),
            hint=REPORT,
        )


def _check_qualified(signed: Signed, wanted: Expectation) -> None:
    evidence = signed.evidence
    if evidence.nonce != wanted.nonce:
        raise errors.NonceError(
            "the evidence answers another request",
            expected=wanted.nonce.hex(),
            found=evidence.nonce.hex(),
            hint=ANEW,
        )
    if wanted.container is not None and evidence.container != wanted.container:
        raise errors.ContainerError(
            "the evidence is of another container",
            expected=printable(wanted.container),
            found=printable(evidence.container),
            hint="ask for the evidence of that container",
        )
    place = evidence.aggregation
    root = root_from_path(leaf(Asker.OUTSIDE, evidence.request), place.index, place.path)
    if root != signed.body.extra_data:
        raise errors.QualifyingDataError(
            "the quote was not made for this request",
            expected=root.hex(),
            found=signed.body.extra_data.hex(),
            hint=ANEW,
        )


def _values(signed: Signed) -> Mapping[int, bytes]:
    values = {pcr: signed.evidence.quote.pcrs[str(pcr)] for pcr in signed.body.pcrs}
    digest = hashlib.sha256(b"".join(values.values())).digest()
    if digest != signed.body.pcr_digest:
        raise errors.PcrValuesError(
            "the PCR values are not those that were quoted",
            expected=signed.body.pcr_digest.hex(),
            found=digest.hex(),
            hint=REPORT,
        )
    return values


def _numbers(pcrs: Sequence[int]) -> str:
    return " ".join(map(str, pcrs)) or "none"


def _fingerprint(spki: bytes) -> str:
    return f"the key with SHA-256 {hashlib.sha256(spki).hexdigest()}"
