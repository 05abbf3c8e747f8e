"""Certificates of attestation keys: an authority enrols a host once, and many verifiers rely on it.

Such a certificate (X.509) is the signed record of a credential activation: it is made when the TPM
has opened the credential, and holds the key's TPM name as its subject key identifier, since the
name covers the key's attributes and the key alone does not.
Source: TCG EK Credential Profile 2.5, 3.5 (tcg-kp-AIKCertificate); RFC 5280.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from cima_runc.base.errors import CimaError
from cima_runc.tpm.structures import PublicArea

_ATTESTATION_KEY = x509.ObjectIdentifier("2.23.133.8.3")
_VALID = timedelta(days=365)


class AkCertificateError(CimaError):
    """An attestation key's certificate cannot be made, or does not vouch for the key."""


@dataclass(frozen=True)
class AkAuthority:
    """Who is trusted to have enrolled attestation keys."""

    certificate: x509.Certificate
    now: datetime
    """With a time zone."""

    def check(self, certificate: bytes | None, public: PublicArea) -> None:
        """Check a certificate (DER) of the key with this public area.

        Raises:
            AkCertificateError: none, another key's, another authority's, or not valid now.
        """
        if certificate is None:
            raise AkCertificateError(
                "the evidence holds no certificate of its attestation key",
                hint="set attestation.ak_certificate on the host, or verify with --ak",
            )
        try:
            found = x509.load_der_x509_certificate(certificate)
            found.verify_directly_issued_by(self.certificate)
            extensions = found.extensions
            name = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
            usages = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise AkCertificateError("the certificate is not of this authority") from error
        except x509.ExtensionNotFound as error:
            raise AkCertificateError("the certificate names no attestation key") from error
        if not found.not_valid_before_utc <= self.now <= found.not_valid_after_utc:
            raise AkCertificateError(
                f"the certificate is valid from {found.not_valid_before_utc} to"
                f" {found.not_valid_after_utc}",
                hint="have the authority enrol the host anew",
            )
        if usages != [_ATTESTATION_KEY] or name != public.name or found.public_key() != public.key:
            raise AkCertificateError("the certificate is of another attestation key")


def parse_authority(pem: bytes, now: datetime) -> AkAuthority:
    """Read an authority's certificate.

    Raises:
        AkCertificateError: not a PEM certificate.
    """
    return AkAuthority(_certificate(pem), now)


def issue(public: PublicArea, authority: bytes, key: bytes, now: datetime) -> bytes:
    """Return a certificate (PEM) of a key that was enrolled, valid for a year.

    ``authority`` is the authority's certificate and ``key`` its private key (PEM, no password).

    Raises:
        AkCertificateError: they cannot be used.
    """
    issuer = _certificate(authority)
    try:
        signer = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AkCertificateError("the authority's key is no PEM file without a password") from error
    if not isinstance(signer, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise AkCertificateError("the authority's key is neither EC nor RSA")
    if signer.public_key() != issuer.public_key():
        raise AkCertificateError("the authority's key is not that of its certificate")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cima attestation key")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(public.key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier(public.name), critical=False)
        .add_extension(x509.ExtendedKeyUsage([_ATTESTATION_KEY]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise AkCertificateError("the authority's certificate is not a PEM file") from error
