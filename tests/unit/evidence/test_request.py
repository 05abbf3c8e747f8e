import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.evidence.errors import EvidenceFormatError
from cima_runc.evidence.request import Asker, Request, Since, leaf, parse_request

WHOLE: dict[str, Any] = {
    "boot_log": False,
    "container": "c" * 64,
    "host": "none",
    "nonce": "00" * 16,
    "since": None,
}
SINCE = {"run": 1, "count": 8, "inner": "ab" * 32}


def test_digest_is_of_the_canonical_text() -> None:
    text = (
        '{"boot_log":true,"container":"a b","host":"full","nonce":"' + "0a" * 16 + '",'
        '"since":{"count":8,"inner":"' + "ab" * 32 + '","run":1}}'
    )
    request = parse_request(json.dumps(json.loads(text), indent=4).encode())
    assert request.digest() == hashlib.sha256(text.encode()).digest()
    null = parse_request(json.dumps(WHOLE).encode())
    text = (
        '{"boot_log":false,"container":"' + "c" * 64 + '","host":"none",'
        '"nonce":"' + "00" * 16 + '","since":null}'
    )
    assert null.digest() == hashlib.sha256(text.encode()).digest()


def test_leaf_says_who_asks() -> None:
    digest = b"d" * 32
    leaves = {asker: leaf(asker, digest) for asker in Asker}
    assert leaves[Asker.OUTSIDE] == hashlib.sha256(b"\0" + digest).digest()
    assert leaves[Asker.HOST] == hashlib.sha256(b"\2" + digest).digest()
    assert leaves[Asker.WORKLOAD] == hashlib.sha256(b"\3" + digest).digest()


requests = st.builds(
    Request,
    boot_log=st.booleans(),
    container=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80),
    host=st.sampled_from(["none", "redacted", "full"]),
    nonce=st.binary(min_size=16, max_size=64),
    since=st.none()
    | st.builds(
        Since,
        run=st.integers(1, 2**53 - 1),
        count=st.integers(0, 2**53 - 1),
        inner=st.binary(min_size=32, max_size=32),
    ),
)


@given(requests, requests)
def test_a_request_survives_and_no_two_have_one_digest(one: Request, other: Request) -> None:
    assert parse_request(one.model_dump_json().encode()) == one
    assert (one.digest() == other.digest()) == (one == other)


@pytest.mark.parametrize("missing", list(WHOLE))
def test_every_field_is_there(missing: str) -> None:
    less = {key: value for key, value in WHOLE.items() if key != missing}
    with pytest.raises(EvidenceFormatError, match=missing):
        parse_request(json.dumps(less).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nonce", "00" * 15),
        ("nonce", "00" * 65),
        ("nonce", "AB" * 16),
        ("nonce", "0" * 33),
        ("container", ""),
        ("container", "c" * 1025),
        ("host", "some"),
        ("boot_log", 1),
        ("boot_log", "true"),
        ("since", 0),
        ("since", {**SINCE, "run": 0}),
        ("since", {**SINCE, "run": True}),
        ("since", {**SINCE, "count": 8.0}),
        ("since", {**SINCE, "count": "8"}),
        ("since", {**SINCE, "count": 2**53}),
        ("since", {**SINCE, "count": -1}),
        ("since", {**SINCE, "inner": "AB" * 32}),
        ("since", {**SINCE, "inner": "ab" * 31}),
        ("since", {"run": 1, "count": 8}),
        ("since", {**SINCE, "more": 1}),
        ("more", 1),
    ],
)
def test_readings_that_are_not_taken(field: str, value: Any) -> None:
    with pytest.raises(EvidenceFormatError):
        parse_request(json.dumps({**WHOLE, field: value}).encode())
