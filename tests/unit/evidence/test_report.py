"""Reports as they come from anybody: read strictly, with an end to everything."""

import gzip
import json
import zlib
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base import limits
from cima_runc.evidence.compressed import BombError, EncodingError, compressed, decompressed
from cima_runc.evidence.enrolment import EnrolmentFormatError
from cima_runc.evidence.errors import EvidenceError, EvidenceTooDeepError, EvidenceTooLargeError
from cima_runc.evidence.host_enrolment import EnrolmentState, parse
from cima_runc.evidence.report import parse_report, report_body
from cima_runc.evidence.report_answer import Confirmed, Invitation, Resync, parse_answer
from cima_runc.evidence.report_nonce import NonceMaker, NonceRefusedError
from tests.support.fleet_host import FleetHost


def body_of(host: FleetHost | None = None) -> bytes:
    host = host or FleetHost()
    host.start("one")
    host.bind()
    return host.report(bytes(32))


def test_what_is_written_is_read_again() -> None:
    report = parse_report(body_of())
    again = parse_report(report_body(report.payload.to_line(), report.proof))
    assert (again.payload, again.proof) == (report.payload, report.proof)


def test_the_claim_is_over_the_line_as_it_was_sent() -> None:
    body = body_of()
    report = parse_report(body)
    spaced = json.dumps(json.loads(report.line)).encode()
    assert parse_report(spaced + body[len(report.line) :]).claim() != report.claim()


@given(st.binary(max_size=400))
def test_anything_else_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(EvidenceError):
        parse_report(raw)


@given(st.data())
def test_a_report_with_any_value_replaced_is_read_or_refused_by_name(data: Any) -> None:
    lines = [json.loads(line) for line in BODY.splitlines()]
    paths: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(items):
            paths.append((value, key))
            if isinstance(item, dict | list):
                walk(item)

    for line in lines:
        walk(line)
    holder, key = data.draw(st.sampled_from(paths))
    holder[key] = data.draw(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=80),
            st.lists(st.integers(), max_size=3),
            st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        )
    )
    raw = b"\n".join(json.dumps(line).encode() for line in lines)
    try:
        parse_report(raw)
    except EvidenceError as error:
        assert str(error).isprintable()


BODY = body_of()


@pytest.mark.parametrize("closed", [b"", b"]" * 10 * limits.MIB])
def test_depth_has_an_end(closed: bytes) -> None:
    deep = b'{"a":' + b"[" * 10 * limits.MIB + closed + b"}"
    with pytest.raises(EvidenceTooDeepError):
        parse_report(deep + b"\n{}")


def test_size_has_an_end() -> None:
    with pytest.raises(EvidenceTooLargeError):
        parse_report(bytes(limits.REPORT + 1))


@pytest.mark.parametrize("encoding", ["zstd", "gzip", "identity", None])
def test_compressed_bodies(encoding: str | None) -> None:
    packed = {"zstd": compressed, "gzip": gzip.compress}.get(encoding or "", bytes)(BODY)
    assert decompressed(packed, encoding) == BODY
    if encoding in ("zstd", "gzip"):
        for wrong in (packed[:-1], packed + b"x", packed + packed, b"", b"\0" * 40):
            with pytest.raises(EncodingError):
                decompressed(wrong, encoding)


@pytest.mark.parametrize("encoding", ["br", "zstd, gzip", "\x1b[2J", "deflate"])
def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(EncodingError) as caught:
        decompressed(BODY, encoding)
    assert str(caught.value).isprintable()


def _zeros_in_blocks() -> bytes:
    """A zstd frame of blocks that each say that 128 KiB of zeros follow."""
    head = b"\x28\xb5\x2f\xfd\x00\x58"
    block = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return head + block * 100_000


@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        ("gzip", zlib.compress(bytes(limits.REPORT * 8), wbits=31)),
        ("zstd", zstandard.compress(bytes(limits.REPORT * 8))),
        ("zstd", _zeros_in_blocks()),
        (None, bytes(limits.REPORT + 1)),
    ],
)
def test_bombs_are_put_out_before_they_go_off(encoding: str | None, bomb: bytes) -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        with pytest.raises(BombError):
            decompressed(bomb, encoding)
        assert tracemalloc.get_traced_memory()[1] < 2 * limits.REPORT
    finally:
        tracemalloc.stop()


def test_a_frame_must_not_want_more_memory_than_there_is_for_it() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    raw = packed.compress(BODY) + packed.flush()
    with pytest.raises(EncodingError):
        decompressed(raw, "zstd")


@given(st.binary(max_size=80), st.floats(0, 4e9))
def test_nonces_that_were_not_issued_are_refused(nonce: bytes, now: float) -> None:
    with pytest.raises(NonceRefusedError):
        NonceMaker(bytes(32)).check(nonce, b"\0\x0b" + bytes(32), now)


def test_a_nonce_tells_when_it_was_made() -> None:
    maker, ak = NonceMaker(bytes(32)), b"\0\x0b" + bytes(32)
    nonce = maker.issue(ak, 1_700_000_000.25)
    assert maker.check(nonce, ak, 1_700_000_059).made == pytest.approx(1_700_000_000.25, abs=0.001)
    assert NonceMaker(bytes(32)).check(nonce, ak, 1_700_000_000.0).value == nonce


def test_answers_are_read_again() -> None:
    invitation = Invitation(nonce=bytes(56), interval=60, min_interval=2)
    nothing = Confirmed(base=None, host_log=0, boot_log=False, records={"5": 7}, held={})
    answer = Resync(confirmed=nothing, invitation=invitation)
    assert parse_answer(answer.model_dump_json().encode()) == answer
    for raw in (b"{}", b"[]", b'{"type":"accepted"}', b'{"type":"other"}'):
        with pytest.raises(EvidenceError):
            parse_answer(raw)
    state = EnrolmentState(state="waiting", labels={"rack": "b"})
    assert parse(EnrolmentState, state.model_dump_json().encode(), "the state") == state
    with pytest.raises(EnrolmentFormatError):
        parse(EnrolmentState, b'{"state":"yes"}', "the state")
