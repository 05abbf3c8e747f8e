"""Appraising a container's records as they come, by the verifier library's rules. Pure.

New records are compared alone, with the first ones before them for what these say of the container:
its configuration, its mounts, what it began with. Findings are kept, so a partition that only grows
cannot lose one.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cima_runc.base.text import printable
from cima_runc.cpcr.status import Status
from cima_runc.ml.contents import Adopted, File, Measured
from cima_runc.verifier.appraisal import compare
from cima_runc.verifier.completeness import completeness
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.kernel_line import HostFile
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.reference.file import HostReference
from cima_runc.verifier.result import Finding
from cima_runc.verifier.rules.host import check_pcrs, check_status
from cima_runc.verifier.rules.host_log import check_files, check_replayed
from cima_runc.verifier.rules.host_services import check_host_services
from cima_runc.verifier.steps.explained import Aggregate, HostLog
from cima_runc.verifier.values import Values

Part = Literal["own", "services", "runs", "host"]

_OF_SERVICES = frozenset({"dependencies.none", "dependencies.unfinished"})
_OF_ANY = frozenset(
    {
        "dependencies.line",
        "dependencies.unproved",
        "host.log_hidden",
        "host.pcr_changed",
        "host.reference",
    }
)
"""What keeps a container from being TRUSTED whatever the policy asks for: ``cima verify`` takes no
evidence in which it is so."""
_OF_RUNS = frozenset({"runs.end_not_seen", "runs.not_seen", "runs.not_trusted"})
HEAD = 32
"""Records that new ones are compared after: registration, configuration, root filesystem, and the
first programs."""
_SHOWN = 16
"""Records of the host services that are named in findings, of those that are wrong in one way."""
_PASSES = _OF_SERVICES | {"host.reference", "runs.end_not_seen", "runs.not_seen"}
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
    is_hidden: bool = False
    """Whether the log was shown in this boot, and is not any more."""
    moved: tuple[int, ...] = ()
    """PCRs of the boot that became others in it."""
    has_boot_log: bool = False


@dataclass(frozen=True)
class Pcrs:
    """The PCRs that the service has hosts bind into, and log their files in."""

    binding: int
    host: int


@dataclass(frozen=True)
class Services:
    """The host services that a container relies on, as far as they are proved."""

    records: tuple[Measured, ...]
    is_whole: bool
    """Whether all records that their register has are proved, and it is there."""
    without_line: tuple[int, ...] = ()
    """Numbers of the records of files that came without their line of the kernel's log."""
    not_in_log: tuple[int, ...] = ()
    """Numbers of those whose line is not in the log as it is proved."""


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


def own(
    head: Sequence[Measured], new: Sequence[Measured], values: Values, secret: bytes | None
) -> list[Finding]:
    """Return what is to be said of a container's ``new`` records, which follow on others.

    ``head`` are its first :data:`HEAD` records, as far as they come before ``new``; ``secret`` is
    what its environment's values are hidden with.
    """
    found = list(completeness(new, values.policy))
    for _, content in new:
        if isinstance(content, Adopted):
            # An agent without lines had begun it: nobody knows what came before.
            found += runs(Earlier("lost"), values.policy, late=0)
    references = values.references
    if references is None or references.image is None:
        return found
    first = new[0].number if new else 0
    compared = compare([*head, *new], references, values.policy, None, secret)
    return found + [one for one in compared if one.record is None or one.record >= first]


def services(relied_on: Services | None, values: Values) -> list[Finding]:
    """Return what is to be said of the host services that a container relies on; None: it names
    none."""
    records = relied_on.records if relied_on is not None else ()
    found = check_host_services(records, _host_reference(values), values.policy)
    return [*map(_softened, found), *(_lines(relied_on) if relied_on is not None else ())]


def _lines(relied_on: Services) -> Iterable[Finding]:
    """Yield what does not rest on what the host's TPM vouches for. What is not there yet may come
    with a later report."""
    if not relied_on.is_whole:
        yield Finding(
            severity="warn",
            rule="dependencies.unproved",
            what="the records of the host services are not proved, or not all of them",
        )
    for number in relied_on.without_line[:_SHOWN]:
        yield Finding(
            severity="fail",
            rule="dependencies.line",
            what=f"record {number} of the host services{_path(relied_on, number)} does not come "
            "with its line of the kernel's log",
            record=number,
        )
    for number in relied_on.not_in_log[:_SHOWN]:
        yield Finding(
            severity="warn",
            rule="dependencies.line",
            what=f"record {number} of the host services{_path(relied_on, number)} is not in the "
            "host's log as it is proved",
            record=number,
        )


def _path(relied_on: Services, number: int) -> str:
    paths = (
        content.path
        for at, content in relied_on.records
        if at == number and isinstance(content, File)
    )
    return "".join(f", {printable(path)}," for path in paths)


def host(
    facts: HostFacts,
    relied_on: Callable[[], Sequence[Measured]],
    files: Callable[[], Sequence[HostFile | None]],
    values: Values,
    pcrs: Pcrs,
) -> list[Finding]:
    """Return what is to be said of a container's host.

    ``relied_on`` gives the records of the services that the container relies on, ``files`` what
    the lines of the host's log say; both are asked where it matters.
    """
    policy = values.policy
    found = [*check_status(facts.status, policy), *check_pcrs(facts.pcrs, policy)]
    found += _selected(facts, policy, pcrs)
    if facts.moved:
        numbers = " ".join(map(str, facts.moved))
        found.append(
            Finding(
                severity="fail" if facts.has_boot_log else "warn",
                rule="host.pcr_changed",
                what=f"PCRs {numbers} of the boot became others after it: they are not what the "
                "firmware's event log adds up to",
            )
        )
    if facts.is_hidden:
        what = "the host has shown its log in this boot, and does so no more"
        found.append(Finding(severity="warn", rule="host.log_hidden", what=what))
    if facts.lines:
        log = HostLog(
            disclosure=facts.disclosure,
            lines=facts.lines,
            aggregate=facts.aggregate,
            violations=facts.violations,
            files=(),
            violated=facts.violated,
        )
        matters = facts.violations and facts.disclosure == "full"
        found += check_replayed(log, relied_on() if matters else (), policy)
        # Of one line alone, boot_aggregate, nobody can tell whether it is shown in full.
        if facts.disclosure == "full" and facts.lines > 1:
            found += map(_softened, check_files(files(), _host_reference(values), policy))
    return found


def _selected(facts: HostFacts, policy: Policy, pcrs: Pcrs) -> Iterable[Finding]:
    """Yield where the policy means other PCRs than hosts are made to show."""
    missing = sorted(set(policy.boot_pcrs) - facts.pcrs.keys())
    others = [
        f"{name} {meant}, and it is {there}"
        for name, meant, there in (
            ("binding_pcr", policy.binding_pcr, pcrs.binding),
            ("host_pcr", policy.host_pcr, pcrs.host),
        )
        if meant != there
    ]
    others += [f"boot_pcrs {number}, which is not quoted" for number in missing]
    if others:
        yield Finding(
            severity="fail",
            rule="host.pcr_selection",
            what="the policy means other PCRs than reports show: " + "; ".join(others),
            next="set binding_pcr, host_pcr and boot_pcrs in the policy as the service has them",
        )


def _host_reference(values: Values) -> HostReference | None:
    return values.references.host if values.references is not None else None


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


def runs(earlier: Earlier, policy: Policy, *, late: int) -> list[Finding]:
    """Return what is to be said of the run before, and of ``late`` records after this one's end."""
    allowed = policy.allow_restarts
    key = "start it under a new name; to tolerate it, in the policy: allow_restarts = true"
    found = []
    if late:
        what = f"the container has {late} records after its end"
        found.append(Finding(severity="fail", rule="runs.after_exit", what=what))
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
    return [
        one.model_copy(update={"next": key})
        if one.rule != "runs.after_exit" and not allowed
        else one
        for one in found
    ]


def verdict(findings: Iterable[tuple[str, str]], state: State, values: Values) -> Verdict:
    """Return the verdict that follows from findings, as (severity, rule), and where it stands."""
    references, policy = values.references, values.policy
    withholds = set(_OF_ANY) if policy.allow_restarts else {*_OF_ANY, *_OF_RUNS}
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
