"""Verification of evidence: the checks in the design's order, then appraisal, then the verdict.

Pure: whoever calls brings the evidence, the keys and what is remembered, and keeps what is to be
remembered next. Source: design, section 7; RFC 9334 for the words.
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cima_runc.cpcr import register
from cima_runc.evidence.disclosure import Disclosure
from cima_runc.evidence.models import (
    Evidence,
    EvidenceError,
    EvidenceTooDeepError,
    EvidenceTooLargeError,
    EvidenceVersionError,
    parse_evidence,
)
from cima_runc.ml.records import Record
from cima_runc.verifier import errors, steps
from cima_runc.verifier.ak_certificate import AkAuthority
from cima_runc.verifier.completeness import completeness
from cima_runc.verifier.enrolled import EnrolledAk
from cima_runc.verifier.errors import Verdict, VerificationError
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.result import Check, Facts, Finding, Refusal, Result
from cima_runc.verifier.state import Remembered

_UNREADABLE: dict[type[EvidenceError], type[errors.UnreadableError]] = {
    EvidenceTooLargeError: errors.TooLargeError,
    EvidenceTooDeepError: errors.TooDeepError,
    EvidenceVersionError: errors.VersionError,
}


class Appraise(Protocol):
    """Compares records that were verified with reference values; a pure function.

    ``records`` are those of this evidence: all of the container's, or, where it continues what is
    remembered, those since then. ``dependencies`` are those of the services that it relies on.
    """

    def __call__(
        self,
        records: Sequence[Record],
        references: Any,
        policy: Policy,
        dependencies: Sequence[Record],
        /,
    ) -> Iterable[Finding]:
        """Return what was noticed; nothing, where all is as the reference values want it."""


@dataclass(frozen=True)
class Appraisal:
    """Reference values, and how records are compared with them."""

    appraise: Appraise
    reference: Any
    identity: bytes
    """SHA-256 over reference values and policy: an appraisal of earlier records by others does not
    count."""

    def __call__(
        self, records: Sequence[Record], policy: Policy, dependencies: Sequence[Record]
    ) -> list[Finding]:
        """Return what was noticed."""
        return list(self.appraise(records, self.reference, policy, dependencies))


@dataclass(frozen=True)
class Expectation:
    """What a verifier knows without the evidence."""

    nonce: bytes
    """The nonce that he sent."""
    ak: EnrolledAk | AkAuthority
    """The key that he has enrolled, or who enrols keys for him."""
    container: str | None = None
    """The container that he asked for; None takes the evidence's word."""
    owner_key: X25519PrivateKey | None = None
    host: Disclosure = "none"
    """How much of the host's log he asked for; less is refused."""
    boot_log: bool = False
    """Whether he asked for the firmware's event log."""
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True)
class Outcome:
    """The result, and what to remember; None where the evidence was refused."""

    result: Result
    remember: Remembered | None


def verify(
    evidence: bytes | Evidence,
    expectation: Expectation,
    *,
    remembered: Remembered | None = None,
    appraisal: Appraisal | None = None,
) -> Outcome:
    """Verify and appraise ``evidence``; whatever is wrong with it ends in the result.

    ``remembered`` is what the last :class:`Outcome` of the same container said.
    """
    run = _Run(expectation, remembered, appraisal)
    try:
        with _collector_paused():
            parsed = _read(evidence) if isinstance(evidence, bytes) else evidence
            return run.outcome(parsed)
    except VerificationError as error:
        return Outcome(run.refused(error), None)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the search for cycles: hundreds of thousands of records have none, and it takes a third
    of the time."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def _read(raw: bytes) -> Evidence:
    try:
        return parse_evidence(raw)
    except EvidenceError as error:
        unreadable = _UNREADABLE.get(type(error), errors.UnreadableError)
        raise unreadable(error.what, hint=error.hint) from error


class _Run:
    def __init__(
        self,
        expectation: Expectation,
        remembered: Remembered | None,
        appraisal: Appraisal | None,
    ) -> None:
        self._wanted = expectation
        self._remembered = remembered
        self._appraisal = appraisal
        self._container: str | None = expectation.container
        self._checks: list[Check] = []
        self._all_appraised = appraisal is not None

    def refused(self, error: VerificationError) -> Result:
        return Result(
            verdict=error.verdict,
            container=self._container,
            nonce=self._wanted.nonce,
            checks=tuple(self._checks),
            refusal=Refusal.of(error),
        )

    def outcome(self, evidence: Evidence) -> Outcome:
        wanted, policy, remembered = self._wanted, self._wanted.policy, self._remembered
        self._container = evidence.container

        public = steps.check_key(evidence, wanted.ak)
        self._passed("ak", f"the enrolled key, known by its {_how_known(wanted.ak)}")
        steps.check_signature(evidence, public)
        self._passed("signature", "the quote is signed by it")
        body = steps.check_quote(evidence, public)
        self._passed("quote", "made by a TPM, under the endorsement hierarchy")
        steps.check_disclosure(evidence, wanted.host, wanted.boot_log)
        steps.check_selection(evidence, body, policy)
        self._passed("pcr-selection", "PCRs " + " ".join(map(str, body.pcrs)))
        steps.check_request(evidence, body, wanted.nonce, wanted.container)
        self._passed("nonce", "fresh, for this container")
        values = steps.check_values(evidence, body)
        self._passed("pcr-values", "as quoted")
        rebooted = steps.check_clock(body.clock, public, policy, remembered)
        self._passed("clock", _clock_detail(remembered, rebooted))
        steps.check_binding(evidence.binding, values)
        self._passed("binding", f"bind {evidence.binding.seq} in PCR {evidence.binding.pcr}")

        part = steps.owner_part(evidence, wanted.owner_key)
        continues = self._continued(part.since, rebooted)
        replayed = steps.check_leaf(
            part,
            evidence.binding,
            start=continues.cpcr if continues else register.ZERO,
            name=evidence.container,
            watch=remembered.count if remembered else None,
        )
        self._passed("leaf", f"{evidence.binding.count} records are what was bound")
        steps.check_digests(replayed.records)
        self._passed("records", f"{len(replayed.records)} contents are what was measured")
        if continues is None:
            registration = steps.registration_of(replayed.records, evidence.container)
            first = replayed.records[0].digest
        else:
            registration = steps.Registration(continues.registration, continues.dependencies)
            first = continues.first
        if remembered is not None and not rebooted:
            steps.check_progress(evidence.binding, replayed, registration.number, first, remembered)
            self._passed("continuity", f"continues what was seen at record {remembered.count}")
        dependencies = steps.check_dependencies(
            part.dependencies, evidence.binding, registration.dependencies
        )
        self._note("dependencies", bool(dependencies), f"{len(dependencies)} records")
        proved = steps.check_host_log(evidence, values)
        self._note("host-log", proved is not None, f"{proved} entries add up to the PCR")
        boot = steps.check_boot_log(evidence, values, policy)
        self._note("boot-log", boot, "adds up to the boot PCRs")

        facts = Facts(
            container=evidence.container,
            ak_name=public.name,
            reset_count=body.clock.reset_count,
            restart_count=body.clock.restart_count,
            clock=body.clock.clock,
            seq=evidence.binding.seq,
            count=evidence.binding.count,
            cpcr=replayed.value,
            since=part.since,
        )
        findings = list(self._findings(evidence, values, replayed.records, rebooted))
        findings += self._appraised(replayed.records, continues, dependencies)
        failed = any(finding.severity == "fail" for finding in findings)
        verdict = _verdict(failed, self._all_appraised)
        result = Result(
            verdict=verdict,
            container=evidence.container,
            nonce=wanted.nonce,
            checks=tuple(self._checks),
            findings=tuple(findings),
            appraised=self._appraisal is not None,
            facts=facts,
        )
        return Outcome(
            result,
            Remembered(
                container=evidence.container,
                ak_name=public.name,
                reset_count=facts.reset_count,
                clock=facts.clock,
                seq=facts.seq,
                count=facts.count,
                cpcr=facts.cpcr,
                first=first,
                registration=registration.number,
                dependencies=registration.dependencies,
                appraised_with=self._appraised_with(verdict),
            ),
        )

    def _continued(self, since: int, rebooted: bool) -> Remembered | None:
        """Return what evidence from the record ``since`` on continues, None where from the first.

        Raises:
            NotRememberedError, RebootedError: there is nothing that it could continue.
        """
        remembered = self._remembered
        if since == 0:
            return None
        if remembered is None or remembered.count != since:
            raise errors.NotRememberedError(
                f"the evidence begins at record {since}",
                expected=f"record {remembered.count if remembered else 0}, or 0",
                found=f"record {since}",
                hint=f"ask with --since {remembered.count if remembered else 0}",
            )
        if rebooted:
            raise errors.RebootedError(
                "the host has booted since the remembered evidence",
                expected=f"resetCount {remembered.reset_count}",
                found="a higher one",
                hint="ask for the whole of it: --since 0",
            )
        return remembered

    def _findings(
        self,
        evidence: Evidence,
        values: dict[int, bytes],
        records: Sequence[Record],
        rebooted: bool,
    ) -> Iterator[Finding]:
        policy = self._wanted.policy
        yield from completeness(records, policy)
        self._passed("completeness", "lost events, violations, missing sources were looked for")
        foreign = evidence.binding.foreign.count
        if foreign:
            what = f"PCR {policy.binding_pcr} was extended by somebody else {foreign} times"
            yield Finding(severity="warn" if policy.allow_foreign_extends else "fail", what=what)
        gaps = evidence.binding.gaps
        if gaps.count:
            what = f"for a time the host could not write records or bind them, {gaps.count} times"
            last = "".join(f"; last from {one.since} to {one.until}" for one in gaps.last[-1:])
            yield Finding(severity="warn", what=what + last)
        if rebooted:
            yield Finding(severity="info", what="the host has booted since the last evidence")
        for name, allowed in policy.pcr_values.items():
            pcr = int(name) if name.isdecimal() else -1
            if values.get(pcr) not in allowed:
                found = values[pcr].hex() if pcr in values else "not quoted"
                yield Finding(severity="fail", what=f"PCR {name} is {found}, which is not allowed")
        unseen = [pcr for pcr in policy.boot_pcrs if str(pcr) not in policy.pcr_values]
        if unseen:
            numbers = " ".join(map(str, unseen))
            what = f"no reference values for PCRs {numbers}: firmware and kernel not appraised"
            yield Finding(severity="warn", what=what)

    def _appraised(
        self,
        records: Sequence[Record],
        continues: Remembered | None,
        dependencies: Sequence[Record],
    ) -> list[Finding]:
        appraisal = self._appraisal
        if appraisal is None:
            self._note("appraisal", False, "", "no reference values")
            what = "nothing was appraised: no reference values were given"
            return [Finding(severity="warn", what=what)]
        findings = appraisal(records, self._wanted.policy, dependencies)
        self._passed("appraisal", f"{len(records)} records were compared with reference values")
        if continues is not None and continues.appraised_with != appraisal.identity:
            self._all_appraised = False
            what = f"the records before {continues.count} were not found good by this appraisal"
            findings.append(Finding(severity="warn", what=f"{what}: ask with --since 0"))
        return findings

    def _appraised_with(self, verdict: Verdict) -> bytes | None:
        if self._appraisal is None or verdict != Verdict.TRUSTED:
            return None
        return self._appraisal.identity

    def _passed(self, step: str, detail: str) -> None:
        self._checks.append(Check(step=step, done=True, detail=detail))

    def _note(self, step: str, done: bool, detail: str, otherwise: str = "not shown") -> None:
        self._checks.append(Check(step=step, done=done, detail=detail if done else otherwise))


def _verdict(failed: bool, all_appraised: bool) -> Verdict:
    if failed:
        return Verdict.UNTRUSTED
    return Verdict.TRUSTED if all_appraised else Verdict.UNKNOWN


def _how_known(ak: EnrolledAk | AkAuthority) -> str:
    if isinstance(ak, AkAuthority):
        return "certificate"
    return "name" if ak.name else "key alone, its attributes by the evidence's word"


def _clock_detail(remembered: Remembered | None, rebooted: bool) -> str:
    if remembered is None:
        return "nothing is remembered to compare it with"
    return "the host has booted since" if rebooted else "the same boot, later"
