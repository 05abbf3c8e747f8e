"""The attester and the verifier against each other, with a real TPM interface (swtpm)."""

import base64
import copy
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated_host import SimulatedHost, simulated_host, tampered
from software_key import signed, software_key

from cima_runc.cpcr.binding import Bind
from cima_runc.evidence.owner import generate, parse_private, public_text
from cima_runc.evidence.seal import key_id, seal, unseal
from cima_runc.tpm.structures import parse_public
from cima_runc.verifier.appraisal import References, compare
from cima_runc.verifier.enrolled import enrolled_ak_file, parse_enrolled_ak
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.reference.file import ImageReference, ReferenceConfig
from cima_runc.verifier.result import Finding
from cima_runc.verifier.verify import Appraisal, Expectation, Outcome, verify

PEM, PUBLIC = generate()
OWNER = parse_private(PEM)
GOOD = Appraisal(lambda records, reference, policy, dependencies: [], None, b"r" * 32)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedHost]:
    with simulated_host(tmp_path) as made:
        yield made


def nonce() -> bytes:
    return os.urandom(32)


def check(host: SimulatedHost, raw: bytes, asked: bytes, /, **more: Any) -> Outcome:
    known = {name: more.pop(name) for name in ("remembered", "appraisal") if name in more}
    wanted = Expectation(**{"nonce": asked, "ak": host.enrolled(), "owner_key": OWNER, **more})
    return verify(raw, wanted, **{"appraisal": GOOD, **known})


def refusal(outcome: Outcome) -> str:
    assert outcome.result.verdict != Verdict.TRUSTED
    assert outcome.remember is None
    assert outcome.result.refusal is not None
    assert outcome.result.refusal.what
    return outcome.result.refusal.error


def container(host: SimulatedHost, name: str = "tenant-a", **more: Any) -> int:
    number = host.start(name, owner=public_text(PUBLIC), **more)
    for program in (b"/bin/sh", b"/usr/bin/id", b"/opt/a b\n"):
        host.run(number, program, name.encode() + program)
    return number


@pytest.mark.parametrize("disclosure", ["none", "redacted", "full"])
def test_honest_container_is_trusted(host: SimulatedHost, disclosure: str) -> None:
    host.write_boot_log()
    container(host)
    host.host_runs(b"/usr/bin/runc", b"r" * 32)
    asked = nonce()
    raw = host.evidence("tenant-a", asked, host=disclosure, boot_log=True)
    outcome = check(host, raw, asked, container="tenant-a")
    assert outcome.result.refusal is None
    assert outcome.result.verdict == Verdict.TRUSTED
    assert outcome.result.facts is not None
    assert outcome.result.facts.count == 5
    done = {item.step: item.done for item in outcome.result.checks}
    assert done["boot-log"]
    assert done["host-log"] == (disclosure != "none")
    assert not done["dependencies"]


def test_nothing_appraised_is_not_trusted(host: SimulatedHost) -> None:
    container(host)
    asked = nonce()
    outcome = check(host, host.evidence("tenant-a", asked), asked, appraisal=None)
    assert outcome.result.verdict == Verdict.UNKNOWN
    assert not outcome.result.appraised
    assert any("nothing was appraised" in finding.what for finding in outcome.result.findings)
    assert outcome.result.facts is not None


def test_findings_of_appraisal_decide(host: SimulatedHost) -> None:
    container(host)
    asked = nonce()
    bad = Appraisal(
        lambda records, reference, policy, dependencies: [
            Finding(severity="fail", what=f"{reference} of {len(records)}")
        ],
        "drift",
        b"r" * 32,
    )
    outcome = check(host, host.evidence("tenant-a", asked), asked, appraisal=bad)
    assert outcome.result.verdict == Verdict.UNTRUSTED
    assert outcome.result.refusal is None
    assert Finding(severity="fail", what="drift of 5") in outcome.result.findings


def test_reference_values_are_compared_with_what_is_proved(host: SimulatedHost) -> None:
    container(host)
    asked = nonce()
    image = ImageReference(
        platform="linux",
        image_id="sha256:" + "0" * 64,
        config=ReferenceConfig(),
        layers=(),
        files={},
    )
    wanted = Appraisal(compare, References(image), b"r" * 32)
    outcome = check(host, host.evidence("tenant-a", asked), asked, appraisal=wanted)
    assert outcome.result.verdict == Verdict.UNTRUSTED
    drift = [each for each in outcome.result.findings if each.rule == "file.added"]
    assert [each.path for each in drift] == ["/bin/sh", "/usr/bin/id", "/opt/a b\\x0a"]
    assert outcome.remember is not None
    assert outcome.remember.appraised_with is None


def test_lost_events_are_not_trusted(host: SimulatedHost) -> None:
    number = container(host)
    host.ledger.add(number, [host.core.lost(number, 3, "a flood", "now")])
    asked = nonce()
    raw = host.evidence("tenant-a", asked)
    assert check(host, raw, asked).result.verdict == Verdict.UNTRUSTED
    assert check(host, raw, asked, policy=Policy(allow_lost=True)).result.verdict == "TRUSTED"


def test_owners_part_is_for_the_owner(host: SimulatedHost) -> None:
    container(host)
    asked = nonce()
    raw = host.evidence("tenant-a", asked, anybody=True)
    assert b'"records"' not in raw
    assert refusal(check(host, raw, asked, owner_key=None)) == "OwnerKeyError"
    other, _ = generate()
    assert refusal(check(host, raw, asked, owner_key=parse_private(other))) == "OwnerKeyError"


def test_each_of_several_owners_can_read_it(host: SimulatedHost) -> None:
    other, public = generate()
    (host.root / "owners" / "both").write_text(f"{public_text(PUBLIC)}\n{public_text(public)}\n")
    host.start("shared", owner="both")
    asked = nonce()
    raw = host.evidence("shared", asked)
    for key in (OWNER, parse_private(other)):
        assert check(host, raw, asked, owner_key=key).result.verdict == Verdict.TRUSTED


def test_many_requests_share_a_quote(host: SimulatedHost) -> None:
    names = [f"c{number}" for number in range(7)]
    for name in names:
        container(host, name)
    asked = {name: nonce() for name in names}
    from cima_runc.evidence.models import Request

    waiting = {
        name: host.attester.ask(Request(container=name, nonce=asked[name]), anybody=True)
        for name in names
    }
    host.attester.serve()
    quotes = set()
    for name in names:
        raw = host.attester.assemble(waiting[name].result())
        quotes.add(json.loads(raw)["quote"]["attest"])
        assert check(host, raw, asked[name], container=name).result.verdict == Verdict.TRUSTED
    assert len(quotes) == 1


# -- refused, each with an error of its own -----------------------------------------------------


@pytest.fixture
def honest(host: SimulatedHost) -> tuple[bytes, bytes]:
    """Evidence in the clear, as root gets it of a container without an owner's key."""
    number = host.start("plain")
    for program in (b"/bin/sh", b"/usr/bin/id", b"/usr/bin/env"):
        host.run(number, program, program)
    host.host_runs(b"/usr/bin/runc", b"r" * 32)
    host.host_runs(b"/usr/bin/dockerd", b"d" * 32)
    asked = nonce()
    raw = host.evidence("plain", asked, host="redacted")
    assert check(host, raw, asked).result.verdict == Verdict.TRUSTED
    return raw, asked


Change = Callable[[list[dict[str, Any]]], object]


def flip_content(records: list[dict[str, Any]]) -> None:
    data = bytearray(base64.b64decode(records[3]["content"]["template_data"]))
    data[20] ^= 1
    records[3]["content"]["template_data"] = base64.b64encode(data).decode()


def flip_digest(records: list[dict[str, Any]]) -> None:
    digest = records[3]["digests"][0]["digest"]
    records[3]["digests"][0]["digest"] = ("0" if digest[0] != "0" else "1") + digest[1:]


def renumbered_after_drop(records: list[dict[str, Any]]) -> None:
    del records[2]
    for number, record in enumerate(records):
        record["recnum"] = number


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (flip_content, "RecordDigestError"),
        (flip_digest, "RegisterError"),
        (lambda records: records.pop(2), "RecordMissingError"),
        (renumbered_after_drop, "RecordCountError"),
        (lambda records: records.insert(2, records.pop(3)), "RecordOrderError"),
        (lambda records: records.insert(2, copy.deepcopy(records[1])), "RecordRepeatedError"),
        (lambda records: records.pop(), "RecordCountError"),
        (lambda records: records[3].update(cpcr="other"), "ForeignRecordError"),
        (lambda records: records[3].pop("meta"), "RecordFormatError"),
        (lambda records: records[3].update(content_type="x"), "RecordFormatError"),
    ],
)
def test_changed_records(
    host: SimulatedHost, honest: tuple[bytes, bytes], change: Change, error: str
) -> None:
    raw, asked = honest
    evidence = json.loads(raw)
    change(evidence["owner"]["records"])
    assert refusal(check(host, json.dumps(evidence).encode(), asked)) == error


def test_records_of_another_container(host: SimulatedHost, honest: tuple[bytes, bytes]) -> None:
    raw, asked = honest
    host.start("other")
    theirs = json.loads(host.evidence("other", nonce()))["owner"]
    assert refusal(check(host, tampered(raw, owner=theirs), asked)) == "ForeignRecordError"


def test_old_nonce_is_stale(host: SimulatedHost, honest: tuple[bytes, bytes]) -> None:
    raw, _ = honest
    again = nonce()
    outcome = check(host, raw, again)
    assert refusal(outcome) == "NonceError"
    assert outcome.result.verdict == Verdict.STALE
    relabelled = check(host, tampered(raw, nonce=again.hex()), again)
    assert refusal(relabelled) == "QualifyingDataError"


def test_another_containers_id(host: SimulatedHost, honest: tuple[bytes, bytes]) -> None:
    raw, asked = honest
    assert refusal(check(host, raw, asked, container="other")) == "ContainerError"
    relabelled = tampered(raw, container="other")
    assert refusal(check(host, relabelled, asked)) == "QualifyingDataError"


def test_wrong_ak(host: SimulatedHost, honest: tuple[bytes, bytes], tmp_path: Path) -> None:
    raw, asked = honest
    (tmp_path / "second").mkdir()
    with simulated_host(tmp_path / "second") as second:
        assert refusal(check(host, raw, asked, ak=second.enrolled())) == "AkNotEnrolledError"
        second.start("plain")
        theirs = second.evidence("plain", asked, host="redacted")
    assert refusal(check(host, theirs, asked)) == "AkNotEnrolledError"
    public = json.loads(theirs)["ak"]["public"]
    assert refusal(check(host, tampered(raw, ak__public=public), asked)) == "AkNotEnrolledError"
    signature = json.loads(theirs)["quote"]["signature"]
    changed = tampered(raw, quote__signature=signature)
    assert refusal(check(host, changed, asked)) == "SignatureError"


def test_unrestricted_key_that_signed_a_forged_quote(
    host: SimulatedHost, honest: tuple[bytes, bytes]
) -> None:
    raw, asked = honest
    attest = base64.b64decode(json.loads(raw)["quote"]["attest"])
    private, area, enrolled = software_key(0x00040472)
    forged = tampered(
        raw,
        ak__public=base64.b64encode(area).decode(),
        quote__signature=signed(private, attest),
    )
    outcome = check(host, forged, asked, ak=enrolled)
    assert refusal(outcome) == "AkAttributesError"
    assert outcome.result.refusal is not None
    assert "restricted" in outcome.result.refusal.found
    # Its enrolment fixed the name, so claiming other attributes does not help.
    restricted = area[:4] + (0x00050472).to_bytes(4, "big") + area[8:]
    named = parse_enrolled_ak(enrolled_ak_file(parse_public(area)))
    claimed = tampered(forged, ak__public=base64.b64encode(restricted).decode())
    assert refusal(check(host, claimed, asked, ak=named)) == "AkNotEnrolledError"


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, b"\xff\x54\x43\x48", "QuoteMagicError"),
        (4, b"\x80\x17", "QuoteTypeError"),
        (-39, b"\x04", "QuoteFormatError"),
    ],
)
def test_forged_structure(
    host: SimulatedHost, honest: tuple[bytes, bytes], at: int, value: bytes, error: str
) -> None:
    raw, asked = honest
    attest = bytearray(base64.b64decode(json.loads(raw)["quote"]["attest"]))
    at %= len(attest)
    attest[at : at + len(value)] = value
    private, area, enrolled = software_key(0x00050472)
    forged = tampered(
        raw,
        ak__public=base64.b64encode(area).decode(),
        quote__attest=base64.b64encode(attest).decode(),
        quote__signature=signed(private, bytes(attest)),
    )
    assert refusal(check(host, forged, asked, ak=enrolled)) == error


def test_key_of_another_hierarchy(host: SimulatedHost, honest: tuple[bytes, bytes]) -> None:
    raw, asked = honest
    attest = base64.b64decode(json.loads(raw)["quote"]["attest"])
    private, area, enrolled = software_key(0x00050472)
    forged = tampered(
        raw,
        ak__public=base64.b64encode(area).decode(),
        quote__signature=signed(private, attest),
    )
    assert refusal(check(host, forged, asked, ak=enrolled)) == "AkHierarchyError"


def test_selection_relabelled(host: SimulatedHost, honest: tuple[bytes, bytes]) -> None:
    raw, asked = honest
    pcrs = json.loads(raw)["quote"]["pcrs"]
    pcrs["16"] = pcrs.pop("12")
    assert refusal(check(host, tampered(raw, quote__pcrs=pcrs), asked)) == "PcrSelectionError"
    relabelled = tampered(raw, host_log__disclosure="none", host_log__entries=[])
    assert refusal(check(host, relabelled, asked)) == "PcrSelectionError"
    for field, pcr in (("binding__pcr", 14), ("host_log__pcr", 9)):
        assert refusal(check(host, tampered(raw, **{field: pcr}), asked)) == "PcrSelectionError"
    wanted = Policy(boot_pcrs=(0, 1, 2, 3, 4, 5, 6, 7))
    assert refusal(check(host, raw, asked, policy=wanted)) == "PcrSelectionError"


def test_less_is_shown_than_was_asked_for(host: SimulatedHost) -> None:
    container(host)
    asked = nonce()
    raw = host.evidence("tenant-a", asked, host="redacted")
    assert check(host, raw, asked, host="redacted").result.verdict == Verdict.TRUSTED
    assert check(host, raw, asked, host="none").result.verdict == Verdict.TRUSTED
    assert refusal(check(host, raw, asked, host="full")) == "DisclosureError"
    assert refusal(check(host, raw, asked, boot_log=True)) == "DisclosureError"
    less = host.evidence("tenant-a", asked)
    assert refusal(check(host, less, asked, host="redacted")) == "DisclosureError"
    # It cannot be had by relabelling either.
    entries = json.loads(raw)["host_log"]["entries"]
    more = tampered(less, host_log__disclosure="redacted", host_log__entries=entries)
    assert refusal(check(host, more, asked, host="redacted")) == "PcrSelectionError"


def test_ciphertext_of_another_container(host: SimulatedHost) -> None:
    container(host)
    container(host, "tenant-b")
    asked = nonce()
    raw, other = (host.evidence(name, asked) for name in ("tenant-a", "tenant-b"))
    swapped = tampered(raw, sealed=json.loads(other)["sealed"])
    assert refusal(check(host, swapped, asked)) == "OwnerKeyError"
    earlier = json.loads(host.evidence("tenant-a", nonce()))["sealed"]
    assert refusal(check(host, tampered(raw, sealed=earlier), asked)) == "OwnerKeyError"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"secret"', b'{"since":0,"secret"'),
        (b'{"secret"', b'{"since" :0,"secret"'),
        (b'{"recnum":0', b'{"recnum":0,"recnum":0'),
        (b'"uid":0', b'"uid":NaN'),
        (b'"uid":0', b'"uid":' + b"[" * 100 + b"]" * 100),
        (b'"uid":0', b'"uid":' + b"[" * 100_000 + b"]" * 100_000),
        (b'"uid":0', b'"uid":"\xff"'),
        (b'"since":0', b'"since":0.0'),
        (b'"since":0', b'"since":18446744073709551616'),
        (b'"since":0', b'"since":0,"more":1'),
    ],
)
def test_odd_json_under_the_seal(host: SimulatedHost, old: bytes, new: bytes) -> None:
    container(host)
    asked = nonce()
    raw = host.evidence("tenant-a", asked)
    part = unseal(base64.b64decode(json.loads(raw)["sealed"][0]["data"]), OWNER, "tenant-a", asked)
    assert old in part

    def sealed(plain: bytes) -> bytes:
        data = base64.b64encode(seal(plain, PUBLIC, "tenant-a", asked)).decode()
        return tampered(raw, sealed=[{"key": key_id(PUBLIC).hex(), "data": data}])

    assert check(host, sealed(part), asked).result.verdict == Verdict.TRUSTED
    odd = part.replace(old, new, 1)
    assert refusal(check(host, sealed(odd), asked)) == "RecordFormatError"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("binding__seq", 2**64),
        ("binding__seq", -1),
        ("binding__count", 1.0),
        ("binding__count", True),
        ("binding__slot", 2**32),
        ("aggregation__size", 0),
        ("aggregation__index", 10**400),
        ("host_log__pcr", 24),
        ("quote__pcrs", {str(pcr): "00" * 32 for pcr in range(25)}),
        ("binding__path", ["00" * 32] * 33),
        ("binding__path", []),
        ("version", 2),
        ("version", "1"),
    ],
)
def test_beyond_all_ranges(
    host: SimulatedHost, honest: tuple[bytes, bytes], field: str, value: object
) -> None:
    raw, asked = honest
    error = "VersionError" if field == "version" else "UnreadableError"
    assert refusal(check(host, tampered(raw, **{field: value}), asked)) == error


@pytest.mark.parametrize("value", [-1, 2**70, 1.0, True, "0", None])
def test_record_numbers_beyond_all_ranges(
    host: SimulatedHost, honest: tuple[bytes, bytes], value: object
) -> None:
    raw, asked = honest
    evidence = json.loads(raw)
    evidence["owner"]["records"][0]["recnum"] = value
    refused = refusal(check(host, json.dumps(evidence).encode(), asked))
    assert refused == ("RecordMissingError" if value == 2**70 else "RecordFormatError")


def test_doubled_key(host: SimulatedHost, honest: tuple[bytes, bytes]) -> None:
    raw, asked = honest
    doubled = raw.replace(b'{"type"', b'{"nonce":"%s","type"' % (b"ab" * 32), 1)
    assert refusal(check(host, doubled, asked)) == "UnreadableError"


def test_value_swapped(host: SimulatedHost, honest: tuple[bytes, bytes]) -> None:
    raw, asked = honest
    pcrs = json.loads(raw)["quote"]["pcrs"]
    pcrs["12"], pcrs["10"] = pcrs["10"], pcrs["12"]
    assert refusal(check(host, tampered(raw, quote__pcrs=pcrs), asked)) == "PcrValuesError"


def test_path_of_another_leaf(host: SimulatedHost, honest: tuple[bytes, bytes]) -> None:
    raw, asked = honest
    host.start("other")
    binding = json.loads(host.evidence("other", nonce()))["binding"]
    changed = tampered(raw, binding__path=binding["path"], binding__slot=binding["slot"])
    assert refusal(check(host, changed, asked)) == "TreePathError"
    whole = tampered(raw, binding=binding)
    assert refusal(check(host, whole, asked)) == "QuoteBeforeBindingError"
    slot = json.loads(raw)["binding"]["slot"] + 1024
    assert refusal(check(host, tampered(raw, binding__slot=slot), asked)) == "TreePathError"


@pytest.mark.parametrize("by", [1, -1])
def test_count_off_by_one(host: SimulatedHost, honest: tuple[bytes, bytes], by: int) -> None:
    raw, asked = honest
    count = json.loads(raw)["binding"]["count"] + by
    assert refusal(check(host, tampered(raw, binding__count=count), asked)) == "RecordCountError"


def test_wrong_secret(host: SimulatedHost, honest: tuple[bytes, bytes]) -> None:
    raw, asked = honest
    assert refusal(check(host, tampered(raw, owner__secret="5e" * 32), asked)) == "LeafError"


def test_history_and_seq_changed(host: SimulatedHost, honest: tuple[bytes, bytes]) -> None:
    raw, asked = honest
    changed = tampered(raw, binding__history="00" * 32)
    if json.loads(raw)["binding"]["history"] == "00" * 32:
        changed = tampered(raw, binding__history="01" * 32)
    assert refusal(check(host, changed, asked)) == "BindingError"
    seq = json.loads(raw)["binding"]["seq"] + 1
    assert refusal(check(host, tampered(raw, binding__seq=seq), asked)) == "BindingError"


def test_quote_older_than_the_binding(host: SimulatedHost) -> None:
    number = container(host)
    asked = nonce()
    before = host.evidence("tenant-a", asked)
    host.run(number, b"/usr/bin/later", b"later")
    after = json.loads(host.evidence("tenant-a", nonce()))
    mixed = tampered(before, binding=after["binding"], sealed=after["sealed"])
    outcome = check(host, mixed, asked)
    assert refusal(outcome) == "QuoteBeforeBindingError"
    assert outcome.result.verdict == Verdict.STALE


def test_reset_count_gone_back(host: SimulatedHost) -> None:
    container(host)
    asked = nonce()
    raw = host.evidence("tenant-a", asked)
    remembered = check(host, raw, asked).remember
    assert remembered is not None
    later = remembered.model_copy(update={"reset_count": remembered.reset_count + 1})
    assert refusal(check(host, raw, asked, remembered=later)) == "ResetCountError"
    ahead = remembered.model_copy(update={"clock": remembered.clock + 10**6})
    assert refusal(check(host, raw, asked, remembered=ahead)) == "ClockError"
    other = remembered.model_copy(update={"ak_name": b"\0\x0b" + bytes(32)})
    assert refusal(check(host, raw, asked, remembered=other)) == "AkNotEnrolledError"


def test_host_log_changed(host: SimulatedHost, honest: tuple[bytes, bytes]) -> None:
    raw, asked = honest
    entries = json.loads(raw)["host_log"]["entries"]
    assert len(entries) == 3
    for at in range(3):
        removed = tampered(raw, host_log__entries=entries[:at] + entries[at + 1 :])
        assert refusal(check(host, removed, asked)) == "HostLogError"
    # What leads the quote is not proved, and does no harm.
    leading = tampered(raw, host_log__entries=[*entries, "ab" * 32])
    assert check(host, leading, asked).result.verdict == Verdict.TRUSTED


def test_boot_log_changed(host: SimulatedHost) -> None:
    host.write_boot_log()
    container(host)
    asked = nonce()
    raw = host.evidence("tenant-a", asked, boot_log=True)
    log = bytearray(base64.b64decode(json.loads(raw)["boot_log"]))
    log[-10] ^= 1
    changed = tampered(raw, boot_log=base64.b64encode(log).decode())
    assert refusal(check(host, changed, asked)) == "BootLogError"


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (b" " * (256 * 2**20 + 1), "TooLargeError", "more than"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "TooDeepError", "nested"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "TooDeepError", "nested"),
        (b"\x7fELF", "UnreadableError", "not JSON"),
        (b'{"type":"cima-evidence","version":2}', "VersionError", "version 2"),
    ],
)
def test_unreadable(host: SimulatedHost, raw: bytes, error: str, words: str) -> None:
    outcome = check(host, raw, nonce())
    assert refusal(outcome) == error
    assert outcome.result.verdict == Verdict.UNKNOWN
    assert outcome.result.refusal is not None
    assert words in outcome.result.refusal.what


def test_dependencies(host: SimulatedHost) -> None:
    relied_on = host.start("dependencies:7", kind="dependencies")
    host.run(relied_on, b"/usr/bin/containerd", b"containerd")
    others = host.start("dependencies:8", kind="dependencies")
    number = host.start("plain", dependencies=relied_on)
    asked = nonce()
    raw = host.evidence("plain", asked)
    outcome = check(host, raw, asked)
    assert outcome.result.verdict == Verdict.TRUSTED
    assert {item.step: item.done for item in outcome.result.checks}["dependencies"]
    shown = json.loads(raw)
    leaf, part = shown["binding"]["dependencies"], shown["owner"]["dependencies"]
    for field, value in (
        ("binding__dependencies__path", leaf["path"][::-1]),
        ("binding__dependencies__count", 2),
        ("owner__dependencies__records", part["records"][:-1]),
        ("owner__dependencies__records", []),
        ("owner__dependencies__secret", "5e" * 32),
        ("owner__dependencies__since", 1),
    ):
        changed = tampered(raw, **{field: value})
        assert refusal(check(host, changed, asked)) == "DependenciesError"
    # A partition that is bound, but that this container does not rely on.
    container = host.core.get(number)
    assert container is not None
    container.note = container.note.model_copy(update={"dependencies": others})
    assert refusal(check(host, host.evidence("plain", asked), asked)) == "DependenciesError"


# -- what is remembered -------------------------------------------------------------------------


def remember(host: SimulatedHost, name: str = "tenant-a", **more: Any) -> Any:
    asked = nonce()
    outcome = check(host, host.evidence(name, asked), asked, **more)
    assert outcome.result.verdict == Verdict.TRUSTED, outcome.result.refusal
    return outcome.remember


def test_incremental(host: SimulatedHost) -> None:
    number = container(host)
    first = remember(host)
    host.run(number, b"/usr/bin/more", b"more")
    asked = nonce()
    raw = host.evidence("tenant-a", asked, since=first.count)
    outcome = check(host, raw, asked, remembered=first)
    assert outcome.result.verdict == Verdict.TRUSTED
    assert outcome.result.facts is not None
    assert (outcome.result.facts.since, outcome.result.facts.count) == (5, 6)
    other = first.model_copy(update={"dependencies": 7})
    assert refusal(check(host, raw, asked, remembered=other)) == "DependenciesError"
    # Nothing is remembered, or something else, or it was appraised by other reference values.
    assert refusal(check(host, raw, asked)) == "NotRememberedError"
    other = first.model_copy(update={"cpcr": b"x" * 32})
    assert refusal(check(host, raw, asked, remembered=other)) == "RegisterError"
    unknown = check(host, raw, asked, remembered=first.model_copy(update={"appraised_with": None}))
    assert unknown.result.verdict == Verdict.UNKNOWN
    assert unknown.remember is not None
    assert unknown.remember.appraised_with is None
    # And the whole of it continues as well.
    again = remember(host, remembered=outcome.remember)
    assert again.count == 6


def test_reboot(host: SimulatedHost) -> None:
    container(host)
    first = remember(host)
    asked = nonce()
    earlier = first.model_copy(update={"reset_count": first.reset_count - 1})
    whole = check(host, host.evidence("tenant-a", asked), asked, remembered=earlier)
    assert whole.result.verdict == Verdict.TRUSTED
    assert any("booted" in finding.what for finding in whole.result.findings)
    part = host.evidence("tenant-a", asked, since=first.count)
    outcome = check(host, part, asked, remembered=earlier)
    assert refusal(outcome) == "RebootedError"
    assert outcome.result.verdict == Verdict.STALE


def test_rollback(host: SimulatedHost) -> None:
    number = container(host)
    first = remember(host)
    asked = nonce()
    raw = host.evidence("tenant-a", asked)
    for update in ({"seq": first.seq + 1}, {"count": first.count + 1}, {"cpcr": b"x" * 32}):
        later = first.model_copy(update=update)
        assert refusal(check(host, raw, asked, remembered=later)) == "RollbackError"
    # The same id, registered again: newer is fine, older is not.
    host.end(number)
    container(host)
    second = remember(host, remembered=first)
    assert second.registration > first.registration
    assert refusal(check(host, raw, asked, remembered=second)) in ("ClockError", "RollbackError")


# -- binding ------------------------------------------------------------------------------------


def test_foreign_extend_is_shown_and_mended(host: SimulatedHost) -> None:
    container(host)
    asked = nonce()
    host.evidence("tenant-a", asked)
    host.tpm.extend(12, b"f" * 32)
    raw = host.evidence("tenant-a", asked)
    foreign = json.loads(raw)["binding"]["foreign"]
    assert foreign["count"] == 1
    assert foreign["last"][0]["expected"] != foreign["last"][0]["found"]
    outcome = check(host, raw, asked)
    assert outcome.result.verdict == Verdict.TRUSTED
    assert any("somebody else 1 times" in finding.what for finding in outcome.result.findings)
    strict = check(host, raw, asked, policy=Policy(allow_foreign_extends=False))
    assert strict.result.verdict == Verdict.UNTRUSTED
    # Two between two binds, with changes of our own.
    host.run(1, b"/usr/bin/more", b"more")
    host.tpm.extend(12, b"g" * 32)
    host.tpm.extend(12, b"h" * 32)
    raw = host.evidence("tenant-a", asked)
    assert json.loads(raw)["binding"]["foreign"]["count"] == 2
    assert check(host, raw, asked).result.verdict == Verdict.TRUSTED


def test_pcr_12_is_what_the_page_says(host: SimulatedHost) -> None:
    container(host)
    binding = json.loads(host.evidence("tenant-a", nonce()))["binding"]
    bind = Bind(binding["seq"], bytes.fromhex(binding["root"]), bytes.fromhex(binding["history"]))
    assert host.tpm.read_pcrs([12])[12] == bind.expected
    digest = hashlib.sha256(
        b"cima-bind-v1\0" + struct.pack(">Q", binding["seq"]) + bind.root
    ).digest()
    assert hashlib.sha256(bind.history + digest).digest() == bind.expected


def test_reading_never_extends(host: SimulatedHost) -> None:
    container(host)
    host.evidence("tenant-a", nonce())
    before = host.tpm.read_pcrs([12])
    for _ in range(3):
        host.evidence("tenant-a", nonce())
    assert host.tpm.read_pcrs([12]) == before


def test_log_that_leads_the_quote(host: SimulatedHost) -> None:
    container(host)
    host.host_runs(b"/usr/bin/one", b"1" * 32)
    host.host_runs(b"/usr/bin/two", b"2" * 32, extend=False)
    asked = nonce()
    raw = host.evidence("tenant-a", asked, host="redacted")
    assert len(json.loads(raw)["host_log"]["entries"]) == 2
    assert check(host, raw, asked).result.verdict == Verdict.TRUSTED


class Interrupted:
    """A TPM at which others are at work, too."""

    def __init__(self, tpm: Any) -> None:
        self.tpm = tpm
        self.before_reading: Callable[[], None] = lambda: None
        self.before_quoting: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tpm, name)

    @property
    def esapi(self) -> Any:
        self.before_quoting()
        return self.tpm.esapi

    def read_pcrs(self, pcrs: list[int]) -> dict[int, bytes]:
        if 10 in pcrs:
            self.before_reading()
        read: dict[int, bytes] = self.tpm.read_pcrs(pcrs)
        return read


def test_host_that_is_busy_while_it_is_quoted(host: SimulatedHost) -> None:
    busy = Interrupted(host.tpm)
    host.attester._tpm = busy  # type: ignore[assignment]
    container(host)
    count = iter(range(1000))
    busy.before_reading = lambda: host.host_runs(b"/usr/bin/busy-%d" % next(count), os.urandom(32))
    asked = nonce()
    raw = host.evidence("tenant-a", asked, host="redacted")
    # What was read is newer than the quote: the kernel's log says what was quoted.
    assert next(count) == 1
    assert check(host, raw, asked).result.verdict == Verdict.TRUSTED


def test_foreign_extend_between_bind_and_quote(host: SimulatedHost) -> None:
    container(host)
    host.attester.attestation_key()
    interrupted = Interrupted(host.tpm)
    host.attester._tpm = interrupted  # type: ignore[assignment]
    left = [b"1" * 32, b"2" * 32]
    interrupted.before_quoting = lambda: host.tpm.extend(12, left.pop()) if left else None
    asked = nonce()
    raw = host.evidence("tenant-a", asked)
    assert not left
    assert json.loads(raw)["binding"]["foreign"]["count"] == 2
    assert check(host, raw, asked).result.verdict == Verdict.TRUSTED


def test_pcrs_that_never_stand_still(host: SimulatedHost) -> None:
    from cima_runc.agent.attester import AttestError

    container(host)
    host.attester.attestation_key()
    interrupted = Interrupted(host.tpm)
    host.attester._tpm = interrupted  # type: ignore[assignment]
    interrupted.before_quoting = lambda: host.tpm.extend(12, b"x" * 32)
    with pytest.raises(AttestError, match="stand still"):
        host.evidence("tenant-a", nonce())
    interrupted.before_quoting = lambda: None
    asked = nonce()
    assert check(host, host.evidence("tenant-a", asked), asked).result.verdict == "TRUSTED"


# -- who may ask --------------------------------------------------------------------------------


def test_anybody_gets_sealed_evidence_only(host: SimulatedHost) -> None:
    from cima_runc.agent.attester import NotForYouError

    container(host)
    host.start("keyless")
    told = set()
    for name, wanted in (
        ("keyless", {}),
        ("missing", {}),
        ("tenant", {}),
        ("tenant-a", {"host": "full"}),
    ):
        with pytest.raises(NotForYouError) as caught:
            host.evidence(name, nonce(), anybody=True, **wanted)
        told.add(str(caught.value))
    assert len(told) == 1
    assert host.evidence("tenant-a", nonce(), anybody=True, host="redacted")


def test_ended_container_within_retention(host: SimulatedHost) -> None:
    number = container(host)
    host.end(number)
    asked = nonce()
    raw = host.evidence("tenant-a", asked, anybody=True)
    assert check(host, raw, asked).result.verdict == Verdict.TRUSTED
    host.writer.forget_ended(0)
    assert host.core.get(number) is not None
    host.writer.forget_ended(1 << 62)
    assert host.core.get(number) is None
    from cima_runc.agent.attester import NotForYouError

    with pytest.raises(NotForYouError):
        host.evidence("tenant-a", nonce(), anybody=True)
    # The slot was given back, which changes the root: others are bound anew.
    container(host, "tenant-b")
    raw = host.evidence("tenant-b", asked)
    assert check(host, raw, asked).result.verdict == Verdict.TRUSTED
