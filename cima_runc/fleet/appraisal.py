"""Appraising a container's records as they come, by the verifier library's rules. Pure.

New records are compared alone, with the first ones before them for what these say of the container:
its configuration, its mounts, what it began with. Findings are kept, so a partition that only grows
cannot lose one.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cima_runc.cpcr.status import Status
from cima_runc.ml.contents import Measured
from cima_runc.verifier.appraisal import compare
from cima_runc.verifier.completeness import completeness
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.result import Finding
from cima_runc.verifier.rules.dependencies import check_dependencies
from cima_runc.verifier.rules.host import check_pcrs, check_status
from cima_runc.verifier.rules.host_log import check_replayed
from cima_runc.verifier.steps.explained import Aggregate, HostLog
from cima_runc.verifier.values import Values

Part = Literal["own", "services", "runs", "host"]

_OF_SERVICES = frozenset({"dependencies.none", "dependencies.unfinished"})
_OF_RUNS = frozenset({"runs.end_not_seen", "runs.not_seen", "runs.not_trusted"})
HEAD = 32
"""Records that new ones are compared after: registration, configuration, root filesystem, and the
first programs."""
_PASSES = _OF_SERVICES | {"runs.end_not_seen", "runs.not_seen"}
"""What a later report may mend: it keeps a container from being TRUSTED, and condemns none."""


@dataclass(frozen=True)
class HostFacts:
    """What the last accepted report proved of a host."""

    status: Status
    pcrs: dict[int, bytes]
    lines: int
    """Of the kernel's log; 0: it was not shown."""
    aggregate: Aggregate = "another"
    violations: int = 0
    disclosure: Literal["redacted", "full"] = "redacted"
    violated: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Earlier:
    """What is known of the run before."""

    what: Literal["first", "seen", "not seen", "end not seen", "lost", "forgotten", "contradicted"]
    verdict: Verdict | None = None
    """Of the run that was seen."""


@dataclass(frozen=True)
class State:
    """Where a container stands beside its findings."""

    is_sealed: bool
    """Whether the service may not read its records."""
    place_proved: bool
    is_whole: bool
    """Whether all records that its register has are proved, and were compared."""
    host_is_known: bool
    """Whether what its host proved in its boot was compared, by these values."""
    has_policy: bool
    has_reference: bool
    vanished: bool


def own(head: Sequence[Measured], new: Sequence[Measured], values: Values) -> list[Finding]:
    """Return what is to be said of a container's ``new`` records, which follow on others.

    ``head`` are its first :data:`HEAD` records, as far as they come before ``new``.
    """
    found = list(completeness(new, values.policy))
    references = values.references
    if references is None or references.image is None:
        return found
    first = new[0].number if new else 0
    compared = compare([*head, *new], references, values.policy, None)
    return found + [one for one in compared if one.record is None or one.record >= first]


def services(records: Sequence[Measured] | None, values: Values) -> list[Finding]:
    """Return what is to be said of the host services that a container relies on.

    ``records`` None: it names none.
    """
    references = values.references
    host = references.host if references is not None else None
    found = check_dependencies(records or (), host, values.policy)
    return [_softened(one) for one in found]


def host(facts: HostFacts, relied_on: Sequence[Measured], policy: Policy) -> list[Finding]:
    """Return what is to be said of a container's host; ``relied_on`` are the records of the
    services that the container relies on."""
    found = [*check_status(facts.status, policy), *check_pcrs(facts.pcrs, policy)]
    if facts.lines:
        # Of the host's files those are compared that are its services', not each line.
        log = HostLog(
            disclosure=facts.disclosure,
            lines=facts.lines,
            aggregate=facts.aggregate,
            violations=facts.violations,
            files=(),
            violated=facts.violated,
        )
        found += check_replayed(log, relied_on, policy)
    return found


_EARLIER = {
    "not seen": ("runs.not_seen", "the run before is not, or not all, seen"),
    "end not seen": ("runs.end_not_seen", "the run before has no end written down"),
    "lost": ("runs.lost", "the host has lost what came before"),
    "forgotten": (
        "runs.forgotten",
        "the host tells of the container as if a run that was seen had not been",
    ),
    "contradicted": (
        "runs.contradicted",
        "the run before is not what this one says that it was",
    ),
}


def runs(earlier: Earlier, policy: Policy) -> list[Finding]:
    """Return what is to be said of the run before."""
    allowed = policy.allow_restarts
    key = "start it under a new name; to tolerate it, in the policy: allow_restarts = true"
    found = []
    if earlier.what in _EARLIER:
        rule, what = _EARLIER[earlier.what]
        # It may come with a later report.
        is_soft = allowed or rule in _PASSES
        found.append(Finding(severity="warn" if is_soft else "fail", rule=rule, what=what))
    if earlier.verdict is Verdict.UNTRUSTED:
        what = "the run before was found UNTRUSTED"
        severity: Literal["warn", "fail"] = "warn" if allowed else "fail"
        found.append(Finding(severity=severity, rule="runs.untrusted", what=what))
    elif earlier.verdict not in {None, Verdict.TRUSTED} and not allowed:
        what = "the run before was not found TRUSTED"
        found.append(Finding(severity="warn", rule="runs.not_trusted", what=what))
    return [one.model_copy(update={"next": "" if allowed else key}) for one in found]


def verdict(findings: Iterable[tuple[str, str]], state: State, values: Values) -> Verdict:
    """Return the verdict that follows from findings, as (severity, rule), and where it stands."""
    references, policy = values.references, values.policy
    withholds = set() if policy.allow_restarts else set(_OF_RUNS)
    if policy.dependencies.required or (references is not None and references.host is not None):
        withholds |= _OF_SERVICES
    rules = set()
    for severity, rule in findings:
        if severity == "fail":
            return Verdict.UNTRUSTED
        rules.add(rule)
    is_good = (
        not state.is_sealed
        and state.place_proved
        and state.is_whole
        and state.host_is_known
        and state.has_policy
        and state.has_reference
        and not state.vanished
        and not rules & withholds
    )
    return Verdict.TRUSTED if is_good else Verdict.UNKNOWN


def digest_of(findings: Sequence[Finding]) -> str:
    """Return what tells whether findings are others than before."""
    hasher = hashlib.sha256()
    for finding in findings:
        hasher.update(finding.model_dump_json().encode("utf-8", "surrogatepass") + b"\n")
    return hasher.hexdigest()


def _softened(finding: Finding) -> Finding:
    if finding.rule in _PASSES and finding.severity == "fail":
        return finding.model_copy(update={"severity": "warn"})
    return finding
