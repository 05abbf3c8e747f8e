"""The kernel's line beside a record: of any shape, it is this file's or it is refused."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.ima.template import pack_fields
from cima_runc.ml.contents import Exit, File, Measured
from cima_runc.verifier import errors
from cima_runc.verifier.kernel_line import check_line, is_of_another_order, take_line

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
LINES = JSON | st.fixed_dictionaries({"template": JSON, "data": JSON})
DIGEST = b"\x11" * 32


def file(path: bytes) -> Measured:
    return Measured(3, File(digest=DIGEST, path=path, mntns=4026531840, func="BPRM_CHECK"))


def data(path: bytes, digest: bytes = b"sha256:\0" + DIGEST) -> bytes:
    return pack_fields([digest, path + b"\0"])


@given(LINES)
def test_what_stands_there_is_a_line_or_is_refused(line: Any) -> None:
    record = {"recnum": 3, "line": line}
    try:
        rest, raw = take_line(record)
    except errors.RecordFormatError:
        return
    assert rest == {"recnum": 3}
    assert raw is not None
    assert line.keys() == {"template", "data"} and isinstance(line["template"], str)
    assert base64.b64encode(raw).decode() == line["data"]


@given(JSON)
def test_without_a_line_a_record_is_left_alone(record: Any) -> None:
    if not isinstance(record, dict) or "line" not in record:
        assert take_line(record) == (record, None)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (b"/usr/bin/runc", b"/usr/bin/runc"),
        (b"/usr/bin/a b", b"/usr/bin/a_b"),
        (b"/memfd:runc (deleted)", b"memfd:runc_(deleted)"),
    ],
)
def test_a_file_has_its_own_line(path: bytes, named: bytes) -> None:
    check_line(file(path), data(named))


@given(st.binary(max_size=200))
def test_other_bytes_are_no_line_of_the_file(raw: bytes) -> None:
    if raw != data(b"/usr/bin/runc"):
        with pytest.raises(errors.DependencyLineError):
            check_line(file(b"/usr/bin/runc"), raw)


@pytest.mark.parametrize(
    "raw",
    [
        data(b"/usr/bin/runc2"),
        data(b"/usr/bin/runc", b"sha256:\0" + b"\x12" * 32),
        data(b"/usr/bin/runc", b"verity:sha256:\0" + DIGEST),
        data(b"/usr/bin/runc", b"sha1:\0" + DIGEST[:20]),
        pack_fields([b"sha256:\0" + DIGEST, b"/usr/bin/runc"]),
        pack_fields([b"sha256:\0" + DIGEST]),
    ],
)
def test_another_files_line_is_refused(raw: bytes) -> None:
    with pytest.raises(errors.DependencyLineError, match="another file's line"):
        check_line(file(b"/usr/bin/runc"), raw)


def test_what_is_no_file_has_no_line() -> None:
    with pytest.raises(errors.DependencyLineError, match="is of no file"):
        check_line(Measured(9, Exit(reason="deleted")), data(b"/usr/bin/runc"))


@pytest.mark.parametrize(
    ("template", "other"),
    [
        *((name, False) for name in ("ima-ng", "ima-sig", "ima-modsig", "evm-sig", "ima-ngv2")),
        *((name, False) for name in ("ima-sigv2", "ima-buf", "d-ng|n-ng|imode", "d-ngv2|n", "odd")),
        *((name, True) for name in ("n-ng|d-ng", "iuid|d-ng|n-ng", "d-ng|sig|n-ng", "d-ng", "ima")),
    ],
)
def test_a_template_in_which_no_file_is_found(template: str, other: bool) -> None:
    """The host is told what to change, not that its log is another kernel's."""
    assert is_of_another_order(template) == other
