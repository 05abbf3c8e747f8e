"""Who vouches for an endorsement key: the path from its certificate to a trusted one.

OpenSSL checks the path (signatures, names, validity, basic constraints, path lengths, key usages,
name constraints). It reads certificates whose DER is not strictly ordered, as some manufacturers'
are, and checks signatures over the bytes as they are. It goes one way up only, so each way that
signatures show is tried (:mod:`.ek_ways`). What the web's rules forbid and the TCG's allow is
looked at here, and a leaf whose key OpenSSL does not know (RSAES-OAEP).
Source: RFC 5280, section 6; TCG EK Credential Profile 2.5, section 3; RFC 4055, section 4.1.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import crypto

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.verifier.certificate import Certificate, read_certificate
from cima_runc.verifier.ek_ways import HasSigned, remembering, ways_up

TCG_KEY_PURPOSES = ("2.23.133.8.", "2.23.133.5.4.100.")
"""Arcs of the TCG's extended key usages (TCG OID registry, tcg-kp and tcg-dice-kp): the second is
of authorities inside a chip."""
ANY_PURPOSE = "2.5.29.37.0"

KNOWN_CRITICAL = frozenset(
    {
        "2.5.29.14",  # subjectKeyIdentifier
        "2.5.29.15",  # keyUsage
        "2.5.29.17",  # subjectAltName
        "2.5.29.18",  # issuerAltName
        "2.5.29.19",  # basicConstraints
        "2.5.29.30",  # nameConstraints
        "2.5.29.31",  # cRLDistributionPoints
        "2.5.29.32",  # certificatePolicies
        "2.5.29.33",  # policyMappings
        "2.5.29.35",  # authorityKeyIdentifier
        "2.5.29.36",  # policyConstraints
        "2.5.29.37",  # extKeyUsage
        "2.5.29.46",  # freshestCRL
        "2.5.29.54",  # inhibitAnyPolicy
        "1.3.6.1.5.5.7.1.1",  # authorityInfoAccess
    }
)
"""Critical extensions that are heeded: by OpenSSL, or because they constrain nothing here."""

_WEAK_HASHES = ("md2", "md4", "md5")
_RSA_BITS = 2048
_EC_BITS = 256
_WAYS = 32
"""Ways up to one anchor that are tried."""
_NO_ISSUER = frozenset({2, 20, 21})
"""X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, its _LOCALLY and UNABLE_TO_VERIFY_LEAF_SIGNATURE."""


class UntrustedChainError(CimaError):
    """Nobody trusted vouches for the certificate."""


def check_chain(
    leaf: Certificate, between: Sequence[Certificate], trusted: Sequence[Certificate]
) -> tuple[Certificate, ...]:
    """Return the path from ``leaf`` to one of ``trusted``, both included.

    A trusted certificate ends the path whether or not it is a root (``-partial_chain``).

    Raises:
        UntrustedChainError: there is no path; it says what is wrong with the best one.
    """
    problems: list[str] = []
    signed = remembering()
    # One anchor at a time: of two with the same name OpenSSL would try the first alone.
    for anchor in trusted:
        # Where no way leads up, OpenSSL says what is wrong.
        for way in (*islice(ways_up(leaf, between, anchor, signed), _WAYS), between):
            try:
                return _path(leaf, way, anchor, signed)
            except UntrustedChainError as error:
                if error.what and error.what not in problems:
                    problems.append(error.what)
    raise UntrustedChainError(
        problems[0] if problems else f"nobody who is trusted has issued {leaf.subject}"
    )


def _path(
    leaf: Certificate, between: Sequence[Certificate], anchor: Certificate, signed: HasSigned
) -> tuple[Certificate, ...]:
    by_hand = leaf.is_for_oaep
    if by_hand:  # X509_verify_cert takes no leaf whose key it cannot read
        first = next((one for one in (*between, anchor) if signed(one, leaf)), None)
        if first is None:
            raise UntrustedChainError("")
        path = (leaf, *_verified(first, between, anchor))
    else:
        path = _verified(leaf, between, anchor)
    problem = next(iter(_faults_by_hand(path)), "") if by_hand else ""
    problem = problem or next(iter(_faults(path)), "")
    if problem:
        raise UntrustedChainError(problem)
    return path


def _verified(
    leaf: Certificate, between: Sequence[Certificate], anchor: Certificate
) -> tuple[Certificate, ...]:
    """Return the path that OpenSSL takes."""
    store = crypto.X509Store()
    store.add_cert(anchor.openssl)
    # Critical extensions are looked at below: OpenSSL knows none of the TCG's.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    store.set_flags(crypto.X509StoreFlags.IGNORE_CRITICAL)
    context = crypto.X509StoreContext(store, leaf.openssl, [one.openssl for one in between])
    try:
        return tuple(_again(one) for one in context.get_verified_chain())
    except crypto.X509StoreContextError as error:
        raise UntrustedChainError(_problem(error, leaf)) from error


def _faults_by_hand(path: Sequence[Certificate]) -> Iterator[str]:
    """Yield what OpenSSL would find of a leaf with the rest of its path, which it has taken.

    Who issued the leaf was the leaf to OpenSSL, and no authority yet.
    """
    leaf, issuer = path[:2]
    validity = leaf.fields["tbs_certificate"]["validity"].native
    now = datetime.now(UTC)
    if now > validity["not_after"]:
        yield f"certificate has expired: {leaf.subject}"
    if now < validity["not_before"]:
        yield f"certificate is not yet valid: {leaf.subject}"
    constraints, usage = issuer.fields.basic_constraints_value, issuer.fields.key_usage_value
    if constraints is None or not constraints["ca"].native:
        yield f"{issuer.subject} is no certificate of an authority"
    if usage is not None and "key_cert_sign" not in usage.native:
        yield f"{issuer.subject} may sign no certificates by its key usage"
    below = 0
    for one in path[1:]:
        value = one.fields.basic_constraints_value
        most = value["path_len_constraint"].native if value is not None else None
        if most is not None and below > most:
            yield f"path length constraint exceeded: {one.subject}"
        if one.fields.name_constraints_value is not None:
            yield f"{one.subject} constrains names, which is not looked at for keys of RSAES-OAEP"
        below += not one.fields.self_issued


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
