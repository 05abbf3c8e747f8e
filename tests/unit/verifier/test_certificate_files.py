"""Files of certificates in the forms in which manufacturers and tools write them."""

import base64
import json
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from hypothesis import given
from hypothesis import strategies as st
from support.x509_by_hand import pem, tlv

from cima_runc.verifier.certificate import read_bundle
from cima_runc.verifier.certificate_files import certificates_in
from tests.unit.verifier.test_ek_certificate import CA, LEAF, ROOT, check

ONES = [ROOT.der(), CA.der()]
LOADED = [x509.load_der_x509_certificate(one) for one in ONES]
PEM = b"".join(map(pem, ONES))
FORMS: dict[str, bytes] = {
    "PEM": PEM,
    "PEM of Windows": PEM.replace(b"\n", b"\r\n"),
    "PEM of an old Mac": PEM.replace(b"\n", b"\r"),
    "PEM with a byte order mark": b"\xef\xbb\xbf" + PEM,
    "PEM in UTF-16": PEM.decode().encode("utf-16"),
    "PEM with words between": b"\xe9 subject=/CN=x\n".join([b"", *map(pem, ONES), b""]),
    "PEM with other blocks": PEM + b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----",
    "PEM of OpenSSL's": PEM.replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE"),
    "PEM without a newline": PEM.strip(),
    "DER one behind another": b"".join(ONES),
    "DER, filled up": b"".join(ONES) + b"\xff" * 40 + bytes(40) + b"\r\n",
    "PKCS 7 in PEM": pkcs7.serialize_certificates(LOADED, Encoding.PEM),
    "PKCS 7 in DER": pkcs7.serialize_certificates(LOADED, Encoding.DER),
    "Base64": base64.encodebytes(b"".join(ONES)),
    "Base64 of the web": base64.urlsafe_b64encode(b"".join(ONES)).rstrip(b"="),
    "Intel's answer": json.dumps(
        {"pubhash": "a", "certificate": base64.urlsafe_b64encode(b"".join(ONES)).decode()}
    ).encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str) -> None:
    assert sorted(certificates_in(FORMS[form])) == sorted(ONES)
    assert read_bundle(FORMS[form], "file").unreadable == ()
    assert check(LEAF.der(), FORMS[form]) == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda one: pem(one).partition(b"-----END")[0],
        lambda one: pem(one[:200]),
        lambda one: pem(one).replace(b"-----\nM", b"-----\n\xff", 1),
        lambda one: (
            pem(one)
            .replace(b"BEGIN CERTIFICATE", b"BEGIN PKCS7")
            .replace(b"END CERTIFICATE", b"END PKCS7")[:-40]
        ),
        lambda one: pem(tlv(0x30, tlv(0x02, b"\1"))),
    ],
    ids=["no end", "cut", "no Base64", "no PKCS 7", "no certificate"],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_cannot_be_read_is_named_and_spoils_no_other(
    damage: Callable[[bytes], bytes], first: bool
) -> None:
    parts = [damage(ONES[0]), pem(ONES[1])]
    found = read_bundle(b"".join(parts if first else reversed(parts)), "file")
    assert [one.der for one in found.readable] == ONES[1:]
    (line,) = found.unreadable
    assert line.startswith(f"file: certificate {1 if first else 2} cannot be read: ")


def test_what_stands_behind_a_certificate_is_named() -> None:
    found = read_bundle(ONES[1] + b"and more", "file")
    assert (len(found.readable), len(found.unreadable)) == (1, 1)


def test_a_pkcs_7_of_nothing_is_named() -> None:
    empty = pkcs7.serialize_certificates(LOADED[:1], Encoding.DER)
    content = tlv(0x30, *(tlv(0x06, b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"), tlv(0xA0)))
    for data in (content, empty[: len(empty) // 2]):
        found = read_bundle(data, "file")
        assert (len(found.readable), len(found.unreadable)) == (0, 1)


@given(st.binary(max_size=300) | st.sampled_from(sorted(FORMS.values())), st.integers(0, 3000))
def test_any_bytes(data: bytes, cut: int) -> None:
    for some in (data, data[:cut], data[cut:]):
        found = read_bundle(some, "file")
        assert len(found.readable) + len(found.unreadable) > 0
        assert all(line.isprintable() for line in found.unreadable)
