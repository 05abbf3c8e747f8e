"""The host's log, as far as it was asked for: tied to this boot, and of the reference's files."""

from collections.abc import Iterable, Iterator, Sequence

from cima_runc.base.text import printable
from cima_runc.ml.contents import File, Measured
from cima_runc.verifier.kernel_line import HostFile
from cima_runc.verifier.pattern import exactly
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.reference.file import HostReference, kernel_name
from cima_runc.verifier.result import Finding
from cima_runc.verifier.steps.explained import HostLog
from cima_runc.verifier.steps.replayed import Services
from cima_runc.verifier.toml import array, quoted

_ANEW = "after a wanted upgrade: cima reference host, on a host that is known to be good"


def check_host_log(
    log: HostLog, services: Services | None, host: HostReference | None, policy: Policy
) -> Iterator[Finding]:
    """Yield what is wrong with the lines that add up to the host's PCR."""
    measured = services.measured if services is not None else ()
    yield from check_replayed(log, measured, policy)
    if log.disclosure == "full":
        yield from check_files(log.files, host, policy)


def check_files(
    files: Sequence[HostFile | None], host: HostReference | None, policy: Policy
) -> Iterator[Finding]:
    """Yield what is wrong with the files that the log's lines, shown in full, are of."""
    if host is None:
        yield Finding(
            severity="fail",
            rule="host.reference",
            what="the host's log was asked for in full, and no host's reference values were given",
            next="cima reference host, and give its file with --reference; or ask for redacted",
        )
        return
    for number, file in enumerate(files):
        if number:  # the first is boot_aggregate
            yield from _file(number, file, host, policy)


def check_replayed(log: HostLog, services: Iterable[Measured], policy: Policy) -> Iterator[Finding]:
    """Yield what is wrong whatever the files are: with how the log begins, and violations.

    ``services`` are the records of the host services that the container relies on.
    """
    yield from _aggregate(log, policy)
    yield from _violations(log, services, policy)


def _aggregate(log: HostLog, policy: Policy) -> Iterator[Finding]:
    match log.aggregate:
        case "equal":
            return
        case "zero":
            rule, what = "boot_aggregate.no_tpm", "IMA had no TPM when it began the host's log"
        case "another":
            rule = "boot_aggregate.differs"
            what = "the host's log begins with a boot_aggregate that is not over the quoted PCRs"
        case "not comparable":
            allowed = policy.host.allow_not_comparable_boot_aggregate
            yield Finding(
                severity="warn" if allowed else "fail",
                rule="boot_aggregate.not_comparable",
                what="boot_aggregate is not SHA-256 over PCRs that are quoted, 0 to 9",
                expected="sha256, and PCRs 0 to 9 among boot_pcrs",
                next=""
                if allowed
                else "boot with ima_hash=sha256; [host] allow_not_comparable_boot_aggregate = true",
            )
            return
    yield Finding(
        severity="fail",
        rule=rule,
        what=what,
        next="the log is not of this boot, or firmware and loader were not measured",
    )


def _violations(log: HostLog, services: Iterable[Measured], policy: Policy) -> Iterator[Finding]:
    if not log.violations:
        return
    allowed = policy.host.allow_violations
    key = "to tolerate it, in the policy: [host] allow_violations = true"
    if log.disclosure != "full":
        yield Finding(
            severity="warn" if allowed else "fail",
            rule="host.violation",
            what=f"{log.violations} files of the host changed while IMA measured them; which ones, "
            "redacted does not show",
            next="" if allowed else f"ask for full; {key}",
        )
        return
    own = {kernel_name(content.path) for _, content in services if isinstance(content, File)}
    for path in dict.fromkeys(log.violated):
        # What cannot be read may be a service's.
        relied_on = path in own or not path
        shown = printable(path) or "a file without a name"
        yield Finding(
            severity="fail" if relied_on and not allowed else "warn",
            rule="host.violation",
            what=f"{shown} of the host changed while IMA measured it"
            + (", and the container relies on it" if relied_on else ""),
            path=shown,
            next=key if relied_on and not allowed else "",
        )


def _file(
    number: int, file: HostFile | None, host: HostReference, policy: Policy
) -> Iterator[Finding]:
    if file is None:
        yield Finding(
            severity="fail",
            rule="host.line",
            what=f"line {number} of the host's log says of no file what it is",
        )
        return
    wanted = host.digests_in_log(file.path)
    got, shown = file.digest.hex(), printable(file.path)
    if file.algorithm == "sha256" and got in wanted:
        return
    allowed = policy.dependencies.files if file.algorithm == "sha256" else ()
    by = next((each for each in allowed if each.allows(file.path, file.digest)), None)
    if by is not None:
        how = "path pattern alone, whatever its content" if by.sha256 is None else "path and digest"
        yield Finding(
            severity="info",
            rule="host.allowed",
            what=f"{shown} of the host: allowed by the policy's {by.path}, by {how}",
            path=shown,
            got=got,
        )
        return
    key = (
        f"; in the policy: [[dependencies.files]] path = {quoted(exactly(file.path))}, "
        f"sha256 = {array([got])}"
    )
    yield Finding(
        severity="fail",
        rule="host.changed" if wanted else "host.added",
        what=f"{shown} of the host is another one than the reference's"
        if wanted
        else f"{shown} of the host is not in the host's reference values",
        path=shown,
        got=f"{printable(file.algorithm)}:{got}",
        expected=" or ".join(wanted) if wanted else "no such file",
        next=_ANEW + (key if file.algorithm == "sha256" else ""),
    )
