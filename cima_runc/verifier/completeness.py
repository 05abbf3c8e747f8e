"""Was everything measured? What the records themselves say, whatever the reference values are."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cima_runc.base.text import printable
from cima_runc.ml.records import CIMA, Record
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.result import Finding


def completeness(records: Iterable[Record], policy: Policy) -> Iterator[Finding]:
    """Yield what is missing from these records: lost events, violations, missing sources."""
    for record in records:
        if record.content_type != CIMA:
            continue
        content, at = record.content, record.recnum
        match content.get("type"):
            case "lost":
                count = content.get("count")
                what = "an unknown number of" if count is None else str(count)
                reason = printable(str(content.get("reason")))
                what = f"{what} events were lost: {reason}"
                yield _finding("records.lost", policy.allow_lost, what, at, "allow_lost")
            case "violation":
                reason = printable(str(content.get("reason")))
                if content.get("denied") is True:
                    yield _denied(content, at)
                    continue
                what = f"something ran that cannot be named: {reason}"
                allowed = policy.allow_violations
                yield _finding("records.violation", allowed, what, at, "allow_violations")
            case "register":
                for source in _names(content.get("missing")):
                    allowed = source in policy.allow_missing
                    what = f"measured without {printable(source)}"
                    yield _finding("records.missing", allowed, what, at, "allow_missing")


def _denied(content: Mapping[str, Any], at: int) -> Finding:
    """Return what is shown of a file that the kernel refused: nothing of it ran."""
    try:
        path = bytes.fromhex(str(content.get("path_hex")))
    except ValueError:
        path = b"a file without a path"
    return Finding(
        severity="warn",
        rule="records.denied",
        what=f"{printable(path)} was to run and was denied: it is not in the container's image",
        record=at,
        path=printable(path),
        got=printable(str(content.get("digest"))),
        next="find out who tried",
    )


def _names(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _finding(rule: str, allowed: bool, what: str, record: int, key: str) -> Finding:
    next_ = f"see cima status; to tolerate it: {key} in the policy"
    return Finding.unless(allowed, rule, what, record=record, next_=next_)
