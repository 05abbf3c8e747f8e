"""Signed and wrong: a host with an enrolled key of its own says what is not so.

Each forgery changes one thing where it arises; all that follows from it is made anew and signed
(:mod:`tests.support.forger`). Each is refused, or found, by its own name.
"""

import base64
import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cima_runc.evidence.owner import generate, parse_private
from cima_runc.verifier.ak_certificate import parse_authority
from cima_runc.verifier.appraisal import References
from cima_runc.verifier.enrolled import parse_enrolled_ak
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.kernel_line import read_line
from cima_runc.verifier.policy import parse_policy
from cima_runc.verifier.reference.file import HostReference
from cima_runc.verifier.result import Result
from cima_runc.verifier.state import StateDirectory
from cima_runc.verifier.steps.explained import aggregate
from cima_runc.verifier.verify import Appraisal, verify
from tests.support.evidence_by_hand import verify as by_hand
from tests.support.firmware_log import added_up, firmware_log
from tests.support.forger import ATTRIBUTES, Edits, Forger, Partition, canonical, host_line, sha

OWNER_PEM, OWNER = generate()
STRANGER_PEM, STRANGER = generate()
STEPS = [
    *("ak", "signature", "quote", "pcr-selection", "nonce", "pcr-values", "binding"),
    *("owner-part", "clock", "leaf", "records", "continuity", "dependencies", "host-log"),
    *("boot-log", "completeness", "appraisal"),
]
"""What every result says was looked at."""
GOOD = Appraisal(lambda *compared: [], References(), b"r" * 32)


class Case:
    """One request to a forger, and its verification."""

    def __init__(self, host: str = "none", *, sealed: bool = True, services: bool = True) -> None:
        self.host = host
        self.nonce = os.urandom(32)
        self.forger = Forger()
        self.forger.owners = [OWNER] if sealed else []
        if services:
            self.forger.serve((b"/usr/sbin/runc", b"runc"), (b"/usr/bin/a b", b"shim"))
        self.forger.start((b"/bin/sh", b"sh"), (b"/bin/id", b"id"))
        self.appraisal: Appraisal | None = GOOD
        self.memory: StateDirectory | None = None
        self.policy = ""

    def evidence(self, edits: Edits | None = None, **more: Any) -> bytes:
        request = self.forger.request(self.nonce, host=self.host)
        return self.forger.evidence(request, edits, **more)

    def verify(self, raw: bytes, **wanted: Any) -> Result:
        known: dict[str, Any] = {
            "nonce": self.nonce,
            "ak": parse_enrolled_ak(self.forger.pem()),
            "container": "box",
            "owner_key": parse_private(OWNER_PEM),
            "host": self.host,
            "policy": parse_policy(self.policy.encode()),
        }
        return verify(
            raw, Expectation(**known | wanted), memory=self.memory, appraisal=self.appraisal
        )


def refusal(result: Result) -> str:
    assert result.verdict != Verdict.TRUSTED
    assert result.refusal is not None, result.findings
    assert result.facts is None
    for text in (result.refusal.what, result.refusal.expected, result.refusal.found):
        assert text.isprintable()
    return result.refusal.error


def failed(result: Result) -> set[str]:
    assert result.refusal is None, result.refusal
    assert result.verdict == Verdict.UNTRUSTED
    return {finding.rule for finding in result.findings if finding.severity == "fail"}


@pytest.mark.parametrize("host", ["none", "redacted", "full"])
@pytest.mark.parametrize("sealed", [True, False])
def test_the_honest_is_trusted_by_both_verifiers(host: str, sealed: bool) -> None:
    """Kind: a forger that makes nothing right proves nothing."""
    case = Case(host, sealed=sealed)
    files = {"/usr/sbin/runc": (sha(b"runc").hex(),), "/usr/bin/a_b": (sha(b"shim").hex(),)}
    reference = References(None, HostReference(files=files))
    case.appraisal = Appraisal(lambda *compared: [], reference, b"r" * 32)
    raw = case.evidence()
    result = case.verify(raw)
    assert result.refusal is None, result.refusal
    assert result.verdict == Verdict.TRUSTED, result.findings
    assert [check.step for check in result.checks] == STEPS
    assert result.appraised
    undone = {check.step for check in result.checks if not check.done}
    assert undone == {"continuity", "boot-log", *(["host-log"] if host == "none" else [])}
    pem = OWNER_PEM if sealed else None
    proved = by_hand(raw, case.nonce, case.forger.name, "box", private_pem=pem, host=host)
    assert len(proved["records"]) == 5
    assert result.facts is not None
    assert result.facts.count == 5


# -- key, signature, quote ------------------------------------------------------------------------


def quote(**changes: Any) -> Edits:
    return Edits(quote=lambda fields: fields.update(changes))


def of_quote(change: Callable[[dict[str, Any]], object]) -> Edits:
    return Edits(quote=change)


def of_binding(change: Callable[[dict[str, Any]], object], *, after: bool = False) -> Edits:
    return Edits(binding_after=change) if after else Edits(binding=change)


def of_owner(change: Callable[[dict[str, Any]], object], *, after: bool = False) -> Edits:
    return Edits(owner_after=change) if after else Edits(owner=change)


def of_evidence(change: Callable[[dict[str, Any]], object]) -> Edits:
    return Edits(evidence=change)


def flipped(text: str) -> str:
    return ("1" if text[0] == "0" else "0") + text[1:]


def flip(holder: Any, key: Any) -> None:
    holder[key] = flipped(holder[key])


def records_of(owner: dict[str, Any]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = owner["runs"][-1]["records"]
    return records


def replaced(at: int, content: Any) -> Callable[[dict[str, Any]], None]:
    """Another content in a record, with its own digest."""

    def change(owner: dict[str, Any]) -> None:
        record = records_of(owner)[at]
        record |= {"content_type": "cima", "content": content}
        record["digests"][0]["digest"] = sha(canonical(content)).hex()
        _recount(owner)

    return change


def _recount(owner: dict[str, Any]) -> None:
    value = bytes(32)
    for record in records_of(owner):
        value = sha(value, bytes.fromhex(record["digests"][0]["digest"]))
    owner |= {"cpcr": value.hex(), "count": len(records_of(owner))}


def recounted(change: Callable[[list[dict[str, Any]]], object]) -> Edits:
    """Other records, bound as they are."""

    def edit(owner: dict[str, Any]) -> None:
        change(records_of(owner))
        _recount(owner)

    return of_owner(edit)


def registered(**changes: Any) -> Edits:
    """Another registration, bound as it is."""

    def edit(owner: dict[str, Any]) -> None:
        content = records_of(owner)[0]["content"] | changes
        replaced(0, content)(owner)

    return of_owner(edit)


def renumbered(records: list[dict[str, Any]]) -> None:
    for number, record in enumerate(records):
        record["recnum"] = number


def _append(content: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(records: list[dict[str, Any]]) -> None:
        partition = Partition("box")
        partition.records = records
        partition.add(content)

    return change


def _template(change: Callable[[str], str]) -> Callable[[list[dict[str, Any]]], None]:
    def edit(records: list[dict[str, Any]]) -> None:
        content = records[3]["content"]
        content["template_data"] = change(content["template_data"])

    return edit


def _loose_bits(text: str) -> str:
    """The same bytes in base64 with bits left over, where there are any."""
    body = text.rstrip("=")
    if body == text:
        return text + "===="
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = alphabet[alphabet.index(body[-1]) + 1]
    return body[:-1] + last + text[len(body) :]


REFUSED: dict[str, tuple[Edits, str]] = {
    # quote
    "magic": (quote(magic=b"\xffTCH"), "QuoteMagicError"),
    "type": (quote(type=0x8017), "QuoteTypeError"),
    "hierarchy": (quote(signer=b"\0\x0b" + bytes(32)), "AkHierarchyError"),
    "no hierarchy": (quote(signer=b""), "AkHierarchyError"),
    "trailing bytes": (Edits(attest=lambda raw: raw + b"\0"), "QuoteFormatError"),
    "cut": (Edits(attest=lambda raw: raw[:-1]), "QuoteFormatError"),
    "another bank": (quote(banks=[(0x0004, [12])]), "QuoteFormatError"),
    "two banks": (
        of_quote(lambda fields: fields["banks"].append((0x0004, [12]))),
        "QuoteFormatError",
    ),
    "PCR left out": (
        of_quote(lambda fields: (fields["banks"][0][1].remove(14), fields["values"].pop(14))),
        "PcrSelectionError",
    ),
    "PCR too many": (
        of_quote(
            lambda fields: (
                fields["banks"][0][1].append(11),
                fields["values"].update({11: b"\1" * 32}),
            )
        ),
        "PcrSelectionError",
    ),
    "PCR 16 for 12": (
        of_quote(
            lambda fields: (
                fields["banks"][0][1].remove(12),
                fields["banks"][0][1].append(16),
                fields["values"].update({16: fields["values"].pop(12)}),
            )
        ),
        "PcrSelectionError",
    ),
    "values relabelled": (
        of_evidence(lambda evidence: evidence["quote"]["pcrs"].update({"16": "00" * 32})),
        "PcrSelectionError",
    ),
    "binding PCR relabelled": (
        of_evidence(lambda evidence: evidence["binding"].update(pcr=14)),
        "PcrSelectionError",
    ),
    "host PCR relabelled": (
        of_evidence(lambda evidence: evidence["host_log"].update(pcr=9)),
        "PcrSelectionError",
    ),
    "clock not safe": (quote(safe=0), "ClockUnsafeError"),
    "clock neither": (quote(safe=2), "QuoteFormatError"),
    "values of another time": (
        of_evidence(lambda evidence: flip(evidence["quote"]["pcrs"], "0")),
        "PcrValuesError",
    ),
    "digest of another time": (quote(digest=bytes(32)), "PcrValuesError"),
    # signature
    "signature of another": (
        of_evidence(
            lambda evidence: evidence["quote"].update(
                signature=base64.b64encode(Forger().sign(b"x")).decode()
            )
        ),
        "SignatureError",
    ),
    "signature cut": (
        of_evidence(lambda evidence: evidence["quote"].update(signature="AAAA")),
        "SignatureError",
    ),
    # request
    "qualified with nothing": (quote(extra=b""), "QualifyingDataError"),
    "another place": (
        of_evidence(lambda evidence: evidence["aggregation"].update(index=0x156)),
        "QualifyingDataError",
    ),
    "another sibling": (
        of_evidence(lambda evidence: flip(evidence["aggregation"]["path"], 9)),
        "QualifyingDataError",
    ),
    "another request's digest": (
        of_evidence(lambda evidence: flip(evidence, "request")),
        "QualifyingDataError",
    ),
    "another nonce": (
        of_evidence(lambda evidence: evidence.update(nonce="00" * 32)),
        "NonceError",
    ),
    "another container": (
        of_evidence(lambda evidence: evidence.update(container="other")),
        "ContainerError",
    ),
    "another request under the seal": (
        of_owner(lambda owner: owner["request"].update(host="full")),
        "RequestError",
    ),
    "a request that was asked from somewhere": (
        of_owner(
            lambda owner: owner["request"].update(since={"run": 1, "count": 1, "inner": "00" * 32})
        ),
        "RequestError",
    ),
    # binding
    "leaf": (of_binding(lambda binding: flip(binding, "leaf")), "TreePathError"),
    "slot": (
        of_binding(lambda binding: binding.update(slot=binding["slot"] ^ 1)),
        "TreePathError",
    ),
    "path": (of_binding(lambda binding: flip(binding["path"], 4)), "TreePathError"),
    "root": (of_binding(lambda binding: flip(binding, "root")), "TreePathError"),
    "no root": (of_binding(lambda binding: binding.update(root="00" * 32)), "TreePathError"),
    "history": (of_binding(lambda binding: flip(binding, "history"), after=True), "BindingError"),
    "host": (of_binding(lambda binding: flip(binding, "host"), after=True), "BindingError"),
    "a quote from before the bind": (
        of_evidence(
            lambda evidence: evidence["binding"].update(history=evidence["quote"]["pcrs"]["12"])
        ),
        "QuoteBeforeBindingError",
    ),
    "status: foreign is hidden": (
        of_binding(lambda binding: binding["status"]["foreign"].update(count=3), after=True),
        "BindingError",
    ),
    "status: gaps are hidden": (
        of_binding(lambda binding: binding["status"]["gaps"].update(count=1), after=True),
        "BindingError",
    ),
    "status: initial": (
        of_binding(lambda binding: binding["status"].update(initial=None), after=True),
        "BindingError",
    ),
    # owner's part
    "blind": (of_owner(lambda owner: flip(owner, "blind"), after=True), "LeafError"),
    "secret": (of_owner(lambda owner: flip(owner["runs"][-1], "secret"), after=True), "LeafError"),
    "count": (
        of_owner(lambda owner: owner.update(count=owner["count"] + 1)),
        "RecordCountError",
    ),
    "register": (of_owner(lambda owner: flip(owner, "cpcr")), "RegisterError"),
    "not padded": (Edits(text=lambda text: text.rstrip(b" ")), "OwnerPartError"),
    "padded too much": (Edits(text=lambda text: text + b" "), "OwnerPartError"),
    "padded in front": (Edits(text=lambda text: b" " + text[:-1]), "OwnerPartError"),
    "padded with a line": (Edits(text=lambda text: text[:-1] + b"\n"), "OwnerPartError"),
    "a line before the padding": (
        Edits(text=lambda text: (text.rstrip(b" ") + b"\n").ljust(len(text))),
        "OwnerPartError",
    ),
    "sealed twice": (Edits(seals=lambda seals: seals * 2), "OwnerPartError"),
    "sealed to nobody": (Edits(seals=lambda seals: [seals[0][:-8] + "AAAAAAA="]), "OwnerKeyError"),
    "no part": (Edits(text=lambda text: b"{}".ljust(16384)), "OwnerPartError"),
    "a key twice under the seal": (
        Edits(
            text=lambda text: text.replace(b'"blind":', b'"line": "", "blind":', 1).ljust(20480)[
                :20480
            ]
        ),
        "OwnerPartError",
    ),
    # records
    "a record dropped": (recounted(lambda records: records.pop(2)), "RecordMissingError"),
    "a record dropped, renumbered": (
        of_owner(lambda owner: (records_of(owner).pop(2), renumbered(records_of(owner)))),
        "RecordCountError",
    ),
    "the last record dropped": (
        of_owner(lambda owner: records_of(owner).pop(), after=True),
        "RecordCountError",
    ),
    "a record twice": (
        recounted(lambda records: records.insert(2, copy.deepcopy(records[1]))),
        "RecordRepeatedError",
    ),
    "the first record twice": (
        recounted(lambda records: records.insert(1, copy.deepcopy(records[0]))),
        "RecordRepeatedError",
    ),
    "records out of order": (
        recounted(lambda records: records.insert(2, records.pop(3))),
        "RecordOrderError",
    ),
    "a record of another container": (
        recounted(lambda records: records[3].update(cpcr="other")),
        "ForeignRecordError",
    ),
    "a record without meta": (
        recounted(lambda records: records[3].pop("meta")),
        "RecordFormatError",
    ),
    "a record with more": (
        recounted(lambda records: records[3].update(line={"template": "ima-ng", "data": ""})),
        "RecordFormatError",
    ),
    "a record's digest": (
        recounted(lambda records: flip(records[3]["digests"][0], "digest")),
        "RecordDigestError",
    ),
    "a digest in capitals": (
        recounted(
            lambda records: records[3]["digests"][0].update(
                digest=records[3]["digests"][0]["digest"].upper() + ""
            )
        ),
        "RecordFormatError",
    ),
    "a record of no type": (of_owner(replaced(2, {"a": 1})), "RecordTypeError"),
    "a record of an unknown type": (of_owner(replaced(2, {"type": "news"})), "RecordTypeError"),
    "a record whose type is a list": (of_owner(replaced(2, {"type": ["exit"]})), "RecordTypeError"),
    "a record whose type is an object": (of_owner(replaced(2, {"type": {}})), "RecordTypeError"),
    "an unknown content type": (
        recounted(lambda records: records[3].update(content_type="x")),
        "RecordTypeError",
    ),
    "a record of another shape": (
        of_owner(replaced(2, {"type": "lost", "count": 1.5, "reason": "r"})),
        "RecordShapeError",
    ),
    "missing as a text": (registered(missing="ima"), "RecordShapeError"),
    "a file's template in loose base64": (
        recounted(_template(_loose_bits)),
        "RecordShapeError",
    ),
    "another template": (
        recounted(lambda records: records[3]["content"].update(template_name="ima-ng")),
        "RecordShapeError",
    ),
    # runs
    "registered as another": (registered(id="other"), "RunError"),
    "registered under another number": (registered(registration=1), "RunError"),
    "of another line": (registered(line="00" * 32), "RunError"),
    "of another run": (
        registered(run=2, previous="lost"),
        "RunError",
    ),
    "run 1 with one before it": (registered(previous="lost"), "RecordShapeError"),
    "registered twice": (
        recounted(lambda records: _append(copy.deepcopy(records[0]["content"]))(records)),
        "RunError",
    ),
    "adopted though it has a line": (
        recounted(_append({"type": "adopted", "line": "00" * 32, "run": 1, "previous": "lost"})),
        "RunError",
    ),
    "not registered first": (
        recounted(lambda records: (records.insert(0, records.pop(1)), renumbered(records))),
        "RunError",
    ),
    "a run that begins later": (
        of_owner(lambda owner: owner["runs"][-1].update(since=1)),
        "NotRememberedError",
    ),
    # services
    "services left out": (of_owner(lambda owner: owner.update(services=None)), "DependenciesError"),
    "other services": (
        of_owner(lambda owner: owner["services"].update(registration=7)),
        "DependenciesError",
    ),
    "a service's record dropped": (
        of_owner(lambda owner: owner["services"]["records"].pop(), after=True),
        "DependenciesError",
    ),
    "services of another tree": (
        of_owner(lambda owner: flip(owner["services"]["path"], 0), after=True),
        "DependenciesError",
    ),
    "services' secret": (
        of_owner(lambda owner: flip(owner["services"], "secret"), after=True),
        "DependenciesError",
    ),
    # reading
    "a key twice": (of_evidence(lambda evidence: None), "UnreadableError"),
    "version 1": (of_evidence(lambda evidence: evidence.update(version=1)), "VersionError"),
    "version 2.0": (of_evidence(lambda evidence: evidence.update(version=2.0)), "VersionError"),
    "one more field": (of_evidence(lambda evidence: evidence.update(seq=1)), "UnreadableError"),
    "sealed and owner": (
        of_evidence(lambda evidence: evidence.update(owner={})),
        "UnreadableError",
    ),
    "a tree of depth 1": (
        of_evidence(lambda evidence: evidence["binding"].update(slot=0, path=["00" * 32])),
        "UnreadableError",
    ),
    "a slot beyond the tree": (
        of_evidence(lambda evidence: evidence["binding"].update(slot=1024)),
        "UnreadableError",
    ),
    "capitals": (
        of_evidence(lambda evidence: evidence["binding"].update(host="A" * 64)),
        "UnreadableError",
    ),
    "1.0 for 1": (
        of_evidence(lambda evidence: evidence["aggregation"].update(index=341.0)),
        "UnreadableError",
    ),
    "true for 1": (
        of_evidence(lambda evidence: evidence["binding"]["status"]["foreign"].update(count=True)),
        "UnreadableError",
    ),
    "loose base64": (
        of_evidence(
            lambda evidence: evidence["ak"].update(public=_loose_bits(evidence["ak"]["public"]))
        ),
        "UnreadableError",
    ),
    "entries with none": (
        of_evidence(lambda evidence: evidence["host_log"].update(entries=["00" * 32])),
        "UnreadableError",
    ),
    "escapes for a terminal": (
        of_evidence(lambda evidence: evidence["binding"].update({"\x1b[2J": 1})),
        "UnreadableError",
    ),
    "PCR 07": (
        of_evidence(lambda evidence: evidence["quote"]["pcrs"].update({"07": "00" * 32})),
        "UnreadableError",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_its_name(name: str) -> None:
    """Findings 6, 7 and 9. Kind: what nothing covers can be edited on the way; what has two
    spellings is read as either; what has no known type is passed over."""
    edits, error = REFUSED[name]
    case = Case()
    raw = case.evidence(edits)
    if name == "a key twice":
        raw = raw.replace(b'"version": 2,', b'"version": 2, "version": 2,', 1)
    result = case.verify(raw)
    if error == "TRUSTED":
        assert result.verdict == Verdict.TRUSTED
        return
    assert refusal(result) == error
    if any(check.step == "quote" for check in result.checks):
        assert result.host is not None
        assert result.host.ak_name == case.forger.name
    with pytest.raises(Exception):  # noqa: B017 - an assertion or whatever else
        by_hand(raw, case.nonce, case.forger.name, "box", private_pem=OWNER_PEM)
        if error in {"RecordTypeError", "RecordShapeError", "RunError"}:
            raise ValueError("types and shapes are the appraiser's")


def test_there_are_enough_of_them() -> None:
    assert len(REFUSED) >= 60
    assert len({error for _, error in REFUSED.values()}) >= 25


def test_restricted_keys_alone() -> None:
    for attributes in (0x00040472, 0x00050470, 0x00050462, 0x00050452, 0x00070472, 0x00010472):
        case = Case()
        case.forger = Forger(attributes=attributes)
        case.forger.owners = [OWNER]
        case.forger.start()
        assert refusal(case.verify(case.evidence())) == "AkAttributesError"
    assert ATTRIBUTES == 0x00050472


def test_another_hosts_key() -> None:
    case = Case()
    other = parse_enrolled_ak(Forger().pem())
    assert refusal(case.verify(case.evidence(), ak=other)) == "AkNotEnrolledError"


def test_evidence_for_the_workload_or_a_report_is_none_for_us() -> None:
    for kind in (b"\x02", b"\x03", b"\x01"):
        case = Case()
        assert refusal(case.verify(case.evidence(kind=kind))) == "QualifyingDataError"


def test_sealed_to_others_alone() -> None:
    case = Case()
    case.forger.owners = [STRANGER]
    assert refusal(case.verify(case.evidence())) == "OwnerKeyError"
    assert refusal(case.verify(case.evidence(), owner_key=None)) == "OwnerKeyError"
    case.forger.owners = [STRANGER, OWNER]
    assert case.verify(case.evidence()).verdict == Verdict.TRUSTED
    case.forger.owners = [OWNER, OWNER]
    assert refusal(case.verify(case.evidence())) == "OwnerPartError"


def test_a_first_line_that_fewer_pcrs_cannot_be_compared_with() -> None:
    case = Case("redacted")
    case.policy = "boot_pcrs = [7]"

    def fewer(fields: dict[str, Any]) -> None:
        fields["values"] = {pcr: fields["values"][pcr] for pcr in (7, 10, 12)}
        fields["banks"] = [(0x000B, sorted(fields["values"]))]

    assert failed(case.verify(case.evidence(of_quote(fewer)))) == {"boot_aggregate.not_comparable"}


def test_a_first_line_of_another_name_compares_nothing() -> None:
    """Also where the digest is the right one: of a log whose beginning is missing."""
    case = Case()
    values = case.forger.pcrs
    line = read_line(case.forger.log[0][0])
    assert line is not None
    assert aggregate(line, values) == "equal"
    assert aggregate(replace(line, path=b"/bin/sh"), values) == "another"


def test_as_much_is_required_as_was_asked() -> None:
    """Kind: the sender decides how much is checked."""
    case = Case("redacted")
    raw = case.evidence()
    assert case.verify(raw).verdict == Verdict.TRUSTED
    for host in ("none", "full"):
        assert refusal(case.verify(raw, host=host)) == "DisclosureError"
    assert refusal(case.verify(raw, boot_log=True)) == "DisclosureError"
    relabelled = json.loads(raw)
    relabelled["host_log"]["disclosure"] = "full"
    assert refusal(case.verify(json.dumps(relabelled).encode(), host="full")) == "UnreadableError"
    less = Case()
    with_log = less.evidence(of_evidence(lambda evidence: evidence.update(boot_log="")))
    assert refusal(less.verify(with_log)) == "DisclosureError"


def test_the_boot_log_adds_up_to_every_boot_pcr() -> None:
    """Kind: a log that is shown, and compared with nothing."""
    case = Case()
    events = [(pcr, b"event %d" % (pcr % 3)) for pcr in (*range(10), 14, 14, 0)]
    case.forger.pcrs = added_up(case.forger.pcrs, events)

    def result(log: bytes) -> Result:
        request = case.forger.request(case.nonce, boot_log=True)
        text = base64.b64encode(log).decode()
        edits = of_evidence(lambda evidence: evidence.update(boot_log=text))
        return case.verify(case.forger.evidence(request, edits), boot_log=True)

    good = result(firmware_log(*events))
    assert good.verdict == Verdict.TRUSTED
    assert not any("firmware" in line for line in good.not_proved)
    for at, (pcr, _) in enumerate(events):
        without = [*events[:at], *events[at + 1 :]]
        for wrong in (without, [*without, (pcr, b"another")], [*events, (pcr, b"more")]):
            assert refusal(result(firmware_log(*wrong))) == "BootLogError", wrong
    assert refusal(result(firmware_log())) == "BootLogError"
    assert refusal(result(firmware_log(*events)[:-1])) == "BootLogError"


def test_without_a_container_it_is_said_that_none_was_asked_for() -> None:
    """Finding 8. Kind: a result that claims more than was checked (identity left open)."""
    case = Case()
    result = case.verify(case.evidence(), container=None)
    assert result.verdict == Verdict.TRUSTED
    (nonce,) = [check for check in result.checks if check.step == "nonce"]
    assert "this request" not in nonce.detail
    assert any("which container" in line for line in result.not_proved)
    assert not any("which container" in line for line in case.verify(case.evidence()).not_proved)


# -- PCR 10 ---------------------------------------------------------------------------------------

RUNC = {"/usr/sbin/runc": (sha(b"runc").hex(),), "/usr/bin/a_b": (sha(b"shim").hex(),)}


def full(case: Case, **more: tuple[str, ...]) -> Case:
    files = RUNC | {f"/{name}": digests for name, digests in more.items()}
    reference = References(None, HostReference(files=files))
    case.appraisal = Appraisal(lambda *compared: [], reference, b"r" * 32)
    return case


def aggregate_of(case: Case) -> bytes:
    """The honest host's boot_aggregate."""
    line = read_line(case.forger.log[0][0])
    assert line is not None
    return line.digest


LOGS: dict[str, tuple[str, Callable[[Case], object], str]] = {
    "no boot_aggregate": (
        "redacted",
        lambda case: case.forger.log.pop(0),
        "ForeignLogError",
    ),
    "a violation for boot_aggregate": (
        "redacted",
        lambda case: case.forger.log.insert(0, (case.forger.log.pop(0)[0], True)),
        "ForeignLogError",
    ),
    "another boot's log": (
        "redacted",
        lambda case: case.forger.log.__setitem__(
            0, (host_line(b"boot_aggregate", sha(b"another boot")), False)
        ),
        "boot_aggregate.differs",
    ),
    "IMA had no TPM": (
        "redacted",
        lambda case: case.forger.log.__setitem__(
            0, (host_line(b"boot_aggregate", bytes(32)), False)
        ),
        "boot_aggregate.no_tpm",
    ),
    "IMA had no TPM, SHA-1": (
        "full",
        lambda case: case.forger.log.__setitem__(
            0, (host_line(b"boot_aggregate", bytes(20), b"sha1"), False)
        ),
        "boot_aggregate.no_tpm",
    ),
    "of another hash": (
        "redacted",
        lambda case: case.forger.log.__setitem__(
            0, (host_line(b"boot_aggregate", b"\1" * 20, b"sha1"), False)
        ),
        "boot_aggregate.not_comparable",
    ),
    "of a hash as long as SHA-256": (
        "redacted",
        lambda case: case.forger.log.__setitem__(
            0, (host_line(b"boot_aggregate", aggregate_of(case), b"sm3-256"), False)
        ),
        "boot_aggregate.not_comparable",
    ),
    "cut": (
        "redacted",
        lambda case: case.forger.log.__setitem__(
            0, (host_line(b"boot_aggregate", aggregate_of(case)[:20]), False)
        ),
        "boot_aggregate.not_comparable",
    ),
    "a rootkit": (
        "full",
        lambda case: case.forger.host_runs(b"/root/rootkit.ko", b"rootkit"),
        "host.added",
    ),
    "another runc beside": (
        "full",
        lambda case: case.forger.host_runs(b"/usr/sbin/runc", b"evil"),
        "host.changed",
    ),
    "a digest of another kind": (
        "full",
        lambda case: case.forger.log.append(
            (host_line(b"/usr/sbin/runc", sha(b"runc"), b"verity:sha256"), False)
        ),
        "host.changed",
    ),
    "a line of no file": (
        "full",
        lambda case: case.forger.log.append((b"odd", False)),
        "host.line",
    ),
    "violations whose paths are not shown": (
        "redacted",
        lambda case: [case.forger.host_runs(b"/x", b"", violation=True) for _ in range(50)],
        "host.violation",
    ),
    "a violation of a service": (
        "full",
        lambda case: case.forger.host_runs(b"/usr/sbin/runc", b"", violation=True),
        "host.violation",
    ),
    "a service that is not in the log": (
        "redacted",
        lambda case: case.forger.log.pop(1),
        "DependencyLineError",
    ),
    "no log but its first line": (
        "full",
        lambda case: case.forger.log.__delitem__(slice(1, None)),
        "DependencyLineError",
    ),
    "a service's line left out": (
        "redacted",
        lambda case: case.forger.services.records[1].pop("line"),  # type: ignore[union-attr]
        "DependencyLineError",
    ),
    "a service's line of another file": (
        "redacted",
        lambda case: case.forger.services.records[1].update(  # type: ignore[union-attr]
            line=case.forger.services.records[3]["line"]  # type: ignore[union-attr]
        ),
        "DependencyLineError",
    ),
    "a line beside what is no file": (
        "none",
        lambda case: case.forger.services.records[0].update(  # type: ignore[union-attr]
            line=case.forger.services.records[1]["line"]  # type: ignore[union-attr]
        ),
        "DependencyLineError",
    ),
    "services without a record": (
        "none",
        lambda case: case.forger.services.records.clear(),  # type: ignore[union-attr]
        "DependenciesError",
    ),
    "a service's line that is none": (
        "redacted",
        lambda case: case.forger.services.records[1].update(line=5),  # type: ignore[union-attr]
        "DependenciesError",
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_what_pcr_10_decides(name: str) -> None:
    """Finding 3. Kind: evidence that is asked for, checked for its form, and decides nothing."""
    host, change, found = LOGS[name]
    case = full(Case(host))
    change(case)
    result = case.verify(case.evidence())
    if found.endswith("Error"):
        assert refusal(result) == found
    else:
        assert failed(result) == {found}


def test_a_log_that_does_not_add_up() -> None:
    for change in (
        lambda log: log["entries"].pop(),
        lambda log: flip(log["entries"], 1),
        lambda log: log["entries"].insert(1, "00" * 32),
    ):
        case = Case("redacted")
        raw = case.evidence(
            of_evidence(lambda evidence, change=change: change(evidence["host_log"]))
        )
        assert refusal(case.verify(raw)) == "HostLogError"
    case = Case("redacted")
    longer = case.evidence(
        of_evidence(lambda evidence: evidence["host_log"]["entries"].append("11" * 32))
    )
    assert case.verify(longer).verdict == Verdict.TRUSTED  # the log may lead the quote


@pytest.mark.parametrize("violation", [False, True])
@pytest.mark.parametrize("host", ["redacted", "full"])
def test_what_came_after_the_quote_decides_nothing(host: str, violation: bool) -> None:
    """The log is read after the quote: what is beyond the PCR is of nobody that was asked about."""
    case = full(Case(host))
    line = host_line(b"/root/later", bytes(32) if violation else sha(b"later"))
    shown = {"template": "ima-ng", "data": line.hex(), "violation": violation}
    hashed = "ff" * 32 if violation else sha(line).hex()
    added = shown if host == "full" else hashed
    raw = case.evidence(of_evidence(lambda evidence: evidence["host_log"]["entries"].append(added)))
    result = case.verify(raw)
    assert result.verdict == Verdict.TRUSTED, result.findings
    (log,) = [check for check in result.checks if check.step == "host-log"]
    assert log.detail.startswith("3 entries")


def test_a_service_in_a_line_beyond_the_pcr_is_not_proved() -> None:
    case = Case("redacted")
    line, _ = case.forger.log.pop(1)
    raw = case.evidence(
        of_evidence(lambda evidence: evidence["host_log"]["entries"].append(sha(line).hex()))
    )
    assert refusal(case.verify(raw)) == "DependencyLineError"


@pytest.mark.parametrize(
    ("at", "change"),
    [(0, {"registration": 7}), (0, {"id": "dependencies:7"}), (None, {})],
    ids=["another number", "another id", "registered twice"],
)
def test_services_are_registered_once_and_as_they_are_named(
    at: int | None, change: dict[str, Any]
) -> None:
    """Bound as they are."""
    case = Case()
    services = case.forger.services
    assert services is not None
    content = services.records[0]["content"] | change
    if at is None:
        services.add(content)
    else:
        digest = {"hashAlg": "sha256", "digest": sha(canonical(content)).hex()}
        services.records[at] |= {"content": content, "digests": [digest]}
    assert refusal(case.verify(case.evidence())) == "DependenciesError"


def test_a_pcr_of_zeros_proves_no_log() -> None:
    case = Case("redacted", services=False)
    zero = of_quote(lambda fields: fields["values"].update({10: bytes(32)}))
    assert refusal(case.verify(case.evidence(zero))) == "HostLogError"
    raw = json.loads(case.evidence(zero))
    raw["host_log"]["entries"] = []
    assert refusal(case.verify(json.dumps(raw).encode())) == "UnreadableError"


@pytest.mark.parametrize(
    ("host", "policy", "change"),
    [
        (
            "redacted",
            "[host]\nallow_violations = true",
            LOGS["violations whose paths are not shown"][1],
        ),
        ("full", "[host]\nallow_violations = true", LOGS["a violation of a service"][1]),
        (
            "redacted",
            "[host]\nallow_not_comparable_boot_aggregate = true",
            LOGS["of another hash"][1],
        ),
        ("full", "[[dependencies.files]]\npath = '/root/*'", LOGS["a rootkit"][1]),
        (
            "full",
            f"[[dependencies.files]]\npath = '/root/*'\nsha256 = ['{sha(b'rootkit').hex()}']",
            LOGS["a rootkit"][1],
        ),
        ("full", "", lambda case: case.forger.host_runs(b"/var/log/x", b"", violation=True)),
    ],
)
def test_what_a_policy_can_allow_of_the_log(
    host: str, policy: str, change: Callable[[Case], object]
) -> None:
    case = full(Case(host))
    change(case)
    case.policy = policy
    assert case.verify(case.evidence()).verdict == Verdict.TRUSTED


def test_a_full_log_without_a_reference_is_not_taken_for_good() -> None:
    case = Case("full")
    assert failed(case.verify(case.evidence())) == {"host.reference"}


def test_a_log_is_looked_at_without_reference_values_too() -> None:
    case = Case("redacted")
    case.appraisal = None
    assert case.verify(case.evidence()).verdict == Verdict.UNKNOWN
    case.forger.begin_log(bytes(32))
    case.forger.host_runs(b"/usr/sbin/runc", b"runc")
    case.forger.host_runs(b"/usr/bin/a_b", b"shim")
    assert failed(case.verify(case.evidence())) == {"boot_aggregate.no_tpm"}


def test_without_a_log_it_is_said_whose_word_it_is() -> None:
    case = Case()
    result = case.verify(case.evidence())
    assert any("on the agent's word" in line for line in result.not_proved)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("none", ["dependencies: on the agent's word, no host log was asked for"]),
        ("redacted", ["the host's other files: their names were not asked for"]),
        ("full", []),
    ],
)
def test_what_was_not_proved_is_said_and_no_more(host: str, said: list[str]) -> None:
    case = full(Case(host))
    assert list(case.verify(case.evidence()).not_proved) == [
        "that the container has not gone back: nothing is remembered of it",
        *said,
        "firmware, loader and kernel: neither their log nor PCR values were asked for",
    ]


def test_pcr_values_in_the_policy_prove_the_firmware_too() -> None:
    case = Case()
    value = case.forger.pcrs[0].hex()
    case.policy = f'[pcr_values]\n0 = ["{value}"]'
    result = case.verify(case.evidence())
    assert result.verdict == Verdict.TRUSTED
    assert not any("firmware" in line for line in result.not_proved)


# -- certificates ---------------------------------------------------------------------------------

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def certified(forger: Forger, *, ca: bool = False, label: str = "node 3") -> tuple[bytes, bytes]:
    """An authority's certificate (PEM), and one of the forger's key (DER)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    common = (
        x509.CertificateBuilder()
        .issuer_name(name)
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=9))
    )
    root = (
        common.subject_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    usage = [x509.ObjectIdentifier("2.23.133.8.3")]
    leaf = (
        common.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label)]))
        .public_key(forger.key.public_key())
        .add_extension(x509.SubjectKeyIdentifier(forger.name), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    assert ExtendedKeyUsageOID.CLIENT_AUTH not in usage
    encoding = serialization.Encoding
    return root.public_bytes(encoding.PEM), leaf.public_bytes(encoding.DER)


def test_a_certified_key_is_named_and_can_be_pinned() -> None:
    """Finding 8. Kind: another host of the same authority is as good; nobody says which it was."""
    case = Case()
    root, case.forger.certificate = certified(case.forger)
    result = case.verify(case.evidence(), ak=parse_authority(root, NOW))
    assert result.verdict == Verdict.TRUSTED
    assert result.host is not None
    assert (result.host.label, result.host.ak_name) == ("node 3", case.forger.name)
    assert any("which host" in line for line in result.not_proved)
    pinned = parse_authority(root, NOW, case.forger.name)
    result = case.verify(case.evidence(), ak=pinned)
    assert result.verdict == Verdict.TRUSTED
    assert not any("which host" in line for line in result.not_proved)
    other = parse_authority(root, NOW, Forger().name)
    assert refusal(case.verify(case.evidence(), ak=other)) == "AkNotEnrolledError"


def test_an_authoritys_certificate_is_no_keys() -> None:
    case = Case()
    root, case.forger.certificate = certified(case.forger, ca=True)
    assert refusal(case.verify(case.evidence(), ak=parse_authority(root, NOW))) == (
        "AkNotEnrolledError"
    )


# -- what nobody thought of -----------------------------------------------------------------------


def test_any_exception_ends_as_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding 7. Kind: a traceback in place of a verdict, or the verdict of last time."""
    case = Case()
    case.memory = StateDirectory(tmp_path)
    assert case.verify(case.evidence()).verdict == Verdict.TRUSTED
    before = sorted(path.read_bytes() for path in tmp_path.glob("*.json"))

    def broken(*compared: object) -> list[Any]:
        raise KeyError("\x1b[2J")

    case.appraisal = Appraisal(broken, References(), b"r" * 32)
    result = case.verify(case.evidence())
    assert refusal(result) == "UnexpectedError"
    assert result.verdict == Verdict.UNKNOWN
    for name in ("parse", "check_signed", "check_quoted", "check_bound", "replay", "explain"):
        with monkeypatch.context() as patched:
            patched.setattr(f"cima_runc.verifier.verify.{name}", broken)
            assert refusal(case.verify(case.evidence())) == "UnexpectedError"
    assert sorted(path.read_bytes() for path in tmp_path.glob("*.json")) == before


def test_state_that_cannot_be_read_is_a_refusal_that_is_not_untrusted(tmp_path: Path) -> None:
    """Finding 10. Kind: what could not be checked is told as what was found wrong."""
    case = Case()
    case.memory = StateDirectory(tmp_path)
    assert case.verify(case.evidence()).verdict == Verdict.TRUSTED
    next(tmp_path.glob("*.json")).write_bytes(b"{}")
    result = case.verify(case.evidence())
    assert refusal(result) == "StateVersionError"
    assert result.verdict.exit_code == 2
