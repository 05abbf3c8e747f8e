import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.evidence.models import (
    AggregationPart,
    AkPart,
    BindingPart,
    Evidence,
    EvidenceError,
    EvidenceFormatError,
    EvidenceTooDeepError,
    EvidenceTooLargeError,
    EvidenceVersionError,
    ForeignChange,
    ForeignPart,
    HostLine,
    HostLog,
    OwnerPart,
    QuotePart,
    Request,
    Sealed,
    _quickly,
    parse_evidence,
    parse_request,
)

D = bytes(range(32))
EVIDENCE = Evidence(
    type="cima-evidence",
    version=1,
    container="some-id",
    nonce=b"n" * 16,
    quote=QuotePart(attest=b"a", signature=b"s", pcrs={"12": D}),
    aggregation=AggregationPart(index=1, size=2, path=(D,)),
    ak=AkPart(public=b"k"),
    binding=BindingPart(
        slot=5,
        path=(D, D),
        leaf=D,
        count=3,
        pcr=12,
        seq=2**63,
        root=D,
        history=D,
        foreign=ForeignPart(count=1, last=(ForeignChange(seq=1, expected=D, found=D, time="now"),)),
    ),
    sealed=(Sealed(key=D, data=b"c"),),
    owner=OwnerPart(secret=D, cpcr=D, since=0, records=[{"a": [1, None]}]),
    host_log=HostLog(
        disclosure="redacted",
        pcr=10,
        entries=(D, HostLine(template="ima-ng", data=b"d", violation=False)),
    ),
)
RAW = EVIDENCE.to_json()


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(RAW), **changes}).encode()


def test_round_trip() -> None:
    assert parse_evidence(RAW) == EVIDENCE
    assert json.loads(RAW)["binding"]["leaf"] == D.hex()


def test_too_large() -> None:
    with pytest.raises(EvidenceTooLargeError):
        parse_evidence(RAW, limit=len(RAW) - 1)


@pytest.mark.parametrize("depth", [65, 100_000])
def test_too_deep(depth: int) -> None:
    with pytest.raises(EvidenceTooDeepError):
        parse_evidence(b'{"a":' + b"[" * depth + b"]" * depth + b"}")


@pytest.mark.parametrize("raw", [b"", b"\xff", b"[]", b"{", b"null", b'{"a":1,"a":1}', b"{}"])
def test_not_evidence(raw: bytes) -> None:
    with pytest.raises(EvidenceFormatError):
        parse_evidence(raw)


@pytest.mark.parametrize("version", [2, 0, "1", 1.0, None, True, "\x1b[31m"])
def test_version(version: object) -> None:
    with pytest.raises(EvidenceVersionError) as caught:
        parse_evidence(changed(version=version))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
        {"nonce": "00" * 15},
        {"nonce": "AA" * 16},
        {"nonce": " " + "aa" * 16},
        {"container": ""},
        {"quote": {"attest": "a", "signature": "", "pcrs": {}}},
        {"aggregation": {"index": -1, "size": 1, "path": []}},
        {"aggregation": {"index": True, "size": 1, "path": []}},
        {"host_log": {"disclosure": "all", "pcr": 10}},
        {"host_log": {"disclosure": "full", "pcr": 24}},
    ],
)
def test_wrong_fields(changes: dict[str, Any]) -> None:
    with pytest.raises(EvidenceFormatError):
        parse_evidence(changed(**changes))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(EvidenceError):
        parse_evidence(raw)


@given(st.integers(0, len(RAW) - 1), st.integers(0, 255))
def test_any_change_is_read_or_refused(at: int, byte: int) -> None:
    raw = RAW[:at] + bytes([byte]) + RAW[at + 1 :]
    with suppress(EvidenceError):
        parse_evidence(raw)


def test_request() -> None:
    request = parse_request(b'{"container":"c","nonce":"' + b"ab" * 16 + b'"}')
    assert request == Request(container="c", nonce=b"\xab" * 16, host="none", since=0)
    for wrong in (b"{}", b"no", b'{"container":"c","nonce":"ab"}'):
        with pytest.raises(EvidenceFormatError):
            parse_request(wrong)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(':\\" ab\t', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(':\\" a', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text("ab", max_size=2), JSON),
    st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]),
    st.booleans(),
)
def test_quick_reading_reads_the_same(
    value: dict[str, Any], separators: tuple[str, str], doubled: bool
) -> None:
    text = json.dumps({"z": 1, **value}, separators=separators)
    if doubled:
        text = '{"z":1,' + text[1:]
    quick = _quickly(text.encode())
    assert quick in (None, json.loads(text))
    assert not (doubled and quick)
