"""A certificate, as OpenSSL and asn1crypto read it, and files of which some cannot be read."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from asn1crypto import pem as pem_armor
from asn1crypto import x509 as asn1
from OpenSSL import crypto

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.tpm.stored_certificate import unwrap
from cima_runc.verifier.certificate_files import certificates_in

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)
"""What asn1crypto raises for bytes that are not what they should be."""


class CertificateError(CimaError):
    """Bytes that should be a certificate are none."""


@dataclass(frozen=True)
class Certificate:
    """One certificate, as two readers see it."""

    der: bytes
    openssl: crypto.X509 = field(compare=False)
    fields: asn1.Certificate = field(compare=False)

    @property
    def subject(self) -> str:
        """Its subject, for people."""
        return printable(self.fields.subject.human_friendly) or "a certificate without subject"

    @property
    def is_for_oaep(self) -> bool:
        """Whether its key is an RSA key that is named by what it is used for (RFC 4055, 4.1), as
        the first specifications of endorsement keys wanted."""
        info = self.fields["tbs_certificate"]["subject_public_key_info"]
        return bool(info.algorithm == "rsaes_oaep")

    def purposes(self) -> list[str]:
        """Return the OIDs of its extended key usages, none where it has no such extension."""
        value = self.fields.extended_key_usage_value
        return [purpose.dotted for purpose in value] if value is not None else []

    def critical(self) -> set[str]:
        """Return the OIDs of its critical extensions."""
        extensions = self.fields["tbs_certificate"]["extensions"] or ()
        return {one["extn_id"].dotted for one in extensions if one["critical"].native}


@dataclass(frozen=True)
class Certificates:
    """Certificates of one source, and what could not be read of it."""

    readable: tuple[Certificate, ...]
    unreadable: tuple[str, ...]
    """A line for each that was passed over, which says what and why."""


def read_certificate(data: bytes, what: str) -> Certificate:
    """Read one certificate: DER or PEM, perhaps as a TPM's NV memory holds it.

    Raises:
        CertificateError: it is none; ``what`` names it.
    """
    try:
        if pem_armor.detect(data):
            _, _, data = pem_armor.unarmor(data)
        der = unwrap(data)
        fields = asn1.Certificate.load(der, strict=True)
        _touch(fields)
        return Certificate(der, crypto.load_certificate(crypto.FILETYPE_ASN1, der), fields)
    except (*UNREADABLE, crypto.Error) as error:
        reason = printable(str(error).partition("\n")[0])[:200] or "not a certificate"
        raise CertificateError(f"{what} cannot be read: {reason}") from error


def _touch(fields: asn1.Certificate) -> None:
    """Have the lazy reader read all that is asked later, so that it fails here or nowhere."""
    tbs = fields["tbs_certificate"]
    for one in tbs["extensions"] or ():
        one["extn_id"].dotted, one["critical"].native
    for value in (
        fields.basic_constraints_value,
        fields.key_usage_value,
        fields.extended_key_usage_value,
        fields.subject_alt_name_value,
        fields.name_constraints_value,
        tbs["validity"],
        fields["signature_algorithm"],
        fields["signature_value"],
        tbs["subject_public_key_info"],
    ):
        if value is not None:
            value.native  # noqa: B018
    for attribute in fields.subject_directory_attributes_value or ():
        attribute["type"].dotted  # noqa: B018 - of the values nothing is asked
    fields.subject.human_friendly, fields.issuer.human_friendly  # noqa: B018


def read_bundle(data: bytes, what: str) -> Certificates:
    """Read a file of any number of certificates, in any form (:mod:`.certificate_files`).

    One that cannot be read spoils no other: it is named in the result.
    """
    found = certificates_in(data)
    return read_all(found, what if found == [data] else f"{what}: certificate")


def read_all(certificates: Iterable[bytes], what: str) -> Certificates:
    """Read certificates that stand each for itself; ``what`` and its place name an unreadable."""
    readable, unreadable = [], []
    for number, one in enumerate(certificates, 1):
        try:
            readable.append(read_certificate(one, f"{what} {number}"))
        except CertificateError as error:
            unreadable.append(error.what)
    return Certificates(tuple(readable), tuple(unreadable))
