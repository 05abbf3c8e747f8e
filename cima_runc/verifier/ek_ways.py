"""The ways from a certificate up to a trusted one, by who has signed whom.

OpenSSL chooses one issuer for each certificate and looks at no other: of two with one name (an
authority whose key was renewed, or that two others have certified) it may choose the wrong one.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from OpenSSL import crypto

from cima_runc.verifier.certificate import UNREADABLE, Certificate

_STEPS = 256
_HASHES = {each.name: each for each in (hashes.SHA1, hashes.SHA256, hashes.SHA384, hashes.SHA512)}


HasSigned = Callable[[Certificate, Certificate], bool]


def remembering() -> HasSigned:
    """Return :func:`has_signed` that looks once at each pair: for all anchors of one chain. Whoever
    hands that on decides how long the keys are, and of anchors there are hundreds."""
    return cache(has_signed)


def ways_up(
    leaf: Certificate,
    between: Sequence[Certificate],
    anchor: Certificate,
    signed: HasSigned | None = None,
) -> Iterator[tuple[Certificate, ...]]:
    """Yield the certificates of ``between`` on each way from ``leaf`` to ``anchor``, lowest first.

    Shorter ways come first. Only names and signatures are looked at, and no more than
    :data:`_STEPS` certificates: whoever hands them on decides how many ways there are. ``signed``
    is of :func:`remembering`.
    """
    has_signed_ = signed or remembering()
    pending: deque[tuple[Certificate, ...]] = deque([()])
    for _ in range(_STEPS):
        if not pending:
            return
        way = pending.popleft()
        top = way[-1] if way else leaf
        if has_signed_(anchor, top):
            yield way
        pending += [
            (*way, one) for one in between if one not in (leaf, *way) and has_signed_(one, top)
        ]


def has_signed(issuer: Certificate, one: Certificate) -> bool:
    """Whether ``issuer``'s name and key are those that ``one`` was issued by.

    Not where either is of an algorithm that is not known here.
    """
    if issuer.fields.subject.human_friendly != one.fields.issuer.human_friendly:
        return False
    algorithm, signature = one.fields["signature_algorithm"], one.fields["signature_value"].native
    signed = one.fields["tbs_certificate"].dump()
    try:
        key = issuer.openssl.get_pubkey().to_cryptography_key()
        used = _HASHES[algorithm.hash_algo]()
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(used))
        elif not isinstance(key, rsa.RSAPublicKey):
            return False
        elif algorithm.signature_algo == "rsassa_pss":
            salt = padding.PSS.AUTO
            key.verify(signature, signed, padding.PSS(padding.MGF1(used), salt), used)
        else:
            key.verify(signature, signed, padding.PKCS1v15(), used)
    except (InvalidSignature, UnsupportedAlgorithm, crypto.Error, *UNREADABLE):
        return False
    return True
