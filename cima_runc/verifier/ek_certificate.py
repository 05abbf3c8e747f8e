"""Is an endorsement key that of a TPM which its manufacturer vouches for?

Source: TCG EK Credential Profile 2.5, section 3 (fields of the certificate); RFC 5280. See
docs/adr for what is taken of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from asn1crypto import core
from asn1crypto import x509 as asn1
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.verifier.certificate import (
    Certificate,
    CertificateError,
    read_all,
    read_bundle,
    read_certificate,
)
from cima_runc.verifier.ek_chain import (
    ANY_PURPOSE,
    KNOWN_CRITICAL,
    UntrustedChainError,
    check_chain,
)

_EK_PURPOSE = "2.23.133.8.1"
"""tcg-kp-EKCertificate."""
_DIRECTORY_ATTRIBUTES = "2.5.29.9"
_MANUFACTURER, _MODEL, _VERSION = (f"2.23.133.2.{number}" for number in (1, 2, 3))
"""tcg-at-tpmManufacturer, -tpmModel, -tpmVersion."""
_PROFILE_ATTRIBUTES = frozenset(
    {"2.23.133.2.16", "2.23.133.2.17", "2.23.133.2.18", "2.23.133.2.23", "2.5.4.52"}
)
"""tcg-at-tpmSpecification, -platformSpecification, -tpmSecurityAssertions, -cryptographicAnchors,
supportedAlgorithms."""
_DECRYPTING = frozenset({"key_encipherment", "key_agreement", "data_encipherment"})


class EkCertificateError(CimaError):
    """The endorsement key's certificate does not vouch for it."""


@dataclass(frozen=True)
class VouchedTpm:
    """The TPM that the certificate is of; texts are escaped for people."""

    manufacturer: str
    """As the certificate has it: ``id:`` and the hexadecimal of four letters."""
    model: str
    version: str
    path: tuple[str, ...]
    """Subjects of the certificates from the TPM's issuer to the trusted one."""
    passed_over: tuple[str, ...]
    """A line for each certificate that could not be read."""


def check_ek_certificate(
    certificate: bytes, chain: Sequence[bytes], ek_pem: bytes, trusted: bytes
) -> VouchedTpm:
    """Check an EK certificate up to ``trusted`` (a file of manufacturers' certificates).

    ``certificate`` and each of ``chain``, which may help to get there, are DER or PEM, perhaps as
    NV memory holds them; ``ek_pem`` is the key that the certificate must be of. One of ``chain``
    or ``trusted`` that cannot be read is passed over, and named.

    Raises:
        EkCertificateError: it is of another key, not for an EK, or not issued by anybody trusted.
    """
    anchors = read_bundle(trusted, "the manufacturers' file")
    between = read_all(chain, "the host's chain, certificate")
    passed_over = anchors.unreadable + between.unreadable
    try:
        leaf = read_certificate(certificate, "the endorsement key's certificate")
        if not anchors.readable:
            raise CertificateError(
                "; ".join(anchors.unreadable) or "no manufacturer's certificate was given"
            )
        _check_key(leaf, ek_pem)
        names = _names(leaf)
        _check_extensions(leaf, names)
    except CertificateError as error:
        raise EkCertificateError(error.what) from error
    try:
        path = check_chain(leaf, between.readable, anchors.readable)
    except UntrustedChainError as error:
        notes = "".join(f"; passed over: {line}" for line in passed_over)
        raise EkCertificateError(
            f"no trusted manufacturer vouches for the endorsement key: {error.what}{notes}",
            hint="give the certificates of the TPM's manufacturer with --ek-ca, and those between"
            " with --ek-chain",
        ) from error
    return VouchedTpm(
        manufacturer=names.get(_MANUFACTURER, ""),
        model=names.get(_MODEL, ""),
        version=names.get(_VERSION, ""),
        path=tuple(one.subject for one in path[1:]),
        passed_over=passed_over,
    )


def _check_key(leaf: Certificate, ek_pem: bytes) -> None:
    key = serialization.load_pem_public_key(ek_pem)
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise EkCertificateError("the endorsement key is neither an RSA nor an ECC key")
    if _subject_key(leaf) != key.public_numbers():
        raise EkCertificateError("the certificate is of another endorsement key")


def _subject_key(leaf: Certificate) -> object:
    info = leaf.fields["tbs_certificate"]["subject_public_key_info"]
    try:
        if leaf.is_for_oaep:
            numbers = info["public_key"].parsed.native
            return rsa.RSAPublicNumbers(numbers["public_exponent"], numbers["modulus"])
        key = serialization.load_der_public_key(info.dump())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"the certificate's key cannot be read: {error}") from error
    return key.public_numbers() if hasattr(key, "public_numbers") else None


def _check_extensions(leaf: Certificate, names: dict[str, str]) -> None:
    purposes = leaf.purposes()
    if purposes and _EK_PURPOSE not in purposes and ANY_PURPOSE not in purposes:
        raise EkCertificateError("the certificate is not one of an endorsement key")
    if _EK_PURPOSE not in purposes and _MANUFACTURER not in names:
        raise EkCertificateError(
            "the certificate names neither a TPM nor the use as an endorsement key"
        )
    constraints = leaf.fields.basic_constraints_value
    if constraints is not None and constraints["ca"].native:
        raise EkCertificateError("the endorsement key's certificate is that of an authority")
    usage = leaf.fields.key_usage_value
    if usage is not None and _DECRYPTING.isdisjoint(usage.native):
        raise EkCertificateError("the certificate's key usage is not that of an endorsement key")
    unknown = leaf.critical() - KNOWN_CRITICAL
    if _DIRECTORY_ATTRIBUTES in unknown and _directory_attributes(leaf) <= _PROFILE_ATTRIBUTES:
        unknown -= {_DIRECTORY_ATTRIBUTES}
    if unknown:
        raise EkCertificateError(
            "the endorsement key's certificate has a critical extension that is not known:"
            f" {min(unknown)}"
        )


def _directory_attributes(leaf: Certificate) -> set[str]:
    value = leaf.fields.subject_directory_attributes_value
    return {attribute["type"].dotted for attribute in value} if value is not None else set()


def _names(leaf: Certificate) -> dict[str, str]:
    """Return what the subject's alternative directory names say of the TPM, by OID."""
    value = leaf.fields.subject_alt_name_value
    names: dict[str, str] = {}
    for general in value or ():
        if general.name != "directory_name":
            continue
        for relative in general.chosen.chosen:
            for one in relative:
                names.setdefault(one["type"].dotted, printable(_text(one)))
    return names


def _text(one: asn1.NameTypeAndValue) -> str:
    value = one["value"]
    if isinstance(value, core.Any):
        value = value.parse()
    return str(value.native)
