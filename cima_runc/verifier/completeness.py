"""Was everything measured? What the records themselves say, whatever the reference values are."""

from collections.abc import Iterable, Iterator

from cima_runc.base.text import printable
from cima_runc.ml.contents import (
    File,
    Lost,
    Measured,
    Memory,
    RegisterV1,
    ServicesRegister,
    Violation,
    ViolationKind,
    ViolationV1,
)
from cima_runc.verifier.pattern import exactly
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.result import Finding
from cima_runc.verifier.rules.unstable import unknown_file, unstable_file
from cima_runc.verifier.toml import array, quoted

_KINDS = {
    "unnamed": "something ran that cannot be named",
    "unstable": "what ran may not be what its digest says",
    "changed": "code was changed after it was measured",
    "guard": "somebody reached for what measures",
    "entry": "somebody entered with more rights than the container has",
    "helper": "the kernel ran something for it outside",
}
_MISSING = {
    "memory": "it was restored from a checkpoint: nothing measured what is in its memory",
}


def completeness(records: Iterable[Measured], policy: Policy) -> Iterator[Finding]:
    """Yield what is missing from these records: lost events, violations, missing sources."""
    for at, content in records:
        if type(content) is File:
            continue  # nearly all of them
        match content:
            case Lost():
                many = "an unknown number of" if content.count is None else str(content.count)
                what = f"{many} events were lost: {printable(content.reason)}"
                yield _finding("records.lost", policy.allow_lost, what, at, "allow_lost = true")
            case ViolationV1():
                yield from _violation(content, at, policy)
            case Memory():
                yield _memory(content, at, policy)
            case RegisterV1() | ServicesRegister():
                for source in content.missing:
                    allowed = source in policy.allow_missing
                    what = _MISSING.get(source) or f"measured without {printable(source)}"
                    key = f"allow_missing = [{quoted(printable(source))}]"
                    yield _finding("records.missing", allowed, what, at, key)


def violation_rule(kind: ViolationKind) -> str:
    """Return the name of the rule that a violation of this kind breaks."""
    return "records.violation" if kind == "unnamed" else f"records.{kind}"


def _violation(content: ViolationV1, at: int, policy: Policy) -> Iterator[Finding]:
    path = printable(content.path_hex) if content.path_hex is not None else ""
    digest = content.digest.hex() if content.digest is not None else ""
    kind: ViolationKind = content.kind if isinstance(content, Violation) else "unnamed"
    if kind in {"denied", "unnamed"} and content.denied:
        # Nothing of it ran: the kernel refused it.
        yield Finding(
            severity="warn",
            rule="records.denied",
            what=f"{path or 'a file without a path'} was to run and was denied: "
            f"{printable(content.reason)}",
            record=at,
            path=path,
            got=digest,
            next="find out who tried",
        )
        return
    what = f"{_KINDS.get(kind, kind)}: {printable(content.reason)}"
    if isinstance(content, Violation) and content.why is not None:
        what += f" ({printable(content.why)})"
    if content.denied:
        what += "; it was denied"
    rule = violation_rule(kind)
    named = unstable_file(content)
    unknown = unknown_file(content)
    # Where there is a path, a whole kind is more than what was seen.
    key = f"allow_violations = {array([kind])}" if kind != "unstable" or not path else ""
    allowed = policy.allows_violation(kind) or (content.denied and kind == "unstable")
    if named is not None:
        key = f"[[unstable]] path = {quoted(exactly(named.path))}, why = {array([named.why])}"
        allowed = allowed or any(
            one.allows(named.path, named.why, named.func.value, has_digest=True)
            for one in policy.unstable
        )
    elif unknown is not None:
        key = f"[[unstable]] {unknown.key.rstrip().replace(chr(10), ', ')}"
        allowed = allowed or any(
            one.allows(unknown.path, unknown.why, unknown.func, has_digest=False)
            for one in policy.unstable
        )
    yield _finding(rule, allowed, what, at, key, path=path, got=digest)


def _memory(content: Memory, at: int, policy: Policy) -> Finding:
    program = content.program_path_hex or b""
    shown = printable(program) if program else "a program without a path"
    allowed = content.denied or any(one.allows(program, content.kind) for one in policy.memory)
    what = f"{shown} made memory executable that is no measured file ({content.kind})"
    if content.denied:
        what += "; it was denied"
    # Of no path there is no pattern but that of any.
    pattern = f"[[memory]] program = {quoted(exactly(program))}, kinds = {array([content.kind])}"
    key = pattern if program else ""
    digest = content.program_digest.hex() if content.program_digest is not None else ""
    return _finding("records.memory", allowed, what, at, key, path=shown, got=digest)


def _finding(
    rule: str, allowed: bool, what: str, record: int, key: str, *, path: str = "", got: str = ""
) -> Finding:
    next_ = "see cima status" + (f"; to tolerate it, in the policy: {key}" if key else "")
    return Finding.unless(allowed, rule, what, record=record, path=path, got=got, next_=next_)
