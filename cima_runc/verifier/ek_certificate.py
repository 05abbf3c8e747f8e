"""Is an endorsement key that of a TPM which its manufacturer vouches for?

Source: TCG EK Credential Profile 2.5, section 3.2 (fields of the certificate); RFC 5280.
"""

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import (
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from cima_runc.base.errors import CimaError

_TCG_KP_EK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.1")


class EkCertificateError(CimaError):
    """The endorsement key's certificate does not vouch for it."""


def check_ek_certificate(
    certificate: bytes, chain: Sequence[bytes], ek_pem: bytes, trusted: bytes
) -> None:
    """Check an EK certificate (DER) up to ``trusted`` (PEM certificates of manufacturers).

    ``chain`` (DER) may help to get there; ``ek_pem`` is the key that it must be of.

    Raises:
        EkCertificateError: it is of another key, not for an EK, or not issued by anybody trusted.
    """
    try:
        leaf = x509.load_der_x509_certificate(certificate)
        between = [x509.load_der_x509_certificate(one) for one in chain]
        store = Store(x509.load_pem_x509_certificates(trusted))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EkCertificateError(
            f"a certificate of the endorsement key cannot be read: {error}"
        ) from error
    if _spki(leaf.public_key()) != _spki(serialization.load_pem_public_key(ek_pem)):
        raise EkCertificateError("the certificate is of another endorsement key")
    try:
        usages = list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        usages = []
    if usages and _TCG_KP_EK_CERTIFICATE not in usages:
        raise EkCertificateError("the certificate is not one of an endorsement key")
    # The subject of an EK is a TPM in a critical directoryName, which no web policy knows.
    builder = PolicyBuilder().store(store)
    verifier = builder.extension_policies(
        ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ExtensionPolicy.permit_all()
    ).build_client_verifier()
    try:
        verifier.verify(leaf, between)
    except VerificationError as error:
        raise EkCertificateError(
            f"no trusted manufacturer vouches for the endorsement key: {error}",
            hint="give the certificates of the TPM's manufacturer with --ek-ca",
        ) from error


def _spki(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
