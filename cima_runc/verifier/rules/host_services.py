"""The services that a container relies on are those of the host's reference values."""

from collections.abc import Iterator, Sequence

from cima_runc.base.text import printable
from cima_runc.ml.contents import (
    Exit,
    File,
    Lost,
    Measured,
    Service,
    ServicesRegister,
    Unmeasured,
)
from cima_runc.verifier.completeness import completeness
from cima_runc.verifier.pattern import exactly, matches
from cima_runc.verifier.policy import DependenciesPolicy, Policy
from cima_runc.verifier.reference.file import HostReference
from cima_runc.verifier.result import Finding
from cima_runc.verifier.toml import array, quoted

_ANEW = "after a wanted upgrade: cima reference host, on a host that is known to be good"


def check_host_services(
    records: Sequence[Measured], host: HostReference | None, policy: Policy
) -> Iterator[Finding]:
    """Yield what is wrong with the records of the host services' partition."""
    own = policy.dependencies
    if host is None:
        yield Finding(
            severity="fail" if own.required else "warn",
            rule="dependencies.reference",
            what="the host's services were not compared: no host's reference values were given",
            next="cima reference host, and give its file with --reference",
        )
    elif not any(isinstance(content, File) for _, content in records):
        yield Finding(
            severity="fail",
            rule="dependencies.none",
            what="there is no file of the host's services to compare with the reference values",
            next="see cima status; or leave out the host's reference values",
        )
    required = own.required or host is not None
    for finding in completeness(records, policy):
        # Where nobody asks what the host runs, it is said, and decides nothing.
        is_softer = finding.severity == "fail" and not required
        yield finding.model_copy(update={"severity": "warn"}) if is_softer else finding
    yield from _not_found(records, required)
    for number, content in records:
        match content:
            case File() if host is not None:
                yield from _file(number, content, host, own)
            case Unmeasured() if host is not None:
                yield from _unmeasured(number, content, host, own)
            case _ if not isinstance(content, _KNOWN):
                yield Finding(
                    severity="fail",
                    rule="dependencies.record",
                    what="a record that no host service has",
                    record=number,
                    next="this is no partition of host services: see cima log",
                )


_KNOWN = (File, ServicesRegister, Service, Unmeasured, Lost, Exit)


def _not_found(records: Sequence[Measured], required: bool) -> Iterator[Finding]:
    """Yield which services were found, and are not measured yet."""
    contents = [content for _, content in records]
    measured = {one.path for one in contents if isinstance(one, File)}
    measured |= {one.path_hex for one in contents if isinstance(one, Unmeasured) and one.path_hex}
    for register in contents:
        for service in register.services if isinstance(register, ServicesRegister) else ():
            if service.path_hex and service.path_hex not in measured:
                yield Finding(
                    severity="fail" if required else "warn",
                    rule="dependencies.unfinished",
                    what=f"the {printable(service.role)} {printable(service.path_hex)} is not "
                    "measured yet",
                    path=printable(service.path_hex),
                    next="ask for evidence again in a moment",
                )


def _file(
    number: int, file: File, host: HostReference, policy: DependenciesPolicy
) -> Iterator[Finding]:
    digest, path, _, _ = file
    wanted = host.digests(path)
    got, shown = digest.hex(), printable(path)
    if got in wanted:
        return
    by = next((each for each in policy.files if each.allows(path, digest)), None)
    if by is not None:
        how = "path pattern alone, whatever its content" if by.sha256 is None else "path and digest"
        yield Finding(
            severity="info",
            rule="dependency.allowed",
            what=f"{shown} of the host: allowed by the policy's {by.path}, by {how}",
            record=number,
            path=shown,
            got=got,
        )
        return
    yield Finding(
        severity="fail",
        rule="dependency.changed" if wanted else "dependency.added",
        what=f"{shown}, which the container relies on, is another one than the reference's"
        if wanted
        else f"{shown}, which the container relies on, is not in the host's reference values",
        record=number,
        path=shown,
        got=got,
        expected=" or ".join(wanted) if wanted else "no such file",
        next=f"{_ANEW}; in the policy: [[dependencies.files]] path = {quoted(exactly(path))}, "
        f"sha256 = {array([got])}",
    )


def _unmeasured(
    number: int, content: Unmeasured, host: HostReference, policy: DependenciesPolicy
) -> Iterator[Finding]:
    """Yield that the kernel did not measure a file: what it is, is the agent's word alone."""
    path, digest = content.path_hex or b"", content.digest or b""
    role, reason = printable(content.role), printable(content.reason)
    shown = printable(path) if path else f"the {role}"
    wanted = host.digests(path) if path else ()
    is_known = bool(digest) and digest.hex() in wanted
    allowed = bool(path) and any(matches(pattern, path) for pattern in policy.allow_unmeasured)
    what = f"{shown}, which the container relies on, was not measured by the kernel: {reason}"
    if is_known:
        what += "; by the agent's word it is the reference's"
    elif allowed:
        what += "; allowed by the policy"
    yield Finding(
        severity="warn" if is_known or allowed else "fail",
        rule="dependency.unmeasured",
        what=what,
        record=number,
        path=shown,
        got=digest.hex(),
        expected=" or ".join(wanted) or "a file of the host's reference values",
        next=""
        if is_known or allowed
        else "load the IMA policy before it starts; [dependencies] allow_unmeasured in the policy",
    )
