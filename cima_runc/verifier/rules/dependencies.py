"""The services that a container relies on are those of the host's reference values."""

from collections.abc import Iterator, Sequence

from cima_runc.base.text import printable
from cima_runc.ima.template import TemplateError, unpack_cima_ng
from cima_runc.measure.mtree import escape
from cima_runc.ml.records import IMA_TEMPLATE, Record, RecordError, template_data
from cima_runc.verifier.pattern import exactly, matches
from cima_runc.verifier.policy import DependenciesPolicy
from cima_runc.verifier.reference.file import HostReference
from cima_runc.verifier.result import Finding
from cima_runc.verifier.toml import quoted

_ANEW = "after a wanted upgrade: cima reference host, on a host that is known to be good"


def check_dependencies(
    records: Sequence[Record], host: HostReference | None, policy: DependenciesPolicy
) -> Iterator[Finding]:
    """Yield what is wrong with the records of the dependencies' partition."""
    if host is None:
        yield Finding(
            severity="fail" if policy.required else "warn",
            rule="dependencies.reference",
            what="the host's services were not compared: no host's reference values were given",
            next="cima reference host, and give its file with --reference",
        )
        return
    if not records:
        yield Finding(
            severity="fail",
            rule="dependencies.none",
            what="there are no records of the host's services to compare with the reference values",
            next="see cima status; or leave out the host's reference values",
        )
    for record in records:
        if record.content_type == IMA_TEMPLATE:
            yield from _file(record, host, policy)
        elif record.content.get("type") == "unmeasured":
            yield from _unmeasured(record, host, policy)
        elif record.content.get("type") not in _KNOWN:
            yield Finding(
                severity="fail",
                rule="dependencies.record",
                what=f"a record of an unknown type: {printable(str(record.content.get('type')))}",
                record=record.recnum,
                next="verify with the host's version of cima",
            )


_KNOWN = frozenset({"register", "service", "lost", "exit"})


def _file(record: Record, host: HostReference, policy: DependenciesPolicy) -> Iterator[Finding]:
    try:
        digest, path, _, _ = unpack_cima_ng(template_data(record.content))
    except (RecordError, TemplateError) as error:
        yield Finding(
            severity="fail",
            rule="dependencies.record",
            what=f"a file's record cannot be read: {error}",
            record=record.recnum,
        )
        return
    wanted = host.files.get(escape(path), ())
    got, shown = digest.hex(), printable(path)
    if got in wanted:
        return
    by = next((each for each in policy.files if each.allows(path, digest)), None)
    if by is not None:
        how = "path and digest" if by.sha256 else "path pattern alone, whatever its content"
        yield Finding(
            severity="info",
            rule="dependency.allowed",
            what=f"{shown} of the host: allowed by the policy's {by.path}, by {how}",
            record=record.recnum,
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
        record=record.recnum,
        path=shown,
        got=got,
        expected=" or ".join(wanted) if wanted else "no such file",
        next=f"{_ANEW}; in the policy: [[dependencies.files]] path = {quoted(exactly(path))}",
    )


def _unmeasured(
    record: Record, host: HostReference, policy: DependenciesPolicy
) -> Iterator[Finding]:
    """Yield that the kernel did not measure a file: what it is, is the agent's word alone."""
    content = record.content
    path = _bytes(content.get("path_hex"))
    digest = _bytes(content.get("digest"))
    role, reason = (printable(str(content.get(key))) for key in ("role", "reason"))
    shown = printable(path) if path else f"the {role}"
    wanted = host.files.get(escape(path), ()) if path else ()
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
        record=record.recnum,
        path=shown,
        got=digest.hex(),
        expected=" or ".join(wanted) or "a file of the host's reference values",
        next=""
        if is_known or allowed
        else "load the IMA policy before it starts; [dependencies] allow_unmeasured in the policy",
    )


def _bytes(value: object) -> bytes:
    try:
        return bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        return b""
