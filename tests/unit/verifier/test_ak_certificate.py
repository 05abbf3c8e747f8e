import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from software_key import software_public
from support import x509_by_hand as by_hand

from cima_runc.tpm.structures import PublicArea, parse_public
from cima_runc.verifier import ak_certificate
from cima_runc.verifier.ak_certificate import AkCertificateError, issue, parse_authority

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESTRICTED = 0x00050472


def authority(name: str = "authority") -> tuple[bytes, bytes]:
    """Return (certificate, private key), both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate.public_bytes(serialization.Encoding.PEM), pem


CA, KEY = authority()


def key_of(attributes: int = RESTRICTED) -> PublicArea:
    return parse_public(software_public(attributes))


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def test_a_label_that_no_certificate_takes() -> None:
    """The file of an enrolled key takes twice as many characters."""
    public = key_of()
    assert parse_authority(CA, NOW).check(der(issue(public, CA, KEY, NOW, "h" * 64)), public)
    with pytest.raises(AkCertificateError, match="65 characters"):
        issue(public, CA, KEY, NOW, "h" * 65)


def test_vouches_for_the_key_alone() -> None:
    public = key_of()
    certificate = der(issue(public, CA, KEY, NOW))
    parse_authority(CA, NOW).check(certificate, public)
    with pytest.raises(AkCertificateError, match="another attestation key"):
        parse_authority(CA, NOW).check(certificate, key_of())
    # The same key that claims other attributes has another name.
    area = software_public(0x00040472)
    weak = parse_public(area)
    claimed = parse_public(area[:4] + RESTRICTED.to_bytes(4, "big") + area[8:])
    with pytest.raises(AkCertificateError, match="another attestation key"):
        parse_authority(CA, NOW).check(der(issue(weak, CA, KEY, NOW)), claimed)


def test_of_another_authority() -> None:
    public = key_of()
    for name in ("authority", "other"):
        other, key = authority(name)
        with pytest.raises(AkCertificateError, match="not of this authority"):
            parse_authority(CA, NOW).check(der(issue(public, other, key, NOW)), public)


def test_not_now() -> None:
    public = key_of()
    certificate = der(issue(public, CA, KEY, NOW))
    for now in (NOW - timedelta(seconds=1), NOW + timedelta(days=366)):
        with pytest.raises(AkCertificateError, match="valid from"):
            parse_authority(CA, now).check(certificate, public)


def test_not_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier that lives for years: what was valid when it began is not for ever."""
    public, known = key_of(), parse_authority(CA)
    certificate = der(issue(public, CA, KEY, NOW))
    for days in (0, 364, 366):
        now = SimpleNamespace(now=lambda _, days=days: NOW + timedelta(days=days))
        monkeypatch.setattr(ak_certificate, "datetime", now)
        if days < 365:
            known.check(certificate, public)
            continue
        with pytest.raises(AkCertificateError, match="valid from"):
            known.check(certificate, public)


@pytest.mark.parametrize("certificate", [None, b"", b"no certificate", der(CA)])
def test_no_certificate_of_a_key(certificate: bytes | None) -> None:
    with pytest.raises(AkCertificateError):
        parse_authority(CA, NOW).check(certificate, key_of())


@pytest.mark.parametrize(
    "wrong", [{"authority": b"no"}, {"key": b"no"}, {"key": authority()[1]}, {"key": CA}]
)
def test_what_cannot_issue(wrong: dict[str, Any]) -> None:
    with pytest.raises(AkCertificateError):
        issue(key_of(), **{"authority": CA, "key": KEY, "now": NOW, **wrong})


_VERSION_3 = bytes.fromhex("a003020102")


@pytest.mark.parametrize("version", [b"\0", b"\x01", b"\x05", b"\x7f", b"\xff"])
def test_a_version_that_there_is_not(version: bytes) -> None:
    """Kind: what the library raises beside ValueError, for bytes that a host or a file has."""
    made = der(CA).replace(_VERSION_3, _VERSION_3[:-1] + version)
    with pytest.raises(AkCertificateError):
        parse_authority(CA, NOW).check(made, key_of())
    text = ssl.DER_cert_to_PEM_cert(made).encode()
    if version[0] > 2:
        with pytest.raises(AkCertificateError):
            parse_authority(text, NOW)


def test_an_extension_twice() -> None:
    name = by_hand.common_name("twice")
    key = ec.generate_private_key(ec.SECP256R1())
    twice = (by_hand.basic_constraints(ca=True),) * 2
    made = by_hand.Certificate(name, name, key, key, twice).der()
    with pytest.raises(AkCertificateError):
        parse_authority(by_hand.pem(made), NOW)


@given(st.integers(0, len(der(CA)) - 1), st.integers(1, 255))
def test_any_byte_of_it(place: int, change: int) -> None:
    made = bytearray(der(CA))
    made[place] ^= change
    with pytest.raises(AkCertificateError):
        parse_authority(CA, NOW).check(bytes(made), key_of())
    with contextlib.suppress(AkCertificateError):
        parse_authority(ssl.DER_cert_to_PEM_cert(bytes(made)).encode(), NOW)
