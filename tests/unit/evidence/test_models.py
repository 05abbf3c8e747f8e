import base64
import copy
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base.jsonio import JsonError, load_object
from cima_runc.cpcr.status import Foreign, Gap, Status
from cima_runc.evidence.errors import (
    EvidenceError,
    EvidenceFormatError,
    EvidenceTooDeepError,
    EvidenceTooLargeError,
    EvidenceVersionError,
)
from cima_runc.evidence.models import (
    AggregationPart,
    AkPart,
    BindingPart,
    Evidence,
    HostLine,
    HostLog,
    Outside,
    QuotePart,
    _quickly,
    parse_evidence,
    parse_owner_part,
)
from cima_runc.evidence.padding import padded

D = bytes(range(32))
H = D.hex()
HOUR = "2025-01-31T13:00:00Z"
SEALED = Evidence(
    type="cima-evidence",
    version=2,
    container="some-id",
    nonce=b"n" * 16,
    request=D,
    quote=QuotePart(attest=b"a", signature=b"s", pcrs={"12": D}),
    aggregation=AggregationPart(index=1, path=(D,) * 10),
    ak=AkPart(public=b"k", certificate=b"c"),
    binding=BindingPart(
        pcr=12,
        status=Status.begin(D)
        .with_foreign(Foreign(kind="changed", time=HOUR))
        .with_gap(Gap(kind="tpm", since=HOUR, until=HOUR)),
        host=D,
        root=D,
        history=D,
        slot=5,
        leaf=D,
        path=(D,) * 10,
    ),
    sealed=(b"c" * 40,),
    host_log=HostLog(
        disclosure="redacted",
        pcr=10,
        entries=(HostLine(template="ima-ng", data=b"d", violation=False), D),
    ),
    boot_log=b"b",
)
RUN = {"run": 1, "id": "some-id", "registration": 7, "secret": H, "since": 0, "records": [{"a": 1}]}
SERVICES = {
    "registration": 3,
    "slot": 1023,
    "leaf": H,
    "path": [H] * 10,
    "blind": H,
    "secret": H,
    "cpcr": H,
    "count": 1,
    "records": [],
}
OWNER: dict[str, Any] = {
    "request": {
        "boot_log": False,
        "container": "some-id",
        "host": "none",
        "nonce": "00" * 16,
        "since": None,
    },
    "line": H,
    "blind": H,
    "cpcr": H,
    "count": 1,
    "runs": [RUN],
    "missing": [{"run": 1, "from": 0, "to": 5}],
    "services": SERVICES,
}
RAW = SEALED.to_json()


def in_the_clear(owner: dict[str, Any]) -> bytes:
    shown = {**dict(SEALED), "sealed": None}
    del shown["owner"]
    outside = Outside(**shown)
    return outside.to_json(padded(json.dumps(owner).encode()))


def test_round_trip() -> None:
    assert parse_evidence(RAW) == SEALED
    assert "owner" not in json.loads(RAW)
    raw = in_the_clear(OWNER)
    owner = parse_evidence(raw).owner
    assert owner is not None
    assert owner == parse_owner_part(padded(json.dumps(OWNER).encode()))
    assert owner.runs[0].records == [{"a": 1}]
    assert (owner.missing[0].from_, owner.missing[0].to) == (0, 5)
    assert json.loads(raw).keys() == json.loads(RAW).keys() - {"sealed"} | {"owner"}


def test_what_is_not_there_is_left_out() -> None:
    bare = json.loads(
        SEALED.model_copy(update={"boot_log": None, "ak": AkPart(public=b"k")}).to_json()
    )
    assert "boot_log" not in bare
    assert "certificate" not in bare["ak"]
    status = Status.begin().model_dump(mode="json")
    assert status["initial"] is None


def test_sizes_and_depths() -> None:
    with pytest.raises(EvidenceTooLargeError):
        parse_evidence(RAW, limit=len(RAW) - 1)
    for depth in (65, 100_000):
        with pytest.raises(EvidenceTooDeepError):
            parse_evidence(b'{"a":' + b"[" * depth + b"]" * depth + b"}")


@pytest.mark.parametrize("raw", [b"", b"\xff", b"[]", b"{", b"null", b'{"a":1,"a":1}', b"{}"])
def test_not_evidence(raw: bytes) -> None:
    with pytest.raises(EvidenceFormatError):
        parse_evidence(raw)


@pytest.mark.parametrize("version", [1, 3, 0, "2", 2.0, None, True, "\x1b[31m"])
def test_version(version: object) -> None:
    with pytest.raises(EvidenceVersionError) as caught:
        parse_evidence(json.dumps({**json.loads(RAW), "version": version}).encode())
    assert str(caught.value).isprintable()


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where every value of some JSON is."""
    inside: list[tuple[Any, ...]] = [at] if at else []
    if isinstance(value, dict):
        value = list(value.items())
    elif isinstance(value, list):
        value = list(enumerate(value))
    else:
        return inside
    for key, item in value:
        inside += places(item, (*at, key))
    return inside


def changed(raw: Any, at: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    made = copy.deepcopy(raw)
    holder = made
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = change(holder[at[-1]])
    return made


OUTSIDE = json.loads(RAW)
CHANGES: dict[str, Callable[[Any], Any]] = {
    "float": lambda old: float(old) if type(old) is int else 1.5,
    "bool": lambda old: bool(old) if type(old) is int else [old],
    "text": lambda old: str(old) if type(old) is int else 7,
    "upper": lambda old: old.upper() + "G" if isinstance(old, str) else "X",
    "space": lambda old: old + " " if isinstance(old, str) else {},
    "null": lambda old: [[None]],
    "padding": lambda old: old + "==" if isinstance(old, str) else -1,
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_no_value_has_another_spelling(name: str) -> None:
    """Finding 9. Kind: lax readings. Every value outside the seal, but a container's name and a
    template's, has one form only."""
    for at in places(OUTSIDE):
        if at in {("container",), ("host_log", "entries", 0, "template")}:
            continue
        value = changed(OUTSIDE, at, CHANGES[name])
        with pytest.raises(EvidenceError):
            parse_evidence(json.dumps(value).encode())
            pytest.fail(f"{at} was taken as {name}")


@pytest.mark.parametrize("name", list(CHANGES))
def test_no_value_under_the_seal_has_another_spelling(name: str) -> None:
    for at in places(OWNER):
        free = at[-1] in {"container", "id"} or "records" in at
        if free or (name == "null" and at[-1] == "services"):
            continue
        value = changed(OWNER, at, CHANGES[name])
        with pytest.raises(EvidenceError):
            parse_owner_part(json.dumps(value).encode())
            pytest.fail(f"{at} was taken as {name}")


@pytest.mark.parametrize("holder", [(), *places(OUTSIDE)])
def test_nothing_is_there_besides(holder: tuple[Any, ...]) -> None:
    value = copy.deepcopy(OUTSIDE)
    place = value
    for key in holder:
        place = place[key]
    if not isinstance(place, dict) or holder == ("quote", "pcrs"):
        return
    place["more"] = 1
    with pytest.raises(EvidenceFormatError):
        parse_evidence(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (("aggregation", "index"), 1024),
        (("aggregation", "index"), -1),
        (("aggregation", "path"), [H] * 9),
        (("aggregation", "path"), [H] * 11),
        (("binding", "slot"), 1024),
        (("binding", "path"), [H]),
        (("binding", "path"), []),
        (("binding", "path"), [H] * 33),
        (("binding", "pcr"), 24),
        (("binding", "status", "foreign", "count"), 2**53),
        (("binding", "status", "foreign", "last"), [{"kind": "changed", "time": HOUR}] * 9),
        (("binding", "status", "foreign", "last", 0, "kind"), "other"),
        (("binding", "status", "initial"), "00"),
        (("quote", "pcrs"), {"012": H}),
        (("quote", "pcrs"), {"24": H}),
        (("quote", "pcrs"), {"+1": H}),
        (("sealed",), []),
        (("sealed",), [base64.b64encode(b"c").decode()] * 9),
        (("sealed",), ["AB=="]),
        (("host_log", "disclosure"), "none"),
        (("host_log", "disclosure"), "full"),
        (("host_log", "entries"), []),
        (("host_log", "entries"), [H, H]),
        (("nonce",), "00" * 15),
        (("nonce",), "00" * 65),
        (("container",), ""),
    ],
)
def test_wrong_values(at: tuple[Any, ...], new: Any) -> None:
    value = changed(OUTSIDE, at, lambda old: new)
    with pytest.raises(EvidenceFormatError):
        parse_evidence(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (("services", "slot"), 1024),
        (("services", "slot"), -1),
        (("services", "path"), [H] * 9),
        (("runs", 0, "run"), 0),
        (("runs",), []),
    ],
)
def test_wrong_values_under_the_seal(at: tuple[Any, ...], new: Any) -> None:
    value = changed(OWNER, at, lambda old: new)
    with pytest.raises(EvidenceFormatError):
        parse_owner_part(json.dumps(value).encode())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number(number: str) -> None:
    """Also where the quick reading would take it: JSON has none of them (RFC 8259, section 6)."""
    text = json.dumps(changed(OWNER, ("runs", 0, "records", 0, "a"), lambda old: "here"))
    raw = text.replace('"here"', number).replace(": ", ":").replace(", ", ",").encode()
    with pytest.raises(EvidenceFormatError):
        parse_owner_part(raw)


def test_one_line_of_a_redacted_log_is_shown() -> None:
    lines = json.loads(RAW)["host_log"]["entries"]
    value = changed(OUTSIDE, ("host_log", "entries"), lambda old: [lines[0], lines[0], H])
    with pytest.raises(EvidenceFormatError):
        parse_evidence(json.dumps(value).encode())


def test_sealed_or_owner() -> None:
    for raw in (
        {**OUTSIDE, "owner": OWNER},
        {**OUTSIDE, "owner": None},
        {key: value for key, value in OUTSIDE.items() if key != "sealed"},
    ):
        with pytest.raises(EvidenceFormatError):
            parse_evidence(json.dumps(raw).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(EvidenceError):
        parse_evidence(raw)


@given(st.integers(0, len(RAW) - 1), st.integers(0, 255))
def test_any_change_is_read_or_refused(at: int, byte: int) -> None:
    raw = RAW[:at] + bytes([byte]) + RAW[at + 1 :]
    with suppress(EvidenceError):
        parse_evidence(raw)


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


GOOD = ("0", "-0", "-0.0", "0.0", "1E5", "1e308", "5e-324", "1e-400", "9" * 30, "9" * 4_300)
BAD = ("1e309", "-1e309", "1E400", "9" * 400 + ".0", "9" * 4_301, "01", "1.", "+1", "NaN")


@pytest.mark.parametrize("number", [*GOOD, *BAD])
@pytest.mark.parametrize("holder", ['{"a":%s}', '{"a":[{"b":[%s]}]}'])
def test_quick_reading_takes_no_number_that_strict_reading_refuses(
    number: str, holder: str
) -> None:
    raw = (holder % number).encode()
    try:
        strict = load_object(raw, what="it", limit=len(raw))
    except JsonError:
        strict = None
    assert repr(_quickly(raw)) in {repr(None), repr(strict)}
