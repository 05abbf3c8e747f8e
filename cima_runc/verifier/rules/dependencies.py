"""The services that a container relies on are those of the host's reference values."""

from collections.abc import Iterator, Sequence

from cima_runc.ima.template import TemplateError, unpack_cima_ng
from cima_runc.measure.mtree import escape
from cima_runc.ml.records import IMA_TEMPLATE, Record, RecordError, template_data
from cima_runc.text import printable
from cima_runc.verifier.pattern import exactly, matches
from cima_runc.verifier.policy import DependenciesPolicy
from cima_runc.verifier.reference.file import HostReference
from cima_runc.verifier.result import Finding

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
            yield from _unmeasured(record, policy)
        elif record.content.get("type") not in _KNOWN:
            yield Finding(
                severity="fail",
                rule="dependencies.record",
                what=f"a record of an unknown type: {printable(str(record.content.get('type')))}",
                record=record.recnum,
                next="verify with the host's version of cima",
            )


_KNOWN = frozenset({"register"})


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
        next=f"{_ANEW}; in the policy: [[dependencies.files]] path = '{exactly(path)}'",
    )


def _unmeasured(record: Record, policy: DependenciesPolicy) -> Iterator[Finding]:
    content = record.content
    path = content.get("path")
    shown = printable(path) if isinstance(path, str) else "a service"
    raw = path.encode("utf-8", "surrogatepass") if isinstance(path, str) else b""
    allowed = any(matches(pattern, raw) for pattern in policy.allow_unmeasured)
    reason = content.get("reason")
    why = f": {printable(reason)}" if isinstance(reason, str) else ""
    yield Finding(
        severity="warn" if allowed else "fail",
        rule="dependency.unmeasured",
        what=f"{shown}, which the container relies on, is not in the kernel's log{why}",
        record=record.recnum,
        path=shown,
        expected="a line of the kernel's log",
        next=""
        if allowed
        else "start it after the IMA policy is loaded; [dependencies] allow_unmeasured",
    )
