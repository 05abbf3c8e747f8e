"""Verification of evidence: the steps in the design's order, then appraisal, then the verdict.

Pure but for what is remembered: whoever calls brings evidence, keys, reference values and memory.
Source: design, section 7; RFC 9334 for the words.
"""

import gc
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.ml.contents import Measured
from cima_runc.verifier import errors
from cima_runc.verifier.completeness import completeness
from cima_runc.verifier.errors import Verdict, VerificationError
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.result import Check, Facts, Finding, Host, Refusal, Result, Source
from cima_runc.verifier.rules.host import check_pcrs, check_status
from cima_runc.verifier.rules.host_log import check_host_log
from cima_runc.verifier.rules.runs import are_earlier_seen, are_hidden_good, check_runs
from cima_runc.verifier.state import Memory, Remembered
from cima_runc.verifier.steps.bound import check_bound
from cima_runc.verifier.steps.explained import Explained, explain
from cima_runc.verifier.steps.opened import Recalled, open_owner_part, recall
from cima_runc.verifier.steps.parsed import parse
from cima_runc.verifier.steps.quoted import Signed, check_quoted, check_signed
from cima_runc.verifier.steps.replayed import Continued, Run, continue_remembered, replay

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())  # no traceback where nobody has asked for logs


class Appraise(Protocol):
    """Compares records that were verified with reference values; a pure function.

    ``records`` are those of one run that this evidence shows: all, or, where it continues what is
    remembered, those since then. ``dependencies`` are those of the services that it relies on,
    None for an earlier run. ``secret`` is what the run's environment is hidden with.
    """

    def __call__(
        self,
        records: Sequence[Measured],
        references: Any,
        policy: Policy,
        dependencies: Sequence[Measured] | None,
        secret: bytes,
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


@dataclass(frozen=True)
class Appraised:
    """Evidence that was verified, and what the rules say of it."""

    explained: Explained
    findings: tuple[Finding, ...]
    last_is_good: bool
    """Whether all records of the last run were found to be good, now and before."""
    earlier_are_good: bool
    """The same of all runs before it."""
    earlier_are_seen: bool
    """Whether those were seen to their ends."""


def verify(
    evidence: bytes,
    expectation: Expectation,
    *,
    memory: Memory | None = None,
    appraisal: Appraisal | None = None,
    sources: tuple[Source, ...] = (),
) -> Result:
    """Verify and appraise ``evidence``; whatever is wrong with it ends in the result.

    ``sources`` are the reference values and the policy, as the result names them.

    Never raises: what nobody thought of is a refusal with the verdict UNKNOWN. What a refusal says
    is not remembered.
    """
    run = _Verification(expectation, memory, appraisal, sources)
    try:
        with _collector_paused():
            return run.result(evidence)
    except VerificationError as error:
        return run.refused(error)
    except CimaError as error:
        return run.refused(_named(error))
    except Exception as error:
        _log.exception("verification failed unexpectedly")
        return run.refused(
            errors.UnexpectedError(
                f"verification failed: {printable(repr(error)[:200])}",
                hint="this is a fault of the verifier: please report it",
            )
        )


def _named(error: CimaError) -> VerificationError:
    """Return an error of a state file and the like as a refusal of its own name."""
    kind = type(type(error).__name__, (errors.UnexpectedError,), {})
    refusal: VerificationError = kind(error.what, hint=error.hint)
    return refusal


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


class _Verification:
    def __init__(
        self,
        expectation: Expectation,
        memory: Memory | None,
        appraisal: Appraisal | None,
        sources: tuple[Source, ...],
    ) -> None:
        self._sources = sources
        self._wanted = expectation
        self._memory = memory
        self._appraisal = appraisal
        self._container: str | None = expectation.container
        self._host: Host | None = None
        self._checks: list[Check] = []

    def refused(self, error: VerificationError) -> Result:
        return Result(
            verdict=error.verdict,
            container=self._container,
            nonce=self._wanted.nonce,
            host=self._host,
            sources=self._sources,
            checks=tuple(self._checks),
            refusal=Refusal.of(error),
        )

    def result(self, raw: bytes) -> Result:
        explained = self._explained(raw)
        appraised = self._appraised(explained)
        verdict = self._verdict(appraised)
        facts = _facts(explained)
        if self._memory is not None:
            self._memory.remember(self._remembered(appraised, verdict))
        return Result(
            verdict=verdict,
            container=facts.container,
            nonce=self._wanted.nonce,
            host=self._host,
            sources=self._sources,
            not_proved=tuple(self._not_proved(explained)),
            checks=tuple(self._checks),
            findings=appraised.findings,
            appraised=self._appraisal is not None,
            facts=facts,
        )

    # -- the steps --------------------------------------------------------------------------------

    def _explained(self, raw: bytes) -> Explained:
        wanted = self._wanted
        parsed = parse(raw)
        self._container = parsed.evidence.container
        signed = check_signed(parsed, wanted)
        self._host = Host(ak_name=signed.public.name, label=signed.label, known_by=signed.known_by)
        self._passed("ak", f"the enrolled key, known by its {signed.known_by}{_of_host(signed)}")
        self._passed("signature", "the quote is signed by it")
        self._passed("quote", "made by a TPM, under the endorsement hierarchy")
        quoted = check_quoted(signed, wanted)
        self._passed("pcr-selection", "PCRs " + " ".join(map(str, signed.body.pcrs)))
        named = wanted.container is not None
        whose = "this request" if named else "the container that it names"
        self._passed("nonce", f"fresh, for {whose}")
        self._passed("pcr-values", "as quoted")
        bound = check_bound(quoted)
        pcr = quoted.evidence.binding.pcr
        self._passed("binding", f"leaf and status are bound in PCR {pcr}")
        opened = open_owner_part(bound, wanted)
        self._passed("owner-part", "sealed" if opened.was_sealed else "in the clear")
        recalled = recall(opened, self._memory)
        self._passed("clock", _clock_detail(recalled))
        replayed = replay(recalled)
        last = replayed.last
        self._passed("leaf", f"{last.count} records of run {last.number} are what was bound")
        shown = sum(len(run.records) for run in replayed.runs)
        runs = len(replayed.runs)
        self._passed("records", f"{shown} contents in {runs} runs are what was measured")
        continued = continue_remembered(replayed)
        self._note("continuity", *_continuity(continued))
        services = replayed.services
        count = len(services.records) if services is not None else 0
        self._note("dependencies", services is not None, f"{count} records")
        explained = explain(continued, wanted)
        log = explained.host_log
        lines = log.lines if log is not None else 0
        self._note("host-log", log is not None, f"{lines} entries add up to the PCR")
        boot = "its digests add up to the boot PCRs; what its events say beside them is not covered"
        self._note("boot-log", explained.has_boot_log, boot)
        return explained

    def _passed(self, step: str, detail: str) -> None:
        self._checks.append(Check(step=step, done=True, detail=detail))

    def _note(self, step: str, done: bool, detail: str, otherwise: str = "not shown") -> None:
        self._checks.append(Check(step=step, done=done, detail=detail if done else otherwise))

    # -- appraisal --------------------------------------------------------------------------------

    def _appraised(self, explained: Explained) -> Appraised:
        policy, appraisal = self._wanted.policy, self._appraisal
        continued = explained.continued
        replayed = continued.replayed
        identity = appraisal.identity if appraisal is not None else None
        findings = list(self._of_the_host(explained))
        findings += check_runs(continued, policy, identity)
        earlier = [
            finding for run in replayed.runs[:-1] for finding in self._of_run(run, explained)
        ]
        findings += [_of_earlier(finding, policy) for finding in earlier]
        own = self._of_run(replayed.last, explained)
        findings += own
        self._passed("completeness", "lost events, violations, missing sources were looked for")
        good = appraisal is not None and not _fails(own)
        if appraisal is None:
            self._note("appraisal", False, "", "no reference values")
            what = "nothing was appraised: no reference values were given"
            findings.append(Finding(severity="warn", what=what))
        else:
            shown = sum(len(run.records) for run in replayed.runs)
            self._passed("appraisal", f"{shown} records were compared with reference values")
            good = good and self._was_good(replayed.last, continued, appraisal.identity, findings)
        earlier_are_good = (
            appraisal is not None
            and not _fails(earlier)
            and are_hidden_good(continued, appraisal.identity)
        )
        return Appraised(
            explained, tuple(findings), good, earlier_are_good, are_earlier_seen(continued)
        )

    def _was_good(
        self, last: Run, continued: Continued, identity: bytes, findings: list[Finding]
    ) -> bool:
        """Whether the last run's records before those shown were found good by the same values."""
        remembered = continued.replayed.recalled.remembered
        if not last.since:
            return True
        if remembered is not None and remembered.good_with == identity:
            return True
        what = f"the records before {last.since} were not found good by this appraisal"
        next_ = "ask for the whole of it"
        findings.append(Finding(severity="warn", rule="records.before", what=what, next=next_))
        return False

    def _of_run(self, run: Run, explained: Explained) -> list[Finding]:
        policy, appraisal = self._wanted.policy, self._appraisal
        replayed = explained.continued.replayed
        findings = list(completeness(run.records, policy))
        if appraisal is None:
            return findings
        services: Sequence[Measured] | None = None
        if run is replayed.last:
            services = replayed.services.measured if replayed.services is not None else ()
        findings += appraisal.appraise(
            run.records, appraisal.reference, policy, services, run.secret
        )
        if run is not replayed.last:
            findings = [finding.model_copy(update={"run": run.number}) for finding in findings]
        return findings

    def _of_the_host(self, explained: Explained) -> Iterator[Finding]:
        policy = self._wanted.policy
        replayed = explained.continued.replayed
        yield from check_status(replayed.evidence.binding.status, policy)
        remembered = replayed.recalled.remembered
        if remembered is not None and not explained.continued.same_boot:
            what = "the host has booted since the last evidence"
            yield Finding(severity="info", rule="host.booted", what=what)
        elif remembered is not None and not replayed.recalled.same_start:
            what = "the TPM has started again since the last evidence, in the same boot of the host"
            yield Finding(severity="warn", rule="host.tpm_restarted", what=what)
        values = replayed.recalled.opened.bound.quoted.values
        yield from check_pcrs(values, policy)
        if explained.host_log is not None:
            host = getattr(self._appraisal.reference, "host", None) if self._appraisal else None
            yield from check_host_log(explained.host_log, replayed.services, host, policy)

    def _verdict(self, appraised: Appraised) -> Verdict:
        if _fails(appraised.findings):
            return Verdict.UNTRUSTED
        earlier = self._wanted.policy.allow_restarts or (
            appraised.earlier_are_good and appraised.earlier_are_seen
        )
        return Verdict.TRUSTED if appraised.last_is_good and earlier else Verdict.UNKNOWN

    # -- what stays -------------------------------------------------------------------------------

    def _remembered(self, appraised: Appraised, verdict: Verdict) -> Remembered:
        continued = appraised.explained.continued
        replayed = continued.replayed
        last, before = replayed.last, replayed.recalled.remembered
        clock = replayed.recalled.opened.bound.quoted.clock
        status = replayed.evidence.binding.status
        identity = self._appraisal.identity if self._appraisal is not None else None
        earlier = [run.registration for run in replayed.runs[:-1]]
        if before is not None:
            earlier = [*before.earlier, before.registration, *earlier]
        kept = [one for one in dict.fromkeys(earlier) if one != last.registration]
        untrusted_run, untrusted_with = None, None
        if verdict is Verdict.UNTRUSTED:
            untrusted_run, untrusted_with = _oldest_bad(appraised.findings, last), identity
        elif before is not None and not self._has_healed(continued, before, verdict):
            untrusted_run, untrusted_with = before.untrusted_run, before.untrusted_with
        return Remembered(
            ak_name=replayed.recalled.opened.bound.quoted.signed.public.name,
            line=replayed.recalled.opened.part.line,
            container=last.id,
            run=last.number,
            boot_id=last.boot_id,
            registration=last.registration,
            count=last.count,
            cpcr=last.cpcr,
            inner=replayed.inner,
            ended=last.ended,
            earlier=tuple(kept[-64:]),
            dependencies=last.dependencies,
            reset_count=clock.reset_count,
            restart_count=clock.restart_count,
            clock=clock.clock,
            initial=status.initial,
            foreign=status.foreign.count,
            gaps=status.gaps.count,
            good_with=identity if appraised.last_is_good and verdict is Verdict.TRUSTED else None,
            earlier_good_with=identity if appraised.earlier_are_good else None,
            earlier_seen=appraised.earlier_are_seen,
            untrusted_run=untrusted_run,
            untrusted_with=untrusted_with,
        )

    def _has_healed(self, continued: Continued, before: Remembered, verdict: Verdict) -> bool:
        """Whether the run that was untrusted was found good as a whole, by other values."""
        return verdict is Verdict.TRUSTED and any(
            run.number == before.untrusted_run and not run.since for run in continued.replayed.runs
        )

    def _not_proved(self, explained: Explained) -> Iterator[str]:
        continued, wanted = explained.continued, self._wanted
        if self._host is not None and self._host.known_by == "key":
            yield "the attestation key's attributes: its TPM name was not enrolled"
        if self._host is not None and self._host.known_by == "certificate":
            only = getattr(wanted.ak, "only", None)
            if only is None:
                yield "which host it is: any that this authority has enrolled would do"
        if wanted.container is None:
            yield "which container it is: none was asked for, this is the evidence's own word"
        if continued.replayed.recalled.remembered is None:
            yield "that the container has not gone back: nothing is remembered of it"
        if explained.host_log is None:
            yield "dependencies: on the agent's word, no host log was asked for"
        elif explained.host_log.disclosure == "redacted":
            yield "the host's other files: their names were not asked for"
        if not explained.has_boot_log and not wanted.policy.pcr_values:
            yield "firmware, loader and kernel: neither their log nor PCR values were asked for"
        if self._appraisal is None:
            yield "that what ran is what should: no reference values were given"


def _facts(explained: Explained) -> Facts:
    replayed = explained.continued.replayed
    last, quoted = replayed.last, replayed.recalled.opened.bound.quoted
    return Facts(
        container=last.id,
        ak_name=quoted.signed.public.name,
        reset_count=quoted.clock.reset_count,
        restart_count=quoted.clock.restart_count,
        clock=quoted.clock.clock,
        line=replayed.recalled.opened.part.line,
        run=last.number,
        registration=last.registration,
        first_seen=explained.continued.standing == "new",
        ended=last.ended,
        count=last.count,
        cpcr=last.cpcr,
        since=last.since,
    )


def _oldest_bad(findings: Iterable[Finding], last: Run) -> int:
    """Return the oldest run that was found bad itself, now or before."""
    runs = [
        finding.run
        for finding in findings
        if finding.severity == "fail"
        and finding.run is not None
        and (finding.rule == "runs.untrusted" or not finding.rule.startswith("runs."))
    ]
    return min([*runs, last.number])


def _fails(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "fail" for finding in findings)


def _of_earlier(finding: Finding, policy: Policy) -> Finding:
    """Return a finding of an earlier run: where restarts are allowed it decides nothing."""
    soft = finding.severity == "fail" and policy.allow_restarts
    return finding.model_copy(update={"severity": "warn"}) if soft else finding


def _of_host(signed: Signed) -> str:
    return f", of the host {printable(signed.label)}" if signed.label else ""


def _clock_detail(recalled: Recalled) -> str:
    clock, remembered = recalled.opened.bound.quoted.clock, recalled.remembered
    if remembered is None and recalled.host is not None:
        return "the host's TPM has not gone back to an earlier start"
    if remembered is None:
        return "nothing is remembered to compare it with"
    if clock.reset_count > remembered.reset_count:
        return "the host has booted since"
    if clock.restart_count > remembered.restart_count:
        return "the TPM has started again since, without a reset"
    return "the same start of the TPM, not earlier"


def _continuity(continued: Continued) -> tuple[bool, str, str]:
    remembered = continued.replayed.recalled.remembered
    if remembered is None:
        return False, "", "first seen"
    if continued.standing != "continues":
        return False, "", "what is remembered is not on the chain"
    if continued.replayed.last.registration == remembered.registration:
        return True, f"continues run {remembered.run} at record {remembered.count}", ""
    detail = f"run {remembered.run}, which is remembered, ended as it was seen to go on"
    return True, detail, ""
