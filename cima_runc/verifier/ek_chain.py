"""Who vouches for an endorsement key: the path from its certificate to a trusted one.

OpenSSL builds and checks the path (signatures, names, validity, basic constraints, path lengths,
key usages, name constraints). It reads certificates whose DER is not strictly ordered, as some
manufacturers' are, and checks signatures over the bytes as they are. What the web's rules forbid
and the TCG's allow is looked at here.
Source: RFC 5280, section 6; TCG EK Credential Profile 2.5, section 3.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asn1crypto import pem as pem_armor
from asn1crypto import x509 as asn1
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import crypto

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.tpm.stored_certificate import unwrap
from cima_runc.verifier.certificate_files import certificates_in

TCG_KEY_PURPOSES = "2.23.133.8."
"""Arc of the TCG's extended key usages (TCG OID registry, tcg-kp)."""
ANY_PURPOSE = "2.5.29.37.0"

KNOWN_CRITICAL = frozenset(
    {
        "2.5.29.14",  # subjectKeyIdentifier
        "2.5.29.15",  # keyUsage
        "2.5.29.17",  # subjectAltName
        "2.5.29.19",  # basicConstraints
        "2.5.29.30",  # nameConstraints
        "2.5.29.31",  # cRLDistributionPoints
        "2.5.29.32",  # certificatePolicies
        "2.5.29.33",  # policyMappings
        "2.5.29.35",  # authorityKeyIdentifier
        "2.5.29.36",  # policyConstraints
        "2.5.29.37",  # extKeyUsage
        "2.5.29.54",  # inhibitAnyPolicy
        "1.3.6.1.5.5.7.1.1",  # authorityInfoAccess
    }
)
"""Critical extensions that are heeded: by OpenSSL, or because they constrain nothing here."""

_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)
"""What asn1crypto raises for bytes that are not what they should be."""
_WEAK_HASHES = ("md2", "md4", "md5")
_RSA_BITS = 2048
_EC_BITS = 256
_NO_ISSUER = frozenset({2, 20, 21})
"""X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, its _LOCALLY and UNABLE_TO_VERIFY_LEAF_SIGNATURE."""


class CertificateError(CimaError):
    """Bytes that should be a certificate are none."""


class UntrustedChainError(CimaError):
    """Nobody trusted vouches for the certificate."""


@dataclass(frozen=True)
class Certificate:
    """One certificate, as two readers see it."""

    der: bytes
    openssl: crypto.X509
    fields: asn1.Certificate

    @property
    def subject(self) -> str:
        """Its subject, for people."""
        return printable(self.fields.subject.human_friendly) or "a certificate without subject"

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
    except (*_UNREADABLE, crypto.Error) as error:
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
        fields["signature_algorithm"],
        tbs["subject_public_key_info"],
    ):
        if value is not None:
            value.native  # noqa: B018
    for attribute in fields.subject_directory_attributes_value or ():
        attribute["type"].dotted  # noqa: B018 - of the values nothing is asked
    fields.subject.human_friendly  # noqa: B018


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


def check_chain(
    leaf: Certificate, between: Sequence[Certificate], trusted: Sequence[Certificate]
) -> tuple[Certificate, ...]:
    """Return the path from ``leaf`` to one of ``trusted``, both included.

    A trusted certificate ends the path whether or not it is a root (``-partial_chain``).

    Raises:
        UntrustedChainError: there is no path; it says what is wrong with the best one.
    """
    problems: list[str] = []
    # One anchor at a time: of two with the same name OpenSSL would try the first alone.
    for anchor in trusted:
        store = crypto.X509Store()
        store.add_cert(anchor.openssl)
        # Critical extensions are looked at below: OpenSSL knows none of the TCG's.
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        store.set_flags(crypto.X509StoreFlags.IGNORE_CRITICAL)
        context = crypto.X509StoreContext(store, leaf.openssl, [one.openssl for one in between])
        try:
            path = context.get_verified_chain()
        except crypto.X509StoreContextError as error:
            problem = _problem(error, leaf)
        else:
            found = tuple(_again(one) for one in path)
            problem = next(iter(_faults(found)), "")
            if not problem:
                return found
        if problem and problem not in problems:
            problems.append(problem)
    raise UntrustedChainError(
        problems[0] if problems else f"nobody who is trusted has issued {leaf.subject}"
    )


def _problem(error: crypto.X509StoreContextError, leaf: Certificate) -> str:
    code, depth, text = error.errors[0], error.errors[1], error.errors[2]
    if code in _NO_ISSUER:
        return ""
    name = leaf.subject if depth == 0 else _again(error.certificate).subject
    return f"{printable(str(text))}: {name}"


def _again(certificate: crypto.X509) -> Certificate:
    return read_certificate(
        crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate), "a certificate of the path"
    )


def _faults(path: Sequence[Certificate]) -> Iterable[str]:
    """Yield what is wrong with a path that OpenSSL takes; the leaf's own extensions left out."""
    last = len(path) - 1
    for place, one in enumerate(path):
        algorithm = str(one.fields["signature_algorithm"]["algorithm"].native)
        if place != last and algorithm.startswith(_WEAK_HASHES):
            yield f"{one.subject} is signed with {algorithm}"
        if place == 0:
            continue
        unknown = sorted(one.critical() - KNOWN_CRITICAL)
        if unknown:
            yield f"{one.subject} has a critical extension that is not known: {unknown[0]}"
        constraints = one.fields.basic_constraints_value
        if place != last and (constraints is None or not constraints["ca"].native):
            yield f"{one.subject} is no certificate of an authority"
        purposes = one.purposes()
        if purposes and not any(
            purpose == ANY_PURPOSE or purpose.startswith(TCG_KEY_PURPOSES) for purpose in purposes
        ):
            yield f"{one.subject} is an authority for other purposes than TPMs: {purposes[0]}"
        if _weak(one):
            yield f"the key of {one.subject} is too short"


def _weak(one: Certificate) -> bool:
    try:
        key = one.openssl.get_pubkey().to_cryptography_key()
    except (crypto.Error, ValueError):
        return True
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size < _RSA_BITS
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size < _EC_BITS
