"""Certificates of attestation keys: an authority enrols a host once, and many verifiers rely on it.

Such a certificate (X.509) is the signed record of a credential activation: it is made when the TPM
has opened the credential, and holds the key's TPM name as its subject key identifier, since the
name covers the key's attributes and the key alone does not.
Source: TCG EK Credential Profile 2.5, 3.5 (tcg-kp-AIKCertificate); RFC 5280.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.tpm.structures import PublicArea

_ATTESTATION_KEY = x509.ObjectIdentifier("2.23.133.8.3")
_VALID = timedelta(days=365)
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for a certificate that is not one, when it is read or asked."""
_COMMON_NAME = 64
"""Characters of a common name at most (RFC 5280, ub-common-name)."""
NO_LABEL = "cima attestation key"
"""The common name of a certificate that says nothing of the host."""


class AkCertificateError(CimaError):
    """An attestation key's certificate cannot be made, or does not vouch for the key."""


@dataclass(frozen=True)
class AkAuthority:
    """Who is trusted to have enrolled attestation keys."""

    certificate: x509.Certificate
    now: datetime | None = None
    """At what time keys' certificates must be valid, with a time zone; None: when each is checked,
    for a verifier that lives long."""
    only: bytes | None = None
    """TPM name of the one key that is meant; None: any that this authority has enrolled."""

    @property
    def described(self) -> str:
        """Whose certificate is wanted, for people."""
        who = f"a certificate by {printable(self.certificate.subject.rfc4514_string())}"
        return who if self.only is None else f"{who} of the key {self.only.hex()}"

    def check(self, certificate: bytes | None, public: PublicArea) -> str:
        """Check a certificate (DER) of the key with this public area; return the host's label.

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
            constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
            key = found.public_key()
        except (*_UNREADABLE, TypeError, InvalidSignature) as error:
            raise AkCertificateError("the certificate is not of this authority") from error
        except x509.ExtensionNotFound as error:
            raise AkCertificateError("the certificate names no attestation key") from error
        now = datetime.now(UTC) if self.now is None else self.now
        if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
            raise AkCertificateError(
                f"the certificate is valid from {found.not_valid_before_utc} to"
                f" {found.not_valid_after_utc}",
                hint="have the authority enrol the host anew",
            )
        if constraints.ca:
            raise AkCertificateError("the certificate is an authority's, not an attestation key's")
        if self.only is not None and public.name != self.only:
            raise AkCertificateError("the attestation key is another than the one that is meant")
        if usages != [_ATTESTATION_KEY] or name != public.name or key != public.key:
            raise AkCertificateError("the certificate is of another attestation key")
        names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        label = str(names[0].value) if len(names) == 1 else ""
        return "" if label == NO_LABEL else label


def parse_authority(
    pem: bytes, now: datetime | None = None, only: bytes | None = None
) -> AkAuthority:
    """Read an authority's certificate; ``now`` and ``only`` are as in :class:`AkAuthority`.

    Raises:
        AkCertificateError: not a PEM certificate, or one that is not an authority's.
    """
    certificate = _certificate(pem)
    found = None
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        pass
    except _UNREADABLE as error:
        raise AkCertificateError("the authority's certificate cannot be read") from error
    if found is not None and not found.ca:
        raise AkCertificateError("the authority's certificate says that it is none (CA:false)")
    return AkAuthority(certificate, now, only)


def issue(
    public: PublicArea, authority: bytes, key: bytes, now: datetime, label: str = ""
) -> bytes:
    """Return a certificate (PEM) of a key that was enrolled, valid for a year.

    ``label`` is what the host is called; it becomes the certificate's common name.

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
    if len(label) > _COMMON_NAME:
        raise AkCertificateError(
            f"the label has {len(label)} characters, and a certificate takes {_COMMON_NAME}",
            hint="give a shorter --label",
        )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label or NO_LABEL)])
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
    except _UNREADABLE as error:
        raise AkCertificateError("the authority's certificate is not a PEM file") from error
